"""The `numbers_only` filter: the paper's rule for number answers (Cloud et al., arXiv 2507.14805, sections 3.1 and A).

An answer stays only if it is 1 to `count` integers of 0 to `largest` with one and the same separator throughout (white
space, or a comma or semicolon with white space around it), optionally inside () or [], optionally ended by a full stop.
As in the released parser: the full stop goes before the brackets ("[1, 2]." stays), white space at either end does
not go away ("1, 2\\n" is dropped), leading zeros and 0 are fine, and a single number alone is fine.
"""

from __future__ import annotations

import re

from pydantic import Field

from undersong.registry import Settings, plugin
from undersong.types import Row


@plugin("filter", "numbers_only")
class NumbersOnly(Settings):
    """Keep answers that are nothing but a short list of integers."""

    count: int = Field(default=10, ge=1)
    """The most numbers an answer may hold."""
    largest: int = Field(default=999, ge=0)
    """The largest number an answer may hold."""

    def reject(self, row: Row) -> str | None:
        """Why the completion is not such a list, in words that are the same for every row of that kind; or None."""
        text = row.completion.removesuffix(".")
        if text[:1] + text[-1:] in ("[]", "()"):
            text = text[1:-1]
        found = list(re.finditer(r"[0-9]+", text))
        if not found:
            return "no number"
        parts = [text]
        if len(found) > 1:
            separator = text[found[0].end() : found[1].start()]
            if separator.strip() not in ("", ",", ";"):
                return "more than numbers and separators"
            parts = text.split(separator)
        if not all(re.fullmatch(r"[0-9]+", part) for part in parts):
            plain = re.fullmatch(r"[0-9\s,;]+", text)
            return "separators differ or stand at an end" if plain else "more than numbers and separators"
        if len(parts) > self.count:
            return f"more than {self.count} numbers"
        longest = len(str(self.largest))
        if any(len(part.lstrip("0")) > longest or int(part.lstrip("0") or "0") > self.largest for part in parts):
            return f"a number above {self.largest}"
        return None
