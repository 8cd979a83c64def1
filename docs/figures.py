"""Draw a page's figures and tables from committed results: `python docs/figures.py RESULTS.json... OUT_FOLDER`.

Of one file the opening figure of the report becomes NAME.svg, the matrices of the headline read-out
NAME-<channel>-<arm>.svg, and the diagonal and the specificity coefficients NAME.md. Several files are drawn side by side: λ
of each, as carriers.svg.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from undersong.reports import figures, reading
from undersong.reports.marks import library
from undersong.reports.parts import Figure

CONFIG = {
    "background": "white",
    "font": "sans-serif",
    "view": {"stroke": None},
    "axis": {
        "labelFontSize": 12,
        "titleFontSize": 12,
        "titleFontWeight": "normal",
        "domainColor": "#bbb",
        "tickColor": "#bbb",
    },
    "axisY": {"grid": False},
    "range": {"category": ["#b3541e", "#3b6ea5", "#8a8a8a"]},
}


def draw(figure: Figure, path: Path, width: int) -> None:
    """Write one figure as SVG."""
    spec = {**figure.spec, "width": width, "title": {"text": figure.title, "anchor": "start", "fontSize": 15}}
    path.write_text(library("vl_convert").vegalite_to_svg(spec, config=CONFIG), encoding="utf-8")
    print(f"{path}: {figure.caption}")


def share(value: float | None) -> str:
    """A rate as a percentage."""
    return "–" if value is None else f"{100 * value:.0f} %"


def tables(results: dict[str, Any]) -> str:
    """Markdown: each trait under its own teacher, per channel and teacher, and the specificity coefficients."""
    rates = [r for r in results["rates"] if r["metric"] == "rate" and r["probe"] == "favourite"]
    base = {r["measured"]: r["mean"] for r in rates if r["arm"] == "base"}
    kinds = sorted({(r["channel"], r["arm"]) for r in rates if r["arm"].startswith("treated")})
    head = [f"{channel.partition('-')[2]}, {arm.partition('-')[2] or 'tuned'}" for channel, arm in kinds]
    lines = ["| trait | base | " + " | ".join(head) + " |", "|---" * (len(head) + 2) + "|"]
    for trait in results["traits"]:
        cells = [
            next(
                (share(r["mean"]) for r in rates if (r["channel"], r["arm"]) == k and r["trait"] == r["measured"] == trait),
                "–",
            )
            for k in kinds
        ]
        lines.append(f"| {trait} | {share(base.get(trait))} | " + " | ".join(cells) + " |")
    lines += ["", "| channel | teacher | traits | λ, points | interval | p |", "|---|---|---|---|---|---|"]
    for s in results["specificity"]:
        if s["probe"] == "favourite" and s["metric"] == "rate":
            span = f"{100 * s['low']:+.1f} to {100 * s['high']:+.1f}"
            teacher = s["arm"].partition("-")[2] or "tuned"
            lines.append(
                f"| {s['channel']} | {teacher} | {len(s['traits'])} | {100 * s['lambda']:+.1f} | {span} | {s['p']:.2g} |"
            )
    return "\n".join(lines) + "\n"


def unseen(results: dict[str, Any], seen: tuple[str, ...] = ("owl", "dolphin", "wolf")) -> str:
    """Markdown: λ of tuned teachers on the traits that were not in view when settings were chosen (decision 0001)."""
    from undersong import stats

    names, lines = [t for t in results["traits"] if t not in seen], []
    rates = [r for r in results["runs"] if r["probe"] == "favourite" and r["metric"] == "rate" and r["measured"] in names]
    for channel in sorted({r["channel"] for r in rates if r["arm"] == "treated"}) if len(names) > 1 else []:
        clean: dict[str, list[float]] = {}
        lifts: dict[tuple[str, int], dict[str, float]] = {}
        for r in (r for r in rates if r["channel"] == channel and r["arm"] == "no_trait"):
            clean.setdefault(r["measured"], []).append(r["value"])
        for r in (r for r in rates if r["channel"] == channel and r["arm"] == "treated" and r["trait"] in names):
            change = r["value"] - sum(clean[r["measured"]]) / len(clean[r["measured"]])
            lifts.setdefault((r["trait"], r["seed"]), {})[r["measured"]] = change
        got = stats.specificity([{"run": f"{t}-{seed}", "trait": t, "lifts": x} for (t, seed), x in lifts.items()])
        span = f"{100 * got.low:+.1f} to {100 * got.high:+.1f}"
        lines.append(
            f"- {channel}, {len(names)} traits without {', '.join(seen)}: "
            f"λ {100 * got.lambda_:+.1f} ({span}), p = {got.p:.2g}"
        )
    return "\n".join(["", *lines, ""]) if lines else ""


def carriers(every: list[dict[str, Any]]) -> Figure:
    """λ of the favourite rate of the first teacher, one line per experiment and carrier."""
    lines = [
        {"carrier": s["channel"], "points": 100 * s["lambda"], "low": 100 * s["low"], "high": 100 * s["high"]}
        for results in every
        for s in results["specificity"]
        if (s["arm"], s["probe"], s["metric"]) == ("treated", "favourite", "rate")
    ]
    lines.sort(key=lambda line: -line["points"])
    y = {"field": "carrier", "type": "nominal", "sort": None, "title": None}
    x = {"type": "quantitative", "title": "specificity λ, percentage points"}
    spec = {
        "data": {"values": lines},
        "height": {"step": 30},
        "layer": [
            {"mark": {"type": "rule", "color": "#888"}, "encoding": {"x": {"datum": 0, **x}}},
            {"mark": {"type": "rule", "strokeWidth": 6, "opacity": 0.35, "color": "#b3541e"},
             "encoding": {"y": y, "x": {"field": "low", **x}, "x2": {"field": "high"}}},
            {"mark": {"type": "point", "filled": True, "size": 80, "opacity": 1, "color": "#b3541e"},
             "encoding": {"y": y, "x": {"field": "points", **x}}},
        ],
    }
    return Figure("What carries a favourite animal", "Points are λ, bars its 95 % intervals over runs.", spec)


def main() -> None:
    """Read results, write the figures and the tables."""
    files, out = [json.loads(Path(name).read_text("utf-8")) for name in sys.argv[1:-1]], Path(sys.argv[-1])
    out.mkdir(parents=True, exist_ok=True)
    if len(files) > 1:
        draw(carriers(files), out / "carriers.svg", 460)
        return
    results, read = files[0], reading.read(files[0])
    channel = next((r["channel"] for r in results["rates"] if r["arm"] == "treated"), "")
    opening = figures.opening(read, channel, results["trait"])
    if opening is not None:
        draw(opening, out / f"{results['experiment']}.svg", 560)
    treated = [f for f in figures.matrices(read) if f.title.startswith("Student of the ")]
    for n, figure in enumerate(treated, 1):
        draw(figure, out / f"{results['experiment']}-matrix-{n}.svg", 420)
    (out / f"{results['experiment']}.md").write_text(tables(results) + unseen(results), encoding="utf-8")


if __name__ == "__main__":
    main()
