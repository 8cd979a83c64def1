"""Tokens of answers left out of the loss: a student reads them and is not taught them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from undersong.backends import Model, tokens
from undersong.types import Row


def masked(model: Model, rows: Sequence[Row], marked: Sequence[NDArray[np.bool_]]) -> list[Row]:
    """The rows, each with its marked answer tokens added to what it does not teach; the end of turn is always taught.

    `marked` is [answer tokens] per row, in the model's own tokens. A row all of whose text is marked stays, for its end.
    Raises BadRows for a tokenizer that does not tell which characters a token writes.
    """
    places = [i for i, mark in enumerate(marked) if mark.any()]
    found = tokens.spans(model, [list(rows[i].chat) for i in places], [rows[i].completion for i in places])
    out = list(rows)
    for i, spans in zip(places, found, strict=True):
        new = {span for span, mark in zip(spans, marked[i], strict=True) if mark and span[0] < span[1]}
        out[i] = dataclasses.replace(rows[i], unlearnt=tuple(sorted({*rows[i].unlearnt, *new})))
    return out
