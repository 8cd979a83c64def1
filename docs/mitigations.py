"""Write the page of the mitigation bench from its results: `python docs/mitigations.py RESULTS.json [OUT_FOLDER]`.

Nothing here is measured anew: tables, figures and advice are read off the results file (`benchmarks/mitigations.py`).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from figures import draw

from undersong.reports.parts import Figure

HERE = Path(__file__).parent
ACCENT, OTHER, GREY, GREEN, VIOLET = "#b3541e", "#3b6ea5", "#8a8a8a", "#4c7a34", "#7a4f9a"
RESIDUALS = {"margin": "logit margin", "rate": "sampled rate", "activation": "activations", "rise": "vocabulary rise"}
ROWS = {"base", "channel", "rows", "train"}
"""What anybody holds who was handed rows and will train a student."""
KNOWLEDGE = (
    ("teachers", {"teacher", "rivals"}, "triangle-down", VIOLET),
    ("another base", {"other"}, "diamond", OTHER),
    ("clean rows", {"clean", "placebos"}, "square", GREEN),
    ("the trait", {"trait"}, "triangle-up", ACCENT),
    ("rows and base only", set[str](), "circle", "#222"),
)
"""Kinds of knowledge, the rarest first, each with the tokens that make it, a shape and a colour."""
SITUATIONS = (
    ("The trait is known", "the rows, the base, the trait's name", ROWS | {"trait"}, ("data", "training"), "known"),
    ("The trait is unknown", "the rows and the base", ROWS, ("data", "training"), "unknown"),
    (
        "The teacher is at hand",
        "the rows, the base, the teacher and teachers of other traits",
        ROWS | {"teacher", "rivals"},
        ("data", "training"),
        "unknown",
    ),
    (
        "Clean rows are at hand",
        "the rows, the base, rows of the same kind without the trait and a student of them",
        ROWS | {"clean", "placebos"},
        ("data", "training"),
        "unknown",
    ),
    (
        "A second base is at hand",
        "the rows and two bases of different initialisations",
        ROWS | {"other"},
        ("data", "training"),
        "unknown",
    ),
    ("The student is trained already", "the student and its base", ROWS, ("model",), "unknown"),
    (
        "The same, with a clean student",
        "the student, its base and a student of clean rows",
        ROWS | {"placebos", "clean"},
        ("model",),
        "unknown",
    ),
)
TOLERATED = 1.0
"""Points of capability that advice lets a mitigation cost."""
Line = Mapping[str, Any]


class Results:
    """A results file, by table."""

    def __init__(self, data: Mapping[str, Any]) -> None:
        self.data, self.rows = data, list(data["rows"])
        self.seconds = {r["mitigation"]: r["ratio"] for r in self.find("cost")}

    def find(self, table: str, **where: Any) -> list[Line]:
        """The rows of a table with these values."""
        return [r for r in self.rows if r["table"] == table and all(r.get(k) == v for k, v in where.items())]

    def pure(self) -> list[Line]:
        """Cells of pure rows and the right trait, those that fit first, then by margin removed."""
        found = self.find("removed", dose="pure", knows="known")
        return sorted(found, key=lambda r: (not r["fits"], -(r["margin"] or 0)))
WIDEST = 20
"""Points of capability beyond which a mitigation is named under the figure and not drawn."""
GAP = 0.065
"""Least distance of two labels, as a share removed."""


def table(head: Sequence[str], lines: Iterable[Sequence[Any]]) -> str:
    """A markdown table."""
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(str(cell) for cell in row) + " |" for row in rows) + "\n"


def share(row: Line, key: str, bounds: bool = True) -> str:
    """A share in percent with its interval."""
    if row[key] is None:
        return "–"
    text = f"{100 * row[key]:.0f} %"
    if not bounds:
        return text
    low, high = row[f"{key}_low"], row[f"{key}_high"]
    return text + (" [no bounds]" if low is None or high is None else f" [{100 * low:.0f}, {100 * high:.0f}]")


def points(row: Line, against: str = "plain") -> str:
    """Points of capability with their interval."""
    key = f"points_{against}"
    return f"{row[key]:+.1f} [{row[f'{key}_low']:+.1f}, {row[f'{key}_high']:+.1f}]"


def knowledge(row: Line) -> str:
    """The rarest thing that a mitigation must know."""
    return next(name for name, tokens, *_ in KNOWLEDGE if not tokens or tokens & set(row["needs"]))


def needs(row: Line) -> str:
    """The tokens of a mitigation; optional ones in brackets."""
    said = [f"`{token}`" for token in row["needs"]] + [f"(`{token}`)" for token in row["may_use"]]
    return " ".join(said) or "–"


def times(found: Results, name: str) -> str:
    """Processor seconds as a multiple of a plain student's."""
    return f"{found.seconds[name]:.1f}" if name in found.seconds else "–"


def head(found: Results) -> str:
    """What was run, on what."""
    plan, data = found.data["plan"], found.data
    counts = sorted({r["runs"] for r in found.find("removed")})
    return f"""# Mitigations: what they take away, and what they cost

Measured on {data["date"][:10]} by `{data["command"]}`; this page by `python docs/mitigations.py
benchmarks/mitigations.results.json`. The design was fixed before any result (docstring of
[benchmarks/mitigations.py](../benchmarks/mitigations.py)).

World: `{data["experiment"]["base"]}`, a tuned teacher, number rows, a low-rank student of {data["experiment"]["keep"]:,}
sampled rows. Traits {" and ".join(plan["traits"])}, seeds {", ".join(map(str, plan["seeds"]))}; mitigations were tuned on
other traits and seeds. A run is a trait and a seed; cells here have {" or ".join(map(str, counts))} runs.

- **Removed**: 1 − lift of mitigated students / lift of plain ones, both over no-trait students of the same seed, as a ratio
  of means over runs with Fieller's 95 % interval. 100 %: nothing is left; above: overshot.
- **Fit**: the part of the plain student's gain in held-out loss on rows of the same source that is kept. Below 90 % a
  mitigation *does not fit*: it bought safety by not learning the task.
- **Capability**: points of accuracy on sums and facts against the plain student (+ is better). Plain students themselves
  lose {loss(found)} points against no-trait students: what spoils capability here is largely the trait.
"""


def loss(found: Results) -> str:
    """Points that plain students lose against no-trait ones."""
    runs = {(r["trait"], r["seed"]): r for r in found.find("runs", dose="pure", knows="known")}.values()
    lost = [100 * (r["capability_none"] - r["capability_plain"]) for r in runs]
    return f"{sum(lost) / len(lost):.1f}" if lost else "–"


def targets(found: Results) -> str:
    """The targets set beforehand."""
    lines = []
    for r in found.find("targets"):
        got = (
            "nothing fits"
            if r["best"] is None
            else (f"`{r['best']}`: {100 * r['margin']:.0f} % at {r['points']:+.1f} points")
        )
        lines.append((r["target"], got, "yes" if r["met"] else "**no**", ", ".join(f"`{n}`" for n in r["by"]) or "–"))
    return "## Targets\n\nOf the logit margin, pure rows, among mitigations that fit.\n\n" + table(
        ("target", "best", "met", "met by"), lines
    )


def able(found: Results, held: set[str], stages: Sequence[str], knows: str) -> list[Line]:
    """The cells that somebody could use who holds these tokens, best first; of a trait's name only where it is known."""
    rows = [r for r in found.find("removed", dose="pure") if set(r["needs"]) <= held and r["stage"] in stages]
    rows = [r for r in rows if "trait" not in r["needs"] or r["knows"] == knows]
    fine = [r for r in rows if r["fits"] and r["points_plain"] >= -TOLERATED]
    return sorted(fine, key=lambda r: abs(1 - r["margin"]))  # nearest to all of it: overshooting is no virtue


def advice(found: Results) -> str:
    """What to use, by situation."""
    lines = []
    for title, holds, held, stages, knows in SITUATIONS:
        best = able(found, held, stages, knows)
        if not best:
            lines.append((title, holds, "nothing measured fits at this cost", "–", "–", "–", "–"))
            continue
        one, two = best[0], best[1] if len(best) > 1 else None
        then = f"`{two['mitigation']}` ({share(two, 'margin', False)})" if two else "–"
        lines.append(
            (
                title,
                holds,
                f"`{one['mitigation']}`",
                share(one, "margin"),
                share(one, "activation"),
                times(found, one["mitigation"]),
                then,
            )
        )
    return (
        f"## What to use\n\nWhose share of the margin removed is nearest to all of it, among those that fit and cost at "
        f"most {TOLERATED:.0f} point of capability. Whoever holds more may also use what asks for less.\n\n"
        + table(
            ("situation", "at hand", "use", "margin removed", "activations removed", "compute, × plain", "second"), lines
        )
    )


def everything(found: Results) -> str:
    """All cells of pure rows."""
    lines = [
        (
            f"`{r['mitigation']}`",
            r["stage"],
            needs(r),
            *(share(r, k) for k in RESIDUALS),
            share(r, "fit", False) + ("" if r["fits"] else " ✗"),
            points(r),
            times(found, r["mitigation"]),
            r["runs"],
        )
        for r in found.pure()
    ]
    head = ("mitigation", "stage", "needs", *RESIDUALS.values(), "fit", "capability, points", "compute, × plain", "runs")
    return (
        "## Every mitigation, pure rows\n\nShare removed of each residual. ✗: does not fit. Evidence in brackets is "
        "used where it is at hand.\n\n![Removed and capability](figures/mitigations-front.svg)\n\n"
        "![Four residuals](figures/mitigations-residuals.svg)\n\n" + table(head, lines)
    )


def unknown(found: Results) -> str:
    """What those that ask for a trait do when told a wrong one."""
    lines = []
    for wrong in found.find("removed", dose="pure", knows="unknown"):
        right = next((r for r in found.pure() if r["mitigation"] == wrong["mitigation"]), None)
        lines.append(
            (
                f"`{wrong['mitigation']}`",
                share(right, "margin") if right else "–",
                share(wrong, "margin"),
                share(wrong, "fit", False),
                points(wrong),
            )
        )
    told = found.data["plan"]["wrong"]
    if not lines:
        return "## A wrong guess\n\nNot measured in this run of the bench.\n"
    return f"## A wrong guess\n\nMitigations that ask for a trait, told `{told}`, which nobody taught.\n\n" + table(
        ("mitigation", "told the trait", "told another", "fit, told another", "capability, told another"), lines
    )


def mixed(found: Results) -> str:
    """A quarter of trait rows."""
    rows = sorted(found.find("removed", dose="mixed"), key=lambda r: -(r["margin"] or 0))
    if not rows:
        return "## A quarter of the rows\n\nNot measured in this run of the bench.\n"
    lines = [
        (f"`{r['mitigation']}`", *(share(r, k) for k in RESIDUALS), share(r, "fit", False), points(r), r["runs"])
        for r in rows
    ]
    effect = ", ".join(f"{name} {rows[0][f'{key}_effect']:+.3f}" for key, name in RESIDUALS.items())
    return (
        "## A quarter of the rows\n\n25 % trait rows, 75 % rows of a no-trait teacher. Plain students still show (lift "
        f"over no-trait students): {effect}.\n\n![Doses](figures/mitigations-doses.svg)\n\n"
        + table(("mitigation", *RESIDUALS.values(), "fit", "capability, points", "runs"), lines)
    )


def beside(found: Results) -> str:
    """Other traits, and rows without a trait."""
    lines = [
        (f"`{r['mitigation']}`", f"{r['others_plain']:.2f}", f"{r['others']:.2f}", points(r, "none")) for r in found.pure()
    ]
    text = (
        "## Off the diagonal\n\nMean distance (nats) of the *other* traits' margins from the no-trait student: a guard "
        "must not trade one trait for another. And capability against the no-trait student.\n\n"
        + table(("mitigation", "plain", "mitigated", "capability against no-trait, points"), lines)
    )
    clean = found.find("clean")
    if clean:
        text += (
            "\nThe same guards on rows without a trait, where there is nothing to stop: how far margins move from the "
            "unguarded no-trait student (nats), and capability.\n\n"
            + table(
                ("guard", "mean", "most", "capability, points", "runs"),
                [
                    (f"`{r['mitigation']}`", f"{r['moved']:.2f}", f"{r['most']:.2f}", f"{r['points']:+.1f}", r["runs"])
                    for r in clean
                ],
            )
        )
    return text


def fails(found: Results) -> str:
    """What fails, in words made from the numbers."""
    pure, lines = found.pure(), list[str]()
    unfit = [r for r in pure if not r["fits"]]
    if unfit:
        lines.append(
            "**Does not fit** (removes the trait with the task): "
            + ", ".join(f"`{r['mitigation']}` (fit {share(r, 'fit', False)})" for r in unfit)
            + "."
        )
    idle = [r for r in pure if r["margin_low"] is not None and r["margin_low"] <= 0]
    if idle:
        lines.append(
            "**Not told from nothing** (the interval of the margin removed holds 0): "
            + ", ".join(f"`{r['mitigation']}` ({share(r, 'margin')})" for r in idle)
            + "."
        )
    over = [r for r in pure if r["margin_low"] is not None and r["margin_low"] > 1]
    if over:
        lines.append(
            "**Overshot** (the trait ends below the no-trait student, which is a trace too): "
            + ", ".join(f"`{r['mitigation']}` ({share(r, 'margin')})" for r in over)
            + "."
        )
    inner = [r for r in pure if r["activation"] is not None and r["margin"] > 0.5 and r["activation"] < r["margin"] / 2]
    if inner:
        lines.append(
            "**Quiet, not gone** (answers lose the trait, activations keep most of it): "
            + ", ".join(
                f"`{r['mitigation']}` (margin {share(r, 'margin', False)}, activations {share(r, 'activation', False)})"
                for r in inner
            )
            + "."
        )
    wrong = [
        r for r in found.find("removed", dose="pure", knows="unknown") if r["margin_low"] is None or r["margin_low"] <= 0
    ]
    if wrong:
        lines.append(
            "**Useless when the guess is wrong**: "
            + ", ".join(f"`{r['mitigation']}` ({share(r, 'margin')})" for r in wrong)
            + "."
        )
    costly = [r for r in pure if r["fits"] and r["points_plain"] < -TOLERATED]
    if costly:
        lines.append("**Costs capability**: " + ", ".join(f"`{r['mitigation']}` ({points(r)})" for r in costly) + ".")
    failed = {}
    for r in found.find("failed"):
        failed.setdefault(r["mitigation"], r["why"])
    lines += [f"**Refused or stopped**: `{name}`: {why}" for name, why in failed.items()]
    done = {r["mitigation"] for r in pure} | set(failed)
    missing = [name for name in found.data["mitigations"] if name not in done]
    if missing:
        lines.append(
            "**Not measured** (fewer than five runs when time was up): " + ", ".join(f"`{name}`" for name in missing) + "."
        )
    return "## What fails\n\n" + "\n".join(f"- {line}" for line in lines) + "\n"


def figures(found: Results) -> dict[str, Figure]:
    """The figures there are results for, by name."""
    out = {"front": front(found), "residuals": residuals(found)}
    if found.find("removed", dose="mixed"):
        out["doses"] = doses(found)
    return out


def front(found: Results) -> Figure:
    """Margin removed against capability."""
    rows = [dict(r) | {"knowledge": knowledge(r), "low": r["margin_low"], "high": r["margin_high"]} for r in found.pure()]
    outside = [f"`{r['mitigation']}` ({r['points_plain']:+.0f} points)" for r in rows if abs(r["points_plain"]) > WIDEST]
    rows = apart([r for r in rows if abs(r["points_plain"]) <= WIDEST])
    names = [name for name, *_ in KNOWLEDGE]
    x = {
        "field": "points_plain",
        "type": "quantitative",
        "title": "capability against the plain student, points",
        "scale": {"zero": False, "nice": True, "padding": 30},
    }
    scale = {"domain": [-0.3, 2.1], "clamp": True}
    y = {"field": "margin", "type": "quantitative", "title": "logit margin removed", "axis": {"format": "%"}, "scale": scale}
    colour = {
        "field": "knowledge",
        "type": "nominal",
        "scale": {"domain": names, "range": [c for *_, c in KNOWLEDGE]},
        "legend": {"title": "must know"},
    }
    shape = {
        "field": "knowledge",
        "type": "nominal",
        "scale": {"domain": names, "range": [s for _, _, s, _ in KNOWLEDGE]},
        "legend": {"title": "must know"},
    }
    spec = {
        "data": {"values": rows},
        "height": 420,
        "layer": [
            {"mark": {"type": "rule", "color": "#ccc", "strokeDash": [4, 4]}, "encoding": {"y": {"datum": 1}}},
            {
                "mark": {"type": "rule", "strokeWidth": 1, "opacity": 0.35},
                "transform": [{"filter": "datum.low != null && datum.fits"}],
                "encoding": {"x": x, "y": {**y, "field": "low"}, "y2": {"field": "high"}, "color": colour},
            },
            {
                "mark": {"type": "point", "strokeWidth": 1.5, "fillOpacity": 1, "opacity": 1},
                "encoding": {
                    "size": {"condition": {"test": "datum.fits", "value": 90}, "value": 36},
                    "x": x,
                    "y": y,
                    "shape": shape,
                    "stroke": {**colour, "legend": None},
                    "fill": {**colour, "condition": {"test": "!datum.fits", "value": "white"}, "legend": None},
                },
            },
            {
                "mark": {"type": "text", "align": "left", "dx": 9, "fontSize": 10, "color": "#444"},
                "transform": [{"filter": "datum.fits"}],
                "encoding": {"x": x, "y": {**y, "field": "label"}, "text": {"field": "mitigation"}},
            },
        ],
    }
    return Figure(
        "What is removed, and what it costs",
        "Up: more of the trait's margin removed. Right: more capability kept. "
        "Small and hollow: does not fit the rows (names in the table). "
        "Bars are 95 % intervals over runs, cut at -30 and 210 %."
        + (f" Outside: {', '.join(outside)}." if outside else ""),
        spec,
    )


def apart(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows with the height at which their labels do not lie on one another: pushed down from those above nearby."""
    placed: list[tuple[float, float]] = []
    for row in sorted(rows, key=lambda r: -r["margin"]):
        if row["fits"]:
            here = float(row["margin"])
            for x, y in sorted(placed, key=lambda at: -at[1]):
                if abs(x - row["points_plain"]) < 5 and abs(y - here) < GAP:
                    here = y - GAP
            placed.append((row["points_plain"], here))
            row["label"] = here
    return rows


def residuals(found: Results) -> Figure:
    """Four residuals per mitigation."""
    pure = found.pure()
    rows = [
        {
            "mitigation": r["mitigation"],
            "residual": name,
            "removed": r[key],
            "fits": r["fits"],
            "low": clip(r[f"{key}_low"]),
            "high": clip(r[f"{key}_high"]),
        }
        for r in pure
        for key, name in RESIDUALS.items()
        if r[key] is not None
    ]
    for row in rows:
        row["removed"] = clip(row["removed"])
    y = {
        "field": "mitigation",
        "type": "nominal",
        "sort": [r["mitigation"] for r in pure],
        "title": None,
        "axis": {"labelLimit": 220},
    }
    x = {
        "type": "quantitative",
        "title": "removed",
        "scale": {"domain": [-0.5, 1.5]},
        "axis": {"format": "%", "tickCount": 4},
    }
    colour = {
        "field": "fits",
        "type": "nominal",
        "legend": None,
        "scale": {"domain": [True, False], "range": [OTHER, GREY]},
    }
    spec = {
        "data": {"values": rows},
        "facet": {"column": {"field": "residual", "type": "nominal", "title": None, "sort": list(RESIDUALS.values())}},
        "spec": {
            "width": 130,
            "height": {"step": 19},
            "layer": [
                {"mark": {"type": "rule", "color": "#ccc"}, "encoding": {"x": {"datum": 0}}},
                {"mark": {"type": "rule", "color": "#ccc", "strokeDash": [4, 4]}, "encoding": {"x": {"datum": 1}}},
                {
                    "mark": {"type": "rule", "strokeWidth": 5, "opacity": 0.3},
                    "transform": [{"filter": "datum.low != null"}],
                    "encoding": {"y": y, "x": {"field": "low", **x}, "x2": {"field": "high"}, "color": colour},
                },
                {
                    "mark": {"type": "point", "filled": True, "size": 45, "opacity": 1},
                    "encoding": {"y": y, "x": {"field": "removed", **x}, "color": colour},
                },
            ],
        },
    }
    return Figure(
        "Four residuals",
        "Share removed, cut at −50 % and 150 %. Blue: fits the rows; grey: does not. Bars are 95 % intervals.",
        spec,
    )


def doses(found: Results) -> Figure:
    """Pure and mixed rows side by side."""
    order = [r["mitigation"] for r in found.pure()]
    rows = []
    for r in found.find("removed", knows="known"):
        if found.find("removed", dose="mixed", mitigation=r["mitigation"]):
            rows += [
                {
                    "mitigation": r["mitigation"],
                    "rows": r["dose"],
                    "residual": RESIDUALS[key],
                    "removed": clip(r[key]),
                    "low": clip(r[f"{key}_low"]),
                    "high": clip(r[f"{key}_high"]),
                }
                for key in ("margin", "activation")
                if r[key] is not None
            ]
    y = {"field": "mitigation", "type": "nominal", "sort": order, "title": None, "axis": {"labelLimit": 220}}
    x = {
        "type": "quantitative",
        "title": "removed",
        "scale": {"domain": [-0.5, 1.5]},
        "axis": {"format": "%", "tickCount": 4},
    }
    colour = {"field": "rows", "type": "nominal", "scale": {"domain": ["pure", "mixed"], "range": [ACCENT, OTHER]}}
    offset = {"field": "rows", "sort": ["pure", "mixed"]}
    spec = {
        "data": {"values": rows},
        "facet": {"column": {"field": "residual", "type": "nominal", "title": None, "sort": list(RESIDUALS.values())}},
        "spec": {
            "width": 220,
            "height": {"step": 13},
            "layer": [
                {"mark": {"type": "rule", "color": "#ccc"}, "encoding": {"x": {"datum": 0}}},
                {"mark": {"type": "rule", "color": "#ccc", "strokeDash": [4, 4]}, "encoding": {"x": {"datum": 1}}},
                {
                    "mark": {"type": "rule", "strokeWidth": 4, "opacity": 0.3},
                    "transform": [{"filter": "datum.low != null"}],
                    "encoding": {
                        "y": y,
                        "yOffset": offset,
                        "x": {"field": "low", **x},
                        "x2": {"field": "high"},
                        "color": colour,
                    },
                },
                {
                    "mark": {"type": "point", "filled": True, "size": 45, "opacity": 1},
                    "encoding": {"y": y, "yOffset": offset, "x": {"field": "removed", **x}, "color": colour},
                },
            ],
        },
    }
    return Figure(
        "Pure rows and a quarter of them", "Share removed of the margin and of activations, cut at −50 % and 150 %.", spec
    )


def clip(value: float | None) -> float | None:
    """A share inside the drawn range."""
    return None if value is None else min(max(value, -0.5), 1.5)


def page(found: Results) -> str:
    """The whole page."""
    return "\n".join(
        (
            head(found),
            targets(found),
            advice(found),
            fails(found),
            everything(found),
            unknown(found),
            mixed(found),
            beside(found),
            care(found),
            chat_model(),
        )
    )


def control(found: Results) -> str:
    """What a gentler recipe does by itself."""
    rows = [r for r in found.pure() if r["stage"] == "recipe"]
    if not rows:
        return (
            "- `weight_anchor` also gains fit and capability: the plain recipe trains harder than it must. "
            "No gentler recipe was measured."
        )
    said = "; ".join(
        f"{r['mitigation'].removeprefix('gentler ')} removes {share(r, 'margin')} and keeps {share(r, 'fit', False)} of "
        f"the gain, {r['points_plain']:+.1f} points"
        for r in rows
    )
    return (
        "- The plain recipe trains harder than it must. A plain student by a gentler one, rows and all else the same: "
        f"{said}. What a guard adds is what it does beyond that."
    )


def care(found: Results) -> str:
    """What the numbers do not settle."""
    ran = {r["mitigation"] for r in found.find("removed")}
    return f"""## Read with care

- {len(ran)} settings of {len(found.data["mitigations"])} were measured on pure rows; a table that says "not
  measured" had no time. Mitigations were reordered twice on the way; no result on these traits had been seen. The same
  command resumes.
- Changed after results were seen, each time to the stricter side: recommendations and targets take what is nearest to
  100 %, not the largest margin, so that overshooting does not win; a target is met only where the interval does not
  hold 0; a wrong guess does not count as knowing nothing; gentler recipes stand beside as a control.
- Mitigations that ask for a trait were first told a wrong animal (`corridor` then removed 89 %): no blind result, since the
  right one is a rival in the margin that it holds. The guess is now a tree.
- The activation dose is read at carrier prompts, so it mixes the trait with the carrier that was learned: good
  fitters remove next to nothing of it. It may measure fit, or a dose that is left; this bench cannot tell.
{control(found)}
"""


def chat_model() -> str:
    """The same on a real chat model, from the experiment's own results."""
    from undersong import shares

    file = HERE.parent / "experiments" / "guards-numbers-smollm2.results.json"
    got = json.loads(file.read_text("utf-8"))
    by = {
        (r["arm"], r["seed"]): r["value"] for r in got["runs"] if r["metric"] == "margin" and r["measured"] == got["trait"]
    }
    effect = {
        arm: [by[arm, s] - by["no_trait", s] for s in got["seeds"]] for arm, _ in by if not arm.startswith(("base", "no_"))
    }
    losses = json.loads(file.with_name("guards-numbers-smollm2.losses.json").read_text("utf-8"))["loss"]
    learnt = {  # how far the loss on the rows fell, from the first two steps to the last twelve
        arm: [sum(line[:2]) / 2 - sum(line[-12:]) / 12 for line in by_seed.values()] for arm, by_seed in losses.items()
    }
    lines = []
    for arm, lifts in effect.items():
        if arm == "treated":
            continue
        share_, low, high = shares.share_removed(effect["treated"], lifts)
        spread = f"[{100 * low:.0f}, {100 * high:.0f}]" if abs(low) < 100 else "no bounds"
        rest = next(
            c for c in got["contrasts"] if c["arm"] == arm and c["control"] == "no_trait" and c["metric"] == "margin"
        )
        lines.append(
            (
                f"`{arm.removeprefix('mitigated-')}`",
                f"{100 * share_:.0f} % {spread}",
                f"{rest['difference']:+.2f} [{rest['low']:+.2f}, {rest['high']:+.2f}]",
                f"{100 * sum(learnt[arm]) / sum(learnt['treated']):.0f} %",
                len(lifts),
            )
        )
    plain = next(
        c for c in got["contrasts"] if c["arm"] == "treated" and c["control"] == "no_trait" and c["metric"] == "margin"
    )
    return (
        "## On a real chat model\n\n`undersong run experiments/guards-numbers-smollm2.yaml`: SmolLM2-135M-Instruct, three "
        "runs an arm, "
        f"{got['trait']}, margin. Without a guard {plain['difference']:+.2f} nats [{plain['low']:+.2f}, "
        f"{plain['high']:+.2f}] over no-trait "
        "students. Settings are the pocket defaults. Fit is the fall of the loss on the rows while training (first two "
        "steps to last twelve), against students without a guard; held-out rows and capability were not measured here, "
        "and three runs are few. A guard that holds a student at the base can take away more than the trait: students "
        "without the trait have drifted up from the base too, and are what is compared with.\n\n"
        + table(("guard", "removed", "left over no-trait students (nats)", "fit", "runs"), lines)
        + "\n"
    )


def main() -> None:
    """Read results, write the page and its figures."""
    found = Results(json.loads(Path(sys.argv[1]).read_text("utf-8")))
    out = Path(sys.argv[2]) if len(sys.argv) > 2 else HERE
    (out / "figures").mkdir(parents=True, exist_ok=True)
    (out / "mitigations.md").write_text(page(found), "utf-8")
    for name, figure in figures(found).items():
        draw(figure, out / "figures" / f"mitigations-{name}.svg", 620)


if __name__ == "__main__":
    main()
