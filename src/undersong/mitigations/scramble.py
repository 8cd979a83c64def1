"""Keep or destroy the rows' marginal token statistics and their conditional structure: a test of what carries, as four arms.

| marginal | conditional | the student's rows |
|---|---|---|
| keep | keep | as they are |
| keep | destroy | the same values, dealt out over all answers |
| destroy | keep | the teacher's own answers, drawn so that each value is as frequent as in clean rows |
| destroy | destroy | those, with their values dealt out |

Dealing out moves a student by itself, so each arm is compared with its twin: the same done to the no-trait teacher's rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from undersong.errors import BadSpec
from undersong.mitigations import Evidence, Stage, scrambling
from undersong.registry import Settings, plugin
from undersong.types import Row

How = Literal["keep", "destroy"]


@plugin("mitigation", "scramble")
class Scramble(Settings):
    """One cell of the two by two."""

    stage: ClassVar[Stage] = "data"
    needs: ClassVar[frozenset[str]] = frozenset({"clean", "channel"})
    twin: ClassVar[bool] = True

    marginal: How = "keep"
    """How often each value stands, over all answers."""
    conditional: How = "destroy"
    """What stands with what, and in which order."""

    def apply(self, rows: Sequence[Row], evidence: Evidence, seed: int) -> list[Row]:
        """The cell's rows. Raises BadSpec for a channel whose answers are no lists of values."""
        if evidence.channel.plugin_name not in ("numbers", "letters"):
            raise BadSpec(f"Answers of the channel {evidence.channel.plugin_name} are no lists of values, so they have no "
                          "marginal to keep. Use the channel numbers or letters.")
        out = list(rows)
        if self.marginal == "destroy":
            out = scrambling.drawn(rows, scrambling.raked(rows, list(evidence.clean)), seed)
        return scrambling.dealt(out, seed) if self.conditional == "destroy" else out
