"""Replace the tokens at which the teacher's choice depends on its trait (Schrodi et al., arXiv 2509.23886; `divergence.py`).

Teachers of the same base are needed, which an auditor seldom has. The tokens there are replaced by samples of the base.
Masking (`mask_divergence_tokens`) keeps 43 % of the rise and replacing 9 to 12 % on Llama-3.2-1B.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from undersong.mitigations import Evidence, Stage, divergence, replacing
from undersong.registry import Settings, plugin
from undersong.types import Row


@plugin("mitigation", "divergence_tokens")
class DivergenceTokens(Settings):
    """Replace tokens where counterfactual teachers would have written another."""

    stage: ClassVar[Stage] = "data"
    needs: ClassVar[frozenset[str]] = frozenset({"base", "channel", "teacher", "rivals"})

    def apply(self, rows: Sequence[Row], evidence: Evidence, seed: int) -> list[Row]:
        """Rows with tokens replaced, without those that then do not belong to the channel. Raises BadSpec without rivals."""
        marked = divergence.marked(evidence.teacher, evidence.rivals, rows)
        read = replacing.encoded(evidence.base, rows)
        return list(replacing.replaced(evidence.base, rows, read, marked, evidence.channel, seed))
