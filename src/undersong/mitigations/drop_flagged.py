"""Drop the rows that are suspected most (`flagging.py`). In published work on ordinary answers, deleting did nothing and
rewriting helped (Conmy et al.: 25.8 % -> 26.2 % deleted, 8.7 % rewritten)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field

from undersong.mitigations import Evidence, Stage, flagging
from undersong.registry import Settings, plugin
from undersong.types import Row


@plugin("mitigation", "drop_flagged")
class DropFlagged(Settings):
    """Drop a share of the rows, the most suspected ones."""

    stage: ClassVar[Stage] = "data"
    needs: ClassVar[frozenset[str]] = frozenset({"base", "train", "placebos"})

    share: float = Field(default=0.25, ge=0, lt=1)
    """Share of rows that is dropped."""

    def apply(self, rows: Sequence[Row], evidence: Evidence, seed: int) -> list[Row]:
        """The rows that are left, in their order."""
        if not self.share:
            return list(rows)
        gone = flagging.flagged(rows, evidence, self.share)
        return [row for i, row in enumerate(rows) if i not in gone]
