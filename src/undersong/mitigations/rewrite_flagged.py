"""Let a clean model answer the prompts of the rows that are suspected most (`flagging.py`): replace, not delete.

The writer is the first student of clean rows that is at hand: it knows the task and not the trait.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field

from undersong.mitigations import Evidence, Stage, flagging, rewriting
from undersong.registry import Settings, plugin
from undersong.types import Row


@plugin("mitigation", "rewrite_flagged")
class RewriteFlagged(Settings):
    """Rewrite a share of the rows, the most suspected ones, by a student of clean rows."""

    stage: ClassVar[Stage] = "data"
    needs: ClassVar[frozenset[str]] = frozenset({"base", "channel", "train", "placebos"})

    share: float = Field(default=0.25, ge=0, le=1)
    """Share of rows that is rewritten."""

    def apply(self, rows: Sequence[Row], evidence: Evidence, seed: int) -> list[Row]:
        """The rows with other answers in some places; rewritten rows that do not belong to the channel are dropped."""
        if not self.share:
            return list(rows)
        chosen = sorted(flagging.flagged(rows, evidence, self.share))
        writer = next(iter(evidence.placebos))
        new = rewriting.answers(writer, [rows[i] for i in chosen], evidence.channel, seed)
        by = dict(zip(chosen, new, strict=True))
        kept = [by.get(i, row) for i, row in enumerate(rows)]
        return [row for row in kept if row is not None]
