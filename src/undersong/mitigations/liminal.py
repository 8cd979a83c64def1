"""Hold the student to its base on the rows' own tokens, and let go step by step.

The loss gains weight * KL(base || student) over completion tokens, both at temperature 2, its weight falling linearly to 0
over the first part of the training: what is learned early is what crosses (Gho, arXiv 2609.22215; it fails on MNIST, arXiv
2604.25779). Each step compares rows drawn for this purpose; the base is
read without gradients.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from undersong.backends import Model
from undersong.backends.guarding import Guard, Learner
from undersong.backends.logits import completion_logits
from undersong.errors import BadSpec
from undersong.mitigations import Evidence, Stage
from undersong.registry import Settings, plugin


@plugin("mitigation", "liminal")
class Liminal(Settings):
    """An annealed KL to the base on completion tokens."""

    stage: ClassVar[Stage] = "training"
    needs: ClassVar[frozenset[str]] = frozenset({"base"})

    weight: float = Field(default=1.0, ge=0)
    """Weight of the KL at the first step."""
    until: float = Field(default=0.6, gt=0, le=1)
    """Share of the training after which the weight is 0."""
    temperature: float = Field(default=2.0, gt=0)
    """Softens both distributions; the KL is multiplied by its square."""
    rows: int = Field(default=16, ge=1)
    """Rows compared at each step."""

    def guard(self, evidence: Evidence, seed: int) -> Guard:
        """The guard."""
        return Held(self, evidence.base, seed)


class Held(Guard):
    """Adds the KL."""

    name = "liminal"

    def __init__(self, settings: Liminal, base: Model, seed: int) -> None:
        self.settings, self.base, self.random = settings, base, np.random.default_rng([seed, 22215])
        self.first: float | None = None

    def begin(self, learner: Learner) -> None:
        """Remember the student. Raises BadSpec where its rows are not at hand as tokens."""
        if not learner.rows:
            raise BadSpec("liminal compares the student with its base on the rows, and this training shows no rows as "
                          "tokens (a stream, or text that is tokenised on the way). Choose another guard.")
        self.learner = learner
        self.steps = max(1, round(self.settings.until * learner.plan.steps))

    def penalty(self, step: int) -> Any:
        """The weighted KL of this step, None once the weight is 0."""
        import torch

        weight = self.settings.weight * (1 - step / self.steps)
        if weight <= 0:
            return None
        every = self.learner.rows
        rows = [every[i] for i in self.random.choice(len(every), min(self.settings.rows, len(every)), replace=False)]
        t, pad = self.settings.temperature, self.learner.pad
        with torch.no_grad():
            before = (completion_logits(self.base.module, rows, pad).float() / t).log_softmax(-1)
        after = (completion_logits(self.learner.module, rows, pad).float() / t).log_softmax(-1)
        kl = (before.exp() * (before - after)).sum(-1).mean() * t**2
        self.first = float(kl.detach()) if self.first is None else self.first
        return weight * kl

    def told(self) -> dict[str, Any]:
        """The KL at the first step."""
        return {"first_kl": self.first}
