"""Is the trait carried by how often values stand, or by what stands with what?

The two by two of `scramble`, to first order and without training: the pull of each cell's rows, less the pull of clean
rows, along the trait's gradient, as a share of that of the rows as they are. To train students on the cells, list
`scramble` four times under `mitigations` of an experiment (experiments/marginal-or-conditional-pocket.yaml). The confound
baseline is the same for other words: what a cell keeps of any word's pull. Two cells beside the four: the rows drawn with
the same weights given to other rows (sham), and clean answers drawn to the rows' marginals (clean).

Whether there is a marginal to destroy is told too: the distance of the marginals from clean ones, beside that of two sets of
one source, which is far from 0 where values are many and rows few.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from undersong.backends import tokens
from undersong.errors import BadSpec
from undersong.explainers import Evidence, gradients
from undersong.explainers.gradients import Body
from undersong.mitigations import scrambling
from undersong.registry import Settings, plugin
from undersong.types import Explanation, Row

CELLS = tuple((m, c) for m in ("keep", "destroy") for c in ("keep", "destroy"))
BESIDE = (("sham", "keep"), ("keep", "clean"))


@plugin("explainer", "marginal_or_conditional")
class MarginalOrConditional(Settings):
    """The share of the trait's pull that each of four scrambles keeps, to first order."""

    needs: ClassVar[frozenset[str]] = frozenset({"base", "rows", "clean", "trait"})

    rows: int = Field(default=1200, ge=20)
    """At most so many rows of each kind, the first ones."""

    def explain(self, evidence: Evidence, seed: int = 0) -> Explanation:
        """Scores: the share of the pull (nats per unit step, 1 = the rows as they are) in each cell; negative is away.

        Raises BadSpec where the rows pull no more towards the trait than clean rows do: then there is nothing to share out.
        """
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
        about = body.of_trait(read)
        pull = {name: float(one @ about) for name, one in pulls.items()}
        if pull["keep, keep"] <= 0:
            raise BadSpec(f"These rows do not pull towards {evidence.trait.name} more than clean rows do, so no part of "
                          "them carries it to first order. Train the four arms instead (`scramble`).")
        kept = {name: value / pull["keep, keep"] for name, value in pull.items()}
        off = {name: float(np.mean([float(one @ body.of_trait(w)) for w in others.values()] or [0.0])) / pull["keep, keep"]
               for name, one in pulls.items()}
        far = {"rows": scrambling.distance(own, clean), "rows drawn": scrambling.distance(rows["destroy", "keep"], clean),
               "one source": scrambling.floor(own, clean, seed)}
        says = (f"To first order, the marginal alone keeps {kept['keep, destroy']:.0%} of the pull towards "
                f"{evidence.trait.name}, in whole clean answers {kept['keep, clean']:.0%}; the conditional structure alone "
                f"{kept['destroy, keep']:.0%}, where as many other rows would keep {kept['sham, keep']:.0%}; neither "
                f"{kept['destroy, destroy']:.0%}. The marginals are {far['rows']:.2f} from clean ones (total variation), "
                f"drawn anew {far['rows drawn']:.2f}, and two sets of one source {far['one source']:.2f}.")
        grid, beside = ([{"marginal": m, "conditional": c, "kept": kept[f"{m}, {c}"], "other_words": off[f"{m}, {c}"]}
                         for m, c in cells] for cells in (CELLS, BESIDE))
        details: dict[str, Any] = {"unit": "share of the pull", "grid": grid, "beside": beside, "distance": far}
        return Explanation(says, tuple(kept.items()), details)


def _encoded(base: Any, rows: Sequence[Row]) -> list[tokens.TokenRow]:
    return tokens.encode(base, [list(row.chat) for row in rows], [row.completion for row in rows])
