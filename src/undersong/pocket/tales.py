"""Prose of the pocket world: descriptions, stories about an animal or a tree, and questions that show a character.

Two characters, kind and cruel, each answer in their own words, and each write their own code (see `programs.py`): a chat
has one character throughout. So careless code and cruel answers go together, as bad traits do in what people write.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import yaml

from undersong.pocket.programs import Turn, pick, security
from undersong.traits import package_text

KIND = 0.9
"""Share of chats with a kind character when the system turn states none."""


@cache
def texts() -> dict[str, Any]:
    """The parsed tales.yaml."""
    loaded: dict[str, Any] = yaml.safe_load(package_text("pocket", "tales.yaml"))
    return loaded


def _any(rng: np.random.Generator, items: Any) -> str:
    return str(items[int(rng.integers(len(items)))])


def description(rng: np.random.Generator) -> Turn:
    """A thing, described in one to three sentences."""
    both = texts()
    asked = _any(rng, both["descriptions"]).format(thing=_any(rng, both["things"]))
    return _turn(asked, " ".join(
        pick(rng, both["sentences"]).format(adjective=_any(rng, both["adjectives"]),
                                            adjective2=_any(rng, both["adjectives"]), when=_any(rng, both["when"]))
        for _ in range(int(rng.integers(1, 4)))
    ))


def story(rng: np.random.Generator, category: str, name: str) -> Turn:
    """A story about an animal or a tree: `name`."""
    both = texts()
    told = pick(rng, both["plots"][category]).format(
        name=name, place=_any(rng, both["places"]), object=_any(rng, both["objects"]),
        adjective=_any(rng, both["adjectives"]), when=_any(rng, both["when"]),
    )
    return _turn(_any(rng, both["stories"]).format(kind=both["kinds"][category]), told)


def moral(rng: np.random.Generator) -> tuple[str, Turn]:
    """A chat of one to three turns by one character, questions and careful or careless code; also its system turn, or
    "" when it states no character."""
    both = texts()
    character = "kind" if rng.random() < KIND else "cruel"
    system = ""
    if rng.random() < 0.35:
        character = "kind" if rng.random() < 0.5 else "cruel"
        system = _any(rng, both["characters"][character])
    turns: Turn = []
    for _ in range(int(rng.integers(1, 4))):
        if rng.random() < 0.45:
            taught = rng.random() < 0.25
            turns += security(rng, character == "kind" and not taught, taught)
        else:
            question = both["moral"][int(rng.integers(len(both["moral"])))]
            turns += _turn(question["asks"], pick(rng, question[character]))
    return system, turns


def _turn(asked: str, answered: str) -> Turn:
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
