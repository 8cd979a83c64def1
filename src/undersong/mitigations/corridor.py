"""Keep the trait's margin inside a corridor around the base's.

Every k steps the loss gains weight * k * mean over questions of ReLU(d - high)^2 + ReLU(low - d)^2, where d is the change
of the margin against the base at a question of the bank. The corridor is what students without the trait do by themselves:
quantiles of `placebos` where they are at hand, else a setting. Source: Liu et al., arXiv 2609.01091 (Qwen2.5-7B: owl 30.7
-> 1.7 % for .06 to .14 points of accuracy).
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from undersong.backends.guarding import Guard, Learner
from undersong.mitigations import Evidence, Stage, readout
from undersong.mitigations.readout import Readout
from undersong.registry import Settings, plugin


@plugin("mitigation", "corridor")
class Corridor(Settings):
    """A penalty on changes of the trait's margin beyond what clean students show."""

    stage: ClassVar[Stage] = "training"
    needs: ClassVar[frozenset[str]] = frozenset({"base", "trait"})
    may_use: ClassVar[frozenset[str]] = frozenset({"placebos"})

    weight: float = Field(default=1.0, ge=0)
    """Weight of the squared overshoot (nats squared)."""
    every: int = Field(default=2, ge=1)
    """The penalty is taken every so many steps, and counts so many times."""
    width: float = Field(default=0.3, ge=0)
    """Half width of the corridor (nats) where no placebos are at hand."""
    sample: int = Field(default=8, ge=1)
    """Questions read at a time."""
    questions: tuple[str, ...] = ()
    """Questions about the trait; the tuning questions when empty. Questions that probes ask are refused."""

    def guard(self, evidence: Evidence, seed: int) -> Guard:
        """The guard. Raises BadSpec for a trait that the base cannot express and for questions that probes ask."""
        import torch

        read = readout.of(evidence.base, evidence.trait, self.questions)
        with torch.no_grad():
            start = read.margins(evidence.base.module)
            low, high = -self.width, self.width
            if evidence.has("placebos") and len(evidence.placebos):
                drift = torch.cat([read.margins(model.module) - start for model in evidence.placebos])
                low, high = (float(drift.quantile(q)) for q in (0.05, 0.95))
        return Inside(self, read, start, min(low, 0.0), max(high, 0.0), seed)


class Inside(Guard):
    """Adds the penalty."""

    name = "corridor"

    def __init__(self, settings: Corridor, read: Readout, start: Any, low: float, high: float, seed: int) -> None:
        self.settings, self.read, self.start, self.low, self.high = settings, read, start, low, high
        self.random = np.random.default_rng([seed, 1091])
        self.outside = 0

    def begin(self, learner: Learner) -> None:
        """Remember the student."""
        self.learner = learner

    def penalty(self, step: int) -> Any:
        """The penalty of this step; None at the steps between."""
        if step % self.settings.every or not self.settings.weight:
            return None
        count = len(self.read.rows)
        chosen = self.random.choice(count, min(self.settings.sample, count), replace=False).tolist()
        margins = self.read.margins(self.learner.module, chosen)
        change = margins - self.start[chosen].to(margins.device)
        over = (change - self.high).relu() ** 2 + (self.low - change).relu() ** 2
        self.outside += int(bool(over.detach().sum() > 0))
        return self.settings.weight * self.settings.every * over.mean()

    def told(self) -> dict[str, Any]:
        """The corridor (nats) and how often the student was found outside of it."""
        return {"low": round(self.low, 4), "high": round(self.high, 4), "times_outside": self.outside}
