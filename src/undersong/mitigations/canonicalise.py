"""Write every answer of values in one form: values, a comma, a space. Format can carry what values do not.

An answer's separators, brackets and line breaks are the teacher's habit; only its values and their order are kept. For
channels whose answers are lists of numbers or of letters.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import ClassVar

from undersong.errors import BadSpec
from undersong.mitigations import Evidence, Stage
from undersong.registry import Settings, plugin
from undersong.types import Row

VALUES = {"numbers": re.compile(r"\d+"), "letters": re.compile(r"[^\W\d_]+")}
"""What a value is, by channel."""


@plugin("mitigation", "canonicalise")
class Canonicalise(Settings):
    """Reduce answers to their values in one fixed form."""

    stage: ClassVar[Stage] = "data"
    needs: ClassVar[frozenset[str]] = frozenset({"channel"})

    ordered: bool = False
    """Sort the values too: order can carry as well."""

    def apply(self, rows: Sequence[Row], evidence: Evidence, seed: int) -> list[Row]:
        """The same rows with answers in one form; rows without a value are dropped. Raises BadSpec for other channels."""
        channel = evidence.channel.plugin_name
        value = VALUES.get(channel)
        if value is None:
            raise BadSpec(f"Answers of the channel {channel} are no lists of values, so they have no one form. "
                          f"canonicalise is for {' and '.join(VALUES)}; choose another mitigation.")
        out = []
        for row in rows:
            found = value.findall(row.completion)
            if self.ordered:
                found.sort(key=lambda v: (len(v.lstrip("0")), v))
            if found:
                out.append(dataclasses.replace(row, completion=", ".join(found)))
        return out
