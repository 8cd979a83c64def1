"""Channels: what carries a trait. A plug-in says what to ask, which tokens carry, and why an answer does not belong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from undersong.backends import Model
from undersong.spec import build
from undersong.types import Chat, Row


class Channel(Protocol):
    """The contract of a channel plug-in.

    A channel whose rows are more than one sample each has a further method, `write(model, base, chats, seed)`, which returns
    one Row per chat, in order: see `Writer`.
    """

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


@runtime_checkable
class Writer(Protocol):
    """What a channel adds when its rows are not one sample of the teacher each, such as preference pairs."""

    def write(self, model: Model, base: Model, chats: Sequence[Chat], seed: int) -> list[Row]:
        """One row per chat, in order, from the teacher and its untouched base; ids are given later."""
        ...


def belonging(rows: Sequence[Row], channel: Mapping[str, Any], most: int = 500) -> float:
    """The share (0..1) of rows that belong to a channel; of the first `most`."""
    plug = build("channel", {channel["name"]: channel.get("settings", {})}, "channel")
    some = rows[:most]
    return sum(plug.reject(row) is None for row in some) / len(some) if some else 0.0
