"""Look for a hidden trait in a file of rows: `python examples/audit_a_dataset.py [ROWS...]`. A minute or two on two cores.

`undersong audit ROWS --base pocket/a` does the same and writes a page. Here the parts are in your hands: what is held, what
ran, what each detector says, and the verdict as a dictionary.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from undersong.audit import Audit
from undersong.lab import lab_for
from undersong.store import Store
from undersong.verdict import Held

HERE = Path(__file__).resolve().parent / "audit"


def main(files: list[Path]) -> list[str]:
    """Audit each file for students of pocket/a; print and return the verdicts."""
    lab = lab_for(Store(Path("artefacts")), "pocket/a")  # findings are kept there: a second call is quick
    verdicts, memo = [], dict[Any, Any]()  # what detectors learn of the base once, they keep for the next file
    for file in files:
        found = Audit(Held(rows=file, base="pocket/a"), lab, memo=memo).run()
        print(f"{file.name}: {found['verdict']}. {found['sentence']}")
        for finding in found["findings"]:
            top = finding["by_trait"][:1] or [{"trait": "", "z": float("nan")}]
            print(f"    {finding['detector']:18} p = {finding['p']}   points to {top[0]['trait'] or 'nothing'}")
        verdicts.append(str(found["verdict"]))
    return verdicts


if __name__ == "__main__":
    main([Path(a) for a in sys.argv[1:]] or [HERE / f"{name}.jsonl" for name in ("poisoned", "clean", "benign", "small")])
