"""How the marks of a figure are drawn: the pieces of Vega-Lite that several figures share.

Specifications carry no colour of the page: the page sets colours and fonts, for light and for dark. The one accent
colour means "taught by a trait teacher"; position and label say it too, so that nothing depends on seeing colour.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from undersong.errors import MissingExtra
from undersong.reports import wording as say
from undersong.reports.reading import CONTROL, Entry

KINDS = ("taught by a trait teacher", "control", "reference")
Layer = Callable[[Any], Any]


def library(name: str) -> Any:
    """Import a module of the `[report]` extra. Raises MissingExtra saying how to install it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingExtra(
            f"The report needs {error.name or name!r}, which is not installed. Run: pip install 'undersong[report]'"
        ) from error


@dataclass(frozen=True)
class Axis:
    """The horizontal axis of a figure: `axis(field)` is the altair channel of a field.

    Without a domain a share is drawn from 0 to 1, so that no small difference looks large, and other metrics as they
    fall. A domain that starts below 0 is one of differences: its labels have signs and are points, not percent.
    """

    metric: str
    title: str
    domain: tuple[float, float] | None = None

    def __call__(self, field: str) -> Any:
        alt = library("altair")
        share = say.is_share(self.metric)
        domain = self.domain or ((0.0, 1.0) if share else None)
        scale = alt.Scale(domain=list(domain)) if domain else alt.Scale(zero=False)
        return alt.X(
            f"{field}:Q", title=self.title, scale=scale, axis=self._labels(alt) if share else alt.Axis(tickCount=5)
        )

    def _labels(self, alt: Any) -> Any:
        signed = self.domain is not None and self.domain[0] < 0
        text = (
            "replace(format(datum.value * 100, '+.0f'), '+0', '0')"
            if signed
            else "format(datum.value * 100, '.0f') + ' %'"
        )
        return alt.Axis(labelExpr=text, tickCount=5, labelFlush=True)


def tip(metric: str, field: str) -> Any:
    """A line of the tooltip: percent for a share, three decimals otherwise."""
    return library("altair").Tooltip(f"{field}:Q", format=".1%" if say.is_share(metric) else ".3f")


def dot(run: Entry) -> Entry:
    """One training run as a dot."""
    arm = run["arm"]
    seed = str(run.get("seed", ""))
    return {"arm": arm, "name": say.arm(arm), "kind": _kind(arm), "value": run["value"], "seed": seed}


def mean(rate: Entry) -> Entry:
    """A mean over runs with its interval (None where there is none)."""
    arm = rate["arm"]
    span = {k: rate.get(k) if isinstance(rate.get(k), int | float) else None for k in ("low", "high")}
    named = {"arm": arm, "name": say.arm(arm), "kind": _kind(arm), "trait": rate["trait"]}
    return {**named, "value": rate["mean"], **span, "runs": say.count(rate.get("n_runs"))}


def rows_of_arms(
    axis: Axis, labels: list[Entry], dots: list[Entry], means: list[Entry], lines: list[float], row: int
) -> dict[str, Any]:
    """Dots, means and intervals on one row of `row` pixels per arm, with dashed lines where `lines` says.

    `labels` are {arm, name, note}: the name is written above its row and the note at the right, so that a telephone has
    room for words and marks alike.
    """
    alt = library("altair")
    data: dict[str, list[Entry]] = {
        "lines": [{"x": x} for x in lines],
        "spans": [m for m in means if m["low"] is not None and m["high"] is not None],
        "means": means,
        "dots": dots,
    }
    y = alt.Y("arm:N", scale=alt.Scale(domain=[one["arm"] for one in labels]), axis=None)
    layers = _layers(alt, axis, y, below=row / 5)
    used = [layer(alt.Chart(alt.NamedData(name))) for name, layer in layers.items() if data[name]]
    used += names(y, above=-row / 6, notes=any(one["note"] for one in labels))
    chart = alt.layer(*used).properties(width="container", height=row * len(labels))
    return spec(chart, **{name: rows for name, rows in data.items() if rows}, labels=labels)


def names(
    y: Any, above: float = 0.0, notes: bool = True, room: int = 95, what: str = "arm", rows: str = "labels", left: int = 2
) -> list[Any]:
    """The layers that write the name of a row at its left and its note at its right, from the data called `rows`."""
    alt = library("altair")
    text = alt.Chart(alt.NamedData(rows)).encode(y=y, tooltip=[alt.Tooltip("name:N", title=what)])
    limit = alt.ExprRef(f"max(width - {room}, 60)" if notes else "width")
    name = text.mark_text(align="left", dy=above, fontSize=13, limit=limit).encode(x=alt.value(left), text="name:N")
    note = text.mark_text(align="right", dy=above, fontSize=12).encode(x=alt.value("width"), text="note:N")
    # The page gives marks of these names an outline in the colour of the paper, so that no line crosses a word.
    return [name.properties(name=f"outlined_name_{rows}"), note.properties(name=f"outlined_note_{rows}")]


def spec(chart: Any, **datasets: list[Entry]) -> dict[str, Any]:
    """The specification without altair's theme and without the address of its schema.

    Rows join here by name, so that altair checks the specification and not every row (seconds for a large experiment).
    """
    made: dict[str, Any] = chart.to_dict()
    made = {k: v for k, v in made.items() if k not in ("config", "$schema")}
    return made | {"datasets": datasets, "autosize": {"type": "fit-x", "contains": "padding"}}


def _layers(alt: Any, axis: Axis, y: Any, below: float) -> dict[str, Layer]:
    colour = alt.Color("kind:N", scale=alt.Scale(domain=list(KINDS)), legend=None)
    name = alt.Tooltip("name:N", title="arm")

    def lines(chart: Any) -> Any:
        return chart.mark_rule(strokeDash=[4, 4]).encode(x=axis("x"))

    def spans(chart: Any) -> Any:
        tips = [name, *(tip(axis.metric, field) for field in ("value", "low", "high"))]
        bars = chart.mark_rule(strokeWidth=11, opacity=0.28, yOffset=below)
        return bars.encode(x=axis("low"), x2="high:Q", y=y, color=colour, tooltip=tips)

    def means(chart: Any) -> Any:
        tips = [name, alt.Tooltip("trait:N"), tip(axis.metric, "value"), alt.Tooltip("runs:N")]
        ticks = chart.mark_tick(thickness=3, size=22, opacity=1, yOffset=below)
        return ticks.encode(x=axis("value"), y=y, color=colour, tooltip=tips)

    def dots(chart: Any) -> Any:
        tips = [name, alt.Tooltip("seed:N"), tip(axis.metric, "value")]
        return chart.mark_circle(size=58, opacity=0.85, yOffset=below).encode(
            x=axis("value"), y=y, color=colour, tooltip=tips
        )

    return {"lines": lines, "spans": spans, "means": means, "dots": dots}


def _kind(arm: str) -> str:
    if arm in ("base", "teacher") or arm.startswith("teacher-"):
        return KINDS[2]
    return KINDS[0] if arm == "treated" or (arm.startswith("treated-") and not arm.endswith(CONTROL)) else KINDS[1]
