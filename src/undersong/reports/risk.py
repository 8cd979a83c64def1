"""The report of `undersong risk`: one page, and what the terminal prints, drawn from the statement's JSON alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from undersong.reports import wording as say
from undersong.reports.page import as_html, save
from undersong.reports.parts import Banner, Page, Section, Table, flat, given, table_of
from undersong.reports.terminal import plain, put

if TYPE_CHECKING:
    from rich.console import Console

LIGHTS = {"green": ("clean", "✓", "Green"), "amber": ("unknown", "?", "Amber"), "red": ("found", "!", "Red")}
RULE = (
    ("1", "the rows audit or the student audit found a trait", "red"),
    ("2", "an alarm of the lineage is about these rows or their writer", "amber"),
    ("3", "kin, and neither audit had power at any share", "red"),
    ("4", "a student was given and its audit could not say clean", "amber"),
    ("5", "the rows audit is clean down to a share of at most --smallest", "green"),
    ("6", "not kin, nothing found, and the rows audit has power at some share", "green"),
    ("7", "everything else", "amber"),
)
"""The table of `ruling.py`; a test compares."""


def render(risk: Mapping[str, Any]) -> str:
    """The page as a string; the same statement gives the same bytes. Raises MissingExtra without the `[report]` extra."""
    kind, sign, word = LIGHTS[risk["light"]]
    lists = (("Why", tuple(risk["reasons"])), ("What to do next", tuple(s["do"] for s in risk["next"])))
    banner = Banner(kind, sign, word, _facts(risk), tuple(pair for pair in lists if pair[1]))
    sections = given(_could(risk), _there(risk), _crossed(risk), _origin(risk), _next(risk), _method(risk))
    title = f"{word}: {risk['dataset']['name']} for {risk['base']}"
    return as_html(Page(title, f"{risk['dataset']['name']} for {risk['base']}, a transfer-risk statement", risk["sentence"],
                        sections, banner))


def write(risk: Mapping[str, Any], path: str | Path) -> Path:
    """Render into a file, which appears whole or not at all. Raises NoRoom on a full disk, else as `render` does."""
    return save(render(risk), path)


def summary(risk: Mapping[str, Any], width: int = 110) -> str:
    """The light, its reasons, the channels and what to do next as plain text. Nothing in it can drive a terminal."""
    return plain(lambda console: _print(risk, console), width)


def _print(risk: Mapping[str, Any], console: Console) -> None:
    from rich.padding import Padding
    from rich.text import Text

    console.print(Text(risk["light"].upper(), style="bold"))
    console.print(Text(risk["sentence"]))
    for name, value in _facts(risk):
        console.print(Text(f"  {name}: {value}"))
    console.print(Text("\nWhy", style="bold"))
    for line in risk["reasons"]:
        console.print(Padding(Text(f"- {line}"), (0, 0, 0, 2)))
    for table in given(_channels(risk), _filters(risk), _steps(risk)):
        put(table, console)


def _facts(risk: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    teacher, result = risk["teacher"], risk["kinship"]["result"]
    whence = {"named": "named", "records": "by the records", "unknown": ""}[teacher["known_from"]]
    found = [("teacher", f"{teacher['name']} ({whence})" if teacher["name"] else "unknown"),
             ("kinship", _relation(result)), ("rows", _verdict(risk["rows"]))]
    if risk["student"]:
        found.append(("student", _verdict(risk["student"])))
    return tuple(found)


def _relation(result: Mapping[str, Any] | None) -> str:
    if result is None:
        return "not tested"
    kin = result["relation"].startswith("same_w") or result["relation"] == "same_initialisation"
    name, value = ("p", result["p"]) if kin else ("power", result["power"])
    return f"{result['relation'].replace('_', ' ')}{'' if value is None else f' ({name} = {value:.2g})'}"


def _verdict(audit: Mapping[str, Any]) -> str:
    power = audit.get("power") or {}
    share = power.get("smallest_share")
    seen = f", would see {say.percent(share)}" if share is not None else ", no power"
    found = f": {audit['trait']}" if audit.get("trait") else ""
    word = {"found": "found", "clean": "clean", "unknown": "cannot tell"}[audit["verdict"]]
    return word + (found if audit["verdict"] == "found" else seen)


def _could(risk: Mapping[str, Any]) -> Section:
    result = risk["kinship"]["result"]
    lead = [result["sentence"] if result else "No kinship was tested: the model that wrote the rows is not at hand."]
    lead.append("The prior is the share of the effect that is kept, against teacher and student of one checkpoint. It was "
                "measured on one small model only: read it as an order of magnitude, beside what was measured since. "
                "Channels that need no kinship have no such number.")
    return Section("could", "Could it cross?", tuple(lead), tables=given(_channels(risk), _evidence(risk)))


def _channels(risk: Mapping[str, Any]) -> Table | None:
    rows = []
    for c in risk["channels"]:
        prior = c["prior"]
        number = f"{prior['value']:.2g}: {prior['says']}" if prior else say.DASH
        rows.append((c["channel"], c["could"], number, prior["source"] if prior else c["note"] or "no kinship, no prior"))
    return table_of("Channels", ("channel", "could it cross", "prior", "whence"), rows)


def _evidence(risk: Mapping[str, Any]) -> Table | None:
    rows = []
    for c in risk["channels"]:
        for e in c["evidence"]:
            runs = str(e.get("n", say.DASH))
            rows.append((c["channel"], e["what"], _number(e), runs, e["source"]))
    return table_of("The evidence", ("channel", "what was measured", "value", "runs", "source"), rows, (2, 3))


def _number(e: Mapping[str, Any]) -> str:
    if e["unit"] == "share":
        return say.percent(e["value"])
    if e["unit"] != "rate":
        return f"{e['value']:,} {'' if e['unit'] == 'count' else e['unit']}".strip()
    span = f" ({100 * e['low']:.0f} to {100 * e['high']:.0f})" if "low" in e else ""
    return f"{100 * e['value']:.0f} points{span}"


def _there(risk: Mapping[str, Any]) -> Section:
    return Section("there", "Is it there?", _said(risk["rows"]), tables=given(_families("The rows audit", risk["rows"])))


def _crossed(risk: Mapping[str, Any]) -> Section | None:
    audit = risk["student"]
    if not audit:
        return None
    return Section("crossed", "Did it cross?", _said(audit), tables=given(_families("The student audit", audit)))


def _said(audit: Mapping[str, Any]) -> tuple[str, ...]:
    return (audit["sentence"], *audit["reasons"][:4])


def _families(title: str, audit: Mapping[str, Any]) -> Table | None:
    rows = [(f["detector"].replace("_", " "), f["verdict"], say.DASH if f["p"] is None else f"{f['p']:.2g}", f["null"])
            for f in audit["findings"]]
    rows += [(s["detector"].replace("_", " "), "did not run", say.DASH, s["says"]) for s in audit["skipped"]]
    return table_of(title, ("detector", "alone", "p", "null, or why not"), rows, (2,))


def _origin(risk: Mapping[str, Any]) -> Section | None:
    path = risk["dataset"]["path"]
    lines = [(p["role"], p["name"], p["says"]) for p in path]
    made = given(table_of("From the rows up", ("role", "name", "what it is"), lines), _filters(risk))
    if not made:
        told = "The store does not know these rows: their origin is not recorded."
        return Section("origin", "Where the rows come from", (told,))
    return Section("origin", "Where the rows come from", ("As the records declare it.",), tables=made)


def _filters(risk: Mapping[str, Any]) -> Table | None:
    rows = [(f["filter"], f["reason"], f"{f['dropped']:,}") for f in risk["dataset"]["filters"]]
    return table_of("Rows dropped", ("filter", "reason", "rows"), rows, (2,))


def _steps(risk: Mapping[str, Any]) -> Table | None:
    rows: Sequence[tuple[str, ...]] = [(s["do"], s["cost"], s["source"] or say.DASH) for s in risk["next"]]
    return table_of("What to do next, and what it costs", ("what", "cost", "measured in"), rows)


def _next(risk: Mapping[str, Any]) -> Section | None:
    table = _steps(risk)
    return Section("next", "What to do next, and what it costs", tables=(table,)) if table else None


def _method(risk: Mapping[str, Any]) -> Section:
    rows = [(f"{number} ←" if number == str(risk["line"]) else number, when, light) for number, when, light in RULE]
    lead = f"The first line that fits decides; here line {risk['line']}."
    settings = table_of("Settings and environment", ("what", "value"),
                        [*flat(risk["settings"]), ("seconds", f"{risk['seconds']:.1f}"), *flat(risk["environment"])])
    return Section("method", "The rule", (lead,), command=risk.get("command", ""),
                   tables=given(table_of("The rule of the light", ("line", "when", "light"), rows), settings))
