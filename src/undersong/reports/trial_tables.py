"""The tables of a trial: arms, runs, watched words, tokens, rows and guards."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from undersong.reports import wording as say
from undersong.reports.parts import Table, flat, table_of

Found = Mapping[str, Any]
ARMS = {"base": "base", "plain": "plain"}


def arm(name: str) -> str:
    """An arm for people."""
    return ARMS.get(name, say.visible(name))


def nats(value: float | None) -> str:
    """A rise: "+1.20"."""
    return say.difference("margin", value)


def arms(found: Found) -> Table | None:
    """One line an arm: what is followed, the top word, what it cost."""
    by = {one["guard"]: one for one in found["comparisons"]}
    lines = []
    for name, own in found["arms_read"].items():
        one = by.get(name, {})
        low = f" ({nats(one['low'])} to {nats(one['high'])})" if one.get("low") is not None else ""
        top = f"{say.visible(own['top'])} {nats(own['top_rise'])}" if own["top"] and name != "base" else say.DASH
        lines.append((
            arm(name), nats(own["rise"]) if name != "base" else say.DASH,
            say.percent(max(0.0, min(one["removed"], 1.0))) if one.get("removed") is not None else say.DASH,
            nats(one.get("difference")) + low if one.get("difference") is not None else say.DASH, top,
            nats(own["vocabulary"]) if name != "base" else say.DASH,
            say.percent(own["accuracy"]), f"{own['nll']:.3f}",
            (say.percent(one["kept"]) if one["kept"] > 0 else "none") if one.get("kept") is not None else say.DASH,
            f"{own['seconds']:.1f}" if own["seconds"] is not None else say.DASH,
            f"{one['ratio']:.1f}×" if one.get("ratio") else say.DASH))
    focus = say.visible(str(found["focus"])) if found["focus"] else "rise"
    columns = ("arm", f"{focus}, nats", "removed", "against plain", "top word", "vocabulary rise", "capability",
               "held-out loss", "gain kept", "seconds", "cost")
    return table_of("The arms", columns, lines, (1, 2, 3, 5, 6, 7, 8, 9, 10), (3, 5, 9))


def runs(found: Found) -> Table | None:
    """Every training run."""
    lines = [(arm(one["name"]), str(run["seed"]), nats(rise), say.percent(run["accuracy"]), f"{run['nll']:.4f}",
              f"{run['seconds']:.1f}", run["model"])
             for one in found["arms"] if one["name"] != "base"
             for run, rise in zip(one["runs"], found["arms_read"][one["name"]]["rises"], strict=True)]
    return table_of("Training runs", ("arm", "seed", "rise, nats", "capability", "held-out loss", "seconds", "model"), lines,
                    (1, 2, 3, 4, 5))


def words(found: Found, most: int = 100) -> Table | None:
    """The watched words that rose most, by arm."""
    names = list(found["movers"][0]["rises"]) if found["movers"] else []
    lines = [(say.visible(one["word"]), one["category"], *(nats(one["rises"][name]) for name in names),
              f"{nats(min(one['placebos']))} to {nats(max(one['placebos']))}" if one["placebos"] else say.DASH)
             for one in found["movers"][:most]]
    columns = ("word", "category", *map(arm, names), "placebo students")
    numbers, optional = tuple(range(2, 3 + len(names))), (1, 2 + len(names))
    return table_of("Watched words that rose most, nats", columns, lines, numbers, optional)


def tokens(found: Found) -> Table | None:
    """The tokens that rose most on ordinary prompts, of each arm's first run."""
    lines = [(arm(one["name"]), say.visible(t["token"]), nats(t["rise"]))
             for one in found["arms"] if one["name"] != "base" for t in one["runs"][0]["tokens"][:5]]
    return table_of("First words of answers to ordinary prompts", ("arm", "token", "rise, nats"), lines, (2,))


def rows(found: Found) -> Table | None:
    """What each arm learnt from."""
    data = found["data"]
    lines = [("in the file", f"{data['rows']:,}", say.DASH), ("held out", f"{data['held']:,}", say.DASH)]
    lines += [(arm(one["name"]), f"{run['rows']:,}", f"{run['rows'] - run['unchanged']:,}")
              for one in found["arms"] if one["name"] != "base" for run in one["runs"][:1]]
    return table_of("Rows", ("what", "rows", "changed"), lines, (1, 2))


def guards(found: Found) -> Table | None:
    """Each guard: where it acts, what it was granted, its settings, what it says of itself."""
    lines = []
    told = {one["name"]: one["runs"][0].get("told", {}) for one in found["arms"]}
    for one in found["guards"]:
        lines.append((one["name"], "stage", one["stage"]))
        lines.append((one["name"], "was granted", ", ".join(one["granted"]) or "nothing"))
        lines += [(one["name"], name, say.visible(value)) for name, value in flat(one["settings"])]
        lines += [(one["name"], f"told: {say.visible(name)}", say.visible(value)) for name, value in flat(told[one["name"]])]
    return table_of("Guards", ("guard", "what", "value"), lines)
