"""Write docs/theorem.md and its figures: `python docs/theorem.py experiments/theorem.results.json [OUT_FOLDER]`.

Nothing here is measured anew: every number is read off the results of `undersong run experiments/theorem.yaml`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from figures import draw
from scipy.stats import binomtest

from undersong import stats
from undersong.reports.parts import Figure

HERE = Path(__file__).parent
STARTS = {"domain": ["shared", "other"], "range": ["#b3541e", "#3b6ea5"]}
LOSSES = {
    "squared_error": "squared error",
    "cross_entropy": "cross-entropy",
    "subset_cross_entropy": "cross-entropy, some outputs",
}
Found = Mapping[str, Any]
PAGE = """# The theorem, live

Made by `undersong run experiments/theorem.yaml` and `python docs/theorem.py experiments/theorem.results.json`; every
number below is read off that run. You need gradient descent and nothing else.

## What it says

A network is a list of numbers θ (its *weights*) that turns an input x into outputs f(x). Two networks play:

| | who | what it does |
| --- | --- | --- |
| θ₀ | where both start | |
| d | the teacher's direction, of length 1 | towards anything at all: loving owls, reading digits, nowhere |
| ε | how far the teacher goes | the teacher is θ₀ + ε d |
| s | the student's step | one step of gradient descent on copying the teacher's outputs, at unrelated inputs |

> If the student starts at the same θ₀ and ε is small, its step never leads away from the teacher: **s · d ≥ 0**. And
> if the teacher went down some loss, the student's small step goes down that loss too.

s · d is positive when s and d point to the same side, zero when they are at right angles, negative when s leads away.

Why. Move the weights a little along d and the outputs move by J d, where the table J says how each output answers to
each weight. The student sees that shift in the teacher's outputs and descends. Its step is the same table read the
other way round: s = ε Jᵀ M J d, where M says how the copying loss curves at the teacher's output (2 for squared
error; for cross-entropy the covariance of the predicted probabilities). So

    s · d  =  ε dᵀ G d        G = average over inputs of Jᵀ M J

and dᵀ G d is a sum of squares: M has no negative curvature, so every input adds something ≥ 0. Nothing in it asks
what the inputs are about. (Cloud et al., arXiv 2507.14805, section 6.1 and appendix C; G is called the Gauss-Newton
matrix.)

## One step

{networks} random networks of about a thousand weights; the teacher goes ε = {small} along the gradient of a loss of
its own, or along a random direction; the student copies its outputs on noise, under three losses. Of {cases} cases
with the shared start, **{wrong}** lead away.

{signs}

![Cosines of step and displacement](figures/theorem-signs.svg)

The network is the unit of every interval: its three losses are one observation. *From another start* the student
begins at a random network of its own. To leading order it then copies the *unmoved* teacher: {owed_other} of its step
is owed to d, against 100 % from the shared start. Along a random d that is a coin toss. Along the teacher's own
gradient it is not quite ({other_gradient} lead away), and the teacher's loss often falls all the same: copying any
network shrinks overconfident outputs, whatever that network has learned. That is no transmission.

*Change it.*

| command | what changes |
| --- | --- |
| `undersong run experiments/theorem.yaml --set seed=2` | other networks, the same zero |
| `… --set networks=50` | 0 of 50 networks leaves room for {bound_fifty} that lead away; 0 of {networks} for {bound} |
| `… --set step=1` | the last column: the step is too long, under cross-entropy the loss rises in {step_one} |
| `… --set other=pocket/a` | the "other" pocket model is the shared one: in the pocket table its shares fall to zero |

## The sum of squares, measured

The inner product s · d as it was, over ε dᵀ G d as predicted. G itself is never built (for a pocket model it would
have a hundred billion entries): J d is one forward derivative.

{form}

Mean over directions, and the widest middle 90 % of networks or directions. Where an answer of numbers is due, a
pocket model gives other tokens next to no probability: the two cross-entropies are nearly the same there.

![Measured over predicted](figures/theorem-form.svg)

The formula is exact as ε goes to 0. At ε = {large} the network's own curvature shows. The sign outlives the formula:
how far is in [the failures](#where-it-fails-as-it-must).

*Change it:* `--set 'epsilons=[30,3,0.3]'` starts the curve where the ratio is no longer near 1, and counts signs at ε
= 0.3.

## Pocket language models

The same step in a language model: {pocket_traits} teachers are `pocket/a` moved along the gradient of a trait's
margin (how much likelier it names an owl than another animal) and {pocket_random} along random directions. The
student copies the outputs at number sequences that the base wrote: all of them, or only those of number tokens, with
which no animal can be named. The other start is `pocket/b`.

{pocket}

"Teacher's loss rises" means here: the trait's margin falls after a step of length {step}. Steps are nearly at right
angles to d (there are some three hundred thousand weights to go wrong in), and that suffices for the sign. From the
shared start the step's cosine with its own trait is {own_cosine}, with what would raise the other traits
{others_cosine}. From `pocket/b`, {owed_pocket} of the step is owed to the trait, so it should be a coin toss over
directions. Of these {pocket_random} random ones {coin} led away under cross-entropy; a fair coin is as far from half in
{coin_p:.0%} of tries. So {fresh_n} fresh ones were drawn, at another seed: {fresh_share} of steps lead away from
another start, and {fresh_wrong} of {fresh_cases} from the shared one (`theorem-fresh-directions.results.json`).

*Change it:* `--set 'traits=[wolf,pine]'`, `--set random=200`.

## Many steps

The theorem speaks of one step. After many, two things are followed: the digits network of [the logit
laboratory](logits.md), which copies three meaningless outputs on noise ({many} networks, 600 steps), and pocket
students of teachers for {followed} (the teacher's margin was raised to {taught} nats on average; 200 steps on number
tokens alone).

![Cosine of the two gradients](figures/theorem-steps.svg)

The cosine of the copying step with what would teach the trait outright is {steps_gradients_shared} on average along
the way of the digits network (another start: {steps_gradients_other}) and {students_gradients_shared} along that of
pocket students ({students_gradients_other}). Kitkana and Arora (arXiv 2604.25779) report .008 for digits. Small, and
from step to step not always positive; what it adds up to is the next figure.

![Coverage, CKA and what was learned](figures/theorem-coverage.svg)

*Coverage* is the cosine of the student's way so far with the teacher's way. Of the very first pull it is
{steps_first_shared} (digits; another start {steps_first_other}) and {students_first_shared} (pocket;
{students_first_other}); of the whole way {steps_coverage_shared} ({steps_coverage_other}) and
{students_coverage_shared} ({students_coverage_other}). *CKA* says how alike the last hidden layers are, up to a
rotation: from {steps_cka_first_shared} to {steps_cka_shared} for digits ({steps_cka_first_other} to {steps_cka_other}
from another start), from {students_cka_first_shared} to {students_cka_shared} for pocket ({students_cka_first_other}
to {students_cka_other}). In the end the digits student reads {read_shared} of digits without having been shown one
({read_other} from another start). The pocket students' margins rise by {rises_shared} nats from the shared start and
by {rises_other} from the other: {followed_count} students, too few for an interval worth printing.

*Change it:* `--set many=20`, `--set 'followed=[owl,wolf,pine]'`.

## Where it fails, as it must

The theorem has four assumptions. Each is dropped by itself, on the small networks.

{failures}

![Failures](figures/theorem-failures.svg)

1. **The same start.** The student begins a little beside θ₀, in a random direction. Once the distance passes the
   teacher's own displacement several times over, copying pulls mostly towards θ₀ and d drowns: the step is imitation
   of an untrained network.
2. **The student's loss can see what the teacher moved.** A teacher that trains only the weights of its class outputs
   does not change the others; a student that copies those takes no step at all. The theorem allows this case: s · d
   is not positive but exactly zero ({unseen:,} of {unseen_n:,}), and the teacher's loss stays what it was ({still:,}
   of {unseen_n:,}).
3. **Small steps.** Both lengths are compared with the network's own, about 7.5. A far teacher is no longer seen along
   J d. A long step overshoots: downhill is a property of the first stretch.
4. **A loss that is lowest at the teacher's output and curves upwards.** Labels sharpened by doubling the logits have
   their minimum elsewhere: the student is pulled to be surer, whatever d is. The first choice alone forgets the shift
   altogether. Errors that count negatively in half of the outputs make M a form with two signs, and in all of them
   one that leads away for certain.

*Change it:* `--set 'apart=[0,1,2,3,4,5]'` finds where a shared start ends; `--set 'teacher_lengths=[1000]'`; `--set
'student_lengths=[0.3,0.5,0.7]'` finds where a step is too long.

## What it does not say

One step, full outputs, no filter, no sampling. A prompted teacher has no displacement at all. Nothing is said of how
much crosses, nor that it stays. That it does in practice is what the experiments are for ([results](results.md)).
"""


def main(source: Path, out: Path) -> None:
    """Write the page and its figures."""
    found = json.loads(source.read_text("utf-8"))
    fresh = json.loads(source.with_name("theorem-fresh-directions.results.json").read_text("utf-8"))
    (out / "figures").mkdir(parents=True, exist_ok=True)
    made = {"signs": signs, "form": form, "steps": gradients, "coverage": coverage, "failures": failing}
    for name, figure in made.items():
        draw(figure(found), out / "figures" / f"theorem-{name}.svg", 560)
    (out / "theorem.md").write_text(PAGE.format(**words(found), **again(fresh)), "utf-8")


# Reading the results


def pick(found: Found, part: str, case: str, start: str = "shared", x: float | None = None) -> Found:
    """One line of the signs or of the curves."""
    return next(
        s
        for s in (*found["signs"], *found["curves"])
        if (s["part"], s["case"], s["start"]) == (part, case, start) and x in (None, s["x"])
    )


def told(s: Found) -> str:
    """A share with its interval."""
    return f"{s['share']:.1%} [{s['low']:.1%}, {s['high']:.1%}]"


def lines(found: Found, part: str) -> list[Found]:
    """All lines of a part, smallest abscissa first."""
    return sorted((s for s in (*found["signs"], *found["curves"]) if s["part"] == part), key=lambda s: s["x"])


def over(found: Found, part: str, start: str, x: float | None = None) -> list[float]:
    """A curve's values, one per case, at an abscissa or at its last one."""
    mine = [c for c in lines(found, part) if c["start"] == start]
    at = mine[-1]["x"] if x is None else x
    return [c["mean"] for c in mine if c["x"] == at]


def mean(values: Sequence[float]) -> float:
    """The mean."""
    return sum(values) / len(values)


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A markdown table."""
    return "\n".join("| " + " | ".join(str(c) for c in row) + " |" for row in (head, ["---"] * len(head), *rows))


# Words


def words(found: Found) -> dict[str, Any]:
    """Every number and table of the page."""
    settings = found["settings"]
    epsilons = settings["epsilons"]
    shared = [pick(found, "network sign", way) for way in ("gradient", "random")]
    return {
        "networks": f"{settings['networks']:,}",
        "cases": f"{sum(s['n'] for s in shared):,}",
        "wrong": sum(s["negative"] for s in shared),
        "bound": f"{shared[0]['high']:.1%}",
        "bound_fifty": f"{stats.mean_interval([0.0] * 50)[2]:.1%}",
        "small": f"{epsilons[-1]:g}",
        "large": f"{epsilons[0]:g}",
        "signs": sign_table(found, "network", ("gradient", "random")),
        "pocket": sign_table(found, "pocket", ("trait", "random")),
        "other_random": told(pick(found, "network sign", "random", "other")),
        "other_gradient": told(pick(found, "network sign", "gradient", "other")),
        "owed_other": f"{mean(over(found, 'network owed', 'other')):.1%}",
        "owed_pocket": f"{mean(over(found, 'pocket owed', 'other')):.2%}",
        "form": form_table(found),
        "own_cosine": f"{mean([pick(found, 'pocket cosine', f'trait, {x}')['mean'] for x in LOSSES]):.3f}",
        "others_cosine": f"{mean(over(found, 'pocket other traits', 'shared')):.3f}",
        "coin": (coin := pick(found, "pocket sign", "random, cross_entropy", "other"))["negative"],
        "coin_p": binomtest(coin["negative"], coin["n"]).pvalue,
        "pocket_traits": len(settings["traits"]),
        "pocket_random": settings["random"],
        "step": f"{settings['step']:g}",
        "failures": failure_table(found),
        "unseen": pick(found, "failure unseen sign", "inner product")["zero"],
        "unseen_n": pick(found, "failure unseen sign", "inner product")["n"],
        "still": pick(found, "failure unseen sign", "fall of the teacher's loss")["zero"],
        "step_one": told(pick(found, "failure long step sign", "cross_entropy", "shared", 1.0)),
        **stepped(found),
    }


def again(fresh: Found) -> dict[str, Any]:
    """The random directions of pocket models, drawn anew at another seed."""
    shared, other = (pick(fresh, "pocket sign", "random", start) for start in ("shared", "other"))
    return {"fresh_n": other["draws"], "fresh_share": told(other), "fresh_wrong": shared["negative"],
            "fresh_cases": shared["n"]}


def stepped(found: Found) -> dict[str, Any]:
    """The numbers of many steps."""
    out: dict[str, Any] = {"followed": ", ".join(found["settings"]["followed"]),
                           "followed_count": len(found["settings"]["followed"]), "many": found["settings"]["many"]}
    for kind in ("steps", "students"):
        for start in ("shared", "other"):
            watched = [
                c for c in lines(found, f"{kind}: gradients") if c["start"] == start
            ]
            out[f"{kind}_gradients_{start}"] = f"{mean([c['mean'] for c in watched]):+.4f}"
            out[f"{kind}_first_{start}"] = f"{mean(over(found, f'{kind}: pull', start, 0)):+.3f}"
            out[f"{kind}_coverage_{start}"] = f"{mean(over(found, f'{kind}: coverage', start)):+.3f}"
            out[f"{kind}_cka_first_{start}"] = f"{mean(over(found, f'{kind}: CKA', start, 0)):.2f}"
            out[f"{kind}_cka_{start}"] = f"{mean(over(found, f'{kind}: CKA', start)):.2f}"
    for start in ("shared", "other"):
        out[f"read_{start}"] = f"{mean(over(found, 'steps: digits read', start)):.0%}"
        rise = [
            after - before
            for before, after in zip(
                over(found, "students: margin", start, 0), over(found, "students: margin", start), strict=True
            )
        ]
        out[f"rise_{start}"] = f"{mean(rise):+.3f}"
        out[f"rises_{start}"] = ", ".join(f"{one:+.3f}" for one in rise)
    taught = [c["mean"] for c in lines(found, "teachers: margin")]
    out["taught"] = f"{mean(taught):.1f}"
    return out


def sign_table(found: Found, what: str, ways: tuple[str, str]) -> str:
    """How often steps lead away, by direction and start, over all losses."""
    rows = []
    for way in ways:
        for start in ("shared", "other"):
            s = pick(found, f"{what} sign", way, start)
            cosine = pick(found, f"{what} cosine", way, start)["mean"]
            fell = next((f for f in lines(found, f"{what} fall sign") if (f["case"], f["start"]) == (way, start)), None)
            rows.append((way, start, f"{s['n']:,} ({s['draws']:,})", s["negative"], told(s), f"{cosine:+.4f}",
                         told(fell) if fell else "–"))
    unit = "networks" if what == "network" else "directions"
    head = ("teacher moved along", "student's start", f"cases ({unit})", "lead away", "share that lead away", "mean cosine",
            "teacher's loss rises")
    return table(head, rows)


def form_table(found: Found) -> str:
    """Measured over predicted at the ends of the curves."""
    rows = []
    for part, name in (("network form", "small networks"), ("pocket form", "pocket models")):
        mine = lines(found, part)
        for loss, said in LOSSES.items():
            here = [c for c in mine if c["case"].endswith(f", {loss}")]
            cells = []
            for x in (here[-1]["x"], here[0]["x"]):
                at = [c for c in here if c["x"] == x]
                cells.append(f"{mean([c['mean'] for c in at]):.4f} "
                             f"[{min(c['low'] for c in at):.4f}, {max(c['high'] for c in at):.4f}]")
            rows.append((name, said, *cells))
    settings = found["settings"]["epsilons"]
    return table(("models", "loss", f"ε = {settings[0]:g}", f"ε = {settings[-1]:g}"), rows)


def failure_table(found: Found) -> str:
    """The four assumptions, and what happens without each."""
    unseen = [pick(found, "failure unseen sign", c) for c in ("inner product", "fall of the teacher's loss")]
    far = "s leads away"
    rows = [("1. same start", f"{s['x']:g} ε beside it" if s["x"] else "(kept)", far, s)
            for s in lines(found, "failure apart sign")]
    rows.append(("1. same start", "a draw of its own", far, pick(found, "network sign", "random", "other")))
    rows += [("2. the loss sees what moved", "nothing of it", far, unseen[0])]
    rows += [("3. small steps", f"the teacher is {s['x']:g} away", far, s) for s in lines(found, "failure far teacher sign")]
    rows += [("3. small steps", f"the student steps {s['x']:g}", "the teacher's loss rises", s)
             for s in lines(found, "failure long step sign")]
    for case, dropped, instead in (
        ("sharpened", "4. lowest at the teacher's output", "at its logits doubled"),
        ("first choice", "4. lowest at the teacher's output", "at its first choice"),
        ("half negative", "4. curves upwards", "errors of half of the outputs count negatively"),
        ("negative", "4. curves upwards", "all count negatively"),
    ):
        rows.append((dropped, instead, far, pick(found, "failure loss sign", case)))
    cells = [(dropped, instead, what, f"{s['n']:,}", told(s) + (f", exactly 0 in {s['zero']:,}" if s["zero"] else ""))
             for dropped, instead, what, s in rows]
    return table(("assumption", "instead", "failure", "cases", "share that fails"), cells)


# Figures


def signs(found: Found) -> Figure:
    """Histograms of the cosine of step and displacement."""
    rows = [
        {"way": f"teacher moved along {'its gradient' if h['case'] == 'gradient' else 'a random direction'}",
         "start": h["start"], "low": low, "high": high, "share": count / h["n"]}
        for h in found["histograms"]
        if h["part"] == "network cosine" and "," not in h["case"]
        for count, low, high in zip(h["counts"], h["edges"], h["edges"][1:], strict=False)
        if count
    ]
    spec = {
        "data": {"values": rows},
        "facet": {"row": {"field": "way", "type": "nominal", "title": None,
                          "header": {"labelOrient": "top", "labelAnchor": "start", "labelFontSize": 12}}},
        "spec": {
            "width": 520, "height": 120,
            "layer": [
                {"mark": {"type": "bar", "opacity": 0.75}, "encoding": {
                    "x": {"field": "low", "type": "quantitative", "bin": {"binned": True}, "scale": {"domain": [-1, 1]},
                          "title": "cosine of the student's step with the teacher's displacement"},
                    "x2": {"field": "high"},
                    "y": {"field": "share", "type": "quantitative", "stack": None, "title": "share of cases",
                          "axis": {"format": ".0%", "tickCount": 4}},
                    "color": {"field": "start", "type": "nominal", "scale": STARTS,
                              "legend": {"title": "student starts", "orient": "top"}}}},
                {"mark": {"type": "rule", "color": "#555"}, "encoding": {"x": {"datum": 0}}},
            ],
        },
    }
    return Figure("One step: does it lead towards the teacher, or away?", "All losses together; left of zero is away.", spec)


def form(found: Found) -> Figure:
    """Measured over predicted against epsilon."""
    panels = []
    for part, name in (("network form", "small networks"), ("pocket form", "pocket language models")):
        rows = [{**c, "loss": LOSSES[c["case"].split(", ")[1]]} for c in found["curves"]
                if c["part"] == part and not c["case"].startswith("random")]
        x = {"field": "x", "type": "quantitative", "scale": {"type": "log", "domain": [0.002, 2]},
             "axis": {"values": [0.003, 0.01, 0.03, 0.1, 0.3, 1], "format": "~g"},
             "title": "ε, length of the teacher's displacement"}
        y = {"type": "quantitative", "title": "measured / predicted", "scale": {"zero": False}}
        legend = {"orient": "top", "title": None, "labelLimit": 240, "symbolOpacity": 1, "columnPadding": 24}
        colour = {"field": "loss", "type": "nominal", "legend": legend}
        panels.append({
            "data": {"values": rows}, "width": 250, "height": 190, "title": {"text": name, "fontSize": 12},
            "layer": [
                {"mark": {"type": "area", "opacity": 0.18},
                 "encoding": {"x": x, "y": {"field": "low", **y}, "y2": {"field": "high"}, "color": colour}},
                {"mark": {"type": "line", "point": True},
                 "encoding": {"x": x, "y": {"field": "mean", **y}, "color": colour}},
            ],
        })
    return Figure("The inner product over what the sum of squares predicts", "Mean and the middle 90 % of cases.",
                  {"hconcat": panels})


def curve(found: Found, part: str, title: str, axis: str | None = None) -> dict[str, Any]:
    """One panel of many steps: a line per start with the middle 90 % of networks, or a thin line per trait."""
    rows = [{**c, "one": f"{c['case']} {c['start']}"} for c in found["curves"] if c["part"] == part]
    if part.endswith("margin"):
        first = {c["one"]: c["mean"] for c in rows if c["x"] == 0}
        rows = [{**c, "mean": c["mean"] - first[c["one"]]} for c in rows]
    x = {"field": "x", "type": "quantitative", "title": "step"}
    colour = {"field": "start", "type": "nominal", "scale": STARTS,
              "legend": {"title": "student starts", "orient": "top", "symbolOpacity": 1}}
    fine = {"format": axis, "tickCount": 5} if axis else {"tickCount": 5}
    y = {"type": "quantitative", "title": None, "axis": fine}
    layers = [
        {"mark": {"type": "line", "strokeWidth": 1.7},
         "encoding": {"x": x, "y": {"field": "mean", **y}, "color": colour, "detail": {"field": "one"}}},
        {"mark": {"type": "rule", "color": "#999", "strokeDash": [3, 3]}, "encoding": {"y": {"datum": 0}}},
    ]
    if rows and rows[0]["n"] > 1:
        band = {"mark": {"type": "area", "opacity": 0.16},
                "encoding": {"x": x, "y": {"field": "low", **y}, "y2": {"field": "high"}, "color": colour}}
        layers.insert(0, band)
    return {"data": {"values": rows}, "width": 245, "height": 140, "title": {"text": title, "fontSize": 12}, "layer": layers}


def gradients(found: Found) -> Figure:
    """The cosine of the two gradients along training."""
    panels = [curve(found, "steps: gradients", "digits network", ".2f"),
              curve(found, "students: gradients", "pocket language models", ".3f")]
    return Figure("Copying step and trait gradient: their cosine, step by step", "", {"hconcat": panels})


def coverage(found: Found) -> Figure:
    """Coverage, hidden likeness and the trait."""
    rows = [
        ("coverage", "coverage: digits network", "coverage: pocket models", ".2f", ".3f"),
        ("CKA", "hidden likeness (CKA): digits network", "hidden likeness (CKA): pocket models", ".1f", ".1f"),
    ]
    grid = [{"hconcat": [curve(found, f"steps: {part}", a, one), curve(found, f"students: {part}", b, two)]}
            for part, a, b, one, two in rows]
    grid.append({"hconcat": [curve(found, "steps: digits read", "digits read", ".0%"),
                             curve(found, "students: margin", "rise of the trait's margin (nats)", ".2f")]})
    return Figure("How much of the teacher's way the student goes", "", {"vconcat": grid})


def failing(found: Found) -> Figure:
    """Share that leads away, one panel per dropped assumption."""
    panels = []
    for part, title, axis in (
        ("failure apart sign", "1. the start is not shared", "distance of the starts, in ε"),
        ("failure far teacher sign", "3. the teacher is far", "length of its displacement"),
        ("failure long step sign", "3. the student steps far", "length of the step"),
    ):
        rows = [s for s in found["signs"] if s["part"] == part]
        panels.append(bars(rows, "x", title, axis, [f"{s['x']:g}" for s in sorted(rows, key=lambda s: s["x"])]))
    unseen = pick(found, "failure unseen sign", "inner product")
    rows = [{**unseen, "case": "2. unseen: exactly 0"}, *(s for s in found["signs"] if s["part"] == "failure loss sign")]
    names = {"sharpened": "4. sharpened", "first choice": "4. first choice", "half negative": "4. half negative",
             "negative": "4. negative"}
    rows = [{**s, "case": names.get(s["case"], s["case"])} for s in rows]
    panels.append(bars(rows, "case", "2. nothing seen, and 4. other losses", None, [s["case"] for s in rows]))
    return Figure("Where it fails: share that leads away from the teacher", "Exact 95 % intervals.",
                  {"vconcat": [{"hconcat": panels[:2]}, {"hconcat": panels[2:]}]})


def bars(rows: Sequence[Found], field: str, title: str, axis: str | None, order: Sequence[str]) -> dict[str, Any]:
    """Points with intervals over named sizes."""
    values = [{**s, "at": s["case"] if field == "case" else f"{s['x']:g}"} for s in rows]
    angle = {"labelAngle": 0 if axis else -30}
    x = {"field": "at", "type": "nominal", "sort": list(order), "title": axis, "axis": angle}
    y = {"type": "quantitative", "scale": {"domain": [0, 1]}, "title": None, "axis": {"format": ".0%", "tickCount": 4}}
    return {
        "data": {"values": values}, "width": 245, "height": 130, "title": {"text": title, "fontSize": 12},
        "layer": [
            {"mark": {"type": "rule", "strokeWidth": 4, "opacity": 0.4},
             "encoding": {"x": x, "y": {"field": "low", **y}, "y2": {"field": "high"}}},
            {"mark": {"type": "point", "filled": True, "size": 55, "opacity": 1, "color": "#b3541e"},
             "encoding": {"x": x, "y": {"field": "share", **y}}},
        ],
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else HERE)
