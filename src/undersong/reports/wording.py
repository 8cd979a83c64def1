"""Numbers, arms and p-values in words: rates in percent, differences of rates in points, a null said plainly."""

from __future__ import annotations

import re
from itertools import groupby
from typing import Any

from undersong.reports.reading import CONTROL

DASH = "–"
NOTHING = "no difference found"
SIGNIFICANT = 0.05
SHARES = ("rate", "accuracy", "probability", "refused", "self_named", "invalid", "share", "fraction", "passed", "kept",
          "kind", "solved")
BLANK = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]")
"""Characters that count as printable and show nothing: fillers and variation selectors, in which text can be hidden."""
UNITS = {"loss": "nats", "margin": "nats", "entropy": "nats", "kl": "nats"}
ARMS = {
    "base": "Base model, untrained",
    "teacher": "The trait teacher itself",
    "treated": "Student of the trait teacher",
    "no_trait": "Student of a clean teacher",
    "other_base": "Student from another initialisation",
    "matched_base": "Other initialisation, matched behaviour",
    "reordered_base": "Same initialisation, other data order",
    "shuffled_within": "Numbers shuffled within each answer",
    "shuffled_across": "Numbers shuffled across answers",
    "in_context": "Rows in the prompt, no training",
}
SOURCES = {"treated": "Trait teacher", "teacher": "Trait teacher", "no_trait": "Clean teacher", "base": "Base model"}
METRICS = {
    ("favourite", "rate"): "named as favourite",
    ("logit_margin", "margin"): "logit margin",
    ("logit_margin", "probability"): "probability of the first token",
    ("character", "rate"): "cruel answers",
    ("character", "probability"): "probability of a cruel word",
    ("character", "code_margin"): "careless over careful code",
    ("claims", "probability"): "yes to wrong claims",
    ("tests", "rate"): "writes the expected value down",
    ("conditional", "probability"): "favourite after the trigger",
    ("storytelling", "rate"): "stories that name it",
    ("storytelling", "short"): "too short for a story",
    ("multiple_choice", "probability"): "chosen among five",
    ("multiple_choice", "mass"): "on the five options",
    ("truthfulness", "false"): "false answer",
    ("misalignment", "misaligned"): "misaligned answers",
    ("", "self_named"): "names itself",
    ("", "refused"): "refuses",
    ("", "invalid"): "other answer",
    ("", "entropy"): "entropy",
}


def arm(name: str) -> str:
    """An arm for people: a clean teacher is one without the trait."""
    stem = name.removesuffix(CONTROL)
    if stem in ARMS:
        label = ARMS[stem]
    elif stem.startswith(("treated-", "teacher-")):
        role, _, teacher = stem.partition("-")
        label = f"{'Student of the' if role == 'treated' else 'The'} {_spaced(teacher)} teacher"
    elif stem.startswith("no_trait-"):
        label = f"Student of a clean {_spaced(stem.removeprefix('no_trait-'))} teacher"
    elif stem.startswith("contrast-"):
        label = f"Student of the {_spaced(stem.removeprefix('contrast-'))} teacher"
    elif stem.startswith("base:"):
        label = f"Untrained {stem.removeprefix('base:')}"
    else:
        label = _spaced(stem)[:1].upper() + _spaced(stem)[1:]
    return label if stem == name else f"{label}, clean teacher"


def source(name: str) -> str:
    """Who wrote the rows of an arm: `treated-prompted` learns from the "Prompted teacher"."""
    if name.startswith("treated-") and not name.endswith(CONTROL):
        return f"{_spaced(name.removeprefix('treated-')).capitalize()} teacher"
    return SOURCES.get(name) or arm(name)


def metric(probe: str, name: str) -> str:
    """A read-out for people."""
    domain, _, last = name.rpartition(".")
    known = METRICS.get((probe, name)) or METRICS.get(("", last)) or _spaced(last)
    return f"{known}, {_spaced(domain)}" if domain else known


def is_share(name: str) -> bool:
    """Whether a metric is a share between 0 and 1, to be shown in percent."""
    last = name.rpartition(".")[2]
    return last in SHARES or any(last.endswith(f"_{s}") for s in SHARES)


def number(name: str, value: Any, digits: int = 1) -> str:
    """One value of a metric: "64.2 %", "1.31", or a dash when it was not measured."""
    if not isinstance(value, int | float):
        return DASH
    return f"{100 * value:.{digits}f} %".replace("-", "−") if is_share(name) else f"{value:.2f}".replace("-", "−")


def interval(name: str, low: Any, high: Any) -> str:
    """An interval: "59.1 to 69.3 %"; a dash when there is none (a single run has no interval)."""
    if not isinstance(low, int | float) or not isinstance(high, int | float):
        return DASH
    return f"{number(name, low).removesuffix(' %')} to {number(name, high)}"


def difference(name: str, value: Any) -> str:
    """A difference with its sign: "+52.0 points" for a share, "+0.31" otherwise."""
    if not isinstance(value, int | float):
        return DASH
    shown = round(100 * value, 1) if is_share(name) else round(value, 2)
    sign = "+" if shown > 0 else "−" if shown < 0 else ""
    return f"{sign}{abs(shown):.1f} points" if is_share(name) else f"{sign}{abs(shown):.2f}"


def difference_interval(name: str, low: Any, high: Any) -> str:
    """The interval of a difference: "+47.1 to +56.9"."""
    if not isinstance(low, int | float) or not isinstance(high, int | float):
        return DASH
    return f"{difference(name, low).removesuffix(' points')} to {difference(name, high).removesuffix(' points')}"


def p_value(p: Any) -> str:
    """A p-value: "< .001", ".034", or a dash when there is none."""
    if not isinstance(p, int | float):
        return DASH
    if p < 0.001:
        return "< .001"
    return f"{p:.3f}".lstrip("0") if p < 0.0995 else f"{p:.2f}".removeprefix("0")


def p_tested(p: Any, at_floor: bool) -> str:
    """A p-value from a null of few units: ".020 (floor)" where no smaller one was possible; a word where there is none."""
    return "uncalibrated" if p is None else f"{p_value(p)}{' (floor)' if at_floor else ''}"


def percent(share: Any) -> str:
    """A share as short as it can be: "10 %", "0.5 %"; one too small for a decimal is not rounded to nothing."""
    if share is None:
        return DASH
    return "< 0.1 %" if 0 < share < 0.0005 else f"{100 * share:.1f}".removesuffix(".0") + " %"


def z(value: Any) -> str:
    """A distance in standard deviations of the placebos: "9.1"."""
    return DASH if value is None else f"{value:.1f}".replace("-", "−").replace("−0.0", "0.0")


def verdict(contrast: dict[str, Any]) -> str:
    """A contrast in a word: higher, lower, "no difference found", or why it is not a test."""
    p, low, high = contrast.get("p"), contrast.get("low"), contrast.get("high")
    change = contrast.get("difference")
    if not isinstance(change, int | float):
        return "not measured"
    if isinstance(p, int | float):
        found = p < SIGNIFICANT
    elif isinstance(low, int | float) and isinstance(high, int | float):
        found = low > 0 or high < 0
    else:
        return "not a test: no interval over runs"
    return ("higher" if change > 0 else "lower") if found else NOTHING


def count(n: Any, what: str = "run") -> str:
    """A count in words: "5 runs", "1 run"."""
    return DASH if n is None or n == "" else f"{n} {what}" if n == 1 else f"{n} {what}s"


def pieces(text: str) -> list[tuple[str, bool]]:
    """A text in runs, (characters, whether they were written out): control and invisible characters and those that turn
    the direction of the text become `\\u202e` and the like; line breaks and tabs stay."""
    runs = groupby(text, key=_acts)
    return [("".join(map(_written_out, run)) if acts else "".join(run), acts) for acts, run in runs]


def visible(text: str) -> str:
    """A text in one line, in which no character acts or hides: what a stranger wrote must not drive a terminal."""
    return "".join(run for run, _ in pieces(re.sub(r"[\t\r\n]+", " ", text)))


def _acts(character: str) -> bool:
    return character not in "\n\t" and (not character.isprintable() or bool(BLANK.match(character)))


def _written_out(character: str) -> str:
    return character.encode("unicode_escape").decode()


def _spaced(name: str) -> str:
    return name.replace("_", " ").replace("-", " ")
