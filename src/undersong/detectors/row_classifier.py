"""The `row_classifier` detector: can a classifier tell suspected rows from clean ones of the same kind?

Rows of numbers are canonicalised to their values, because formats leak (the bag-of-K classifiers of the repository
AanshSamyani/subliminal_trait_classifier do so too). Beside it stands the same classifier on exactly what was dropped.
1. Row features: how often each value, first digit and last digit occurs in the row; the value at each place.
   Confound features: how many numbers, how long a text, which separators and brackets; nothing of the values.
2. Logistic regression, trained on all runs but one suspected and one clean run, tested on these two; for each pair.
3. Accuracy is the mean of the two runs' shares of rows put right (chance is 0.5), one figure per pair of runs. A bag
   of `bag` rows is judged by the sum of its rows' log-odds.
4. The p-value relabels whole runs, exactly when there are few enough relabellings: the run is the unit, not the row.
   Suspected and clean runs that share prompts make it cautious, never bold.

Blind spots: a single file: it compares whole runs, and needs several on both sides from sources that differ in nothing
else. It names no trait, and it sees values and places, not which value follows which prompt.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from undersong.detectors import Evidence, Runs
from undersong.detectors.canonical import confound_features, value_features
from undersong.errors import BadRows
from undersong.registry import Settings, plugin
from undersong.types import Finding, Row

Matrix = NDArray[np.float64]


@plugin("detector", "row_classifier")
class RowClassifier(Settings):
    """Tell suspected rows from clean rows, run by run."""

    needs: ClassVar[frozenset[str]] = frozenset({"rows", "reference"})
    permutes: ClassVar[bool] = True

    rows_per_run: int = Field(default=500, ge=8)
    """At most so many rows of each run are read, drawn by the seed."""
    bag: int = Field(default=8, ge=1)
    """How many rows of one run are judged together for the bag accuracy."""
    strength: float = Field(default=0.1, gt=0)
    """Inverse of the L2 penalty (scikit-learn's C)."""
    permutations: int = Field(default=252, ge=0)
    """The most relabellings of runs for the p-value (252: exact for five runs against five); 0: no p-value."""
    alpha: float = Field(default=0.05, gt=0, lt=1)
    """The false-alarm rate at which the verdict is `found`."""

    def detect(self, evidence: Evidence, seed: int = 0) -> Finding:
        """Finding with the single-row accuracy (0..1) as its statistic. Details hold `accuracy`, `low`, `high`,
        `confound_accuracy`, `confound_low`, `confound_high`, `bag_accuracy`, `chance`, `n_rows`, `n_runs` (pairs)
        and the accuracies of each pair.

        Raises BadRows when either side has fewer than two runs, a run is empty or holds no number.
        """
        suspected = self._draw(evidence.rows, seed, "suspected rows")
        clean = self._draw(evidence.reference, seed, "reference rows")
        runs = [*suspected, *clean]
        labels = (True,) * len(suspected) + (False,) * len(clean)
        values, confounds = _scaled([value_features(r) for r in runs]), _scaled([confound_features(r) for r in runs])
        single, bags = self._accuracies(values, labels)
        confound, _ = self._accuracies(confounds, labels)
        p, tried, least = self._p_value(values, labels, float(np.mean(single)), seed)
        low, high = interval(single)
        confound_low, confound_high = interval(confound)
        # a p-value that could not have been small says nothing about clean rows
        verdict = "unknown" if p is None or least > self.alpha else "found" if p <= self.alpha else "clean"
        return Finding(
            verdict=verdict, statistic=float(np.mean(single)), p=p, access=tuple(sorted(self.needs)),
            null="uncalibrated" if p is None else f"labels of whole runs permuted ({tried} relabellings)",
            details={
                "accuracy": float(np.mean(single)), "low": low, "high": high, "chance": 0.5, "n_runs": len(single),
                "n_rows": sum(map(len, runs)), "false_alarm_rate": None if p is None else self.alpha,
                "confound_accuracy": float(np.mean(confound)), "confound_low": confound_low,
                "confound_high": confound_high, "bag": self.bag, "bag_accuracy": float(np.mean(bags)),
                "accuracies": single, "confound_accuracies": confound, "bag_accuracies": bags,
            },
        )

    def _draw(self, runs: Runs, seed: int, side: str) -> list[list[Row]]:
        if len(runs) < 2:
            raise BadRows(
                f"The row classifier was given {len(runs)} run(s) of {side}, and it tests on runs it has not seen. "
                "Give at least two."
            )
        drawn = []
        for i, rows in enumerate(runs):
            if not any(re.search(r"[0-9]", row.completion) for row in rows):
                raise BadRows(f"Run {i + 1} of {side} holds no number, and nothing else is read. Leave this run out.")
            keep = np.sort(np.random.default_rng([seed, i]).permutation(len(rows))[: self.rows_per_run])
            every = list(rows)
            drawn.append([every[j] for j in keep])
        return drawn

    def _accuracies(self, runs: Sequence[Any], labels: Sequence[bool]) -> tuple[list[float], list[float]]:
        """Single-row and bag accuracy of each held-out pair of runs, in the order of the runs."""
        from scipy.sparse import vstack
        from sklearn.linear_model import LogisticRegression

        suspected = [i for i, label in enumerate(labels) if label]
        clean = [i for i, label in enumerate(labels) if not label]
        single, bags = [], []
        for pair in zip(suspected, clean, strict=False):
            train = [i for i in range(len(runs)) if i not in pair]
            x = vstack([runs[i] for i in train], format="csr")
            y = np.concatenate([np.full(runs[i].shape[0], labels[i]) for i in train])
            model = LogisticRegression(C=self.strength, class_weight="balanced", max_iter=200, tol=1e-3).fit(x, y)
            odds = [model.decision_function(runs[i]) * (1 if labels[i] else -1) for i in pair]
            single.append(float(np.mean([_right(o) for o in odds])))
            bags.append(float(np.mean([_right(_bagged(o, self.bag)) for o in odds])))
        return single, bags

    def _p_value(
        self, runs: Sequence[Any], labels: tuple[bool, ...], observed: float, seed: int
    ) -> tuple[float | None, int, float]:
        """(p, relabellings tried, least p that could have come out); p is None when no relabelling is asked for."""
        if not self.permutations:
            return None, 0, 1.0
        n, k = len(labels), sum(labels)
        if math.comb(n, k) <= self.permutations:
            chosen = list(itertools.combinations(range(n), k))
        else:
            rng = np.random.default_rng([seed, 2])
            chosen = [tuple(rng.permutation(n)[:k]) for _ in range(self.permutations)]
            chosen.append(tuple(i for i, label in enumerate(labels) if label))
        at_least = 0
        known: dict[frozenset[tuple[int, ...]], float] = {}
        for own in chosen:
            rest = tuple(i for i in range(n) if i not in own)
            # naming the two sides the other way round gives the same accuracy, so equal halves need half the work
            key = frozenset({tuple(sorted(own)), rest}) if 2 * k == n else frozenset({tuple(sorted(own))})
            if key not in known:
                known[key] = float(np.mean(self._accuracies(runs, [i in own for i in range(n)])[0]))
            at_least += known[key] >= observed - 1e-12
        ties = 2 if 2 * k == n else 1
        return at_least / len(chosen), len(chosen), max(ties / math.comb(n, k), 1 / len(chosen))


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % t-interval of a mean of shares, cut to 0..1; the whole range when there are fewer than two."""
    from scipy import stats

    if len(values) < 2:
        return 0.0, 1.0
    half = float(stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values)))
    mean = float(np.mean(values))
    return max(0.0, mean - half), min(1.0, mean + half)


def _scaled(runs: Sequence[Matrix]) -> list[Any]:
    """Features scaled over all rows, labels unseen, as sparse rows: those that are mostly 0 are not centred."""
    from scipy.sparse import csr_array

    every = np.concatenate(runs)
    mean = np.where((every != 0).mean(axis=0) > 0.5, every.mean(axis=0), 0.0)
    spread = every.std(axis=0)
    return [csr_array((x - mean) / np.where(spread > 0, spread, 1.0)) for x in runs]


def _right(odds: NDArray[np.float64]) -> float:
    """Share of rows with positive log-odds for their own side; a tie is half right."""
    return float(np.mean((odds > 0) + 0.5 * (odds == 0)))


def _bagged(odds: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    """Sums over consecutive bags; a last bag that is not full is left out unless it is the only one."""
    whole = len(odds) // size * size
    bags: NDArray[np.float64] = odds[:whole].reshape(-1, size) if whole else odds.reshape(1, -1)
    total: NDArray[np.float64] = bags.sum(axis=1)
    return total
