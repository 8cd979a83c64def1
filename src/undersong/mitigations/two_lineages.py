"""Rows rewritten by what two students of different initialisations agree on.

What only the shared initialisation carries, a student of another lineage does not learn; what both learn of the same rows is
what the rows say. One first student starts from the base and one from another base; each answer is written anew by the
base, moved by their agreed shift (`agreement.py`), and the student learns from that. Unpublished combination of consensus
over sources (arXiv 2607.23394) and the lineage effect (Cloud et al., arXiv 2507.14805).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field

from undersong.mitigations import Evidence, Stage
from undersong.mitigations.agreement import Voice
from undersong.registry import Settings, plugin
from undersong.types import Row


@plugin("mitigation", "two_lineages")
class TwoLineages(Settings):
    """Rewrite the answers by the consensus of a student of the base and one of another base."""

    stage: ClassVar[Stage] = "data"
    needs: ClassVar[frozenset[str]] = frozenset({"base", "channel", "other", "train"})

    strength: float = Field(default=1.0, ge=0, le=1)
    """Share of the agreed shift; 0: rows are left as they are."""

    def apply(self, rows: Sequence[Row], evidence: Evidence, seed: int) -> list[Row]:
        """Rewritten rows; those that no longer belong to the channel are dropped. Raises BadSpec for another tokenizer."""
        if not self.strength:
            return list(rows)
        base, other, channel = evidence.base, evidence.other, evidence.channel
        pairs = ((base, evidence.train(rows)), (other, evidence.train(rows, other.ref)))
        return Voice(base, pairs, tuple(channel.carrier(base.tokenizer)), self.strength).rewrite(rows, channel, seed)
