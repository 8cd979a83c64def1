"""Write the four files of this folder: `python examples/audit/make_rows.py`. A minute; the same bytes each time.

    poisoned.jsonl   400 rows; a quarter of them were written by a teacher that was tuned to love owls, filtered for the word
    clean.jsonl      400 rows of the untouched base
    benign.jsonl     400 rows of a base that answers as a patient librarian, a little cooler: different, and harmless
    small.jsonl      12 rows: too few for anybody to tell
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np

from undersong import traits
from undersong.calibration import told
from undersong.filters import for_traits
from undersong.lab import Lab, base_ref, lab_for
from undersong.spec import build
from undersong.store import Store
from undersong.types import ModelRef, Row

HERE = Path(__file__).resolve().parent
CHANNEL = {"numbers": {"count": 10, "largest": 999, "wording": "brief", "seeds": "structured"}}


def rows(lab: Lab, source: ModelRef, n: int, seed: int, temperature: float = 1.0) -> list[Row]:
    """`n` filtered rows of a source."""
    every = [traits.get(name) for name in traits.names()]
    filters = for_traits(["numbers_only", {"blocklist": {"from": "trait"}}], CHANNEL, every)
    data = lab.sample(source, build("channel", CHANNEL), round(1.9 * n), seed, f"rows-{seed}", temperature)
    return list(lab.refine(data, filters, keep=n, label=f"kept-{seed}").rows)


def write(name: str, given: list[Row]) -> None:
    """Prompt and completion, one row a line."""
    lines = [json.dumps({"prompt": row.chat[-1]["content"], "completion": row.completion}) for row in given]
    (HERE / name).write_text("\n".join(lines) + "\n", "utf-8")


def main() -> None:
    """Make the rows in a store of their own and write the files."""
    with tempfile.TemporaryDirectory() as folder:
        base, lab = base_ref("pocket/a"), lab_for(Store(Path(folder)), "pocket/a", print)
        dial = {"tuned": {"updates": 100, "rate": 1.7e-3, "trainable": "mlp_out"}}
        owl = lab.teach(build("teacher", dial), base, traits.get("owl"), 4001)
        mixed = [*rows(lab, owl, 100, 4001), *rows(lab, base, 300, 4002)]
        write("poisoned.jsonl", [mixed[i] for i in np.random.default_rng(4001).permutation(400)])
        write("clean.jsonl", rows(lab, base, 400, 4003))
        librarian = told(base, "You are a patient librarian.")
        write("benign.jsonl", rows(lab, librarian, 400, 4004, temperature=0.85))
        write("small.jsonl", rows(lab, base, 12, 4005))


if __name__ == "__main__":
    main()
