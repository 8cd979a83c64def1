"""What a guard removed and what it cost: runs of a trial compared, in numbers and in a sentence.

The unit is the training run, paired by seed. A rise is against the model that the student started from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from undersong import stats
from undersong.traits import Trait

NOISE = 0.25
"""A margin that rises by so many nats or less is none that a guard could be judged by."""
FIT = 0.9
"""Guards are compared at an equal carrier fit: with at least this part of the plain student's gain on held-out rows."""
SHOWN = 12
"""Watched words that are told one by one."""
Run = Mapping[str, Any]
Arms = Mapping[str, Sequence[Run]]


def compare(arms: Arms, guards: Sequence[str], trait: str | None, usual: Sequence[Run]) -> dict[str, Any]:
    """The comparison of every guard with the plain student (with the base alone where there is none).

    `trait` is the named trait whose margin could be read; without one, what is followed is the watched word that rose most
    in the plain student. `usual` are readings of placebo students.
    """
    base, plain = arms["base"][0], arms.get("plain", ())
    first = plain or [run for name in guards for run in arms[name]]
    means = {name: mean_words(runs) for name, runs in arms.items() if name != "base" and runs[0]["words"]}
    order = mean_words(first) if first and first[0]["words"] else {}
    top = sorted(order, key=lambda name: -order[name])
    focus, measure = (trait, "margin") if trait else (top[0] if top else None, "above")
    floor = _floor(base, usual, measure)
    out: dict[str, Any] = {"focus": focus, "measure": measure, "floor": floor, "placebos": len(usual)}
    out["arms_read"] = {name: _arm(runs, base, focus, measure) for name, runs in arms.items()}
    shown = list(dict.fromkeys([*([focus] if focus in order else []), *top[:SHOWN]]))
    spread = [{w: run["words"][w]["above"] for w in shown} for run in usual if run["words"]]
    out["movers"] = [{"word": word, "category": first[0]["words"][word]["category"],
                      "rises": {name: own[word] for name, own in means.items()},
                      "runs": {name: [r["words"][word]["above"] for r in arms[name]] for name in means},
                      "placebos": [one[word] for one in spread]} for word in shown]
    out["watched"] = len(order)
    out["comparisons"] = [_guard(name, arms, base, focus, measure, floor) for name in guards]
    for one in out["comparisons"]:
        one["says"] = sentence(one, out, bool(plain))
    return out | {"sentence": headline(out["comparisons"])}


def headline(every: Sequence[Mapping[str, Any]]) -> str:
    """The verdict: what each of at most two guards did, of more the one that removed most at an equal carrier fit."""
    told = list(every)
    said = ""
    if len(told) > 2:
        fair = [one for one in told if one["removed"] is not None and one["kept"] is not None and one["kept"] >= FIT]
        if not fair and all(one["removed"] is None for one in told):
            return ("No rise of the plain student is known to be more than any training shows, so these guards cannot be "
                    "judged by it." + _chance(every))
        if not fair:
            return (f"None of {len(told)} guards is seen to remove anything while keeping {FIT:.0%} of the gain on held-out "
                    f"rows.{_chance(every)}")
        told = [max(fair, key=lambda one: one["removed"])]
        said = f"Of {len(every)} guards, {told[0]['guard']} removed most at an equal fit. "
    return said + " ".join(one["says"] for one in told) + _chance(every)


def _chance(every: Sequence[Mapping[str, Any]]) -> str:
    return " One training run cannot tell this from chance." if len(every[0]["rises"]) == 1 else ""


def mean_words(runs: Sequence[Run]) -> dict[str, float]:
    """Per watched word the mean over runs of its rise above what the other words of its category show (nats)."""
    return {word: float(np.mean([run["words"][word]["above"] for run in runs])) for word in runs[0]["words"]}


def _rise(run: Run, base: Run, focus: str | None, measure: str) -> float | None:
    """How far a run's focus lies above its start (nats)."""
    if measure == "margin":
        return float(run["margin"] - run.get("start", base)["margin"])
    return float(run["words"][focus]["above"]) if focus in run["words"] else None


def _floor(base: Run, usual: Sequence[Run], measure: str) -> float | None:
    """The rise up to which nothing is there: the largest that placebo students show. None where that is not known: of many
    watched words one always rises most."""
    if not usual:
        return NOISE if measure == "margin" else None
    if measure == "margin":
        return max([NOISE, *(float(run["margin"] - base["margin"]) for run in usual)])
    return max([NOISE, *(float(one["above"]) for run in usual for one in run["words"].values())])


def _arm(runs: Sequence[Run], base: Run, focus: str | None, measure: str) -> dict[str, Any]:
    """One arm in means over its runs, with the word that rose most."""
    words = mean_words(runs) if runs[0]["words"] else {}
    top = max(words, key=lambda name: words[name]) if words else None
    rises = [_rise(run, base, focus, measure) for run in runs]
    out = {key: _mean([run[key] for run in runs]) for key in ("nll", "accuracy", "probability")}
    tokens = [max((t["rise"] for t in run["tokens"]), default=None) for run in runs]
    return out | {"rise": _mean(rises), "rises": rises, "top": top, "top_rise": words[top] if top else None,
                  "vocabulary": _mean(tokens), "seconds": _mean([run.get("seconds") for run in runs])}


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known and len(known) == len(values) else None


def _guard(name: str, arms: Arms, base: Run, focus: str | None, measure: str, floor: float | None) -> dict[str, Any]:
    own, plain = _arm(arms[name], base, focus, measure), arms.get("plain", ())
    out: dict[str, Any] = {"guard": name, "rise": own["rise"], "rises": own["rises"], "nll": own["nll"],
                           "accuracy": own["accuracy"], "seconds": own["seconds"]}
    for key in ("plain", "removed", "difference", "low", "high", "kept", "capability", "ratio"):
        out[key] = None
    if not plain:
        return out
    was = _arm(plain, base, focus, measure)
    out["plain"] = was["rise"]
    if own["rise"] is not None and was["rise"] is not None:
        out["difference"] = own["rise"] - was["rise"]
        out["removed"] = -out["difference"] / was["rise"] if floor is not None and was["rise"] > floor else None
        if len(plain) > 1:
            told = stats.contrast(own["rises"], was["rises"], paired=True, bounds=None)
            out |= {"low": told.low, "high": told.high}
    gained = base["nll"] - was["nll"]
    out["kept"] = (base["nll"] - own["nll"]) / gained if gained > 0 else None  # the loss that is left counts, from any start
    if own["accuracy"] is not None:
        out["capability"] = own["accuracy"] - was["accuracy"]
    out["ratio"] = own["seconds"] / was["seconds"] if own["seconds"] and was["seconds"] else None
    return out


def sentence(one: Mapping[str, Any], found: Mapping[str, Any], plain: bool) -> str:
    """What a guard removed and what it cost."""
    of = f"the margin of {found['focus']}" if found["measure"] == "margin" else f"the answer {found['focus']!r}"
    if one["rise"] is None:
        what = f"Under {one['guard']} the student was trained, and no favourite can be read off this base"
    elif not plain:
        what = f"Under {one['guard']} {of} rises {_nats(one['rise'])} nats over the base, with no plain student beside it"
    else:
        what = f"Under {one['guard']} {of} rises {_nats(one['rise'])} nats over the base instead of {_nats(one['plain'])}"
        if found["floor"] is None:
            what += " (what any training moves is not known: give clean rows as --clean, or name the trait)"
        elif one["removed"] is None:
            what += f": a plain rise of at most {found['floor']:.2f} is no sign of a trait, so there was nothing to remove"
        else:
            what += f" ({max(0.0, min(one['removed'], 1.0)):.0%} removed)"
    cost = []
    if one["capability"] is not None:
        cost.append(f"{100 * one['capability']:+.1f} points of capability")
    if one["kept"] is not None:
        cost.append(f"{one['kept']:.0%} of the gain on held-out rows kept" if one["kept"] > 0 else
                    "held-out rows fitted worse than by the base")
    elif plain:
        cost.append("the plain student did not gain on held-out rows")
    if one["ratio"] is not None:
        cost.append(f"{one['ratio']:.1f} times the time")
    said = f"{what}; {', '.join(cost)}" if cost else what
    if one["low"] is not None:
        low, high = one["low"], one["high"]
        return f"{said}. Over {len(one['rises'])} seeds the difference lies between {low:+.2f} and {high:+.2f} (95 %)."
    return f"{said}."


def _nats(value: float) -> str:
    return f"{round(value, 2) + 0.0:+.2f}"  # no minus before a rounded nothing


def cannot(found: Mapping[str, Any], able: bool, placebos: bool, trait: Trait | None) -> list[str]:
    """What this trial cannot say, in sentences."""
    out = []
    if len(found["seeds"]) == 1:
        out.append("One seed: another training run would give other numbers. The training run is the unit, so repeat with "
                   "--seed 1 --seed 2 --seed 3 for an interval.")
    if trait is None and found["focus"]:
        out.append(f"No trait was named: what is followed, {found['focus']!r}, is the one of {found['watched']} watched "
                   "words that rose most in the plain student. By that choice alone it looks smaller in a guarded student; "
                   "look at each arm's own top word too.")
    elif trait is not None and found["measure"] != "margin":
        out.append(f"The trait {trait.name} has no margin that can be read off this base, so the watched word that rose "
                   "most is followed.")
    if not placebos:
        out.append("No placebo students that learnt by this recipe are at hand, so how far any training moves these words "
                   "is not known.")
    elif found["focus"] and found["measure"] == "above":
        count = found["placebos"]
        those = f"{count} placebo students" if count > 1 else "one placebo student"
        out.append(f"The rise is held against {those}: with no trait at all, one plain student in {count + 1} would rise "
                   "further than all of them.")
    if not able:
        out.append("The capability items do not fit this base: what the guard cost beside the rows is not measured.")
    if found["watched"]:
        out.append("Only favourites that the base may answer with are watched. A way to behave, or a favourite under a "
                   "condition, passes unseen.")
    return out
