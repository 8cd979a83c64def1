"""Mitigations: does this stop it, at what cost? A plug-in works at one `stage`; in an experiment it is an arm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal, Protocol

from undersong.types import Row


class Mitigation(Protocol):
    """The contract of a data-stage mitigation. Stages `training` and `model` come with their own contracts."""

    stage: ClassVar[Literal["data", "training", "model"]]

    def apply(self, rows: Sequence[Row], seed: int) -> list[Row]:
        """The changed rows; the input is left as it was."""
        ...
