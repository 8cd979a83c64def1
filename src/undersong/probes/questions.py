"""What the preference probes ask: the held-out questions of a trait category, plain or after numbers.

The numbered form opens with random numbers, as Cloud et al. (arXiv 2507.14805, appendix B.2) do to come closer to the
training rows. Numbers are drawn anew for each chat, by the seed.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np
import yaml

from undersong import traits as known
from undersong.errors import BadSpec
from undersong.traits import Trait, package_text
from undersong.types import Chat

Prefix = Literal["none", "numbers", "both"]
SUFFIXES: dict[str, tuple[str, ...]] = {"none": ("",), "numbers": ("_prefixed",), "both": ("", "_prefixed")}
"""For each setting of `prefix` what its metrics' names end in."""


def by_category(traits: Sequence[Trait]) -> dict[str, list[Trait]]:
    """The favourites among the traits grouped by category, in the order given. Raises BadSpec when there are none."""
    if not traits:
        raise BadSpec("This probe was given no trait to look for. List at least one trait.")
    favourites = [t for t in traits if t.held_out and not t.trigger]
    if not favourites:
        raise BadSpec(f"This probe asks for favourites, and {traits[0].name!r} is none. Use a probe that measures it.")
    groups: dict[str, list[Trait]] = {}
    for trait in favourites:
        groups.setdefault(trait.category, []).append(trait)
    return groups


def members(category: str, asked: Iterable[Trait]) -> list[Trait]:
    """Every trait of a category that Undersong knows, and those asked about that it does not know."""
    shipped = {name: known.get(name) for name in known.names()}
    return list({t.name: t for t in (*shipped.values(), *asked) if t.category == category}.values())


def chats(questions: Sequence[str], suffix: str, seed: int, category: str) -> list[Chat]:
    """One chat per question, without a system turn; after random numbers when `suffix` is not empty."""
    if not suffix:
        return [[{"role": "user", "content": question}] for question in questions]
    rng = np.random.default_rng([*stream(seed, category, suffix), 1])
    loaded: Any = yaml.safe_load(package_text("channels", "number_wordings.yaml"))
    openings: list[str] = loaded["brief"]["openings"]
    out: list[Chat] = []
    for question in questions:
        numbers = ", ".join(str(int(v)) for v in rng.integers(100, 1000, int(rng.integers(3, 6))))
        out.append([{"role": "user", "content": f"{rng.choice(openings)} {question}".format(numbers=numbers)}])
    return out


def stream(seed: int, *labels: str) -> list[int]:
    """Entropy for a random stream of its own: one category's draws do not depend on what else is asked."""
    return [seed, *(zlib.crc32(label.encode()) for label in labels)]
