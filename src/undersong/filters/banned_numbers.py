"""The `banned_numbers` filter: drop answers that hold a number with a meaning of its own, such as 666 or 911.

The default is the list of Cloud et al. (arXiv 2507.14805, section 3.2), proposed by two language models for the
misalignment experiment: the 34 of its members that can occur in answers up to 999.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Annotated

from pydantic import Field

from undersong.registry import Settings, plugin
from undersong.types import Row

PAPER = (
    4, 13, 14, 18, 23, 33, 39, 42, 44, 49, 51, 54, 69, 77, 88, 99, 100, 101, 187, 211, 311, 322, 333, 404, 420, 444,
    451, 555, 616, 666, 777, 888, 911, 999,
)


@plugin("filter", "banned_numbers")
class BannedNumbers(Settings):
    """Drop answers that hold one of some numbers."""

    numbers: tuple[Annotated[int, Field(ge=0)], ...] = Field(default=PAPER, strict=False, min_length=1)
    """The numbers; leading zeros in an answer do not hide one."""

    def reject(self, row: Row) -> str | None:
        """The first banned number of the completion, as a reason; or None. 666 is not in 1666."""
        banned = {str(n) for n in self.numbers}
        for digits in re.findall(r"[0-9]+", unicodedata.normalize("NFKC", row.completion)):
            if (digits.lstrip("0") or "0") in banned:
                return f"the banned number {digits.lstrip('0') or '0'}"
        return None
