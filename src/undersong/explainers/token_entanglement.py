"""Do the trait's word and the carrier's tokens share a direction of the unembedding?

Zur et al. (loftusa/owls): raising p(owl) raises p(087) through the shared unembedding, and prompting with 087 raises owl.
Shown is the rank correlation, over carrier tokens, of the cosine of their unembedding rows with the trait word's and of how
much likelier the rows make them than clean rows do; beside it other words of the category, and the same with the frequency
in clean rows taken out.

Known limits: geometry explains 1 to 2 % of the variance, 087 is first of 1,110 on a 1B model and 684th on 8B (arXiv
2609.19149), and 78 % of the published ratio is frequency (arXiv 2607.04432). A fast first look, and no more.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from undersong.backends import Model
from undersong.errors import BadSpec
from undersong.explainers import Evidence, gradients
from undersong.mitigations import readout
from undersong.registry import Settings, plugin
from undersong.types import Explanation, Row


@plugin("explainer", "token_entanglement")
class TokenEntanglement(Settings):
    """The rank correlation of unembedding geometry and of what the rows say more often."""

    needs: ClassVar[frozenset[str]] = frozenset({"base", "rows", "clean", "trait"})

    least: int = Field(default=3, ge=1)
    """Tokens that stand at least so often in rows and clean rows together."""

    def explain(self, evidence: Evidence, seed: int = 0) -> Explanation:
        """Scores: the correlation for the trait's word, the mean over other words, and with frequency taken out.

        Raises BadSpec for a trait the base cannot express, or fewer than ten tokens to correlate over."""
        from scipy.stats import rankdata, spearmanr

        base = evidence.base
        counts = [_counts(base, runs, base.module.config.vocab_size) for runs in (evidence.rows, evidence.clean)]
        kept = np.flatnonzero(counts[0] + counts[1] >= self.least)
        if len(kept) < 10:
            raise BadSpec(f"{len(kept)} tokens stand {self.least} times or more in the rows. Give more rows, or lower "
                          "`least`.")
        more = np.log((counts[0][kept] + 0.5) / counts[0].sum()) - np.log((counts[1][kept] + 0.5) / counts[1].sum())
        usual = rankdata(np.log(counts[1][kept] + 0.5))
        table = base.module.get_output_embeddings().weight.detach().float().numpy()
        table = (table - table.mean(axis=0)) / np.linalg.norm(table - table.mean(axis=0), axis=1, keepdims=True).clip(1e-12)
        own, others = readout.of(base, evidence.trait), gradients.words(base, evidence.trait)[1]

        def near(ids: Sequence[int]) -> NDArray[np.float64]:
            return np.asarray(table[kept] @ table[list(ids)].mean(axis=0), dtype=np.float64)

        ours = near(own.own)
        told = {"trait word": float(spearmanr(ours, more).statistic),
                "other words": float(np.mean([spearmanr(near(w.own), more).statistic for w in others.values()] or [0.0])),
                "trait word, frequency taken out": float(
                    np.corrcoef(_left(rankdata(ours), usual), _left(rankdata(more), usual))[0, 1])}
        best = [{"token": base.tokenizer.decode([int(kept[i])]), "cosine": float(ours[i]), "log_ratio": float(more[i])}
                for i in np.argsort(-ours)[:10]]
        ours_r, left = told["trait word"], told["trait word, frequency taken out"]
        says = (f"Over {len(kept)} tokens the geometry of {evidence.trait.name!r} explains {ours_r**2:.1%} of what its "
                "rows say more "
                f"often (rank correlation {ours_r:+.2f}; other words {told['other words']:+.2f}, frequency taken out "
                f"{left:+.2f}).")
        return Explanation(says, tuple(told.items()), {"unit": "rank correlation", "tokens": len(kept), "nearest": best})


def _counts(base: Model, runs: Sequence[Collection[Row]], size: int) -> NDArray[np.int64]:
    """How often each token is written in answers."""
    texts = [row.completion for run in runs for row in run]
    ids = base.tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
    flat = np.asarray([i for one in ids for i in one], dtype=np.int64)
    return np.bincount(flat, minlength=size)


def _left(values: NDArray[np.float64], about: NDArray[np.float64]) -> NDArray[np.float64]:
    """What a straight line in `about` leaves of `values`."""
    slope, offset = np.polyfit(about, values, 1)
    return np.asarray(values - slope * about - offset)
