"""The figures of a report as Vega-Lite specifications, made with altair.

A figure shows what was measured and nothing else: dots are training runs, a bar is the interval of the mean over runs, a
tick is the mean. Specifications carry no colour of the page: the page sets them for light and for dark. The one accent
colour means "taught by a trait teacher"; position and label say it too, so that nothing depends on seeing colour.
"""

from __future__ import annotations

import importlib
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
    most: int = 0
    """The widest it should be drawn, in pixels; 0 for the width of the page."""


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
    labels = [_label(reading, a, rates.get(a), sum(r["arm"] == a for r in runs)) for a in arms]
    dots = [_dot(r) for r in runs if r["arm"] in arms]
    means = [_mean(rates[a]) for a in arms if a in rates and isinstance(rates[a].get("mean"), int | float)]
    base = [m["value"] for m in means if m["arm"] == "base"]
    named = say.metric(reading.probe, reading.metric)
    about = f"{trait} {named}" if trait else named
    title = f"How often {trait} is named as the favourite" if (reading.probe, trait != "") == ("favourite", True) else about[:1].upper() + about[1:]
    caption = (
        f"Each dot is one training run{_span(rates.values()).replace('each', 'per line')}; the tick is their mean and the bar its "
        "interval over runs."
        + (" The dashed line is the base model." if base else "")
        + (" A clean teacher is one without the trait." if "no_trait" in arms else "")
        + (f" Channel: {channel}." if channel else "")
    )
    return Figure(title, caption, _arms_spec(_x(reading.metric, about), labels, dots, means, base))


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
    axis = _x(reading.metric, say.metric(reading.probe, reading.metric))
    scale = alt.Scale(domain=[say.arm(a) for a in shown])
    y = alt.Y("trait:N", sort=list(reading.traits), title=None)
    base = alt.Chart(alt.NamedData("rows")).encode(
        y=y, color=alt.Color("arm:N", scale=scale, legend=alt.Legend(orient="top", columns=1, title=None, labelLimit=320))
    )
    tip = [alt.Tooltip(f"{f}:N") for f in ("trait", "arm", "n")] + [_tip(reading.metric, f) for f in ("mean", "low", "high")]
    bars = base.mark_rule(strokeWidth=7, opacity=0.3).encode(x=axis("low"), x2="high:Q")
    points = base.mark_point(filled=True, size=80, opacity=1).encode(
        x=axis("mean"),
        shape=alt.Shape("arm:N", scale=scale), tooltip=tip,
    )
    chart = (bars + points).properties(width="container", height=30 * len(reading.traits))
    over = _span([{"n_runs": r["n"]} for r in rows])
    caption = f"Each line is one trait; every trait is shown. Marks are means over training runs{over}, bars are intervals over runs."
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
    """The change of held-out accuracy from the base model in every arm; traits of an arm share its row."""
    found = [
        c for c in reading.lists["capability"]
        if c["metric"] == "accuracy" and isinstance(c.get("mean"), int | float) and isinstance(c.get("base"), int | float)
    ]
    if not found:
        return None
    changes = [
        c | {k: c[k] - c["base"] if isinstance(c.get(k), int | float) else None for k in ("mean", "low", "high")} for c in found
    ]
    reach = max([0.1, *(abs(c[k]) for c in changes for k in ("mean", "low", "high") if c[k] is not None)])
    arms = arms_in_order(c["arm"] for c in found)
    labels = [{"arm": a, "name": say.arm(a), "note": ""} for a in arms]
    axis = _x("accuracy", "change of held-out accuracy, points", domain=(-reach, reach))
    spec = _arms_spec(axis, labels, [], [_mean(c) for c in changes], [0.0], row=42)
    caption = f"Ticks are means over training runs{_span(found)}, one per trait; bars are intervals over runs. The dashed line is the base model."
    return Figure("Held-out accuracy, against the base model", caption, spec)


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
    unit = "percent" if share else say.UNITS.get(metric, "the metric's unit")
    title = f"{say.arm(arm)}{f', {channel}' if channel else ''}"
    return Figure(title, f"Numbers are {unit}, means over training runs{_span(cells)}. {_lambda(reading, key)}", _spec(chart, rows=rows), most=150 + 100 * len(measured))


def _span(entries: Iterable[Entry]) -> str:
    """How many training runs the marks of a figure stand for: " (5 each)", " (1 to 5 each)"."""
    counts = sorted({e["n_runs"] for e in entries if isinstance(e.get("n_runs"), int)})
    return f" ({' to '.join(map(str, counts[:1] + counts[1:][-1:]))} each)" if counts else ""


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
    axis: Axis, labels: list[Entry], dots: list[Entry], means: list[Entry], lines: list[float], row: int = ROW
) -> dict[str, Any]:
    """Dots, means and intervals, one row per arm with its name written above it (so that a telephone has room for both)."""
    alt = library("altair")
    spans = [m for m in means if m["low"] is not None and m["high"] is not None]
    data: dict[str, list[Entry]] = {"lines": [{"x": x} for x in lines], "spans": spans, "means": means, "dots": dots, "labels": labels}
    y = alt.Y("arm:N", scale=alt.Scale(domain=[one["arm"] for one in labels]), axis=None)
    colour = alt.Color("kind:N", scale=alt.Scale(domain=list(KINDS)), legend=None)
    tip = [alt.Tooltip("name:N", title="arm")]
    below, above = row / 5, -row / 6
    layers = {
        "lines": lambda c: c.mark_rule(strokeDash=[4, 4]).encode(x=axis("x")),
        "spans": lambda c: c.mark_rule(strokeWidth=11, opacity=0.28, yOffset=below).encode(
            x=axis("low"), x2="high:Q", y=y, color=colour, tooltip=tip + [_tip(axis.metric, f) for f in ("value", "low", "high")],
        ),
        "means": lambda c: c.mark_tick(thickness=3, size=22, opacity=1, yOffset=below).encode(
            x=axis("value"), y=y, color=colour, tooltip=[*tip, alt.Tooltip("trait:N"), _tip(axis.metric, "value"), alt.Tooltip("runs:N")],
        ),
        "dots": lambda c: c.mark_circle(size=58, opacity=0.85, yOffset=below).encode(
            x=axis("value"), y=y, color=colour, tooltip=[*tip, alt.Tooltip("seed:N"), _tip(axis.metric, "value")],
        ),
    }
    used = [layer(alt.Chart(alt.NamedData(name))) for name, layer in layers.items() if data[name]]
    text = alt.Chart(alt.NamedData("labels")).encode(y=y, tooltip=tip)
    room = alt.ExprRef("max(width - 95, 60)") if any(one["note"] for one in labels) else alt.ExprRef("width")
    name = text.mark_text(align="left", dy=above, fontSize=13, limit=room).encode(x=alt.value(2), text="name:N")
    note = text.mark_text(align="right", dy=above, fontSize=12).encode(x=alt.value("width"), text="note:N")
    # The page gives marks of this name an outline in the colour of the paper, so that no line crosses a word.
    used += [name.properties(name="outlined_name"), note.properties(name="outlined_note")]
    chart = alt.layer(*used).properties(width="container", height=row * len(labels))
    return _spec(chart, **{name: rows for name, rows in data.items() if rows})


@dataclass(frozen=True)
class Axis:
    """The horizontal axis of a figure: `axis(field)` is the altair channel of a field."""

    metric: str
    title: str
    domain: tuple[float, float] | None = None

    def __call__(self, field: str) -> Any:
        alt = library("altair")
        signed = "+" if self.domain and self.domain[0] < 0 else ""
        unit = "" if signed else " + ' %'"
        share = alt.Axis(labelExpr=f"replace(format(datum.value * 100, '{signed}.0f'), '+0', '0'){unit}", tickCount=5, labelFlush=True)
        scale = alt.Scale(domain=list(self.domain)) if self.domain else alt.Scale(zero=False)
        return alt.X(f"{field}:Q", title=self.title, scale=scale, axis=share if say.is_share(self.metric) else alt.Axis(tickCount=5))


def _x(metric: str, title: str, domain: tuple[float, float] | None = None) -> Axis:
    """A share is always drawn from 0 to 1, so that no small difference looks large."""
    return Axis(metric, title, domain or ((0, 1) if say.is_share(metric) else None))


def _tip(metric: str, field: str) -> Any:
    return library("altair").Tooltip(f"{field}:Q", format=".1%" if say.is_share(metric) else ".3f")


def _dot(run: Entry) -> Entry:
    arm = run["arm"]
    return {"arm": arm, "name": say.arm(arm), "kind": _kind(arm), "value": run["value"], "seed": str(run.get("seed", ""))}


def _mean(rate: Entry) -> Entry:
    arm = rate["arm"]
    span = {k: rate.get(k) if isinstance(rate.get(k), int | float) else None for k in ("low", "high")}
    named = {"arm": arm, "name": say.arm(arm), "kind": _kind(arm), "trait": rate["trait"]}
    return {**named, "value": rate["mean"], **span, "runs": say.count(rate.get("n_runs"))}


def _label(reading: Reading, arm: str, rate: Entry | None, dots: int) -> Entry:
    """An arm in words, its mean and its number of runs."""
    mean = say.number(reading.metric, rate.get("mean") if rate else None, digits=0)
    return {"arm": arm, "name": say.arm(arm), "note": f"{mean}, {say.count(rate.get('n_runs') if rate else dots)}"}


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
