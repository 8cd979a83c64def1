"""Recipes: how a student learns. A plug-in is settings plus `train`, which takes several students at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from undersong.backends import Backend
from undersong.backends.guarding import Guard
from undersong.errors import BadSpec
from undersong.types import Dataset, ModelRef


@dataclass(frozen=True)
class Job:
    """One student to train: where it starts, its rows, its seed, an existing folder, the carrier's token ids, and the guard
    of a training-stage mitigation (one per job)."""

    start: ModelRef
    data: Dataset
    seed: int
    out: Path
    carrier: tuple[int, ...] | None = None
    guard: Guard | None = None


class Recipe(Protocol):
    """The contract of a recipe plug-in."""

    def train(
        self, jobs: Sequence[Job], backend: Backend, done: Callable[[int, ModelRef], None] = lambda index, model: None
    ) -> list[ModelRef]:
        """Train every job, calling `done(index, model)` as each finishes. A job's result does not depend on its neighbours
        in the list. Writes into `job.out`; returns one ModelRef per job, in order."""
        ...


def unguarded(recipe: str, jobs: Sequence[Job]) -> None:
    """Raises BadSpec when a job has a guard that this recipe has no place for."""
    if any(job.guard is not None for job in jobs):
        raise BadSpec(f"The recipe {recipe} does not show its steps, so no mitigation of the training stage can act in it. "
                      "Use the recipe distill, sft or dpo, or a mitigation of the data or model stage.")
