"""The figures of the detector benchmark's page, from its results."""

from __future__ import annotations

from typing import Any

import numpy as np

from undersong import stats
from undersong.reports.parts import Figure

ACCENT, OTHER, GREY = "#b3541e", "#3b6ea5", "#8a8a8a"
PERCENT = "datum.value * 100 + ' %'"


def figures(found: Any) -> dict[str, Figure]:
    """Every figure there are results for, by name."""
    out = {"false-alarms": false_alarms(found), "power": power(found)}
    if found.find("behaviour"):
        out["students"] = students(found)
    if found.find("triple"):
        out["triple"] = triple(found)
    return out


def false_alarms(found: Any) -> Figure:
    """A line per detector: the share of alarms and its interval."""
    lines = [{**r, "name": r["detector"], "held": _null(found, n)} for n in found.names
             for r in found.find("false_alarms", detector=n, kind="all", size=found.at(n))]
    colour = {"field": "held", "type": "nominal", "legend": {"orient": "top", "title": "held against"},
              "scale": {"domain": ["calibration", "permutation", "these very sources"], "range": [OTHER, ACCENT, GREY]}}
    y = {"field": "name", "type": "nominal", "sort": None, "title": None, "axis": {"labelLimit": 220}}
    x = {"type": "quantitative", "title": "share of benign sources with p ≤ .05", "scale": {"domain": [0, 1]},
         "axis": {"labelExpr": PERCENT}}
    spec = {"data": {"values": lines}, "height": {"step": 24}, "layer": [
        {"mark": {"type": "rule", "color": GREY, "strokeDash": [4, 3]}, "encoding": {"x": {"datum": 0.05, **x}}},
        {"mark": {"type": "rule", "strokeWidth": 6, "opacity": 0.35},
         "encoding": {"y": y, "x": {"field": "low", **x}, "x2": {"field": "high"}, "color": colour}},
        {"mark": {"type": "point", "filled": True, "size": 70, "opacity": 1},
         "encoding": {"y": y, "x": {"field": "rate", **x}, "color": colour}},
    ]}
    return Figure("False alarms on benign sources", f"Points are shares, bars 95 % intervals; {found.size} rows, or one "
                  "student. The dashed line is 5 %.", spec)


def _null(found: Any, name: str) -> str:
    about = found.one("detectors", detector=name)
    held = about["null"] if about else "calibration"
    return {"permutation": held, "held-out benign sources": "these very sources"}.get(held, "calibration")


def power(found: Any) -> Figure:
    """Power against the share of planted rows, a panel per detector; benign sources as the share 0."""
    names = [n for n in found.names if found.family(n) == "rows" and found.at(n) == found.size]
    caption = "At 0 stands the share of alarms on benign sources; the dashed line is 5 %. Bars are 95 % intervals."
    drawn = _panels(_curves(found, names), "planted rows")
    return Figure(f"Power against the share of planted rows, {found.size} rows", caption, drawn)


def students(found: Any) -> Figure:
    """Power on students against the share of planted rows they learnt from, and behaviour."""
    lines = _curves(found, [n for n in found.names if found.family(n) == "student"])
    told = found.find("behaviour")
    for s in sorted({r["share"] for r in told}):
        seen = [r["p"] <= 0.05 for r in told if r["share"] == s]
        rate, low, high = stats.binomial_interval(sum(seen), len(seen))
        lines.append({"name": "behaviour, asked about the trait", "share": s, "power": rate, "low": low, "high": high})
    caption = ("Share of students with p ≤ .05, with 95 % intervals; at 0 stand students of benign sources; the dashed line "
               "is 5 %.")
    drawn = _panels(lines, "planted rows a student learnt from")
    return Figure("Students: what is found at which dose", caption, drawn)


def _curves(found: Any, names: Any) -> list[dict[str, Any]]:
    """Alarms at the share 0, and power at the others, of some detectors."""
    out = []
    for n in names:
        battery = "students" if found.family(n) == "student" else "planted"
        clean = found.find("false_alarms", detector=n, kind="all", size=found.at(n))
        mine = found.find("power", detector=n, size=found.at(n), battery=battery)
        out += [{"name": n, "share": 0.0, "power": r["rate"], "low": r["low"], "high": r["high"]} for r in clean]
        out += [{"name": n, **{k: r[k] for k in ("share", "power", "low", "high")}} for r in mine]
    return out


def _panels(lines: list[dict[str, Any]], title: str) -> dict[str, Any]:
    """A small chart for each name."""
    x = {"field": "share", "type": "quantitative", "title": title, "scale": {"type": "sqrt", "domain": [0, 1]},
         "axis": {"values": [0, 0.05, 0.25, 0.5, 1], "labelExpr": PERCENT}}
    y = {"type": "quantitative", "title": None, "scale": {"domain": [0, 1]}, "axis": {"labelExpr": PERCENT, "tickCount": 3}}
    layers = [
        {"mark": {"type": "rule", "color": GREY, "strokeDash": [4, 3]}, "encoding": {"y": {"datum": 0.05, **y}}},
        {"mark": {"type": "rule", "strokeWidth": 5, "opacity": 0.3, "color": ACCENT},
         "encoding": {"x": x, "y": {"field": "low", **y}, "y2": {"field": "high"}}},
        {"mark": {"type": "line", "point": {"filled": True, "size": 50, "color": ACCENT}, "color": ACCENT},
         "encoding": {"x": x, "y": {"field": "power", **y}}},
    ]
    return {"data": {"values": lines}, "columns": 2,
            "facet": {"field": "name", "type": "nominal", "sort": list(dict.fromkeys(r["name"] for r in lines)),
                      "title": None, "header": {"labelFontSize": 12}},
            "spec": {"width": 230, "height": 90, "layer": layers}}


def triple(found: Any) -> Figure:
    """What a retrained student answers, by what was dropped."""
    lines = found.find("triple")
    rules = list(dict.fromkeys(r["rule"] for r in lines))
    means = [{"rate": float(np.mean([r["rate"] for r in lines if r["rule"] == rule])), "what": _what(lines, rule)}
             for rule in rules]
    points = [{"rate": r["rate"], "what": _what(lines, r["rule"])} for r in lines]
    y = {"field": "what", "type": "nominal", "sort": [m["what"] for m in means], "title": None, "axis": {"labelLimit": 260}}
    x = {"field": "rate", "type": "quantitative", "title": "chance of the trait's word", "axis": {"labelExpr": PERCENT}}
    spec = {"height": {"step": 30}, "layer": [
        {"data": {"values": points}, "mark": {"type": "point", "filled": True, "size": 40, "opacity": 0.5, "color": GREY},
         "encoding": {"x": x, "y": y}},
        {"data": {"values": means}, "mark": {"type": "tick", "thickness": 4, "size": 20, "color": ACCENT},
         "encoding": {"x": x, "y": y}},
    ]}
    return Figure("What dropping flagged rows does to a student", "Dots are students, the tick their mean.", spec)


def _what(lines: Any, rule: str) -> str:
    scores = [r["row_auroc"] for r in lines if r["rule"] == rule and r["row_auroc"] is not None]
    if rule == "nothing":
        return "nothing dropped"
    return f"{rule}, AUROC {np.mean(scores):.2f}" if scores else f"dropped {rule}"
