"""The commands that ask where a model or its data come from. Thin: they parse, call the library and print what it gave."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from undersong import screen
from undersong.errors import BadSpec
from undersong.screen import ARTEFACTS, JsonOption, StoreOption

if TYPE_CHECKING:
    from undersong.kinship import Subject
    from undersong.lab import Lab
    from undersong.lineage import Graph

UNKNOWN = 2
AUTHOR_EXITS = {"attributed": 0, "none": 1, "unknown": 2}


def add(app: typer.Typer) -> None:
    """Give an application these commands."""
    app.command()(kinship)
    app.command()(lineage)
    app.command()(risk)
    app.command()(attribute)


def kinship(
    a: Annotated[str, typer.Argument(metavar="A", help="A model: a name, folder, adapter, changed tensors, artefact.")],
    b: Annotated[str, typer.Argument(metavar="B", help="The other one.")],
    base_a: Annotated[str | None, typer.Option(help="The base of A, where A is an adapter or changed tensors.")] = None,
    base_b: Annotated[str | None, typer.Option(help="The base of B.")] = None,
    control: Annotated[list[str] | None, typer.Option(help="A model unrelated to both; repeat for more.")] = None,
    test: Annotated[list[str] | None, typer.Option(help="Only this test; repeat for more.")] = None,
    alpha: Annotated[float, typer.Option(help="Rate at which unrelated models are called kin.")] = 0.01,
    store: StoreOption = ARTEFACTS, as_json: JsonOption = False,
) -> None:
    """Tell how two models are related. Exit code: 0 related or not, 2 could not tell, 3 input error."""
    from undersong.lab import lab_for
    from undersong.lineage import record_relation
    from undersong.relation import relate
    from undersong.spec import build

    with screen.progress() as say:
        lab = lab_for(screen.opened(store), "", say)
        tests = [build("kinship", t, "--test") for t in screen.specs(test or [], "--test")]
        one, two = _subject(a, base_a, lab), _subject(b, base_b, lab)
        controls = [_subject(text, None, lab) for text in control or ()]
        found = relate(one, two, tests, controls, alpha, say)
    record_relation(lab.store, found, one.ref, two.ref)
    screen.say(as_json, found, _summary(found))
    if found["relation"] == "unknown":
        raise typer.Exit(UNKNOWN)


def _subject(text: str, base: str | None, lab: Lab) -> Subject:
    """A model to compare; an adapter may name its base itself (`base_model_name_or_path`)."""
    from undersong import bases
    from undersong.kinship import Subject
    from undersong.models import model_ref

    config = Path(text) / "adapter_config.json"
    if base is None and config.is_file():
        try:
            named = json.loads(config.read_text("utf-8")).get("base_model_name_or_path")
        except (OSError, ValueError, AttributeError, RecursionError):
            named = None
        if not isinstance(named, str) or not bases.named(named):
            said = f" It names {named[:100]!r}, which is not at hand." if isinstance(named, str) and named else ""
            raise BadSpec(f"{text!r} is an adapter.{said} Give the model it belongs to as --base-a or --base-b.")
        base = named
    return Subject(text, model_ref(text, base, lab), lab.backend)


def _summary(found: dict[str, Any]) -> str:
    """The table of tests, why others were left out, and the sentence."""
    rows = [(t["test"], ", ".join(t["access"]), t["relation"], _number(t["p"]), _number(t.get("adjusted")),
             _number(t["power"]), t["says"]) for t in found["tests"]]
    text = screen.table(("test", "read", "relation", "p", "Holm", "power", "what it saw"), rows) if rows else "No test ran."
    notes = "".join(f"\nLeft out: {s['test']}. {s['says']}" for s in found["skipped"])
    return f"{text}{notes}\n\n{found['sentence']}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def lineage(
    artefact: Annotated[str | None, typer.Argument(help="An artefact or a base; the whole store when left out.")] = None,
    ancestors: Annotated[bool, typer.Option("--ancestors", help="What it was made from.")] = False,
    descendants: Annotated[bool, typer.Option("--descendants", help="What was made from it.")] = False,
    models: Annotated[bool, typer.Option("--models", help="Every model that descends from it.")] = False,
    wrote: Annotated[bool, typer.Option("--wrote", help="The rows this model wrote, as written and as filtered.")] = False,
    of_base: Annotated[bool, typer.Option("--of-base", help="Every model whose weights start from this base.")] = False,
    common: Annotated[str | None, typer.Option(metavar="OTHER", help="Nearest common ancestors with another.")] = None,
    test: Annotated[bool, typer.Option("--test", help="Test declared edges between models whose weights are here.")] = False,
    every: Annotated[bool, typer.Option("--every", help="Show measurements, findings and experiments too.")] = False,
    apart: Annotated[bool, typer.Option("--apart", help="Show every seed by itself.")] = False,
    report: Annotated[Path | None, typer.Option(help="Draw the graph into this HTML file.")] = None,
    store: StoreOption = ARTEFACTS, as_json: JsonOption = False,
) -> None:
    """Show what was made from what, and what was tested of it. Exit code: 0, 1 for an alarm, 3 input error."""
    from undersong.lineage import Graph
    from undersong.reports import lineage as page

    asked = {"ancestors": ancestors, "descendants": descendants, "models": models, "wrote": wrote, "of_base": of_base,
             "common": common is not None}
    if sum(asked.values()) > 1:
        raise BadSpec("One question at a time: --ancestors, --descendants, --models, --wrote, --of-base or --common.")
    if artefact is None and any(asked.values()):
        raise BadSpec("Of what? Name an artefact or a base; `undersong lineage` alone lists them.")
    kept = screen.opened(store)
    if not Path(kept.root).is_dir() and not kept.records():
        raise BadSpec(f"There is no store {str(store)!r}. Run an experiment first, or give --store.")
    graph = Graph.of(kept)
    if test:
        from undersong.lab import lab_for
        from undersong.lineage.trials import trials

        with screen.progress() as say:
            trials(graph, lab_for(kept, "", say))
        graph = Graph.of(kept)
    mark = graph.find(artefact) if artefact is not None else None
    question = next((name for name, given in asked.items() if given), None)
    found = _answer(graph, mark, question, common) if mark is not None else None
    part = graph if mark is None or found is None else graph.about([mark, *found])
    data = part.as_json() | ({"asked": {"of": mark, "question": question or "both", "found": found}} if mark else {})
    if mark is not None and question in ("models", "wrote", "of_base", "common"):
        text = page.listing(graph, found or []) + "".join(f"\nALARM  {a}" for a in graph.alarms)
    else:
        text = page.summary(part, every=every, apart=apart)
    if report is not None:
        report.parent.mkdir(parents=True, exist_ok=True)
        page.write(part, graph.nodes[mark].name if mark else Path(store).name, report, every, apart)
        data, text = data | {"report": str(report)}, f"{text}\nReport:  {report}"
    screen.say(as_json, data, text)
    raise typer.Exit(1 if graph.alarms else 0)


def _answer(graph: Graph, mark: str, question: str | None, other: str | None) -> list[str]:
    """The nodes that answer a question about a node; without a question, all it came from and all that came of it."""
    if question == "common":
        return graph.common(mark, graph.find(str(other)))
    if question is None:
        return [*graph.ancestors(mark), *graph.descendants(mark)]
    if question == "models":
        return graph.models_from(mark)
    found: list[str] = getattr(graph, question)(mark)
    return found


def risk(
    base: Annotated[str, typer.Option(help="The model that the student starts from.")],
    dataset: Annotated[str, typer.Option(help="The rows: a file, a folder of files, or a dataset of the store.")],
    teacher: Annotated[str | None, typer.Option(help="The model that wrote them, if the store does not know it.")] = None,
    student: Annotated[str | None, typer.Option(help="The trained model, if there is one.")] = None,
    traits: Annotated[str | None, typer.Option(help="Suspected traits: names with commas, or a YAML list.")] = None,
    alpha: Annotated[float, typer.Option(help="False-alarm rate of the statement.")] = 0.05,
    smallest: Annotated[float, typer.Option(help="Green by audit only if this share of rows would have been seen.")] = 0.5,
    seed: Annotated[int, typer.Option(help="Seed of drawing rows.")] = 0,
    report: Annotated[Path | None, typer.Option(help="Where the HTML page goes; STORE/reports by default.")] = None,
    store: StoreOption = ARTEFACTS, as_json: JsonOption = False,
) -> None:
    """Say whether a trait could cross, is there, and did cross. Exit code: 0 green, 1 red, 2 amber, 3 input error."""
    import sys

    from undersong.lab import lab_for
    from undersong.reports import risk as page
    from undersong.risk import Risk
    from undersong.ruling import EXITS
    from undersong.traits import listed

    if not 0 < alpha < 1 or not 0 < smallest <= 1 or seed < 0:
        raise BadSpec("--alpha and --smallest lie between 0 and 1, --seed is 0 or more. Change them.")
    with screen.progress() as say:
        lab = lab_for(screen.opened(store), base, say)
        found = Risk(lab, base, dataset, teacher, student, listed(traits) if traits else None, alpha, smallest, seed).run()
    found["command"] = "undersong " + " ".join(sys.argv[1:])
    target = screen.report_file(report, store, f"risk-{Path(dataset).stem}.html")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.with_suffix(".json").write_text(json.dumps(found, indent=1), "utf-8")
    page.write(found, target)
    screen.say(as_json, found, f"{page.summary(found)}\n\nReport:  {target}")
    raise typer.Exit(EXITS[found["light"]])


def attribute(
    rows: Annotated[Path, typer.Argument(metavar="ROWS", help="JSONL, CSV, Parquet, or a folder.")],
    candidates: Annotated[list[str], typer.Option(help="Models that may have written them: A B C, A,B,C or repeated.")],
    more: Annotated[list[str] | None, typer.Argument(metavar="[MODEL]", help="More candidates.", hidden=True)] = None,
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
    names = [name.strip() for given in [*candidates, *(more or [])] for name in given.split(",") if name.strip()]
    read = screen.specs([channel] if channel else [], "--channel"), screen.specs(filters or [], "--filter")
    with screen.progress() as say:
        lab = lab_for(screen.opened(store), base or "", say)
        asked = Attribution(rows, names, lab, base, next(iter(read[0]), None), read[1], temperature, most, alpha, seed,
                            fresh)
        found = asked.run()
    found["command"] = "undersong " + " ".join(sys.argv[1:])
    target = screen.report_file(report, store, f"attribute-{rows.stem or 'rows'}.html")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.with_suffix(".json").write_text(json.dumps(found, indent=1), "utf-8")
    page.write(found, target)
    screen.say(as_json, found, f"{page.summary(found)}\nReport:  {target}")
    raise typer.Exit(AUTHOR_EXITS[found["verdict"]])
