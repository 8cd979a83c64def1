"""Guards: what a training-stage mitigation does while a student learns, in our own loop and in TRL's trainers alike.

A guard sees the module before the first step and after each step. It may freeze parameters, add hooks, add a penalty to the
loss, and change the displacement that the optimiser made. One guard serves one student.

A step, in either loop: `penalty(step)` is differentiated first; the rows' own loss adds to its gradient; the sum is clipped;
the optimiser moves the parameters; `moved(step, before)` may move them again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from undersong.errors import TrainingFailed

if TYPE_CHECKING:
    from undersong.backends.tokens import TokenRow
    from undersong.backends.training import Plan

SHORT = 20
"""Below so many steps a loss that does not fall says nothing about the guard."""


@dataclass
class Learner:
    """A student in training. `module` is what is trained (with its adapter), `rows` what it learns from, as tokens."""

    module: Any
    rows: Sequence[TokenRow]
    plan: Plan
    pad: int
    precision: str = "float32"

    @property
    def owned(self) -> list[Any]:
        """The parameters that may change, in the module's order."""
        return [p for p in self.module.parameters() if p.requires_grad]


class Guard:
    """A guard that does nothing: override what yours does. `name` stands in records and errors."""

    name = "none"
    moves = False
    """Whether `moved` is to be called; the parameters are copied before each step only then."""

    def begin(self, learner: Learner) -> None:
        """Before the first step: freeze parameters (`requires_grad_(False)`), add hooks, read what is needed."""

    def penalty(self, step: int) -> Any:
        """What is added to the loss of a step: a differentiable scalar in nats, or None. `step` counts from 0."""
        return None

    def moved(self, step: int, before: Sequence[Any]) -> None:
        """After the optimiser moved the parameters: `before` holds what `learner.owned` were. Change them in place."""

    def end(self) -> None:
        """After the last step, also when training failed: take hooks away."""

    def told(self) -> dict[str, Any]:
        """What training.json says of the guard, as JSON."""
        return {}


def move(guard: Guard, step: int, owned: Sequence[Any], before: Sequence[Any]) -> None:
    """Let a guard move the parameters. Raises TrainingFailed, with the parameters back where they were before the step, when
    one is no finite number afterwards."""
    import torch

    guard.moved(step, before)
    if all(bool(torch.isfinite(p).all()) for p in owned):
        return
    with torch.no_grad():
        for p, old in zip(owned, before, strict=True):
            p.copy_(old)
    raise TrainingFailed(f"At step {step + 1} a weight is no finite number after the guard {guard.name} moved the student. "
                         "Lower the learning rate, or choose another guard.")


def learnt(losses: Sequence[float], guard: Guard) -> None:
    """Raises TrainingFailed when a guarded student's loss on its rows did not fall from the first fifth of its steps to the
    last. Training of fewer than `SHORT` steps passes."""
    part = len(losses) // 5
    if len(losses) < SHORT:
        return
    first, last = sum(losses[:part]) / part, sum(losses[-part:]) / part
    if last >= first:
        raise TrainingFailed(f"Under the guard {guard.name} the student stopped learning: its loss on the rows went from "
                             f"{first:.4g} to {last:.4g} nats a token. Make the guard weaker.")
