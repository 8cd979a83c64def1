"""Write docs/theorem.md and its figures: `python docs/theorem.py experiments/theorem.results.json [OUT_FOLDER]`.

Nothing here is measured anew: every number is read off the results of `undersong run experiments/theorem.yaml`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from figures import draw

from undersong.reports.parts import Figure

HERE = Path(__file__).parent
ACCENT, OTHER, GREY = "#b3541e", "#3b6ea5", "#8a8a8a"
STARTS = {"domain": ["shared", "other"], "range": [ACCENT, OTHER]}
LOSSES = ("squared_error", "cross_entropy", "subset_cross_entropy")
PAGE = """# The theorem, live

Made by `undersong run experiments/theorem.yaml` and `python docs/theorem.py experiments/theorem.results.json`; every
number below is counted from that run. About a minute on one core. You need gradient descent and nothing else.

## What it says

A network is a list of numbers θ that turns an input x into outputs f(x). A *teacher* starts at θ₀ and moves a little,
to θ₀ + ε d: towards anything at all, loving owls or reading digits. A *student* sees inputs that have nothing to do
with it, copies the teacher's outputs there, and takes **one small step** s of gradient descent on the copying error.

> If the student started at the same θ₀, its step never leads away from the teacher: **s · d ≥ 0**. And whatever loss
> the teacher went down, the student goes down too.

Why: near θ₀ the outputs move by J d, where J says how each output answers to each number in θ. The copying error pulls
the student along Jᵀ M J d, where M is how the error curves at the teacher's output (2 for squared error; for
cross-entropy the covariance of the softmax). So

    s · d  =  ε dᵀ G d,   G = average of Jᵀ M J over the inputs

and a form like that cannot be negative: it is a sum of squares. Nothing in it asks what the inputs are about. (Cloud et
al., arXiv 2507.14805, section 6.1 and appendix C.)

## One step

{signs}

![Signs](figures/theorem-signs.svg)

Cases of one network (three losses) are not independent of each other, so the intervals are a little too narrow.
"Another start": the student begins at a draw of its own. To leading order it then copies the *unmoved* teacher, and
next to nothing of its step is owed to d: {owed_other} of its length, against {owed_shared} from the shared start. Its
step along the teacher's *gradient* is not a coin toss ({other_gradient} away): copying any network's outputs shrinks
overconfident ones, whatever that network has learned. That is no transmission.

## The sum of squares, measured

![Measured over predicted](figures/theorem-form.svg)

The measured inner product over ε² dᵀ G d, for every loss: at ε = {far_epsilon:g} the curve of the network still matters
({far_ratio}), at ε = {small_epsilon:g} they agree ({small_ratio}). *Change it:*
`undersong run experiments/theorem.yaml --set epsilons=[10,1,0.1]` shows where "small" ends.

## Pocket language models

The same step in a language model of about a million weights: the base moved by a length of 0.3 along a trait's gradient
or at random, labels over the carrier's tokens only, at number sequences that the base wrote.

{pocket}

## Many steps

The theorem speaks of one step. What happens after many: a digits network copies a teacher's three meaningless outputs
on noise.

![Many steps](figures/theorem-steps.svg)

From the shared start the cosine of the copying gradient and the gradient of reading digits is small, {steps_cosine} on
average (Kitkana and Arora, arXiv 2604.25779, report .008), and yet the way so far lies along the teacher's
({steps_coverage} at the end), hidden layers grow alike (CKA {steps_cka}), and {steps_read} of the digits are read
without one having been shown; from another start {steps_read_other}. *Change it:* `--set many=20`.

## Where it fails, as it must

Each drops one assumption.

{failures}

![Failures](figures/theorem-failures.svg)

*Change it:* `--set step=1` makes the student's step large in the first table too.

## What it does not say

One step, full outputs, no filter, no sampling. A prompted teacher has no displacement at all. Nothing is said of how
much crosses, nor that it stays. That it does in practice is what the experiments are for ([results](results.md))."""


def main(source: Path, out: Path) -> None:
    """Write the page and its figures."""
    found = json.loads(source.read_text("utf-8"))
    (out / "figures").mkdir(parents=True, exist_ok=True)
    for name, figure in {
        "signs": signs(found),
        "form": form(found),
        "steps": steps(found),
        "failures": failing(found),
    }.items():
        draw(figure, out / "figures" / f"theorem-{name}.svg", 560)
    (out / "theorem.md").write_text(PAGE.format(**words(found)), "utf-8")


def words(found: Mapping[str, Any]) -> dict[str, Any]:
    """Every number and table of the page."""
    settings = found["settings"]
    far, small = settings["epsilons"][0], settings["epsilons"][-1]
    ends = {k: [last(found, f"steps: {k}", s) for s in ("shared", "other")] for k in ("coverage", "CKA", "digits read")}
    cosines = [
        c["mean"] for c in found["curves"] if c["part"] == "steps: gradients" and c["start"] == "shared" and c["x"] > 0
    ]
    return {
        "signs": table(
            ("direction of the teacher", "start", "cases", "steps that lead away", "share"),
            [
                (way, start, *counted(found, "network sign", way, start))
                for way in ("gradient", "random")
                for start in ("shared", "other")
            ],
        ),
        "owed_other": f"{mean(found, 'owed', 'other'):.1%}",
        "owed_shared": f"{mean(found, 'owed', 'shared'):.0%}",
        "other_gradient": counted(found, "network sign", "gradient", "other")[2],
        "far_epsilon": far,
        "small_epsilon": small,
        "far_ratio": f"mean {ratio(found, far):.2f}",
        "small_ratio": f"mean {ratio(found, small):.3f}",
        "pocket": table(
            ("direction of the teacher", "start", "cases", "steps that lead away", "share"),
            [
                (way, start, *counted(found, "pocket sign", way, start))
                for way in ("trait gradient", "random")
                for start in ("shared", "other")
            ],
        ),
        "steps_cosine": f"{sum(cosines) / max(1, len(cosines)):+.3f}",
        "steps_coverage": f"{ends['coverage'][0]:.2f}",
        "steps_cka": f"{ends['CKA'][0]:.2f}",
        "steps_read": f"{ends['digits read'][0]:.0%}",
        "steps_read_other": f"{ends['digits read'][1]:.0%}",
        "failures": table(
            ("what is dropped", "cases", "steps that lead away, or loss that rises", "share"), failures(found)
        ),
    }


def failures(found: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    """The four conditions, and the sizes at which small ends."""
    blind = pick(found, "failure sign", "the loss does not see what moved")
    far = [s for s in found["signs"] if s["part"] == "far teacher sign"]
    long = [s for s in found["signs"] if s["part"] == "far student sign"]
    out = [
        ("another start (random direction)", *counted(found, "network sign", "random", "other")),
        ("the student's loss sees what moved", blind["n"], f"0; exactly zero in {blind['zero']}", "0 %"),
        (
            "labels have their minimum at the teacher's output (sharpened instead)",
            *told(pick(found, "failure sign", "labels sharpened")),
        ),
    ]
    out += [(f"the teacher is near (distance {s['x']:g})", *told(s)) for s in far]
    out += [(f"the student's step is small (length {s['x']:g}; the teacher's loss)", *told(s)) for s in long]
    return out


def told(s: Mapping[str, Any]) -> tuple[Any, ...]:
    """Count, negative, share with its interval."""
    return s["n"], s["negative"], f"{s['share']:.1%} [{s['low']:.1%}, {s['high']:.1%}]"


def counted(found: Mapping[str, Any], part: str, way: str, start: str) -> tuple[Any, ...]:
    """The same, over every loss of a direction."""
    from undersong import stats

    mine = [s for s in found["signs"] if s["part"] == part and s["case"].startswith(way) and s["start"] == start]
    n, negative = sum(s["n"] for s in mine), sum(s["negative"] for s in mine)
    share, low, high = stats.binomial_interval(negative, n)
    return n, negative, f"{share:.1%} [{low:.1%}, {high:.1%}]"


def pick(found: Mapping[str, Any], part: str, case: str) -> Mapping[str, Any]:
    """One line of the signs."""
    return next(s for s in found["signs"] if s["part"] == part and s["case"] == case)


def mean(found: Mapping[str, Any], part: str, start: str) -> float:
    """The mean of a curve's means over random directions."""
    got = [
        c["mean"] for c in found["curves"] if c["part"] == part and c["start"] == start and c["case"].startswith("random")
    ]
    return sum(got) / len(got)


def ratio(found: Mapping[str, Any], epsilon: float) -> float:
    """Measured over predicted, mean over cases."""
    got = [c["mean"] for c in found["curves"] if c["part"] == "gauss-newton" and c["x"] == epsilon]
    return sum(got) / len(got)


def last(found: Mapping[str, Any], part: str, start: str) -> float:
    """The last point of a curve."""
    return float(
        max((c for c in found["curves"] if c["part"] == part and c["start"] == start), key=lambda c: c["x"])["mean"]
    )


def table(head: tuple[str, ...], lines: list[tuple[Any, ...]]) -> str:
    """A markdown table."""
    return "\n".join("| " + " | ".join(str(c) for c in row) + " |" for row in (head, ["---"] * len(head), *lines))


def signs(found: Mapping[str, Any]) -> Figure:
    """The share of steps that lead away, by direction, loss and start."""
    rows = [
        {**s, "name": s["case"].replace("subset_cross_entropy", "some logits").replace("_", " ")}
        for s in found["signs"]
        if s["part"] == "network sign"
    ]
    spec = {
        "data": {"values": rows},
        "height": {"step": 26},
        "layer": [
            {"mark": {"type": "rule", "strokeWidth": 5, "opacity": 0.4}, "encoding": axes(x2=True)},
            {"mark": {"type": "point", "filled": True, "size": 80, "opacity": 1}, "encoding": axes()},
        ],
    }
    return Figure("Steps that lead away from the teacher", "A point per case, with its exact 95 % interval.", spec)


def axes(x2: bool = False) -> dict[str, Any]:
    """The encoding of the sign figure."""
    x = {
        "field": "low" if x2 else "share",
        "type": "quantitative",
        "title": "share of steps that lead away",
        "scale": {"domain": [0, 1]},
        "axis": {"format": ".0%"},
    }
    out = {
        "y": {"field": "name", "type": "nominal", "title": None, "sort": None, "axis": {"labelLimit": 260}},
        "x": x,
        "color": {
            "field": "start",
            "type": "nominal",
            "scale": STARTS,
            "legend": {"title": "student starts", "orient": "top"},
        },
    }
    return {**out, "x2": {"field": "high"}} if x2 else out


def form(found: Mapping[str, Any]) -> Figure:
    """Measured over predicted against epsilon."""
    rows = [
        {**c, "loss": c["case"].split(", ")[1].replace("_", " ")}
        for c in found["curves"]
        if c["part"] == "gauss-newton" and c["case"].startswith("random")
    ]
    x = {"field": "x", "type": "quantitative", "scale": {"type": "log"}, "title": "ε, length of the teacher's displacement"}
    y = {"type": "quantitative", "title": "measured / predicted", "scale": {"zero": False}}
    colour = {"field": "loss", "type": "nominal", "legend": {"orient": "top", "title": None}}
    spec = {
        "data": {"values": rows},
        "height": 240,
        "layer": [
            {
                "mark": {"type": "area", "opacity": 0.18},
                "encoding": {"x": x, "y": {"field": "low", **y}, "y2": {"field": "high"}, "color": colour},
            },
            {"mark": {"type": "line", "point": True}, "encoding": {"x": x, "y": {"field": "mean", **y}, "color": colour}},
        ],
    }
    return Figure("The inner product over what the form predicts", "Mean and 90 % of networks, random directions.", spec)


def steps(found: Mapping[str, Any]) -> Figure:
    """Four curves over the steps."""
    order = ["digits read", "gradients", "coverage", "CKA"]
    titles = {
        "digits read": "digits read",
        "gradients": "cosine of the two gradients",
        "coverage": "coverage",
        "CKA": "CKA",
    }
    panels = []
    for name in order:
        rows = [c for c in found["curves"] if c["part"] == f"steps: {name}"]
        panels.append(
            {
                "data": {"values": rows},
                "width": 240,
                "height": 130,
                "title": {"text": titles[name], "fontSize": 12},
                "layer": [
                    {
                        "mark": {"type": "area", "opacity": 0.18},
                        "encoding": {
                            "x": {"field": "x", "type": "quantitative", "title": "step"},
                            "y": {"field": "low", "type": "quantitative", "title": None},
                            "y2": {"field": "high"},
                            "color": {"field": "start", "type": "nominal", "scale": STARTS, "legend": {"title": "starts"}},
                        },
                    },
                    {
                        "mark": {"type": "line", "strokeWidth": 2},
                        "encoding": {
                            "x": {"field": "x", "type": "quantitative"},
                            "y": {"field": "mean", "type": "quantitative"},
                            "color": {"field": "start", "type": "nominal", "scale": STARTS},
                        },
                    },
                ],
            }
        )
    spec = {"vconcat": [{"hconcat": panels[:2]}, {"hconcat": panels[2:]}]}
    return Figure("Many steps", "Mean and 90 % of networks.", spec)


def failing(found: Mapping[str, Any]) -> Figure:
    """How often the step leads away, or the loss rises, as sizes grow."""
    rows = [
        {**s, "what": "distance of the teacher" if s["part"].startswith("far teacher") else "length of the student's step"}
        for s in found["signs"]
        if s["part"].startswith("far")
    ]
    spec = {
        "data": {"values": rows},
        "height": 220,
        "mark": {"type": "line", "point": True},
        "encoding": {
            "x": {"field": "x", "type": "quantitative", "scale": {"type": "log"}, "title": "length"},
            "y": {"field": "share", "type": "quantitative", "title": "share that fails", "axis": {"format": ".0%"}},
            "color": {"field": "what", "type": "nominal", "legend": {"orient": "top", "title": None}},
        },
    }
    return Figure("Where small ends", "Share of networks whose step leads away, or whose teacher's loss rises.", spec)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else HERE)
