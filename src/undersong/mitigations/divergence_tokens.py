"""Replace the tokens at which the teacher's choice depends on its trait (Schrodi et al., arXiv 2509.23886).

Place k diverges when the teacher's likeliest token is the row's own and that of at least one counterfactual teacher
(another trait's) on the same prefix is another. Teachers of the same base are needed, which an auditor seldom has. The
tokens there are replaced by samples of the base. Masking keeps 43 % of the rise and replacing 9 to 12 % on Llama-3.2-1B.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from undersong.backends import Model
from undersong.backends.tokens import TokenRow
from undersong.mitigations import Evidence, Stage, replacing
from undersong.registry import Settings, plugin
from undersong.types import Row


@plugin("mitigation", "divergence_tokens")
class DivergenceTokens(Settings):
    """Replace tokens where counterfactual teachers would have written another."""

    stage: ClassVar[Stage] = "data"
    needs: ClassVar[frozenset[str]] = frozenset({"base", "channel", "teacher", "rivals"})

    def apply(self, rows: Sequence[Row], evidence: Evidence, seed: int) -> list[Row]:
        """Rows with tokens replaced; rows that no longer belong to the channel are dropped."""
        read = replacing.encoded(evidence.base, rows)
        own = [row.answer for row in read]
        mine = [best == ids for best, ids in zip(_best(evidence.teacher, read), own, strict=True)]
        marked = [np.zeros(len(ids), dtype=bool) for ids in own]
        for rival in evidence.rivals:
            for mark, same, best, ids in zip(marked, mine, _best(rival, read), own, strict=True):
                mark |= same & (best != ids)
        return list(replacing.replaced(evidence.base, rows, read, marked, evidence.channel, seed))


def _best(model: Model, rows: Sequence[TokenRow]) -> list[NDArray[np.int64]]:
    return replacing.read(model, rows, lambda _, logs, ids: logs.argmax(-1).numpy())
