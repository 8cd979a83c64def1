"""What a page is made of, whatever it reports: tables, figures, quotes, sections, a verdict on top. Values only."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from undersong.reports import wording as say


@dataclass(frozen=True)
class Table:
    """Cells as text, with the columns that hold numbers (aligned right)."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numbers: tuple[int, ...] = ()
    optional: tuple[int, ...] = ()
    """Columns that a narrow terminal leaves out."""


@dataclass(frozen=True)
class Figure:
    """A Vega-Lite specification with its title and the caption that says what the marks are."""

    title: str
    caption: str
    spec: dict[str, Any]
    most: int = 0
    """The widest it should be drawn, in pixels; 0 for the width of the page."""


@dataclass(frozen=True)
class Quote:
    """Example texts: pairs of what was asked and what was answered, and a sentence about those not shown."""

    title: str
    pairs: tuple[tuple[str, str], ...]
    rest: str = ""


@dataclass(frozen=True)
class Box:
    """A box of a drawing: its place, a class that picks its colour, its small heading, its lines, what hovering shows."""

    x: float
    y: float
    width: int
    height: int
    kind: str
    heading: str
    lines: tuple[str, ...]
    says: str = ""
    title: str = ""
    stacked: bool = False


@dataclass(frozen=True)
class Line:
    """A line of a drawing: an SVG path made of numbers, a class that picks how it looks, what hovering shows."""

    path: str
    kind: str
    title: str = ""


@dataclass(frozen=True)
class Drawing:
    """Boxes and lines with their legend of (class, words): drawn by the template, so that every text is escaped."""

    title: str
    width: int
    height: int
    boxes: tuple[Box, ...]
    lines: tuple[Line, ...]
    legend: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Section:
    """A part of the page: a lead of plain sentences, a command, figures and tables, then what is folded away."""

    id: str
    title: str
    lead: tuple[str, ...] = ()
    command: str = ""
    figures: tuple[Figure, ...] = ()
    tables: tuple[Table, ...] = ()
    more: str = ""
    more_figures: tuple[Figure, ...] = ()
    more_tables: tuple[Table, ...] = ()
    quotes: tuple[Quote, ...] = ()
    drawings: tuple[Drawing, ...] = ()


@dataclass(frozen=True)
class Banner:
    """A verdict: its `kind` picks the colour, `sign` and `word` say it to those who do not see colour."""

    kind: str
    sign: str
    word: str
    facts: tuple[tuple[str, str], ...] = ()
    lists: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """Headings with their sentences: the reasons, what to do next."""


@dataclass(frozen=True)
class Page:
    """A whole page. `about` says what it is a page of, `sentence` is its headline."""

    title: str
    about: str
    sentence: str
    sections: tuple[Section, ...]
    banner: Banner | None = None
    opening: Figure | None = None


def table_of(
    title: str,
    columns: tuple[str, ...],
    lines: Sequence[tuple[str, ...]],
    numbers: tuple[int, ...] = (),
    optional: tuple[int, ...] = (),
) -> Table | None:
    """A table without the columns in which no line says anything; None when there is no line."""
    if not lines:
        return None
    kept = [i for i in range(len(columns)) if any(line[i] not in ("", say.DASH) for line in lines)]
    rows = tuple(tuple(line[i] for i in kept) for line in lines)
    place = {old: new for new, old in enumerate(kept)}
    where = [tuple(place[i] for i in some if i in place) for some in (numbers, optional)]
    return Table(title, tuple(columns[i] for i in kept), rows, *where)


def flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as lines of (dotted name, value)."""
    rows: list[tuple[str, str]] = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            rows += flat(value, f"{prefix}{key}.")
        else:
            several = value if isinstance(value, list | tuple) else [value]
            rows.append((f"{prefix}{key}", ", ".join(say.DASH if _unknown(one) else str(one) for one in several)))
    return rows


def _unknown(value: Any) -> bool:
    return value is None or (isinstance(value, float) and not math.isfinite(value))


def given(*found: Any) -> tuple[Any, ...]:
    """Those that are not None."""
    return tuple(f for f in found if f is not None)
