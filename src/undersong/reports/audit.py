"""The report of `undersong audit`: one HTML page, and what the terminal prints.

Both are drawn from the JSON of the audit and from nothing else. Rows and names in it come from strangers, so they are
treated as hostile: the page escapes them (`page`), and no text reaches the terminal with a character that acts.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from undersong.reports import audit_tables as tables
from undersong.reports.audit_reading import Audit, read
from undersong.reports.audit_sections import SIGNS, banner, facts, sections
from undersong.reports.page import as_html, save
from undersong.reports.parts import Page
from undersong.reports.terminal import plain, put

if TYPE_CHECKING:
    from rich.console import Console


def render(audit: Mapping[str, Any]) -> str:
    """The page as a string; the same audit gives the same bytes.

    Raises BadSpec for what is no audit, MissingExtra without the `[report]` extra.
    """
    found = read(audit)
    file = found.rows.file if found.rows else ""
    word = SIGNS[found.verdict][1]
    return as_html(
        Page(
            title=f"{word}: {file}" if file else word,
            about=f"{file}, an Undersong audit" if file else "An Undersong audit",
            sentence=found.sentence,
            banner=banner(found),
            sections=sections(found),
        )
    )


def write(audit: Mapping[str, Any], path: str | Path) -> Path:
    """Render into a file, which appears whole or not at all. Raises NoRoom on a full disk, else as `render` does."""
    return save(render(audit), path)


def summary(audit: Mapping[str, Any], width: int = 100) -> str:
    """The verdict first, its reasons, the tests, and what to do next: plain text of at most `width` characters a line.

    Nothing in it can drive a terminal. Raises BadSpec for what is no audit.
    """
    found = read(audit)
    return plain(lambda console: _print(found, console), width)


def _print(audit: Audit, console: Console) -> None:
    from rich.text import Text

    console.print(Text(SIGNS[audit.verdict][1].upper(), style="bold"))
    console.print(Text(audit.sentence))
    for name, value in facts(audit):
        console.print(Text(f"  {name}: {value}"))
    _list("Why", audit.reasons, console)
    for table in (tables.tests(audit), tables.refused(audit)):
        if table is not None:
            put(table, console)
    missing = [f"{s.detector.replace('_', ' ')}: {'needs ' + ', '.join(s.missing) if s.missing else s.says}"
               for s in audit.skipped]
    _list("Did not run", tuple(missing), console)
    _list("What to do next", audit.next, console)


def _list(title: str, lines: tuple[str, ...], console: Console) -> None:
    from rich.padding import Padding
    from rich.text import Text

    if lines:
        console.print()
        console.print(Text(title, style="bold"))
    for line in lines:
        console.print(Padding(Text(f"- {line}"), (0, 0, 0, 2)))
