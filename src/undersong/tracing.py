"""Commands that trace where things come from. Thin: they parse arguments, call the library and print what it gave."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from undersong import screen
from undersong.errors import BadSpec
from undersong.screen import ARTEFACTS, JsonOption, StoreOption

AUTHOR_EXITS = {"attributed": 0, "none": 1, "unknown": 2}


def add(app: typer.Typer) -> None:
    """Give an application these commands."""
    app.command()(attribute)


def attribute(
    rows: Annotated[Path, typer.Argument(metavar="ROWS", help="JSONL, CSV, Parquet, or a folder.")],
    candidates: Annotated[list[str], typer.Option(help="A model that may have written them; repeat, or use commas.")],
    base: Annotated[str | None, typer.Option("--base", "--base-of", help="The model that adapters belong to.")] = None,
    channel: Annotated[str | None, typer.Option(help="How the rows were sampled: a channel, or {name: {settings}}.")] = None,
    filters: Annotated[
        list[str] | None, typer.Option("--filter", "--filters", help="A filter the rows have passed; repeat for more.")
    ] = None,
    temperature: Annotated[float | None, typer.Option(help="Sampling temperature; fitted by default.")] = None,
    most: Annotated[int, typer.Option("--rows", help="At most so many rows are judged, drawn evenly.")] = 1000,
    alpha: Annotated[float, typer.Option(help="How often the true author may be rejected.")] = 0.05,
    seed: Annotated[int, typer.Option(help="Seed of drawing, fresh rows and exchanges.")] = 0,
    fresh: Annotated[int, typer.Option(help="Fresh rows that a candidate writes; two per prompt at least.")] = 2000,
    report: Annotated[Path | None, typer.Option(help="Where the HTML report goes; STORE/reports by default.")] = None,
    store: StoreOption = ARTEFACTS, as_json: JsonOption = False,
) -> None:
    """Which candidate model wrote the rows, or none of them. Exit code: 0 a candidate, 1 none, 2 cannot tell, 3 input
    error."""
    import sys

    from undersong.authorship import Attribution
    from undersong.lab import lab_for
    from undersong.reports import authorship as page

    if not 0 < alpha < 1 or seed < 0 or min(most, fresh) < 1 or (temperature is not None and not 0 <= temperature <= 2):
        raise BadSpec("--alpha lies between 0 and 1, --temperature between 0 and 2, --rows and --fresh are 1 or more and "
                      "--seed 0 or more. Change them.")
    names = [name.strip() for given in candidates for name in given.split(",") if name.strip()]
    read = screen.specs([channel] if channel else [], "--channel"), screen.specs(filters or [], "--filter")
    with screen.progress() as say:
        lab = lab_for(screen.opened(store), base or "", say)
        asked = Attribution(rows, names, lab, base, next(iter(read[0]), None), read[1], temperature, most, alpha, seed,
                            fresh)
        found = asked.run()
    found["command"] = "undersong " + " ".join(sys.argv[1:])
    target = report or store / "reports" / f"attribute-{rows.stem or 'rows'}.html"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.with_suffix(".json").write_text(json.dumps(found, indent=1), "utf-8")
    page.write(found, target)
    screen.say(as_json, found, f"{page.summary(found)}\nReport:  {target}")
    raise typer.Exit(AUTHOR_EXITS[found["verdict"]])
