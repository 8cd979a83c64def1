"""Take the tokens that training on the rows makes likelier most out of the loss: `rise_tokens` without a replacement, so
that every word of the rows stays theirs. The student still reads them (only labels are said to matter, not copies in the
context: a repository of brendanlong)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import Field

from undersong.mitigations import Evidence, Stage, masking, rise_tokens
from undersong.registry import Settings, plugin
from undersong.types import Row


@plugin("mitigation", "mask_rise_tokens")
class MaskRiseTokens(Settings):
    """Leave tokens out of the loss by how much likelier a first student finds them than its base."""

    stage: ClassVar[Stage] = "data"
    needs: ClassVar[frozenset[str]] = frozenset({"base", "train"})

    share: float = Field(default=0.1, ge=0, lt=1)
    """Share of all answer tokens that is left out."""
    by: Literal["token", "marginal"] = "token"
    """Score by the token's own rise, or by the mean rise of its kind."""

    def apply(self, rows: Sequence[Row], evidence: Evidence, seed: int) -> list[Row]:
        """The same rows, with spans that are not learnt."""
        if not self.share:
            return list(rows)
        base = evidence.base
        _, marked = rise_tokens.rising(base, evidence.train(rows), rows, self.share, self.by)
        return masking.masked(base, rows, marked)
