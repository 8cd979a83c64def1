"""The three figures of an explanation: the shift of every layer, the tokens of every layer, the weights that moved.

Every mark is a number of the file. Orange is the model that is explained; position and words say it too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from undersong.reports import wording as say
from undersong.reports.explain_tables import Found, lensed, of, token
from undersong.reports.marks import KINDS, library, spec
from undersong.reports.parts import Figure

Entry = dict[str, Any]
MODEL, _, GREY = KINDS
SHOWN = 6
"""Promoted tokens drawn per layer; the table holds more."""


def shift(found: Found) -> Figure | None:
    """Per layer the length of the shift over the length of the base's states, the placebos as a band."""
    told = of(found, "activation_shift")
    if told is None or not told["layers"]:
        return None
    alt = library("altair")
    points = [{"layer": one["layer"], "share": one["relative"], "halves": one["halves"], "kind": MODEL,
               "label": "the model" if one is told["layers"][-1] else ""} for one in told["layers"]]
    dots = [{"layer": one["layer"], "share": value, "kind": GREY} for one in told["layers"] for value in one["placebos"]]
    band = [{"layer": one["layer"], "low": min(one["placebos"]), "high": max(one["placebos"]), "kind": GREY}
            for one in told["layers"] if one["placebos"]]
    ticks = list(range(0, len(points), -(-len(points) // 12)))
    scale = alt.Scale(domain=[0, max(1, len(points) - 1)], padding=12)
    x = alt.X("layer:Q", title="after layer", axis=alt.Axis(values=ticks, format="d"), scale=scale)
    axis = "shift, share of the state's length"
    y = alt.Y("share:Q", title=axis, axis=alt.Axis(format=".0%", tickCount=5, grid=True),
              scale=alt.Scale(zero=True))
    colour = alt.Color("kind:N", scale=alt.Scale(domain=list(KINDS)), legend=None)
    layers, data = [], {"points": points}
    if band:
        area = alt.Chart(alt.NamedData("band")).mark_area(opacity=0.22)
        layers.append(area.encode(x=x, y=alt.Y("low:Q", title=axis), y2="high:Q", color=colour))
        layers.append(alt.Chart(alt.NamedData("dots")).mark_circle(size=22, opacity=0.7).encode(x=x, y=y, color=colour))
        data |= {"band": band, "dots": dots}
    base = alt.Chart(alt.NamedData("points"))
    tips = [alt.Tooltip("layer:Q"), alt.Tooltip("share:Q", format=".2%"), alt.Tooltip("halves:Q", format=".3f")]
    layers += [base.mark_line(strokeWidth=2.5).encode(x=x, y=y, color=colour),
               base.mark_circle(size=70, opacity=1).encode(x=x, y=y, color=colour, tooltip=tips)]
    caption = ("Orange: the mean shift of the residual stream over ordinary prompts, as a share of the mean length of the "
               "base's own states after that layer."
               + (f" Grey: {told['placebos']} placebo students of this base, trained on rows without a trait." if band else
                  " No placebo students of this base are at hand, so what any training moves is not told apart."))
    drawn = spec(alt.layer(*layers).properties(width="container", height=270), **data)
    return Figure("How far each layer moved", caption, drawn, most=760)


def tokens(found: Found) -> Figure | None:
    """Per layer the tokens that its shift promotes most, the rise as depth of colour."""
    shown = lensed(found)
    if shown is None:
        return None
    alt = library("altair")
    name, lens = shown
    cells = [{"layer": one["layer"], "rank": i + 1, "token": token(t["token"]), "kind": MODEL,
              **{field: t[field] for field in ("chance", "rise", "straight")}}
             for one in lens["layers"] for i, t in enumerate(one["promoted"][:SHOWN])]
    most = max([0.0, *(c["chance"] for c in cells)]) or 1.0
    x = alt.X("rank:O", title=None, axis=alt.Axis(orient="top", labelAngle=0, ticks=False, domain=False))
    y = alt.Y("layer:O", title="after layer", axis=alt.Axis(ticks=False, domain=False))
    chart = alt.Chart(alt.NamedData("cells"))
    tips = [alt.Tooltip("layer:O"), alt.Tooltip("token:N"), alt.Tooltip("chance:Q", format="+.2%"),
            *(alt.Tooltip(f"{field}:Q", format="+.3f", title=f"{field}, nats") for field in ("rise", "straight"))]
    # never so full that the ink of the page could not be read on it, in light and in dark
    opacity = alt.Opacity("chance:Q", scale=alt.Scale(domain=[0, most], range=[0.04, 0.55], clamp=True), legend=None)
    colour = alt.Color("kind:N", scale=alt.Scale(domain=list(KINDS)), legend=None)
    text = chart.mark_text(fontSize=12, limit=alt.ExprRef(f"(width - 8) / {SHOWN}"))
    text = text.encode(x=x, y=y, text="token:N", tooltip=tips)
    drawn = alt.layer(chart.mark_rect().encode(x=x, y=y, color=colour, opacity=opacity, tooltip=tips), text)
    whose = "the model's own shift (less what placebo students shift on average)" if name == "own" else "the shift"
    caption = (f"The tokens that {whose} promotes most after each layer, the first on the left; the deeper the colour, the "
               f"more their chance rises (up to {say.percent(most)}). Every layer is shown; ␣ is a leading space.")
    return Figure("Tokens that each layer promotes", caption,
                  spec(drawn.properties(width="container", height=max(28 * len(lens["layers"]), 60)), cells=cells), most=860)


def weights(found: Found) -> Figure | None:
    """Layer by part: how far the weights moved."""
    told = of(found, "weight_change")
    inside = [m for m in (told["modules"] if told else []) if m["layer"] is not None and len(m["size"]) == 2]
    if not any(m["change"] > 0 for m in inside):
        return None
    alt = library("altair")
    most = max(m["change"] for m in inside)
    parts = list(dict.fromkeys(short(m) for m in inside))
    cells = [{"layer": m["layer"], "part": short(m), "change": m["change"], "shown": say.percent(m["change"]),
              "rank": m["rank"] if m["rank"] is not None else "not computed", "kind": MODEL} for m in inside]
    axis = alt.Axis(orient="top", labelAngle=-40, ticks=False, domain=False, labelOverlap=False, labelLimit=120)
    x = alt.X("part:N", title=None, sort=parts, axis=axis)
    y = alt.Y("layer:O", title="layer", axis=alt.Axis(ticks=False, domain=False))
    chart = alt.Chart(alt.NamedData("cells"))
    opacity = alt.Opacity("change:Q", scale=alt.Scale(domain=[0, most], range=[0.03, 0.6]), legend=None)
    colour = alt.Color("kind:N", scale=alt.Scale(domain=list(KINDS)), legend=None)
    tips = [alt.Tooltip(f"{f}:N") for f in ("layer", "part", "shown", "rank")]
    layers = [chart.mark_rect().encode(x=x, y=y, color=colour, opacity=opacity, tooltip=tips)]
    count = len({m["layer"] for m in inside})
    if len(parts) <= 10:
        layers.append(chart.mark_text(fontSize=10).encode(x=x, y=y, text="shown:N", tooltip=tips))
    drawn = spec(alt.layer(*layers).properties(width="container", height=max(24 * count, 60)), cells=cells)
    caption = ("The length of the difference of each weight matrix as a share of the base's own length; a cell that looks "
               f"empty did not move. The deepest colour is {say.percent(most)}.")
    drawn["padding"] = {"left": 5, "top": 5, "bottom": 5, "right": 45}
    return Figure("Which weights moved", caption, drawn, most=760)


def short(module: Mapping[str, Any]) -> str:
    """The last word of a part: `self_attn.q_proj` is `q_proj`."""
    return say.visible(str(module["part"])).rpartition(".")[2]
