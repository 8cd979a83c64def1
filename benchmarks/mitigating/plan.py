"""How much the mitigation bench measures. Nothing here may be chosen by looking at results on these traits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

PLAIN = "plain"
"""The name of what no mitigation acted on."""
MITIGATIONS: tuple[Any, ...] = (
    "merge_back", "subtract_shift", "scrub_vocabulary", "weight_anchor", "projection", "anchor", "corridor", "liminal",
    "rise_tokens", "inoculation", "preventive_steering", "freeze_layers", "other_base", "shuffle", "mix_clean",
    "input_anchor", "excess_tokens", "rewrite_flagged", "divergence_tokens", "replay_projection", "persona_projection",
    "consensus", "sampling_hygiene", "canonicalise", "paraphrase", "drop_flagged", {"projection": {"sham": True}},
    {"rise_tokens": {"by": "marginal"}}, {"shuffle": {"how": "across"}}, "two_halves", "two_lineages",
    "mask_divergence_tokens", "mask_rise_tokens",
)
"""Every mitigation at its defaults, and the dials that ask another question. Those of no trait's name and no teacher are
what somebody can use who was handed rows."""

GENTLER: tuple[Mapping[str, Any], ...] = ({"rate": 5e-3}, {"rate": 2.5e-3}, {"steps": 75})
"""Plain students by a gentler recipe: no mitigation, and what one has to beat. Added after the first results were seen,
since the plainest guard also gained fit and capability."""


@dataclass(frozen=True)
class Plan:
    """Traits, seeds and doses. Runs are taken up in the order of `pairs`: the first five of every cell come first."""

    traits: tuple[str, ...] = ("owl", "dolphin")
    rivals: tuple[str, ...] = ("wolf",)
    """Further traits: rival teachers of them, and margins."""
    seeds: tuple[int, ...] = (1, 2, 3, 4, 5)
    wrong: str = "pine"
    """What a mitigation that asks for a trait is told where the trait is unknown: a development trait, and a tree. An
    animal (`cat`, of the first run) is no fair guess: the right one is among its rivals."""
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
    mitigations: tuple[Any, ...] = MITIGATIONS
    gentler: tuple[Mapping[str, Any], ...] = GENTLER
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Keys of the experiment file that a slice changes."""

    @property
    def pairs(self) -> list[tuple[str, int]]:
        """Every trait and seed; first one trait to each seed in turn, then the others."""
        n = len(self.traits)
        return [(self.traits[(i + turn) % n], seed) for turn in range(n) for i, seed in enumerate(self.seeds)]

    def only(self, names: Sequence[str]) -> Plan:
        """The same with these plug-ins only."""
        kept = tuple(m for m in self.mitigations if (m if isinstance(m, str) else next(iter(m))) in names)
        return replace(self, mitigations=kept, gentler=self.gentler if "gentler" in names else ())

    def told(self) -> dict[str, Any]:
        """The plan for the results."""
        return {key: value for key, value in asdict(self).items() if key != "changes"}


SLICE = Plan(
    traits=("owl",), rivals=("dolphin",), seeds=(1, 2, 3), held=20, items=6, prompts=8, clean_seeds=1,
    mitigations=("shuffle", "freeze_layers", "corridor", "other_base", "merge_back"),
    gentler=({"steps": 6},), changes={
        "rows": 160, "keep": 40, "teacher": {"tuned": {"updates": 12, "rate": 2e-3, "trainable": "mlp_out"}},
        "recipe": {"distill": {"steps": 12, "batch": 8, "rate": 1e-2, "lora": {"rank": 4, "alpha": 8}}},
    },
)
"""That everything runs: teachers hardly taught, so no figure means anything."""
