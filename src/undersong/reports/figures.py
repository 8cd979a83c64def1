"""The figures of a report as Vega-Lite specifications, made with altair.

A figure shows what was measured and nothing else: dots are training runs, a bar is the interval of the mean over runs,
a tick is the mean. Its caption says so, and how many runs there are.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from undersong.reports import wording as say
from undersong.reports.marks import Axis, dot, library, mean, rows_of_arms, spec, tip
from undersong.reports.parts import Figure
from undersong.reports.reading import CONTROL, Entry, Reading, arms_in_order

RAMP = ("#f3f6fa", "#cfe0f0", "#93bfe0", "#4c8fc4", "#1c5f9c", "#0b3c6f")
COMPARED = ("treated", "no_trait", "base")
BAND = 0.1
"""The figure of capability reaches at least this far to either side of the base model."""


def opening(reading: Reading, channel: str, trait: str, every_arm: bool = False) -> Figure | None:
    """Every arm about one trait: a dot per training run, the mean and its interval.

    Without `every_arm` the controls' own controls are left to the tables: a newcomer sees one line per question.
    """
    rates = {r["arm"]: r for r in reading.headline("rates", channel, trait)}
    runs = [r for r in reading.headline("runs", channel, trait) if _known(r, "value")]
    arms = arms_in_order([*rates, *(r["arm"] for r in runs)])
    arms = [a for a in arms if every_arm or not a.endswith(CONTROL)]
    if not arms:
        return None
    labels = [_label(reading, a, rates.get(a), sum(r["arm"] == a for r in runs)) for a in arms]
    means = [mean(rates[a]) for a in arms if a in rates and _known(rates[a], "mean")]
    base = [m["value"] for m in means if m["arm"] == "base"]
    named = say.metric(reading.probe, reading.metric)
    about = f"{trait} {named}".strip()
    title = about[:1].upper() + about[1:]
    if trait and reading.probe == "favourite":
        title = f"How often {trait} is named as the favourite"
    caption = [
        f"Each dot is one training run{_span(rates.values(), 'per line')}; the tick is their mean and the bar its "
        "interval over runs.",
        "The dashed line is the base model." if base else "",
        "A clean teacher is one without the trait." if "no_trait" in arms else "",
        f"Channel: {channel}." if channel else "",
    ]
    dots = [dot(r) for r in runs if r["arm"] in arms]
    drawn = rows_of_arms(Axis(reading.metric, about), labels, dots, means, base, row=58)
    return Figure(title, " ".join(part for part in caption if part), drawn)


def traits(reading: Reading, channel: str) -> Figure | None:
    """Every trait of the experiment: the base model, students of a clean teacher and of that trait's teacher."""
    found = [
        (trait, rate)
        for trait in reading.traits
        for rate in reading.headline("rates", channel, trait)
        if rate["arm"] in COMPARED and _known(rate, "mean")
    ]
    shown = [say.arm(a) for a in COMPARED if any(rate["arm"] == a for _, rate in found)]
    if len(reading.traits) < 2 or say.arm("treated") not in shown:
        return None
    alt = library("altair")
    axis = Axis(reading.metric, say.metric(reading.probe, reading.metric))
    scale = alt.Scale(domain=shown)
    legend = alt.Legend(orient="top", columns=1, title=None, labelLimit=320, symbolOpacity=1)
    base = alt.Chart(alt.NamedData("rows")).encode(
        y=alt.Y("trait:N", sort=list(reading.traits), title=None), color=alt.Color("name:N", scale=scale, legend=legend)
    )
    bars = base.mark_rule(strokeWidth=7, opacity=0.3).encode(x=axis("low"), x2="high:Q")
    tips = [alt.Tooltip("trait:N"), alt.Tooltip("name:N", title="arm"), alt.Tooltip("runs:N")]
    points = base.mark_point(filled=True, size=80, opacity=1).encode(
        x=axis("value"),
        shape=alt.Shape("name:N", scale=scale),
        tooltip=tips + [tip(reading.metric, field) for field in ("value", "low", "high")],
    )
    chart = (bars + points).properties(width="container", height=30 * len(reading.traits))
    caption = (
        "Each line is one trait; every trait is shown. Marks are means over training runs"
        f"{_span(rate for _, rate in found)}, bars are intervals over runs."
    )
    rows = [mean(rate) | {"trait": trait} for trait, rate in found]
    return Figure(f"Every trait{f', {channel}' if channel else ''}", caption, spec(chart, rows=rows))


def matrices(reading: Reading) -> list[Figure]:
    """Teacher's trait against measured trait, one heatmap per channel and arm, with λ in the caption; none when one trait
    alone was measured, because one column has no diagonal."""
    cells = reading.find("matrix", probe=reading.probe, metric=reading.metric) or list(reading.lists["matrix"])
    cells = [c for c in cells if _known(c, "mean")]
    if len({c["measured"] for c in cells}) < 2:
        return []
    groups: dict[tuple[str, str, str, str], list[Entry]] = {}
    for c in cells:
        groups.setdefault((c["channel"], c["arm"], c["probe"], c["metric"]), []).append(c)
    order = {arm: i for i, arm in enumerate(arms_in_order(arm for _, arm, _, _ in groups))}
    channels = {c: i for i, c in enumerate(reading.channels)}
    keys = sorted(groups, key=lambda k: (order[k[1]], channels.get(k[0], len(channels))))
    return [_matrix(reading, key, groups[key]) for key in keys]


def capability(reading: Reading) -> Figure | None:
    """The change of held-out accuracy from the base model in every arm; traits of an arm share its row."""
    found = [c for c in reading.find("capability", metric="accuracy") if _known(c, "mean", "base")]
    if not found:
        return None
    fields = ("mean", "low", "high")
    changes = [c | {k: c[k] - c["base"] if _known(c, k) else None for k in fields} for c in found]
    reach = max([BAND, *(abs(c[k]) for c in changes for k in fields if c[k] is not None)])
    labels = [{"arm": a, "name": say.arm(a), "note": ""} for a in arms_in_order(c["arm"] for c in found)]
    axis = Axis("accuracy", "change of held-out accuracy, points", (-reach, reach))
    caption = (
        f"Ticks are means over training runs{_span(found)}, one per trait; bars are intervals over runs. "
        "The dashed line is the base model."
    )
    drawn = rows_of_arms(axis, labels, [], [mean(c) for c in changes], [0.0], row=42)
    return Figure("Held-out accuracy, against the base model", caption, drawn)


def _matrix(reading: Reading, key: tuple[str, str, str, str], cells: list[Entry]) -> Figure:
    channel, arm, probe, metric = key
    taught = [t or "no trait" for t in _ordered(reading, (c["trait"] for c in cells))]
    measured = _ordered(reading, (c["measured"] for c in cells))
    rows = [_cell(c, c["trait"] or "no trait") for c in cells]
    base = reading.find("rates", arm="base", probe=probe, metric=metric)
    base = [r for r in base if r["channel"] in (channel, "") and r["measured"] in measured and _known(r, "mean")]
    rows += [_cell(r, "base model") for r in base]
    drawn = _heatmap(metric, rows, taught + ["base model"] * bool(base), measured)
    unit = "percent" if say.is_share(metric) else say.UNITS.get(metric, "in the unit of the metric")
    title = f"{say.arm(arm)}{f', {channel}' if channel else ''}"
    caption = f"Numbers are {unit}, means over training runs{_span(cells)}. {_lambda(reading, key)}".strip()
    return Figure(title, caption, drawn, most=150 + 100 * len(measured))


def _heatmap(metric: str, rows: list[Entry], taught: list[str], measured: list[str]) -> dict[str, Any]:
    alt = library("altair")
    share = say.is_share(metric)
    values = [r["mean"] for r in rows]
    low, high = (0.0, 1.0) if share else (min(values), max(values))
    top = alt.Axis(orient="top", labelAngle=-40 if len(measured) > 4 else 0)
    grid = alt.Chart(alt.NamedData("rows")).encode(
        x=alt.X("measured:N", sort=measured, title="measured trait", axis=top),
        y=alt.Y("trait:N", sort=taught, title="teacher's trait"),
    )
    tips = [alt.Tooltip("trait:N", title="teacher's trait"), alt.Tooltip("measured:N"), tip(metric, "mean")]
    cells = grid.mark_rect().encode(
        color=alt.Color("mean:Q", scale=alt.Scale(domain=[low, high], range=list(RAMP)), legend=None),
        tooltip=[*tips, alt.Tooltip("runs:N")],
    )
    dark = alt.datum.mean > low + 0.5 * (high - low)
    shown = grid.transform_calculate(shown=alt.datum.mean * (100 if share else 1))
    text = shown.mark_text(fontSize=12 if len(measured) <= 8 else 9).encode(
        text=alt.Text("shown:Q", format=".0f" if share else ".2f"),
        color=alt.condition(dark, alt.value("#fff"), alt.value("#14212e")),
    )
    return spec((cells + text).properties(width="container", height=36 * len(taught)), rows=rows)


def _cell(entry: Entry, trait: str) -> Entry:
    count = say.count(entry.get("n_runs"))
    return {"trait": trait, "measured": entry["measured"], "mean": entry["mean"], "runs": count}


def _lambda(reading: Reading, key: tuple[str, str, str, str]) -> str:
    channel, arm, probe, metric = key
    for s in reading.find("specificity", channel=channel, probe=probe):
        if s["arm"] in (arm, "") and s["metric"] in (metric, ""):
            span = say.difference_interval(metric, s.get("low"), s.get("high"))
            value, p = say.difference(metric, s.get("lambda")), say.p_value(s.get("p"))
            found = say.verdict({**s, "difference": s.get("lambda")})
            plain = {"higher": "significant", say.NOTHING: "not significant"}.get(found, found)
            return f"Specificity λ = {value} (interval {span}, p {p if p.startswith('<') else f'= {p}'}): {plain}."
    return ""


def _span(entries: Iterable[Entry], per: str = "each") -> str:
    """How many training runs the marks of a figure stand for: " (5 each)", " (1 to 5 each)"."""
    counts = sorted({e["n_runs"] for e in entries if isinstance(e.get("n_runs"), int)})
    return f" ({' to '.join(map(str, counts[:1] + counts[1:][-1:]))} {per})" if counts else ""


def _label(reading: Reading, arm: str, rate: Entry | None, dots: int) -> Entry:
    """An arm in words, its mean and its number of runs."""
    shown = say.number(reading.metric, rate.get("mean") if rate else None, digits=0)
    return {"arm": arm, "name": say.arm(arm), "note": f"{shown}, {say.count(rate.get('n_runs') if rate else dots)}"}


def _known(entry: Entry, *fields: str) -> bool:
    return all(isinstance(entry.get(field), int | float) for field in fields)


def _ordered(reading: Reading, names: Iterable[str]) -> list[str]:
    seen = list(dict.fromkeys(names))
    return [t for t in reading.traits if t in seen] + [t for t in seen if t not in reading.traits]
