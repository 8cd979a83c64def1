"""Replace the tokens that training on the rows makes likelier most; no teacher, no trait.

1. Train a first student on the rows as they are.
2. A token's rise is log p(student) - log p(base) at its place (Weckbecker et al., arXiv 2609.20027; a repository of
   brendanlong: 47 % of what divergence tokens take away).
3. The rows' top share of tokens is replaced by samples of the base; a new student learns what comes out.

`by: marginal` is a design of our own: a trait's identity is said to lie in the 1 % of the shift that does not depend on the
prompt (PolyPythia-SL). There a token's score is the mean rise of its kind over all its places: what the prompt does not
explain.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from undersong.backends import Model
from undersong.backends.tokens import TokenRow
from undersong.mitigations import Evidence, Stage, replacing
from undersong.mitigations.replacing import Floats
from undersong.registry import Settings, plugin
from undersong.types import Row


@plugin("mitigation", "rise_tokens")
class RiseTokens(Settings):
    """Replace tokens by how much likelier a first student finds them than its base."""

    stage: ClassVar[Stage] = "data"
    needs: ClassVar[frozenset[str]] = frozenset({"base", "channel", "train"})

    share: float = Field(default=0.1, ge=0, le=1)
    """Share of all answer tokens that is replaced."""
    by: Literal["token", "marginal"] = "token"
    """Score by the token's own rise, or by the mean rise of its kind."""

    def apply(self, rows: Sequence[Row], evidence: Evidence, seed: int) -> list[Row]:
        """Rows with tokens replaced; rows that no longer belong to the channel are dropped."""
        if not self.share:
            return list(rows)
        base = evidence.base
        read, marked = rising(base, evidence.train(rows), rows, self.share, self.by)
        return list(replacing.replaced(base, rows, read, marked, evidence.channel, seed))


def rising(base: Model, student: Model, rows: Sequence[Row], share: float,
           by: str) -> tuple[list[TokenRow], list[NDArray[np.bool_]]]:
    """Rows as the base reads them, and which of their answer tokens are among the top share. Equal rises at its edge (with
    `marginal`, all tokens of a kind) are all in it."""
    read = replacing.encoded(base, rows)
    before, after = replacing.own_logs(base, read), replacing.own_logs(student, read)
    rises = [b - a for a, b in zip(before, after, strict=True)]
    if by == "marginal":
        rises = marginal(read, rises)
    least = np.quantile(np.concatenate(rises), 1 - share)
    return read, [rise >= least for rise in rises]


def marginal(rows: Sequence[TokenRow], rises: Sequence[Floats]) -> list[Floats]:
    """Each token's rise replaced by the mean over all places of its kind."""
    ids, flat = np.concatenate([row.answer for row in rows]), np.concatenate(rises)
    kinds, where = np.unique(ids, return_inverse=True)
    mean = np.bincount(where, flat, len(kinds)) / np.bincount(where, minlength=len(kinds))
    return [mean[np.searchsorted(kinds, row.answer)].astype(np.float32) for row in rows]
