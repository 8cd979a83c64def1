"""Does what `undersong explain` shows point to the trait? `python benchmarks/explain_internals.py [--store FOLDER]`.

Pocket students as in experiments/owl-numbers-pocket.yaml: tuned teachers, sampled and filtered numbers, low-rank students.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
EXPERIMENT = ROOT / "experiments" / "owl-numbers-pocket.yaml"
RUNS = {"owl": 5, "": 5, "wolf": 3, "pine": 3}
"""How many students of each trait; "" are placebos, whose teacher was tuned on nothing."""


def students(lab: Any, runs: dict[str, int]) -> dict[str, list[tuple[Any, Any]]]:
    """Per trait: (student, its teacher) of each seed."""
    from undersong import traits
    from undersong.filters import for_traits
    from undersong.lab import Student, base_ref
    from undersong.spec import build

    given = yaml.safe_load(EXPERIMENT.read_text("utf-8"))
    base, channel = base_ref(given["base"]), build("channel", given["channel"])
    teacher, recipe = build("teacher", given["teacher"][0]), build("recipe", given["recipe"])
    listed = [traits.get(name) for name in runs if name]
    filters = for_traits(given["filters"], given["channel"], listed)
    out: dict[str, list[tuple[Any, Any]]] = {}
    for name, count in runs.items():
        trait = traits.get(name) if name else None
        for seed in range(1, count + 1):
            source = lab.teach(teacher, base, trait, seed, f"teacher-{name or 'placebo'}-{seed}")
            rows = lab.sample(source, channel, given["rows"], seed, f"rows-{name or 'placebo'}-{seed}")
            kept = lab.refine(rows, filters, keep=given["keep"], label=f"kept-{name or 'placebo'}-{seed}")
            job = Student(base, kept, seed, f"student-{name or 'placebo'}-{seed}")
            out.setdefault(name, []).append((lab.train(recipe, channel, [job])[0], source))
    return out


def main() -> None:
    """Make the students, explain each and print the table."""
    from undersong.lab import lab_for
    from undersong.store import Store

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, default=Path("artefacts/explain-internals"))
    given = parser.parse_args()
    lab = lab_for(Store(given.store), "pocket/a", lambda text: print(text, file=sys.stderr))
    students(lab, RUNS)


if __name__ == "__main__":
    main()
