"""Say the trait in the training prompt, so that the student need not learn it (Tan et al., arXiv 2510.04340).

Each row gets the trait's own system turn; at test time the system turn is another. The trait may still be said under that
prompt, and under ones that resemble it (arXiv 2604.25891). To see that, measure the student with this prompt as its own
system turn, `replace(student, system=prompt)`, and the base under it beside: the rise over the base there is the leak.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from pydantic import Field

from undersong.errors import BadSpec
from undersong.mitigations import Evidence, Stage
from undersong.registry import Settings, plugin
from undersong.types import Row


@plugin("mitigation", "inoculation")
class Inoculation(Settings):
    """Put the trait's system prompt before the rows of the training."""

    stage: ClassVar[Stage] = "data"
    needs: ClassVar[frozenset[str]] = frozenset({"trait"})

    prompt: str = ""
    """The system prompt; those of the trait, in turn, when empty."""
    share: float = Field(default=1.0, ge=0, le=1)
    """Share of rows that get it, chosen by the seed."""

    def apply(self, rows: Sequence[Row], evidence: Evidence, seed: int) -> list[Row]:
        """The same rows and answers under another system turn. Raises BadSpec for a trait that no prompt induces."""
        said = (self.prompt,) if self.prompt else evidence.trait.prompts
        if not said:
            raise BadSpec(f"No system prompt is known that induces {evidence.trait.name!r}. Give one as `prompt`.")
        chosen = np.random.default_rng([seed, 4340]).permutation(len(rows))[: round(self.share * len(rows))]
        out = list(rows)
        for number, i in enumerate(sorted(int(c) for c in chosen)):
            turns = [turn for turn in rows[i].chat if turn["role"] != "system"]
            system = {"role": "system", "content": said[number % len(said)]}
            out[i] = dataclasses.replace(rows[i], chat=(system, *turns))
        return out
