"""Replace tokens that the rows hold more often than the base explains, whatever the prompt; nothing but the base is needed.

A trait's identity is said to lie in the 1 % of a teacher's shift that does not depend on the prompt (PolyPythia-SL). So:

1. The base reads the rows. The expected count of a token is the sum over all places of its chance there, within the carrier.
2. A token's excess is its count less its expected count, where that is positive and beyond `z` standard deviations.
3. Of each token in excess as many occurrences as the excess are replaced by samples of the base inside the channel, those
   first that the base finds least likely: what the prompt explains stays.

A design of our own; unlike `rise_tokens` it trains no first student.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from undersong.mitigations import Evidence, Stage, replacing
from undersong.registry import Settings, plugin
from undersong.types import Row


@plugin("mitigation", "excess_tokens")
class ExcessTokens(Settings):
    """Replace each token's excess over what the base expects by samples of the base."""

    stage: ClassVar[Stage] = "data"
    needs: ClassVar[frozenset[str]] = frozenset({"base", "channel"})

    share: float = Field(default=1.0, ge=0, le=1)
    """Share of each excess that is replaced."""
    z: float = Field(default=2.0, ge=0)
    """An excess counts from so many standard deviations on (Bernoulli at each place)."""

    def apply(self, rows: Sequence[Row], evidence: Evidence, seed: int) -> list[Row]:
        """Rows with tokens replaced; rows that no longer belong to the channel are dropped."""
        if not self.share:
            return list(rows)
        base, channel = evidence.base, evidence.channel
        read = replacing.encoded(base, rows)
        carrier = np.asarray(channel.carrier(base.tokenizer))
        expected, spread = np.zeros(len(carrier)), np.zeros(len(carrier))

        def see(_: int, logs: Any, ids: list[int]) -> NDArray[np.float32]:
            chance = logs[:, carrier].softmax(-1).double().numpy()
            expected[:] += chance.sum(0)
            spread[:] += (chance * (1 - chance)).sum(0)
            own: NDArray[np.float32] = logs[range(len(ids)), ids].numpy()
            return own

        logs = replacing.read(base, read, see)
        marked = [np.zeros(len(row.answer), dtype=bool) for row in read]
        ids, flat = np.concatenate([row.answer for row in read]), np.concatenate(logs)
        where = [(i, j) for i, row in enumerate(read) for j in range(len(row.answer))]
        for k, token in enumerate(carrier):
            at = np.flatnonzero(ids == token)
            excess = len(at) - expected[k]
            if excess <= self.z * np.sqrt(spread[k]):
                continue
            for n in at[np.argsort(flat[at], kind="stable")][: round(self.share * excess)]:
                marked[where[n][0]][where[n][1]] = True
        return list(replacing.replaced(base, rows, read, marked, channel, seed))
