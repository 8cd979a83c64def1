"""The report of `undersong explain`: one HTML page, and what the terminal prints.

Both are drawn from the JSON of the explanation and from nothing else. Tokens and answers in it come from models of
unknown origin, so they are treated as hostile: the page escapes them (`page`), and no character of them acts in a terminal.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from undersong.errors import BadSpec
from undersong.reports import explain_tables as tables
from undersong.reports import wording as say
from undersong.reports.explain_sections import sections
from undersong.reports.page import as_html, save
from undersong.reports.parts import Page
from undersong.reports.terminal import plain, put

if TYPE_CHECKING:
    from rich.console import Console

BROKEN = (KeyError, TypeError, ValueError, AttributeError, IndexError)


def render(found: Mapping[str, Any]) -> str:
    """The page as a string; the same explanation gives the same bytes.

    Raises BadSpec for what is no explanation, MissingExtra without the `[report]` extra.
    """
    try:
        names = [say.visible(str(found[who]["name"])) for who in ("model", "base")]
        page = Page(
            title=f"Inside {names[0]}",
            about=f"{names[0]} against {names[1]}, an Undersong explanation",
            sentence=say.visible(found["sentence"]),
            sections=sections(found),
        )
    except BROKEN as error:
        raise _broken(error) from None
    return as_html(page)


def write(found: Mapping[str, Any], path: str | Path) -> Path:
    """Render into a file, which appears whole or not at all. Raises NoRoom on a full disk, else as `render` does."""
    return save(render(found), path)


def summary(found: Mapping[str, Any], width: int = 100) -> str:
    """What changed in a few sentences and tables: plain text of at most `width` characters a line.

    Nothing in it can drive a terminal. Raises BadSpec for what is no explanation.
    """
    try:
        return plain(lambda console: _print(found, console), width)
    except BROKEN as error:
        raise _broken(error) from None


def _print(found: Mapping[str, Any], console: Console) -> None:
    from rich.text import Text

    console.print(Text("WHAT CHANGED INSIDE", style="bold"))
    if not found["explanations"]:
        console.print(Text(say.visible(found["sentence"])))
    for one in found["explanations"]:
        console.print(Text(f"- {say.visible(one['sentence'])}"))
    for one in found["skipped"]:
        console.print(Text(f"- {say.visible(one['explainer'])} did not run. {say.visible(one['says'])}"))
    for table in (tables.lens(found, most=5), tables.words(found), tables.texts(found, most=6)):
        if table is not None:
            put(table, console)


def _broken(error: Exception) -> BadSpec:
    return BadSpec(f"This is no explanation ({type(error).__name__}: {error}). Run `undersong explain` again.")
