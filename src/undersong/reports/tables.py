"""The tables of a report, once: the terminal prints a few of them and the page shows them all."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from undersong.reports import wording as say
from undersong.reports.parts import Table, table_of
from undersong.reports.reading import BESIDE, Entry, Reading, arms_in_order, read
from undersong.reports.terminal import plain, put

MARGIN = ("logit_margin", "margin")
Naming = Callable[[str], str]
"""How an arm is called: in words on the page (`wording.arm`), as in the experiment file on the terminal (`str`)."""


def summary(results: Mapping[str, Any], width: int = 140) -> str:
    """The result table as plain text of at most `width` characters a line (longer cells wrap; nothing is cut).

    Raises BadRows or NothingMeasured as `reading.read` does.
    """
    reading = read(results)
    return plain(lambda console: _print(reading, console), width)


def show(results: Mapping[str, Any]) -> None:
    """Print the result table to standard output: with colour on a terminal, plain text anywhere else."""
    from rich.console import Console

    console = Console()
    if console.is_terminal:
        _print(read(results), console)
    else:
        print(summary(results), end="")


def contrasts(reading: Reading, channel: str, naming: Naming = say.arm, **only: str) -> Table | None:
    """Arms against their controls by the headline read-out, in one channel; `only` narrows it (`arm="treated"`)."""
    rows = reading.find("contrasts", channel=channel, probe=reading.probe, metric=reading.metric, **only)
    lines = []
    for c in sorted(rows, key=lambda c: _place(reading, c)):
        change, span, *rest = _compared(c)
        change = change.removesuffix(" points")
        means = (_mean(reading, c, c["arm"]), _mean(reading, c, c["control"]))
        lines.append((c["trait"], naming(c["arm"]), change, span, naming(c["control"]), *rest, *means))
    unit = "points" if say.is_share(reading.metric) else "difference"
    columns = ("trait", "arm", unit, "interval", "against", "p", "reading", "runs", "mean", "control")
    title = f"Against each control{f', {channel}' if channel else ''}"
    return table_of(title, columns, lines, numbers=(2, 3, 5, 7, 8, 9), optional=(8, 9))


def other_contrasts(reading: Reading) -> Table | None:
    """The contrasts of every other read-out, in every channel."""
    lines = []
    for c in sorted(reading.lists["contrasts"], key=lambda c: _place(reading, c)):
        if (c["probe"], c["metric"]) != (reading.probe, reading.metric):
            what = (say.metric(c["probe"], c["metric"]), c["channel"], c["trait"])
            lines.append((*what, say.arm(c["arm"]), say.arm(c["control"]), *_compared(c)))
    columns = ("read-out", "channel", "trait", "arm", "against", "difference", "interval", "p", "reading", "runs")
    return table_of("The other read-outs", columns, lines, numbers=(5, 6, 7, 9))


def arms(reading: Reading, channel: str, trait: str, naming: Naming = say.arm) -> Table | None:
    """Every arm about one trait: the rate, the logit margin, and beside them what a collapsed student would show."""
    rates = _by_arm(reading.headline("rates", channel, trait))
    margins = _by_arm(_rates(reading, channel, trait, *MARGIN, measured=trait))
    beside = [(m, _by_arm(_rates(reading, channel, trait, reading.probe, m, measured=""))) for m in BESIDE]
    beside = [(m, found) for m, found in beside if found]
    lines = []
    for arm in arms_in_order(rates):
        rate = rates[arm]
        mean, span = say.number(reading.metric, rate.get("mean")), _interval(reading.metric, rate)
        margin = (say.number("margin", margins.get(arm, {}).get("mean")),) if margins else ()
        others = tuple(say.number(m, found.get(arm, {}).get("mean")) for m, found in beside)
        lines.append((naming(arm), _text(rate.get("n_runs")), mean, span, *margin, *others))
    named = say.metric(reading.probe, reading.metric)
    columns = ("arm", "runs", named, "interval", *(["logit margin"] if margins else []))
    columns += tuple(say.metric(reading.probe, m) for m, _ in beside)
    return table_of(_where(channel, trait) or "Every arm", columns, lines, numbers=tuple(range(1, len(columns))))


def questions(reading: Reading, naming: Naming = say.arm) -> Table | None:
    """Every question by itself, one column per arm: what a mean over questions would hide."""
    where = {"measured": reading.trait, "probe": reading.probe, "metric": reading.metric}
    found = [q for q in reading.find("questions", **where) if q["channel"] in (reading.channel, "")]
    names = arms_in_order(q["arm"] for q in found)
    cells = {(q["question"], q["arm"]): say.number(reading.metric, q.get("mean")) for q in found}
    asked = dict.fromkeys(q["question"] for q in found)
    lines = [(text, *(cells.get((text, arm), say.DASH) for arm in names)) for text in asked]
    columns = ("question", *map(naming, names))
    return table_of("Question by question", columns, lines, numbers=tuple(range(1, len(columns))))


def specificity(reading: Reading, naming: Naming = say.arm) -> Table | None:
    """λ of each matrix: the excess on the diagonal over what row and column explain."""
    lines = []
    for s in sorted(reading.lists["specificity"], key=lambda s: _place(reading, s)):
        name = s["metric"] or (reading.metric if s["probe"] == reading.probe else "")
        span = say.difference_interval(name, s.get("low"), s.get("high"))
        traits = s.get("traits")
        count = len(traits) if isinstance(traits, list) else traits
        first = (s["channel"], naming(s["arm"]) if s["arm"] else say.DASH, say.metric(s["probe"], name), _text(count))
        judged = (
            say.verdict({**s, "difference": s.get("lambda")}).replace("higher", "specific").replace("lower", "inverted")
        )
        lines.append((*first, say.difference(name, s.get("lambda")), span, say.p_value(s.get("p")), judged))
    columns = ("channel", "arm", "read-out", "traits", "λ", "interval", "p", "reading")
    return table_of("Specificity λ", columns, lines, numbers=(3, 4, 5, 6))


def capability(reading: Reading, short: bool = False, naming: Naming = say.arm) -> Table | None:
    """What each student can still do, beside its base. `short` keeps the first trait and leaves out the domains."""
    lines = []
    found = list(reading.lists["capability"])
    if short:
        found = [c for c in found if "." not in c["metric"] and c["trait"] in ("", reading.trait)]
    place = {arm: i for i, arm in enumerate(arms_in_order(c["arm"] for c in found))}
    for c in sorted(found, key=lambda c: ("." in c["metric"], c["metric"], place[c["arm"]])):
        name, mean, base = c["metric"], c.get("mean"), c.get("base")
        change = mean - base if isinstance(mean, int | float) and isinstance(base, int | float) else None
        numbers = (say.number(name, mean), _interval(name, c), say.number(name, base), say.difference(name, change))
        first = (say.metric(c["probe"], name), naming(c["arm"]), c["trait"] or say.DASH, _text(c.get("n_runs")))
        lines.append((*first, *numbers))
    columns = ("measure", "arm", "trait", "runs", "mean", "interval", "base", "change")
    return table_of("Capability", columns, lines, numbers=(3, 4, 5, 6, 7))


def filters(reading: Reading, naming: Naming = say.source) -> Table | None:
    """Rows kept and dropped by each filter, with the reasons."""
    lines = []
    for f in reading.lists["filters"]:
        kept, dropped = f.get("kept"), f.get("dropped")
        reasons = f.get("reasons") if isinstance(f.get("reasons"), Mapping) else {}
        why = ", ".join(f"{reason}: {count:,}" for reason, count in _most(reasons or {}))
        why = why or ("nothing dropped" if dropped == 0 else say.DASH)
        lines.append((naming(f["arm"]), f["trait"] or say.DASH, f["name"] or "all", _text(kept), _text(dropped), why))
    return table_of("Filters", ("rows of", "trait", "filter", "kept", "dropped", "why"), lines, numbers=(3, 4))


def classifier(reading: Reading) -> Table | None:
    """Whether a classifier can tell the trait teacher's rows from clean ones, beside a confound-only baseline."""
    lines = []
    for c in reading.lists["classifier"]:
        accuracy = say.number("accuracy", c.get("accuracy"))
        span = say.interval("accuracy", c.get("low"), c.get("high"))
        confound, chance = say.number("accuracy", c.get("confound_accuracy")), say.number("accuracy", c.get("chance"))
        lines.append(
            (c["trait"], accuracy, span, confound, chance, _text(c.get("n_rows")), _text(c.get("n_runs")), _told(c))
        )
    columns = ("trait", "accuracy", "interval", "confounds only", "chance", "rows", "runs", "reading")
    return table_of("A classifier that reads the rows", columns, lines, numbers=(1, 2, 3, 4, 5, 6))


def drift(reading: Reading, naming: Naming = say.source) -> Table | None:
    """How far the teacher's rows drift from the base model's."""
    lines = []
    for d in reading.lists["drift"]:
        name, value, base = d["metric"], d.get("value"), d.get("base")
        change = value - base if isinstance(value, int | float) and isinstance(base, int | float) else None
        numbers = (say.number(name, base), say.number(name, value), say.difference(name, change))
        lines.append((naming(d["arm"]), d["trait"] or say.DASH, say.metric("", name), *numbers))
    columns = ("rows of", "trait", "measure", "base model", "teacher", "change")
    return table_of("Drift of the numbers", columns, lines, numbers=(3, 4, 5))


def unmeasured(reading: Reading, naming: Naming = say.arm) -> Table | None:
    """Training runs in which a probe matched nothing: they are in no mean, so they are listed."""
    lines = [(naming(u["arm"]), u["trait"] or say.DASH, _text(u.get("seed")), str(u.get("why") or say.DASH))
             for u in reading.lists["unmeasured"]]
    return table_of("Runs that could not be measured", ("arm", "trait", "seed", "why"), lines)


def _print(reading: Reading, console: Any) -> None:
    """Print the sentence and the tables that a reader of the terminal needs."""
    from rich.text import Text

    console.print(Text(f"{reading.experiment}  {reading.fingerprint}".rstrip(), style="bold"))
    console.print(Text(reading.sentence))
    found = [
        arms(reading, reading.channel, reading.trait, naming=str),
        *(contrasts(reading, channel, naming=str) for channel in reading.channels or ("",)),
        questions(reading, naming=str),
        specificity(reading, naming=str),
        capability(reading, short=True, naming=str),
        filters(reading, naming=str),
        classifier(reading),
        drift(reading, naming=str),
        unmeasured(reading, naming=str),
    ]
    for table in found:
        if table is not None:
            put(table, console)


def _rates(reading: Reading, channel: str, trait: str, probe: str, metric: str, measured: str) -> Iterator[Entry]:
    for rate in reading.find("rates", probe=probe, metric=metric, measured=measured):
        if rate["channel"] in (channel, "") and rate["trait"] in (trait, ""):
            yield rate


def _by_arm(rates: Iterable[Entry]) -> dict[str, Entry]:
    return {rate["arm"]: rate for rate in rates}


def _compared(c: Entry) -> tuple[str, ...]:
    """Difference, interval, p, the reading and the runs of one contrast."""
    name = c["metric"]
    change, span = say.difference(name, c.get("difference")), say.difference_interval(name, c.get("low"), c.get("high"))
    return change, span, say.p_value(c.get("p")), say.verdict(c), _text(c.get("n_runs"))


def _mean(reading: Reading, contrast: Entry, arm: str) -> str:
    """The mean of one side of a contrast, looked up among the rates about the contrast's trait."""
    channel, trait = contrast["channel"], contrast["trait"]
    about = {k: _by_arm(_rates(reading, channel, trait, contrast["probe"], contrast["metric"], k)) for k in (trait, "")}
    rate = about[trait].get(arm) or about[""].get(arm) or {}
    return say.number(contrast["metric"], rate.get("mean"))


def _place(reading: Reading, entry: Entry) -> tuple[int, int]:
    def at(names: tuple[str, ...], name: str) -> int:
        return names.index(name) if name in names else len(names)

    return at(reading.channels, entry["channel"]), at(reading.traits, entry["trait"])


def _interval(metric: str, entry: Entry) -> str:
    return "one run" if entry.get("n_runs") == 1 else say.interval(metric, entry.get("low"), entry.get("high"))


def _told(c: Entry) -> str:
    low, chance, confound = c.get("low"), c.get("chance"), c.get("confound_accuracy")
    if not isinstance(low, int | float) or not isinstance(chance, int | float):
        return "no interval"
    if low <= chance:
        return "cannot tell the rows apart"
    explained = isinstance(confound, int | float) and low <= confound
    return "tells them apart, no better than confounds" if explained else "tells the rows apart"


def _where(channel: str, trait: str) -> str:
    return ", ".join(part for part in (trait, channel) if part)


def _most(reasons: Mapping[str, int]) -> list[tuple[str, int]]:
    counted = [(str(reason), count) for reason, count in reasons.items() if isinstance(count, int)]
    return sorted(counted, key=lambda pair: (-pair[1], pair[0]))


def _text(value: Any) -> str:
    return say.DASH if value is None or value == "" else f"{value:,}" if isinstance(value, int) else str(value)
