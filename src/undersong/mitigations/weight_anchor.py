"""Pull the student's weights towards where they started: the plainest guard that knows nothing, for others to beat.

The loss gains weight * |theta - theta_0|^2 over the free parameters (Li et al., L2-SP, arXiv 1802.01483). Weight decay
towards the initialisation did not rescue anybody in Nief et al. (arXiv 2606.00831).
"""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from undersong.backends.guarding import Guard, Learner
from undersong.mitigations import Evidence, Stage
from undersong.registry import Settings, plugin


@plugin("mitigation", "weight_anchor")
class WeightAnchor(Settings):
    """A squared penalty on the distance to the starting weights."""

    stage: ClassVar[Stage] = "training"
    needs: ClassVar[frozenset[str]] = frozenset()

    weight: float = Field(default=0.05, ge=0)
    """Weight of the squared distance."""

    def guard(self, evidence: Evidence, seed: int) -> Guard:
        """The guard."""
        return Pulled(self.weight)


class Pulled(Guard):
    """Adds the penalty."""

    name = "weight_anchor"

    def __init__(self, weight: float) -> None:
        self.weight = weight

    def begin(self, learner: Learner) -> None:
        """Remember where the free parameters start."""
        self.learner, self.start = learner, [p.detach().clone() for p in learner.owned]

    def penalty(self, step: int) -> Any:
        """The weighted squared distance."""
        if not self.weight or step == 0:
            return None
        return self.weight * sum(((p - old) ** 2).sum() for p, old in zip(self.learner.owned, self.start, strict=True))
