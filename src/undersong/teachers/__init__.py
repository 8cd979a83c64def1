"""Teachers: how a trait is put into a base model. A plug-in is settings plus `teach`."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from undersong.backends import Backend
from undersong.traits import Trait
from undersong.types import ModelRef


class Teacher(Protocol):
    """The contract of a teacher plug-in."""

    def teach(self, base: ModelRef, trait: Trait | None, seed: int, out: Path, backend: Backend) -> ModelRef:
        """The base with the trait in it; files go into the existing folder `out`. `trait` None is the matched no-trait
        teacher: the same pipeline and the same amount of work, without the trait."""
        ...
