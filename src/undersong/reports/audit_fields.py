"""The fields of the file of an audit, checked one by one: missing and null are allowed, the wrong kind is refused in words.

Each function takes a mapping and the name of a field. Texts come out as one line in which no character acts or hides.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from undersong.errors import BadSpec
from undersong.reports import wording as say
from undersong.reports.parts import flat

AGAIN = "Run `undersong audit` again to rewrite the file."


def mapping(found: Mapping[str, Any], field: str) -> Mapping[str, Any]:
    """A nested mapping; empty where it is missing."""
    return _of_kind(found, field, Mapping, "a mapping") or {}


def entries(found: Mapping[str, Any], field: str) -> list[Mapping[str, Any]]:
    """A list of mappings; empty where it is missing."""
    entries: list[Mapping[str, Any]] = _of_kind(found, field, list, "a list") or []
    if not all(isinstance(entry, Mapping) for entry in entries):
        raise BadSpec(f"`{say.visible(field)}` of the audit must be a list of mappings. {AGAIN}")
    return entries


def pairs(found: Mapping[str, Any], field: str) -> tuple[tuple[str, str], ...]:
    """A nested mapping as lines of (dotted name, value)."""
    return tuple((say.visible(name), say.visible(value)) for name, value in flat(mapping(found, field)))


def text(found: Mapping[str, Any], field: str) -> str:
    """A text; "" where it is missing."""
    return say.visible(_of_kind(found, field, str, "text") or "")


def texts(found: Mapping[str, Any], field: str) -> tuple[str, ...]:
    """A list of texts, or of what can be one."""
    return tuple(say.visible(str(one)) for one in _of_kind(found, field, list, "a list") or [] if one is not None)


def number(found: Mapping[str, Any], field: str) -> float | None:
    """None where it is missing or not finite, so that no NaN reaches the page."""
    value = _of_kind(found, field, (int, float), "a number")
    try:
        return None if value is None or not math.isfinite(value) else value
    except OverflowError:  # a whole number too large for a float
        return None


def numbers(found: Mapping[str, Any], field: str) -> tuple[float, ...]:
    """A list of finite numbers; what is null or not finite is left out."""
    values = _of_kind(found, field, list, "a list") or []
    return tuple(v for one in values if (v := number({field: one}, field)) is not None)


def count(found: Mapping[str, Any], field: str) -> int | None:
    """A whole number."""
    value = number(found, field)
    return None if value is None else int(value)


def share(found: Mapping[str, Any], field: str) -> float | None:
    """A number between 0 and 1. Raises BadSpec for one outside: a p of 3 must not be printed as if it were one."""
    value = number(found, field)
    if value is not None and not 0 <= value <= 1:
        raise BadSpec(f"`{say.visible(field)}` of the audit must lie between 0 and 1; it is {value:g}. {AGAIN}")
    return value


def _of_kind(found: Mapping[str, Any], field: str, kind: Any, words: str) -> Any:
    value = found.get(field)
    if value is None:
        return None
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise BadSpec(f"`{say.visible(str(field))}` of the audit must be {words}. {AGAIN}")
    return value
