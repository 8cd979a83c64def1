"""Recipes: how a student learns. A plug-in is settings plus `train`, which takes several students at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from undersong.backends import Backend
from undersong.types import Dataset, ModelRef


@dataclass(frozen=True)
class Job:
    """One student to train: where it starts, its rows, its seed, the carrier's token ids and an existing folder."""

    start: ModelRef
    data: Dataset
    seed: int
    out: Path
    carrier: tuple[int, ...] | None = None


class Recipe(Protocol):
    """The contract of a recipe plug-in."""

    def train(
        self, jobs: Sequence[Job], backend: Backend, done: Callable[[int, ModelRef], None] = lambda index, model: None
    ) -> list[ModelRef]:
        """Train every job, calling `done(index, model)` as each finishes. A job's result does not depend on its neighbours
        in the list. Writes into `job.out`; returns one ModelRef per job, in order."""
        ...
