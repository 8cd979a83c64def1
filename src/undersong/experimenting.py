"""The commands `new`, `plan`, `run` and `report`. Thin: they parse arguments, call the library and print what it gave."""

from __future__ import annotations

import dataclasses
import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from undersong import screen
from undersong.errors import BadSpec
from undersong.screen import ARTEFACTS, JsonOption, SetOption, StoreOption

if TYPE_CHECKING:
    from undersong.experiment import Experiment
    from undersong.experiment.steps import PlanRow
    from undersong.experiment.sweep import Sweep
    from undersong.laboratory import Laboratory
    from undersong.reports.parts import Section
    from undersong.store import Store

FileArgument = Annotated[Path, typer.Argument(metavar="FILE", help="An experiment file (YAML).")]


def add(app: typer.Typer) -> None:
    """Give an application these commands."""
    for command in (new, plan, run, report):
        app.command()(command)


def new(
    name: Annotated[str, typer.Argument(help="The experiment's name; a folder in front of it is kept.")],
    like: Annotated[str | None, typer.Option(help="Copy this experiment (a file, or a name in experiments/).")] = None,
    as_json: JsonOption = False,
) -> None:
    """Write a commented experiment file that already passes `plan`."""
    from undersong.experiment import Experiment
    from undersong.experiment_file import text_like

    path = Path(name).with_suffix(".yaml")
    if path.exists():
        raise BadSpec(f"{str(path)!r} is there already. Choose another name, or remove it first.")
    text = text_like(like) if like else (Path(__file__).parent / "new.yaml").read_text("utf-8")
    lines = [f"name: {json.dumps(path.stem)}" if line.startswith("name:") else line for line in text.splitlines()]
    text = "\n".join(lines) + "\n"
    Experiment.read(text)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")
    screen.say(as_json, {"file": str(path)}, f"Wrote {path}. Next: undersong plan {path}")


def plan(
    file: FileArgument, sets: SetOption = None, store: StoreOption = ARTEFACTS, as_json: JsonOption = False
) -> None:
    """Show what is finished, what is missing, which field changed, and what the rest will cost. Does no work."""
    from undersong.experiment.sweep import Sweep

    asked, kept = _load(file, sets), screen.opened(store)
    rows = asked.plan(kept)
    data = [dataclasses.asdict(r) for r in rows]
    # of a sweep's thousands of labels, what comes before the first dash: the part
    short = r"-.*" if isinstance(asked, Sweep) else r"-s\d+"
    seen = Counter((r.kind, re.sub(short, "", r.label), r.status, "; ".join(r.changed)) for r in rows)
    lines = [(kind, label, n, *rest) for (kind, label, *rest), n in seen.items()]
    table = screen.table(("kind", "label", "runs", "status", "changed"), lines)
    waiting = sum(r.status != "cached" for r in rows)
    told = f"{len(rows) - waiting} finished, {waiting} to do."
    screen.say(as_json, data, f"{table}\n{told}{_cost(asked, rows, kept)}")


def run(
    file: FileArgument, sets: SetOption = None,
    report: Annotated[Path | None, typer.Option(help="Where the HTML report goes; STORE/reports by default.")] = None,
    executor: screen.ExecutorOption = None, address: screen.AddressOption = None,
    store: StoreOption = ARTEFACTS, as_json: JsonOption = False,
) -> None:
    """Do the missing work, print the result table and write the report. The same command resumes."""
    from undersong import grid
    from undersong.experiment import Experiment
    from undersong.experiment.sweep import Sweep
    from undersong.lab import lab_for
    from undersong.results import record

    experiment, kept, where = _load(file, sets), screen.opened(store), screen.executor(executor, address)
    with screen.progress() as say:
        if isinstance(experiment, Experiment):
            found = record(experiment, lab_for(kept, experiment.file.base, say), where)
        elif isinstance(experiment, Sweep):
            say(_cost(experiment, experiment.plan(kept), kept).strip())
            found = grid.record(experiment, lab_for(kept, "", say), where)
        else:
            found = experiment.record(kept, say)
    results = found.read_json("results")
    target = report or store / "reports" / f"{found.record['label']}.html"
    target.parent.mkdir(parents=True, exist_ok=True)
    summary = _written(results, target, found.path)
    data = {"results": str(found.path / "results.json"), "report": str(target), "sentence": results["sentence"]}
    screen.say(as_json, data, f"{summary}\n\nResults: {data['results']}\nReport:  {target}")


def report(
    artefact: Annotated[str, typer.Argument(help="An experiment artefact, its folder, or a results.json.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The HTML file to write.")] = Path("report.html"),
    store: StoreOption = ARTEFACTS, as_json: JsonOption = False,
) -> None:
    """Write the HTML report of finished results."""
    given = Path(artefact)
    file = given if given.suffix == ".json" else given / "results.json"
    if not file.is_file():
        file = screen.found(screen.opened(store), artefact).path / "results.json"
    try:
        results = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        hint = "Name a finished experiment; `undersong ls` lists them."
        raise BadSpec(f"{str(file)!r} holds no results ({error}). {hint}") from None
    summary = _written(results, out, file.resolve().parent)
    screen.say(as_json, {"report": str(out)}, f"{summary}\n\nReport:  {out}")


def _drawn(folder: Path) -> Section | None:
    """The section of a report that draws what an experiment was made from; None for results outside a store."""
    from undersong.lineage import Graph
    from undersong.reports.lineage import section

    mark = folder.name.rpartition(".")[2]
    graph = Graph.of(screen.opened(folder.parent.parent)) if (folder / "record.json").is_file() else None
    return section(graph.about([mark, *graph.ancestors(mark)])) if graph and mark in graph.nodes else None


def _written(results: Any, target: Path, folder: Path) -> str:
    """Write the page of some results; its tables as text."""
    from undersong.reports import grid, html, tables

    if isinstance(results, dict) and results.get("kind") == "sweep":
        grid.write(results, target)
        return grid.summary(results)
    html.write(results, target, _drawn(folder))
    return tables.summary(results)


def _cost(asked: Experiment | Sweep | Laboratory, rows: Sequence[PlanRow], store: Store) -> str:
    """What missing work will cost, as a line; nothing of a laboratory, whose chunks are no steps."""
    from undersong.experiment import Experiment
    from undersong.experiment.cost import cost
    from undersong.experiment.sweep import Sweep

    waiting = {row.fingerprint for row in rows if row.status != "cached"}
    if not waiting or not isinstance(asked, Experiment | Sweep):
        return ""
    steps = asked.steps if isinstance(asked, Sweep) else asked.steps()
    return f"\n{cost([step for step in steps if step.fingerprint in waiting], store).said()}"


def _load(file: Path, sets: Sequence[str] | None) -> Experiment | Sweep | Laboratory:
    from undersong.experiment import Experiment
    from undersong.experiment.sweep import Sweep
    from undersong.experiment_file import text_of, values

    if file.is_file():
        given = values(text_of(file), sets or ())
        if "laboratory" in given:
            from undersong.laboratory import Laboratory

            return Laboratory.read(given)
        if "sweep" in given:
            return Sweep.of(given)
    return Experiment.load(file, sets or ())
