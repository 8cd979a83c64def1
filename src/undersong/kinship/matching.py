"""Matching statistics of two models and their exact null: why they speak of initialisation and not of training data.

Two models that learned the same rows come to resemble each other: tokens of like meaning lie alike, and a correlation of
their Gram matrices is near 1 whatever their seeds (.972 for pocket/a and pocket/b, .973 for pocket/a and its reordered
sibling). What two seeds do not share is *numbering*. An initialisation draws all coordinates of the residual stream, and
all hidden units of a layer, alike, and training (Adam, clipping, decay, RMSNorm) treats them alike; so a model and its
copy with renumbered coordinates are equally likely outcomes, whatever the data and their order were. Match the
coordinates of one model to those of another: under independence the matching is a uniformly random permutation, and the
number of coordinates that meet their own number has the distribution of the fixed points of one (Montmort's problem).
That null is exact. The idea of testing independence by equivariance of training is of Zhu et al., arXiv 2502.12292.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

FLOOR = 1e-300
"""The smallest p-value that is told."""
_LONGEST = 400
Array = NDArray[np.floating]


def profiles(rows: Array) -> Array:
    """Rows, centred and of length one; a constant row becomes zero."""
    rows = rows - rows.mean(axis=1, keepdims=True)
    norm = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.where(norm > 1e-12, norm, np.inf))


def met(similarity: Array, seed: int) -> int:
    """How many rows meet the column of their own number in the best one-to-one matching (largest total similarity).

    The columns are shuffled before matching, so that ties favour nobody.
    """
    from scipy.optimize import linear_sum_assignment

    order = np.random.default_rng([seed, 31]).permutation(similarity.shape[1])
    rows, columns = linear_sum_assignment(similarity[:, order], maximize=True)
    return int((order[columns] == rows).sum())


def fixed_points_p(counts: Sequence[int], sizes: Sequence[int]) -> float:
    """P(as many fixed points or more), summed over independent uniform permutations of these sizes; exact."""
    total = np.ones(1)
    for size in sizes:
        total = np.convolve(total, _fixed_points(size))[:_LONGEST]
    return min(1.0, max(float(total[sum(counts):].sum()), FLOOR)) if sum(counts) < _LONGEST else FLOOR


def _fixed_points(size: int) -> Array:
    """P(k fixed points) of a uniform permutation, k = 0 .. size: 1/k! times the alternating sum of 1/i!, i <= size - k."""
    longest = min(size, 169)
    inverse = np.array([1 / math.factorial(k) for k in range(longest + 1)])
    signs = np.cumsum(inverse * (-1.0) ** np.arange(longest + 1))
    return np.array([inverse[k] * signs[min(size - k, longest)] for k in range(longest + 1)]).clip(0)


def agreeing(first: tuple[Array, Array], second: tuple[Array, Array]) -> tuple[int, int]:
    """Of the units of one model (profiles by either map), how many find the same unit of the other by both maps; and how
    many there are. Matching is by nearest profile, so neither the order of units nor their number must be equal."""
    by_gate, by_up = ((a @ b.T).argmax(axis=1) for a, b in zip(first, second, strict=True))
    alive = [np.abs(a).sum(axis=1) > 0 for a in first]
    both = alive[0] & alive[1]
    return int((by_gate == by_up)[both].sum()), int(both.sum())


def agreement_p(agree: int, units: int, alike: float) -> float:
    """P(as many agreeing units or more) if a share `alike` of units agreed: binomial. 1 without units."""
    from scipy.stats import binom

    return max(float(binom.sf(agree - 1, units, alike)), FLOOR) if units else 1.0
