"""Write the page of the kinship benchmark from its results: `python docs/kinship.py RESULTS.json [OUT_FOLDER]`.

Nothing here is measured anew: tables and figures are read off the results file (`benchmarks/kinship.py`).
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
HELD = "held out"
ACCENT, OTHER, GREY = "#b3541e", "#3b6ea5", "#8a8a8a"
ACCESS = {"bytes": "weights", "weights": "weights", "seed_print": "logits", "behaviour": "text", "phylogeny": "text",
          "relate": "all", "relate, weights": "weights", "relate, logits": "logits and text", "relate, text": "text"}
Line = Mapping[str, Any]


class Results:
    """A results file, by table."""

    def __init__(self, data: Mapping[str, Any]) -> None:
        self.data, self.rows = data, list(data["rows"])
        self.tests = [t for t in ACCESS if any(r.get("test") == t for r in self.rows)]

    def find(self, table: str, **where: Any) -> list[Line]:
        """The rows of a table with these values."""
        return [r for r in self.rows if r["table"] == table and all(r.get(k) == v for k, v in where.items())]

    def kinds(self, table: str) -> list[str]:
        """The kinds of pairs of a table, in order."""
        return list(dict.fromkeys(r["kind"] for r in self.find(table, part=HELD)))


def table(head: Sequence[str], lines: Iterable[Sequence[Any]]) -> str:
    """A markdown table."""
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(str(cell) for cell in row) + " |" for row in rows) + "\n"


def span(row: Line | None, key: str = "rate") -> str:
    """A share with its exact 95 % interval."""
    if row is None or row[key] is None:
        return "–"
    low, high = (row["low"], row["high"]) if key == "rate" else (row[f"{key}_low"], row[f"{key}_high"])
    return f"{100 * row[key]:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"


def counted(row: Line | None) -> str:
    """How many of how many."""
    return "–" if row is None else f"{row['called']} of {row['n']}"


def head(found: Results) -> str:
    """What was run, on what."""
    plan, data = found.data["plan"], found.data
    return f"""# Kinship: error rates on a family tree with a known truth

Measured on {data['date'][:10]} by `{data['command']}`; this page by `python docs/kinship.py
benchmarks/kinship.results.json`. Kin are called at p <= {data['alpha']}.

The tree: {len(plan['development']) + len(plan['held_out'])} pocket models of one configuration that saw the same rows in the
same order ({plan['steps']} steps) from different initialisations, descendants of each, look-alikes distilled on another
root, and other architectures. Tests were tuned on {len(plan['development'])} development roots and the shipped pocket
family; unless said otherwise, everything below is of the {len(plan['held_out'])} held-out roots. Controls of every pair are
{len(plan['development']) - 1} development roots: same rows, other initialisation. Pairs share models, so that the exact
(Clopper-Pearson) intervals, which take pairs as independent, are a little too narrow.
"""


def targets(found: Results) -> str:
    """The targets set beforehand."""
    lines = [(r["target"], r["goal"], r["measured"], "yes" if r["met"] else "**no**") for r in found.find("targets")]
    return "## Targets\n\n" + table(("target", "goal", "measured", "met"), lines)


def false_alarms(found: Results) -> str:
    """Strangers that were called kin."""
    text = "## Strangers called kin\n\nShare of pairs that were called `same_initialisation` and are not.\n\n"
    kinds = found.kinds("false_alarms")
    lines = []
    for test in found.tests:
        own = {r["kind"]: r for r in found.find("false_alarms", part=HELD, test=test)}
        lines.append((f"`{test}`", ACCESS[test], span(own.get("other seed")), *(counted(own.get(k)) for k in kinds)))
    return text + table(("test", "access", "other seed", *(f"{k}, pairs" for k in kinds)), lines)


def recall(found: Results) -> str:
    """Descendants that were found."""
    text = ("## Kin found\n\nA descendant against its root; `siblings`: two descendants of one root; `reordered`: one "
            "initialisation, the same rows in another order, trained apart from the first step; `crossed`: the average with "
            "a stranger's descendant, a model that no longer works.\n\n![Kin found](figures/kinship-recall.svg)\n\n")
    lines = []
    for kind in found.kinds("recall"):
        own = {r["test"]: r for r in found.find("recall", part=HELD, kind=kind)}
        lines.append((kind, *(counted(own.get(t)) for t in found.tests)))
    joint = found.find("recall", part=HELD, test="relate")
    exact = table(("kind", "`relate`, with interval"), [(r["kind"], span(r)) for r in joint])
    return text + table(("kind", *(f"`{t}`" for t in found.tests)), lines) + "\n" + exact


def overall(found: Results) -> str:
    """Precision and recall over all pairs."""
    lines = [(f"`{r['test']}`", ACCESS[r["test"]], r["queries"] or "–", span(r, "precision"), span(r, "recall"))
             for r in found.find("overall", part=HELD)]
    return ("## All pairs together\n\nLook-alikes count as strangers, averages as kin. Queries are prompts that each model "
            "answers.\n\n" + table(("test", "access", "queries a model", "precision", "recall"), lines))


def confusion(found: Results) -> str:
    """Truth against verdict of the joint answer."""
    text = "## Truth and verdict\n"
    for test in (t for t in found.tests if t.startswith("relate")):
        own = found.find("confusion", part=HELD, test=test)
        verdicts = list(dict.fromkeys(r["verdict"] for r in own))
        lines = [(f"`{truth}`", *(sum(r["n"] for r in own if (r["truth"], r["verdict"]) == (truth, v)) for v in verdicts))
                 for truth in dict.fromkeys(r["truth"] for r in own)]
        text += f"\n`{test}`\n\n" + table(("truth", *(f"`{v}`" for v in verdicts)), lines)
    return text


def family(found: Results) -> str:
    """The shipped models, pair by pair."""
    pairs = list(dict.fromkeys((r["a"], r["b"], r["kind"]) for r in found.find("pairs") if r["a"].startswith("pocket/")))
    tests = [t for t in found.tests if not t.startswith("relate,")]
    lines = []
    for a, b, kind in pairs:
        own = {r["test"]: r for r in found.find("pairs", a=a, b=b)}
        gap = own["seed_print"].get("excess")
        lines.append((f"{a}, {b}", kind, *(f"`{own[t]['verdict']}`" if t in own else "–" for t in tests), f"{gap:.2f}"))
    return ("## The shipped family\n\nTrained 25 times as long as the controls, which makes strangers more alike than the "
            "controls show: `seed_print` asks for more where that is so (`least_apart`), and the tests of text say nothing. "
            "This family was held out at first; `least_apart` was added after `seed_print` had called three of its "
            "strangers kin.\n\n"
            + table(("pair", "truth", *(f"`{t}`" for t in tests), "`seed_print`, share of the gap"), lines))


def development(found: Results) -> str:
    """The same on the pairs that tests were tuned on."""
    lines = []
    for test in found.tests:
        both = [found.find(name, part="development", test=test) for name in ("false_alarms", "recall")]
        lines.append((f"`{test}`", *(f"{sum(r['called'] for r in rows)} of {sum(r['n'] for r in rows)}" for rows in both)))
    return "## Development pairs, for comparison\n\n" + table(("test", "strangers called kin", "kin found"), lines)


def cost(found: Results) -> str:
    """Seconds per pair."""
    return "## Cost\n\nMedian seconds per pair on one busy core, controls read before.\n\n" + table(
        ("test", "seconds"), [(f"`{r['test']}`", f"{r['seconds']:.2f}") for r in found.find("cost")])


def figures(found: Results) -> dict[str, Figure]:
    """The figures there are results for, by name."""
    kinds = [*found.kinds("recall"), *found.kinds("false_alarms")]
    shown = [r for r in (*found.find("recall", part=HELD), *found.find("false_alarms", part=HELD))
             if r["test"] in ("weights", "seed_print", "behaviour", "phylogeny")]
    y = {"field": "kind", "type": "nominal", "sort": kinds, "title": None, "axis": {"labelLimit": 220}}
    x = {"type": "quantitative", "title": "share called kin", "scale": {"domain": [0, 1]}, "axis": {"format": "%"}}
    colour = {"field": "table", "type": "nominal", "legend": None,
              "scale": {"domain": ["recall", "false_alarms"], "range": [OTHER, ACCENT]}}
    bars = {"data": {"values": [dict(r) for r in shown]},
            "facet": {"column": {"field": "test", "type": "nominal", "title": None,
                                 "sort": ["weights", "seed_print", "behaviour", "phylogeny"]}},
            "spec": {"width": 150, "height": {"step": 20}, "layer": [
                {"mark": {"type": "rule", "strokeWidth": 6, "opacity": 0.3},
                 "encoding": {"y": y, "x": {"field": "low", **x}, "x2": {"field": "high"}, "color": colour}},
                {"mark": {"type": "point", "filled": True, "size": 50, "opacity": 1},
                 "encoding": {"y": y, "x": {"field": "rate", **x}, "color": colour}}]}}
    overlaps = [{"kind": r["kind"], "excess": r["excess"], "kin": r["kin"]}
                for r in found.find("pairs", part=HELD, test="seed_print")]
    strip = {"data": {"values": overlaps}, "height": {"step": 20}, "mark": {"type": "tick", "thickness": 2, "opacity": 0.6},
             "encoding": {"y": y, "x": {"field": "excess", "type": "quantitative",
                                        "title": "overlap of output directions: 0 unrelated, 1 equal"},
                          "color": {"field": "kin", "type": "nominal", "legend": None,
                                    "scale": {"domain": [True, False], "range": [OTHER, ACCENT]}}}}
    return {"recall": Figure("Pairs called kin, by test and kind", "Blue: kin. Orange: strangers. Bars are exact 95 % "
                             "intervals.", bars),
            "overlap": Figure("What next-token probabilities keep of the initialisation", "One tick per pair; blue: kin, "
                              "orange: strangers.", strip)}


def page(found: Results) -> str:
    """The whole page."""
    picture = ("## Output directions\n\nThe `seed_print` statistic of every pair, as a share of the way from unrelated (0) "
               "to equal (1).\n\n![Overlap](figures/kinship-overlap.svg)\n")
    return "\n".join((head(found), targets(found), false_alarms(found), recall(found), overall(found), confusion(found),
                      picture, family(found), development(found), cost(found)))


def main() -> None:
    """Read results, write the page and its figures."""
    found = Results(json.loads(Path(sys.argv[1]).read_text("utf-8")))
    out = Path(sys.argv[2]) if len(sys.argv) > 2 else HERE
    (out / "figures").mkdir(parents=True, exist_ok=True)
    (out / "kinship.md").write_text(page(found), "utf-8")
    for name, figure in figures(found).items():
        draw(figure, out / "figures" / f"kinship-{name}.svg", 460)


if __name__ == "__main__":
    main()
