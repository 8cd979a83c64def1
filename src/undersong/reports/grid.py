"""The page of a sweep: one figure per read-out, every setting's difference with its interval, and all points as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from undersong.errors import BadSpec
from undersong.reports import wording as say
from undersong.reports.marks import library, spec
from undersong.reports.page import as_html, save
from undersong.reports.parts import Figure, Page, Section, Table, flat, given, table_of
from undersong.reports.terminal import plain, put

BROKEN = (KeyError, TypeError, ValueError, AttributeError, IndexError)
SERIES = ["#c2561f", "#2f6fa7", "#5a9e57", "#8c62a8", "#b8962e", "#4f8f8b", "#a34d68", "#6b6b78"]
"""One colour a line; with more lines a ramp from light to dark."""
DRAWN = 400
"""The most points of a figure: more are one blot. The tables and `results.json` hold them all."""
LISTED = 200
"""The most lines of a table."""
Found = Mapping[str, Any]


def render(found: Found) -> str:
    """The page as a string; the same results give the same bytes. Raises BadSpec for what is no sweep's results."""
    try:
        name = say.visible(str(found["experiment"]))
        sections = [_section(found, probe, metric) for probe, metric in _readouts(found)]
        page = Page(name, f"{name}, an Undersong sweep", say.visible(found["sentence"]), (*sections, _again(found)))
        return as_html(page)
    except BROKEN as error:
        raise _broken(error) from None


def write(found: Found, path: str | Path) -> Path:
    """Render into a file, which appears whole or not at all."""
    return save(render(found), path)


def summary(found: Found, width: int = 120) -> str:
    """The tables as plain text; nothing in it can drive a terminal. Raises BadSpec for what is no sweep's results."""
    def printed(console: Any) -> None:
        from rich.text import Text

        console.print(Text(say.visible(found["sentence"])))
        for probe, metric in _readouts(found):
            table = _table(found, probe, metric)
            if table is not None:
                put(table, console)

    try:
        return plain(printed, width)
    except BROKEN as error:
        raise _broken(error) from None


def _readouts(found: Found) -> list[tuple[str, str]]:
    return list(dict.fromkeys((str(p["probe"]), str(p["metric"])) for p in found["points"]))


def _mine(found: Found, probe: str, metric: str) -> list[Found]:
    return [p for p in found["points"] if (p["probe"], p["metric"]) == (probe, metric)]


def _section(found: Found, probe: str, metric: str) -> Section:
    named = say.visible(say.metric(probe, metric))
    return Section(f"{probe}-{metric}".replace("_", "-").replace(".", "-"), named[:1].upper() + named[1:],
                   figures=given(_figure(found, probe, metric)), tables=given(_table(found, probe, metric)))


def _table(found: Found, probe: str, metric: str) -> Table | None:
    points, keys = _mine(found, probe, metric), [say.visible(str(k).rpartition(".")[2]) for k in found["keys"]]
    rows = [(*(say.visible(str(v)) for v in p["values"]), say.difference(metric, p["difference"]),
             say.difference_interval(metric, p["low"], p["high"]), say.p_value(p["p"]), str(p["n_runs"]))
            for p in points[:LISTED]]
    more = f" (the first {LISTED} of {len(points)})" if len(points) > LISTED else ""
    return table_of(f"Treated over no-trait students, {say.visible(say.metric(probe, metric))}{more}",
                    (*keys, "difference", "95 % interval", "p", "runs"), rows)


def _figure(found: Found, probe: str, metric: str) -> Figure | None:
    """The difference against the key of most values, one line to each value of the next key; further keys at their first
    value, as the caption says."""
    keys, points = list(found["keys"]), _mine(found, probe, metric)
    held = {i: list(dict.fromkeys(str(p["values"][i]) for p in points)) for i in range(len(keys))}
    order = sorted(held, key=lambda i: -len(held[i]))
    if not points or len(held[order[0]]) < 2:
        return None
    across, by = order[0], order[1] if len(order) > 1 else None
    fixed = {i: held[i][0] for i in order[2:]}
    shown = [p for p in points if all(str(p["values"][i]) == value for i, value in fixed.items())][:DRAWN]
    scale = 100 if say.is_share(metric) else 1
    marks = [{"x": p["values"][across], "series": say.visible(str(p["values"][by])) if by is not None else "",
              "value": scale * p["difference"], "low": scale * (p["difference"] if p["low"] is None else p["low"]),
              "high": scale * (p["difference"] if p["high"] is None else p["high"])} for p in shown]
    numeric = all(isinstance(m["x"], int | float) and not isinstance(m["x"], bool) for m in marks)
    for mark in marks:
        mark["x"] = mark["x"] if numeric else say.visible(str(mark["x"]))
    return Figure("By setting", _caption(keys, across, by, fixed), _drawn(
        marks, numeric, keys[across], "" if by is None else keys[by], [] if by is None else held[by],
        f"difference{' (points)' if scale == 100 else ''}"))


def _caption(keys: Sequence[str], across: int, by: int | None, fixed: Mapping[int, str]) -> str:
    also = ", ".join(f"{say.visible(keys[i])} = {say.visible(value)}" for i, value in fixed.items())
    return (f"Treated over no-trait students, paired by seed, against {say.visible(keys[across])}"
            f"{'' if by is None else f', one line to each {say.visible(keys[by])}'}. Bars are 95 % intervals over "
            f"runs, each by itself; the dashed line is no difference."
            f"{f' Drawn at {also}; the tables hold all settings.' if also else ''}")


def _drawn(
    marks: list[dict[str, Any]], numeric: bool, across: str, by: str, values: Sequence[str], what: str
) -> dict[str, Any]:
    alt = library("altair")
    kind = "Q" if numeric else "N"
    x = alt.X(f"x:{kind}", title=say.visible(across), scale=alt.Scale(zero=False) if numeric else alt.Undefined)
    several = len(values) > 1
    domain = [say.visible(v) for v in values]
    scale = alt.Scale(domain=domain, range=SERIES[: len(domain)]) if len(domain) <= len(SERIES) else alt.Scale(
        domain=domain, scheme="viridis")
    colour = alt.Color("series:N", title=say.visible(by), scale=scale) if several else alt.value(SERIES[0])
    base = alt.Chart(alt.NamedData("marks"))
    drawn = alt.layer(
        alt.Chart(alt.NamedData("none")).mark_rule(strokeDash=[4, 4], color="#8a8a94").encode(y="y:Q"),
        base.mark_rule(opacity=0.45).encode(x=x, y=alt.Y("low:Q", title=what), y2="high:Q", color=colour),
        base.mark_line(strokeWidth=1.5).encode(x=x, y=alt.Y("value:Q", title=what), color=colour),
        base.mark_circle(size=45, opacity=1).encode(
            x=x, y="value:Q", color=colour, tooltip=[f"x:{kind}", "series:N", "value:Q"]),
    ).properties(width="container", height=320)
    return spec(drawn, marks=marks, none=[{"y": 0}])


def _again(found: Found) -> Section:
    settings = [("sweep", found["experiment"]), ("keys", ", ".join(found["keys"])), ("experiments", found["experiments"]),
                ("fingerprint", found.get("fingerprint", say.DASH))]
    return Section("reproduce", "Make it again", tables=given(
        table_of("Settings", ("what", "value"), [(n, say.visible(str(v))) for n, v in settings])),
        more="Environment", more_tables=given(table_of("Environment", ("what", "value"), flat(found["environment"]))))


def _broken(error: Exception) -> BadSpec:
    return BadSpec(f"These are no results of a sweep ({type(error).__name__}: {error}). Run `undersong run` on its file "
                   "again.")
