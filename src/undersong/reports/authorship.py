"""The report of `undersong attribute`: one HTML page, and what the terminal prints. Both are drawn from its JSON alone.

Names, rows and reasons may come from strangers: they are written out (`wording.visible`) and escaped (`page`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from undersong.errors import BadSpec
from undersong.reports import audit_fields as read
from undersong.reports import wording as say
from undersong.reports.authorship_figures import densities, ratios
from undersong.reports.page import as_html, save
from undersong.reports.parts import Banner, Page, Section, Table, given, table_of
from undersong.reports.terminal import plain, put

if TYPE_CHECKING:
    from rich.console import Console

SIGNS = {"attributed": ("clean", "✓", "Attributed"), "none": ("found", "!", "None of these"),
         "unknown": ("unknown", "?", "Cannot tell")}


def render(found: Mapping[str, Any]) -> str:
    """The page as a string. Raises BadSpec for what is no attribution, MissingExtra without the `[report]` extra."""
    kind, sign, word = _signs(found)
    file = read.text(read.mapping(found, "rows"), "file")
    lists = (("Why", read.texts(found, "reasons")), ("What to do next", read.texts(found, "next")))
    return as_html(Page(
        title=f"{word}: {file}", about=f"{file}, an Undersong attribution", sentence=read.text(found, "sentence"),
        banner=Banner(kind, sign, word, _facts(found), tuple(pair for pair in lists if pair[1])),
        sections=given(_candidates(found), _typical(found), _mixture(found), _rows(found), _again(found)),
    ))


def write(found: Mapping[str, Any], path: str | Path) -> Path:
    """Render into a file, which appears whole or not at all. Raises NoRoom on a full disk, else as `render` does."""
    return save(render(found), path)


def summary(found: Mapping[str, Any], width: int = 100) -> str:
    """The verdict, its reasons and the table of candidates, as plain text. Raises BadSpec for what is no attribution."""
    word = _signs(found)[2]
    return plain(lambda console: _print(found, word, console), width)


def _print(found: Mapping[str, Any], word: str, console: Console) -> None:
    from rich.padding import Padding
    from rich.text import Text

    console.print(Text(word.upper(), style="bold"))
    console.print(Text(read.text(found, "sentence")))
    for name, value in _facts(found):
        console.print(Text(f"  {name}: {value}"))
    if (table := _table(found)) is not None:
        put(table, console)
    for title, field in (("Why", "reasons"), ("What to do next", "next")):
        console.print()
        console.print(Text(title, style="bold"))
        for line in read.texts(found, field):
            console.print(Padding(Text(f"- {line}"), (0, 0, 0, 2)))


def _signs(found: Mapping[str, Any]) -> tuple[str, str, str]:
    if not isinstance(found, Mapping) or found.get("kind") != "authorship" or found.get("verdict") not in SIGNS:
        raise BadSpec("This is no attribution. Give the JSON file that `undersong attribute` has written.")
    return SIGNS[found["verdict"]]


def _facts(found: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    rows = read.mapping(found, "rows")
    used, drawn = read.count(rows, "used"), read.count(rows, "drawn")
    out = [("author", read.text(found, "model"))] if read.text(found, "model") else []
    if (p := read.share(found, "p_margin")) is not None:
        out.append(("largest p of another" if found.get("explain") else "largest p", say.p_value(p)))
    if (power := read.share(found, "power")) is not None:
        out.append((f"would tell {read.text(found, 'nearest')}", say.percent(power)))
    if used is not None:
        out.append(("rows judged", f"{used:,}" + (f" of {drawn:,} drawn" if drawn and drawn > used else "")))
    return tuple(out)


def _table(found: Mapping[str, Any]) -> Table | None:
    """Every candidate with its likelihood, fit, share and verdict."""
    lines = []
    for c in read.entries(found, "candidates"):
        verdict = "explains the rows" if c.get("explains") else "out by likelihood" if c.get("out") else "rejected"
        nats, share = read.number(c, "nats_per_character"), read.mapping(c, "share")
        p = read.share(c, "p")
        spread = [say.percent(read.share(share, key)) for key in ("estimate", "low", "high")]
        lines.append((
            read.text(c, "name"), verdict, say.DASH if nats is None else f"{nats:.3f}".replace("-", "−"),
            say.DASH if p is None or c.get("out") else say.p_value(p),
            f"{spread[0]} ({spread[1]} to {spread[2]})" if share else say.DASH,
            f"{read.number(c, 'temperature') or 0:g}", say.percent(read.share(c, "kept")),
        ))
    columns = ("candidate", "reading", "nats per character", "p", "share, estimated", "temperature", "pass the filters")
    return table_of("The candidates", columns, lines, numbers=(2, 3, 4, 5, 6), optional=(5, 6))


def _candidates(found: Mapping[str, Any]) -> Section | None:
    table = _table(found)
    if table is None:
        return None
    lead = ("The same text is read by every candidate; more nats per character (closer to 0) is likelier. p is the "
            "chance that a candidate's own rows look as unlike its own as these do: small means that it did not write them.")
    return Section("candidates", "The candidates", (lead,), figures=given(ratios(found)), tables=(table,))


def _typical(found: Mapping[str, Any]) -> Section | None:
    from undersong.authorship.handwriting import SAYS

    lines = []
    for c in read.entries(found, "candidates"):
        z = read.mapping(c, "z")
        lines += [(read.text(c, "name"), SAYS.get(part, say.visible(part)), say.z(read.number(z, part)),
                   say.p_value(read.share(read.mapping(c, "parts"), part))) for part in read.mapping(c, "parts")]
    figure = densities(found)
    if not lines and figure is None:
        return None
    lead = ("Each candidate that likelihood leaves in wrote fresh rows to the same prompts, in the same way and through the "
            "same filters. If it wrote the given rows too, the two can be exchanged.")
    tables = given(table_of("What was compared", ("candidate", "what", "largest z", "p alone"), lines, numbers=(2, 3)))
    return Section("typical", "Against its own rows", (lead,), figures=given(figure), more="What was compared, in numbers",
                   more_tables=tables)


def _mixture(found: Mapping[str, Any]) -> Section | None:
    p = read.share(read.mapping(found, "mixture"), "p")
    if p is None:
        return None
    alpha = read.share(found, "alpha") or 0.05
    lead = (f"No candidate explains the rows alone. A mixture in the estimated shares "
            f"{'explains' if p > alpha else 'does not explain'} them (p = {say.p_value(p)}).")
    return Section("mixture", "Several authors", (lead,))


def _rows(found: Mapping[str, Any]) -> Section | None:
    rows = read.mapping(found, "rows")
    if not rows:
        return None
    asked = ", ".join(t.replace("_", " ") for t in read.texts(rows, "tests")) or "none"
    lines = [(name, f"{read.count(rows, field) or 0:,}") for name, field in (
        ("rows read", "read"), ("drawn", "drawn"), ("judged", "used"), ("copies left out", "copies"),
        ("rows of the file that repeat another", "duplicates"))]
    refused = [(read.text(r, "reason"), f"{read.count(r, 'count') or 0:,}", ", ".join(read.texts(r, "places")))
               for r in read.entries(rows, "refused")]
    lead = f"Fresh rows had to pass what nearly all given rows pass: {asked}."
    return Section("rows", "The rows", (lead,), tables=given(
        table_of("What was read", ("what", "rows"), lines, numbers=(1,)),
        table_of("Refused", ("reason", "rows", "first places"), refused, numbers=(1,))))


def _again(found: Mapping[str, Any]) -> Section | None:
    seconds = read.number(found, "seconds")
    settings = [*read.pairs(found, "settings"), *([("seconds", f"{seconds:,.1f}")] if seconds is not None else [])]
    return Section("reproduce", "Make it again", command=read.text(found, "command"), tables=given(
        table_of("Settings", ("what", "value"), settings),
        table_of("Environment", ("what", "value"), read.pairs(found, "environment"))))
