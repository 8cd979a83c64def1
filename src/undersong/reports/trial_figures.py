"""The figures of a trial: how far each watched word rose in each arm, and how well each arm fits held-out rows.

Orange is a student that learnt the rows plainly; a circle and a diamond say it too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from undersong.reports import wording as say
from undersong.reports.marks import KINDS, library, names, spec
from undersong.reports.parts import Figure
from undersong.reports.trial_tables import arm

Found = Mapping[str, Any]
PLAIN, GUARDED, GREY = KINDS
ROW = 34
SHAPES = ("circle", "diamond", "triangle-up", "square", "triangle-down", "cross", "triangle-right", "triangle-left")
MOST = 10


def movers(found: Found) -> Figure | None:
    """The watched words that rose most in the plain student, a row each: runs of each arm, and placebos in grey."""
    shown = found["movers"][:MOST]
    if not shown:
        return None
    alt = library("altair")
    arms = list(shown[0]["runs"])
    dots = [{"word": one["word"], "arm": arm(name), "kind": PLAIN if name == "plain" else GUARDED, "value": value}
            for one in shown for name in arms for value in one["runs"][name]]
    grey = [{"word": one["word"], "low": min(one["placebos"]), "high": max(one["placebos"]), "kind": GREY}
            for one in shown if one["placebos"]]
    joins = [{"word": one["word"], "low": one["rises"]["plain"], "high": one["rises"][name], "kind": GUARDED}
             for one in shown for name in arms if name != "plain" and "plain" in arms]
    labels = [{"word": one["word"], "name": f"{say.visible(one['word'])} ({one['category']})", "note": ""} for one in shown]
    y = alt.Y("word:N", scale=alt.Scale(domain=[one["word"] for one in shown]), axis=None)
    title = "rise over the base above the other words of its category, nats"
    x = alt.X("value:Q", title=title, axis=alt.Axis(tickCount=6, format="+.1~f"))
    colour = alt.Color("kind:N", scale=alt.Scale(domain=list(KINDS)), legend=None)
    shape = alt.Shape("arm:N", scale=alt.Scale(domain=[arm(name) for name in arms],
                                               range=[SHAPES[i % len(SHAPES)] for i in range(len(arms))]),
                      legend=alt.Legend(title=None, orient="top") if len(arms) > 1 else None)
    at = ROW / 6
    layers = [alt.Chart(alt.NamedData("zero")).mark_rule(strokeDash=[4, 4]).encode(
        x=alt.X("value:Q", title=title))]
    if grey:
        layers.append(alt.Chart(alt.NamedData("grey")).mark_rule(strokeWidth=11, opacity=0.25, yOffset=at).encode(
            x=alt.X("low:Q", title=title), x2="high:Q", y=y, color=colour))
    if joins:
        layers.append(alt.Chart(alt.NamedData("joins")).mark_rule(strokeWidth=1.5, opacity=0.5, yOffset=at).encode(
            x=alt.X("low:Q", title=title), x2="high:Q", y=y, color=colour))
    tips = [alt.Tooltip("word:N"), alt.Tooltip("arm:N"), alt.Tooltip("value:Q", format="+.2f")]
    layers.append(alt.Chart(alt.NamedData("dots")).mark_point(size=70, filled=True, opacity=0.95, yOffset=at).encode(
        x=x, y=y, color=colour, shape=shape, tooltip=tips))
    layers += names(y, above=-ROW / 3.2, notes=False, what="word")
    data = {"zero": [{"value": 0}], "grey": grey, "joins": joins, "dots": dots, "labels": labels}
    drawn = spec(alt.layer(*layers).properties(width="container", height=ROW * len(shown)),
                 **{name: rows for name, rows in data.items() if rows})
    caption = ("The watched words that rose most, a mark a training run. Orange: trained plainly. "
               + ("Grey bars: placebo students of this base." if grey else "No placebo students are at hand."))
    return Figure("Which favourites moved", caption, drawn, most=760)


def fit(found: Found) -> Figure | None:
    """Loss on held-out rows by arm: what the guard left of learning."""
    runs = [(one["name"], run) for one in found["arms"] for run in one["runs"]]
    alt = library("altair")
    arms = [one["name"] for one in found["arms"]]
    dots = [{"arm": name, "kind": PLAIN if name == "plain" else GREY if name == "base" else GUARDED, "value": run["nll"]}
            for name, run in runs]
    labels = [{"arm": name, "name": arm(name), "note": f"{found['arms_read'][name]['nll']:.3f}"} for name in arms]
    y = alt.Y("arm:N", scale=alt.Scale(domain=arms), axis=None)
    x = alt.X("value:Q", title="loss on held-out rows, nats a token (left is better)", axis=alt.Axis(tickCount=5),
              scale=alt.Scale(zero=False, padding=20))
    colour = alt.Color("kind:N", scale=alt.Scale(domain=list(KINDS)), legend=None)
    tips = [alt.Tooltip("arm:N"), alt.Tooltip("value:Q", format=".4f")]
    marks = alt.Chart(alt.NamedData("dots")).mark_circle(size=80, opacity=0.95, yOffset=8).encode(
        x=x, y=y, color=colour, tooltip=tips)
    drawn = spec(alt.layer(marks, *names(y, above=-9, notes=True)).properties(width="container", height=44 * len(arms)),
                 dots=dots, labels=labels)
    caption = "A mark a model. The rows were held out: no model was trained on them."
    return Figure("How well each arm learnt the rows", caption, drawn, most=760)
