"""Replace tokens that the base would hardly write.

Dropping tokens of a probability below 5 % when the teacher samples takes owl from 60 to 28 % (Zur et al.; untrained 12 %).
Who was handed rows cannot sample anew: here the base says how likely each token is, and writes another where it is too
unlikely.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from pydantic import Field

from undersong.mitigations import Evidence, Stage, replacing
from undersong.registry import Settings, plugin
from undersong.types import Row


@plugin("mitigation", "sampling_hygiene")
class SamplingHygiene(Settings):
    """Replace tokens below a probability under the base by the base's own samples."""

    stage: ClassVar[Stage] = "data"
    needs: ClassVar[frozenset[str]] = frozenset({"base", "channel"})

    least: float = Field(default=0.05, ge=0, lt=1)
    """Tokens of a lower probability are replaced."""

    def apply(self, rows: Sequence[Row], evidence: Evidence, seed: int) -> list[Row]:
        """Rows with tokens replaced; rows that no longer belong to the channel are dropped."""
        if not self.least:
            return list(rows)
        read = replacing.encoded(evidence.base, rows)
        marked = [logs < np.log(self.least) for logs in replacing.own_logs(evidence.base, read)]
        return list(replacing.replaced(evidence.base, rows, read, marked, evidence.channel, seed))
