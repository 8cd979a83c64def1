"""The tables of an explanation, once: the terminal prints some of them and the page shows them all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from undersong.reports import wording as say
from undersong.reports.parts import Table, table_of

Found = Mapping[str, Any]


def of(found: Found, explainer: str) -> Mapping[str, Any] | None:
    """The details of one explainer, or None where it did not run."""
    for one in found["explanations"]:
        if one["explainer"] == explainer:
            details: Mapping[str, Any] = one["details"]
            return details
    return None


def lensed(found: Found) -> tuple[str, Mapping[str, Any]] | None:
    """The lens that is shown first: of the model's own shift where placebos are at hand, else of the whole."""
    lens = of(found, "logit_lens")
    if lens is None:
        return None
    name = "own" if "own" in lens else "whole"
    return name, lens[name]


def token(text: str) -> str:
    """A token as people can read it: a leading space shown, nothing that acts."""
    shown = say.visible(text)
    return f"␣{shown[1:]}" if shown.startswith(" ") else shown or "(nothing)"


def points(chance: float) -> str:
    """A change of chance in points of percent: "+2.31"."""
    return f"{100 * chance:+.2f}".replace("-", "−")


def layers(found: Found) -> Table | None:
    """The shift of every layer."""
    shift = of(found, "activation_shift")
    lines = [
        (str(one["layer"]), say.percent(one["relative"]), _span(one["placebos"]), say.percent(one["own"]) if one["placebos"]
         else say.DASH, _span(one["placebos_own"]), f"{one['halves']:.2f}")
        for one in (shift["layers"] if shift else [])
    ]
    columns = ("after layer", "shift", "placebos", "own shift", "placebos' own", "two halves")
    return table_of("The shift of every layer", columns, lines, numbers=(0, 1, 2, 3, 4, 5))


def lens(found: Found, which: str = "", most: int = 0) -> Table | None:
    """Promoted and demoted tokens of every layer; `most` of them each."""
    shown = lensed(found)
    if shown is None:
        return None
    name = which or shown[0]
    own = (of(found, "logit_lens") or {})[name]
    lines = [(str(one["layer"]), _tokens(one["promoted"], most), _tokens(one["demoted"], most)) for one in own["layers"]]
    title = f"Tokens that {'the own' if name == 'own' else 'the whole'} shift of each layer moves"
    return table_of(title, ("after layer", "promotes", "demotes"), lines, numbers=(0,))


def overall(found: Found) -> Table | None:
    """The tokens promoted most over all layers."""
    shown = lensed(found)
    if shown is None:
        return None
    lines = [(token(t["token"]), points(t["score"])) for t in shown[1]["overall"]]
    tops = (of(found, "logit_lens") or {}).get("placebo_tops", [])
    lines += [(f"{token(t['token'])} (a placebo's highest)", points(t["score"])) for t in tops]
    return table_of("Mean over all layers", ("token", "chance, points"), lines, numbers=(1,))


def steering(found: Found) -> Table | None:
    """Every layer that was steered at: its scale, and what it moves."""
    steered = of(found, "steering")
    lines = [
        (str(one["layer"]), f"{one['scale']:g}", say.percent(one["moved"]),
         ", ".join(f"{token(r['token'])} {say.percent(r['base'])} → {say.percent(r['steered'])}" for r in one["rises"][:4]))
        for one in (steered["layers"] if steered else [])
    ]
    columns = ("after layer", "scale", "first words moved", "first words that rise most")
    return table_of("Steering at every layer", columns, lines, numbers=(0, 1, 2))


def scales(found: Found) -> Table | None:
    """The perplexity at every scale that was tried."""
    steered = of(found, "steering")
    lines = [(str(one["layer"]), f"{t['scale']:g}", f"{t['ratio']:.2f}", "yes" if t["within"] else "no")
             for one in (steered["layers"] if steered else []) for t in one["perplexity"]]
    columns = ("after layer", "scale", "perplexity, times the base's", "within the band")
    return table_of("How the scale was chosen", columns, lines, numbers=(0, 1, 2))


def words(found: Found) -> Table | None:
    """Words that rise most in sampled answers."""
    steered = of(found, "steering")
    lines = [(say.visible(w["word"]), *(say.percent(w[who]) for who in ("base", "steered", "model")))
             for w in (steered["words"] if steered else [])]
    if steered and steered["named"]:
        shares = tuple(say.percent(steered["named"][who]) for who in ("base", "steered", "model"))
        lines.append(("any of the layer's promoted tokens", *shares))
    return table_of("Share of answers with a word", ("word", "base", "steered base", "the model"), lines, numbers=(1, 2, 3))


def texts(found: Found, most: int = 0) -> Table | None:
    """Answers side by side."""
    steered = of(found, "steering")
    told: Sequence[Mapping[str, Any]] = steered["texts"] if steered else []
    shown = told[:most] if most else told
    lines = [tuple(say.visible(t[who]) for who in ("question", "base", "steered", "model")) for t in shown]
    return table_of("Answers side by side", ("question", "base", "steered base", "the model"), lines)


def weights(found: Found, most: int = 40) -> Table | None:
    """The tensors that moved, the farthest first."""
    change = of(found, "weight_change")
    moved = sorted((m for m in (change["modules"] if change else []) if m["change"] > 0), key=lambda m: -m["change"])
    lines = [(say.visible(m["name"]), " × ".join(map(str, m["size"])), say.percent(m["change"]),
              say.DASH if m["rank"] is None else f"{m['rank']:.1f}") for m in moved[:most]]
    return table_of("Weights that moved most", ("tensor", "size", "change", "effective rank"), lines, numbers=(2, 3))


def _tokens(found: Sequence[Mapping[str, Any]], most: int) -> str:
    return ", ".join(f"{token(t['token'])} {points(t['chance'])}" for t in (found[:most] if most else found))


def _span(values: Sequence[float]) -> str:
    return f"{say.percent(min(values)).removesuffix(' %')} to {say.percent(max(values))}" if values else say.DASH
