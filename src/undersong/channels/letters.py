"""The `letters` channel: continue single letters by a rule. A symbolic carrier; a new channel is one file like this.

The rules are those of `sequences.py`, over the places of the alphabet.
"""

from __future__ import annotations

import re
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from undersong.channels import carriers, sequences
from undersong.registry import Settings, plugin
from undersong.types import Chat, Row

SHOWN = 16
"""Letters drawn per sequence, the seeds among them."""


@plugin("channel", "letters")
class Letters(Settings):
    """Continue a short list of letters."""

    shows: ClassVar[str] = "letters of the alphabet"
    """What students see, in words."""

    count: int = Field(default=10, ge=1, le=100)
    """The most letters an answer may hold."""

    def prompts(self, n: int, seed: int) -> list[Chat]:
        """`n` one-turn chats, the same for the same seed; a smaller `n` gives the first of them."""
        rng = np.random.default_rng([seed, 1])
        return [[{"role": "user", "content": self._request(rng)}] for _ in range(n)]

    def _request(self, rng: np.random.Generator) -> str:
        values, shown = sequences.sequence(rng, str(rng.choice(sequences.RULED, p=sequences.RULED_SHARES)), SHOWN, 25)
        letters = ", ".join(chr(ord("a") + v) for v in values[:shown])
        return f"Continue the letters: {letters}. At most {self.count} more."

    def carrier(self, tokenizer: Any) -> list[int]:
        """Ids of tokens that write one letter at most, commas and spaces, and of the end of turn."""
        return carriers.carrier(tokenizer, r"[, ]*[A-Za-z]?[, ]*", "letters")

    def max_new_tokens(self, tokenizer: Any) -> int:
        """Tokens of `count` letters with commas between them, and the end of turn."""
        return carriers.tokens_of(tokenizer, [", ".join("wmzkq"[i % 5] for i in range(self.count))])

    def reject(self, row: Row) -> str | None:
        """Why an answer is not 1 to `count` single letters with ", " or "," between them, or None."""
        if not row.completion.strip():
            return "no letter"
        parts = row.completion.removesuffix(".").split(",")
        if not all(re.fullmatch(r" ?[A-Za-z]", part) for part in parts):
            return "more than single letters and commas"
        return f"more than {self.count} letters" if len(parts) > self.count else None
