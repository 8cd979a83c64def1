"""Do given answers look like a model's own? An exact test by exchange: answers of one source to one prompt are alike.

Each prompt has the given answer and `m` fresh ones that the model wrote in the same way. If the model wrote the given one
too, the 1 + m are exchangeable, prompt by prompt, whatever the model and whatever is measured on them (Phipson and Smyth
2010 for p-values by drawing). So every statistic below is compared with its values when each prompt's "given" answer is
drawn anew from the 1 + m. Several statistics become one p by the smallest of their p-values, whose own null is the same
drawing (Westfall and Young 1993), so that looking in many ways costs no false alarm.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from undersong.errors import BadRows

Matrix = NDArray[np.float64]
DRAWS = 1999
"""Exchanges drawn; p cannot be below 1 / (DRAWS + 1)."""
_CHUNK = 2**24


@dataclass(frozen=True)
class Typical:
    """What the exchange says. `p` is of all statistics together, `parts` of each one alone."""

    p: float
    parts: dict[str, float]
    z: dict[str, float]
    """The most extreme column of each part, in standard deviations of its exchanges."""
    level: dict[str, float]
    """The value of each part's statistic that `alpha` of exchanges pass, all parts counted."""


@dataclass(frozen=True)
class Measured:
    """One part: columns [prompts, 1 + m, columns], the given answer first. `joint` sums squares over (whitened) columns,
    else the largest counts."""

    values: Matrix
    joint: bool = False


def exchange(parts: Mapping[str, Measured], alpha: float = 0.05, seed: int = 0, draws: int = DRAWS) -> Typical:
    """The exchange test over some parts that were measured on the same prompts. Raises BadRows without a prompt."""
    shapes = {m.values.shape[:2] for m in parts.values()}
    if len(shapes) != 1 or 0 in next(iter(shapes), (0, 0)):
        raise BadRows("There is no prompt with the given answer and a fresh one. Give more rows, or other filters.")
    n, several = next(iter(shapes))
    picks = np.random.default_rng([seed, 23]).integers(several, size=(draws + 1, n))
    picks[0] = 0
    bases = {name: whitened(part) for name, part in parts.items()}
    stats = {name: np.zeros(draws + 1) for name in parts}
    top: dict[str, float] = {}
    step = max(1, _CHUNK // (n * several))
    for start in range(0, draws + 1, step):
        chosen = picks[start : start + step]
        hot = np.zeros((len(chosen), n * several), dtype=np.float32)
        np.put_along_axis(hot, chosen + np.arange(n) * several, 1.0, axis=1)
        for name, part in parts.items():
            z = (hot @ bases[name].astype(np.float32)).astype(np.float64)
            stats[name][start : start + step] = statistic(z, part.joint)
            if start == 0:
                top[name] = float(z[0, np.argmax(abs(z[0]))]) if z.shape[1] else 0.0
    each = {name: _ranks(s) for name, s in stats.items()}
    smallest = np.min(np.stack(list(each.values())), axis=0)
    p = float(np.mean(smallest <= smallest[0] + 1e-12))
    at = float(np.quantile(smallest, alpha))
    level = {name: float(np.quantile(s, 1 - at)) for name, s in stats.items()}
    return Typical(p, {name: float(e[0]) for name, e in each.items()}, top, level)


def statistic(z: Matrix, joint: bool) -> Matrix:
    """[...] from sums in standard deviations [..., columns]."""
    if not z.shape[-1]:
        return np.zeros(z.shape[:-1])
    out: Matrix = (z**2).sum(axis=-1) if joint else abs(z).max(axis=-1)
    return out


def whitened(part: Measured) -> Matrix:
    """[prompts * (1 + m), columns]: deviations from each prompt's mean, scaled so that their sum over prompts, one drawn
    from each, has variance 1; `joint` columns are turned so that they do not vary together."""
    n, several, columns = part.values.shape
    rest = np.nan_to_num(part.values, neginf=-1e4, posinf=1e4)
    rest = (rest - rest.mean(axis=1, keepdims=True)).reshape(n * several, columns)
    if part.joint:
        spread, turn = np.linalg.eigh(rest.T @ rest / several)
        kept = spread > max(1e-9, 1e-7 * float(spread.max(initial=0)))
        return np.asarray(rest @ turn[:, kept] / np.sqrt(spread[kept]))
    size = np.sqrt((rest**2).sum(axis=0) / several)
    return np.asarray(rest[:, size > 1e-9] / size[size > 1e-9])


def _ranks(values: Matrix) -> Matrix:
    """The share of all drawings, each one counted in, that are at least as extreme."""
    rounded = np.round(values, 9)
    ordered = np.sort(rounded)
    out: Matrix = (len(values) - np.searchsorted(ordered, rounded, side="left")) / len(values)
    return out


def power(
    parts: Mapping[str, Measured], strangers: Mapping[str, Matrix], levels: Mapping[str, float], scale: float = 1.0
) -> float:
    """The chance (0..1) that another source's answers are told from the model's own at this size: the largest over parts.

    `strangers` holds the same measures [prompts, columns] of one answer of that source to each prompt. Their squared
    distance, less what chance adds to it and a standard deviation of that, is the noncentrality; it grows with rows, and
    `scale` says how many times as many there are.
    """
    from scipy import stats

    best = 0.0
    for name, part in parts.items():
        every = np.concatenate([strangers[name][:, None], part.values[:, 1:]], axis=1)
        basis = whitened(Measured(every, part.joint))
        z = basis.reshape(*every.shape[:2], -1)[:, 0].sum(axis=0)
        if not len(z):
            continue
        if part.joint:
            extra = scale * max(0.0, float((z**2).sum()) - len(z) - (2 * len(z)) ** 0.5)
            chance = float(stats.ncx2.sf(levels[name], len(z), extra)) if extra else 0.0
        else:
            extra = scale * max(0.0, float((z**2).max()) - 1 - 2 * np.log(len(z)) - 2**0.5)
            chance = float(stats.norm.sf(levels[name] - extra**0.5))
        best = max(best, chance)
    return best
