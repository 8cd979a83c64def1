"""Draw a page's figures from committed results: `python docs/figures.py RESULTS.json OUT_FOLDER`.

The opening figure of the report becomes NAME.svg, each teacher-by-measured matrix NAME-matrix-<n>.svg.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from undersong.reports import figures, reading
from undersong.reports.marks import library

CONFIG = {
    "background": "white",
    "font": "sans-serif",
    "view": {"stroke": None},
    "axis": {"labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": "normal", "domainColor": "#bbb", "tickColor": "#bbb"},
    "axisY": {"grid": False},
    "range": {"category": ["#b3541e", "#3b6ea5", "#8a8a8a"]},
}


def draw(figure: figures.Figure, path: Path, width: int) -> None:
    """Write one figure as SVG."""
    spec = {**figure.spec, "width": width, "title": {"text": figure.title, "anchor": "start", "fontSize": 15}}
    path.write_text(library("vl_convert").vegalite_to_svg(spec, config=CONFIG), encoding="utf-8")
    print(f"{path}: {figure.caption}")


def main() -> None:
    """Read results, draw what the report opens with and its matrices."""
    results = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    out, read = Path(sys.argv[2]), reading.read(results)
    out.mkdir(parents=True, exist_ok=True)
    channel = next((r["channel"] for r in results["rates"] if r["arm"] == "treated"), "")
    opening = figures.opening(read, channel, results["trait"])
    if opening is not None:
        draw(opening, out / f"{results['experiment']}.svg", 560)
    for n, figure in enumerate(figures.matrices(read), 1):
        draw(figure, out / f"{results['experiment']}-matrix-{n}.svg", 420)


if __name__ == "__main__":
    main()
