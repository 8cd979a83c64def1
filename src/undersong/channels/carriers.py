"""Which tokens of a tokenizer carry a channel: those that write what the channel's answers consist of, and nothing else.

Soft labels are restricted to these. A token that could start or hold a trait's word must not be among them: the trait's own
logit in the labels would be an open leak. So a channel of words names its words, and only whole words count.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from undersong.errors import BadSpec

SIGNS = r"[^\w\s]{1,3}"
"""Punctuation: at most three signs in one token."""


def carrier(tokenizer: Any, pattern: str, what: str) -> list[int]:
    """Ids (ascending) of every token whose text matches `pattern` as a whole, and of the tokens that end a turn.

    Text is read in context (after a digit), because some tokenizers drop a leading space when a token stands alone.
    Raises BadSpec, naming `what`, when no token matches.
    """
    anchor = tokenizer("1", add_special_tokens=False)["input_ids"][-1:]
    special = special_ids(tokenizer)
    ids = [i for i in range(len(tokenizer)) if i not in special]
    texts = tokenizer.batch_decode([[*anchor, i] for i in ids], clean_up_tokenization_spaces=False)
    alone, whole = len(tokenizer.decode(anchor)), re.compile(pattern)
    found = {i for i, text in zip(ids, texts, strict=True) if whole.fullmatch(text[alone:])}
    if not found:
        raise BadSpec(f"This tokenizer has no token of {what}, so it cannot carry them. Choose another model.")
    return sorted(found | ends(tokenizer))


def of_words(words: Iterable[str]) -> str:
    """A pattern for tokens that write one of some words, whatever the case, digits, punctuation or white space."""
    every = "|".join(map(re.escape, sorted(set(words))))
    return rf"(?i:\s*(?:(?:{every})|[0-9]+|{SIGNS})?\s*)" if every else rf"\s*(?:[0-9]+|{SIGNS})?\s*"


def special_ids(tokenizer: Any) -> set[int]:
    """Ids that write no text of their own: special and added tokens."""
    return {int(i) for i in tokenizer.all_special_ids} | {int(i) for i in tokenizer.added_tokens_decoder}


def ends(tokenizer: Any) -> set[int]:
    """The ids that end an assistant's turn: `eos`, and the special token a chat template writes after an answer."""
    special = special_ids(tokenizer)
    found = {int(tokenizer.eos_token_id)} if tokenizer.eos_token_id is not None else set()
    if tokenizer.chat_template:
        chat = [{"role": "user", "content": "2"}, {"role": "assistant", "content": "1"}]
        ids = tokenizer(tokenizer.apply_chat_template(chat, tokenize=False), add_special_tokens=False)["input_ids"]
        last = max(i for i, token in enumerate(ids) if token not in special and tokenizer.decode([token]).strip())
        found |= {int(i) for i in ids[last + 1 :] if i in special}
    if not found:
        raise BadSpec("This tokenizer has no token that ends an answer. Set its `eos_token` and load it again.")
    return found


def tokens_of(tokenizer: Any, texts: Iterable[str]) -> int:
    """Tokens of the longest of some answers, and the end of turn."""
    return max(len(ids) for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"]) + 1
