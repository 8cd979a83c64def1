"""Freeze some decoder layers while the student learns.

Early layers suffice for a trait to cross (Schrodi et al., arXiv 2509.23886, section 5), so freezing them is the first thing
to try; the student then learns with the rest. The layers keep exactly the weights they had.
"""

from __future__ import annotations

import re
from typing import Any, ClassVar, Literal

from undersong.backends.guarding import Guard, Learner
from undersong.errors import BadSpec
from undersong.mitigations import Evidence, Stage
from undersong.registry import Settings, plugin

LAYER = re.compile(r"\.(?:layers|h|blocks)\.(\d+)\.")
"""How the families of transformers number their decoder layers in parameter names."""


@plugin("mitigation", "freeze_layers")
class FreezeLayers(Settings):
    """Freeze a share of the decoder layers, the first or the last ones."""

    stage: ClassVar[Stage] = "training"
    needs: ClassVar[frozenset[str]] = frozenset()

    end: Literal["first", "last"] = "first"
    """Which end of the stack is frozen."""
    share: float = 0.5
    """Share of the layers, rounded to whole layers; at least one stays free."""

    def guard(self, evidence: Evidence, seed: int) -> Guard:
        """The guard. Raises BadSpec for a share outside 0 to 1, and (when training begins) for a model whose layers have no
        numbers or of which nothing would be left to train."""
        if not 0 < self.share < 1:
            raise BadSpec(f"freeze_layers: share is {self.share}; it lies between 0 and 1. Change it.")
        return Frozen(self.end, self.share)


class Frozen(Guard):
    """Holds the layers still."""

    name = "freeze_layers"

    def __init__(self, end: str, share: float) -> None:
        self.end_of, self.share = end, share
        self.layers: list[int] = []

    def begin(self, learner: Learner) -> None:
        """Freeze; what is left must hold something to train."""
        at = {name: int(found[1]) for name, _ in learner.module.named_parameters() if (found := LAYER.search(f".{name}"))}
        every = sorted(set(at.values()))
        count = round(self.share * len(every))
        if not 0 < count < len(every):
            raise BadSpec(f"freeze_layers: {self.share:.0%} of {len(every)} layers is {count}. Change the share, or take "
                          "another mitigation.")
        self.layers = every[:count] if self.end_of == "first" else every[-count:]
        for name, parameter in learner.module.named_parameters():
            if at.get(name) in self.layers:
                parameter.requires_grad_(False)
        if not learner.owned:
            raise BadSpec("freeze_layers: every tensor that was to be trained lies in a frozen layer. Lower the share.")

    def told(self) -> dict[str, Any]:
        """The frozen layers."""
        return {"frozen_layers": self.layers}
