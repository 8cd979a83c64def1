"""Replace a share of the rows by clean ones of the same kind.

A tenth weakens the trait and a quarter nearly removes its behaviour (Schrodi et al., arXiv 2509.23886, section 5); the dose
that is left is still seen in activations. What it buys is dilution: no row is made safer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from pydantic import Field

from undersong.errors import BadRows
from undersong.mitigations import Evidence, Stage
from undersong.registry import Settings, plugin
from undersong.types import Row


@plugin("mitigation", "mix_clean")
class MixClean(Settings):
    """Replace rows by clean ones, chosen by the seed; the number of rows stays."""

    stage: ClassVar[Stage] = "data"
    needs: ClassVar[frozenset[str]] = frozenset({"clean"})

    share: float = Field(default=0.25, ge=0, le=1)
    """Share of the rows that clean ones take the place of."""

    def apply(self, rows: Sequence[Row], evidence: Evidence, seed: int) -> list[Row]:
        """Rows of which `share` are clean, with `clean-` before their ids. Raises BadRows where these are too few."""
        count, clean = round(self.share * len(rows)), list(evidence.clean)
        if count > len(clean):
            raise BadRows(f"mix_clean wants {count} clean rows and {len(clean)} are at hand. Give more, or lower `share`.")
        rng, out = np.random.default_rng([seed, 23886]), list(rows)
        places, chosen = (rng.permutation(len(of))[:count] for of in (rows, clean))
        for place, i in zip(places, chosen, strict=True):
            # sources of one experiment number their rows alike
            out[int(place)] = dataclasses.replace(clean[int(i)], id=f"clean-{clean[int(i)].id}")
        return out
