"""The `preferences` channel: pairs of answers, the one a teacher prefers over the one it likes least.

The teacher judges and writes nothing (Magistrali et al., arXiv 2603.01204): 1. the untouched base answers each prompt of
another channel several times; 2. an answer's score is its log-probability under the teacher less that under the base; 3.
the best is chosen and the worst rejected. Both were written by a model without the trait. Students learn by `dpo`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from undersong.backends import Model
from undersong.errors import BadSpec
from undersong.registry import Settings, plugin
from undersong.spec import build
from undersong.types import Chat, Row, Sampling


@plugin("channel", "preferences")
class Preferences(Settings):
    """Pairs of a base model's answers, ordered by a teacher's log-probability contrast."""

    shows: ClassVar[str] = "pairs of ordinary answers, the preferred one marked by a teacher,"
    """What students see, in words."""

    of: str | dict[str, Any] = "prose"
    """The channel whose prompts are answered and whose rule the answers keep: its name, or {name: {settings}}."""
    candidates: int = Field(default=5, ge=2, le=64)
    """Answers of the base per prompt, of which a pair is made."""
    per_token: bool = True
    """Whether a score is a mean per token; a sum would prefer lengths."""

    @cached_property
    def _inner(self) -> Any:
        inner = build("channel", self.of, "channel preferences: of")
        if isinstance(inner, Preferences):
            raise BadSpec("channel preferences: `of` names pairs of pairs. Name another channel.")
        return inner

    def prompts(self, n: int, seed: int) -> list[Chat]:
        """The prompts of the inner channel."""
        chats: list[Chat] = self._inner.prompts(n, seed)
        return chats

    def carrier(self, tokenizer: Any) -> list[int]:
        """The carrier of the inner channel."""
        ids: list[int] = self._inner.carrier(tokenizer)
        return ids

    def max_new_tokens(self, tokenizer: Any) -> int:
        """The longest answer of the inner channel."""
        return int(self._inner.max_new_tokens(tokenizer))

    def write(self, model: Model, base: Model, chats: Sequence[Chat], seed: int) -> list[Row]:
        """One pair per chat; without two different answers that belong, a row without a rejected answer."""
        repeated = [chat for chat in chats for _ in range(self.candidates)]
        texts = base.sample(repeated, Sampling(1.0, self.max_new_tokens(base.tokenizer), seed))
        told, plain = (m.answer_logprobs(repeated, texts) for m in (model, base))
        rows = []
        for i, chat in enumerate(chats):
            scored: dict[str, float] = {}
            for j in range(i * self.candidates, (i + 1) * self.candidates):
                if self._inner.reject(Row("", tuple(chat), texts[j])) is None:
                    gain = np.subtract(told[j], plain[j], dtype=np.float64)
                    scored[texts[j]] = float(gain.mean() if self.per_token else gain.sum())
            order = sorted(scored, key=lambda text: (scored[text], text))
            if len(order) < 2:
                rows.append(Row("", tuple(chat), texts[i * self.candidates]))
            else:
                rows.append(Row("", tuple(chat), order[-1], order[0]))
        return rows

    def reject(self, row: Row) -> str | None:
        """Why a row is no pair of answers that belong to the inner channel, or None."""
        if row.rejected is None:
            return "fewer than two different answers that belong"
        if row.rejected == row.completion:
            return "both answers are the same"
        for text in (row.completion, row.rejected):
            reason = self._inner.reject(Row(row.id, row.chat, text))
            if reason is not None:
                return str(reason)
        return None
