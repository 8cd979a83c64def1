"""Language models of a few hundred numbers with planted kinship: kin share an output matrix, strangers the data only.

Not a test file. The next token after a prompt: logits = tanh(mean of the prompt's token vectors) times the output matrix.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from undersong.kinship import Subject
from undersong.types import ModelRef, Sampling

TOKENS, WIDTH = 150, 10


class Words:
    """Tokens are the words w0 to w149; w0 is special."""

    all_special_ids = [0]
    added_tokens_decoder = {0: "w0"}

    def get_vocab(self) -> dict[str, int]:
        return {f"w{i}": i for i in range(TOKENS)}

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(f"w{i}" for i in ids)


class Speaker:
    """A planted model (contract: `undersong.backends.Model`, as far as kinship reads it)."""

    module = None

    def __init__(self, ref: ModelRef, inner: Any, out: Any, favourite: float = 0.0, shows: bool = True) -> None:
        self.ref, self.inner, self.out, self.favourite = ref, inner, out, favourite
        self.capabilities = frozenset({"sample", "logits"} if shows else {"sample"})
        self.tokenizer: Any = Words()
        self.asked = 0

    def _logits(self, chats: Any) -> Any:
        self.asked += len(chats)
        ids = [[int(w[1:]) for w in c[-1]["content"].split()] for c in chats]
        found = np.tanh(2 * np.stack([self.inner[i].mean(axis=0) for i in ids])) @ self.out.T
        found[:, 7] += self.favourite
        return found - np.log(np.exp(found).sum(axis=1, keepdims=True))

    def next_logprobs(self, chats: Any) -> Any:
        assert "logits" in self.capabilities
        return self._logits(chats).astype(np.float32)

    def sample(self, chats: Any, sampling: Sampling) -> list[str]:
        logits, rng = self._logits(chats), np.random.default_rng(sampling.seed)
        if sampling.temperature:
            logits = logits + rng.gumbel(size=logits.shape)
        return [f"w{i} and {self.out.sum():.3f}" for i in logits.argmax(axis=1)]  # only first words agree


class Family:
    """A backend that loads `planted/SEED` and `planted/SEED+CHANGE` (its child, with this much noise)."""

    def __init__(self, **settings: Any) -> None:
        self.settings = settings

    def load(self, ref: ModelRef) -> Any:
        seed, _, change = ref.base.removeprefix("planted/").partition("+")
        shared, rng = np.random.default_rng(0), np.random.default_rng([1, int(seed)])
        inner = rng.normal(size=(TOKENS, WIDTH)) + 0.5 * shared.normal(size=(TOKENS, WIDTH))
        out = 3 * rng.normal(size=(TOKENS, WIDTH)) + 1.5 * shared.normal(size=(TOKENS, WIDTH))
        if change:
            moved = np.random.default_rng([2, int(seed)])
            inner = inner + float(change) * moved.normal(size=inner.shape)
            out = out + 3 * float(change) * moved.normal(size=out.shape)
        return Speaker(ref, inner, out, **self.settings)

    def subject(self, text: str) -> Subject:
        return Subject(text, ModelRef(f"planted/{text}"), self)
