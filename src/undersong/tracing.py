"""The commands that ask where a model or its data come from. Thin: they parse, call the library and print what it gave."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from undersong import screen
from undersong.errors import BadSpec
from undersong.screen import ARTEFACTS, JsonOption, StoreOption

if TYPE_CHECKING:
    from undersong.lineage import Graph


def add(app: typer.Typer) -> None:
    """Give an application these commands."""
    app.command()(lineage)


def lineage(
    artefact: Annotated[str | None, typer.Argument(help="An artefact or a base; the whole store when left out.")] = None,
    ancestors: Annotated[bool, typer.Option("--ancestors", help="What it was made from.")] = False,
    descendants: Annotated[bool, typer.Option("--descendants", help="What was made from it.")] = False,
    models: Annotated[bool, typer.Option("--models", help="Every model that descends from it, through rows or weights.")] = False,
    wrote: Annotated[bool, typer.Option("--wrote", help="The rows this model wrote, as written and as filtered.")] = False,
    of_base: Annotated[bool, typer.Option("--of-base", help="Every model whose weights start from this base.")] = False,
    common: Annotated[str | None, typer.Option(metavar="OTHER", help="The nearest common ancestors with another one.")] = None,
    test: Annotated[bool, typer.Option("--test", help="Test declared edges between models whose weights are here.")] = False,
    every: Annotated[bool, typer.Option("--every", help="Show measurements, findings and experiments too.")] = False,
    apart: Annotated[bool, typer.Option("--apart", help="Show every seed by itself.")] = False,
    report: Annotated[Path | None, typer.Option(help="Draw the graph into this HTML file.")] = None,
    store: StoreOption = ARTEFACTS, as_json: JsonOption = False,
) -> None:
    """Show what was made from what, and what was tested of it. Exit code: 0, 1 when a test contradicts a record, 3 input error."""
    from undersong.lineage import Graph
    from undersong.reports import lineage as page

    asked = {"ancestors": ancestors, "descendants": descendants, "models": models, "wrote": wrote, "of_base": of_base,
             "common": common is not None}
    if sum(asked.values()) > 1:
        raise BadSpec("One question at a time: give one of --ancestors, --descendants, --models, --wrote, --of-base, --common.")
    if artefact is None and any(asked.values()):
        raise BadSpec("Of what? Name an artefact or a base; `undersong lineage` alone lists them.")
    kept = screen.opened(store)
    if not Path(store).is_dir():
        raise BadSpec(f"There is no store {str(store)!r}. Run an experiment first, or give --store.")
    graph = Graph.of(kept)
    if test:
        from undersong.lab import lab_for
        from undersong.trials import trials

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
        page.write(part, graph.nodes[mark].name if mark else str(store.name), report, every, apart)
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
