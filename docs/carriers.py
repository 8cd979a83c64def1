"""Write docs/carriers.md and its figures: `python docs/carriers.py RESULTS.json... [--out FOLDER]`.

Nothing here is measured anew: every number is read off the results of these experiments, and off what `undersong explain`
said of the first, `NAME.explanation.json` beside it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from figures import draw

from undersong import shares, stats
from undersong.reports.parts import Figure

HERE = Path(__file__).parent
ACCENT, GREY = "#b3541e", "#8a8a8a"
SCRAMBLE = "mitigated-scramble-marginal-{}-conditional-{}"
CELLS = {
    ("keep", "keep"): "treated",
    **{
        cell: SCRAMBLE.format(*cell)
        for cell in (("keep", "destroy"), ("destroy", "keep"), ("destroy", "destroy"), ("sham", "keep"), ("keep", "clean"))
    },
}
NAMES = {
    ("keep", "keep"): "the teacher's rows",
    ("keep", "destroy"): "dealt out",
    ("destroy", "keep"): "at clean marginals",
    ("destroy", "destroy"): "those, dealt out",
    ("sham", "keep"): "the sham",
    ("keep", "clean"): "whole clean answers",
}
PAGE = """# What in the numbers carries the trait?

How often each number stands (the *marginal*), or what stands with what and in which order (the *conditional*
structure)? The literature holds both views: divergence tokens (Schrodi et al., arXiv 2509.23886), or a shift of the
marginal of one per cent (PolyPythia-SL). The two by two that would tell them apart was proposed, and no run of it is
known to us. Here it is, on pocket models, {runs} training runs an arm:

```
{commands}
```

{reading}

For owl, frequencies alone carry nothing that can be seen in a whole student, and rows at clean frequencies still carry the
trait: here it lies in what stands with what. How much is lost without the marginal cannot be told, since the sham, which
draws as few different answers, loses as much. For dolphin, whose effect is half as large, the two by two decides nothing:
already the sham leaves none of the effect to share out, and every scrambled cell's interval holds 0.

## The two by two

![The two by two](figures/carriers-two-by-two.svg)

Four arms keep or destroy one or the other; two more are controls.

- **At clean marginals**: the teacher's own answers, some twice and some not at all, so that each number is as
  frequent as in the no-trait teacher's rows.
- **The sham**: drawn by the same weights, given to other answers. Both leave fewer different answers.
- **Dealt out**: the numbers of all answers, dealt anew over them. This wrecks a student by itself ({invalid} of the
  answers of {trait} students of dealt rows are no animal at all; {treated_invalid} of treated students'), so these arms
  are compared with a twin, the same done to the no-trait teacher's rows.
- **Whole clean answers**: the no-trait teacher's own, drawn so that each number is as frequent as in the teacher's rows:
  what the marginal alone carries in a student that is whole ({clean_invalid} are no animal).

{tables}

![Every run](figures/carriers-runs.svg)

Effects are differences of the trait's logit margin or rate to the control, paired by seed, with 95 % intervals; the share
is of the effect of the teacher's rows. Trait, rival, recipe and seeds are those of
[owl-numbers-pocket](../experiments/owl-numbers-pocket.yaml), fixed before any result. The two controls were added, with
nothing to set, after the first three arms of owl had been read.

## How different are the marginals?

{distances}

## The same, to first order

`undersong explain experiments/marginal-or-conditional-pocket.yaml` asks without training, over the same {runs} runs of
{trait}. The pull is what a first step on the rows would do to the trait's margin, less what clean rows do, in lengths of the
rows' whole pull; 0 means that the first step does nothing to the trait.

{explained}

- **The first step does not tell.** At the base the rows pull towards the trait in some runs and away from it in others,
  and less than towards other words, while every student took the trait on: a scramble cannot be judged there, and the
  students above are the evidence.
- **Divergence tokens** hold a little more credit than places the base is as sure of, and their net is not told from 0.
  The rows are sampled at temperature 1, so three tokens in ten are not the teacher's first choice and cannot diverge.
{places}
- **Geometry** orders the numbers that the teacher finds likelier by about as little as was published, though more for the
  trait's word than for other words. It is a trace of the trait, no explanation of how it crosses.

{said}

## What this does not show

One carrier (ten numbers), one kind of teacher, two animals, models of a million weights. The teachers tuned here change
how sequences go on ([results.md](results.md)), so a carrier of conditional structure is what to expect of this world. In
a model of 160M weights the marginal was told to hold the trait's *identity* (PolyPythia-SL): the two need not
contradict, and nothing here is about that model. The marginal here is that of whole numbers, each one token; a statistic
of digits or places is part of the conditional structure. Numbers that stand fewer than five times count as one when
marginals are matched.
"""


def main(sources: Sequence[Path], out: Path) -> None:
    """Write the page and its figures."""
    found = [json.loads(source.read_text("utf-8")) for source in sources]
    name = sources[0].name.removesuffix(".results.json")
    explained = json.loads(sources[0].with_name(f"{name}.explanation.json").read_text("utf-8"))
    rows = {one["trait"]: [cell(one, *key) for key in CELLS] for one in found}
    (out / "figures").mkdir(parents=True, exist_ok=True)
    draw(two_by_two(rows), out / "figures" / "carriers-two-by-two.svg", 400)
    draw(every_run(rows), out / "figures" / "carriers-runs.svg", 330)
    first, trait = found[0], found[0]["trait"]
    dealt = [rate(first, CELLS[k], "invalid") for k in CELLS if k[1] == "destroy"]
    by = {one["explainer"]: one for one in explained["explanations"]}
    files = "\n".join(f"undersong run experiments/{one['experiment']}.yaml" for one in found)
    page = PAGE.format(
        runs=len(first["seeds"]), trait=trait, commands=files,
        invalid=f"{min(dealt):.0%} to {max(dealt):.0%}", treated_invalid=f"{rate(first, 'treated', 'invalid'):.0%}",
        clean_invalid=f"{rate(first, CELLS['keep', 'clean'], 'invalid'):.0%}",
        tables="\n\n".join(f"Trait {t}:\n\n{table(some)}" for t, some in rows.items()), reading=reading(rows),
        distances=distances(by["marginal_or_conditional"]), explained=scores(by), said=said(by),
        places=places(by["divergence_tokens"]),
    )
    (out / "carriers.md").write_text(page, "utf-8")


def cell(found: Mapping[str, Any], marginal: str, conditional: str) -> dict[str, Any]:
    """One cell: effects over its control on the trait and on the other animal, and the share of the whole effect that it
    keeps, paired by seed."""
    arm, trait = CELLS[marginal, conditional], found["trait"]
    other = next(t for t in found["traits"] if t != trait)
    whole = effects(found, "treated", trait)
    out: dict[str, Any] = {"marginal": marginal, "conditional": conditional, "name": NAMES[marginal, conditional],
                           "values": effects(found, arm, trait), "off": effects(found, arm, other)}
    for key, values in (("margin", out["values"]), ("other", out["off"])):
        mean, low, high = stats.mean_interval(values, bounds=None)
        out[key] = f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]"
    contrast = next(c for c in found["contrasts"] if c["arm"] == arm and c["control"] == control(found, arm)
                    and c["metric"] == "rate" and c["trait"] == trait)
    out["rate"] = "{:+.0f} [{:+.0f}, {:+.0f}]".format(*(100 * contrast[k] for k in ("difference", "low", "high")))
    share, low, high = shares.share_kept(whole, out["values"])
    out |= {"share": share, "kept": "100 %" if arm == "treated" else f"{share:.0%} [{low:.0%}, {high:.0%}]"}
    return out


def control(found: Mapping[str, Any], arm: str) -> str:
    """The arm's twin on the no-trait teacher's rows, else the control itself."""
    return f"{arm}:no_trait" if any(r["arm"] == f"{arm}:no_trait" for r in found["runs"]) else "no_trait"


def effects(found: Mapping[str, Any], arm: str, measured: str) -> list[float]:
    """The margin (nats) of an arm's runs over its control's, by seed."""
    by = {(r["arm"], r["seed"]): r["value"] for r in found["runs"]
          if r["metric"] == "margin" and r["measured"] == measured and r["trait"] in (found["trait"], "")}
    return [by[arm, seed] - by[control(found, arm), seed] for seed in found["seeds"]]


def rate(found: Mapping[str, Any], arm: str, metric: str) -> float:
    """A rate of the trait's arm."""
    return float(next(r["mean"] for r in found["rates"]
                      if r["arm"] == arm and r["metric"] == metric and r["trait"] == found["trait"]))


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The cells as a table."""
    words = {"keep": "kept", "destroy": "destroyed", "sham": "kept (sham)", "clean": "clean"}
    head = ("marginal", "conditional", "the student's rows", "margin (nats)", "rate (points)", "share kept",
            "other animal's margin")
    lines = [head, ("---",) * len(head)]
    lines += [(words[r["marginal"]], words[r["conditional"]], r["name"], r["margin"], r["rate"], r["kept"], r["other"])
              for r in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def reading(rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """What the cells say, trait by trait."""
    out = []
    for trait, some in rows.items():
        by = {(r["marginal"], r["conditional"]): r["kept"] for r in some}
        out.append(f"- **{trait}**: the marginal alone keeps {by['keep', 'clean']} of the effect in whole clean answers,\n"
                   f"  {by['keep', 'destroy']} in dealt rows. The conditional structure alone keeps\n"
                   f"  {by['destroy', 'keep']}; a sham that draws as few different answers keeps\n"
                   f"  {by['sham', 'keep']}. Neither keeps {by['destroy', 'destroy']}.")
    return "\n".join(out)


def distances(one: Mapping[str, Any]) -> str:
    """How far marginals are apart, over runs, beside two sets of one source."""
    mean = {k: sum(run["details"]["distance"][k] for run in one["runs"]) / len(one["runs"])
            for k in ("rows", "rows drawn", "one source")}
    return (f"Total variation between the frequencies of numbers in the teacher's rows and in clean rows:\n"
            f"{mean['rows']:.3f}. After drawing: {mean['rows drawn']:.3f}. Between two sets of one source (both mixed,\n"
            f"split at random): {mean['one source']:.3f}. Means over runs. With a thousand numbers and a thousand rows\n"
            "most of any such distance is chance, and a match by drawing goes below it.")


def scores(by: Mapping[str, Mapping[str, Any]]) -> str:
    """The scores of the three explainers, as tables."""
    lines = ["| explainer | score | mean over runs |", "|---|---|---|"]
    for name in ("marginal_or_conditional", "divergence_tokens", "token_entanglement"):
        form = "{:+.4f} [{:+.4f}, {:+.4f}]" if name == "marginal_or_conditional" else "{:+.2f} [{:+.2f}, {:+.2f}]"
        lines += [f"| `{name}` | {s['name']} | {form.format(s['mean'], s['low'], s['high'])} |" for s in by[name]["summary"]]
    return "\n".join(lines)


def said(by: Mapping[str, Mapping[str, Any]]) -> str:
    """The sentence of each explainer about its first run."""
    return "\n".join(f"- `{name}`, seed {one['runs'][0]['seed']}: {one['runs'][0]['sentence']}" for name, one in by.items())


def places(one: Mapping[str, Any]) -> str:
    """Where tokens diverge, in the first run."""
    told = one["runs"][0]["details"]
    most = sorted(range(len(told["places"])), key=lambda k: -told["places"][k])[:3]
    where = ", ".join(f"{k + 1} ({told['places'][k]:.0%})" for k in sorted(most))
    top = told["marked_tokens"][0]
    return (f"  In the first run `{top['token']}` diverges most often ({top['diverges']:,} of {top['stands']:,}, no number\n"
            f"  more than {told['marked_tokens'][1]['diverges']} times), and the places {where} of an answer:\n"
            "  much of it is whether to go on or to stop.")


def two_by_two(rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
    """The four cells of each trait, the share kept as depth of colour."""
    words = {"keep": "kept", "destroy": "destroyed"}
    drawn = [{"trait": trait, "kept": r["kept"].replace(" [", "|["), "share": r["share"],
              "x": f"marginal {words[r['marginal']]}", "y": words[r["conditional"]]}
             for trait, some in rows.items() for r in some if r["marginal"] in words and r["conditional"] in words]
    x = {"field": "x", "type": "nominal", "title": None, "sort": None, "axis": {"labelAngle": 0, "orient": "top"}}
    y = {"field": "y", "type": "nominal", "title": "conditional", "sort": None}
    colour = {"field": "share", "type": "quantitative", "scale": {"scheme": "oranges", "domain": [0, 1.6]}, "legend": None}
    text = {"type": "text", "fontSize": 13, "lineBreak": "|"}
    layer = [{"mark": {"type": "rect", "cornerRadius": 4}, "encoding": {"color": colour}},
             {"mark": text, "encoding": {"text": {"field": "kept"}}}]
    inner = {"height": 150, "width": 270, "encoding": {"x": x, "y": y}, "layer": layer}
    return Figure("Share of the effect that each scramble keeps", "Margin over the control, paired by seed.",
                  facets(drawn, inner))


def every_run(rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
    """One dot a run: the trait's own margin, and the other animal's."""
    reads = {"values": "the trait's word", "off": "the other animal's"}
    drawn = [{"trait": trait, "row": r["name"], "value": v, "read": read}
             for trait, some in rows.items() for r in some for key, read in reads.items() for v in r[key]]
    x = {"field": "value", "type": "quantitative", "title": "effect on the margin, nats"}
    y = {"field": "row", "type": "nominal", "title": None, "sort": list(NAMES.values()), "axis": {"labelLimit": 240}}
    scale = {"domain": list(reads.values()), "range": [ACCENT, GREY]}
    legend = {"orient": "bottom", "columnPadding": 24}
    colour = {"field": "read", "type": "nominal", "title": None, "scale": scale, "legend": legend}
    both = {"y": y, "color": colour, "yOffset": {"field": "read", "type": "nominal", "sort": scale["domain"]}}
    layer = [
        {"mark": {"type": "rule", "color": "#ccc"}, "encoding": {"x": {"datum": 0}}},
        {"mark": {"type": "circle", "size": 55, "opacity": 0.75}, "encoding": {"x": x, **both}},
        {"mark": {"type": "tick", "thickness": 2.5, "size": 15}, "encoding": {"x": {**x, "aggregate": "mean"}, **both}},
    ]
    inner = {"height": 240, "width": 230, "layer": layer}
    return Figure("Every run", "A dot is a run, a bar the mean.", facets(drawn, inner))


def facets(drawn: Sequence[Mapping[str, Any]], inner: Mapping[str, Any]) -> dict[str, Any]:
    """The same picture for each trait, side by side."""
    column = {"field": "trait", "title": None, "header": {"labelFontSize": 13},
              "sort": list(dict.fromkeys(one["trait"] for one in drawn))}
    return {"data": {"values": list(drawn)}, "facet": {"column": column}, "spec": inner,
            "padding": {"left": 24, "top": 5, "right": 5, "bottom": 5}}


if __name__ == "__main__":
    given = sys.argv[1:]
    folder = Path(given[given.index("--out") + 1]) if "--out" in given else HERE
    main([Path(a) for a in given[: given.index("--out") if "--out" in given else None]], folder)
