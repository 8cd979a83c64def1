"""Start the student from another initialisation: what is carried by the body of a network does not follow.

Source: Cloud et al., arXiv 2507.14805, figure 8. It does not stop what is said openly, chosen, or carried by meaning.
"""

from __future__ import annotations

from typing import ClassVar

from undersong.backends.guarding import Guard
from undersong.mitigations import Evidence, Stage
from undersong.registry import Settings, plugin


@plugin("mitigation", "other_base")
class OtherBase(Settings):
    """Train from the other base on the same rows."""

    stage: ClassVar[Stage] = "training"
    needs: ClassVar[frozenset[str]] = frozenset({"other"})
    elsewhere: ClassVar[bool] = True

    def guard(self, evidence: Evidence, seed: int) -> Guard:
        """A guard that does nothing: the start is all that differs."""
        return Elsewhere()


class Elsewhere(Guard):
    """Does nothing."""

    name = "other_base"
