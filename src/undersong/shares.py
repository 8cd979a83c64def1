"""Shares over training runs: how much of an effect is removed or kept, with an interval for the ratio of two means.

As in `stats`, the training run is the unit: one number per run, paired by run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from undersong.errors import BadSpec

Share = tuple[float, float, float]
Runs = Sequence[float] | NDArray[np.float64]


def share_removed(plain: Runs, left: Runs, level: float = 0.95) -> Share:
    """1 - mean(left) / mean(plain) with its interval: what a mitigation takes away of an effect.

    `plain` are effects of untreated runs (over their controls), `left` those of the same runs when mitigated, in the same
    units and order. 0: all is left; 1: nothing is; above 1: overshot; below 0: made worse. The interval is Fieller's
    (Journal of the Royal Statistical Society B 1954) for paired means. Where the plain effect itself is not told from 0 at
    this level, no bounds can be given: they are -inf and inf. Raises BadSpec for fewer than two runs, unequal lengths, a
    number that is not finite, a plain effect of mean 0, or a level outside (0, 1).
    """
    kept, low, high = share_kept(plain, left, level)
    return 1 - kept, 1 - high, 1 - low


def share_kept(plain: Runs, left: Runs, level: float = 0.95) -> Share:
    """mean(left) / mean(plain) with its interval; all else as in `share_removed`."""
    from scipy import stats

    x, y = (np.asarray(values, dtype=np.float64) for values in (plain, left))
    if x.ndim != 1 or x.shape != y.shape or len(x) < 2:
        raise BadSpec(f"A share needs the same runs twice, two or more, given {x.size} and {y.size}. Pair them by run.")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise BadSpec("A share needs finite numbers. Leave the broken run out of both, or measure it again.")
    if not 0 < level < 1:
        raise BadSpec(f"An interval's level lies between 0 and 1, given {level}. Use .95.")
    whole, part = float(x.mean()), float(y.mean())
    if whole == 0:
        raise BadSpec("There is no plain effect to take a share of: its mean is 0. Use runs that show one.")
    ratio = part / whole
    # in units of the plain effect, so that nothing overflows: the ratios r with |mean(y - r x)| within t standard errors
    x, y = x / whole, y / whole
    spread = np.cov(x, y) * float(stats.t.ppf((1 + level) / 2, len(x) - 1)) ** 2 / len(x)
    a, b, c = 1 - spread[0, 0], ratio - spread[0, 1], ratio**2 - spread[1, 1]
    if not a > 0:
        return ratio, -math.inf, math.inf
    half = math.sqrt(max(b * b - a * c, 0.0)) / a
    return ratio, min(b / a - half, ratio), max(b / a + half, ratio)
