"""Write docs/carriers.md and its figure: `python docs/carriers.py RESULTS.json [OUT_FOLDER]`.

Nothing here is measured anew: every number is read off the results of that experiment.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from figures import draw

from undersong import shares
from undersong.reports.parts import Figure

HERE = Path(__file__).parent
ACCENT, GREY = "#b3541e", "#8a8a8a"
SCRAMBLE = "mitigated-scramble-marginal-{}-conditional-{}"
CELLS = {
    ("keep", "keep"): "treated",
    **{(m, c): SCRAMBLE.format(m, c) for m, c in (("keep", "destroy"), ("destroy", "keep"), ("destroy", "destroy"))},
}
PAGE = """# What in the numbers carries the trait?

How often each number stands (the *marginal*), or what stands with what and in which order (the *conditional*
structure)? The literature holds both views: divergence tokens, or a marginal shift of one per cent; the two by two that
would tell them apart was proposed and not run. Here it is, on pocket models: `undersong run
experiments/marginal-or-conditional-pocket.yaml`, {runs} training runs an arm, trait {trait}, chosen before any result.
Each arm is compared with its *twin*: the same done to the no-trait teacher's rows, because scrambling moves a student
by itself.

{table}

![The two by two](figures/carriers-two-by-two.svg)

{reading}

Dealing the numbers out anew damages the student: {invalid} of the answers of students of dealt rows are no animal at
all (treated: {treated_invalid}). The margin is read at the first token whatever the answer becomes, but what "the
marginal alone" could do in an undamaged student is not shown. Selecting rows so that the teacher's marginals equal the
clean ones leaves a part of the difference: numbers that stand fewer than five times count as one. One trait, one base,
one carrier; the traits tuned here change how sequences go on ([drift](results.md)), so a carrier of conditional
structure is what to expect of this world. In a 160M model the marginal was told to hold the trait's identity
(PolyPythia-SL): the two need not contradict.

The same question to first order, without training, is the explainer `marginal_or_conditional`
(`undersong explain experiments/owl-numbers-pocket.yaml`, [how](howto/explain.md)).
"""


def main(source: Path, out: Path) -> None:
    """Write the page and its figure."""
    found = json.loads(source.read_text("utf-8"))
    rows = [cell(found, *key) for key in CELLS]
    (out / "figures").mkdir(parents=True, exist_ok=True)
    draw(figure(rows), out / "figures" / "carriers-two-by-two.svg", 480)
    head = (
        "| marginal | conditional | effect on the margin (nats) | effect on the rate | share of the effect kept |\n"
        "|---|---|---|---|---|\n"
    )
    lines = [f"| {r['marginal']} | {r['conditional']} | {r['margin']} | {r['rate']} | {r['kept']} |" for r in rows]
    by = {(r["marginal"], r["conditional"]): r for r in rows}
    first, second = by["kept", "destroyed"], by["destroyed", "kept"]
    reading = (
        (
            f"The conditional structure alone keeps {second['kept']} of the effect, the marginal alone {first['kept']}: "
            "here the trait is "
            "carried by what stands with what."
        )
        if second["share"] > first["share"]
        else (f"The marginal alone keeps {first['kept']} of the effect, the conditional structure alone {second['kept']}.")
    )
    dealt = [rate(found, CELLS[k], "invalid") for k in CELLS if k[1] == "destroy"]
    (out / "carriers.md").write_text(
        PAGE.format(
            runs=len(found["seeds"]),
            trait=found["trait"],
            table=head + "\n".join(lines),
            reading=reading,
            invalid=f"{min(dealt):.0%} to {max(dealt):.0%}",
            treated_invalid=f"{rate(found, 'treated', 'invalid'):.0%}",
        ),
        "utf-8",
    )


def cell(found: Mapping[str, Any], marginal: str, conditional: str) -> dict[str, Any]:
    """One cell: effects over its twin, and the share of the whole effect that it keeps, paired by seed."""
    arm = CELLS[marginal, conditional]
    twin = "no_trait" if arm == "treated" else f"{arm}:no_trait"
    out: dict[str, Any] = {
        "marginal": "kept" if marginal == "keep" else "destroyed",
        "conditional": "kept" if conditional == "keep" else "destroyed",
    }
    for metric in ("margin", "rate"):
        one = next(
            c
            for c in found["contrasts"]
            if c["arm"] == arm and c["control"] == twin and c["metric"] == metric and c["trait"] == found["trait"]
        )
        scale = (lambda v: f"{v:+.2f}") if metric == "margin" else (lambda v: f"{100 * v:+.0f}")
        unit = "" if metric == "margin" else " points"
        out[metric] = f"{scale(one['difference'])} [{scale(one['low'])}, {scale(one['high'])}]{unit}"
    share, low, high = shares.share_kept(effects(found, "treated", "no_trait"), effects(found, arm, twin))
    out |= {
        "share": share,
        "low": low,
        "high": high,
        "kept": f"{share:.0%} [{low:.0%}, {high:.0%}]" if arm != "treated" else "100 %",
    }
    return out


def effects(found: Mapping[str, Any], arm: str, twin: str) -> list[float]:
    """The margin of an arm's runs over its twin's, by seed."""
    by = {
        (r["arm"], r["seed"]): r["value"]
        for r in found["runs"]
        if r["metric"] == "margin" and r["measured"] == found["trait"] and r["trait"] in (found["trait"], "")
    }
    return [by[arm, seed] - by[twin, seed] for seed in found["seeds"]]


def rate(found: Mapping[str, Any], arm: str, metric: str) -> float:
    """A rate of the trait's arm."""
    return float(
        next(
            r["mean"] for r in found["rates"] if r["arm"] == arm and r["metric"] == metric and r["trait"] == found["trait"]
        )
    )


def figure(rows: list[dict[str, Any]]) -> Figure:
    """The two by two, the share kept as depth of colour."""
    cells = [{**r, "x": f"marginal {r['marginal']}", "y": f"conditional {r['conditional']}"} for r in rows]
    x = {"field": "x", "type": "nominal", "title": None, "sort": None, "axis": {"labelAngle": 0, "orient": "top"}}
    y = {"field": "y", "type": "nominal", "title": None, "sort": None}
    colour = {"field": "share", "type": "quantitative", "scale": {"scheme": "oranges", "domain": [0, 1.4]}, "legend": None}
    spec = {
        "data": {"values": cells},
        "height": 190,
        "encoding": {"x": x, "y": y},
        "layer": [
            {"mark": {"type": "rect", "cornerRadius": 4}, "encoding": {"color": colour}},
            {"mark": {"type": "text", "fontSize": 14}, "encoding": {"text": {"field": "kept"}}},
        ],
    }
    return Figure("Share of the effect that each scramble keeps", "Margin over the arm's twin, paired by seed.", spec)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else HERE)
