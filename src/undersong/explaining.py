"""The command `explain`. Thin: it parses arguments, calls the library and prints what it gave."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from undersong import screen
from undersong.errors import BadSpec
from undersong.screen import ARTEFACTS, JsonOption, StoreOption


def add(app: typer.Typer) -> None:
    """Give an application this command."""
    app.command()(explain)


def explain(
    model: Annotated[str, typer.Argument(help="A model (a folder, an adapter, an artefact), or an experiment's YAML file.")],
    base: Annotated[str | None, typer.Option(help="The model it started from; an artefact of the store knows it.")] = None,
    explainer: Annotated[list[str] | None, typer.Option(help="Only this explainer; repeat for more.")] = None,
    prompts: Annotated[Path | None, typer.Option(help="Ordinary prompts, one a line, instead of the shipped ones.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of sampled answers; of an experiment, only the run of this seed.")] = 0,
    report: Annotated[Path | None, typer.Option(help="Where the HTML report goes; STORE/reports by default.")] = None,
    store: StoreOption = ARTEFACTS, as_json: JsonOption = False,
) -> None:
    """Show what changed inside a model, or why a trait crossed in an experiment. Exit code: 0 done, 3 input error."""
    import sys

    if model.endswith((".yaml", ".yml")):
        _experiment(model, base, explainer or [], prompts, seed, report, store, as_json)
        return

    from undersong.explanation import Explaining
    from undersong.lab import lab_for
    from undersong.reports import explain as page
    from undersong.spec import build
    from undersong.store import clean_label

    if seed < 0:
        raise BadSpec("--seed is 0 or more. Change it.")
    with screen.progress() as say:
        lab = lab_for(screen.opened(store), base or "", say)
        chosen = [build("explainer", e, "--explainer") for e in screen.specs(explainer or [], "--explainer")]
        found = Explaining(lab, model, base, chosen, prompts, seed).run()
    found["command"] = "undersong " + " ".join(sys.argv[1:])
    target = screen.report_file(report, store, f"explain-{clean_label(Path(model).name)}.html")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.with_suffix(".json").write_text(json.dumps(found, indent=1), "utf-8")
    page.write(found, target)
    screen.say(as_json, found, f"{page.summary(found)}\n\nReport:  {target}")


def _experiment(
    file: str, base: str | None, explainer: list[str], prompts: Path | None, seed: int, report: Path | None, store: str,
    as_json: bool,
) -> None:
    import sys

    from undersong.experiment import Experiment
    from undersong.experiment.explained import Explained
    from undersong.lab import lab_for
    from undersong.reports import explain_runs as page
    from undersong.spec import build

    if base or prompts:
        raise BadSpec("--base and --prompts are for a model; an experiment names its own. Leave them out.")
    experiment = Experiment.load(file)
    with screen.progress() as say:
        lab = lab_for(screen.opened(store), experiment.file.base, say)
        chosen = [build("explainer", e, "--explainer") for e in screen.specs(explainer, "--explainer")]
        found = Explained(experiment, lab, chosen, [seed] if seed else []).run()
    found["command"] = "undersong " + " ".join(sys.argv[1:])
    target = screen.report_file(report, store, f"explain-{experiment.file.name}.html")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.with_suffix(".json").write_text(json.dumps(found, indent=1), "utf-8")
    page.write(found, target)
    screen.say(as_json, found, f"{page.summary(found)}\n\nReport:  {target}")
