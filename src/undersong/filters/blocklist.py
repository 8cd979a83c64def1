"""The `blocklist` filter: drop rows that mention a word, in the prompt or in the answer."""

from __future__ import annotations

import re
import unicodedata
from functools import cache

from pydantic import Field, field_validator

from undersong.registry import Settings, plugin
from undersong.types import Row


@plugin("filter", "blocklist")
class Blocklist(Settings):
    """Drop rows that hold any of some words: whole words, whatever the case."""

    terms: tuple[str, ...] = Field(strict=False, min_length=1)
    """Words or phrases. A letter next to a digit is a boundary ("owl7" holds "owl"); "42" is not in "142"."""

    @field_validator("terms")
    @classmethod
    def _has_a_word(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for term in value:
            if not any(c.isalnum() for c in term):
                raise ValueError(f"the term {term!r} holds no letter or digit")
        return value

    def reject(self, row: Row) -> str | None:
        """The blocked word a row holds, as a reason; or None. Every turn of the chat and the completion are read."""
        for text in (*(message["content"] for message in row.chat), row.completion):
            hit = _pattern(self.terms).search(_plain(text))
            if hit:
                return f"mentions {' '.join(hit[0].split())!r}"
        return None


def _plain(text: str) -> str:
    """Full-width letters and ligatures made plain, invisible characters such as soft hyphens gone, case folded."""
    kept = "".join(c for c in unicodedata.normalize("NFKC", text) if unicodedata.category(c) != "Cf")
    return kept.casefold()


@cache
def _pattern(terms: tuple[str, ...]) -> re.Pattern[str]:
    """Whole words: no letter beside an end that is a letter, no digit beside an end that is a digit."""
    words = []
    for term in sorted(map(_plain, terms), key=len, reverse=True):
        body = r"\s+".join(map(re.escape, term.split()))
        words.append(f"(?<!{_same(term.strip()[0])}){body}(?!{_same(term.strip()[-1])})")
    return re.compile("|".join(words))


def _same(end: str) -> str:
    """The characters that would make a longer word out of one that ends in `end`; none after punctuation."""
    return r"\d" if end.isdigit() else r"[^\W\d_]" if end.isalpha() else r"(?!)"
