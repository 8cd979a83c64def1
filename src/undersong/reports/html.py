"""The page of an experiment: its sentence, its figures and tables, in one HTML file. See `page` for how it is kept safe."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from undersong.reports import figures
from undersong.reports.page import as_html, save
from undersong.reports.parts import Page, Section, given
from undersong.reports.reading import read
from undersong.reports.sections import sections


def render(results: Mapping[str, Any], lineage: Section | None = None) -> str:
    """The page as a string; the same results give the same bytes. `lineage` is drawn before the section to make it again.

    Raises BadRows or NothingMeasured for what is not a result, MissingExtra without the `[report]` extra.
    """
    reading = read(results)
    *parts, again = sections(reading)
    return as_html(
        Page(
            title=reading.experiment,
            about=f"{reading.experiment}, an Undersong experiment",
            sentence=reading.sentence,
            opening=figures.opening(reading, reading.channel, reading.trait),
            sections=(*parts, *given(lineage), again),
        )
    )


def write(results: Mapping[str, Any], path: str | Path, lineage: Section | None = None) -> Path:
    """Render into a file, which appears whole or not at all. Raises NoRoom on a full disk, else as `render` does."""
    return save(render(results, lineage), path)
