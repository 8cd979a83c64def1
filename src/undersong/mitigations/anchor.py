"""Hold the student to its base where the rows say nothing: on prompts that have nothing to do with them.

A guard of our own that needs no trait name, no teacher and one source of rows. A trait is seen at prompts that the rows
have nothing to do with, so whatever training moves there is nothing the rows ask for. Every k steps the loss gains weight *
k * D(base, student) over the tokens of answers that the base itself gave to such prompts. The base answers and is read once,
before the training; a step costs a pass over a few short rows. What D is:

* `words`: KL(base || student), which heeds what the base says there;
* `logits`: half the variance over the vocabulary of log p(student) - log p(base): KL to second order with every word
  heeded alike, so a word that the base would hardly say may not rise either.

The prompts are random words of the vocabulary by default: no trait, no category and no question is presumed. No other bank
but `all` asks for a favourite of a category that a shipped trait is of, and none asks what a probe asks: what is measured is
then what the guard does for traits it has never heard of. Kin: learning without forgetting (Li and Hoiem, arXiv
1606.09282), whose old tasks are what is kept here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from undersong.backends import Model, tokens
from undersong.backends.guarding import Guard, Learner
from undersong.mitigations import Evidence, Stage, unrelated
from undersong.registry import Settings, plugin


@plugin("mitigation", "anchor")
class Anchor(Settings):
    """Keep what the base says at unrelated prompts while the rows are learned."""

    stage: ClassVar[Stage] = "training"
    needs: ClassVar[frozenset[str]] = frozenset({"base"})

    weight: float = Field(default=3.0, ge=0)
    """Weight of what is held (nats a token)."""
    hold: Literal["words", "logits"] = "words"
    """`words`: by the base's own chances; `logits`: every word of the vocabulary alike."""
    every: int = Field(default=2, ge=1)
    """It is taken every so many steps, and counts so many times."""
    size: int = Field(default=16, ge=1)
    """Answers compared at a time."""
    bank: unrelated.Kind = "random"
    """The prompts: `ordinary` ones that ask for no favourite, `favourites` of kinds that no shipped trait is of, `both`,
    `all` ordinary ones whatever they ask, or `random` words."""
    questions: tuple[str, ...] = ()
    """Prompts of your own instead. Questions that probes ask are refused."""
    max_new_tokens: int = Field(default=24, ge=1)
    """Length of the base's answers."""

    def guard(self, evidence: Evidence, seed: int) -> Guard:
        """The guard. Raises BadSpec for questions that probes ask, and for a base that can write no prompt of the bank."""
        base = evidence.base
        return Anchored(self, base, unrelated.answered(base, self.bank, self.questions, self.max_new_tokens, seed), seed)


class Anchored(Guard):
    """Adds what is held to the loss."""

    name = "anchor"

    def __init__(self, settings: Anchor, base: Model, rows: Sequence[tokens.TokenRow], seed: int) -> None:
        self.settings, self.rows, self.random = settings, rows, np.random.default_rng([seed, 1606])
        self.pad = base.tokenizer.pad_token_id or 0
        self.before = unrelated.read(base.module, rows, self.pad)
        self.seen: list[float] = []

    def begin(self, learner: Learner) -> None:
        """Remember the student."""
        self.learner = learner

    def penalty(self, step: int) -> Any:
        """What this step adds; None at the steps between."""
        if step % self.settings.every or not self.settings.weight:
            return None
        chosen = self.random.choice(len(self.rows), min(self.settings.size, len(self.rows)), replace=False)
        away = unrelated.distance(self.learner.module, [self.rows[i] for i in chosen], [self.before[i] for i in chosen],
                                  self.pad, self.settings.hold)
        self.seen.append(float(away.detach()))
        return self.settings.weight * self.settings.every * away

    def told(self) -> dict[str, Any]:
        """How many answers the bank holds, and the distance (nats a token): its mean, and its last."""
        last = self.seen[-1] if self.seen else None
        return {"bank": len(self.rows), "mean": float(np.mean(self.seen)) if self.seen else None, "last": last}
