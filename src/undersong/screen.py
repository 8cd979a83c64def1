"""What commands share: their options, plain tables, progress, and text that cannot drive a terminal."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from undersong.artefact import Artefact
    from undersong.store import Store

StoreOption = Annotated[Path, typer.Option("--store", envvar="UNDERSONG_STORE", help="Folder of artefacts.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key: recipe.distill.rate=1e-3.")
]
ExecutorOption = Annotated[
    str | None, typer.Option("--executor", help="Where cells run: ray, processes, or {name: {settings}}; else here.")
]
AddressOption = Annotated[
    str | None, typer.Option("--address", help="With --executor ray, a cluster to join: auto, or host:port.")
]
ARTEFACTS = Path("artefacts")


def say(as_json: bool, data: Any, text: str) -> None:
    """Print data as JSON, or text for people."""
    typer.echo(json.dumps(data, indent=1) if as_json else visible(text))


def table(headers: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Plain aligned columns; no markup, so that nothing in a cell can be taken for it."""
    cells = [[visible(str(c)).replace("\n", " ") for c in row] for row in (headers, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(headers))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in cells)


@contextlib.contextmanager
def progress() -> Iterator[Callable[[str], None]]:
    """A line that is rewritten in a terminal; plain lines with the seconds elsewhere."""
    start = time.monotonic()
    if not sys.stderr.isatty():
        yield lambda message: typer.echo(f"{time.monotonic() - start:6.0f}s  {visible(message)}", err=True)
        return
    from rich.console import Console
    from rich.text import Text

    with Console(stderr=True).status(Text("starting")) as status:
        yield lambda message: status.update(Text(f"{time.monotonic() - start:.0f}s  {visible(message)}"))


def opened(root: Path) -> Store:
    """The store of a folder."""
    from undersong.store import Store

    return Store(root)


def found(store: Store, name: str) -> Artefact:
    """The artefact a fingerprint, label or folder names."""
    path = Path(name)
    return store.get(f"{path.parent.name}/{path.name}" if path.is_dir() else name)


def visible(text: str) -> str:
    """Text with control characters written out: what a model said must not drive the terminal."""
    return "".join(c if c in "\n\t" or c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def executor(given: str | None, address: str | None) -> Any:
    """The executor plug-in that options name, or None for this process. Raises BadSpec for an address without a cluster."""
    from undersong.errors import BadSpec
    from undersong.spec import build, split

    if given is None and address is None:
        return None
    [spec] = specs([given or "inline"], "--executor")
    name, settings = split(spec, "--executor")
    if address is not None:
        if name != "ray":
            raise BadSpec(f"--address names a Ray cluster, and the executor is {name}. Give --executor ray with it.")
        settings["address"] = address
    return build("executor", {name: settings}, "--executor")


def specs(given: Sequence[str], where: str) -> list[Any]:
    """Texts as specs: a name, or `{name: {settings}}` in YAML. Raises BadSpec for what is neither."""
    import yaml

    from undersong.errors import BadSpec

    try:
        return [yaml.safe_load(text) for text in given]
    except yaml.YAMLError:
        text = ", ".join(given)
        raise BadSpec(f"{where} {text} is neither a name nor {{name: {{settings}}}}. Write one of them.") from None
