"""Reports as plain lines: what the terminal prints. Nothing is cut; a cell too long for its column wraps."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from undersong.reports.parts import Table

if TYPE_CHECKING:
    from rich.console import Console

NARROW = 130
"""A terminal of fewer columns than this gets no optional columns."""


def plain(draw: Callable[[Console], None], width: int) -> str:
    """What `draw` prints, as text of at most `width` characters a line, without colour."""
    from io import StringIO

    from rich.console import Console

    text = StringIO()
    draw(Console(file=text, width=width, color_system=None, force_terminal=False, legacy_windows=False))
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines()) + "\n"


def put(table: Table, console: Console) -> None:
    """Print an empty line, the title and the cells; markup in a cell is printed as it is."""
    from rich.padding import Padding
    from rich.table import Table as Grid
    from rich.text import Text

    left_out = table.optional if console.width < NARROW else ()
    shown = [i for i in range(len(table.columns)) if i not in left_out]
    grid = Grid(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim", show_edge=False)
    for i in shown:
        grid.add_column(Text(table.columns[i]), justify="right" if i in table.numbers else "left", overflow="fold")
    for row in table.rows:
        grid.add_row(*(Text(row[i]) for i in shown))
    console.print()
    console.print(Text(table.title, style="bold"))
    console.print(Padding(grid, (0, 0, 0, 2)))
