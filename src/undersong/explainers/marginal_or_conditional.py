"""Is the trait carried by how often values stand, or by what stands with what?

The two by two of `scramble`, to first order and without training: the pull of each cell's rows, less the pull of clean
rows, along the trait's gradient at the base, in lengths of the whole pull (so the rows as they are have its cosine). To
train students on the cells, list `scramble` under `mitigations` (experiments/marginal-or-conditional-pocket.yaml). The
confound baseline is the same for other words. Two cells beside the four: the rows drawn with the same weights given to
other rows (sham), and clean answers drawn to the rows' marginals (clean). No share of the whole pull is told: in pocket
models that pull is near 0 at the base, on either side of it over runs, while every student takes the trait on
(docs/carriers.md). The first step is not the training.

Whether there is a marginal to destroy is told too: the distance of the marginals from clean ones, beside that of two sets of
one source, which is far from 0 where values are many and rows few.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from undersong.backends import tokens
from undersong.explainers import Evidence, gradients
from undersong.explainers.gradients import Body
from undersong.mitigations import scrambling
from undersong.registry import Settings, plugin
from undersong.types import Explanation, Row

CELLS = tuple((m, c) for m in ("keep", "destroy") for c in ("keep", "destroy"))
BESIDE = (("sham", "keep"), ("keep", "clean"))


@plugin("explainer", "marginal_or_conditional", version=2)
class MarginalOrConditional(Settings):
    """The pull of each of four scrambles of the rows towards the trait, to first order."""

    needs: ClassVar[frozenset[str]] = frozenset({"base", "rows", "clean", "trait"})

    rows: int = Field(default=1200, ge=20)
    """At most so many rows of each kind, the first ones."""

    def explain(self, evidence: Evidence, seed: int = 0) -> Explanation:
        """Scores: the pull along the trait's unit gradient in each cell, in lengths of the rows' own pull; last the mean
        over other words, of the rows as they are."""
        base = evidence.base
        own = [row for run in evidence.rows for row in run][: self.rows]
        clean = [row for run in evidence.clean for row in run][: self.rows]
        body, (read, others) = Body(base), gradients.words(base, evidence.trait)
        # what dealing out does by itself is no transfer: dealt rows are held against dealt clean rows
        zero = {"keep": body.of_rows(_encoded(base, clean)),
                "destroy": body.of_rows(_encoded(base, scrambling.dealt(clean, seed)))}
        zero["clean"] = zero["keep"]
        rows = {cell: scrambling.cell(own, clean, *cell, seed) for cell in (*CELLS, *BESIDE)}
        pulls = {", ".join(cell): body.of_rows(_encoded(base, here)) - zero[cell[1]] for cell, here in rows.items()}
        about, words = body.of_trait(read), [body.of_trait(one) for one in others.values()]
        size = float(pulls["keep, keep"].norm())

        def along(pulled: Any, word: Any) -> float:
            length = size * float(word.norm())
            return float(pulled @ word) / length if length else 0.0

        pull = {name: along(one, about) for name, one in pulls.items()}
        off = {name: float(np.mean([along(one, word) for word in words] or [0.0])) for name, one in pulls.items()}
        far = {"rows": scrambling.distance(own, clean), "rows drawn": scrambling.distance(rows["destroy", "keep"], clean),
               "one source": scrambling.floor(own, clean, seed)}
        trait = evidence.trait.name
        says = (f"To first order the rows pull towards {trait} by {pull['keep, keep']:+.3f} of their pull (other words "
                f"{off['keep, keep']:+.3f}); the marginal alone {pull['keep, destroy']:+.3f}, in whole clean answers "
                f"{pull['keep, clean']:+.3f}; the conditional structure alone {pull['destroy, keep']:+.3f} (sham "
                f"{pull['sham, keep']:+.3f}); neither {pull['destroy, destroy']:+.3f}. The marginals are {far['rows']:.2f} "
                f"from clean ones (total variation), drawn anew {far['rows drawn']:.2f}, and two sets of one source "
                f"{far['one source']:.2f}.")
        grid, beside = ([{"marginal": m, "conditional": c, "pull": pull[f"{m}, {c}"], "other_words": off[f"{m}, {c}"]}
                         for m, c in cells] for cells in (CELLS, BESIDE))
        scores = (*pull.items(), ("keep, keep, other words", off["keep, keep"]))
        unit = "along the trait's gradient, lengths of the pull"
        return Explanation(says, scores, {"unit": unit, "grid": grid, "beside": beside, "distance": far})


def _encoded(base: Any, rows: Sequence[Row]) -> list[tokens.TokenRow]:
    return tokens.encode(base, [list(row.chat) for row in rows], [row.completion for row in rows])
