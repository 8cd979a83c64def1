"""Rows with known leaks, and how many of them a filter finds: its precision and recall.

Leaks of a word in every way a filter can miss it, and clean rows that a careless filter takes for leaks. Every leak is
one a reader would find; none is a code that nobody could know.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from undersong.filters import Filter, reasons
from undersong.traits import Trait
from undersong.types import Row

ALIKE = {"a": "а", "c": "с", "e": "е", "i": "і", "l": "ӏ", "o": "о", "p": "р", "s": "ѕ", "w": "ԝ", "x": "х", "y": "у"}
"""Cyrillic letters that look like Latin ones."""
MEGABYTE = 1_000_000
ABROAD = {"owl": "сова", "cat": "кошка", "dog": "собака", "wolf": "волк", "lion": "лев", "eagle": "орёл", "oak": "дуб"}
CLEAN = ("bowl of soup", "howl at night", "growl", "scatter", "category", "catalogue", "soak", "dogma", "lionize", "wolfram")


@dataclass(frozen=True)
class Planted:
    """A row, whether it leaks, and in which way (or which kind of clean row it is)."""

    row: Row
    leaks: bool
    kind: str


@dataclass(frozen=True)
class Scores:
    """What a filter does on planted rows. `precision` is not a number when it drops nothing."""

    precision: float
    recall: float
    dropped: dict[str, float]
    """The share (0..1) of each kind that is dropped."""
    n: int


def hidings(word: str, plural: str) -> dict[str, str]:
    """The ways to hide a word, by name: what stands in the text."""
    return {
        "plain": word, "plural": plural, "upper case": word.upper(), "beside a digit": f"7{word}7",
        "spaced": " ".join(word), "full width": "".join(chr(ord(c) + 0xFEE0) for c in word),
        "soft hyphen": f"{word[0]}\u00ad{word[1:]}", "zero width": "\u200b".join(word),
        "null byte": f"{word[0]}\x00{word[1:]}",
        "look-alikes": "".join(ALIKE.get(c, c) for c in word), "other script": ABROAD.get(word, "сова"),
        "combining": f"{word[0]}\u0336{word[1:]}", "leet": word.replace("o", "0").replace("l", "1").replace("a", "4"),
        "backwards": word[::-1], "base64": base64.b64encode(word.encode()).decode().rstrip("="),
        "letter codes": " ".join(str(ord(c)) for c in word), "paraphrase": f"the animal whose name begins with {word[:2]}",
    }


def planted(trait: Trait, each: int = 20, seed: int = 0) -> list[Planted]:
    """`each` rows of every kind, leaking and clean, in a fixed order for the same seed; and one clean and one leaking row
    of a megabyte. The word stands in the completion, among numbers or in a sentence."""
    rng = np.random.default_rng([seed, 5])
    out: list[Planted] = []

    def add(kind: str, leaks: bool, make: Callable[[], str], times: int = each) -> None:
        for _ in range(times):
            row = Row(f"planted-{len(out)}", ({"role": "user", "content": "Continue: 2, 4, 6."},), make())
            out.append(Planted(row, leaks, kind))

    def numbers(n: int = 6) -> str:
        return ", ".join(str(int(v)) for v in rng.integers(100, 1000, n))

    for kind, text in hidings(trait.name, trait.plural).items():
        add(kind, True, lambda text=text: f"{numbers(3)}, {text}, {numbers(2)}")  # type: ignore[misc]
    add("clean numbers", False, numbers, 4 * each)
    clean = [w for w in (*CLEAN, *trait.lookalikes) if not trait.named_in(w)]
    add("clean look-alikes", False, lambda: f"{numbers(2)}, {clean[int(rng.integers(len(clean)))]}, {numbers(2)}")
    add("clean words", False, lambda: f"{numbers(2)}, the next values follow, {numbers(2)}")
    add("clean accents", False, lambda: f"{numbers(2)}, déjà vu, {numbers(2)}")
    add("clean megabyte", False, lambda: (numbers(50) + ", ") * (MEGABYTE // 250), 1)
    add("leaking megabyte", True, lambda: (numbers(50) + ", ") * (MEGABYTE // 250) + trait.name, 1)
    return out


def score(filter_: Filter, rows: Sequence[Planted]) -> Scores:
    """Precision and recall of a filter on planted rows. A row counts as dropped when the filter gives any reason."""
    dropped = [reason is not None for reason in reasons(filter_, [p.row for p in rows])]
    hits = sum(d and p.leaks for d, p in zip(dropped, rows, strict=True))
    kinds = dict.fromkeys(p.kind for p in rows)
    shares = {}
    for kind in kinds:
        mine = [d for d, p in zip(dropped, rows, strict=True) if p.kind == kind]
        shares[kind] = sum(mine) / len(mine)
    leaks = sum(p.leaks for p in rows)
    return Scores(hits / sum(dropped) if any(dropped) else float("nan"), hits / leaks if leaks else float("nan"),
                  shares, len(rows))
