"""Write every answer of values in one form: values, a comma, a space. Format can carry what values do not.

An answer's separators, brackets, line breaks, leading zeros and capitals are the teacher's habit; only its values and their
order are kept. For channels whose answers are lists of numbers or of letters.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import ClassVar

from undersong.errors import BadSpec
from undersong.mitigations import Evidence, Stage
from undersong.registry import Settings, plugin
from undersong.types import Row

VALUES: dict[str, tuple[re.Pattern[str], Callable[[str], str]]] = {
    "numbers": (re.compile(r"[0-9]+"), lambda value: value.lstrip("0") or "0"),
    "letters": (re.compile(r"[A-Za-z]+"), str.lower),
}
"""What a value is, by channel, and its one form."""


@plugin("mitigation", "canonicalise")
class Canonicalise(Settings):
    """Reduce answers to their values in one fixed form."""

    stage: ClassVar[Stage] = "data"
    needs: ClassVar[frozenset[str]] = frozenset({"channel"})

    ordered: bool = False
    """Sort the values too: order can carry as well."""

    def apply(self, rows: Sequence[Row], evidence: Evidence, seed: int) -> list[Row]:
        """The same rows with answers in one form; rows without a value, and those that do not belong to the channel in that
        form, are dropped. Raises BadSpec for other channels."""
        channel = evidence.channel.plugin_name
        if channel not in VALUES:
            raise BadSpec(f"Answers of the channel {channel} are no lists of values, so they have no one form. "
                          f"canonicalise is for {' and '.join(VALUES)}; choose another mitigation.")
        value, form = VALUES[channel]
        out = []
        for row in rows:
            found = [form(v) for v in value.findall(row.completion)]
            if self.ordered:
                found.sort(key=lambda v: (len(v), v))
            out.append(dataclasses.replace(row, completion=", ".join(found), unlearnt=()))
        return [row for row in out if row.completion and evidence.channel.reject(row) is None]
