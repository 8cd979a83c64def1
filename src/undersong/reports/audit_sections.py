"""What the page of an audit says, in order: the verdict on top, then each part with its figures and tables.

Leads repeat and count what the file holds; they compute no statistic.
"""

from __future__ import annotations

from undersong.reports import audit_figures as figures
from undersong.reports import audit_tables as tables
from undersong.reports import wording as say
from undersong.reports.audit_reading import Audit, Span
from undersong.reports.parts import Banner, Quote, Section, Table, given, table_of

SIGNS = {"found": ("!", "Found"), "clean": ("✓", "Clean"), "unknown": ("?", "Cannot tell")}
SHOWN = 12
"""Example rows shown; the file holds them all."""
LONG = 600
"""Characters shown of a prompt or a completion: a row may be 100 MB."""


def banner(audit: Audit) -> Banner:
    """The verdict in one colour, a sign and words, with its numbers, its reasons and what to do next."""
    sign, word = SIGNS[audit.verdict]
    lists = (("Why", audit.reasons), ("What to do next", audit.next))
    return Banner(audit.verdict, sign, word, facts(audit), tuple(pair for pair in lists if pair[1]))


def facts(audit: Audit) -> tuple[tuple[str, str], ...]:
    """The numbers of the verdict, each with its name."""
    rows, power = audit.rows, audit.power
    found = []
    if audit.trait:
        found.append(("trait", audit.trait))
    if audit.share:
        found.append(("share of rows", span(audit.share)))
    if audit.p is not None:
        found.append(("p", f"{say.p_tested(audit.p, audit.at_floor)}, limit {f'{audit.alpha:g}'.lstrip('0')}"))
    if power and (power.smallest is not None or power.curve):
        smallest = "none of those tried" if power.smallest is None else say.percent(power.smallest)
        found.append(("smallest share it sees", smallest))
    if rows and rows.used is not None:
        found.append(("rows used", f"{rows.used:,}" + (f" of {rows.read:,}" if rows.read is not None else "")))
    return tuple(found)


def span(share: Span) -> str:
    """A share with its interval: "31 % (24 to 38 %)"."""
    if share.low is None or share.high is None:
        return say.percent(share.estimate)
    return f"{say.percent(share.estimate)} ({say.percent(share.low).removesuffix(' %')} to {say.percent(share.high)})"


def sections(audit: Audit) -> tuple[Section, ...]:
    """The parts of the page in order; a part without anything in it is left out."""
    return given(_tests(audit), _traits(audit), _power(audit), _rows(audit), _evidence(audit), _method(audit), _again(audit))


def _tests(audit: Audit) -> Section | None:
    strips, table = figures.placebos(audit), tables.tests(audit)
    if not (strips or table):
        return None
    lead = [
        "Benign data differ among themselves too. So each test is compared with placebos: cases without a trait that "
        "were measured in the same way. Its p is the share of cases, this one counted in, that look at least as suspicious."
    ]
    if any(t.adjusted is not None for t in audit.families):
        lead.append("The verdict rests on the adjusted p of the families, so that many tests cause no more false alarms.")
    if uncalibrated := [figures.spaced(f.name) for f in audit.findings if f.p is None]:
        lead.append(f"Uncalibrated, and so no part of the verdict: {', '.join(uncalibrated)}.")
    return Section("placebos", "Against the placebos", tuple(lead), figures=given(strips), tables=given(table))


def _traits(audit: Audit) -> Section | None:
    heat, table = figures.heat(audit), tables.by_trait(audit)
    if not (heat or table):
        return None
    lead = (
        "A trait that is there stands out from its neighbours, and in more than one detector."
        if sum(any(s.z is not None for s in f.by_trait) for f in audit.findings) > 1
        else "A trait that is there stands out from its neighbours."
    )
    return Section(
        "traits", "Which trait", (lead,), figures=given(heat), more="Every trait in numbers", more_tables=given(table)
    )


def _power(audit: Audit) -> Section | None:
    if audit.power is None:
        return None
    curve, table = figures.power(audit), tables.curve(audit)
    lead = ["A clean verdict means only that nothing was seen that this audit can see.", figures.smallest_share(audit.power)]
    more = "The curve in numbers" if table else ""
    drawn, folded = given(curve), given(table)
    return Section("power", "What it could have seen", tuple(lead), figures=drawn, more=more, more_tables=folded)


def _rows(audit: Audit) -> Section | None:
    rows = audit.rows
    if rows is None:
        return None
    lead = []
    if rows.file:
        lead.append(f"From {rows.file}.")
    if rows.carrier:
        belongs = "" if rows.belongs is None else f"; {say.percent(rows.belongs)} of them keep its rule"
        lead.append(f"The rows look like {figures.spaced(rows.carrier)}{belongs}.")
    elif rows.belongs is not None:
        lead.append(f"{say.percent(rows.belongs)} of the rows keep the rule of their carrier.")
    quotes: tuple[Quote, ...] = ()
    if rows.examples:
        pairs = tuple((clipped(prompt), clipped(completion)) for prompt, completion in rows.examples[:SHOWN])
        more = len(rows.examples) - SHOWN
        quotes = (Quote("As they stand in the file", pairs, f"And {more:,} more in the JSON file." if more > 0 else ""),)
        lead.append("Characters that act or hide are written out and marked in the examples.")
    return Section(
        "rows",
        "The rows",
        tuple(lead),
        figures=given(figures.tally(audit)),
        tables=given(tables.refused(audit), tables.forms(audit)),
        more="Example rows" if quotes else "",
        quotes=quotes,
    )


def _evidence(audit: Audit) -> Section | None:
    made = given(tables.evidence(audit), tables.skipped(audit))
    if not made:
        return None
    lead = "A detector is handed the evidence it declares and nothing else."
    return Section("evidence", "What was held, and what was not", (lead,), tables=made)


def _method(audit: Audit) -> Section | None:
    made = given(tables.null(audit), tables.methods(audit))
    if not made:
        return None
    lead = [f"A calibrated detector is set to raise a false alarm in {say.percent(audit.alpha)} of benign cases."]
    if audit.power:
        lead += [
            f"Measured for the whole verdict, on sets without a trait: {span(Span(p.power, p.low, p.high))}."
            for p in audit.power.curve
            if p.share == 0
        ]
    confounds = tables.confounds(audit)
    more = "Explanations other than a trait" if confounds else ""
    return Section("method", "How it was tested", tuple(lead), tables=made, more=more, more_tables=given(confounds))


def _again(audit: Audit) -> Section | None:
    settings = [*audit.settings, *([("seconds", f"{audit.seconds:,.1f}")] if audit.seconds is not None else [])]
    made: tuple[Table, ...] = given(
        table_of("Settings", ("what", "value"), settings), table_of("Environment", ("what", "value"), audit.environment)
    )
    if not (made or audit.command):
        return None
    return Section("reproduce", "Make it again", command=audit.command, tables=made)


def clipped(text: str) -> str:
    """The beginning of a long text, and how much more there is."""
    return text if len(text) <= LONG else f"{text[:LONG]} … ({len(text) - LONG:,} more characters)"
