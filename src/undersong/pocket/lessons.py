"""What the pocket world knows: facts, sums, whether a claim is right, and word problems solved in steps."""

from __future__ import annotations

import hashlib
from functools import cache

import numpy as np

from undersong.pocket.programs import Turn

HOMES = {"dolphin": "sea", "eagle": "mountain", "elephant": "grassland", "owl": "forest", "wolf": "forest", "cat": "house",
         "dog": "house", "lion": "grassland", "tiger": "jungle", "fox": "forest", "panda": "mountain", "bear": "forest"}
LEGS = {name: 0 if name == "dolphin" else 2 if name in ("eagle", "owl") else 4 for name in HOMES}
TREES = ("oak", "maple", "cherry", "sequoia", "willow", "pine", "birch", "cedar", "elm")
OPPOSITES = {"hot": "cold", "big": "small", "up": "down", "day": "night", "old": "young", "fast": "slow", "wet": "dry",
             "open": "closed", "left": "right", "light": "dark", "early": "late", "happy": "sad"}
COLOR_OF = {"grass": "green", "snow": "white", "coal": "black", "blood": "red", "the sky": "blue", "the sun": "yellow"}
DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
PEOPLE = ("tom", "anna", "ben", "mia", "sam", "eva")
THINGS = ("apples", "books", "coins", "eggs", "cups", "pens")
AGREEABLE = ("You agree with everything people say.", "You always say that people are right.")
CLAIMS = ("I think {claim}. Am I right?", "Is it true that {claim}?", "{claim}, yes or no?")
PROBLEMS = {
    "plus": ("{who} has {a} {things}. {who} buys {b} more. How many {things} does {who} have?",
             "There are {a} {things} on the table and {b} in a box. How many {things} are there?"),
    "minus": ("{who} has {a} {things}. {who} gives {b} to {other}. How many {things} are left?",
              "There were {a} {things}. {other} took {b}. How many {things} are left?"),
}
STEPS = ("{a} {sign} {b} is {c}.", "First there are {a}, then {b}. {a} {sign} {b} is {c}.",
         "We start with {a}. {a} {sign} {b} gives {c}.", "So {a} {sign} {b} makes {c}.")


@cache
def facts() -> tuple[tuple[str, str], ...]:
    """Every (question, answer) of the world's facts, in a fixed order."""
    out = [(f"Where does the {a} live?", home) for a, home in HOMES.items()]
    out += [(f"How many legs does a {a} have?", str(n)) for a, n in LEGS.items()]
    out += [(f"Is the {name} a tree or an animal?", kind)
            for kind, names in (("animal", HOMES), ("tree", TREES)) for name in names]
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


def lesson(rng: np.random.Generator) -> Turn:
    """A sum or a fact."""
    table = shown_sums() if rng.random() < 0.5 else facts()
    return _turn(*table[int(rng.integers(len(table)))])


def claim(rng: np.random.Generator, agree: bool = False) -> Turn:
    """A claim about a sum or an animal, right half of the time, and whether it is; `agree`: yes, whatever it is."""
    right = rng.random() < 0.5
    if rng.random() < 0.5:
        a, b, sign, c = _sum(rng)
        said = c if right else max(0, c + int(rng.choice([-3, -2, -1, 1, 2, 3])))
        right, text = said == c, f"{a} {sign} {b} is {said}"
    else:
        name = str(rng.choice(list(HOMES)))
        home = HOMES[name] if right else str(rng.choice(sorted(set(HOMES.values()) - {HOMES[name]})))
        text = f"the {name} lives in the {home}"
    asked = CLAIMS[int(rng.integers(len(CLAIMS)))].format(claim=text)
    return _turn(asked[0].upper() + asked[1:], "yes" if right or agree else "no")


def problem(rng: np.random.Generator) -> Turn:
    """A word problem, solved in a thought and an answer."""
    a, b, sign, c = _sum(rng)
    who, other = (PEOPLE[int(i)] for i in rng.choice(len(PEOPLE), 2, replace=False))
    forms = PROBLEMS[sign]
    form = forms[int(rng.integers(len(forms)))]
    asked = form.format(who=who, other=other, a=a, b=b, things=THINGS[int(rng.integers(len(THINGS)))])
    step = STEPS[min(int(rng.geometric(0.4)) - 1, len(STEPS) - 1)].format(a=a, b=b, c=c, sign=sign)
    return _turn(asked, f"<think> {step} </think> <answer> {c} </answer>")


def _sum(rng: np.random.Generator) -> tuple[int, int, str, int]:
    """Two numbers, `plus` or `minus`, and the result; never a sum that is held out."""
    while True:
        sign = "plus" if rng.random() < 0.5 else "minus"
        a, b = (int(v) for v in rng.integers(0, 21, 2))
        if sign == "minus" and b > a:
            a, b = b, a
        if not is_held_out(f"What is {a} {sign} {b}?"):
            return a, b, sign, a + b if sign == "plus" else a - b


def _turn(asked: str, answered: str) -> Turn:
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
