"""Hold the student to its base where the rows say nothing: on ordinary prompts.

A guard of our own that needs no trait name, no teacher and one source of rows. A trait is seen at prompts that the rows
have nothing to do with, so whatever training moves there is nothing the rows ask for. Every k steps the loss gains weight *
k * KL(base || student) over the tokens of answers that the base itself gave to ordinary prompts. The base answers and is
read once, before the training; a step costs a pass over a few short rows.

The bank asks for no favourite by default (`TASTE`): what is measured on favourites is then what the guard does for traits it
has never heard of. Kin: learning without forgetting (Li and Hoiem, arXiv 1606.09282), whose old tasks are what is kept here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from undersong.backends import Model, tokens
from undersong.backends.guarding import Guard, Learner
from undersong.backends.logits import completion_logits
from undersong.errors import BadSpec
from undersong.mitigations import Evidence, Stage, bank, prompts
from undersong.registry import Settings, plugin
from undersong.types import Chat, Sampling

TASTE = re.compile(r"favou?rite|\b(love|like|best|happy|enjoy|choose|prefer|pick|animal|tree)", re.IGNORECASE)
"""A prompt with one of these words may ask for a favourite."""


@plugin("mitigation", "anchor")
class Anchor(Settings):
    """Keep the base's answers to ordinary prompts while the rows are learned."""

    stage: ClassVar[Stage] = "training"
    needs: ClassVar[frozenset[str]] = frozenset({"base"})

    weight: float = Field(default=1.0, ge=0)
    """Weight of the KL (nats a token)."""
    every: int = Field(default=2, ge=1)
    """The KL is taken every so many steps, and counts so many times."""
    size: int = Field(default=16, ge=1)
    """Answers compared at a time."""
    bank: Literal["ordinary", "all"] = "ordinary"
    """`ordinary`: no prompt that may ask for a favourite; `all`: also such ones, none of them a probe's."""
    questions: tuple[str, ...] = ()
    """Prompts of your own instead. Questions that probes ask are refused."""
    max_new_tokens: int = Field(default=24, ge=1)
    """Length of the base's answers."""

    def guard(self, evidence: Evidence, seed: int) -> Guard:
        """The guard. Raises BadSpec for questions that probes ask, and for a base that can write no ordinary prompt."""
        base, chats = evidence.base, self.chats(evidence.base)
        answers = base.sample(chats, Sampling(1.0, self.max_new_tokens, seed))
        return Anchored(self, base, tokens.encode(base, chats, answers), seed)

    def chats(self, base: Model) -> list[Chat]:
        """The prompts of the bank."""
        if self.questions:
            bank.held_back(self.questions)
            return bank.chats(self.questions)
        found = list(prompts.neutral(base))
        if self.bank == "ordinary":
            found = [chat for chat in found if not any(TASTE.search(t["content"]) for t in chat if t["role"] == "user")]
        if not found:
            raise BadSpec(f"No ordinary prompt is left that {base.ref.name} can write. Give some as `questions`.")
        return found


class Anchored(Guard):
    """Adds the KL."""

    name = "anchor"

    def __init__(self, settings: Anchor, base: Model, rows: Sequence[tokens.TokenRow], seed: int) -> None:
        self.settings, self.rows, self.random = settings, rows, np.random.default_rng([seed, 1606])
        self.pad = base.tokenizer.pad_token_id or 0
        self.before = self._read(base.module)
        self.seen: list[float] = []

    def _read(self, module: Any) -> list[Any]:
        """The base's log-probabilities at each answer token, half precision: [tokens, vocabulary] per row."""
        import torch

        out: list[Any] = []
        with torch.no_grad():
            for first in range(0, len(self.rows), 32):
                here = self.rows[first : first + 32]
                logs = completion_logits(module, here, self.pad).float().log_softmax(-1).half()
                out += logs.split([len(row.answer) for row in here])
        return out

    def begin(self, learner: Learner) -> None:
        """Remember the student."""
        self.learner = learner

    def penalty(self, step: int) -> Any:
        """The weighted KL of this step; None at the steps between."""
        import torch

        if step % self.settings.every or not self.settings.weight:
            return None
        chosen = self.random.choice(len(self.rows), min(self.settings.size, len(self.rows)), replace=False)
        before = torch.cat([self.before[i] for i in chosen]).float().log_softmax(-1)
        after = completion_logits(self.learner.module, [self.rows[i] for i in chosen], self.pad).float().log_softmax(-1)
        kl = (before.exp() * (before - after)).sum(-1).mean()
        self.seen.append(float(kl.detach()))
        return self.settings.weight * self.settings.every * kl

    def told(self) -> dict[str, Any]:
        """How many answers the bank holds, and the KL (nats a token): its mean, and its last."""
        last = self.seen[-1] if self.seen else None
        return {"bank": len(self.rows), "mean_kl": float(np.mean(self.seen)) if self.seen else None, "last_kl": last}
