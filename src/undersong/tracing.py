"""The commands that ask where a model comes from: `kinship`. Thin: they parse, call the library and print."""

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
    from undersong.store import Store

UNKNOWN = 2


def add(app: typer.Typer) -> None:
    """Give an application these commands."""
    app.command()(kinship)


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
    from undersong.relation import relate
    from undersong.spec import build

    with screen.progress() as say:
        lab = lab_for(screen.opened(store), "", say)
        tests = [build("kinship", t, "--test") for t in screen.specs(test or [], "--test")]
        one, two = _subject(a, base_a, lab), _subject(b, base_b, lab)
        controls = [_subject(text, None, lab) for text in control or ()]
        found = relate(one, two, tests, controls, alpha, say)
    _keep(lab.store, found, one, two)
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


def _keep(store: Store, found: dict[str, Any], a: Subject, b: Subject) -> None:
    """Keep a result as an artefact whose parents are the two models; the same finding again is the same artefact."""
    said = [{"test": t["test"], "relation": t["relation"], "p": t["p"]} for t in found["tests"]]
    spec = {"verb": "kinship", "alpha": found["alpha"], "relation": found["relation"], "tests": said}
    label = f"{a.ref.base}-{b.ref.base}".replace("/", "-")[-50:]
    with store.open("kinship", label, spec, (a.ref.fingerprint, b.ref.fingerprint)) as artefact:
        if not artefact.complete:
            artefact.write_json("kinship", found)
            artefact.finish({key: found[key] for key in ("relation", "p", "power", "direction", "sentence")})


def _summary(found: dict[str, Any]) -> str:
    """The table of tests, why others were left out, and the sentence."""
    rows = [(t["test"], ", ".join(t["access"]), t["relation"], _number(t["p"]), _number(t.get("adjusted")),
             _number(t["power"]), t["says"]) for t in found["tests"]]
    text = screen.table(("test", "read", "relation", "p", "Holm", "power", "what it saw"), rows) if rows else "No test ran."
    notes = "".join(f"\nLeft out: {s['test']}. {s['says']}" for s in found["skipped"])
    return f"{text}{notes}\n\n{found['sentence']}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"
