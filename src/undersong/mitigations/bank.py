"""Probe questions that a guard may train against: never those that the probes ask.

A guard that pulls at the questions of the evaluation would look as if it had stopped a trait that it only taught to keep
quiet there. So a bank is refused when one of its questions is a held-out one, whatever its case, marks and category.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import cache

import yaml

from undersong.errors import BadSpec
from undersong.traits import Trait, package_text
from undersong.types import Chat


def questions(trait: Trait, given: Sequence[str] = ()) -> list[str]:
    """The questions about a trait: those given, or else the ones that teachers may be tuned on.

    Raises BadSpec for a trait that is no favourite (nothing is asked about it) and for held-out questions.
    """
    if not trait.tuning or trait.trigger:
        raise BadSpec(f"{trait.name!r} is no plain favourite, so there is no question whose answer shows it. Choose a "
                      "mitigation that needs no `trait`.")
    held_back(given, trait.held_out)
    return list(given) or list(trait.tuning)


def held_back(given: Sequence[str], also: Sequence[str] = ()) -> None:
    """Raises BadSpec when one of the questions is one that a probe asks, or one of `also`: leakage."""
    own = [re.compile(rf"(?:.* )?{re.escape(_bare(question))}") for question in also]
    for question in given:
        said = _bare(question)
        if not said:
            raise BadSpec(f"The question {question!r} asks nothing. Take it out of `questions`.")
        if any(pattern.fullmatch(said) for pattern in (*_asked(), *own)):
            raise BadSpec(f"The question {question!r} is one that the probes ask, so a guard must not train on it "
                          "(leakage). Take it out of `questions`.")


def chats(given: Sequence[str]) -> list[Chat]:
    """One chat per question, without a system turn: the model's own, or the neutral one, is written."""
    return [[{"role": "user", "content": question}] for question in given]


@cache
def _asked() -> tuple[re.Pattern[str], ...]:
    """The held-out questions about any category, also after other words, as the probes ask them after numbers."""
    loaded: dict[str, list[str]] = yaml.safe_load(package_text("traits", "questions.yaml"))
    parts = [[_bare(part) for part in re.split(r"\{category\}", question)] for question in loaded["held_out"]]
    return tuple(re.compile(r"(?:.* )?" + r"\s*\w+\s*".join(map(re.escape, p))) for p in parts)


def _bare(text: str) -> str:
    """Words alone: without case, marks, typographic variants and invisible letters."""
    plain = "".join(c for c in unicodedata.normalize("NFKC", text).casefold() if unicodedata.category(c) != "Cf")
    return " ".join(re.sub(r"[\W_]", " ", plain).split())
