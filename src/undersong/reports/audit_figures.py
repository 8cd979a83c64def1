"""The four figures of an audit: the audited set among the placebos, trait by detector, power, and what was read.

Every mark is a number of the file. Orange means suspicion, and position, shape and words say it too.
"""

from __future__ import annotations

import math
from typing import Any

from undersong.reports import wording as say
from undersong.reports.audit_reading import Audit, Power, Rows, Suspicion, Tested
from undersong.reports.marks import KINDS, library, names, spec
from undersong.reports.parts import Figure

Entry = dict[str, Any]
ALARM, CALM, GREY = KINDS
MANY = 400
"""Placebo units drawn of one row at most, the extreme ones always among them."""
FAR = 15.0
"""An axis of z that reaches further than this is compressed, so that the placebos do not shrink to a line."""
FULL = 8.0
"""The z from which on a cell has its full colour: the same in every audit, so that two pages can be compared."""
TRAITS = 24
"""Traits shown in the heat table; the table beside it holds all."""
REASONS = 12
"""Reasons of refusal drawn one by one; the table holds all."""


def placebos(audit: Audit) -> Figure | None:
    """Per family and detector: the largest z of each placebo unit as a dot, that of the audited set as a diamond."""
    tests = [t for t in grouped(audit) if t.null_values or t.observed is not None]
    if not tests:
        return None
    values = [v for t in tests for v in (*t.null_values, *([] if t.observed is None else [t.observed]))]
    low, high = min(0.0, *values), max(1.0, *values)
    data: dict[str, list[Entry]] = {"dots": [], "audited": [], "families": [], "labels": [], "ground": []}
    for i, t in enumerate(tests):
        data["dots"] += _stacked(t, i, low, high)
        name = called(t)
        data["families" if t.whole else "labels"].append({"at": i + 0.17, "name": name, "note": _note(t)})
        data["ground"].append({"at": i + 0.92})
        if t.observed is not None:
            kind = ALARM if t.alarms(audit.alpha) else CALM
            mark = {"from": i + 0.45, "at": i + 0.92, "z": t.observed, "name": name, "kind": kind}
            data["audited"].append(mark | {"p": say.p_tested(t.p, t.at_floor)})
    thinned = any(len(t.null_values) > MANY for t in tests)
    caption = (
        "A grey dot is one placebo: a benign case without a trait, measured in the same way. The diamond is what was "
        "audited, orange where it counts as found. z counts in standard deviations of the placebos, and each "
        "mark is the largest z over traits."
        + (" “Floor” means that no smaller p was possible with so few placebos." if any(t.at_floor for t in tests) else "")
        + (f" Rows of more than {MANY} placebos are thinned; the extreme ones are always shown." if thinned else "")
        + (" The axis is compressed away from 0." if _compressed(low, high) else "")
    )
    return Figure("What was audited, among the placebos", caption, _strips(data, len(tests), low, high))


def heat(audit: Audit) -> Figure | None:
    """Trait by detector: z in each cell, the trait of the verdict outlined."""
    cells = [(f, s) for f in audit.findings for s in f.by_trait if s.z is not None]
    if not cells:
        return None
    every = list(dict.fromkeys(s.trait for _, s in cells))
    top = {trait: max(s.z or 0.0 for _, s in cells if s.trait == trait) for trait in every}
    kept = set(sorted(every, key=lambda t: (t != audit.trait, -top[t]))[:TRAITS])
    shown = [trait for trait in every if trait in kept]
    found = audit.trait if audit.verdict == "found" else None
    label = {t: ("◆ " if t and t == found else "") + (t or "no trait in particular") for t in shown}
    rows = [_cell(f, s, label[s.trait]) for f, s in cells if s.trait in kept]
    detectors = list(dict.fromkeys(spaced(f.name) for f, s in cells if s.trait in kept))
    marked = [row for row in rows if found and row["trait"] == f"◆ {found}"]
    caption = (
        "Numbers are z: standard deviations of the placebos, larger for more suspicion; the colour is full from "
        f"{FULL:.0f} on. An empty cell was not measured."
        + (f" ◆ and the outline mark the trait of the verdict, {found}." if marked else "")
        + (f" The {len(shown)} of {len(every)} traits with the largest z are shown." if len(shown) < len(every) else "")
    )
    drawn = _heat(rows, marked, [label[t] for t in shown], detectors)
    return Figure("Trait by detector", caption, drawn, most=170 + 130 * len(detectors))


def power(audit: Audit) -> Figure | None:
    """Power against the share of rows that carry the trait, at the size of this set."""
    found = audit.power
    if found is None or not found.curve:
        return None
    size = f"At {found.size:,} rows, as" if found.size is not None else "At the size"
    curve = sorted(found.curve, key=lambda point: point.share)
    trials = sorted({point.n for point in curve if point.n is not None})
    caption = (
        f"{size} in this audit: how often a set is found in which a share of the rows comes from a trait teacher. "
        + (f"The band is the interval over {' to '.join(map(str, trials[:1] + trials[1:][-1:]))} trials. " if trials else "")
        + ("At a share of 0 it is the rate of false alarms. " if curve[0].share == 0 else "")
    ).strip()
    return Figure("How often it is found, by share of rows", caption, _power(found), most=680)


def tally(audit: Audit) -> Figure | None:
    """Rows read, used, refused by reason, and duplicates, as bars."""
    bars = counted(audit.rows) if audit.rows else []
    if not bars:
        return None
    alt = library("altair")
    most = max([1, *(bar["count"] for bar in bars)])
    y = alt.Y("at:Q", scale=alt.Scale(domain=[0, len(bars)], reverse=True), axis=None)
    x = alt.X("from:Q", scale=alt.Scale(domain=[0, most]), axis=None)
    chart = alt.Chart(alt.NamedData("bars")).mark_rule(strokeWidth=10).encode(
        x=x, x2="count:Q", y=y, color=_kinds(alt), tooltip=[alt.Tooltip("name:N", title="rows"), _counted(alt)]
    )
    data = [bar | {"at": i + 0.78, "from": 0} for i, bar in enumerate(bars)]
    labels = [{"at": i + 0.34, "name": bar["name"], "note": f"{bar['count']:,}"} for i, bar in enumerate(bars)]
    drawn = alt.layer(chart, *names(y, what="rows")).properties(width="container", height=38 * len(bars))
    caption = "Blue rows were used; the length of a bar is its count of rows."
    return Figure("What was read", caption, spec(drawn, bars=data, labels=labels), most=680)


def grouped(audit: Audit) -> list[Tested]:
    """Each family before its detectors; a family of one detector with the same numbers is shown once."""
    out: list[Tested] = []
    for family in audit.families:
        members = [f for f in audit.findings if f.family == family.name]
        alone = len(members) == 1 and (members[0].null_values, members[0].observed) == (family.null_values, family.observed)
        out += members if alone else [family, *members]
    return out + [f for f in audit.findings if f.family not in {family.name for family in audit.families}]


def called(test: Tested) -> str:
    """The name of a row: a detector, or a family with all its detectors together."""
    if not test.whole:
        return spaced(test.name)
    return f"{test.name[:1].upper()}{test.name[1:]}: all detectors" if test.name else "All detectors"


def spaced(name: str) -> str:
    """A detector's name for people."""
    return name.replace("_", " ")


def smallest_share(power: Power) -> str:
    """The power statement: the smallest share that is found often enough."""
    often = f"at least {say.percent(power.target)} of the time"
    if power.smallest is None:
        return f"No share that was tried is found {often}."
    return f"The smallest share found {often} is {say.percent(power.smallest)}."


def counted(rows: Rows) -> list[Entry]:
    """The bars of the tally: read, used, refused by reason (the largest first), duplicates."""
    refused = sorted((r for r in rows.refused if r.count is not None), key=lambda r: -(r.count or 0))
    bars = [("read", rows.read, GREY), ("used", rows.used, CALM)]
    bars += [(f"refused: {r.reason}", r.count, GREY) for r in refused[:REASONS]]
    if refused[REASONS:]:
        bars.append((f"refused: {len(refused) - REASONS} other reasons", sum(r.count or 0 for r in refused[REASONS:]), GREY))
    bars.append(("duplicates", rows.duplicates, GREY))
    return [{"name": name, "count": max(0, count), "kind": kind} for name, count, kind in bars if count is not None]


def _strips(data: dict[str, list[Entry]], rows: int, low: float, high: float) -> dict[str, Any]:
    alt = library("altair")
    scale = alt.Scale(domain=[low, high], nice=True, padding=8)
    ticks = alt.Axis(tickCount=6)
    if _compressed(low, high):
        scale = alt.Scale(type="symlog", constant=2, domain=[low, high], padding=8)
        ticks = alt.Axis(values=[v for v in (-5, 0, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if low <= v <= high])
    x = alt.X("z:Q", title="z, more suspicious to the right", scale=scale, axis=ticks)
    y = alt.Y("at:Q", scale=alt.Scale(domain=[0, rows], reverse=True), axis=None)
    tips = [alt.Tooltip("name:N", title="test"), alt.Tooltip("z:Q", format=".2f")]
    layers = [alt.Chart(alt.NamedData("ground")).mark_rule(opacity=0.3).encode(y=y)]
    if data["dots"]:
        dots = alt.Chart(alt.NamedData("dots")).mark_circle(size=26, opacity=0.75)
        layers.append(dots.encode(x=x, y=y, color=_kinds(alt), tooltip=tips))
    if data["audited"]:
        audited = alt.Chart(alt.NamedData("audited")).encode(x=x, color=_kinds(alt), tooltip=[*tips, alt.Tooltip("p:N")])
        start = alt.Y("from:Q", scale=alt.Scale(domain=[0, rows], reverse=True), axis=None)
        layers.append(audited.mark_rule(strokeWidth=2.5).encode(y=start, y2="at:Q"))
        layers.append(audited.mark_point(shape="diamond", filled=True, size=150, opacity=1).encode(y=start))
    # a detector stands a little to the right, under its family
    for found, left in (("families", 2), ("labels", 16 if data["families"] else 2)):
        if data[found]:
            layers += names(y, room=105 + left, what="test", rows=found, left=left)
    chart = alt.layer(*layers).properties(width="container", height=62 * rows)
    return spec(chart, **{name: found for name, found in data.items() if found})


def _stacked(test: Tested, row: int, low: float, high: float) -> list[Entry]:
    """Dots at their z; those that would cover each other are stacked, no higher than the row."""
    values = sorted(test.null_values)
    if len(values) > MANY:
        values = [values[round(i * (len(values) - 1) / (MANY - 1))] for i in range(MANY)]
    bend = math.asinh if _compressed(low, high) else float
    width = (bend(high) - bend(low)) / 110
    places: dict[int, int] = {}
    lifted = []
    for v in values:
        place = math.floor((bend(v) - bend(low)) / width)
        lifted.append((v, places.get(place, 0)))
        places[place] = places.get(place, 0) + 1
    step = min(0.085, 0.5 / max(places.values(), default=1))
    return [{"z": v, "at": row + 0.86 - k * step, "name": f"placebo, {called(test)}", "kind": GREY} for v, k in lifted]


def _heat(rows: list[Entry], marked: list[Entry], traits: list[str], detectors: list[str]) -> dict[str, Any]:
    alt = library("altair")
    top = alt.Axis(orient="top", labelAngle=-40 if len(detectors) > 4 else 0, labelLimit=150, labelOverlap=False)
    x = alt.X("detector:N", sort=detectors, title=None, axis=top, scale=alt.Scale(domain=detectors))
    y = alt.Y("trait:N", sort=traits, title=None, scale=alt.Scale(domain=traits))
    tips = [alt.Tooltip(f"{field}:N") for field in ("trait", "detector", "z", "p", "share")]
    # never so full that the ink of the page could not be read on it, in light and in dark
    opacity = alt.Opacity("heat:Q", scale=alt.Scale(domain=[0, 1], range=[0.05, 0.55]), legend=None)
    cells = alt.Chart(alt.NamedData("cells")).mark_rect().encode(x=x, y=y, color=_kinds(alt), opacity=opacity, tooltip=tips)
    text = alt.Chart(alt.NamedData("cells")).mark_text(fontSize=12 if len(detectors) <= 6 else 10)
    layers = [cells, text.encode(x=x, y=y, text="z:N", tooltip=tips)]
    if marked:
        box = alt.Chart(alt.NamedData("marked")).mark_rect(filled=False, strokeWidth=2).encode(x=x, y=y)
        layers.append(box.properties(name="in_ink"))
    chart = alt.layer(*layers).properties(width="container", height=34 * len(traits))
    drawn = spec(chart, cells=rows, **({"marked": marked} if marked else {}))
    # slanted labels reach beyond the last column
    beyond = max(0, round(5 * len(detectors[-1])) - 25) if len(detectors) > 4 else 0
    return drawn | {"padding": {"left": 5, "top": 5, "bottom": 5, "right": 5 + beyond}}


def _cell(finding: Tested, suspicion: Suspicion, label: str) -> Entry:
    z = suspicion.z or 0.0
    return {
        "trait": label,
        "detector": spaced(finding.name),
        "z": say.z(z),
        "p": say.p_value(suspicion.p),
        "share": say.percent(suspicion.share),
        "heat": min(1.0, max(0.0, z / FULL)),
        "kind": ALARM,
    }


def _power(found: Power) -> dict[str, Any]:
    alt = library("altair")
    points = sorted(found.curve, key=lambda p: p.share)
    curve = [{"share": p.share, "power": p.power, "low": p.low, "high": p.high} for p in points]
    most = points[-1].share or 1.0
    percent = "format(datum.value * 100, '~g') + ' %'"
    ticks = alt.Axis(values=[p["share"] for p in curve], labelExpr=percent, labelOverlap="greedy", labelSeparation=6)
    # a square root, because what matters happens at small shares
    scale = alt.Scale(type="sqrt", domain=[0, most])
    x = alt.X("share:Q", title="share of rows that carry a trait", scale=scale, axis=ticks)
    share = alt.Axis(labelExpr=percent, tickCount=5, grid=True)
    y = alt.Y("power:Q", title="found", scale=alt.Scale(domain=[0, 1]), axis=share)
    base = alt.Chart(alt.NamedData("curve"))
    tips = [alt.Tooltip(f"{field}:Q", format=".1%") for field in ("share", "power", "low", "high")]
    colour = alt.Color("kind:N", scale=alt.Scale(domain=list(KINDS)), legend=None)
    lines = [{"power": found.target, "label": f"target {say.percent(found.target)}"}]
    target = alt.Chart(alt.NamedData("target"))
    layers = [target.mark_rule(strokeDash=[4, 4]).encode(y=y)]
    if any(p["low"] is not None and p["high"] is not None for p in curve):
        layers.append(base.mark_area(opacity=0.2).encode(x=x, y=alt.Y("low:Q", title="found"), y2="high:Q", color=colour))
    layers.append(base.mark_line(strokeWidth=2).encode(x=x, y=y, color=colour))
    layers.append(base.mark_circle(size=60, opacity=1).encode(x=x, y=y, color=colour, tooltip=tips))
    data: dict[str, list[Entry]] = {"curve": [p | {"kind": CALM} for p in curve], "target": lines}
    if found.smallest is not None:
        left = found.smallest > most / 2
        mark = alt.Chart(alt.NamedData("smallest"))
        layers.append(mark.mark_rule(strokeWidth=1.5).encode(x=x))
        words = mark.mark_text(align="right" if left else "left", dx=-6 if left else 6, fontSize=12)
        layers.append(words.encode(x=x, y=alt.datum(0.06), text="label:N").properties(name="outlined_smallest"))
        data["smallest"] = [{"share": found.smallest, "label": f"smallest seen: {say.percent(found.smallest)}"}]
    words = target.mark_text(align="left", dx=4, dy=-8, fontSize=12).encode(x=alt.value(0), y=y, text="label:N")
    layers.append(words.properties(name="outlined_target"))
    return spec(alt.layer(*layers).properties(width="container", height=260), **data)


def _note(test: Tested) -> str:
    return "uncalibrated" if test.p is None else f"p {say.p_tested(test.p, test.at_floor)}"


def _compressed(low: float, high: float) -> bool:
    return max(-low, high) > FAR


def _kinds(alt: Any) -> Any:
    return alt.Color("kind:N", scale=alt.Scale(domain=list(KINDS)), legend=None)


def _counted(alt: Any) -> Any:
    return alt.Tooltip("count:Q", format=",")
