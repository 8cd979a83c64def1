"""Which backend runs a model: its name says so. One Lab can thus sample a hosted teacher and train a local student."""

from __future__ import annotations

from functools import cache
from typing import Any

from undersong.backends import Model
from undersong.spec import build
from undersong.types import ModelRef

BY_PREFIX = {"simulated/": "simulated", "inspect/": "inspect"}
"""The backend of a base whose name begins so; `transformers` runs every other one."""


class ByName:
    """The backend that every model reference asks for by its base's name (contract: `undersong.backends.Backend`)."""

    def load(self, ref: ModelRef) -> Model:
        """The model, from the backend of its kind."""
        found: Model = _backend(next((b for p, b in BY_PREFIX.items() if ref.base.startswith(p)), "transformers")).load(ref)
        return found


@cache
def _backend(name: str) -> Any:
    return build("backend", name)
