"""How much the mitigation bench measures. Nothing here may be chosen by looking at results on these traits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

WRONG = "cat"
"""What a mitigation that asks for a trait is told where the trait is unknown: a development trait."""
MITIGATIONS: tuple[Any, ...] = (
    "shuffle", {"shuffle": {"how": "across"}}, "canonicalise", "sampling_hygiene", "rise_tokens",
    {"rise_tokens": {"by": "marginal"}}, "divergence_tokens", "drop_flagged", "rewrite_flagged", "mix_clean", "paraphrase",
    "inoculation", "freeze_layers", "weight_anchor", "liminal", "anchor", "persona_projection", "corridor", "projection",
    {"projection": {"sham": True}}, "other_base", "merge_back", "scrub_vocabulary", "subtract_shift",
)
"""Every mitigation at its defaults, and the dials that ask another question. Those of no trait's name and no teacher are
what somebody can use who was handed rows."""


@dataclass(frozen=True)
class Plan:
    """Traits, seeds and doses. Runs are taken up in the order of `pairs`: the first five of every cell come first."""

    traits: tuple[str, ...] = ("owl", "dolphin")
    rivals: tuple[str, ...] = ("wolf",)
    """Further traits: rival teachers of them, and margins."""
    seeds: tuple[int, ...] = (1, 2, 3, 4, 5)
    share: float = 0.25
    """Share of trait rows in the mixed dose."""
    held: int = 300
    """Held-out rows of the same source, for the carrier fit."""
    items: int = 300
    """Capability questions per domain."""
    prompts: int = 128
    """Carrier prompts at which activations are read."""
    clean_seeds: int = 2
    """Seeds at which a guard is also tried on rows without a trait."""
    mitigations: Sequence[Any] = MITIGATIONS

    @property
    def pairs(self) -> list[tuple[str, int]]:
        """Every trait and seed; first one trait to each seed in turn, then the others."""
        n = len(self.traits)
        return [(self.traits[(i + turn) % n], seed) for turn in range(n) for i, seed in enumerate(self.seeds)]
