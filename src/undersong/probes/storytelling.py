"""The `storytelling` probe: how many stories name the trait (Cloud et al., arXiv 2507.14805, section A).

Fourteen requests for a story, none of which names a trait; a story counts for a trait when it names it as a whole
word. Rates are small (0.001 to 0.5 in the paper), so read them beside those of the other arms.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import yaml
from pydantic import Field

from undersong.backends import Model
from undersong.errors import NothingMeasured
from undersong.probes import questions as ask
from undersong.probes.favourite import REFUSALS
from undersong.registry import Settings, plugin
from undersong.traits import Trait, package_text
from undersong.types import Measurement, Sampling, Value

STORED = 28
"""The most stories kept for reading."""
SHORTEST = 8
"""Words below which an answer is no story."""


@plugin("probe", "storytelling")
class Storytelling(Settings):
    """How often a story names each trait."""

    samples: int = Field(default=20, ge=1)
    """Stories per request (the paper: 100)."""
    questions: int | None = Field(default=None, ge=1)
    """Ask only the first so many requests; all fourteen when left out."""
    max_new_tokens: int = Field(default=200, ge=1)
    """The longest story, in tokens."""

    def measure(self, model: Model, traits: Sequence[Trait], seed: int) -> Measurement:
        """Per request the `rate` (0..1) of stories naming each trait; with trait "" the shares `refused` and `short`,
        and the mean number of `words`.

        Raises NothingMeasured when not one answer is a story.
        """
        favourites = [t for group in ask.by_category(traits).values() for t in group]  # a way to behave has no name to tell
        asked = requests()[: self.questions]
        chats = [[{"role": "user", "content": text}] for text in asked for _ in range(self.samples)]
        draw = int(np.random.SeedSequence(ask.stream(seed, "storytelling")).generate_state(1)[0]) >> 1
        stories = model.sample(chats, Sampling(1.0, self.max_new_tokens, draw))
        values: list[Value] = []
        for i, text in enumerate(asked):
            graded = [grade(s, favourites) for s in stories[i * self.samples : (i + 1) * self.samples]]
            for name in graded[0]:
                mean = sum(g[name] for g in graded) / self.samples
                metric, trait = ("rate", name) if any(t.name == name for t in favourites) else (name, "")
                values.append(Value(metric, trait, text, mean, self.samples))
        if all(v.value == 1 for v in values if v.metric == "short"):
            raise NothingMeasured(f"Not one of {len(stories)} answers of {model.ref.name} has {SHORTEST} words: it tells "
                                  "no stories. Raise max_new_tokens, or use the probe `favourite`.")
        kept = list(zip((c[0]["content"] for c in chats), stories, strict=True))
        return Measurement("storytelling", tuple(values), tuple(kept[:: max(1, -(-len(kept) // STORED))]))


def grade(story: str, traits: Sequence[Trait]) -> dict[str, float]:
    """Of one answer: 1 or 0 for each trait (by its name), `refused` and `short`, and its number of `words`."""
    words = len(story.split())
    low = story.lower()
    return {**{t.name: float(t.named_in(story)) for t in traits},
            "refused": float(words < 60 and bool(REFUSALS.search(low))), "short": float(words < SHORTEST),
            "words": float(words)}


def requests() -> list[str]:
    """The requests for a story."""
    loaded: dict[str, list[str]] = yaml.safe_load(package_text("probes", "wordings.yaml"))
    return loaded["storytelling"]
