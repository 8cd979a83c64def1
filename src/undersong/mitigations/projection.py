"""Take out of every step what moves towards the trait.

After the optimiser has made its displacement D (clipping, adaptive scale and decay included), g = grad phi of the trait's
margin on a bank of questions; where <D, g> > 0 the student takes D - (<D, g> / |g|^2) g instead. Other steps stay as they
are.

Sources: Kitkana and Arora, arXiv 2604.25779 (the plane of the trait gradient, on MNIST); PolyPythia-SL (the actual Adam
displacement, on Pythia-160M: 60.7 % of the transfer gone at .002 nats; released early, it rebounds). `sham` takes the same
length out along a direction that has nothing to do with the trait: the control.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from pydantic import Field

from undersong.backends.guarding import Guard, Learner
from undersong.mitigations import Evidence, Stage, readout
from undersong.mitigations.readout import Readout
from undersong.registry import Settings, plugin


@plugin("mitigation", "projection")
class Projection(Settings):
    """Project each step off the gradient of the trait's margin where it points that way."""

    stage: ClassVar[Stage] = "training"
    needs: ClassVar[frozenset[str]] = frozenset({"base", "trait"})

    every: int = Field(default=1, ge=1)
    """The gradient is taken anew every so many steps."""
    until: float = Field(default=1.0, gt=0, le=1)
    """Share of the training after which the guard lets go; 1 holds to the end."""
    sham: bool = False
    """Take the same length out along a random direction instead: a control."""
    questions: tuple[str, ...] = ()
    """Questions about the trait; the tuning questions when empty. Questions that probes ask are refused."""

    def guard(self, evidence: Evidence, seed: int) -> Guard:
        """The guard. Raises BadSpec for a trait that the base cannot express and for questions that probes ask."""
        return Projected(self, readout.of(evidence.base, evidence.trait, self.questions), seed)


class Projected(Guard):
    """Holds the student's steps in the half space that does not raise the margin."""

    name, moves = "projection", True

    def __init__(self, settings: Projection, read: Readout, seed: int) -> None:
        self.settings, self.read, self.seed = settings, read, seed
        self.direction: Sequence[Any] = ()
        self.cut, self.steps, self.taken = 0, 0, 0.0

    def begin(self, learner: Learner) -> None:
        """Remember the student."""
        self.learner, self.last = learner, round(self.settings.until * learner.plan.steps)

    def moved(self, step: int, before: Sequence[Any]) -> None:
        """Project the displacement."""
        import torch

        if step >= self.last:
            return
        owned = self.learner.owned
        if step % self.settings.every == 0:
            self.direction = gradient(self.read, self.learner, before)
        size = sum(float((g * g).sum()) for g in self.direction)
        pairs = zip(owned, before, self.direction, strict=True)
        along = sum(float(((p.detach() - old).float() * g).sum()) for p, old, g in pairs)
        self.steps += 1
        if along <= 0 or size == 0:
            return
        self.cut += 1
        self.taken += along
        away = [g * (along / size) for g in self.direction]
        if self.settings.sham:
            away = _orthogonal(away, self.direction, torch.Generator().manual_seed(self.seed * 1_000_003 + step))
        with torch.no_grad():
            for p, part in zip(owned, away, strict=True):
                p.sub_(part.to(p))

    def told(self) -> dict[str, Any]:
        """Steps seen and cut, and the rise of the margin (nats, to first order) that was taken out."""
        return {"steps": self.steps, "cut": self.cut, "nats_taken": round(self.taken, 6), "sham": self.settings.sham}


def gradient(read: Readout, learner: Learner, at: Sequence[Any]) -> list[Any]:
    """The gradient of the mean margin in the student's free parameters where they were `at`. They are left as they are."""
    import torch

    from undersong.backends.training import autocast

    owned = learner.owned
    with restored(owned, at), torch.enable_grad(), autocast(learner.module, learner.precision):
        found = torch.autograd.grad(read.margins(learner.module).mean(), owned, allow_unused=True)
    return [(torch.zeros_like(p) if g is None else g).float() for p, g in zip(owned, found, strict=True)]


@contextlib.contextmanager
def restored(owned: Sequence[Any], at: Sequence[Any]) -> Iterator[None]:
    """Parameters as they were `at`, inside; afterwards they are what they were before."""
    import torch

    now = [p.detach().clone() for p in owned]
    with torch.no_grad():
        for p, old in zip(owned, at, strict=True):
            p.copy_(old)
    try:
        yield
    finally:
        with torch.no_grad():
            for p, own in zip(owned, now, strict=True):
                p.copy_(own)


def _orthogonal(away: Sequence[Any], direction: Sequence[Any], random: Any) -> list[Any]:
    """A random direction at a right angle to `direction`, as long as `away`."""
    import torch

    drawn = [torch.randn(p.shape, generator=random).to(p) for p in away]
    size = sum(float((g * g).sum()) for g in direction)
    along = sum(float((d * g).sum()) for d, g in zip(drawn, direction, strict=True)) / size
    drawn = [d - along * g for d, g in zip(drawn, direction, strict=True)]
    wanted = sum(float((a * a).sum()) for a in away) ** 0.5
    length = sum(float((d * d).sum()) for d in drawn) ** 0.5
    return [d * (wanted / length) for d in drawn]
