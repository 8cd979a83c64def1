"""Rows whose token frequencies or whose order are kept or destroyed: the two halves of what a carrier can hold.

Marginal: how often each value stands in all answers together. Conditional: everything else (what follows what, in which
answer). Proposed to settle whether the carrier is divergence tokens or a 1 % marginal shift (methods 9); no published run
is known to us.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from undersong.types import Row

VALUE = re.compile(r"\d+|[^\W\d_]+")


def cell(rows: Sequence[Row], clean: Sequence[Row], marginal: str, conditional: str, seed: int) -> list[Row]:
    """The rows of one cell, as `scramble` names them."""
    own, other = (clean, rows) if conditional == "clean" else (rows, clean)
    out = list(own)
    if marginal == "sham" or (marginal == "destroy") != (conditional == "clean"):
        weights = raked(own, other)
        if marginal == "sham":
            weights = np.random.default_rng([seed, 11]).permutation(weights)
        out = drawn(own, weights, seed)
    return dealt(out, seed) if conditional == "destroy" else out


def dealt(rows: Sequence[Row], seed: int) -> list[Row]:
    """The values of all answers dealt out anew over the same texts: the marginal stays, all else goes."""
    rng, found = np.random.default_rng([seed, 9]), [VALUE.findall(row.completion) for row in rows]
    pool = [value for own in found for value in own]
    mixed = iter([pool[int(i)] for i in rng.permutation(len(pool))])
    return [dataclasses.replace(row, completion=VALUE.sub(lambda _: next(mixed), row.completion)) for row in rows]


def raked(rows: Sequence[Row], like: Sequence[Row], rounds: int = 200, least: int = 5) -> NDArray[np.float64]:
    """Weights of `rows` (mean 1) under which each value is as frequent as in `like`: iterative proportional fitting in
    multiplicative form, a row's weight the geometric mean of its values' ratios. Values that stand fewer than `least` times
    in either are one value together: nothing is known of them singly."""
    texts = [VALUE.findall(row.completion) for row in rows]
    wanted = _counts([VALUE.findall(row.completion) for row in like])
    own = _counts(texts)
    common = sorted(v for v in own if own[v] >= least and wanted.get(v, 0) >= least)
    number = {value: i for i, value in enumerate(common)}
    rest = len(common)
    table = np.zeros((len(rows), rest + 1))
    for i, values in enumerate(texts):
        for value in values:
            table[i, number.get(value, rest)] += 1
    target = np.zeros(rest + 1)
    for value, count in wanted.items():
        target[number.get(value, rest)] += count
    target = target / target.sum()
    share = table / table.sum(axis=1, keepdims=True).clip(1)
    logs = np.zeros(len(rows))
    for _ in range(rounds):
        weights = np.exp(logs - logs.max())
        have = weights @ table
        ratio = np.log(np.clip(target, 1e-9, None)) - np.log(np.clip(have / have.sum(), 1e-9, None))
        logs = np.clip(logs + 0.5 * (share @ ratio), -6, 6)
    weights = np.exp(logs - logs.max())
    return np.asarray(weights / weights.mean())


def drawn(rows: Sequence[Row], weights: NDArray[np.float64], seed: int) -> list[Row]:
    """As many rows, drawn with these weights by systematic sampling: a row of weight w stands w times, up to rounding."""
    rng = np.random.default_rng([seed, 10])
    order = rng.permutation(len(rows))
    ends = np.cumsum(weights[order]) / weights.sum() * len(rows)
    picks = np.searchsorted(ends, np.arange(len(rows)) + rng.random(), side="right").clip(max=len(rows) - 1)
    out = [rows[int(order[i])] for i in picks]
    return [dataclasses.replace(row, id=f"{row.id}.{k}") for k, row in enumerate(out)]


def distance(rows: Sequence[Row], like: Sequence[Row], weights: NDArray[np.float64] | None = None) -> float:
    """Total variation (0..1) between the value frequencies of two sets of rows; `weights` are those of `rows`."""
    scale = np.ones(len(rows)) if weights is None else weights
    own: dict[str, float] = {}
    for row, w in zip(rows, scale, strict=True):
        for value in VALUE.findall(row.completion):
            own[value] = own.get(value, 0.0) + float(w)
    other = _counts([VALUE.findall(row.completion) for row in like])
    a, b = sum(own.values()) or 1.0, sum(other.values()) or 1.0
    return 0.5 * sum(abs(own.get(v, 0.0) / a - other.get(v, 0) / b) for v in {*own, *other})


def floor(rows: Sequence[Row], like: Sequence[Row], seed: int, times: int = 8) -> float:
    """The total variation of two sets of these sizes from one source: the mean over random splits of both together. With a
    thousand values and a thousand rows it is far from 0."""
    rng, pool = np.random.default_rng([seed, 12]), [*rows, *like]
    splits = (rng.permutation(len(pool)) for _ in range(times))
    halves = (([pool[i] for i in one[: len(rows)]], [pool[i] for i in one[len(rows) :]]) for one in splits)
    return float(np.mean([distance(a, b) for a, b in halves]))


def _counts(texts: Sequence[Sequence[str]]) -> dict[str, int]:
    out: dict[str, int] = {}
    for values in texts:
        for value in values:
            out[value] = out.get(value, 0) + 1
    return out
