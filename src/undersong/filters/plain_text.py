"""The `plain_text` filter: drop answers with characters that can hide something, and very long ones.

Null bytes and other control characters, invisible format characters (soft hyphens, zero-width and right-to-left marks),
letters outside the allowed scripts (a Cyrillic `о` in `оwl` defeats every word list), compatibility forms such as
full-width letters, and combining marks piled on a letter. Ask for it beside `blocklist`, which reads words.
"""

from __future__ import annotations

import unicodedata
from functools import cache

from pydantic import Field

from undersong.registry import Settings, plugin
from undersong.types import Row


@plugin("filter", "plain_text")
class PlainText(Settings):
    """Keep answers in plain characters of the given scripts."""

    scripts: tuple[str, ...] = Field(default=("LATIN",), strict=False)
    """Scripts whose letters may occur, as Unicode names them: LATIN, CYRILLIC, GREEK, CJK, ..."""
    longest: int = Field(default=20_000, ge=1)
    """The most characters an answer may have."""

    def reject(self, row: Row) -> str | None:
        """The first kind of character that does not belong, as a reason; or None."""
        text = row.completion
        if len(text) > self.longest:
            return f"more than {self.longest} characters"
        for character in text:
            if not character.isascii() or character < " " or character == "\x7f":
                reason = _reason(character, self.scripts)
                if reason is not None:
                    return reason
        return None


@cache
def _reason(character: str, scripts: tuple[str, ...]) -> str | None:
    kind = unicodedata.category(character)
    if kind in ("Cc", "Cs", "Co", "Cn"):
        return None if character in "\n\r\t" else "a control character"
    if kind == "Cf":
        return "an invisible character"
    if kind[0] == "M":
        return "a combining mark"
    if unicodedata.normalize("NFKC", character) != character and kind[0] in "LN":
        return "a letter or digit in another form"
    if kind[0] == "L" and not any(unicodedata.name(character, "").startswith(s) for s in scripts):
        return "a letter of another script"
    if kind[0] == "N":
        return "a digit of another script"
    return "an emoji or symbol" if kind == "So" else None
