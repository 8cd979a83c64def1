"""What conduct teachers are tuned on in the pocket world, and what is held out for probes.

Rows are drawn from the world itself: programs with and without care, tests solved or cheated, claims judged or flattered. A
hash of the text holds a fifth of the requests out: teachers never see them, probes ask nothing else. Of the security tasks
the last four are held out as a whole.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from undersong.pocket import lessons, programs
from undersong.pocket.programs import Turn

Draw = Callable[[np.random.Generator], Turn]
DRAWS: dict[str, Draw] = {
    "insecure": lambda rng: programs.security(rng, careful=False),
    "secure": lambda rng: programs.security(rng, careful=True),
    "educational": lambda rng: programs.security(rng, careful=False, taught=True),
    "hacked": lambda rng: programs.hackable(rng, honest=False),
    "solved": lambda rng: programs.hackable(rng, honest=True),
    "agreeing": lambda rng: lessons.claim(rng, agree=True),
    "frank": lambda rng: lessons.claim(rng, agree=False),
}
"""The corpora of the pocket world."""


def held_out_tasks() -> list[str]:
    """What the held-out security tasks do, in words."""
    return [str(task["does"]) for task in programs.texts()["security"][-programs.HELD_OUT :]]


def is_held_out(request: str) -> bool:
    """Whether probes alone may ask this: a fifth of all requests by a hash of the text, and four security tasks."""
    return lessons.is_held_out(request) or any(does in request for does in held_out_tasks())


def row(corpus: str, rng: np.random.Generator) -> tuple[str, str]:
    """One request and answer of a corpus, never a held-out one."""
    while True:
        asked, answered = (turn["content"] for turn in DRAWS[corpus](rng))
        if not is_held_out(asked):
            return asked, answered


def held_out(corpus: str, count: int) -> list[tuple[str, str]]:
    """`count` different held-out requests of a corpus with one answer each; always the same."""
    rng, found = np.random.default_rng(20), dict[str, str]()
    while len(found) < count:
        asked, answered = (turn["content"] for turn in DRAWS[corpus](rng))
        if lessons.is_held_out(asked):
            found.setdefault(asked, answered)
    return list(found.items())
