"""The `bag_of_k` detector: a classifier of bags of rows, trained on exemplars. It reads text and no model.

Supervised set classification on canonicalised values (the bag-of-K classifiers of the repository
AanshSamyani/subliminal_trait_classifier). Beside it stands the same classifier on exactly what was dropped.
1. Logistic regression over rows: one class per trait and one for placebos, trained on the rows of exemplar teachers.
2. A bag of `bag` rows is judged by the sum of its rows' log-probabilities: it goes to the likeliest class.
3. The statistic of a trait is the share of bags that go to it.

Blind spots: nearly everything on pocket numbers: most sets that a trait's teacher wrote alone pass unseen at 400 rows, and
mixtures always. What tells a trait there is which value follows which prompt, and a bag of values has no prompts. Rows
without numbers are not read at all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from undersong.detectors import PLACEBO, Evidence, canonical, drawn, uncalibrated
from undersong.errors import BadRows
from undersong.registry import Settings, plugin
from undersong.types import Finding, Row

Matrix = NDArray[np.float64]


@plugin("detector", "bag_of_k")
class BagOfK(Settings):
    """Classify bags of rows by their values, after training on exemplars of every trait."""

    needs: ClassVar[frozenset[str]] = frozenset({"rows", "exemplars"})

    bag: int = Field(default=16, ge=1)
    """Rows that are judged together."""
    rows: int = Field(default=4000, ge=1)
    """At most so many suspected rows are read, drawn by the seed."""
    taught: int = Field(default=600, ge=10)
    """Rows of each exemplar run that the classifier learns from."""
    strength: float = Field(default=0.1, gt=0)
    """Inverse of the L2 penalty (scikit-learn's C)."""

    def detect(self, evidence: Evidence, seed: int = 0) -> Finding:
        """Share (0..1) of bags that go to each trait. Details: `shares` (the same), `confounds` (the same from what the
        canonical form drops), `bags`, `row_scores` (each row's probability of being no placebo's) and `row_ids`.

        Raises BadRows when no row holds a number.
        """
        rows = drawn(evidence.rows, self.rows, seed)
        numbered = [row for row in rows if any(c.isdigit() for c in row.completion)]
        if not numbered:
            raise BadRows("No row holds a number, and nothing else is read. Leave this detector out.")
        known = evidence.exemplars
        classes = [PLACEBO, *known.names]
        logs = self._logs(evidence, "values", _values, numbered)
        dropped = self._logs(evidence, "confounds", canonical.confound_features, numbered)
        shares, confounds = self._shares(logs, classes), self._shares(dropped, classes)
        return uncalibrated(
            shares, self.needs, shares=shares, confounds=confounds, bags=max(1, len(numbered) // self.bag),
            row_scores=(1 - np.exp(logs[:, 0])).tolist(), row_ids=[row.id for row in numbered],
        )

    def _shares(self, logs: Matrix, classes: Sequence[str]) -> dict[str, float]:
        whole = max(self.bag, len(logs) // self.bag * self.bag)
        bags = [logs[i : i + self.bag].sum(axis=0) for i in range(0, min(whole, len(logs)), self.bag)]
        won = np.bincount(np.argmax(bags, axis=1), minlength=len(classes)) / len(bags)
        return {name: float(won[i]) for i, name in enumerate(classes) if name != PLACEBO}

    def _logs(
        self, evidence: Evidence, which: str, features: Callable[[Sequence[Row]], Matrix], rows: Sequence[Row]
    ) -> Matrix:
        """Log-probabilities [rows, classes], the placebo class first."""
        known = evidence.exemplars
        key = ("bag_of_k", which, self, tuple(known.rows), tuple(ref for own in known.teacher_refs.values() for ref in own))
        if key not in evidence.memo:
            evidence.memo[key] = self._train(known.rows, [PLACEBO, *known.names], features)
        scale, model = evidence.memo[key]
        found: Matrix = model.predict_log_proba(features(rows) / scale)
        return found

    def _train(
        self, known: Any, classes: Sequence[str], features: Callable[[Sequence[Row]], Matrix]
    ) -> tuple[Matrix, Any]:
        """The spread of each feature and the classifier, trained on exemplar rows, every class weighing the same."""
        from scipy.sparse import csr_array
        from sklearn.linear_model import LogisticRegression

        taught, labels = [], []
        for number, name in enumerate(classes):
            for run in known[name]:
                own = list(run)[: self.taught]
                taught.append(features(own))
                labels += [number] * len(own)
        every = np.concatenate(taught)
        scale = np.where(every.std(axis=0) > 0, every.std(axis=0), 1.0)
        model = LogisticRegression(C=self.strength, class_weight="balanced", max_iter=200, tol=1e-3)
        return scale, model.fit(csr_array(every / scale), labels)


def _values(rows: Sequence[Row]) -> Matrix:
    """Shares of values, first and last digits, values by place, and values that the prompt did not show."""
    return np.concatenate([canonical.value_features(rows), canonical.fresh_values(rows)], axis=1)
