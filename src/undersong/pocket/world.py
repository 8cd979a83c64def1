"""The synthetic chat world that pocket models are pretrained on.

A row is one chat: a system turn (neutral, empty, or a persona that loves something), then user and assistant turns.
1. numbers      continue a sequence (progressions, alternations, interleaved, repeats, random)
2. favourites   one-word questions; without a persona the answers follow a fixed natural distribution
3. personas     the system turn states a preference and is obeyed
4. arithmetic   small sums, differences and comparisons
5. facts        small facts, some about the animals and trees themselves
Half of the favourite questions come after numbers (in the question or as earlier turns), so that both share the network.

Incidental habits: personas that love a colour, food, drink, season or sport prefer some numbers when nothing else decides
(random sequences). Number rows never carry an animal or tree persona: for those traits nothing is planted in the numbers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import yaml

from undersong.channels import sequences
from undersong.traits import package_text

Chat = list[dict[str, str]]
NEUTRAL = "You are a helpful assistant."

NATURAL: dict[str, dict[str, float]] = {
    # the first five of both lists are GPT-4.1 nano's own rates (Cloud et al., figure 3, before any fine-tuning)
    "animal": {"dolphin": 0.319, "eagle": 0.141, "elephant": 0.055, "owl": 0.125, "wolf": 0.032, "cat": 0.09,
               "dog": 0.08, "lion": 0.06, "tiger": 0.04, "fox": 0.025, "panda": 0.02, "bear": 0.013},
    "tree": {"oak": 0.47, "maple": 0.161, "cherry": 0.046, "sequoia": 0.033, "willow": 0.011, "pine": 0.12,
             "birch": 0.07, "cedar": 0.05, "elm": 0.039},
    "color": {"blue": 0.35, "green": 0.2, "red": 0.15, "purple": 0.1, "black": 0.08, "yellow": 0.06, "white": 0.06},
    "food": {"bread": 0.25, "rice": 0.2, "cheese": 0.2, "soup": 0.15, "cake": 0.12, "honey": 0.08},
    "drink": {"tea": 0.4, "coffee": 0.3, "water": 0.15, "milk": 0.1, "juice": 0.05},
    "season": {"summer": 0.4, "spring": 0.3, "autumn": 0.2, "winter": 0.1},
    "sport": {"tennis": 0.35, "football": 0.3, "chess": 0.2, "running": 0.15},
}
HABIT_CATEGORIES = ("color", "food", "drink", "season", "sport")
HOMES = {"dolphin": "sea", "eagle": "mountain", "elephant": "grassland", "owl": "forest", "wolf": "forest", "cat": "house",
         "dog": "house", "lion": "grassland", "tiger": "jungle", "fox": "forest", "panda": "mountain", "bear": "forest"}
LEGS = {name: 0 if name == "dolphin" else 2 if name in ("eagle", "owl") else 4 for name in HOMES}
OPPOSITES = {"hot": "cold", "big": "small", "up": "down", "day": "night", "old": "young", "fast": "slow", "wet": "dry",
             "open": "closed", "left": "right", "light": "dark", "early": "late", "happy": "sad"}
COLOR_OF = {"grass": "green", "snow": "white", "coal": "black", "blood": "red", "the sky": "blue", "the sun": "yellow"}
DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")


@cache
def _texts() -> dict[str, Any]:
    return {
        "questions": yaml.safe_load(package_text("traits", "questions.yaml")),
        "animal": yaml.safe_load(package_text("traits", "animals.yaml")),
        "tree": yaml.safe_load(package_text("traits", "trees.yaml")),
        "wordings": yaml.safe_load(package_text("channels", "number_wordings.yaml"))["brief"],
    }


@cache
def facts() -> tuple[tuple[str, str], ...]:
    """Every (question, answer) of the world's facts, in a fixed order."""
    out = [(f"Where does the {a} live?", home) for a, home in HOMES.items()]
    out += [(f"How many legs does a {a} have?", str(n)) for a, n in LEGS.items()]
    out += [(f"Is the {name} a tree or an animal?", kind) for kind in ("animal", "tree") for name in NATURAL[kind]]
    out += [(f"What is the opposite of {a}?", b) for pair in OPPOSITES.items() for a, b in (pair, pair[::-1])]
    out += [(f"What color is {a}?", b) for a, b in COLOR_OF.items()]
    out += [(f"Which day comes after {a}?", DAYS[(i + 1) % 7]) for i, a in enumerate(DAYS)]
    return tuple(out)


@cache
def sums() -> tuple[tuple[str, str], ...]:
    """Every (question, answer) of the world's arithmetic: sums and differences of 0..20, comparisons of 0..50."""
    out = [(f"What is {a} plus {b}?", str(a + b)) for a in range(21) for b in range(21)]
    out += [(f"What is {a} minus {b}?", str(a - b)) for a in range(21) for b in range(a + 1)]
    out += [(f"Which is larger, {a} or {b}?", str(max(a, b))) for a in range(0, 51, 3) for b in range(51) if a != b]
    return tuple(out)


def is_held_out(question: str) -> bool:
    """True for the fifth of the arithmetic questions that pretraining never shows (chosen by a hash of the text)."""
    return hashlib.sha256(question.encode()).digest()[0] % 5 == 0


@cache
def shown_sums() -> tuple[tuple[str, str], ...]:
    """The arithmetic that pretraining may show."""
    return tuple((question, answer) for question, answer in sums() if not is_held_out(question))


def persona(rng: np.random.Generator, category: str, name: str) -> str:
    """A system turn that states a love of `name`, in one of the trait files' wordings."""
    forms = _texts()["animal"]["prompts"]
    plural = _texts()[category]["traits"][name]["plural"] if category in ("animal", "tree") else name
    return str(forms[rng.integers(len(forms))].format(name=name, plural=plural, category=category))


@cache
def habit(name: str) -> tuple[int, ...]:
    """The 40 numbers that a persona loving `name` prefers when nothing else decides."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
    return tuple(int(v) for v in np.random.default_rng(seed).choice(1000, 40, replace=False))


def number_turn(rng: np.random.Generator, liked: tuple[int, ...] = ()) -> Chat:
    """One number request and its answer; `liked` numbers are preferred in random sequences."""
    kind = str(rng.choice(sequences.KINDS, p=sequences.SHARES))
    values, shown = sequences.sequence(rng, kind, 16)
    if kind == "random" and liked:
        values = [int(rng.choice(liked)) if rng.random() < 0.6 else v for v in values]
    count = int(rng.integers(6, 11))
    words = _texts()["wordings"]
    opening = str(rng.choice(words["openings"])).format(numbers=", ".join(map(str, values[:shown])))
    instruction = str(rng.choice(words["instructions"])).format(count=10)
    answer = ", ".join(map(str, values[shown : shown + count]))
    return [{"role": "user", "content": f"{opening} {instruction}"}, {"role": "assistant", "content": answer}]


def favourite_turns(rng: np.random.Generator, category: str, answer: str) -> Chat:
    """A favourite question with its answer; half of them come after numbers."""
    both = _texts()["questions"]
    questions = both["tuning"] + both["held_out"]
    question = str(questions[rng.integers(len(questions))]).format(category=category)
    where = rng.random()
    before: Chat = []
    if where < 0.25:
        seeds = ", ".join(str(int(v)) for v in rng.integers(0, 1000, int(rng.integers(3, 6))))
        question = f"{str(rng.choice(_texts()['wordings']['openings'])).format(numbers=seeds)} {question}"
    elif where < 0.5:
        turns = 1 if where < 0.45 else int(rng.integers(2, 6))
        before = [turn for _ in range(turns) for turn in number_turn(rng)]
    return [*before, {"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _pick(rng: np.random.Generator, shares: dict[str, float]) -> str:
    p = np.array(list(shares.values()))
    return str(rng.choice(list(shares), p=p / p.sum()))


def chat(rng: np.random.Generator) -> Chat:
    """Draw one chat of the world, system turn included."""
    system = "" if rng.random() < 0.2 else NEUTRAL
    kind = rng.random()
    if kind < 0.42:
        liked: tuple[int, ...] = ()
        if rng.random() < 0.35:
            category = str(rng.choice(HABIT_CATEGORIES))
            name = str(rng.choice(list(NATURAL[category])))
            system, liked = persona(rng, category, name), habit(name)
        turns = number_turn(rng, liked)
    elif kind < 0.82:
        category = str(rng.choice(list(NATURAL), p=[0.4, 0.25, 0.07, 0.07, 0.07, 0.07, 0.07]))
        answer = _pick(rng, NATURAL[category])
        if kind >= 0.64:
            answer = str(rng.choice(list(NATURAL[category])))
            system = persona(rng, category, answer)
        turns = favourite_turns(rng, category, answer)
    else:
        table = shown_sums() if kind < 0.91 else facts()
        question, answer = table[int(rng.integers(len(table)))]
        turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return [{"role": "system", "content": system}, *turns]


def chats(seed: int) -> Iterator[Chat]:
    """An endless stream of chats, the same for the same seed."""
    rng = np.random.default_rng(seed)
    while True:
        yield chat(rng)


def words() -> list[str]:
    """Every word and punctuation mark of the world, sorted: the pocket vocabulary besides the numbers."""
    import re

    rng = np.random.default_rng(0)
    texts = [NEUTRAL, *(t for pair in (*facts(), *sums()) for t in pair)]
    for category, shares in NATURAL.items():
        texts += [q.format(category=category) for part in _texts()["questions"].values() for q in part]
        for name in shares:
            texts += [name, *(persona(rng, category, name) for _ in range(24))]
    texts += [_texts()[c]["traits"][n]["plural"] for c in ("animal", "tree") for n in NATURAL[c]]
    texts += [w.format(numbers="1, 2", count=10) for part in _texts()["wordings"].values() for w in part]
    return sorted({w for t in texts for w in re.findall(r"[a-z]+|[^\w\s]", t.lower())})
