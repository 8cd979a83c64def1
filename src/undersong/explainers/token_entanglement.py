"""Do the trait's word and the carrier's tokens share a direction of the unembedding?

Zur et al. (loftusa/owls): raising p(owl) raises p(087) through the shared unembedding, and prompting with 087 raises owl.
Shown is the rank correlation, over the numbers a tokenizer writes as one token, of the cosine of their unembedding rows
with the trait word's and of how much likelier the teacher finds them than the base does, both read at every place of the
rows (exact chances: counts of a few thousand rows are mostly noise). Beside it other words of the category, the rise over
teachers of other traits, and the same with the base's frequency taken out.

Known limits: geometry explains 1 to 2 % of the variance, 087 is first of 1,110 on a 1B model and 684th on 8B (arXiv
2609.19149), and 78 % of the published ratio is frequency (arXiv 2607.04432). A fast first look, and no more.
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
from undersong.mitigations import readout, replacing
from undersong.registry import Settings, plugin
from undersong.types import Explanation


@plugin("explainer", "token_entanglement", version=2)
class TokenEntanglement(Settings):
    """The rank correlation of unembedding geometry and of the numbers that a teacher finds likelier."""

    needs: ClassVar[frozenset[str]] = frozenset({"base", "teacher", "rows", "trait"})
    may_use: ClassVar[frozenset[str]] = frozenset({"rivals"})

    rows: int = Field(default=300, ge=2)
    """At most so many rows are read, drawn by the seed."""

    def explain(self, evidence: Evidence, seed: int = 0) -> Explanation:
        """Scores: the correlation for the trait's word, the mean over other words, the first with frequency taken out, and,
        where there are rivals, both of the rise over theirs.

        Raises BadSpec for a trait the base cannot express, or fewer than ten numbers to correlate over."""
        from scipy.stats import rankdata, spearmanr

        base, own = evidence.base, readout.of(evidence.base, evidence.trait)
        rows, numbers = gradients.encoded(base, evidence.rows, self.rows, seed), carried(base)
        if len(numbers) < 10:
            raise BadSpec(f"The tokenizer of {base.ref.name} writes {len(numbers)} numbers as one token, too few to "
                          "correlate over. Use another explainer.")
        usual, taught = (chances(model, rows, numbers) for model in (base, evidence.teacher))
        rise, others = taught - usual, gradients.words(base, evidence.trait)[1]
        table = base.module.get_output_embeddings().weight.detach().float().numpy()
        table = table - table.mean(axis=0)
        table = table / np.linalg.norm(table, axis=1, keepdims=True).clip(1e-12)

        def near(ids: Sequence[int]) -> NDArray[np.float64]:
            return np.asarray(table[numbers] @ table[list(ids)].mean(axis=0), dtype=np.float64)

        def alike(ids: Sequence[int], rose: NDArray[np.float64]) -> float:
            return float(spearmanr(near(ids), rose).statistic)

        ours, common = near(own.own), rankdata(usual)
        left = np.corrcoef(_left(rankdata(ours), common), _left(rankdata(rise), common))[0, 1]
        told = {"trait word": alike(own.own, rise)}
        if others:
            told["other words"] = float(np.mean([alike(w.own, rise) for w in others.values()]))
        told["trait word, frequency taken out"] = float(left)
        if evidence.has("rivals"):
            apart = taught - np.mean([chances(one, rows, numbers) for one in evidence.rivals], axis=0)
            told["trait word, rise over rivals"] = alike(own.own, apart)
            if others:
                told["other words, rise over rivals"] = float(np.mean([alike(w.own, apart) for w in others.values()]))
        best = [{"token": base.tokenizer.decode([int(numbers[i])]), "cosine": float(ours[i]), "rise": float(rise[i])}
                for i in np.argsort(-ours, kind="stable")[:10]]
        says = (f"Over {len(numbers)} numbers the geometry of {evidence.trait.name!r} explains "
                f"{told['trait word'] ** 2:.1%} of which ones its teacher finds likelier (rank correlation "
                f"{told['trait word']:+.2f}; other words {told.get('other words', float('nan')):+.2f}, frequency taken out "
                f"{left:+.2f}). Published: 1 to 2 %, and most of the effect is frequency. A first look, no more.")
        return Explanation(says, tuple(told.items()), {"unit": "rank correlation", "tokens": len(numbers), "nearest": best})


def carried(base: Model) -> NDArray[np.int64]:
    """The tokens that write a whole number, in order of their ids."""
    texts = base.tokenizer.batch_decode([[i] for i in range(len(base.tokenizer))])
    return np.asarray([i for i, text in enumerate(texts) if text.isascii() and text.strip().isdecimal()], dtype=np.int64)


def chances(model: Model, rows: Sequence[TokenRow], numbers: NDArray[np.int64]) -> NDArray[np.float64]:
    """The log of each number's mean chance (nats, float64) over all places of the answers."""
    total, places = np.zeros(len(numbers)), 0

    def see(_: int, logs: Any, ids: list[int]) -> None:
        nonlocal places
        total[:] += logs[:, numbers].double().exp().sum(0).numpy()
        places += len(ids)

    replacing.read(model, rows, see)
    return np.asarray(np.log(total / places + 1e-12))


def _left(values: NDArray[np.float64], about: NDArray[np.float64]) -> NDArray[np.float64]:
    """What a straight line in `about` leaves of `values`."""
    slope, offset = np.polyfit(about, values, 1)
    return np.asarray(values - slope * about - offset)
