"""Probes: is the trait there? A plug-in is settings plus `measure`, which gives per-question values of one model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from undersong.backends import Model
from undersong.traits import Trait
from undersong.types import Measurement


class Probe(Protocol):
    """The contract of a probe plug-in. A probe that matches nothing raises NothingMeasured, never a silent 0."""

    def measure(self, model: Model, traits: Sequence[Trait], seed: int) -> Measurement:
        """Per-question values for each of `traits` (and trait "" for values about no trait)."""
        ...
