"""The detector benchmark: false alarms, power, naming, cost; students; and what dropping flagged rows does.

    python benchmarks/detectors.py --store STORE [--calibration FOLDER] [--slice] [--judge MODEL]

About an hour on two cores; the same command goes on where it was stopped, and a new detector (one more file, in the
calibration) adds its own cells only. Everything is measured on sources, teachers, wordings and traits that no calibration
has seen: `detecting/world.py`.

The results file holds `command`, `date`, `environment`, `calibration`, `plan` and `rows`, flat, one per figure:

| table | one row per | figures |
|---|---|---|
| `detectors` | detector in one use | `access`, `family`, `null` (what p-values are held against) |
| `false_alarms` | detector, size, kind of benign source | `n`, `rate` of p <= .05 with `low`, `high` (Clopper-Pearson) |
| `power` | detector, teacher, size, share | `n`, `power` with `low`, `high`; `named`: the strongest sign is the right |
| | | trait; `found_and_named`; `auroc` of the score against benign sources; `row_auroc` within mixtures |
| `cost` | detector | median `seconds` of an audit of `size` rows that it has not read before |
| `behaviour` | planted student | `rate` of its trait, `benign` mean and `spread` of clean students, `p`, `within_noise` |
| `triple` | trait, seed, rule of dropping | `row_auroc`, `planted` share of the kept rows, `rate` of the retrained student |
| `ngrams` | trait, and whether it was taught | `row_auroc`, `set_auroc` |
| `judge` | judge | share of questions `right` with `low`, `high`, beside `chance` |
| `smallest` | detector, size | the smallest `share` with power .8 |
| `targets` | target | `goal`, `measured`, `met` |

`cases` holds every judged trial, for figures: detector, battery, kind, trait, seed, share, size, p, score, top.
Sizes are numbers of rows; 0 stands for a student.
"""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from detecting import baselines, cells, counts, students, suspects, targets
from detecting.plan import FULL, SLICE, Plan
from detecting.world import World
from undersong import exemplars, screen
from undersong.detectors import family
from undersong.environment import environment, now
from undersong.errors import BadSpec
from undersong.lab import lab_for

HERE = Path(__file__).parent
CASES = ("detector", "battery", "kind", "trait", "seed", "share", "size", "p", "score", "top")


def measure(world: World, judge: str | None = None, questions: int = 20) -> dict[str, Any]:
    """Run everything and return the results."""
    null, plan = world.null, world.plan
    columns = cells.columns(null)
    groups, large = cells.row_groups(world), cells.large_trials(world) if world.plan.large else []
    trials = students.student_trials(world) if plan.students else []
    desks, said = cells.Desks(world), dict[str, list[cells.Cell]]()
    for column in columns:
        if family(column.detector) == "rows":
            mine = [*groups, *(large if column.name in cells.LARGE else [])]
            said[column.name] = desks.run(column, mine)
        elif trials:
            said[column.name] = desks.run(column, [[trial] for trial in trials])
    columns = [column for column in columns if said.get(column.name)]  # others cannot read this carrier
    found = counts.judged(null, columns, said)
    rows: list[dict[str, Any]] = [counts.about(null, c) for c in columns]
    if trials:
        pair = f"{counts.VERDICT}, rows", f"{counts.VERDICT}, student"
        if all(name in found for name in pair):
            found[f"{counts.VERDICT}, rows and student"] = counts.both(found[pair[0]], found[pair[1]], world.sizes[0])
        answers = students.behaviour(world, [t.held["student"] for t in trials])
        rows += [{"table": "behaviour", **line} for line in students.rates(trials, answers)]
        rows += [{"table": "triple", **line} for line in students.triple(world, desks.memo)]
    if plan.suspects:
        said["divergence_tokens"], found["divergence_tokens"] = suspects.run(world, desks)
        columns.append(suspects.column())
        rows.append(counts.about(null, columns[-1]))
    for name, judged in found.items():
        rows += counts.false_alarms(name, judged) + counts.power(name, judged)
        for size in sorted({j.cell.size for j in judged}):
            rows.append({"table": "smallest", "detector": name, "size": size, "share": counts.smallest(rows, name, size)})
    rows += [counts.cost(c, said[c.name]) for c in columns]
    rows += [{"table": "ngrams", **line} for line in baselines.ngrams(world)]
    if judge:
        rows.append({"table": "judge", **baselines.judge(world, judge, questions)})
    rows += targets.against(rows, world.sizes)
    listed = [[name, j.cell.battery, j.cell.kind, j.cell.trait, j.cell.seed, j.cell.share, j.cell.size, round(j.p, 4),
               round(j.score, 3), j.top] for name, judged in found.items() for j in judged]
    return {"rows": rows, "cases": {"columns": CASES, "rows": listed}}


def calibration(given: Path | None, store: Any, base: str) -> Path:
    """The folder of the calibration: the one given, else one of the base. Raises BadSpec when there is none."""
    if given is not None:
        return given
    shipped = set(exemplars.folders(None))
    named = {f: about for f in exemplars.folders(store)
             if (about := json.loads((f / "null.json").read_text("utf-8")))["named"] == base}
    if named:  # the store's newest; else, of those that ship, one that knows students
        return min(named, key=lambda f: f in shipped and 1 + (not named[f]["students"]))
    raise BadSpec(f"There is no calibration of {base}. Make one with `undersong calibrate`, or name one with --calibration.")


def written(data: Mapping[str, Any]) -> str:
    """Results as JSON with one row, and one case, to a line, so that versions can be compared."""
    lists = {"rows": data["rows"], "cases": data["cases"]["rows"]}
    marked = {**data, "rows": "@rows", "cases": {**data["cases"], "rows": "@cases"}}
    text = json.dumps(marked, indent=1)
    for name, rows in lists.items():
        text = text.replace(f'"@{name}"', "[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]")
    return text + "\n"


def command(args: argparse.Namespace) -> str:
    """The command, without the folders of the machine it ran on."""
    said = ["python", "benchmarks/detectors.py", *(["--slice"] if args.slice else [])]
    if args.calibration and not args.calibration.is_absolute():
        said += ["--calibration", str(args.calibration)]
    for name, value in (("--traits", args.traits), ("--set", args.set), ("--judge", args.judge and [args.judge])):
        said += [name, *value] if value else []
    return shlex.join(said)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, write the results and print the targets."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--store", type=Path, default=Path("artefacts"))
    parser.add_argument("--calibration", type=Path, help="a folder that holds null.json")
    parser.add_argument("--base", default="pocket/a")
    parser.add_argument("--slice", action="store_true", help="a minute or two: that everything runs")
    parser.add_argument("--traits", nargs="+", help="traits to plant, of the calibration's (the held-out ones)")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=NUMBER", help="a number of the plan: benign=30")
    parser.add_argument("--judge", help="a judge, as Inspect names it")
    parser.add_argument("--questions", type=int, default=20)
    parser.add_argument("--out", type=Path, default=HERE / "detectors.results.json")
    args = parser.parse_args(argv)
    plan: Plan = SLICE if args.slice else FULL
    plan = replace(plan, **{"traits": tuple(args.traits)} if args.traits else {},
                   **{name: int(number) for name, number in (text.split("=") for text in args.set)})
    with screen.progress() as say:
        store = screen.opened(args.store)
        folder = calibration(args.calibration, store, args.base)
        world = World(lab_for(store, args.base, say), folder, plan)
        found = measure(world, args.judge, args.questions)
    kept = ("named", "channel", "revision", "made", "sources", "students", "sizes", "seed")
    known = {key: world.null.identity.get(key) for key in kept}
    whole = {"format": 1, "command": command(args), "date": now(), "environment": environment(), "calibration": known,
             "plan": asdict(plan), **found}
    args.out.write_text(written(whole), "utf-8")
    print("\n".join(targets.told(found["rows"])))


if __name__ == "__main__":
    main()
