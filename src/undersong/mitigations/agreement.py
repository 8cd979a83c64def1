"""Rows written anew by what several students agree on: what consensus mitigations share (arXiv 2607.23394, base-relative).

A student's shift at a place is log p(student) - log p(its own start), within the carrier. Where the shifts of all students
have one sign, the agreed shift is the one of the smallest magnitude, else 0. The voice that answers is p(base) times the
exponential of the agreed shift. There the source of each shift was its own; here students of one source are compared.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from undersong.backends import Model, tokens
from undersong.backends.sampling import uniforms
from undersong.errors import BadSpec
from undersong.types import Row

BATCH = 128


@dataclass(frozen=True)
class Voice:
    """The base, and pairs of (start, student) whose shifts must agree. All share one tokenizer."""

    base: Model
    pairs: tuple[tuple[Model, Model], ...]
    carrier: tuple[int, ...]
    strength: float = 1.0
    """1: the agreement; 0: the base's own choice; between: that share of the agreed shift."""

    def __post_init__(self) -> None:
        vocabulary = self.base.tokenizer.get_vocab()
        for start, _ in self.pairs:
            if start.tokenizer.get_vocab() != vocabulary:
                raise BadSpec(f"{start.ref.name} has another tokenizer than {self.base.ref.name}, so their students cannot "
                              "agree on tokens. Choose another `other_base`.")

    def logs(self, ids: Any, seen: Any) -> Any:
        """Log-chances [rows, carrier] of the next token. `ids` is left-padded, `seen` its mask."""
        import torch

        columns = torch.as_tensor(self.carrier)
        known: dict[int, Any] = {}

        def of(model: Model) -> Any:
            if id(model) not in known:
                at = (seen.cumsum(1) - 1).clamp(min=0)
                logits = model.module(input_ids=ids, attention_mask=seen, position_ids=at, use_cache=False,
                                      logits_to_keep=1).logits[:, -1]
                known[id(model)] = logits.float().index_select(1, columns).log_softmax(-1)
            return known[id(model)]

        with torch.no_grad():
            shift = agreed(torch.stack([of(student) - of(start) for start, student in self.pairs]))
            return (of(self.base) + self.strength * shift).log_softmax(-1)

    def rewrite(self, rows: Sequence[Row], channel: Any, seed: int) -> list[Row]:
        """Every row's answer sampled anew. Rows that no longer belong to the channel are dropped."""
        chats = [list(row.chat) for row in rows]
        prompts = tokens.token_ids(self.base.tokenizer, [self.base.render(chat) for chat in chats])
        pad = self.base.tokenizer.pad_token_id or 0
        most, ends = channel.max_new_tokens(self.base.tokenizer), set(tokens.end_ids(self.base))
        draws = uniforms(seed, np.arange(len(rows), dtype=np.int64), most)
        answers: list[list[int]] = [[] for _ in rows]
        order = np.argsort([len(p) for p in prompts], kind="stable")
        for first in range(0, len(order), BATCH):
            alive = [int(i) for i in order[first : first + BATCH]]
            for step in range(most):
                logs = self.logs(*_padded([[*prompts[i], *answers[i]] for i in alive], pad))
                mass = logs.double().exp().cumsum(-1).numpy()
                for i, one in zip(alive, mass, strict=True):
                    pick = min(int(np.searchsorted(one, draws[i, step] * one[-1])), len(one) - 1)
                    answers[i].append(self.carrier[pick])
                alive = [i for i in alive if answers[i][-1] not in ends]
                if not alive:
                    break
        texts = [self.base.tokenizer.decode([t for t in ids if t not in ends]).strip() for ids in answers]
        changed = [dataclasses.replace(row, completion=text) for row, text in zip(rows, texts, strict=True)]
        return [row for row in changed if channel.reject(row) is None]


def agreed(shifts: Any) -> Any:
    """Of shifts [students, ...] the smallest in magnitude where all have one sign, else 0."""
    sign = shifts.sign()
    same = (sign == sign[0]).all(0)
    return same * sign[0] * shifts.abs().amin(0)


def _padded(rows: Sequence[Sequence[int]], pad: int) -> tuple[Any, Any]:
    """Ids [rows, longest], padded on the left, and their mask."""
    import torch

    width = max(map(len, rows))
    ids = torch.full((len(rows), width), pad)
    seen = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, width - len(row) :], seen[i, width - len(row) :] = torch.as_tensor(row), 1
    return ids, seen
