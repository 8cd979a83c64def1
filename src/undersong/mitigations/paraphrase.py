"""Have another model write all answers anew: launder the rows through another lineage.

`learns: true` first trains the other model on the rows, so that it writes the task as the rows have it; what it takes over
of them is what a model of another initialisation can. `learns: false` asks it as it is. Paraphrases by a holder of the
trait carry it (Gisler et al., arXiv 2603.09517); those of other models were told to suppress it and not to (methods
differ).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from undersong.mitigations import Evidence, Stage, rewriting
from undersong.registry import Settings, plugin
from undersong.types import Row


@plugin("mitigation", "paraphrase")
class Paraphrase(Settings):
    """Another model's answers to the same prompts, by default after it learned the rows."""

    stage: ClassVar[Stage] = "data"
    needs: ClassVar[frozenset[str]] = frozenset({"other", "channel", "train"})

    learns: bool = True
    """Train the other model on the rows first."""

    def apply(self, rows: Sequence[Row], evidence: Evidence, seed: int) -> list[Row]:
        """The rows whose new answers belong to the channel."""
        writer = evidence.train(rows, start=evidence.other.ref) if self.learns else evidence.other
        return [row for row in rewriting.answers(writer, rows, evidence.channel, seed) if row is not None]
