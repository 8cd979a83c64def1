"""Statistics over training runs: intervals, contrasts, specificity, multiplicity, power and calibration.

The training run is the unit of replication: every function here takes ONE NUMBER PER RUN, never one per answer.
Answers of one run share a seed and its accidents; a test that counts them as independent finds effects that are not
there (`tests/invariants/test_nulls.py` shows how many).
"""

from __future__ import annotations

import math
import warnings
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from undersong.errors import BadSpec, MissingExtra
from undersong.types import Contrast

Floats = NDArray[np.float64]
Runs = Sequence[float] | Floats
Bounds = tuple[float, float]
MOST_ARRANGEMENTS = 200_000
"""A permutation test of means is exact up to this many arrangements (that of λ, which is faster, up to five times)."""
DRAWS = 20_000
"""Arrangements drawn by a Monte Carlo permutation test."""


@dataclass(frozen=True)
class RunLifts:
    """One training run's row of the trait matrix: the lift over base of each measured trait, in the metric's units."""

    run: str
    trait: str
    """The trait of the run's teacher."""
    lifts: Mapping[str, float]


Lifts = RunLifts | Mapping[str, Any]
"""A `RunLifts`, or a mapping with its keys `run`, `trait` and `lifts`."""


@dataclass(frozen=True)
class Specificity:
    """How much more a trait rises under its own teacher than rows and columns explain; same units as the lifts."""

    lambda_: float
    low: float
    high: float
    p: float
    traits: tuple[str, ...]
    n_runs: int
    method: str


def mean_interval(
    values: Runs, level: float = 0.95, bounds: Bounds | None = (0.0, 1.0)
) -> tuple[float, float, float]:
    """The mean over runs and its interval: (mean, low, high), always inside `bounds`, always containing the mean.

    Runs that differ: Student's t-interval (n - 1 degrees of freedom), cut at the bounds. Runs that are all equal say
    nothing about the spread between runs, so a t-interval would claim certainty. Within bounds the interval is then
    Clopper and Pearson's (Biometrika 1934) with n trials and n x mean successes. Any variable in [0, 1] varies at most
    as much as a yes-or-no one of the same mean (Bhatia and Davis, American Mathematical Monthly 2000), so it is the
    cautious choice: five runs at exactly 0 give [0, .52], the rule of three over runs. Without bounds equal runs leave
    no more to say than low = high = mean. An untrained base is one model, not several runs: print it without interval.

    Raises BadSpec for fewer than two runs, a value that is not finite or outside the bounds, or a level outside (0, 1).
    """
    from scipy import stats

    x = _runs(values, "An interval", bounds)
    if not 0 < level < 1:
        raise BadSpec(f"An interval's level lies between 0 and 1, given {level}. Use .95.")
    n, mean, tail = len(x), float(np.mean(x)), (1 - level) / 2
    least, most = bounds or (-math.inf, math.inf)
    mean = min(max(mean, least), most)
    if bounds is None or not _constant(x):
        half = 0.0 if _constant(x) else float(stats.t.ppf(1 - tail, n - 1) * stats.sem(x))
        return mean, max(least, mean - half), min(most, mean + half)
    share = (mean - least) / (most - least)
    low = float(stats.beta.ppf(tail, n * share, n - n * share + 1)) if share > 0 else 0.0
    high = float(stats.beta.ppf(1 - tail, n * share + 1, n - n * share)) if share < 1 else 1.0
    return mean, min(mean, least + low * (most - least)), max(mean, least + high * (most - least))


def binomial_interval(k: int, n: int, level: float = 0.95) -> tuple[float, float, float]:
    """Clopper and Pearson's exact interval of a pooled count: (k / n, low, high).

    For things that are independent of one another (rows dropped by a filter, null audits that alarmed), not for the
    answers of a few training runs. Raises BadSpec unless 0 <= k <= n and n >= 1.
    """
    from scipy import stats

    if not (n >= 1 and 0 <= k <= n):
        raise BadSpec(f"A count needs 0 <= k <= n and n of at least 1, given k = {k} and n = {n}. Count again.")
    interval = stats.binomtest(k, n).proportion_ci(level, method="exact")
    return k / n, float(interval.low), float(interval.high)


def contrast(
    treated: Runs, control: Runs, paired: bool = False, bounds: Bounds | None = (-1.0, 1.0), level: float = 0.95
) -> Contrast:
    """Treated runs against control runs: Welch's t (paired: Student's t on the differences by seed).

    `bounds` is the possible range of the difference, (-1, 1) for rates; None for a metric without limits. The interval
    is cut at them. Where no run differs from another in its arm (paired: no difference from another) there is no t: p
    is then the permutation p, and the interval joins the arms' `mean_interval`s by the method of variance estimates
    recovery (Zou and Donner, Statistics in Medicine 2008). `paired` is right only when both arms used the same seeds,
    in the same order.

    Raises BadSpec for fewer than two runs in an arm, unequal lengths when paired, or a difference outside `bounds`.
    """
    from scipy import stats

    x, y = _arms(treated, control, paired)
    difference = float(np.mean(x - y)) if paired else float(np.mean(x) - np.mean(y))
    if bounds is not None and not bounds[0] - 1e-9 <= difference <= bounds[1] + 1e-9:
        raise BadSpec(f"The difference {difference:g} is outside {bounds}. Pass bounds=None for an unlimited metric.")
    if paired and _constant(x - y):
        p, how = permutation_p(x, y, paired=True), "equal differences by seed: sign-flip permutation"
        low, high = mean_interval(x - y, level, bounds)[1:]
    elif not paired and _constant(x) and _constant(y):
        p, how = permutation_p(x, y), "equal runs in each arm: permutation"
        low, high = _join(x, y, level, bounds)
    else:
        with warnings.catch_warnings():  # scipy warns when one of the two arms is constant, which Welch's t allows
            warnings.simplefilter("ignore", RuntimeWarning)
            result = stats.ttest_rel(x, y) if paired else stats.ttest_ind(x, y, equal_var=False)
            interval = result.confidence_interval(level)
        p, low, high = float(result.pvalue), float(interval.low), float(interval.high)
        how = "Student t on differences by seed" if paired else "Welch t over runs"
    if bounds is not None:
        difference, low, high = (min(max(v, bounds[0]), bounds[1]) for v in (difference, low, high))
    return Contrast(difference, min(low, difference), max(high, difference), p, len(x), len(y), how)


def _arms(treated: Runs, control: Runs, paired: bool) -> tuple[Floats, Floats]:
    x, y = _runs(treated, "A contrast"), _runs(control, "A contrast")
    if paired and len(x) != len(y):
        raise BadSpec(f"A paired contrast needs the same seeds in both arms, given {len(x)} and {len(y)}. Do not pair.")
    return x, y


def _join(x: Floats, y: Floats, level: float, bounds: Bounds | None) -> tuple[float, float]:
    """The interval of a difference of means from the two means' own intervals (Zou and Donner 2008, equation 2)."""
    own = None if bounds is None else (0.0, (bounds[1] - bounds[0]) / 2)
    if own and not (own[0] <= min(x.min(), y.min()) and max(x.max(), y.max()) <= own[1]):
        own = None  # values of an unknown range: nothing is known beyond the equal runs
    (a, a_low, a_high), (b, b_low, b_high) = mean_interval(x, level, own), mean_interval(y, level, own)
    return a - b - math.hypot(a - a_low, b_high - b), a - b + math.hypot(a_high - a, b - b_low)


def permutation_p(treated: Runs, control: Runs, paired: bool = False, seed: int = 0) -> float:
    """Two-sided permutation p of the difference of means over runs; paired: sign flips of the differences by seed.

    Exact up to 200,000 arrangements; above, 20,000 seeded draws with the +1 correction (Phipson and Smyth 2010), so
    that p is never 0. With n runs per arm p cannot be below 2 / C(2n, n) (paired: 2 / 2^n).
    Raises BadSpec for fewer than two runs in an arm or unequal lengths when paired.
    """
    from scipy import stats

    x, y = _arms(treated, control, paired)
    arrangements = 2 ** len(x) if paired else math.comb(len(x) + len(y), len(x))

    def distance(a: Floats, b: Floats, axis: int) -> Floats:
        return np.asarray(np.abs(np.mean(a, axis=axis) - np.mean(b, axis=axis)))

    result = stats.permutation_test(
        (x, y), distance, permutation_type="samples" if paired else "independent", vectorized=True, batch=DRAWS,
        n_resamples=arrangements if arrangements <= MOST_ARRANGEMENTS else DRAWS, alternative="greater",
        rng=np.random.default_rng(seed),
    )
    return float(result.pvalue)


def specificity(
    matrix_runs: Sequence[Lifts], bounds: Bounds | None = None, level: float = 0.95, seed: int = 0
) -> Specificity:
    """The specificity coefficient λ of `lift[run of teacher i, measured j] = row_i + col_j + λ·1[i = j]`.

    Rows absorb teachers that raise everything, columns traits that every teacher raises; λ is what is left for a trait
    under its own teacher (repository rain-1/subliminal-learning-scaling-law). The matrix is square over taught traits.
    Interval: least squares with run-clustered errors, t with (runs - 1) degrees of freedom, cut at `bounds` when given
    ((-1, 1) is right for lifts of rates). p: two-sided, by permutation of the teachers' labels over runs, exact up to
    a million arrangements. λ ignores any constant added to a run, so row effects do not disturb the permutation.

    Raises BadSpec for fewer than two taught traits, fewer than two runs of one, a repeated run, or a lift that is
    missing or not finite; MissingExtra without statsmodels.
    """
    names, taught, lifts = _matrix(matrix_runs)
    counts = np.bincount(taught, minlength=len(names))
    scores = lifts @ _weights(counts).T  # [run, trait]: what a run adds to λ if its teacher's trait were this one
    lambda_ = float(scores[np.arange(len(taught)), taught].sum())
    low, high = _clustered(taught, lifts, level)
    if bounds is not None:
        low, high = min(max(low, bounds[0]), lambda_), max(min(high, bounds[1]), lambda_)
    arrangements = math.factorial(len(taught)) // math.prod(math.factorial(int(c)) for c in counts)
    if arrangements <= 5 * MOST_ARRANGEMENTS:
        null = _exact_sums(scores, [int(c) for c in counts])
        count, own, name = arrangements, 0, "exact permutation"
    else:
        drawn = np.random.default_rng(seed).permuted(np.tile(taught, (DRAWS, 1)), axis=1)
        null = scores[np.arange(len(taught)), drawn].sum(axis=1)
        count, own, name = DRAWS, 1, "Monte Carlo permutation"  # the observed arrangement counts as one of its own null
    slack = 1e-10 * np.abs(scores).sum()  # arrangements that tie with the observed one count, whatever the rounding
    p = float(own + np.sum(np.abs(null) >= abs(lambda_) - slack)) / (count + own)
    method = (
        f"least squares on row + column + diagonal, clustered by run, t with {len(taught) - 1} df; "
        f"{name} of teacher labels over runs ({count} arrangements; p cannot be below 1/{count + own})"
    )
    return Specificity(lambda_, low, high, p, names, len(taught), method)


def _matrix(matrix_runs: Sequence[Lifts]) -> tuple[tuple[str, ...], NDArray[np.int64], Floats]:
    """Taught trait names (sorted), each run's index into them, and lifts [run, trait]. Raises BadSpec."""
    try:
        runs = [r if isinstance(r, RunLifts) else RunLifts(r["run"], r["trait"], r["lifts"]) for r in matrix_runs]
    except KeyError as error:
        raise BadSpec(f"A run of the trait matrix has no {error}. Give each one `run`, `trait` and `lifts`.") from None
    names = tuple(sorted({r.trait for r in runs}))
    if len({r.run for r in runs}) != len(runs):
        raise BadSpec("The same run appears twice in the trait matrix. Give each training run once, with all lifts.")
    few = [n for n in names if sum(r.trait == n for r in runs) < 2]
    if len(names) < 2 or few:
        found = f"only one run for {', '.join(few)}" if few else f"{len(names)} trait(s)"
        raise BadSpec(f"Specificity needs two taught traits and two runs of each, found {found}. Add seeds or a rival.")
    missing = sorted({(r.run, n) for r in runs for n in names if n not in r.lifts})
    if missing:
        run, trait = missing[0]
        raise BadSpec(f"Run {run!r} has no lift for {trait!r}. Measure every taught trait in every run.")
    lifts = np.array([[float(r.lifts[n]) for n in names] for r in runs])
    if not np.isfinite(lifts).all():
        raise BadSpec("A lift is not a finite number. Leave the broken run out or measure it again.")
    return names, np.array([names.index(r.trait) for r in runs]), lifts


def _weights(counts: NDArray[np.int64]) -> Floats:
    """W [teacher trait, measured trait] with λ = Σ over runs of W[its trait]·its lifts.

    Frisch and Waugh: the diagonal less what columns and rows explain of it (a column's share of the runs, which leaves
    every row summing to 0), over its sum of squares over runs.
    """
    diagonal = np.eye(len(counts)) - counts / counts.sum()
    return np.asarray(diagonal / (counts[:, None] * diagonal**2).sum())


def _clustered(taught: NDArray[np.int64], lifts: Floats, level: float) -> tuple[float, float]:
    """The interval of λ by least squares with run-clustered errors (statsmodels), t with G - 1 degrees of freedom."""
    api = _statsmodels("statsmodels.api")
    runs, traits = lifts.shape
    row, column = np.repeat(taught, traits), np.tile(np.arange(traits), runs)
    design = np.column_stack([
        row == column, np.ones(runs * traits),
        *(row == i for i in range(1, traits)), *(column == j for j in range(1, traits)),
    ]).astype(float)
    groups = {"groups": np.repeat(np.arange(runs), traits)}
    fit = api.OLS(lifts.ravel(), design).fit(cov_type="cluster", cov_kwds=groups, use_t=True)
    return tuple(fit.conf_int(alpha=1 - level)[0].tolist())


def _exact_sums(scores: Floats, counts: list[int]) -> Floats:
    """Σ scores[run, label] for every arrangement of labels over runs, label t used counts[t] times."""
    chosen = np.array(list(combinations(range(len(scores)), counts[0])))
    if len(counts) == 2:  # the last two labels at once: what the first does not take, the second does
        return np.asarray(scores[:, 1].sum() + (scores[:, 0] - scores[:, 1])[chosen].sum(axis=1))
    rest: list[Floats] = [_exact_sums(np.delete(scores, first, axis=0)[:, 1:], counts[1:]) for first in chosen]
    return np.asarray(np.hstack(rest) + np.repeat(scores[chosen, 0].sum(axis=1), len(rest[0])))


def holm(pvalues: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values (family-wise error; Scandinavian Journal of Statistics 1979), in the order given.

    Raises BadSpec for a p outside 0..1; MissingExtra without statsmodels.
    """
    p = _pvalues(pvalues)
    return _statsmodels("statsmodels.stats.multitest").multipletests(p, method="holm")[1].tolist() if p else []


def benjamini_hochberg(pvalues: Sequence[float]) -> list[float]:
    """Benjamini and Hochberg's adjusted p-values (false discovery rate; JRSS B 1995), in the order given.

    Raises BadSpec for a p outside 0..1.
    """
    from scipy import stats

    p = _pvalues(pvalues)
    return stats.false_discovery_control(p, method="bh").tolist() if p else []


def _pvalues(values: Sequence[float]) -> list[float]:
    found = [float(v) for v in values]
    if not all(0 <= v <= 1 for v in found):
        raise BadSpec("A p-value must lie between 0 and 1. Leave out the comparisons that gave none.")
    return found


def power(effect: float, sd: float, n: int, alpha: float = 0.05, paired: bool = False) -> float:
    """The chance that a two-sided t-test over `n` runs per arm finds a true difference `effect` (same units as `sd`).

    `sd` is the spread between runs of one arm; when `paired`, that of the differences by seed.
    Raises BadSpec for sd <= 0, n < 2 or alpha outside (0, 1).
    """
    if not (sd > 0 and math.isfinite(sd) and math.isfinite(effect) and n >= 2 and 0 < alpha < 1):
        raise BadSpec(
            f"Power needs sd > 0, n >= 2 and alpha in (0, 1), given effect {effect}, sd {sd}, n {n}, alpha {alpha}. "
            "Take the sd between runs from a pilot experiment."
        )
    from scipy import stats

    tools = _statsmodels("statsmodels.stats.power")
    size, df = abs(effect) / sd, n - 1 if paired else 2 * n - 2
    shift = size * math.sqrt(n if paired else n / 2)
    test = tools.TTestPower() if paired else tools.TTestIndPower()
    # far out the wrong tail overflows to nan, where it is nothing; then the right one, where only the sd is uncertain
    for level, side in ((alpha, "two-sided"), (alpha / 2, "larger")):
        found = float(test.power(size, n, level, alternative=side))
        if not math.isnan(found):
            return found
    return float(stats.chi2.cdf(df * (shift / stats.t.ppf(1 - alpha / 2, df)) ** 2, df))


_power = power


def runs_needed(effect: float, sd: float, power: float = 0.8, alpha: float = 0.05, paired: bool = False) -> int:
    """The fewest runs per arm (at least 2) that find a true difference `effect` with this power.

    `effect` and `sd` as in `power`. Raises BadSpec for an effect of 0, a power outside (alpha, 1), or a need above a
    million runs.
    """
    if effect == 0 or not alpha < power < 1:
        raise BadSpec(f"No number of runs finds an effect of {effect} with power {power}. Name others.")
    found = 2 + bisect_left(range(2, 1_000_000), power, key=lambda n: _power(effect, sd, n, alpha, paired))
    if found == 1_000_000:
        raise BadSpec(f"An effect of {effect} at sd {sd} needs more than a million runs. Look for a larger effect.")
    return found


def calibrate(statistic: float, null_statistics: Sequence[float]) -> float:
    """The conformal p-value (1 + #{null >= statistic}) / (n + 1); large statistics are evidence.

    Valid when statistic and nulls are exchangeable (Vovk, Gammerman and Shafer 2005, chapter 2). Never 0: with n nulls
    it cannot be below 1 / (n + 1). Raises BadSpec without nulls or when a statistic is not a number.
    """
    null = np.asarray(null_statistics, dtype=np.float64)
    if not null.size or np.isnan(null).any() or math.isnan(statistic):
        raise BadSpec("Calibration needs null statistics without NaN. Run the detector on clean placebo students.")
    return float((1 + np.sum(null >= statistic)) / (null.size + 1))


def false_alarm_rate(null_ps: Sequence[float], alpha: float = 0.05) -> tuple[float, float, float]:
    """The share of clean cases with p <= alpha and its Clopper-Pearson interval: (rate, low, high)."""
    p = _pvalues(null_ps)
    if not p:
        raise BadSpec("A false-alarm rate needs the p-values of clean cases. Audit placebo students first.")
    return binomial_interval(sum(v <= alpha for v in p), len(p))


def derangement(n: int, seed: int) -> tuple[int, ...]:
    """A permutation of 0..n-1 without a fixed point, uniform among them: partners for a truly crossed control.

    Raises BadSpec for n < 2, where there is none.
    """
    if n < 2:
        raise BadSpec(f"A crossed control needs two things or more to cross, given {n}. Add a seed or a trait.")
    rng = np.random.default_rng(seed)
    while True:  # one permutation in e has no fixed point, whatever n
        order = rng.permutation(n)
        if not (order == np.arange(n)).any():
            return tuple(int(i) for i in order)


def _runs(values: Runs, what: str, bounds: Bounds | None = None) -> Floats:
    """One finite number per run as an array [run]. Raises BadSpec with what to do."""
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or len(x) < 2:
        raise BadSpec(f"{what} needs runs: two or more, one number each, given {x.size}. Add seeds.")
    if not np.isfinite(x).all():
        raise BadSpec(f"{what} needs finite numbers. Leave the broken run out or measure it again.")
    if bounds is not None and (x.min() < bounds[0] - 1e-9 or x.max() > bounds[1] + 1e-9):
        raise BadSpec(f"A run's value lies outside {bounds}. Pass bounds=None for an unlimited metric.")
    return x


def _constant(x: Floats) -> bool:
    return float(np.ptp(x)) <= 1e-12 * max(1.0, float(np.abs(x).max()))


def _statsmodels(module: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise MissingExtra("This statistic needs statsmodels. Run: pip install 'undersong[local]'") from error
