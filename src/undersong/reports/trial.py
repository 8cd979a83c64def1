"""The report of `undersong train`: one HTML page, and what the terminal prints.

Both are drawn from the JSON of the trial and from nothing else. Words and tokens in it come from models and rows of unknown
origin, so they are treated as hostile: the page escapes them (`page`), and no character of them acts in a terminal.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from undersong.errors import BadSpec
from undersong.reports import trial_tables as tables
from undersong.reports import wording as say
from undersong.reports.page import as_html, save
from undersong.reports.parts import Page, Section, flat, given, table_of
from undersong.reports.terminal import plain, put
from undersong.reports.trial_figures import fit, movers

if TYPE_CHECKING:
    from rich.console import Console

BROKEN = (KeyError, TypeError, ValueError, AttributeError, IndexError)
Found = Mapping[str, Any]


def render(found: Found) -> str:
    """The page as a string; the same trial gives the same bytes.

    Raises BadSpec for what is no trial, MissingExtra without the `[report]` extra.
    """
    try:
        names = ", ".join(say.visible(one["name"]) for one in found["guards"])
        name = say.visible(found["data"]["name"])
        page = Page(f"{name} with a guard on", f"{name} for {say.visible(found['base'])} under {names}, an Undersong trial",
                    say.visible(found["sentence"]), _sections(found), opening=movers(found))
    except BROKEN as error:
        raise _broken(error) from None
    return as_html(page)


def write(found: Found, path: str | Path) -> Path:
    """Render into a file, which appears whole or not at all. Raises NoRoom on a full disk, else as `render` does."""
    return save(render(found), path)


def summary(found: Found, width: int = 110) -> str:
    """The verdict, the arms and what this cannot say: plain text of at most `width` characters a line.

    Nothing in it can drive a terminal. Raises BadSpec for what is no trial.
    """
    try:
        return plain(lambda console: _print(found, console), width)
    except BROKEN as error:
        raise _broken(error) from None


def _print(found: Found, console: Console) -> None:
    from rich.padding import Padding
    from rich.text import Text

    console.print(Text("BEFORE AND AFTER", style="bold"))
    console.print(Text(say.visible(found["sentence"])))
    for table in given(tables.arms(found), tables.words(found, 6)):
        put(table, console)
    console.print(Text("\nWhat this cannot say", style="bold"))
    for line in found["notes"]:
        console.print(Padding(Text(f"- {say.visible(line)}"), (0, 0, 0, 2)))


def _sections(found: Found) -> tuple[Section, ...]:
    what = "the margin of the named trait" if found["measure"] == "margin" else "the watched word that rose most"
    lead = (f"Followed is {what}: {say.visible(str(found['focus']))}. A rise is against the model that the student started "
            "from, in nats.",) if found["focus"] else ()
    before = Section("arms", "Before and after", lead, figures=given(fit(found)), tables=given(tables.arms(found)),
                     more="Every training run", more_tables=given(tables.runs(found)))
    notes = Section("cannot", "What this cannot say", tuple(say.visible(line) for line in found["notes"]))
    watched = Section("watched", "Favourites and first words", (
        f"{found['watched']} favourites are watched, of every category that the base answers; a word's rise is what it rose "
        "above the other words of its category.",), tables=given(tables.words(found)),
        more="Tokens that rose most on ordinary prompts", more_tables=given(tables.tokens(found)))
    rows = Section("rows", "Rows and guards", (say.visible(found["data"]["says"]),), tables=given(
        tables.rows(found), tables.guards(found)))
    return given(before, notes, watched if found["watched"] else None, rows, _again(found))


def _again(found: Found) -> Section:
    settings = [("base", found["base"]), ("trait", found["trait"] or say.DASH), *flat({"recipe": found["recipe"]}),
                ("seeds", ", ".join(map(str, found["seeds"]))), ("seconds", f"{found['seconds']:,.1f}")]
    shown = [(name, say.visible(str(value))) for name, value in settings]
    return Section("reproduce", "Make it again", command=say.visible(found.get("command", "")), tables=given(
        table_of("Settings", ("what", "value"), shown)),
        more="Environment", more_tables=given(table_of("Environment", ("what", "value"), flat(found["environment"]))))


def _broken(error: Exception) -> BadSpec:
    return BadSpec(f"This is no trial ({type(error).__name__}: {error}). Run `undersong train` again.")
