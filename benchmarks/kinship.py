"""Kinship tests on a family tree of pocket models with a known truth: false alarms, descendants found, black box.

    python benchmarks/kinship.py --store STORE [--slice] [--seconds N]

Grows the tree (`kindred/tree.py`; about 25 minutes on one core), then judges every pair with every test; the same command
goes on where it was stopped. Exits with 2 while something is left to do (`--seconds` was too short).

Tests were tuned on development roots only; held-out ones had not been looked at. The controls of a pair are five unrelated
development roots: they learned the same rows from other initialisations.

The results file holds `command`, `date`, `environment`, `plan` and `rows`, flat, one per figure:

| table | one row per | figures |
|---|---|---|
| `pairs` | pair and test | `truth`, `verdict`, `p`, `power`, `statistic`, `excess`, `direction`, `seconds` |
| `false_alarms` | test, part, kind of strangers | `n`, `called` kin, `rate` with `low`, `high` (Clopper-Pearson) |
| `recall` | test, part, kind of descendant | the same |
| `overall` | test, part | `precision` and `recall` with intervals over all pairs, `queries` per model |
| `confusion` | test, part, truth, verdict | `n` |
| `cost` | test | median `seconds` |
| `targets` | target | `goal`, `measured`, `met` |

Tests named `relate` are the joint verdict (Holm over tests): all, by weights, by logits, by text; the last three have no
row per pair, and figures that are null have no field there.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kindred import counts, growing
from kindred.pairs import ALPHA, TEXT, judge, pairs
from kindred.tree import SLICE, Plan, members
from undersong import registry, screen
from undersong.environment import environment, now

HERE = Path(__file__).parent


def grown(store: Path, plan: Plan, end: float, say: Any) -> bool:
    """Make the missing members, development first, until the time is over; whether all are there."""
    import transformers

    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    todo = sorted(members(plan), key=lambda m: m.held_out)
    for member in todo:
        if time.monotonic() > end:
            break
        if growing.ready(store, member):
            say(f"growing {member.name}")
            growing.grow(store, plan, member)
    return all(growing.folder(store, m.name).is_dir() for m in todo)


def results(store: Path, plan: Plan) -> list[dict[str, Any]]:
    """Every row, from the stored answers of the pairs that were judged."""
    places = [(pair, store / "pairs" / f"{pair.name}.json") for pair in pairs(plan)]
    rows = counts.lines([(pair, json.loads(place.read_text("utf-8"))) for pair, place in places if place.is_file()])
    told = [{k: v for k, v in r.items() if v is not None} for r in rows if not r["test"].startswith("relate,")]
    return [*counts.rates(rows, queries()), *told]


def queries() -> dict[str, int]:
    """Prompts that each model answers, by black-box test and by joint verdict."""
    made = {name: registry.get("kinship", name)() for name in ("seed_print", *TEXT)}
    own = {"seed_print": made["seed_print"].prompts, "behaviour": made["behaviour"].prompts,
           "phylogeny": made["phylogeny"].genes * made["phylogeny"].samples}
    return {**own, "relate, logits": sum(own.values()), "relate, text": sum(own[name] for name in TEXT)}


def written(data: Mapping[str, Any]) -> str:
    """Results as JSON with one row to a line, so that versions can be compared."""
    text = json.dumps({**data, "rows": "@rows"}, indent=1)
    return text.replace('"@rows"', "[\n" + ",\n".join(json.dumps(row) for row in data["rows"]) + "\n]") + "\n"


def main(argv: Sequence[str] | None = None) -> None:
    """Grow, judge, write the results and print the targets."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--store", type=Path, default=Path("artefacts") / "kindred")
    parser.add_argument("--slice", action="store_true", help="a few roots, trained for seconds: that everything runs")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after about so long, and go on next time")
    parser.add_argument("--out", type=Path, default=HERE / "kinship.results.json")
    args = parser.parse_args(argv)
    plan, end = SLICE if args.slice else Plan(), time.monotonic() + args.seconds
    with screen.progress() as say:
        done = grown(args.store, plan, end, say)
        for pair in judge(args.store, plan, pairs(plan), end):
            say(f"judged {pair.a.name} and {pair.b.name}")
    rows = results(args.store, plan)
    command = "python benchmarks/kinship.py" + (" --slice" if args.slice else "")
    about = {"format": 1, "command": command, "date": now(), "environment": environment(), "alpha": ALPHA,
             "plan": asdict(plan)}
    args.out.write_text(written({**about, "rows": rows}), "utf-8")
    for row in (r for r in rows if r["table"] == "targets"):
        print(f"{'met ' if row['met'] else 'not met'} {row['target']}: {row['measured']} (goal: {row['goal']})")
    left = sum(not (args.store / "pairs" / f"{pair.name}.json").is_file() for pair in pairs(plan))
    if left or not done:
        print(f"{left} pairs are left. Run the same command again.")
        sys.exit(2)


if __name__ == "__main__":
    main()
