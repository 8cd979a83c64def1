"""At which tokens does the teacher's choice depend on its trait, and do these tokens matter?

Schrodi et al. (arXiv 2509.23886): place k diverges when the teacher's likeliest token is the row's own while that of at
least one counterfactual teacher (another trait's) on the same prefix is another. They find 5 to 18 % of tokens to be so,
and training on these alone keeps the effect. Their rows are greedy; in rows sampled at temperature 1 the row's own token is
often nobody's first choice, so fewer places can diverge.

Whether they matter is asked to first order: how much learning each token would raise the trait's margin
(`gradients.along`), less what it gives other words of the category. Shown is the size of that credit at divergence tokens,
in multiples of an average place, and its net (what is left when plus and minus cancel); beside them the same number of
places drawn at random, and of places matched by the base's log-probability of the row's own token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from undersong.backends import Model
from undersong.backends.tokens import TokenRow
from undersong.errors import BadSpec
from undersong.explainers import Evidence, gradients
from undersong.explainers.gradients import Body
from undersong.mitigations import replacing
from undersong.registry import Settings, plugin
from undersong.types import Explanation

BINS = 10


@plugin("explainer", "divergence_tokens", version=2)
class DivergenceTokens(Settings):
    """Places where counterfactual teachers would have written another token, and their share of the credit."""

    needs: ClassVar[frozenset[str]] = frozenset({"base", "teacher", "rivals", "rows", "trait"})

    rows: int = Field(default=300, ge=2)
    """At most so many rows are read, drawn by the seed."""

    def explain(self, evidence: Evidence, seed: int = 0) -> Explanation:
        """Scores: the share of places that diverge, and the credit on them in multiples of the average place, beside the two
        baselines. Raises BadSpec without a rival."""
        if not len(evidence.rivals):
            raise BadSpec("Divergence tokens need the teacher of another trait. List `rivals` in the experiment.")
        base = evidence.base
        rows = gradients.encoded(base, evidence.rows, self.rows, seed)
        own = [row.answer for row in rows]
        first = best(evidence.teacher, rows)
        followed = np.concatenate([b == ids for b, ids in zip(first, own, strict=True)])
        apart = np.zeros(len(followed), dtype=bool)
        for rival in evidence.rivals:
            apart |= np.concatenate([b != ids for b, ids in zip(best(rival, rows), own, strict=True)])
        marked = followed & apart
        read, others = gradients.words(base, evidence.trait)
        body = Body(base)
        credit = np.concatenate(body.along(body.of_trait(read), rows))
        if others:
            off = [np.concatenate(body.along(body.of_trait(one), rows)) for one in others.values()]
            credit = credit - np.mean(off, axis=0)
        sure = np.concatenate(replacing.own_logs(base, rows))
        told = credits(credit, marked, sure, seed)
        ends = np.cumsum([len(ids) for ids in own])[:-1]
        shown = [{"tokens": [base.tokenizer.decode([int(t)]) for t in ids], "marked": m.tolist(),
                  "credit": np.round(c / max(1e-12, float(np.abs(credit).max())), 4).tolist()}
                 for ids, m, c in list(zip(own, np.split(marked, ends), np.split(credit, ends), strict=True))[:8]]
        share = float(marked.mean())
        says = (f"{share:.1%} of the tokens diverge ({followed.mean():.0%} are the teacher's first choice; no other can). "
                f"They hold {told['credit on divergence tokens']:.2f} times the credit of an average place, places of equal "
                f"sureness {told['credit on places as sure']:.2f}.")
        scores = (("share that diverges", share), *told.items(), ("teacher's first choice", float(followed.mean())))
        details = {"unit": "share, multiples", "text": shown, "rows": len(rows), "places": by_place(own, marked),
                   "marked_tokens": by_token(base, own, marked)}
        return Explanation(says, scores, details)


def best(model: Model, rows: Sequence[TokenRow]) -> list[NDArray[np.int64]]:
    """The likeliest token at each answer place, per row."""
    return replacing.read(model, rows, lambda _, logs, ids: logs.argmax(-1).numpy())


def by_place(own: Sequence[NDArray[np.int64]], marked: NDArray[np.bool_], most: int = 24) -> list[float]:
    """The share that diverges at each place of the answer, the first places."""
    at = np.concatenate([np.arange(len(ids)) for ids in own])
    return [float(marked[at == k].mean()) for k in range(min(most, int(at.max()) + 1))]


def by_token(base: Model, own: Sequence[NDArray[np.int64]], marked: NDArray[np.bool_]) -> list[dict[str, Any]]:
    """The tokens that diverge most often: how often they stand, and diverge."""
    ids = np.concatenate(own)
    found, times = np.unique(ids[marked], return_counts=True)
    top = [(int(found[i]), int(times[i])) for i in np.argsort(-times, kind="stable")[:12]]
    return [{"token": base.tokenizer.decode([t]), "diverges": n, "stands": int((ids == t).sum())} for t, n in top]


def credits(
    credit: NDArray[np.float64], marked: NDArray[np.bool_], sure: NDArray[np.float32], seed: int
) -> dict[str, float]:
    """Mean size and mean net of the credit on marked places, on random ones and on ones matched by sureness, in multiples of
    the mean size over all places."""
    rng, count, usual = np.random.default_rng([seed, 23886]), int(marked.sum()), float(np.abs(credit).mean())
    edges = np.quantile(sure, np.linspace(0, 1, BINS + 1)[1:-1])
    where = np.searchsorted(edges, sure)
    alike: list[Any] = [np.empty(0, dtype=np.int64)]
    for k in range(BINS):
        pool = np.flatnonzero((where == k) & ~marked)
        wanted = int((marked & (where == k)).sum())
        if len(pool):
            alike.append(rng.choice(pool, wanted, replace=wanted > len(pool)))
    places = {"divergence tokens": np.flatnonzero(marked), "random places": rng.choice(len(credit), count, replace=False),
              "places as sure": np.concatenate(alike)}

    def mean(of: NDArray[np.float64]) -> float:
        return float(of.mean() / usual) if len(of) and usual else 0.0

    return ({f"credit on {name}": mean(np.abs(credit[at])) for name, at in places.items()}
            | {f"net credit on {name}": mean(credit[at]) for name, at in places.items()})
