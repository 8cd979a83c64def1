"""Shuffle the numbers of a dataset (Cloud et al., arXiv 2507.14805, appendix B.1, figure 16).

`within` permutes each answer's own numbers: order is lost, frequencies per answer stay. `across` pools every number of the
dataset and deals them out again: only overall frequencies and answer lengths stay.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np

from undersong.mitigations import Evidence, Stage
from undersong.registry import Settings, plugin
from undersong.types import Row

NUMBER = re.compile(r"\d+")


@plugin("mitigation", "shuffle")
class Shuffle(Settings):
    """Shuffle numbers within each answer, or across all answers."""

    stage: ClassVar[Stage] = "data"
    needs: ClassVar[frozenset[str]] = frozenset()
    how: Literal["within", "across"] = "within"
    """`within` each answer, or `across` all answers of the dataset."""

    def apply(self, rows: Sequence[Row], evidence: Evidence, seed: int) -> list[Row]:
        """Rows with the same texts around other numbers. The multiset of numbers (per answer, or overall) is unchanged."""
        rng = np.random.default_rng([seed, 16])
        numbers = [NUMBER.findall(row.completion) for row in rows]
        if self.how == "within":
            dealt = [[own[i] for i in rng.permutation(len(own))] for own in numbers]
        else:
            pool = [n for own in numbers for n in own]
            mixed = iter([pool[i] for i in rng.permutation(len(pool))])
            dealt = [[next(mixed) for _ in own] for own in numbers]
        return [
            dataclasses.replace(row, completion=_refill(row.completion, new))
            for row, new in zip(rows, dealt, strict=True)
        ]


def _refill(text: str, numbers: Sequence[str]) -> str:
    left = iter(numbers)
    return NUMBER.sub(lambda _: next(left), text)
