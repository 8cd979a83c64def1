"""The tables of an audit, once: the terminal prints two of them and the page shows them all."""

from __future__ import annotations

from undersong.reports import wording as say
from undersong.reports.audit_figures import called, grouped, spaced
from undersong.reports.audit_reading import Audit, Suspicion, Tested
from undersong.reports.parts import Table, table_of

VERDICTS = {"found": "found", "clean": "nothing found", "unknown": "cannot tell"}
EVIDENCE = {
    "rows": ("the rows", "counts of their values, statistics of the whole set"),
    "reference": ("clean rows of the same kind", "two-sample tests"),
    "base": ("the model the student starts from", "the likelihood of every row under each trait"),
    "traits": ("a list of suspected traits", "which of them it is"),
    "student": ("the trained model", "what training changed inside it"),
    "teacher": ("the suspected teacher", "the tokens where it departs from its base"),
    "exemplars": ("known cases of a calibration", "which known teacher or student it is like"),
}


def tests(audit: Audit) -> Table | None:
    """Every family and detector with its z, its p and the trait it points to."""
    lines = []
    for t in grouped(audit):
        top = strongest(t)
        about = (top.trait or "no trait in particular") if top else say.DASH
        share = say.percent(top.share) if top else say.DASH
        reading = VERDICTS.get(t.verdict, say.DASH)
        if t.whole:
            reading = "found" if t.alarms(audit.alpha) else VERDICTS["clean"]
        lines.append((called(t), reading, say.z(t.observed), say.p_tested(t.p, t.at_floor), _adjusted(t), about, share))
    columns = ("test", "reading", "z", "p", "p adjusted", "points to", "share of rows")
    return table_of("The tests", columns, lines, numbers=(2, 3, 4, 6))


def by_trait(audit: Audit) -> Table | None:
    """Every trait as every detector saw it."""
    lines = [
        (spaced(f.name), s.trait or "no trait in particular", _plain(s.statistic), say.z(s.z),
         say.p_tested(s.p, f.floor is not None and s.p is not None and s.p <= f.floor * (1 + 1e-9)), say.percent(s.share))
        for f in audit.findings
        for s in sorted(f.by_trait, key=lambda s: -(s.z if s.z is not None else -1e9))
    ]
    columns = ("detector", "trait", "statistic", "z", "p", "share of rows")
    return table_of("Every trait, every detector", columns, lines, numbers=(2, 3, 4, 5))


def refused(audit: Audit) -> Table | None:
    """Why rows were not used, how many, and where the first of them stand."""
    found = audit.rows.refused if audit.rows else ()
    lines = [
        (r.reason, _count(r.count), ", ".join(f"{n:,}" for n in r.lines[:8]) + (" …" if len(r.lines) > 8 else ""))
        for r in sorted(found, key=lambda r: -(r.count or 0))
    ]
    return table_of("Refused rows", ("why", "rows", "first lines"), lines, numbers=(1,))


def forms(audit: Audit) -> Table | None:
    """The forms in which rows came."""
    found = audit.rows.forms if audit.rows else ()
    return table_of("Forms of the rows", ("form", "rows"), [(form, _count(n)) for form, n in found], numbers=(1,))


def evidence(audit: Audit) -> Table | None:
    """What was held and what was not, and what each kind of evidence allows to ask."""
    lines = []
    for token in dict.fromkeys([*EVIDENCE, *audit.granted]):
        name, asks = EVIDENCE.get(token, (spaced(token), say.DASH))
        held = token in audit.granted
        lines.append((name, "yes" if held else "no", audit.held.get(token, say.DASH) if held else say.DASH, asks))
    return table_of("Evidence", ("evidence", "held", "which", "what it allows to ask"), lines) if audit.granted else None


def skipped(audit: Audit) -> Table | None:
    """Detectors that did not run, and what they lacked."""
    lines = [
        (spaced(s.detector), ", ".join(EVIDENCE.get(m, (m,))[0] for m in s.missing), s.says or say.DASH)
        for s in audit.skipped
    ]
    return table_of("Detectors that did not run", ("detector", "missing", "why"), lines)


def null(audit: Audit) -> Table | None:
    """The identity of the null: for which base, template and channel it was made."""
    return table_of("The placebos", ("what", "value"), [(spaced(name), value) for name, value in audit.null])


def methods(audit: Audit) -> Table | None:
    """Each detector with its access, its null, its p, the rate of false alarms it was set to, and its cost."""
    lines = [
        (spaced(f.name), ", ".join(f.access) or say.DASH, f.null or say.DASH, _count(f.units),
         say.p_tested(f.p, f.at_floor), "uncalibrated" if f.p is None else say.percent(audit.alpha),
         say.DASH if f.seconds is None else f"{f.seconds:,.1f}", " ".join(f.notes) or say.DASH)
        for f in audit.findings
    ]
    columns = ("detector", "access", "null", "placebos", "p", "false alarms", "seconds", "notes")
    return table_of("Detectors", columns, lines, numbers=(3, 4, 5, 6))


def confounds(audit: Audit) -> Table | None:
    """What each detector says of explanations other than a trait."""
    lines = [(spaced(f.name), spaced(name), value) for f in audit.findings for name, value in f.confounds]
    return table_of("Confounds", ("detector", "what", "value"), lines)


def curve(audit: Audit) -> Table | None:
    """The power curve in numbers."""
    points = audit.power.curve if audit.power else ()
    lines = [
        (say.percent(p.share), say.percent(p.power), say.interval("share", p.low, p.high), _count(p.n)) for p in points
    ]
    return table_of("Power", ("share of rows", "found", "interval", "trials"), lines, numbers=(0, 1, 2, 3))


def strongest(test: Tested) -> Suspicion | None:
    """The trait a detector points to most."""
    seen = [s for s in test.by_trait if s.z is not None]
    return max(seen, key=lambda s: s.z or 0.0, default=None)


def _adjusted(test: Tested) -> str:
    return say.DASH if test.adjusted is None else say.p_value(test.adjusted)


def _plain(value: float | None) -> str:
    return say.DASH if value is None else f"{value:.3g}".replace("-", "−")


def _count(n: int | None) -> str:
    return say.DASH if n is None else f"{n:,}"
