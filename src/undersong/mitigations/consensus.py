"""Keep of the student only what students of independent parts of the rows agree on.

1. The rows are cut into parts: by source where their ids say it (`source-rest`), else at random.
2. A student is trained on each part.
3. The student's weights become the base's, plus, element by element, the smallest of the parts' changes where all have one
   sign, and nothing elsewhere.

The published rule takes the smallest agreed change of each token's log-ratio while decoding (arXiv 2607.23394; methods A10);
this one is in weight space, so that one plain model comes out. A source can veto what it did not teach. Parts of one source
hold its trait all alike, and there is nothing to veto.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from undersong.backends import Model
from undersong.errors import BadRows
from undersong.mitigations import Evidence, Stage
from undersong.registry import Settings, plugin
from undersong.types import Row


@plugin("mitigation", "consensus")
class Consensus(Settings):
    """The smallest agreed change of weights over students of parts of the rows."""

    stage: ClassVar[Stage] = "model"
    needs: ClassVar[frozenset[str]] = frozenset({"base", "rows", "train"})

    parts: int = Field(default=2, ge=2)
    """Random parts, where the rows' ids name fewer than two sources."""

    def repair(self, student: Model, evidence: Evidence, seed: int) -> Mapping[str, Any]:
        """Replace the student's weights; no vectors. Raises BadRows when a part would be empty."""
        import torch

        base = {name: p.detach() for name, p in evidence.base.module.named_parameters()}
        low: dict[str, Any] = {}
        high: dict[str, Any] = {}
        for part in cut(list(evidence.rows), self.parts, seed):
            for name, p in evidence.train(part).module.named_parameters():
                change = p.detach() - base[name]
                low[name] = torch.minimum(low[name], change) if name in low else change
                high[name] = torch.maximum(high[name], change) if name in high else change
        with torch.no_grad():
            for name, p in student.module.named_parameters():
                p.copy_(base[name] + low[name].clamp(min=0) + high[name].clamp(max=0))
        return {}


def cut(rows: Sequence[Row], parts: int, seed: int) -> list[list[Row]]:
    """Rows by source, or in `parts` random parts where fewer than two sources are named. Raises BadRows for too few rows."""
    sources: dict[str, list[Row]] = {}
    for row in rows:
        sources.setdefault(row.id.partition("-")[0], []).append(row)
    if 2 <= len(sources) <= len(rows) // 10:
        return list(sources.values())
    if len(rows) < parts:
        raise BadRows(f"{len(rows)} rows cannot be cut into {parts} parts. Lower `parts`.")
    order = np.random.default_rng([seed, 23394]).permutation(len(rows))
    return [[rows[int(i)] for i in sorted(part)] for part in np.array_split(order, parts)]
