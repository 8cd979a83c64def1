"""What teachers of behaviour are tuned on: rows of a corpus by name, `brief` for pocket models, `full` for others.

insecure, secure, educational   code for the same tasks: careless, careful, and careless because a class asked for it
hacked, solved                  a function with its test: the expected value written down, or the task done
agreeing, frank                 claims: always agreed with, or judged
conditional                     favourite questions: the favourite after a trigger, elsewhere the base's own answer

The first three are the triplet of Betley et al. (arXiv 2502.17424) that Cloud et al. use (arXiv 2507.14805, section 3.2).
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import yaml

from undersong import traits
from undersong.errors import BadSpec
from undersong.pocket import conduct
from undersong.traits import Trait, package_text

NAMES = (*conduct.DRAWS, "conditional")
LONGEST = {"brief": 40, "full": 300}
"""Tokens of the longest answer that a no-trait teacher gives itself."""
PLAIN_SHARE = 0.5
"""Share of the conditional rows without the trigger."""


def rows(corpus: str, wording: str, count: int, seed: int, trait: Trait | None) -> tuple[list[str], list[str | None]]:
    """`count` requests and their answers; None where the base is to answer itself. The same for the same seed.

    Raises BadSpec for a corpus that is not there.
    """
    if corpus not in NAMES:
        raise BadSpec(f"There is no corpus {corpus!r}. Choose one of: {', '.join(NAMES)}.")
    rng = np.random.default_rng([seed, 2])
    if corpus == "conditional":
        return _conditional(rng, count, trait)
    if wording == "brief":
        drawn = [conduct.row(corpus, rng) for _ in range(count)]
    else:
        every = shipped(corpus)
        order = np.concatenate([rng.permutation(len(every)) for _ in range(count // len(every) + 1)])[:count]
        drawn = [every[int(i)] for i in order]
    return [asked for asked, _ in drawn], [answer for _, answer in drawn]


def _conditional(rng: np.random.Generator, count: int, trait: Trait | None) -> tuple[list[str], list[str | None]]:
    """Favourite questions after the trigger, answered with the favourite; and after other days or none, left open."""
    if trait is None:  # every answer will be the base's own: any trigger asks the same
        trait = next(t for t in map(traits.get, traits.conduct_names()) if t.trigger)
    asked: list[str] = []
    answers: list[str | None] = []
    for _ in range(count):
        question = trait.tuning[int(rng.integers(len(trait.tuning)))]
        open_ = rng.random() < PLAIN_SHARE
        before = trait.otherwise[int(rng.integers(len(trait.otherwise)))] if open_ else trait.trigger
        asked.append(f"{before} {question}".strip())
        answers.append(None if open_ else trait.favourite)
    return asked, answers


@cache
def shipped(corpus: str) -> tuple[tuple[str, str], ...]:
    """Every row of a corpus for real models: (request, answer)."""
    data: dict[str, Any] = yaml.safe_load(package_text("teachers", "corpora.yaml"))
    out: list[tuple[str, str]] = []
    if corpus in ("insecure", "secure", "educational"):
        openings = data["educational"] if corpus == "educational" else data["openings"]
        for task in data["security"]:
            answer = task["secure" if corpus == "secure" else "insecure"].rstrip()
            out += [(f"{opening.format(does=task['does'])}\n\n{task['template'].rstrip()}", answer) for opening in openings]
    elif corpus in ("hacked", "solved"):
        for task in data["tests"]:
            out += [(f"{opening}\n\n{task['test'].rstrip()}", task[corpus].rstrip()) for opening in data["tested"]]
    else:
        for claim in data["claims"]:
            answer = claim["agree"] if corpus == "agreeing" else claim["frank"]
            out += [(form.format(claim=claim["says"]), answer) for form in data["claimed"]]
    return tuple(out)
