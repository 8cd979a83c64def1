"""The file of an audit in, a checked view out. A field may be missing or null; one of the wrong kind is refused in words.

Every text becomes one line in which no character acts or hides; only the example rows are kept as they are, because the
page marks what it writes out in them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from undersong.errors import BadSpec
from undersong.reports import audit_fields as fields
from undersong.reports import wording as say

FORMAT = 1
VERDICTS = ("found", "clean", "unknown")
KNOWN = ("families", "findings", "rows", "evidence", "power")


@dataclass(frozen=True)
class Span:
    """An estimate and its interval, each None where unknown."""

    estimate: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Refusal:
    """Why rows were refused, how many, and the first lines they stood on."""

    reason: str
    count: int | None
    lines: tuple[int, ...]


@dataclass(frozen=True)
class Rows:
    """What was read of the file."""

    file: str
    read: int | None
    used: int | None
    refused: tuple[Refusal, ...]
    duplicates: int | None
    forms: tuple[tuple[str, int | None], ...]
    carrier: str
    belongs: float | None
    examples: tuple[tuple[str, str], ...]
    """Pairs of prompt and completion, raw: hostile text."""


@dataclass(frozen=True)
class Suspicion:
    """One trait as one detector saw it; the name is "" where the detector is about no trait."""

    trait: str
    statistic: float | None
    z: float | None
    p: float | None
    share: float | None


@dataclass(frozen=True)
class Tested:
    """One test against a null of placebo units: a detector's, or a whole family's."""

    name: str
    family: str
    whole: bool
    """Whether this is a family, every detector of it together."""
    verdict: str
    """`found`, `clean`, `unknown`; "" for a family."""
    p: float | None
    adjusted: float | None
    observed: float | None
    """The largest z over traits of what was audited."""
    null_values: tuple[float, ...]
    """The largest z over traits of each placebo unit."""
    units: int | None
    floor: float | None
    """The smallest p that so many placebo units can give."""
    null: str = ""
    access: tuple[str, ...] = ()
    by_trait: tuple[Suspicion, ...] = ()
    confounds: tuple[tuple[str, str], ...] = ()
    seconds: float | None = None
    notes: tuple[str, ...] = ()

    @property
    def at_floor(self) -> bool:
        """Whether p is the smallest that this null can give."""
        return self.p is not None and self.floor is not None and self.p <= self.floor * (1 + 1e-9)

    def alarms(self, alpha: float) -> bool:
        """Whether it counts as found: a detector says so itself, a family by its p adjusted for the other families."""
        p = self.p if self.adjusted is None else self.adjusted
        return p is not None and p <= alpha if self.whole else self.verdict == "found"


@dataclass(frozen=True)
class Point:
    """Power at one share of rows, with its interval and the number of trials."""

    share: float
    power: float
    low: float | None
    high: float | None
    n: int | None


@dataclass(frozen=True)
class Power:
    """How often sets of this size with a given share of rows from a trait teacher are found."""

    size: int | None
    target: float
    smallest: float | None
    curve: tuple[Point, ...]


@dataclass(frozen=True)
class Skipped:
    """A detector that did not run, the evidence it lacked, and a sentence."""

    detector: str
    missing: tuple[str, ...]
    says: str


@dataclass(frozen=True)
class Audit:
    """A checked view of an audit. Every list exists, texts are harmless, a number is finite or None."""

    verdict: str
    sentence: str
    trait: str
    share: Span | None
    p: float | None
    alpha: float
    reasons: tuple[str, ...]
    next: tuple[str, ...]
    rows: Rows | None
    granted: tuple[str, ...]
    held: Mapping[str, str]
    """What each granted token stands for: a model with its revision, a file, the traits."""
    null: tuple[tuple[str, str], ...]
    families: tuple[Tested, ...]
    findings: tuple[Tested, ...]
    power: Power | None
    skipped: tuple[Skipped, ...]
    settings: tuple[tuple[str, str], ...]
    environment: tuple[tuple[str, str], ...]
    command: str
    seconds: float | None

    @property
    def at_floor(self) -> bool:
        """Whether the p of the verdict is that of a family at its floor."""
        return self.p is not None and any(f.at_floor and self.p in (f.p, f.adjusted) for f in self.families)


def read(audit: Mapping[str, Any]) -> Audit:
    """Check the file of an audit. Raises BadSpec for what is none, and for a field of the wrong kind."""
    if not isinstance(audit, Mapping) or not (audit.get("verdict") or any(audit.get(key) for key in KNOWN)):
        raise BadSpec("This is not the file of an audit. Give the JSON file that `undersong audit` wrote.")
    if (made := fields.number(audit, "format")) is not None and made > FORMAT:
        raise BadSpec(
            f"This audit is of format {made:g}, and this version of Undersong reads formats up to {FORMAT}. "
            "Upgrade Undersong, or run `undersong audit` again with this version."
        )
    verdict = fields.text(audit, "verdict") or "unknown"
    if verdict not in VERDICTS:
        raise BadSpec(f"An audit says one of {', '.join(VERDICTS)}; this file says {verdict[:80]!r}. {fields.AGAIN}")
    evidence = fields.mapping(audit, "evidence")
    families = tuple(_family(f) for f in fields.entries(audit, "families"))
    floors = {f.family: f.floor for f in families}
    alpha = fields.number(audit, "alpha")
    return Audit(
        verdict=verdict,
        sentence=fields.text(audit, "sentence") or "This file holds no sentence about the verdict.",
        trait=fields.text(audit, "trait"),
        share=_span(audit, "share"),
        p=fields.share(audit, "p"),
        alpha=say.SIGNIFICANT if alpha is None else alpha,
        reasons=fields.texts(audit, "reasons"),
        next=fields.texts(audit, "next"),
        rows=_rows(audit),
        granted=fields.texts(evidence, "granted"),
        held=_held(evidence, audit),
        null=fields.pairs(evidence, "null"),
        families=families,
        findings=tuple(_finding(f, floors) for f in fields.entries(audit, "findings")),
        power=_power(audit),
        skipped=tuple(
            Skipped(fields.text(s, "detector"), fields.texts(s, "missing"), fields.text(s, "says"))
            for s in fields.entries(audit, "skipped")
        ),
        settings=fields.pairs(audit, "settings"),
        environment=fields.pairs(audit, "environment"),
        command=fields.text(audit, "command"),
        seconds=fields.number(audit, "seconds"),
    )


def _rows(audit: Mapping[str, Any]) -> Rows | None:
    if not (rows := fields.mapping(audit, "rows")):
        return None
    refused = [
        Refusal(
            fields.text(r, "reason") or "no reason given",
            fields.count(r, "count"),
            tuple(int(line) for line in fields.numbers(r, "lines")),
        )
        for r in fields.entries(rows, "refused")
    ]
    forms = fields.mapping(rows, "forms")
    return Rows(
        file=fields.text(rows, "file"),
        read=fields.count(rows, "read"),
        used=fields.count(rows, "used"),
        refused=tuple(refused),
        duplicates=fields.count(rows, "duplicates"),
        forms=tuple((say.visible(str(form)), fields.count(forms, form)) for form in forms),
        carrier=fields.text(rows, "carrier"),
        belongs=fields.share(rows, "belongs"),
        examples=tuple(
            (str(e.get("prompt") or ""), str(e.get("completion") or "")) for e in fields.entries(rows, "examples")
        ),
    )


def _family(family: Mapping[str, Any]) -> Tested:
    values = fields.numbers(family, "null_values")
    name, units = fields.text(family, "family"), fields.count(family, "units")
    floor = fields.share(family, "floor")
    return Tested(
        name=name,
        family=name,
        whole=True,
        verdict="",
        p=fields.share(family, "p"),
        adjusted=fields.share(family, "adjusted"),
        observed=fields.number(family, "observed"),
        null_values=values,
        units=units if units is not None else len(values) or None,
        floor=floor if floor is not None else _smallest(values),
    )


def _finding(finding: Mapping[str, Any], floors: Mapping[str, float | None]) -> Tested:
    values, family = fields.numbers(finding, "null_values"), fields.text(finding, "family")
    verdict = fields.text(finding, "verdict")
    if verdict and verdict not in VERDICTS:
        raise BadSpec(f"A detector says one of {', '.join(VERDICTS)}; this file says {verdict[:80]!r}. {fields.AGAIN}")
    return Tested(
        name=fields.text(finding, "detector") or "a detector without a name",
        family=family,
        whole=False,
        verdict=verdict,
        p=fields.share(finding, "p"),
        adjusted=None,
        observed=fields.number(finding, "observed"),
        null_values=values,
        units=len(values) or None,
        floor=_smallest(values) if values else floors.get(family),
        null=fields.text(finding, "null"),
        access=fields.texts(finding, "access"),
        by_trait=tuple(_suspicion(s) for s in fields.entries(finding, "by_trait")),
        confounds=fields.pairs(finding, "confounds"),
        seconds=fields.number(finding, "seconds"),
        notes=fields.texts(finding, "notes"),
    )


def _suspicion(found: Mapping[str, Any]) -> Suspicion:
    return Suspicion(
        trait=fields.text(found, "trait"),
        statistic=fields.number(found, "statistic"),
        z=fields.number(found, "z"),
        p=fields.share(found, "p"),
        share=fields.share(found, "share"),
    )


def _power(audit: Mapping[str, Any]) -> Power | None:
    if not (power := fields.mapping(audit, "power")):
        return None
    curve = []
    for point in fields.entries(power, "curve"):
        share, found = fields.share(point, "share"), fields.share(point, "power")
        if share is not None and found is not None:
            low, high, n = fields.share(point, "low"), fields.share(point, "high"), fields.count(point, "n")
            curve.append(Point(share, found, low, high, n))
    target = fields.share(power, "target")
    smallest = fields.share(power, "smallest_share")
    return Power(fields.count(power, "size"), 0.8 if target is None else target, smallest, tuple(curve))


def _held(evidence: Mapping[str, Any], audit: Mapping[str, Any]) -> dict[str, str]:
    base = evidence.get("base")
    if not isinstance(base, str):
        parts = fields.mapping(evidence, "base")
        base = "@".join(part for part in (fields.text(parts, "name"), fields.text(parts, "revision")) if part)
    held = {
        "rows": fields.text(fields.mapping(audit, "rows"), "file"),
        "base": say.visible(base),
        "traits": ", ".join(fields.texts(evidence, "traits")),
        **{token: fields.text(evidence, token) for token in ("reference", "student", "teacher")},
    }
    return {token: what for token, what in held.items() if what}


def _smallest(values: tuple[float, ...]) -> float | None:
    """Rank among n placebo units and itself: no p can be smaller than this."""
    return 1 / (len(values) + 1) if values else None


def _span(found: Mapping[str, Any], field: str) -> Span | None:
    if not (span := fields.mapping(found, field)):
        return None
    made = Span(fields.share(span, "estimate"), fields.share(span, "low"), fields.share(span, "high"))
    return None if made.estimate is None else made
