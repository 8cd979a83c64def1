"""Base models: what their names mean, where they lie on this machine, and what pins their weights.

    pocket/a             a shipped pocket model
    smollm2              a model fetched once (`undersong models fetch smollm2`)
    ./folder             a local `save_pretrained` folder with safetensors weights
    org/name@revision    a model of the Hugging Face hub at a branch, tag or commit; without `@revision`, its main branch
    simulated/a          exact models for tests
    inspect/openai/NAME  a hosted model, as Inspect's model layer names it

Two machines name the same work alike: a shipped, fetched or local model is known by its content, never by its path.
"""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path
from typing import Any

from undersong import fetched, pocket
from undersong.errors import MissingModel
from undersong.files import digest

SIMULATED = "simulated/"
HOSTED = "inspect/"
CONTENT = ("*.safetensors", "tokenizer*.json", "chat_template*", "special_tokens_map.json")
"""What of a local folder can change a result: its weights, its tokenizer and its chat template."""


def named(text: str) -> bool:
    """Whether a text names a base by its form, or a local folder that holds a model; a hub name has one slash."""
    if text.startswith((pocket.PREFIX, SIMULATED, HOSTED)) or text in fetched.names():
        return True
    return (Path(text) / "config.json").is_file()


def revision(name: str) -> str:
    """What pins a base: the SHA-256 of a pocket or fetched model's weights or of a local folder's content; else the
    name itself, which should then hold a hub revision."""
    if name.startswith(pocket.PREFIX):
        return str(pocket.origin(name)["sha256"])
    if name in fetched.names():
        return fetched.revision(name)
    if Path(name).is_dir():
        found = sorted({f for pattern in CONTENT for f in Path(name).glob(pattern)})
        return _digest(tuple((str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in found))
    return name


def shipped() -> list[dict[str, Any]]:
    """Each pocket model: `name`, how it was made, `sha256` of its weights, and whether they are `intact`."""
    out = []
    for name in pocket.names():
        made = pocket.origin(name)
        found = digest(pocket.folder(name) / "model.safetensors")["sha256"]
        out.append({"name": name, **made["member"], "sha256": found, "intact": found == made["sha256"]})
    return out


def identity(name: str) -> str:
    """The name that enters a fingerprint: a local folder is its content wherever it lies."""
    local = not name.startswith((pocket.PREFIX, SIMULATED, HOSTED)) and name not in fetched.names() and Path(name).is_dir()
    return "folder" if local else name


@cache
def _digest(found: tuple[tuple[str, int, int], ...]) -> str:
    """The SHA-256 over the files' own; size and time only tell whether a file must be read again."""
    whole = hashlib.sha256()
    for name, *_ in found:
        whole.update(Path(name).name.encode() + b"\0" + bytes.fromhex(digest(Path(name))["sha256"]))
    return whole.hexdigest()


def place(base: str) -> tuple[str, str | None]:
    """The folder of a base, or its hub name and revision. Raises MissingModel, with what to do, for a folder that holds
    no safetensors weights and for names that mean nothing."""
    if base.startswith(pocket.PREFIX):
        return _weighed(pocket.folder(base), base), None
    if base in fetched.names():
        return _weighed(fetched.folder(base), base), None
    if Path(base).is_dir():
        return _weighed(Path(base), base), None
    name, at, wanted = base.partition("@")
    if at and not wanted:
        raise MissingModel(f"{base!r} names no revision after the @. Write org/name@revision, or leave the @ out.")
    if base.startswith((".", "/", "~")) or name.count("/") > 1:
        raise MissingModel(f"There is no model folder {base!r}. Give a folder written by save_pretrained, a "
                           "Hugging Face name or a pocket model (see `undersong models`).")
    return name, wanted or None


def _weighed(folder: Path, base: str) -> str:
    if any(folder.glob("*.safetensors")):
        return str(folder)
    if any(folder.glob("*.bin")) or any(folder.glob("*.pt")) or any(folder.glob("*.pth")):
        raise MissingModel(f"The model folder {base!r} holds pickled weights only, which can run code when opened. "
                           "Convert it to safetensors with save_pretrained on a machine you trust.")
    raise MissingModel(f"The folder {base!r} holds no *.safetensors weights. Give a folder written by save_pretrained.")
