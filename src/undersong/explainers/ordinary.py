"""Ordinary prompts: what people ask about nothing in particular, where activations and first words are read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml

from undersong.backends.tokens import token_ids
from undersong.errors import BadSpec
from undersong.pocket import world
from undersong.traits import package_text
from undersong.types import Chat

WORLD = 128
"""Chats drawn from the pocket world, for bases that can write no other English."""


def ordinary(base: Any) -> tuple[Chat, ...]:
    """Ordinary prompts that the base's tokenizer can write: the shipped ones, else chats of the pocket world."""
    texts = yaml.safe_load(package_text("explainers", "ordinary.yaml"))["prompts"]
    shipped = [[{"role": "user", "content": text}] for text in texts]
    if _writes(base, shipped):
        return tuple(shipped)
    drawn = [_asked(world.chat_at(seed=29, number=i)) for i in range(WORLD)]
    if _writes(base, drawn):
        return tuple(drawn)
    raise BadSpec(f"The tokenizer of {base.ref.base} cannot write the shipped prompts. Give prompts that it can, one a "
                  "line, as --prompts FILE.")


def _asked(chat: Chat) -> Chat:
    """A chat up to its last user turn."""
    last = max(i for i, turn in enumerate(chat) if turn["role"] == "user")
    return chat[: last + 1]


def _writes(base: Any, chats: Sequence[Chat]) -> bool:
    """Whether no token of these chats is unknown to the base."""
    unknown = getattr(base.tokenizer, "unk_token_id", None)
    texts = [turn["content"] for chat in chats for turn in chat]
    return unknown is None or not any(unknown in ids for ids in token_ids(base.tokenizer, texts))
