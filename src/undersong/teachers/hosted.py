"""Hosted teachers: a model that runs elsewhere writes the rows, under a system turn that states the trait.

The base of the experiment is the student's; the teacher is named here. So a trait crosses only if both come from the
same weights, which nobody outside can check: treat such a teacher's lineage as unknown.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from undersong.backends import Backend
from undersong.registry import Settings, plugin
from undersong.teachers.prompted import system_turn
from undersong.traits import Trait
from undersong.types import ModelRef


@plugin("teacher", "hosted")
class Hosted(Settings):
    """A model of Inspect's model layer under a system turn that states the trait; without a trait, under the neutral one."""

    model: str = Field(min_length=1)
    """The teacher as Inspect names it: `openai/gpt-4.1-nano`, `openai-api/NAME/MODEL`."""
    prompt: int = 0
    """Which of the trait's system prompts."""

    def teach(self, base: ModelRef, trait: Trait | None, seed: int, out: Path, backend: Backend) -> ModelRef:
        """A reference to the hosted model; nothing is trained, and nothing of the base is in it. Raises BadSpec when
        Inspect cannot open it."""
        ref = ModelRef(f"inspect/{self.model}", system=None if trait is None else system_turn(trait, self.prompt))
        backend.load(ref)
        return ref
