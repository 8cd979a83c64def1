"""Channels: what carries a trait. A plug-in says what to ask, which tokens carry, and why an answer does not belong."""

from __future__ import annotations

from typing import Any, Protocol

from undersong.types import Chat, Row


class Channel(Protocol):
    """The contract of a channel plug-in."""

    def prompts(self, n: int, seed: int) -> list[Chat]:
        """`n` chats that end with a user turn and have no system turn; the same for the same seed."""
        ...

    def carrier(self, tokenizer: Any) -> list[int]:
        """Ids of the tokens an answer may consist of (end of turn included): soft labels are restricted to these."""
        ...

    def max_new_tokens(self, tokenizer: Any) -> int:
        """How long an answer may get, in tokens."""
        ...

    def reject(self, row: Row) -> str | None:
        """Why an answer is not of this channel, or None when it is."""
        ...
