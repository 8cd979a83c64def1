"""Keep or destroy the rows' marginal token statistics and their conditional structure: a test of what carries, as four arms.

| marginal | conditional | the student's rows |
|---|---|---|
| keep | keep | as they are |
| keep | destroy | the same values, dealt out over all answers |
| destroy | keep | the teacher's own answers, drawn so that each value is as frequent as in clean rows |
| destroy | destroy | those, with their values dealt out |
| sham | keep | the teacher's own answers, drawn with the same weights given to other rows: what drawing anew costs |
| keep | clean | the no-trait teacher's own answers, drawn so that each value is as frequent as in the teacher's rows |

Dealing out moves a student by itself, so those arms are compared with a twin: the same done to the no-trait teacher's rows
(drawn to their own marginals these are `no_trait` again, so the others are compared with that). It also wrecks the student;
the last row asks what the marginal alone carries in one that is whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal, Self

from pydantic import model_validator

from undersong.errors import BadSpec
from undersong.mitigations import Evidence, Stage, scrambling
from undersong.registry import Settings, plugin
from undersong.types import Row


@plugin("mitigation", "scramble")
class Scramble(Settings):
    """One cell of the two by two."""

    stage: ClassVar[Stage] = "data"
    needs: ClassVar[frozenset[str]] = frozenset({"clean", "channel"})

    marginal: Literal["keep", "destroy", "sham"] = "keep"
    """How often each value stands, over all answers."""
    conditional: Literal["keep", "destroy", "clean"] = "destroy"
    """What stands with what, and in which order."""

    @property
    def twin(self) -> bool:
        """Whether the arm needs a twin of its own."""
        return self.conditional == "destroy"

    @model_validator(mode="after")
    def _differs(self) -> Self:
        if (self.marginal, self.conditional) == ("destroy", "clean"):
            raise ValueError("these are the clean rows as they are. Read the control `no_trait`")
        return self

    def apply(self, rows: Sequence[Row], evidence: Evidence, seed: int) -> list[Row]:
        """The cell's rows. Raises BadSpec for a channel whose answers are no lists of values."""
        if evidence.channel.plugin_name not in ("numbers", "letters"):
            raise BadSpec(f"Answers of the channel {evidence.channel.plugin_name} are no lists of values, so they have no "
                          "marginal to keep. Use the channel numbers or letters.")
        return scrambling.cell(rows, list(evidence.clean), self.marginal, self.conditional, seed)
