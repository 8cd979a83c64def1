"""The verdict of an attribution: what is known of each candidate, and what follows, in words and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from undersong.authorship.author import Author, Matrix
from undersong.authorship.handwriting import Handwriting
from undersong.authorship.typicality import Typical
from undersong.types import ModelRef, Row

POWER = 0.8
"""A name is given only if the nearest other source would have been told with this chance."""
SHOWN = 400
"""Values per candidate kept for the figures."""


@dataclass
class Case:
    """One candidate and what is known of it."""

    author: Author
    ref: ModelRef
    temperature: float = 1.0
    given: Matrix | None = None
    """Log-likelihood of the given rows [rows], in nats, at the temperature; None without likelihoods."""
    kept: float | None = None
    """The share of its answers that the filters keep."""
    p: float = 0.0
    out: float | None = None
    """Nats by which another candidate finds the rows likelier, where that alone puts it out."""
    typical: Typical | None = None
    hand: Handwriting | None = None
    table: list[list[Row]] = field(default_factory=list)
    """Per prompt the given row and fresh ones."""

    @property
    def name(self) -> str:
        """The candidate as the user named it."""
        return self.author.name


def conclude(
    ranked: Sequence[Case], rows: Sequence[Row], alpha: float, strangers: Mapping[str, float],
    blend: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """The verdict with its reasons, from candidates in the order of their likelihood."""
    left = [c for c in ranked if c.p > alpha]
    nearest = next(iter(strangers), None)
    seen = strangers[nearest] if nearest is not None else None
    word, model = "none", None
    if len(left) == 1 and seen is not None and seen >= POWER:
        word, model = "attributed", left[0].name
    elif left:
        word = "unknown"
    rivals = [c.p for c in ranked if not left or c is not left[0]]
    out: dict[str, Any] = {
        "format": 1, "kind": "authorship", "verdict": word, "model": model,
        "explain": [c.name for c in left], "p_fit": {c.name: c.p for c in ranked},
        "p_margin": max(rivals, default=None), "power": seen, "nearest": nearest, "strangers": dict(strangers),
        "alpha": alpha,
    }
    out["sentence"] = _sentence(word, left, ranked, len(rows), seen, nearest)
    out["reasons"] = [_reason(c, alpha) for c in ranked]
    out["reasons"] += [f"A source no farther off than {name} would be told with a chance of {chance:.0%}."
                       for name, chance in strangers.items() if name != nearest]
    if blend and blend["p"] is not None:
        fits = "explains" if blend["p"] > alpha else "does not explain"
        several = " and ".join(f"{n} ({s['estimate']:.0%})" for n, s in blend["shares"].items() if s["estimate"] >= 0.05)
        out["reasons"].append(f"A mixture of {several} {fits} the rows (p = {blend['p']:.2g}).")
    out["next"] = _next(word, left, ranked)
    out["mixture"] = blend
    out["candidates"] = [_told(c, rows, alpha, blend) for c in ranked]
    return out


def _sentence(
    word: str, left: Sequence[Case], ranked: Sequence[Case], n: int, seen: float | None, nearest: str | None
) -> str:
    if word == "attributed":
        only = "" if len(ranked) == 1 else ", and no other candidate does"
        return (f"{left[0].name} explains these {n} rows (p = {left[0].p:.2g}){only}. Rows of {nearest} would have been "
                f"told with a chance of {seen:.0%}.")
    if word == "none":
        which = ranked[0].name if len(ranked) == 1 else "None of the candidates"
        return f"{which} {'does not explain' if len(ranked) == 1 else 'explains'} these {n} rows."
    if len(left) > 1:
        return f"Cannot tell: {' and '.join(c.name for c in left)} explain these {n} rows alike."
    if seen is None:
        return f"Cannot tell: {left[0].name} explains these {n} rows, but there is no other source to hold it against."
    return (f"Cannot tell: {left[0].name} explains these {n} rows, but so few of {nearest} would have been told from its "
            f"own with a chance of only {seen:.0%}.")


def _reason(case: Case, alpha: float) -> str:
    if case.out is not None:
        return f"{case.name}: another candidate finds the rows {case.out:,.0f} nats likelier, which puts it out."
    if case.typical is None:
        return f"{case.name}: too few of its answers pass the filters that the rows have passed, which puts it out."
    name = min(case.typical.parts, key=lambda part: case.typical.parts[part] if case.typical else 1.0)
    alike = "are as its own" if case.p > alpha else "are not as its own"
    text = "" if case.author.reads else " It shows no likelihoods, so only the text was compared."
    return (f"{case.name}: the rows {alike} (p = {case.p:.2g}; the largest difference is in {name}, "
            f"z {case.typical.z[name]:.1f}).{text}")


def _next(word: str, left: Sequence[Case], ranked: Sequence[Case]) -> list[str]:
    if word == "attributed":
        return ["A source that is nearer to this candidate than any that was tried can still have written the rows: name "
                "its relatives as candidates too."]
    if word == "none":
        return ["Name more candidates, and the filters that the rows have passed with --filter.",
                "A candidate under another system prompt is another source: keep the rows' own system turns."]
    if len(left) > 1:
        return ["Give more rows: differences add up over rows."]
    if len(ranked) == 1:
        return ["Name a second candidate, such as a relative, to hold it against."]
    return ["Give more rows: differences add up over rows."]


def _told(case: Case, rows: Sequence[Row], alpha: float, blend: Mapping[str, Any] | None) -> dict[str, Any]:
    """One candidate as JSON. Figures' values are nats per character, of at most SHOWN rows."""
    characters = np.array([len(row.completion) + 1 for row in rows], float)
    out: dict[str, Any] = {
        "name": case.name, "ref": case.ref.name, "access": "likelihood" if case.author.reads else "text",
        "temperature": case.temperature, "kept": case.kept, "p": case.p, "out": case.out, "explains": case.p > alpha,
        "parts": case.typical.parts if case.typical else {}, "z": case.typical.z if case.typical else {},
        "fresh": sum(len(line) - 1 for line in case.table), "nats_per_character": None, "nats_per_row": None,
        "given": [], "own": [], "share": (blend["shares"].get(case.name) if blend else None),
    }
    if case.given is not None:
        out |= {"nats_per_character": float(case.given.sum() / characters.sum()), "nats_per_row": float(case.given.mean()),
                "given": np.round(case.given / characters, 4).tolist()[:SHOWN]}
        fresh = [line[1] for line in case.table][:SHOWN]
        if fresh:
            logs = case.author.read(fresh, case.temperature).logs
            out["own"] = [round(float(v) / (len(r.completion) + 1), 4) for v, r in zip(logs, fresh, strict=True)]
    return out
