"""The command `train`. Thin: it parses arguments, calls the library and prints what it gave."""

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
    app.command()(train)


def train(
    data: Annotated[Path, typer.Argument(metavar="DATA", help="Rows to learn: JSONL, CSV, Parquet, or a folder.")],
    base: Annotated[str, typer.Option(help="The model that students start from.")],
    guard: Annotated[
        list[str] | None, typer.Option(help="A mitigation, or {name: {settings}}; repeat it: an arm each.")
    ] = None,
    trait: Annotated[str | None, typer.Option(help="The trait that is feared, where a guard needs one.")] = None,
    clean: Annotated[Path | None, typer.Option(help="Clean rows of the same kind, where a guard needs them.")] = None,
    other: Annotated[str | None, typer.Option(help="A model of another initialisation, where a guard needs one.")] = None,
    teacher: Annotated[str | None, typer.Option(help="The model that wrote the rows, where a guard needs it.")] = None,
    recipe: Annotated[str | None, typer.Option(help="How students learn; what fits the base by default.")] = None,
    seed: Annotated[list[int] | None, typer.Option(help="Seed of a training run; repeat for intervals.")] = None,
    plain: Annotated[bool, typer.Option(help="Train a plain student too, to compare with.")] = True,
    report: Annotated[Path | None, typer.Option(help="Where the HTML report goes; STORE/reports by default.")] = None,
    store: StoreOption = ARTEFACTS, as_json: JsonOption = False,
) -> None:
    """Train a student on rows with a guard on, and compare it with the base and a plain student. Exit code: 0 done, 3 input
    error. The same command resumes."""
    import sys

    from undersong import traits
    from undersong.lab import lab_for
    from undersong.reports import trial as page
    from undersong.spec import build
    from undersong.store import clean_label
    from undersong.trial import Given, Trial

    seeds = tuple(dict.fromkeys(seed or [1]))
    if min(seeds) < 0:
        raise BadSpec("--seed is 0 or more. Change it.")
    guards = [build("mitigation", one, "--guard") for one in screen.specs(guard or [], "--guard")]
    asked = screen.specs([recipe], "--recipe")[0] if recipe else None
    given = Given(data, base, guards, traits.get(trait) if trait else None, clean, other, teacher, asked, seeds, plain)
    with screen.progress() as say:
        found = Trial(given, lab_for(screen.opened(store), base, say)).run()
    found["command"] = "undersong " + " ".join(sys.argv[1:])
    target = screen.report_file(report, store, f"train-{clean_label(data.stem)}.html")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.with_suffix(".json").write_text(json.dumps(found, indent=1), "utf-8")
    page.write(found, target)
    screen.say(as_json, found, f"{page.summary(found)}\n\nReport:  {target}")
