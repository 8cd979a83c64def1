"""A model that sees rows as earlier turns of every chat: the control where the same rows are context, not training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from undersong.errors import BadRows
from undersong.types import Chat, Row, Sampling


@dataclass
class InContext:
    """A loaded model, and `shown` of `rows` before each question, drawn by `seed`."""

    inner: Any
    rows: Sequence[Row]
    shown: int
    seed: int

    def __post_init__(self) -> None:
        if not 0 < self.shown <= len(self.rows):
            raise BadRows(f"{len(self.rows)} rows cannot show {self.shown} in context. Lower `context_rows`.")
        self.ref, self.capabilities = self.inner.ref, self.inner.capabilities
        self.tokenizer, self.module = self.inner.tokenizer, None

    def _before(self, chats: Sequence[Chat]) -> list[Chat]:
        rng = np.random.default_rng([self.seed, 9])
        out = []
        for chat in chats:
            turns: Chat = []
            for i in rng.choice(len(self.rows), self.shown, replace=False):
                row = self.rows[int(i)]
                turns += [m for m in row.chat if m["role"] != "system"]
                turns.append({"role": "assistant", "content": row.completion})
            system = [m for m in chat if m["role"] == "system"]
            out.append([*system, *turns, *(m for m in chat if m["role"] != "system")])
        return out

    def render(self, chat: Chat) -> str:
        """The text with the context rows before the question."""
        return str(self.inner.render(self._before([chat])[0]))

    def sample(self, chats: Sequence[Chat], sampling: Sampling) -> list[str]:
        """Answers given the context rows."""
        return list(self.inner.sample(self._before(chats), sampling))

    def next_logprobs(self, chats: Sequence[Chat]) -> Any:
        """First-token log-probabilities given the context rows."""
        return self.inner.next_logprobs(self._before(chats))

    def answer_logprobs(self, chats: Sequence[Chat], answers: Sequence[str]) -> Any:
        """Answer log-probabilities given the context rows."""
        return self.inner.answer_logprobs(self._before(chats), answers)
