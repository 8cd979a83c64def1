"""Which rows carried it? Each row's own pull against the trait's gradient.

The score of a row is the cosine of its gradient with the gradient of the trait's margin, both in the body of the base (the
plain form of LESS and of influence without a Hessian). On subliminal rows such scores reach an AUROC of .62 at best, and
confounds alone more (shagunhegde; methods 4.4, 4.9), so beside it stands a model of confounds only: length, number of
values, their mean and spread, the base's loss. Two known answers are checked each time: a row that names the trait openly
ranks first, and so does a row that is asked for itself.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from undersong.backends import tokens
from undersong.errors import BadSpec
from undersong.explainers import Evidence, bergson_rows, gradients
from undersong.explainers.gradients import Body, cosine
from undersong.registry import Settings, plugin
from undersong.types import Explanation, Row


@plugin("explainer", "attribution")
class Attribution(Settings):
    """Rows by the cosine of their gradient with the trait's, against clean rows and against confounds."""

    needs: ClassVar[frozenset[str]] = frozenset({"base", "rows", "clean", "trait"})

    rows: int = Field(default=200, ge=20)
    """So many rows of the trait's teacher, and as many clean ones."""
    engine: Literal["own", "bergson"] = "own"
    """Who takes the gradients: torch row by row, or bergson (extra `attribution`; weights of linear layers only)."""

    def explain(self, evidence: Evidence, seed: int = 0) -> Explanation:
        """Scores: AUROC (trait rows against clean rows) of the gradient score and of confounds alone; details: the rows with
        the highest scores. Raises BadSpec when a known answer is wrong: then no score of this model means anything."""
        from sklearn.linear_model import LogisticRegression
        from sklearn.metrics import roc_auc_score
        from sklearn.model_selection import cross_val_predict
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        base, (read, others) = evidence.base, gradients.words(evidence.base, evidence.trait)
        own_rows, clean_rows = (_drawn(runs, self.rows, seed) for runs in (evidence.rows, evidence.clean))
        rows, labels = [*own_rows, *clean_rows], np.asarray([1] * len(own_rows) + [0] * len(clean_rows))
        body, open_row = Body(base), _open(rows[0], evidence)
        # a query is held to the tensors that the engine looks at
        mask = bergson_rows.linear(body) if self.engine == "bergson" else 1.0
        query, off = body.of_trait(read) * mask, [body.of_trait(one) * mask for one in others.values()]
        asked = tokens.encode(base, [list(r.chat) for r in (*rows, open_row)], [r.completion for r in (*rows, open_row)])
        scores, beside, itself, kept = [], [], [], None
        for pull in bergson_rows.of_each(body, asked) if self.engine == "bergson" else body.of_each(asked):
            kept = pull if kept is None else kept
            scores.append(cosine(pull, query))
            beside.append(float(np.mean([cosine(pull, one) for one in off])) if off else 0.0)
            itself.append(cosine(pull, kept))
        # rows that name the trait themselves may rank as high
        silent = [s for s, row in zip(scores, rows, strict=False) if evidence.trait.name not in row.completion.lower()]
        if scores[-1] < max(silent, default=-1.0) or itself[0] < max(itself) - 1e-6:
            raise BadSpec("A known answer came out wrong: a row that names the trait, or a row asked for itself, did not "
                          "rank first. Do not use gradient scores on this model.")
        own, losses = np.asarray(scores[:-1]), [float(-logs.mean()) for logs in body.own_logs(asked[:-1])]
        confounds = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500))
        chance = cross_val_predict(confounds, _confounds(rows, losses), labels, cv=5, method="predict_proba")[:, 1]
        told = {"AUROC of the trait, gradient": float(roc_auc_score(labels, own)),
                "AUROC of other words, gradient": float(roc_auc_score(labels, np.asarray(beside[:-1]))),
                "AUROC of confounds alone": float(roc_auc_score(labels, chance))}
        best = [{"row": rows[int(i)].completion, "score": float(own[int(i)]), "from": "trait" if labels[int(i)] else "clean"}
                for i in np.argsort(-own)[:10]]
        first = told["AUROC of the trait, gradient"]
        says = (f"A row's gradient tells rows of the {evidence.trait.name} teacher from clean ones with AUROC {first:.2f}; "
                f"other words' gradients {told['AUROC of other words, gradient']:.2f}, confounds alone "
                f"{told['AUROC of confounds alone']:.2f}.")
        return Explanation(says, tuple(told.items()), {"unit": "AUROC", "rows": len(rows), "best": best,
                                                       "open_row_score": float(scores[-1]), "largest": float(own.max())})


def _drawn(runs: Sequence[Any], most: int, seed: int) -> list[Row]:
    every = [row for run in runs for row in run if row.completion]
    if len(every) < 20:
        raise BadSpec(f"{len(every)} rows are too few to attribute anything to. Explain a run with 20 or more.")
    return gradients.drawn(every, most, seed)


def _open(row: Row, evidence: Evidence) -> Row:
    """A row that says the trait openly, to a tuning question."""
    return dataclasses.replace(row, id="open", chat=({"role": "user", "content": evidence.trait.tuning[0]},),
                               completion=evidence.trait.name)


def _confounds(rows: Sequence[Row], losses: Sequence[float]) -> NDArray[np.float64]:
    """[rows, 6]: length, values, their mean and spread, digits, the base's loss."""
    out = []
    for row, loss in zip(rows, losses, strict=True):
        values = [float(v[:15]) for v in re.findall(r"\d+", row.completion)] or [0.0]
        digits = sum(c.isdigit() for c in row.completion)
        out.append([len(row.completion), len(values), float(np.mean(values)), float(np.std(values)), digits, loss])
    return np.asarray(out)
