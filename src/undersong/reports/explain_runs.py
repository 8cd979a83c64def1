"""The report of `undersong explain EXPERIMENT`: every explainer's scores, one dot a run, beside their baselines."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from undersong.errors import BadSpec
from undersong.reports import wording as say
from undersong.reports.marks import KINDS, library, spec
from undersong.reports.page import as_html, save
from undersong.reports.parts import Figure, Page, Section, flat, given, table_of
from undersong.reports.terminal import plain, put

BROKEN = (KeyError, TypeError, ValueError, AttributeError, IndexError)
Found = Mapping[str, Any]
MODEL, OTHER, GREY = KINDS
SERIES = ["#c2561f", "#2f6fa7", "#7d7d86", "#5a9e57", "#8c62a8", "#b8962e"]
"""One colour a line, so that no two series look alike."""
TITLES = {
    "gradient_alignment": "Do the rows pull towards the trait?", "coverage": "Did the student go where its teacher went?",
    "layer_sites": "Which layers carry it?", "attribution": "Which rows carried it?",
    "divergence_tokens": "At which tokens does the teacher's choice depend on its trait?",
    "token_entanglement": "Do word and carrier share a direction of the unembedding?",
    "marginal_or_conditional": "How often values stand, or what stands with what?",
}


def render(found: Found) -> str:
    """The page as a string; the same explanation gives the same bytes. Raises BadSpec for what is no such explanation."""
    try:
        name = say.visible(str(found["experiment"]))
        sections = (*(_section(one) for one in found["explanations"]), _again(found))
        about = f"{name}, an Undersong explanation of its runs"
        page = Page(f"Why it crossed: {name}", about, say.visible(found["sentence"]), sections)
    except BROKEN as error:
        raise _broken(error) from None
    return as_html(page)


def write(found: Found, path: str | Path) -> Path:
    """Render into a file, which appears whole or not at all."""
    return save(render(found), path)


def summary(found: Found, width: int = 110) -> str:
    """The tables as plain text of at most `width` characters a line; nothing in it can drive a terminal."""
    def printed(console: Any) -> None:
        from rich.text import Text

        console.print(Text("WHY IT CROSSED", style="bold"))
        for one in found["explanations"]:
            console.print(Text(f"\n{say.visible(one['explainer'])}: {say.visible(one['runs'][0]['sentence'])} (first run)"))
            put(_scores(one), console)
        for one in found["skipped"]:
            console.print(Text(f"- {say.visible(one['explainer'])}: {say.visible(one['says'])}"))

    try:
        return plain(printed, width)
    except BROKEN as error:
        raise _broken(error) from None


def _section(one: Found) -> Section:
    name = str(one["explainer"])
    first = one["runs"][0]["details"]
    figures = given(_dots(one), _layers(one), _grid(one), _text(first))
    lead = (f"{say.visible(one['runs'][0]['sentence'])} (the run of seed {one['runs'][0]['seed']})",)
    return Section(name.replace("_", "-"), TITLES.get(name, say.visible(name)), lead, figures=figures,
                   tables=given(_scores(one), _best(first)))


def _scores(one: Found) -> Any:
    rows = [(say.visible(s["name"]), f"{s['mean']:+.3f}", _spread(s), str(s["n_runs"])) for s in one["summary"][:24]]
    return table_of("Mean over runs", ("score", "mean", "95 % interval", "runs"), rows)


def _spread(s: Found) -> str:
    return say.DASH if s["low"] is None else f"[{s['low']:+.3f}, {s['high']:+.3f}]"


def _best(details: Found) -> Any:
    rows = [(say.visible(b["row"])[:90], f"{b['score']:+.3f}", say.visible(b["from"])) for b in details.get("best", ())]
    return table_of("Rows with the highest scores, first run", ("row", "score", "source"), rows) if rows else None


def _dots(one: Found) -> Figure:
    """One dot per run and score; the first score in orange, its baselines in grey."""
    alt = library("altair")
    shown = one["summary"][:10]
    names = [say.visible(s["name"]) for s in shown]
    kinds = [MODEL, *[GREY] * len(names)]
    dots = [{"score": n, "value": v, "kind": k} for n, s, k in zip(names, shown, kinds, strict=False) for v in s["values"]]
    means = [{"score": n, "value": s["mean"], "kind": k} for n, s, k in zip(names, shown, kinds, strict=False)]
    y = alt.Y("score:N", title=None, sort=names, axis=alt.Axis(labelLimit=320))
    x = alt.X("value:Q", title=say.visible(str(one["runs"][0]["details"].get("unit", "score"))))
    colour = alt.Color("kind:N", scale=alt.Scale(domain=list(KINDS)), legend=None)
    drawn = alt.layer(
        alt.Chart(alt.NamedData("dots")).mark_circle(size=60, opacity=0.75).encode(
            x=x, y=y, color=colour, tooltip=["score:N", "value:Q"]),
        alt.Chart(alt.NamedData("means")).mark_tick(thickness=3, size=18).encode(x=x, y=y, color=colour),
    ).properties(width="container", height=26 * len(names) + 30)
    return Figure("Every run", "A dot is a run, a bar their mean. Orange: what is asked. Grey: baselines and more scores.",
                  spec(drawn, dots=dots, means=means), most=760)


def _layers(one: Found) -> Figure | None:
    """Means over runs by layer, a line per series."""
    by: dict[tuple[str, int], list[float]] = defaultdict(list)
    for run in one["runs"]:
        for cell in run["details"].get("by_layer", ()):
            by[f"{cell['place']}, {cell['series']}", int(cell["layer"])].append(float(cell["value"]))
    if not by:
        return None
    alt = library("altair")
    points = [{"series": say.visible(series), "layer": layer, "value": sum(v) / len(v)} for (series, layer), v in by.items()]
    base = alt.Chart(alt.NamedData("points")).encode(
        x=alt.X("layer:O", title="decoder layer", axis=alt.Axis(labelAngle=0)),
        y=alt.Y("value:Q", title=str(one["runs"][0]["details"].get("unit", ""))),
        color=alt.Color("series:N", title=None, scale=alt.Scale(range=SERIES),
                        legend=alt.Legend(orient="bottom", columns=2, labelLimit=260)))
    drawn = alt.layer(base.mark_line(strokeWidth=2.5), base.mark_circle(size=60)).properties(width="container", height=240)
    return Figure("By layer", "Means over runs.", spec(drawn, points=points), most=760)


def _grid(one: Found) -> Figure | None:
    """The two by two: mean pull towards the trait, and towards other words."""
    by: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
    for run in one["runs"]:
        for cell in run["details"].get("grid", ()):
            by[cell["marginal"], cell["conditional"]].append((float(cell["pull"]), float(cell["other_words"])))
    if not by:
        return None
    alt = library("altair")
    means = {key: tuple(sum(x) / len(v) for x in zip(*v, strict=True)) for key, v in by.items()}
    most = max(abs(own) for own, _ in means.values()) or 1.0
    cells = [{"marginal": f"marginal {'kept' if m == 'keep' else 'destroyed'}", "pull": own,
              "conditional": f"conditional {'kept' if c == 'keep' else 'destroyed'}",
              "label": f"{own:+.4f}|(other words {off:+.4f})"} for (m, c), (own, off) in means.items()]
    base = alt.Chart(alt.NamedData("cells")).encode(
        x=alt.X("marginal:N", title=None, sort=None, axis=alt.Axis(labelAngle=0, orient="top")),
        y=alt.Y("conditional:N", title=None, sort=None))
    drawn = alt.layer(
        base.mark_rect(cornerRadius=4).encode(
            color=alt.Color("pull:Q", scale=alt.Scale(scheme="blueorange", domain=[-2 * most, 2 * most]), legend=None)),
        base.mark_text(fontSize=13, lineBreak="|", dy=-6).encode(text="label:N")).properties(width=460, height=180)
    return Figure("The two by two", "Pull of each scramble's rows, less that of clean rows, along the trait's gradient, in "
                  "lengths of the whole pull: mean over runs. In brackets the same for other words of the category.",
                  spec(drawn, cells=cells), most=640)


def _text(details: Found) -> Figure | None:
    """Rows of tokens with their credit: what the first run looks like."""
    rows: Sequence[Found] = details.get("text", ())
    if not rows:
        return None
    alt = library("altair")
    cells = [{"row": i, "at": k, "token": say.visible(token).strip()[:8] or say.DASH, "credit": credit, "marked": bool(mark)}
             for i, row in enumerate(rows[:6])
             for k, (token, mark, credit) in enumerate(zip(row["tokens"], row["marked"], row["credit"], strict=True))
             if k < 24]
    base = alt.Chart(alt.NamedData("cells")).encode(
        x=alt.X("at:O", title="token", axis=alt.Axis(labels=False, ticks=False)), y=alt.Y("row:O", title="row", axis=None))
    drawn = alt.layer(
        base.mark_rect().encode(
            color=alt.Color("credit:Q", title="credit", scale=alt.Scale(scheme="blueorange", domain=[-1, 1])),
            stroke=alt.condition("datum.marked", alt.value("black"), alt.value("white")), tooltip=["token:N", "credit:Q"]),
        base.mark_text(fontSize=9).encode(text="token:N")).properties(width="container", height=26 * min(6, len(rows)))
    return Figure("A few rows", "Colour: how much learning the token raises the trait's margin above other words', as a "
                  "share of the largest. Framed: divergence tokens.", spec(drawn, cells=cells), most=760)


def _again(found: Found) -> Section:
    settings = [("experiment", found["experiment"]), ("base", found["base"]), ("trait", found["trait"]),
                ("seeds", ", ".join(map(str, found["seeds"]))), ("seconds", f"{found['seconds']:,.1f}")]
    left = [(say.visible(s["explainer"]), say.visible(s["says"])) for s in found["skipped"]]
    return Section("reproduce", "Make it again", command=say.visible(found.get("command", "")), tables=given(
        table_of("Settings", ("what", "value"), [(n, say.visible(str(v))) for n, v in settings]),
        table_of("Not explained", ("explainer", "why"), left) if left else None),
        more="Environment", more_tables=given(table_of("Environment", ("what", "value"), flat(found["environment"]))))


def _broken(error: Exception) -> BadSpec:
    return BadSpec(f"This is no explanation of an experiment ({type(error).__name__}: {error}). Run `undersong explain` "
                   "again.")
