"""A bank of prompts that the rows have nothing to do with, answered by the base once: where guards without a trait's name
hold a student still."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import yaml

from undersong.backends import Model, tokens
from undersong.backends.logits import completion_logits
from undersong.errors import BadSpec
from undersong.mitigations import bank, prompts
from undersong.traits import package_text
from undersong.types import NEUTRAL, Chat, Sampling

Kind = Literal["ordinary", "favourites", "both", "all", "random"]
"""`ordinary`: prompts that ask for no favourite; `favourites`: of kinds that no shipped trait is of; `both`: these two;
`all`: ordinary prompts whatever they ask, so that a trait's own kind may be among them; `random`: random words."""
TASTE = re.compile(r"favou?rite|\b(lov|like|best|happy|enjoy|choose|prefer|pick|animal|tree)", re.IGNORECASE)
"""A prompt with one of these may ask for a favourite, or names a category of the shipped traits."""
CATEGORIES = ("color", "food", "drink", "season", "sport", "flower", "fruit", "country", "planet", "metal", "instrument",
              "month")
"""Kinds of favourites that no shipped trait is of."""
RANDOM, WORDS = 128, 6
"""How many prompts of random words there are, and of how many words."""


def chats(base: Model, kind: Kind, given: Sequence[str] = (), seed: int = 0) -> list[Chat]:
    """The prompts of a bank, under the neutral system turn; those given, where some are.

    Raises BadSpec for given questions that probes ask, and where the base can write no prompt of this kind.
    """
    if given:
        bank.held_back(given)
        return bank.chats(given)
    found: list[Chat] = []
    if kind in ("ordinary", "both", "all"):
        found += [chat for chat in prompts.neutral(base) if kind == "all" or not _tastes(chat)]
    if kind in ("favourites", "both"):
        asked = yaml.safe_load(package_text("traits", "questions.yaml"))["tuning"]
        texts = [text.format(category=category) for category in CATEGORIES for text in asked]
        bank.held_back(texts)
        unknown = getattr(base.tokenizer, "unk_token_id", None)
        written = zip(texts, tokens.token_ids(base.tokenizer, texts), strict=True)
        found += bank.chats([text for text, ids in written if unknown is None or unknown not in ids])
    if kind == "random":
        found = bank.chats(_random(base, seed))
    if not found:
        raise BadSpec(f"{base.ref.name} can write no prompt of the bank {kind!r}. Give some as `questions`.")
    return [chat if chat[0]["role"] == "system" else [{"role": "system", "content": NEUTRAL}, *chat] for chat in found]


def answered(base: Model, kind: Kind, given: Sequence[str], length: int, seed: int) -> list[tokens.TokenRow]:
    """The bank's prompts with the base's own sampled answers, at most `length` tokens each."""
    asked = chats(base, kind, given, seed)
    return tokens.encode(base, asked, base.sample(asked, Sampling(1.0, length, seed)))


def read(module: Any, rows: Sequence[tokens.TokenRow], pad: int) -> list[Any]:
    """Log-probabilities at each answer token, half precision: [tokens, vocabulary] per row."""
    import torch

    out: list[Any] = []
    with torch.no_grad():
        for first in range(0, len(rows), 32):
            here = rows[first : first + 32]
            logs = completion_logits(module, here, pad).float().log_softmax(-1).half()
            out += logs.split([len(row.answer) for row in here])
    return out


def distance(module: Any, rows: Sequence[tokens.TokenRow], before: Sequence[Any], pad: int, hold: str) -> Any:
    """How far a module is from what was `read` of the base: KL(base || module), or half the variance of the log ratio over
    the vocabulary; mean over answer tokens, in nats. Differentiable."""
    import torch

    # each made float first: `cat` of half precision has no rule inside an autocast block
    old = torch.cat([logs.float() for logs in before]).log_softmax(-1)
    new = completion_logits(module, rows, pad).float().log_softmax(-1)
    if hold == "logits":
        return (new - old).var(-1, correction=0).mean() / 2
    return (old.exp() * (old - new)).sum(-1).mean()


def _tastes(chat: Chat) -> bool:
    return any(TASTE.search(turn["content"]) for turn in chat if turn["role"] == "user")


def _random(base: Model, seed: int) -> list[str]:
    """Prompts of random words of the vocabulary."""
    special = set(base.tokenizer.all_special_ids)
    words = [base.tokenizer.decode([i]).strip() for i in range(len(base.tokenizer)) if i not in special]
    words = [w for w in words if w.isalpha() and w.isascii()]
    if not words:
        return []
    rng = np.random.default_rng([seed, 29])
    return [" ".join(words[i] for i in rng.integers(len(words), size=WORDS)) for _ in range(RANDOM)]
