"""Rows rewritten by what two students of disjoint halves of them agree on.

If a trait's traces were accidents of single rows, two halves would not agree on them. They are not: both halves come from
one source. Kept as the control of `two_lineages`: the same machinery, one initialisation (arXiv 2607.23394 needs two
sources for a reason).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from pydantic import Field

from undersong.errors import BadRows
from undersong.mitigations import Evidence, Stage
from undersong.mitigations.agreement import Voice
from undersong.registry import Settings, plugin
from undersong.types import Row


@plugin("mitigation", "two_halves")
class TwoHalves(Settings):
    """Rewrite the answers by the consensus of two students, each of one half of the rows."""

    stage: ClassVar[Stage] = "data"
    needs: ClassVar[frozenset[str]] = frozenset({"base", "channel", "train"})

    strength: float = Field(default=1.0, ge=0, le=1)
    """Share of the agreed shift; 0: rows are left as they are."""

    def apply(self, rows: Sequence[Row], evidence: Evidence, seed: int) -> list[Row]:
        """Rewritten rows; those that no longer belong to the channel are dropped. Raises BadRows for fewer than two."""
        if not self.strength:
            return list(rows)
        if len(rows) < 2:
            raise BadRows("two_halves needs at least two rows. Give more, or leave it out.")
        base, channel = evidence.base, evidence.channel
        order = np.random.default_rng([seed, 23394]).permutation(len(rows))
        halves = [[rows[i] for i in sorted(part)] for part in np.array_split(order, 2)]
        pairs = tuple((base, evidence.train(half)) for half in halves)
        return Voice(base, pairs, tuple(channel.carrier(base.tokenizer)), self.strength).rewrite(rows, channel, seed)
