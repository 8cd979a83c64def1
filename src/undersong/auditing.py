"""The commands `audit` and `calibrate`. Thin: they parse arguments, call the library and print what it gave."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from undersong import screen
from undersong.errors import BadSpec
from undersong.screen import ARTEFACTS, JsonOption, SetOption, StoreOption

EXITS = {"clean": 0, "found": 1, "unknown": 2}


def add(app: typer.Typer) -> None:
    """Give an application these commands."""
    app.command()(audit)
    app.command()(calibrate)


def audit(
    rows: Annotated[Path | None, typer.Argument(metavar="[ROWS]", help="JSONL, CSV, Parquet, or a folder.")] = None,
    base: Annotated[str | None, typer.Option(help="The model the student starts from.")] = None,
    reference: Annotated[Path | None, typer.Option(help="Clean rows from the same kind of source.")] = None,
    traits: Annotated[str | None, typer.Option(help="Suspected traits: names with commas, or a YAML list.")] = None,
    student: Annotated[str | None, typer.Option(help="The trained model: a folder, an adapter, an artefact.")] = None,
    teacher: Annotated[str | None, typer.Option(help="The suspected teacher.")] = None,
    detector: Annotated[list[str] | None, typer.Option(help="Only this detector; repeat for more.")] = None,
    alpha: Annotated[float, typer.Option(help="False-alarm rate of the verdict.")] = 0.05,
    smallest: Annotated[float, typer.Option(help="Clean only if this share of rows would have been seen.")] = 0.5,
    budget: Annotated[float, typer.Option(help="Seconds after which no detector begins; 0 sets no limit.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Seed of drawing rows.")] = 0,
    report: Annotated[Path | None, typer.Option(help="Where the HTML report goes; STORE/reports by default.")] = None,
    store: StoreOption = ARTEFACTS, as_json: JsonOption = False,
) -> None:
    """Look for a hidden trait in rows or in a student. Exit code: 0 clean, 1 found, 2 could not tell, 3 input error."""
    import sys

    from undersong.audit import Audit
    from undersong.lab import lab_for
    from undersong.reports import audit as page
    from undersong.spec import build
    from undersong.traits import listed
    from undersong.verdict import Held

    if not 0 < alpha < 1 or not 0 < smallest <= 1 or budget < 0 or seed < 0:
        raise BadSpec("--alpha and --smallest lie between 0 and 1, --budget and --seed are 0 or more. Change them.")
    held = Held(rows, reference, base, listed(traits) if traits else None, student, teacher)
    with screen.progress() as say:
        lab = lab_for(screen.opened(store), base or "", say)
        chosen = [build("detector", d, "--detector") for d in screen.specs(detector or [], "--detector")]
        found = Audit(held, lab, chosen, alpha, budget, seed, smallest).run()
    found["command"] = "undersong " + " ".join(sys.argv[1:])
    name = (rows.stem if rows else Path(str(student)).name) or "audit"
    target = screen.report_file(report, store, f"audit-{name}.html")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.with_suffix(".json").write_text(json.dumps(found, indent=1), "utf-8")
    page.write(found, target)
    screen.say(as_json, found, f"{page.summary(found)}\n\nReport:  {target}")
    raise typer.Exit(EXITS[found["verdict"]])


def calibrate(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A calibration file (YAML), or a base with all defaults.")],
    sets: SetOption = None, store: StoreOption = ARTEFACTS, as_json: JsonOption = False,
) -> None:
    """Make placebo and planted cases of a base and the null of every detector. The same command resumes."""
    from undersong import bases
    from undersong.calibration import Calibrator
    from undersong.experiment_file import text_of
    from undersong.lab import lab_for

    text = text_of(Path(file)) if Path(file).is_file() else json.dumps({"base": file}) if bases.named(file) else None
    if text is None:
        raise BadSpec(f"There is no calibration file {file!r}, and no base of this name. Give one of them.")
    with screen.progress() as say:
        made = Calibrator.read(text, sets or (), lab_for(screen.opened(store), "", say)).build()
    data = {"calibration": str(made.path), "cases": made.summary["cases"]}
    told = f"Calibration: {data['calibration']} ({data['cases']} cases)\nNext: undersong audit ROWS --base ..."
    screen.say(as_json, data, told)
