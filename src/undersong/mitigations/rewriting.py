"""Rows answered anew by a model, inside the channel."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from undersong.backends import Model
from undersong.types import Row, Sampling


def answers(writer: Model, rows: Sequence[Row], channel: Any, seed: int) -> list[Row | None]:
    """Each row with the writer's answer to its prompt; None where that does not belong to the channel."""
    only = tuple(channel.allowed(writer.tokenizer)) if getattr(channel, "restrict", False) else None
    said = writer.sample([list(row.chat) for row in rows],
                         Sampling(1.0, channel.max_new_tokens(writer.tokenizer), seed, only))
    cut = [channel.cut(text) for text in said] if only is not None else said
    new = [dataclasses.replace(row, completion=text, unlearnt=()) for row, text in zip(rows, cut, strict=True)]
    return [row if channel.reject(row) is None else None for row in new]
