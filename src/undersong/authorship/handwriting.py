"""What is compared between given rows and a candidate's own: numbers per row, in parts that are tested together."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from undersong.authorship.author import Author, Matrix
from undersong.authorship.typicality import Measured
from undersong.types import Row

JOINT = ("pull", "words", "letters")
"""Parts whose columns are judged together; of the others the most extreme column counts."""
COMMON = 64
"""Words, and pairs of characters, that are counted: the commonest."""
_WORD = re.compile(r"\d+|[^\W\d_]+|[^\w\s]")
SAYS = {
    "likelihood": "how likely the rows are, how that varies, and how it changes with temperature",
    "others": "how much likelier other candidates find the rows",
    "pull": "which way the rows would pull the candidate's last hidden state",
    "length": "characters and words of a row",
    "words": "how often the commonest words, numbers and signs occur",
    "letters": "how often the commonest pairs of characters occur",
}


@dataclass(frozen=True)
class Handwriting:
    """The measures of one candidate. `others` are candidates whose likelihood ratio, at the same
    temperature, is one of them."""

    author: Author
    temperature: float
    others: tuple[Author, ...]
    words: tuple[str, ...]
    letters: tuple[str, ...]
    middle: float
    """The mean log-likelihood, from which its spread is measured."""

    @classmethod
    def of(cls, author: Author, temperature: float, others: Sequence[Author], rows: Sequence[Row]) -> Handwriting:
        """The measures for some rows, given and fresh ones together."""
        words = Counter(w for row in rows for w in _WORD.findall(row.completion))
        letters = Counter(p for row in rows for p in _pairs(row.completion))
        common = [tuple(what for what, _ in counted.most_common(COMMON)) for counted in (words, letters)]
        middle = float(author.read(rows, temperature, pulled=True).logs.mean()) if author.reads else 0.0
        return cls(author, temperature, tuple(a for a in others if a.reads), common[0], common[1], middle)

    def without(self, name: str) -> Handwriting:
        """The same without one of the others."""
        left = tuple(a for a in self.others if a.name != name)
        return Handwriting(self.author, self.temperature, left, self.words, self.letters, self.middle)

    def measure(self, rows: Sequence[Row]) -> dict[str, Matrix]:
        """[rows, columns] of each part."""
        out: dict[str, Matrix] = {}
        own = np.zeros(len(rows))
        if self.author.reads:
            got = self.author.read(rows, self.temperature, pulled=True)
            own = got.logs
            out["likelihood"] = np.column_stack([own, (own - self.middle) ** 2, got.gain])
            if got.pulls.shape[1]:
                out["pull"] = got.pulls
        if self.others:
            out["others"] = np.column_stack([a.read(rows, self.temperature).logs - own for a in self.others])
        found = [Counter(_WORD.findall(row.completion)) for row in rows]
        out["length"] = np.array([[len(row.completion), c.total()] for row, c in zip(rows, found, strict=True)], float)
        out["words"] = np.array([[c[w] for w in self.words] for c in found], float)
        pairs = [Counter(_pairs(row.completion)) for row in rows]
        out["letters"] = np.array([[c[p] for p in self.letters] for c in pairs], float)
        return out

    def parts(self, table: Sequence[Sequence[Row]]) -> dict[str, Measured]:
        """The parts of the exchange: per prompt the given row and as many fresh ones for each."""
        n, several = len(table), len(table[0])
        found = self.measure([row for line in table for row in line])
        return {name: Measured(v.reshape(n, several, -1), name in JOINT) for name, v in found.items()}


def _pairs(text: str) -> list[str]:
    return [text[i : i + 2] for i in range(len(text) - 1)]
