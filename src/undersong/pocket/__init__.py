"""Pocket: tiny chat models with a known family tree, shipped in the package as ordinary `save_pretrained` folders.

    a ── a-reordered    the same initialisation, the same rows in another order
    b                   another initialisation, a's rows in a's order
    └── b-matched       b made behaviourally like a, by distillation on ordinary chats
    wide                another architecture

`world.py` is the chat world they learned, `pretrain.py` the script and seeds that made them.
"""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

from undersong.errors import MissingModel, nearest

PREFIX = "pocket/"


def names() -> list[str]:
    """The shipped models, e.g. `pocket/a`."""
    home = Path(str(files("undersong") / "pocket" / "models"))
    return sorted(PREFIX + p.parent.name for p in home.glob("*/origin.json"))


def folder(name: str) -> Path:
    """The folder of `pocket/<name>`. Raises MissingModel naming the nearest one."""
    if name not in names():
        raise MissingModel(f"There is no pocket model {name!r}. {nearest(name, names())}")
    return Path(str(files("undersong") / "pocket" / "models" / name.removeprefix(PREFIX)))


def origin(name: str) -> dict[str, Any]:
    """How a pocket model was made: settings, SHA-256 of its weights, first losses, library versions and command."""
    found: dict[str, Any] = json.loads((folder(name) / "origin.json").read_text("utf-8"))
    return found
