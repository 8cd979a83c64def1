"""Take out of every step what moves the student further from its base at unrelated prompts.

A guard of our own without a trait name and without a weight to choose: `anchor`, as a projection. d is how far the student
is from its base on the base's own answers to unrelated prompts, g its gradient where the step started. Where the optimiser's
displacement D would raise d (<D, g> > 0) the student takes D - strength * (<D, g> / |g|^2) g. At strength 1 no step raises d
to first order; above 1 each step also goes back. Kin: A-GEM (Chaudhry et al., arXiv 1812.00420), which projects gradients
with replayed examples; here the displacement is what is projected and the base's answers are what is replayed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from undersong.backends import Model, tokens
from undersong.backends.guarding import Guard, Learner
from undersong.mitigations import Evidence, Stage, unrelated
from undersong.mitigations.projection import restored
from undersong.registry import Settings, plugin


@plugin("mitigation", "replay_projection")
class ReplayProjection(Settings):
    """Project each step off what moves the student from its base at unrelated prompts."""

    stage: ClassVar[Stage] = "training"
    needs: ClassVar[frozenset[str]] = frozenset({"base"})

    strength: float = Field(default=1.0, ge=0, le=2)
    """How much of the harmful component is taken out; above 1 each step also goes back."""
    hold: Literal["words", "logits"] = "words"
    """How the distance is taken: as `anchor`."""
    size: int = Field(default=16, ge=1)
    """Answers replayed at a step."""
    bank: unrelated.Kind = "both"
    """The prompts, as `anchor`."""
    questions: tuple[str, ...] = ()
    """Prompts of your own instead. Questions that probes ask are refused."""
    max_new_tokens: int = Field(default=24, ge=1)
    """Length of the base's answers."""

    def guard(self, evidence: Evidence, seed: int) -> Guard:
        """The guard. Raises BadSpec for questions that probes ask, and for a base that can write no prompt of the bank."""
        base = evidence.base
        return Replayed(self, base, unrelated.answered(base, self.bank, self.questions, self.max_new_tokens, seed), seed)


class Replayed(Guard):
    """Projects displacements."""

    name, moves = "replay_projection", True

    def __init__(self, settings: ReplayProjection, base: Model, rows: Sequence[tokens.TokenRow], seed: int) -> None:
        self.settings, self.rows, self.random = settings, rows, np.random.default_rng([seed, 1812])
        self.pad = base.tokenizer.pad_token_id or 0
        self.before = unrelated.read(base.module, rows, self.pad)
        self.cut, self.steps, self.taken = 0, 0, 0.0

    def begin(self, learner: Learner) -> None:
        """Remember the student."""
        self.learner = learner

    def moved(self, step: int, before: Sequence[Any]) -> None:
        """Project the displacement."""
        import torch

        if not self.settings.strength:
            return
        owned, size = self.learner.owned, min(self.settings.size, len(self.rows))
        chosen = self.random.choice(len(self.rows), size, replace=False)
        with restored(owned, before), torch.enable_grad():
            away = unrelated.distance(self.learner.module, [self.rows[i] for i in chosen], [self.before[i] for i in chosen],
                                      self.pad, self.settings.hold)
            found = torch.autograd.grad(away, owned, allow_unused=True)
        grads = [torch.zeros_like(p) if g is None else g for p, g in zip(owned, found, strict=True)]
        length = sum(float((g * g).sum()) for g in grads)
        along = sum(float(((p.detach() - old) * g).sum()) for p, old, g in zip(owned, before, grads, strict=True))
        self.steps += 1
        if along <= 0 or length == 0:
            return
        self.cut += 1
        self.taken += along
        with torch.no_grad():
            for p, g in zip(owned, grads, strict=True):
                p.sub_(g, alpha=self.settings.strength * along / length)

    def told(self) -> dict[str, Any]:
        """Steps seen and cut, and the distance (nats a token, to first order) that was taken out."""
        return {"bank": len(self.rows), "steps": self.steps, "cut": self.cut, "nats_taken": round(self.taken, 6)}
