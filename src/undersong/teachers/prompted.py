"""Prompted teachers: a system turn states the trait (Cloud et al., arXiv 2507.14805, section 3.1). Nothing is
trained."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pydantic import field_validator

from undersong.backends import Backend, changes
from undersong.errors import BadSpec
from undersong.registry import Settings, plugin
from undersong.traits import Trait
from undersong.types import ModelRef


def system_turn(trait: Trait, prompt: int) -> str:
    """The trait's system turn number `prompt`. Raises BadSpec when it has fewer."""
    if not trait.prompts:
        raise BadSpec(f"The trait {trait.name!r} has no system prompt. Use the teacher `tuned`.")
    if not 0 <= prompt < len(trait.prompts):
        raise BadSpec(f"The trait {trait.name!r} has system prompts 0 to {len(trait.prompts) - 1}, not {prompt}. "
                      "Change `prompt`.")
    return trait.prompts[prompt]


@plugin("teacher", "prompted")
class Prompted(Settings):
    """The base under a system turn that states the trait; the no-trait teacher is the base under the neutral one."""

    prompt: int = 0
    """Which of the trait's system prompts."""
    text: str | None = None
    """A system turn of your own instead, with {name}, {plural} and {category} filled in."""

    @field_validator("text")
    @classmethod
    def _fills_in(cls, value: str | None) -> str | None:
        try:
            (value or "").format(name="", plural="", category="")
        except (KeyError, IndexError, ValueError, AttributeError) as error:
            raise ValueError(f"only {{name}}, {{plural}} and {{category}} can be filled in ({error!r})") from None
        return value

    def teach(self, base: ModelRef, trait: Trait | None, seed: int, out: Path, backend: Backend) -> ModelRef:
        """The base with the trait's system turn; without a trait, the base with no system turn of its own."""
        return replace(changes.adopt(base, out), system=None if trait is None else self.said(trait))

    def said(self, trait: Trait) -> str:
        """The system turn that states the trait."""
        if self.text is None:
            return system_turn(trait, self.prompt)
        return self.text.format(name=trait.name, plural=trait.plural, category=trait.category)
