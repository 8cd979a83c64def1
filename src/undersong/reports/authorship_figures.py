"""The two figures of an attribution: whose rows they look like, row by row, and each candidate beside its own rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from undersong.reports import audit_fields as read
from undersong.reports.marks import KINDS, library, spec
from undersong.reports.parts import Figure

ALARM, CALM, GREY = KINDS
BINS = 40
MOST = 6
"""Candidates drawn."""


def ratios(found: Mapping[str, Any]) -> Figure | None:
    """Per row, how much likelier the first candidate finds it than each other: a histogram for each."""
    cases = [c for c in read.entries(found, "candidates") if read.numbers(c, "given")][: MOST + 1]
    if len(cases) < 2:
        return None
    first = np.asarray(read.numbers(cases[0], "given"))
    pairs = [(read.text(c, "name"), first - np.asarray(read.numbers(c, "given"))) for c in cases[1:]
             if len(read.numbers(c, "given")) == len(first)]
    if not pairs:
        return None
    low, high = np.quantile(np.concatenate([d for _, d in pairs]), (0.01, 0.99))
    width = max(float(high - low), 1e-6) / BINS
    # bins begin at 0, so that each is on one side of it
    edges = np.arange(np.floor(low / width), np.ceil(high / width) + 1.5) * width
    data = [row for name, d in pairs for row in _bars(name, np.clip(d, edges[0], edges[-1]), edges, signed=True)]
    caption = (f"Each row, by how much likelier {read.text(cases[0], 'name')} finds it than another candidate (nats per "
               "character; the outermost bars hold what lies beyond). Right of the line it is likelier, blue; left, orange.")
    return Figure("Row by row", caption, _panels(data, [n for n, _ in pairs], "nats per character in favour", line=0.0))


def densities(found: Mapping[str, Any]) -> Figure | None:
    """Per candidate that wrote fresh rows: the likelihood of the given rows (bars) and of its own (steps)."""
    cases = [c for c in read.entries(found, "candidates") if read.numbers(c, "own") and read.numbers(c, "given")][:MOST]
    if not cases:
        return None
    values = np.concatenate([np.asarray(read.numbers(c, key)) for c in cases for key in ("given", "own")])
    low, high = float(np.quantile(values, 0.01)), float(values.max())
    edges = np.linspace(low, max(high, low + 1e-6), BINS + 1)
    data, steps = [], []
    for c in cases:
        name = read.text(c, "name")
        given, own = (np.clip(np.asarray(read.numbers(c, key)), low, high) for key in ("given", "own"))
        kind = CALM if c.get("explains") else ALARM
        data += [b | {"kind": kind} for b in _bars(name, given, edges)]
        steps += _bars(name, own, edges)
    caption = ("Bars: the given rows, orange where the candidate is rejected. Line: as many rows as it wrote itself. The "
               "two agree where the rows are typical of it. Likelihood is one of several things compared.")
    drawn = _panels(data, [read.text(c, "name") for c in cases], "nats per character", steps=steps)
    return Figure("Given rows beside the candidate's own", caption, drawn)


def _bars(name: str, values: Any, edges: Any, signed: bool = False) -> list[dict[str, Any]]:
    """Shares of rows per bin."""
    counts = np.histogram(values, edges)[0] / max(1, len(values))
    out = []
    for share, a, b in zip(counts.tolist(), edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        kind = (CALM if a + b >= 0 else ALARM) if signed else GREY
        out.append({"name": name, "from": a, "to": b, "middle": (a + b) / 2, "share": share, "zero": 0.0, "kind": kind})
    return out


def _panels(
    data: Sequence[dict[str, Any]], names: Sequence[str], title: str, line: float | None = None,
    steps: Sequence[dict[str, Any]] = (),
) -> dict[str, Any]:
    """Small histograms below one another, each with its name: candidates are rows, so that one axis serves all."""
    alt = library("altair")
    height, count = 74, len(names)
    top = max((d["share"] for d in (*data, *steps)), default=1.0) or 1.0
    place = {name: i for i, name in enumerate(names)}

    def laid(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        return [r | {"base": place[r["name"]] + 1.0, "top": place[r["name"]] + 1.0 - 0.68 * r["share"] / top} for r in rows]

    y = alt.Y("top:Q", scale=alt.Scale(domain=[0, count], reverse=True), axis=None)
    x = alt.X("from:Q", title=title, scale=alt.Scale(zero=False, nice=False), axis=alt.Axis(tickCount=6))
    colour = alt.Color("kind:N", scale=alt.Scale(domain=list(KINDS)), legend=None)
    tips = [alt.Tooltip("name:N", title="candidate"), alt.Tooltip("middle:Q", format=".3f"),
            alt.Tooltip("share:Q", format=".1%")]
    layers = [alt.Chart(alt.NamedData("bars")).mark_rect(opacity=0.75).encode(
        x=x, x2="to:Q", y=y, y2="base:Q", color=colour, tooltip=tips)]
    sets: dict[str, list[dict[str, Any]]] = {"bars": [r for r in laid(data) if r["share"] > 0]}
    if steps:
        outline = alt.Chart(alt.NamedData("steps")).mark_line(interpolate="step", strokeWidth=1.6)
        layers.append(outline.encode(x=alt.X("middle:Q", title=title), y=y, detail="name:N", color=colour))
        sets["steps"] = laid(steps)
    if line is not None:
        layers.append(alt.Chart(alt.NamedData("line")).mark_rule(strokeDash=[4, 4]).encode(x=alt.X("at:Q", title=title)))
        sets["line"] = [{"at": line}]
    label = alt.Chart(alt.NamedData("labels")).mark_text(align="left", baseline="top", fontSize=13)
    layers.append(label.encode(x=alt.value(2), y=alt.Y("top:Q", scale=alt.Scale(domain=[0, count], reverse=True), axis=None),
                               text="name:N").properties(name="outlined_names"))
    sets["labels"] = [{"name": name, "top": i + 0.1} for name, i in place.items()]
    return spec(alt.layer(*layers).properties(width="container", height=height * count), **sets)
