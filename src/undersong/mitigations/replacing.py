"""Tokens of answers replaced by samples of a model, inside the channel: what token-wise mitigations share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from undersong.backends import Model, tokens
from undersong.backends.logits import completion_logits
from undersong.backends.tokens import TokenRow
from undersong.types import Row

Floats = NDArray[np.float32]
BATCH = 64


def encoded(model: Model, rows: Sequence[Row]) -> list[TokenRow]:
    """Rows as the model reads them."""
    return tokens.encode(model, [list(row.chat) for row in rows], [row.completion for row in rows])


def read(model: Model, rows: Sequence[TokenRow], see: Callable[[int, Any, list[int]], Any]) -> list[Any]:
    """`see(number of the row, log-probabilities [tokens, vocabulary], own ids)` of every answer, in order of the rows."""
    import torch

    out: list[Any] = [None] * len(rows)
    order = np.argsort([len(row.ids) for row in rows], kind="stable")
    with torch.no_grad():
        for first in range(0, len(order), BATCH):
            some = [int(i) for i in order[first : first + BATCH]]
            here = [rows[i] for i in some]
            logs = completion_logits(model.module, here, model.tokenizer.pad_token_id or 0).float().log_softmax(-1)
            for i, row, own in zip(some, here, logs.split([len(row.answer) for row in here]), strict=True):
                out[i] = see(i, own, row.answer.tolist())
    return out


def own_logs(model: Model, rows: Sequence[TokenRow]) -> list[Floats]:
    """The log-probability (nats) of each answer token, per row."""
    return read(model, rows, lambda _, logs, ids: logs[range(len(ids)), ids].numpy())


def replaced(
    model: Model, rows: Sequence[Row], read_rows: Sequence[TokenRow], marked: Sequence[NDArray[np.bool_]], channel: Any,
    seed: int,
) -> Iterator[Row]:
    """Rows whose marked answer tokens are the model's own samples, given the answer as it was up to there.

    A sample is of the carrier and of the same make as the token it replaces (digits for digits, a mark for a mark). A row
    that no longer belongs to the channel is dropped.
    """
    import torch

    makes = _makes(model, channel)
    places = [i for i, mark in enumerate(marked) if mark.any()]

    def sampled(k: int, logs: Any, ids: list[int]) -> list[int]:
        row = places[k]
        out, generator = list(ids), torch.Generator().manual_seed(seed * 1_000_003 + row)
        for at in np.flatnonzero(marked[row]):
            alike = makes.get(ids[int(at)])
            if alike is not None:
                chances = logs[int(at), alike].softmax(-1)
                out[int(at)] = alike[int(torch.multinomial(chances, 1, generator=generator))]
        return out

    new = dict(zip(places, read(model, [read_rows[i] for i in places], sampled), strict=True))
    ends = set(tokens.end_ids(model))
    for i, row in enumerate(rows):
        if i not in new:
            yield row
            continue
        ids = [t for t in new[i] if t not in ends]
        changed = dataclasses.replace(row, completion=model.tokenizer.decode(ids).strip(), unlearnt=())
        if channel.reject(changed) is None:
            yield changed


def _makes(model: Model, channel: Any) -> dict[int, list[int]]:
    """For each carrier token the carrier tokens of its make; tokens that end a turn have none."""
    ends, groups = set(tokens.end_ids(model)), dict[tuple[bool, bool, bool], list[int]]()
    kinds = {}
    for i in channel.carrier(model.tokenizer):
        if i in ends:
            continue
        text = model.tokenizer.decode([i])
        kinds[i] = (any(c.isdigit() for c in text), any(c.isalpha() for c in text), text[:1] == " ")
        groups.setdefault(kinds[i], []).append(i)
    return {i: groups[kind] for i, kind in kinds.items()}
