"""The commands `keys new`, `seal`, `verify` and `export`. Thin: they parse arguments, call the library and print."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from undersong import screen
from undersong.errors import BadSpec
from undersong.screen import ARTEFACTS, JsonOption, StoreOption

if TYPE_CHECKING:
    from undersong.store import Store

Run = Annotated[str, typer.Argument(metavar="RUN", help="An artefact (fingerprint, label, folder), or an audit's .json.")]
Bases = Annotated[list[str] | None, typer.Option("--base", help="Folder of a base that moved; repeat for more.")]
keys = typer.Typer(rich_markup_mode=None, no_args_is_help=True, help="Keys for seals.")


def add(app: typer.Typer) -> None:
    """Give an application these commands."""
    app.command()(seal)
    app.command()(verify)
    app.command()(export)
    app.add_typer(keys, name="keys")


@keys.callback()
def root() -> None:
    """Keys for seals: `undersong keys new FILE`."""


@keys.command()
def new(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The private key to write; FILE.pub goes beside it.")],
    as_json: JsonOption = False,
) -> None:
    """Make a key pair (P-256): FILE to keep secret, FILE.pub to give away. Never replaces a file."""
    from undersong.seals import keys as machinery

    made = machinery.new(file)
    text = f"Private key: {made['private']} (keep it secret)\nPublic key:  {made['public']}\nIdentity:    {made['key']}"
    screen.say(as_json, made, text)


def seal(
    run: Run,
    key: Annotated[Path, typer.Option(help="Your private key (`undersong keys new FILE`).")],
    identity: Annotated[str, typer.Option(help="Who you are, for people; signed, not proved.")] = "unknown",
    expires: Annotated[str | None, typer.Option(help="Until when the seal holds: 2027-01-31.")] = None,
    base: Bases = None, store: StoreOption = ARTEFACTS, as_json: JsonOption = False,
) -> None:
    """Sign an artefact and all it was made from, or an audit's JSON report."""
    from undersong.seals import Sealer

    sealer = Sealer(key, identity, expires)
    if _is_report(run):
        target = str(sealer.seal_audit(Path(run)))
        screen.say(as_json, {"sealed": [target], "key": sealer.terms["key"]}, f"Sealed: {target}")
        return
    kept, name = _found(store, run)
    with screen.progress() as say:
        written = sealer.seal(kept, kept.get(name), base or (), say)
    data = {"sealed": written, "key": sealer.terms["key"], "expires": sealer.terms["expires"]}
    told = f"Sealed {name} and what it was made from: {len(written)} files under {Path(kept.root) / 'seals'}."
    screen.say(as_json, data, f"{told}\nNext: undersong verify {run} --key {key}.pub")


def verify(
    run: Run,
    key: Annotated[Path | None, typer.Option(help="The sealer's public key; get it from them, not from the store.")] = None,
    audited: Annotated[list[Path] | None, typer.Option(help="With an audit: the files or folders it was about.")] = None,
    base: Bases = None, store: StoreOption = ARTEFACTS, as_json: JsonOption = False,
) -> None:
    """Check hashes, signatures and the chain to the base, offline. Exit code: 0 all holds, 1 something fails, 3 input."""
    from undersong.seals.verification import Verifier

    with screen.progress() as say:
        verifier = Verifier(key, base or (), say)
        if _is_report(run):
            found = verifier.verify_audit(Path(run), audited or ())
        else:
            kept, name = _found(store, run)
            found = verifier.verify(kept, name)
    lines = [f"holds   {line}" for line in found["checked"]]
    lines.append("Everything holds." if found["ok"] else f"FAILS   {found['first_failure']}")
    screen.say(as_json, found, "\n".join(lines))
    if not found["ok"]:
        raise typer.Exit(1)


def export(
    run: Run,
    form: Annotated[str, typer.Option("--format", help="An exporter: a name, or {name: {settings}}.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The file to write; printed when left out.")] = None,
    audit: Annotated[list[Path] | None, typer.Option(help="JSON report of an audit of these bytes; repeat.")] = None,
    base: Bases = None, store: StoreOption = ARTEFACTS, as_json: JsonOption = False,
) -> None:
    """Write what the store knows of an artefact in another format (`undersong plugins exporter` lists them)."""
    from undersong.files import digest, put
    from undersong.provenance.slsa import audit_statement, checked
    from undersong.seals import dossier
    from undersong.spec import build

    exporter = build("exporter", screen.specs([form], "--format")[0], "--format")
    if _is_report(run):
        if exporter.plugin_name != "slsa":
            raise BadSpec("An audit's report becomes an in-toto statement: use --format slsa, or give the artefact and "
                          "this report as --audit.")
        made = checked(audit_statement(dossier.report(Path(run)), digest(Path(run))["sha256"]))
    else:
        kept, name = _found(store, run)
        made = exporter.export(dossier.account(kept, kept.get(name), base or (), audit or ()))
    text = made if isinstance(made, str) else json.dumps(made, indent=1) + "\n"
    if out is None:
        typer.echo(json.dumps({"document": made}, indent=1) if as_json else screen.visible(text), nl=False)
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    put(out, text.encode())
    screen.say(as_json, {"file": str(out), "format": exporter.plugin_name}, f"Wrote {out}")


def _is_report(run: str) -> bool:
    return run.endswith(".json") and Path(run).is_file()


def _found(store: str, run: str) -> tuple[Store, str]:
    """The store and the name in it: a folder of an artefact is of the store it lies in."""
    path = Path(run)
    if (path / "record.json").exists():
        path = path.resolve()
        return screen.opened(path.parent.parent), f"{path.parent.name}/{path.name}"
    return screen.opened(store), run
