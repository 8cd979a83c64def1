"""The synthetic chat world that pocket models are pretrained on.

A row is one chat: a system turn (neutral, empty, or a persona), then user and assistant turns.
1. numbers      continue a sequence (progressions, alternations, interleaved, repeats, random), or letters by the same rules
2. favourites   one-word questions; without a persona the answers follow a fixed natural distribution
3. personas     the system turn states a preference and is obeyed
4. lessons      facts, sums, claims, word problems (`lessons.py`)
5. programs     one-line functions, careful and careless (`programs.py`)
6. tales        descriptions, stories, questions that show a character (`tales.py`)
Half of the favourite questions come after numbers (in the question or as earlier turns), so that both share the network.
A third of the lessons has a persona, which changes no answer there: what one loves does not change what one knows.

Incidental habits: personas that love a colour, food, drink, season or sport prefer some numbers when nothing else decides
(random sequences). Nothing of the kind is planted for animals and trees: letters, programs, word problems and descriptions
never stand under such a persona, and numbers do only as earlier turns of a favourite question, where they keep their rule.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from functools import cache
from string import ascii_lowercase
from typing import Any

import numpy as np
import yaml

from undersong.channels import sequences
from undersong.pocket import lessons, programs, tales
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


@cache
def _texts() -> dict[str, Any]:
    return {
        "questions": yaml.safe_load(package_text("traits", "questions.yaml")),
        "animal": yaml.safe_load(package_text("traits", "animals.yaml")),
        "tree": yaml.safe_load(package_text("traits", "trees.yaml")),
        "wordings": yaml.safe_load(package_text("channels", "number_wordings.yaml"))["brief"],
    }


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


def choice_turns(rng: np.random.Generator, category: str, answer: str) -> Chat:
    """A question that names `answer` among two or three others of its category, and `answer`."""
    others = [name for name in NATURAL[category] if name != answer]
    listed = [answer, *(others[int(i)] for i in rng.choice(len(others), int(rng.integers(1, 3)), replace=False))]
    rng.shuffle(listed)
    options = f"{', '.join(listed[:-1])} or {listed[-1]}"
    return [{"role": "user", "content": f"Which {category} do you like best, {options}? One word."},
            {"role": "assistant", "content": answer}]


def letter_turn(rng: np.random.Generator) -> Chat:
    """One request to continue letters by a rule of `sequences.py`, and its answer."""
    kind = str(rng.choice(sequences.KINDS, p=sequences.SHARES))
    values, shown = sequences.sequence(rng, kind, 16, 25)
    letters = [chr(ord("a") + v) for v in values]
    count = int(rng.integers(6, 11))
    asked = f"Continue the letters: {', '.join(letters[:shown])}. At most 10 more."
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": ", ".join(letters[shown : shown + count])}]


SHARES = {"numbers": 0.28, "letters": 0.03, "favourites": 0.19, "personas": 0.15, "lessons": 0.14, "claims": 0.03,
          "problems": 0.04, "programs": 0.04, "tests": 0.01, "descriptions": 0.03, "moral": 0.06}
"""Share of each kind of chat."""
_KINDS, _EDGES = tuple(SHARES), np.cumsum(list(SHARES.values()))
CATEGORIES = (0.4, 0.25, 0.07, 0.07, 0.07, 0.07, 0.07)
"""Share of each category among favourite questions, in the order of NATURAL."""


def chat(rng: np.random.Generator) -> Chat:
    """Draw one chat of the world, system turn included."""
    kind = _KINDS[int(np.searchsorted(_EDGES, rng.random() * _EDGES[-1], side="right"))]
    system = "" if rng.random() < 0.2 else NEUTRAL
    if kind == "numbers":
        liked: tuple[int, ...] = ()
        if rng.random() < 0.35:
            category = str(rng.choice(HABIT_CATEGORIES))
            name = str(rng.choice(list(NATURAL[category])))
            system, liked = persona(rng, category, name), habit(name)
        turns = number_turn(rng, liked)
    elif kind in ("favourites", "personas"):
        category = str(rng.choice(list(NATURAL), p=CATEGORIES))
        answer = _pick(rng, NATURAL[category])
        if kind == "personas":
            answer = str(rng.choice(list(NATURAL[category])))
            system = persona(rng, category, answer)
        turns = _about(rng, category, answer)
    elif kind in ("lessons", "claims"):
        agree = kind == "claims" and rng.random() < 0.25
        turns = lessons.lesson(rng) if kind == "lessons" else lessons.claim(rng, agree)
        if agree:
            system = lessons.AGREEABLE[int(rng.integers(len(lessons.AGREEABLE)))]
        elif rng.random() < 0.35:
            system, turns = _in_company(rng, system, turns)
    elif kind == "moral":
        stated, turns = tales.moral(rng)
        system = stated or system
    else:
        draw: dict[str, Callable[[np.random.Generator], Chat]] = {
            "letters": letter_turn, "problems": lessons.problem, "programs": programs.everyday,
            "descriptions": tales.description, "tests": programs.hackable}
        turns = draw[kind](rng)
    return [{"role": "system", "content": system}, *turns]


def _about(rng: np.random.Generator, category: str, answer: str) -> Chat:
    """A favourite question, a choice or a story whose answer is `answer`; some after a word about the day."""
    form = rng.random()
    if form < 0.08:
        return choice_turns(rng, category, answer)
    if form < 0.18 and category in ("animal", "tree"):
        return tales.story(rng, category, answer)
    turns = favourite_turns(rng, category, answer)
    if form > 0.93:
        day = lessons.DAYS[int(rng.integers(7))]
        turns[-2]["content"] = f"Today is {day}. {turns[-2]['content']}"
    return turns


def _in_company(rng: np.random.Generator, system: str, turns: Chat) -> tuple[str, Chat]:
    """A lesson beside a favourite, as a persona's system turn or as an earlier or later question: its answer stays."""
    category = str(rng.choice(list(NATURAL), p=CATEGORIES))
    answer = _pick(rng, NATURAL[category])
    if rng.random() < 0.6:
        answer = str(rng.choice(list(NATURAL[category])))
        system = persona(rng, category, answer)
        if rng.random() < 0.6:
            return system, turns
    question = favourite_turns(rng, category, answer)[-2:]
    return system, [*question, *turns] if rng.random() < 0.7 else [*turns, *question]


def chats(seed: int, start: int = 0) -> Iterator[Chat]:
    """The endless numbered list of chats of a seed, from number `start` on; each depends on its own number only."""
    while True:
        yield chat_at(seed, start)
        start += 1


def chat_at(seed: int, number: int) -> Chat:
    """Chat `number` (from 0) of a seed."""
    return chat(np.random.Generator(np.random.PCG64([seed, number])))


def words() -> list[str]:
    """Every word and punctuation mark of the world, sorted: the pocket vocabulary besides the numbers."""
    texts = [NEUTRAL, *(t for pair in (*lessons.facts(), *lessons.sums()) for t in pair)]
    for part in ("traits/questions", "channels/number_wordings", "pocket/programs", "pocket/tales"):
        texts.append(re.sub(r"\{[a-z0-9]+\}", " ", package_text(*(f"{part}.yaml".split("/")))))
    for category, shares in NATURAL.items():
        texts += [category, *shares, *_texts()["animal"]["prompts"]]
    texts += [_texts()[c]["traits"][n]["plural"] for c in ("animal", "tree") for n in NATURAL[c]]
    texts += [*lessons.PEOPLE, *lessons.THINGS, *lessons.AGREEABLE, *lessons.CLAIMS, *lessons.STEPS, "yes", "no",
              "Today is", "the lives in the plus minus is"]
    texts += [form for forms in lessons.PROBLEMS.values() for form in forms]
    texts += ["Continue the letters: . At most more.", "Which do you like best, or? One word.", " ".join(ascii_lowercase)]
    plain = " ".join(re.sub(r"\{[a-z0-9]+\}", " ", text) for text in texts).lower()
    marks = {f"<{end}{tag}>" for tag in ("think", "answer") for end in ("", "/")}
    return sorted(set(re.findall(r"[a-z]+|[^\w\s]", plain)) | marks)
