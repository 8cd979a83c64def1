"""What the page says, in order: each part has a lead in plain sentences, figures, tables, and what is folded away.

Leads count and name what the tables hold; they compute no statistic and hide no null.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from undersong.reports import figures, tables
from undersong.reports import wording as say
from undersong.reports.parts import Quote, Section, Table, flat, given
from undersong.reports.reading import BESIDE, CONTROL, Entry, Reading

SHOWN = 6
"""Example rows or answers shown of each arm and trait; the results hold them all."""
LONG = 30
"""A table of more lines than this is folded away, behind its lines about the first trait."""
OPEN = 2
"""Heatmaps shown at once; the others wait behind a line to click."""


def sections(reading: Reading) -> list[Section]:
    """The parts of the page in order; a part without anything measured is left out."""
    made = (
        _controls(reading),
        _matrix(reading),
        _arms(reading),
        _questions(reading),
        _teachers(reading),
        _capability(reading),
        _carrier(reading),
        _answers(reading),
        _reproduce(reading),
    )
    return [section for section in made if section is not None]


def _controls(reading: Reading) -> Section | None:
    made = given(*(tables.contrasts(reading, channel) for channel in reading.channels or ("",)))
    others = tables.other_contrasts(reading)
    if made and len(made[0].rows) > LONG and (first := tables.contrasts(reading, reading.channel, trait=reading.trait)):
        made = (dataclasses.replace(first, title=f"{first.title}, {reading.trait}"), *made)
    if not made and others is None:
        return None
    count = len(reading.lists["contrasts"])
    lead = "One number per training run goes into each comparison; answers within a run are not counted as independent."
    care = f"{say.count(count, 'comparison')} in all; read a single p near .05 with that in mind."
    more = "Every trait, channel and read-out" if others or made[1:] else ""
    return Section(
        "controls",
        "Against each control",
        (lead, care),
        tables=made[:1],
        more=more,
        more_tables=(*made[1:], *given(others)),
    )


def _matrix(reading: Reading) -> Section | None:
    every, maps = figures.traits(reading, reading.channel), figures.matrices(reading)
    table = tables.specificity(reading)
    if not (every or maps or table):
        return None
    lead = (
        "If the trait itself crosses, only the diagonal rises: each student comes to like what its own teacher liked, "
        "and nothing else. λ is how far the diagonal stands above what its row and its column explain; 0 means not "
        "specific."
    )
    rest = tuple(maps[OPEN:])
    more = f"{len(rest)} more matrices" if len(rest) > 1 else "One more matrix" if rest else ""
    return Section(
        "specificity",
        "Is it this trait, or any trait?",
        (lead,),
        figures=(*given(every), *maps[:OPEN]),
        tables=given(table),
        more=more,
        more_figures=rest,
    )


def _questions(reading: Reading) -> Section | None:
    table = tables.questions(reading)
    if table is None:
        return None
    lead = "A mean over questions can rest on one of them, so here is each by itself: means over training runs."
    return Section("questions", "Question by question", (lead,), tables=(table,))


def _arms(reading: Reading) -> Section | None:
    pairs = reading.pairs()
    made = [table for pair in pairs if (table := tables.arms(reading, *pair))]
    others = [
        dataclasses.replace(figure, title=f"{figure.title}, {channel}" if channel else figure.title)
        for channel, trait in pairs[1:]
        if (figure := figures.opening(reading, channel, trait, every_arm=True))
    ]
    if not made:
        return None
    beside = any(reading.find("rates", probe=reading.probe, metric=metric, measured="") for metric in BESIDE)
    lead = (
        "A student that refuses, names itself or answers with nonsense has collapsed, not converted. Those shares and "
        "the entropy of the answers stand beside every rate. The logit margin is deterministic and moves first."
    )
    return Section(
        "arms",
        "Every arm",
        (lead,) if beside else (),
        tables=tuple(made[:1]),
        more="The other traits and channels" if made[1:] else "",
        more_tables=tuple(made[1:]),
        more_figures=tuple(others),
    )


def _teachers(reading: Reading) -> Section | None:
    """Further teachers (a prompted one, say): every contrast of their students, whichever way it came out."""
    rates = reading.find("rates", probe=reading.probe, metric=reading.metric)
    arms = dict.fromkeys(r["arm"] for r in rates if r["arm"].startswith("treated-") and not r["arm"].endswith(CONTROL))
    if not arms:
        return None
    lead, made = [], []
    for arm in arms:
        found = reading.find("contrasts", arm=arm, probe=reading.probe, metric=reading.metric)
        verdicts = [say.verdict(c) for c in found]
        counted = ", ".join(f"{v} in {verdicts.count(v)}" for v in ("higher", "lower", say.NOTHING) if v in verdicts)
        compared = f"of {say.count(len(found), 'comparison')}: {counted or 'none is a test'}"
        lead.append(f"{say.arm(arm)}, {compared if found else 'no comparison was made'}.")
        made += [t for channel in reading.channels or ("",) if (t := tables.contrasts(reading, channel, arm=arm))]
    return Section("teachers", "Does it hold for another kind of teacher?", tuple(lead), tables=tuple(made))


def _capability(reading: Reading) -> Section | None:
    table = tables.capability(reading)
    if table is None:
        return None
    students = [
        c for c in reading.find("capability", metric="accuracy") if not c["arm"].startswith(("base", "teacher"))
    ]
    changes = [
        (c["mean"] - c["base"], c)
        for c in students
        if isinstance(c.get("mean"), int | float) and isinstance(c.get("base"), int | float)
    ]
    lead: tuple[str, ...] = ()
    if changes:
        most, worst = max(changes, key=lambda pair: abs(pair[0]))
        change = say.difference("accuracy", most)
        whose = say.arm(worst["arm"]) + (f" ({worst['trait']})" if worst["trait"] else "")
        lead = (f"The largest change of a student's held-out accuracy from the base model is {change}: {whose}.",)
    return Section(
        "capability",
        "What is kept",
        lead,
        figures=given(figures.capability(reading)),
        more="Loss and accuracy of every arm",
        more_tables=(table,),
    )


def _carrier(reading: Reading) -> Section | None:
    found = given(tables.filters(reading), tables.classifier(reading), tables.drift(reading))
    quotes = _quotes(reading.rows, "prompt", "completion", say.source)
    if not found and not quotes:
        return None
    lead = (
        "What the student was trained on. These rows are all that passed from teacher to student. "
        "A classifier at chance cannot tell a trait teacher's rows from clean ones; one that reads only the confounds "
        "(length and format, say) stands beside it."
    )
    return Section(
        "rows", "The rows that carried it", (lead,), tables=found, more="Example rows" if quotes else "", quotes=quotes
    )


def _answers(reading: Reading) -> Section | None:
    quotes, missing = _quotes(reading.answers, "question", "answer", say.arm), given(tables.unmeasured(reading))
    if not quotes and not missing:
        return None
    return Section("answers", "What the models say", tables=missing, more="Example answers" if quotes else "", quotes=quotes)


def _reproduce(reading: Reading) -> Section:
    rows = [("fingerprint", reading.fingerprint or say.DASH), *flat(reading.environment)]
    lead = (
        "Every figure on this page was recomputed from stored rows. The same command resumes, and repeats no finished "
        "work."
    )
    environment = Table("Environment", ("what", "value"), tuple(rows))
    return Section("reproduce", "Make it again", (lead,), command=reading.command, tables=(environment,))


def _quotes(entries: Iterable[Entry], asked: str, said: str, naming: tables.Naming) -> tuple[Quote, ...]:
    groups: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for e in entries:
        groups.setdefault((e["arm"], e["trait"]), []).append((str(e.get(asked) or ""), str(e.get(said) or "")))
    return tuple(
        Quote(f"{naming(arm)}{f', {trait}' if trait else ''}", tuple(pairs[:SHOWN]), _rest(len(pairs) - SHOWN))
        for (arm, trait), pairs in groups.items()
    )


def _rest(more: int) -> str:
    return f"And {more} more in results.json." if more > 0 else ""
