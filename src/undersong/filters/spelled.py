"""The `spelled` filter: drop answers of single letters that spell a word, such as "o, w, l"."""

from __future__ import annotations

import re

from pydantic import Field

from undersong.filters.blocklist import Blocklist
from undersong.registry import Settings, plugin
from undersong.types import Row


@plugin("filter", "spelled")
class Spelled(Settings):
    """Drop answers whose letters, read one after another, spell any of some words forwards or backwards."""

    terms: tuple[str, ...] = Field(strict=False, min_length=1)
    """Words, whatever the case; signs and spaces between letters are passed over."""

    def reject(self, row: Row) -> str | None:
        """The word that is spelled, as a reason; or None. Words written as words are found too."""
        found = Blocklist(terms=self.terms).reject(Row(row.id, (), row.completion))
        if found is not None:
            return found
        letters = re.sub(r"[\W\d_]+", "", row.completion).casefold()
        for term in self.terms:
            word = re.sub(r"[\W\d_]+", "", term).casefold()
            if word and (word in letters or word[::-1] in letters):
                return f"spells {word!r}"
        return None
