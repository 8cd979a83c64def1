"""The figures of a report as Vega-Lite specifications, made with altair.

A figure shows what was measured and nothing else: dots are training runs, a bar is the interval of the mean over runs, a
tick is the mean. Specifications carry no colour of the page: the page sets them for light and for dark. The one accent
colour means "taught by a trait teacher"; position and label say it too, so that nothing depends on seeing colour.
"""

from __future__ import annotations

import importlib
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from undersong.errors import MissingExtra
from undersong.reports import wording as say
from undersong.reports.reading import CONTROL, Entry, Reading, arms_in_order

KINDS = ("taught by a trait teacher", "control", "reference")
RAMP = ("#f3f6fa", "#cfe0f0", "#93bfe0", "#4c8fc4", "#1c5f9c", "#0b3c6f")
ROW = 58


@dataclass(frozen=True)
class Figure:
    """A Vega-Lite specification with its title and the caption that says what the marks are."""

    title: str
    caption: str
    spec: dict[str, Any]


def library(name: str) -> Any:
    """Import a module of the `[report]` extra. Raises MissingExtra saying how to install it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingExtra(
            f"The report needs {error.name or name!r}, which is not installed. Run: pip install 'undersong[report]'"
        ) from error


def opening(reading: Reading, channel: str, trait: str, every_arm: bool = False) -> Figure | None:
    """Every arm about one trait: a dot per training run, the mean and its interval.

    Without `every_arm` the controls' own controls are left to the tables, so that a newcomer sees one line per question.
    """
    rates = {r["arm"]: r for r in reading.headline("rates", channel, trait)}
    runs = [r for r in reading.headline("runs", channel, trait) if isinstance(r.get("value"), int | float)]
    arms = arms_in_order([*rates, *(r["arm"] for r in runs)])
    arms = [a for a in arms if every_arm or not a.endswith(CONTROL)]
    if not arms:
        return None
    labels = {a: _label(reading, a, rates.get(a), sum(r["arm"] == a for r in runs)) for a in arms}
    dots = [_dot(r, labels[r["arm"]]) for r in runs if r["arm"] in labels]
    means = [_mean(rates[a], labels[a]) for a in arms if a in rates and isinstance(rates[a].get("mean"), int | float)]
    named = say.metric(reading.probe, reading.metric)
    about = f"{trait} {named}" if trait else named
    title = f"How often {trait} is named as the favourite" if (reading.probe, trait != "") == ("favourite", True) else about
    most = max((n for n in (r.get("n_runs") for r in rates.values()) if isinstance(n, int)), default=0)
    caption = (
        f"Each dot is one training run{f' (up to {most} per line)' if most else ''}; the tick is their mean and the bar its "
        "interval over runs. The dashed line is the base model."
        + (f" Channel: {channel}." if channel else "")
    )
    return Figure(title, caption, _arms_spec(reading.metric, about, [labels[a] for a in arms], dots, means))


def traits(reading: Reading, channel: str) -> Figure | None:
    """Every trait of the experiment: the base model, students of a clean teacher and students of that trait's teacher."""
    if len(reading.traits) < 2:
        return None
    wanted = ("base", "no_trait", "treated")
    rows = [
        {"trait": t, "arm": say.arm(r["arm"]), "mean": r["mean"], "low": r.get("low"), "high": r.get("high"), "n": r.get("n_runs")}
        for t in reading.traits
        for r in reading.headline("rates", channel, t)
        if r["arm"] in wanted and isinstance(r.get("mean"), int | float)
    ]
    shown = [a for a in ("treated", "no_trait", "base") if any(r["arm"] == say.arm(a) for r in rows)]
    if "treated" not in shown:
        return None
    alt = library("altair")
    scale = alt.Scale(domain=[say.arm(a) for a in shown])
    y = alt.Y("trait:N", sort=list(reading.traits), title=None)
    base = alt.Chart(alt.NamedData("rows")).encode(
        y=y, color=alt.Color("arm:N", scale=scale, legend=alt.Legend(orient="top", columns=1, title=None, labelLimit=320))
    )
    tip = [alt.Tooltip(f"{f}:N") for f in ("trait", "arm", "n")] + [_tip(reading.metric, f) for f in ("mean", "low", "high")]
    bars = base.mark_rule(strokeWidth=7, opacity=0.3).encode(x=_x(alt, reading.metric, "low", ""), x2="high:Q")
    points = base.mark_point(filled=True, size=80, opacity=1).encode(
        x=_x(alt, reading.metric, "mean", say.metric(reading.probe, reading.metric)),
        shape=alt.Shape("arm:N", scale=scale), tooltip=tip,
    )
    chart = (bars + points).properties(width="container", height=30 * len(reading.traits))
    n = sorted({r["n"] for r in rows if r["arm"] == say.arm("treated") and isinstance(r["n"], int)})
    over = f" Means over {' to '.join(map(str, n))} training runs per trait and arm" if n else " Means over training runs"
    caption = f"Each line is one trait of the experiment file; all of them are shown.{over}, bars are intervals over runs."
    return Figure(f"Every trait{f', {channel}' if channel else ''}", caption, _spec(chart, rows=rows))


def matrices(reading: Reading) -> list[Figure]:
    """Teacher's trait against measured trait, one heatmap per channel and arm, with λ in the caption."""
    cells = reading.find("matrix", probe=reading.probe, metric=reading.metric) or list(reading.lists["matrix"])
    cells = [c for c in cells if isinstance(c.get("mean"), int | float)]
    keys = dict.fromkeys((c["channel"], c["arm"], c["probe"], c["metric"]) for c in cells)
    order = {arm: i for i, arm in enumerate(arms_in_order(arm for _, arm, _, _ in keys))}
    channels = {c: i for i, c in enumerate(reading.channels)}
    found = []
    for key in sorted(keys, key=lambda k: (order[k[1]], channels.get(k[0], len(channels)))):
        mine = [c for c in cells if (c["channel"], c["arm"], c["probe"], c["metric"]) == key]
        found.append(_matrix(reading, key, mine))
    return found


def capability(reading: Reading) -> Figure | None:
    """Held-out accuracy of every arm with the base model as a line; traits of an arm share its row."""
    found = [c for c in reading.lists["capability"] if c["metric"] == "accuracy" and isinstance(c.get("mean"), int | float)]
    if not found:
        return None
    arms = arms_in_order(c["arm"] for c in found)
    labels = {a: "\n".join(textwrap.wrap(say.arm(a), 26)) for a in arms}
    rows = [_mean(c, labels[c["arm"]]) for c in found]
    bases = sorted({c["base"] for c in found if isinstance(c.get("base"), int | float)})
    lines = [{"value": b, "arm": "base"} for b in bases]
    spec = _arms_spec("accuracy", "held-out accuracy", [labels[a] for a in arms], [], rows, lines, row=44)
    caption = "Ticks are means over training runs, one per trait; bars are intervals over runs. The dashed line is the base model."
    return Figure("Is anything lost?", caption, spec)


def _matrix(reading: Reading, key: tuple[str, str, str, str], cells: list[Entry]) -> Figure:
    channel, arm, probe, metric = key
    alt = library("altair")
    taught = _ordered(reading, (c["trait"] for c in cells))
    measured = _ordered(reading, (c["measured"] for c in cells))
    rows = [{"trait": c["trait"] or "no trait", "measured": c["measured"], "mean": c["mean"], "n": c.get("n_runs")} for c in cells]
    bases = [r for r in reading.find("rates", arm="base", probe=probe, metric=metric) if r["channel"] in (channel, "")]
    bases = [r for r in bases if r["measured"] in measured and isinstance(r.get("mean"), int | float)]
    rows += [{"trait": "base model", "measured": r["measured"], "mean": r["mean"], "n": r.get("n_runs")} for r in bases]
    x = alt.X("measured:N", sort=measured, title="measured trait", axis=alt.Axis(orient="top", labelAngle=-40 if len(measured) > 4 else 0))
    y = alt.Y("trait:N", sort=[*[t or "no trait" for t in taught], "base model"], title="teacher's trait")
    grid = alt.Chart(alt.NamedData("rows")).encode(x=x, y=y)
    share = say.is_share(metric)
    span = [r["mean"] for r in rows]
    low, high = (0, 1) if share else (min(span), max(span))
    colour = alt.Color("mean:Q", scale=alt.Scale(domain=[low, high], range=list(RAMP)), legend=None)
    tip = [alt.Tooltip("trait:N", title="teacher's trait"), alt.Tooltip("measured:N"), _tip(metric, "mean"), alt.Tooltip("n:Q", title="runs")]
    dark = alt.datum.mean > low + 0.5 * (high - low)
    text = grid.transform_calculate(shown=alt.datum.mean * (100 if share else 1)).mark_text(fontSize=12 if len(measured) <= 8 else 9)
    text = text.encode(
        text=alt.Text("shown:Q", format=".0f" if share else ".2f"), color=alt.condition(dark, alt.value("#fff"), alt.value("#14212e"))
    )
    chart = (grid.mark_rect().encode(color=colour, tooltip=tip) + text).properties(width="container", height=36 * len({r["trait"] for r in rows}))
    n = sorted({c["n_runs"] for c in cells if isinstance(c.get("n_runs"), int)})
    unit = "percent" if share else say.UNITS.get(metric, "the metric's unit")
    runs = f", means over {' to '.join(map(str, n))} training runs" if n else ", means over training runs"
    title = f"{say.arm(arm)}{f', {channel}' if channel else ''}"
    return Figure(title, f"Numbers are {unit}{runs}. {_lambda(reading, key)}", _spec(chart, rows=rows))


def _lambda(reading: Reading, key: tuple[str, str, str, str]) -> str:
    channel, arm, probe, metric = key
    for s in reading.find("specificity", channel=channel, probe=probe):
        if s["arm"] in (arm, "") and s["metric"] in (metric, ""):
            span = say.difference_interval(metric, s.get("low"), s.get("high"))
            value, p = say.difference(metric, s.get("lambda")), say.p_value(s.get("p"))
            plain = "not significant" if say.verdict({**s, "difference": s.get("lambda")}) == say.NOTHING else "significant"
            return f"Specificity λ = {value} (interval {span}, p {p if p.startswith('<') else f'= {p}'}): {plain}."
    return ""


def _arms_spec(
    metric: str, title: str, labels: list[str], dots: list[Entry], means: list[Entry],
    lines: list[Entry] | None = None, row: int = ROW,
) -> dict[str, Any]:
    """The dot-and-interval chart shared by the opening figure and the capability figure."""
    alt = library("altair")
    axis = alt.Axis(labelExpr="split(datum.value, '\\n')", labelLimit=190, ticks=False, domain=False, labelPadding=10)
    y = alt.Y("label:N", sort=labels, title=None, scale=alt.Scale(domain=labels), axis=axis)
    colour = alt.Color("kind:N", scale=alt.Scale(domain=list(KINDS)), legend=None)
    base = [m for m in means if m["arm"] == "base"][:1] if lines is None else lines
    spans = [m for m in means if m["low"] is not None and m["high"] is not None]
    data: dict[str, list[Entry]] = {"lines": [{"x": b["value"]} for b in base], "spans": spans, "means": means, "dots": dots}
    tip = [alt.Tooltip("name:N", title="arm")]
    layers = {
        "lines": lambda c: c.mark_rule(strokeDash=[4, 4]).encode(x=_x(alt, metric, "x", title)),
        "spans": lambda c: c.mark_rule(strokeWidth=11, opacity=0.28).encode(
            x=_x(alt, metric, "low", title), x2="high:Q", y=y, color=colour,
            tooltip=tip + [_tip(metric, f) for f in ("value", "low", "high")],
        ),
        "means": lambda c: c.mark_tick(thickness=3, size=24, opacity=1).encode(
            x=_x(alt, metric, "value", title), y=y, color=colour,
            tooltip=[*tip, alt.Tooltip("trait:N"), _tip(metric, "value"), alt.Tooltip("runs:N")],
        ),
        "dots": lambda c: c.mark_circle(size=58, opacity=0.85).encode(
            x=_x(alt, metric, "value", title), y=y, color=colour, tooltip=[*tip, alt.Tooltip("seed:N"), _tip(metric, "value")],
        ),
    }
    used = [layer(alt.Chart(alt.NamedData(name))) for name, layer in layers.items() if data[name]]
    chart = alt.layer(*used).properties(width="container", height=row * len(labels))
    return _spec(chart, **{name: rows for name, rows in data.items() if rows})


def _x(alt: Any, metric: str, field: str, title: str) -> Any:
    share = say.is_share(metric)
    scale = alt.Scale(domain=[0, 1]) if share else alt.Scale(zero=False)
    return alt.X(f"{field}:Q", title=title, scale=scale, axis=alt.Axis(format="%" if share else "~g", tickCount=5))


def _tip(metric: str, field: str) -> Any:
    return library("altair").Tooltip(f"{field}:Q", format=".1%" if say.is_share(metric) else ".3f")


def _dot(run: Entry, label: str) -> Entry:
    return {"label": label, "name": say.arm(run["arm"]), "kind": _kind(run["arm"]), "value": run["value"], "seed": str(run.get("seed", ""))}


def _mean(rate: Entry, label: str) -> Entry:
    arm = rate["arm"]
    span = {k: rate.get(k) if isinstance(rate.get(k), int | float) else None for k in ("low", "high")}
    named = {"label": label, "name": say.arm(arm), "arm": arm, "kind": _kind(arm), "trait": rate["trait"]}
    return {**named, "value": rate["mean"], **span, "runs": say.runs(rate.get("n_runs"))}


def _label(reading: Reading, arm: str, rate: Entry | None, dots: int) -> str:
    """The arm in words and, below it, its mean and its number of runs."""
    n = rate.get("n_runs") if rate else dots
    mean = say.number(reading.metric, rate.get("mean") if rate else None, digits=0)
    return "\n".join([*textwrap.wrap(say.arm(arm), 26), f"{mean}, {say.runs(n)}"])


def _kind(arm: str) -> str:
    if arm in ("base", "teacher") or arm.startswith("teacher-"):
        return KINDS[2]
    return KINDS[0] if arm == "treated" or (arm.startswith("treated-") and not arm.endswith(CONTROL)) else KINDS[1]


def _ordered(reading: Reading, names: Iterable[str]) -> list[str]:
    seen = list(dict.fromkeys(names))
    return [t for t in reading.traits if t in seen] + [t for t in seen if t not in reading.traits]


def _spec(chart: Any, **datasets: list[Entry]) -> dict[str, Any]:
    """The specification without altair's theme (the page sets colours and fonts) and without the address of its schema.

    Rows join here by name, so that altair checks the specification and not every row (seconds for a large experiment).
    """
    spec: dict[str, Any] = chart.to_dict()
    spec = {k: v for k, v in spec.items() if k not in ("config", "$schema")}
    return spec | {"datasets": datasets, "autosize": {"type": "fit-x", "contains": "padding"}}
