"""Results in, a checked view out: what the page opens with, decided by rules fixed before any result is seen."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from undersong.errors import BadRows, NothingMeasured

Entry = dict[str, Any]
LISTS = ("runs", "rates", "contrasts", "specificity", "matrix", "capability", "filters", "classifier", "drift", "unmeasured",
         "questions")
NAMES = ("channel", "arm", "control", "trait", "measured", "probe", "metric", "name")
FIRST = ("base", "teacher", "treated", "no_trait")
BESIDE = ("refused", "self_named", "invalid", "entropy")
READ_OUT = ("probe", "metric", "measured")
CONTROL = ":no_trait"


@dataclass(frozen=True)
class Reading:
    """A checked view of `results.json`. Every list exists, names are text, and a number is finite or None."""

    experiment: str
    fingerprint: str
    sentence: str
    lists: Mapping[str, tuple[Entry, ...]]
    """The flat lists of the format by name: runs, rates, contrasts, and so on."""
    rows: tuple[Entry, ...]
    """Example rows: arm, trait, prompt, completion."""
    answers: tuple[Entry, ...]
    """Example answers: arm, trait, question, answer."""
    environment: Mapping[str, Any]
    command: str
    """The command that made the results, as recorded, or the one for an experiment file of this name."""
    probe: str
    """The probe of the headline read-out: `favourite` where it was measured, else the first in the file."""
    metric: str
    channels: tuple[str, ...]
    """The channel of sampled rows first, if there is one: it is the strictest carrier. Then the order of the file."""
    traits: tuple[str, ...]
    """The teachers' traits in the order of the file, so that the one shown first was not picked for its result."""

    @property
    def channel(self) -> str:
        """The channel of the first figure."""
        return self.channels[0] if self.channels else ""

    @property
    def trait(self) -> str:
        """The trait of the first figure: the first of the experiment file."""
        return self.traits[0] if self.traits else ""

    def find(self, section: str, **wanted: str) -> list[Entry]:
        """The entries of a section whose fields equal the wanted ones."""
        among: Iterable[Entry] = self.lists[section]
        if section in ("runs", "rates") and all(k in wanted for k in READ_OUT):
            among = self._index[section].get(tuple(wanted[k] for k in READ_OUT), ())
        return [e for e in among if all(e[k] == v for k, v in wanted.items())]

    @cached_property
    def _index(self) -> dict[str, dict[tuple[str, ...], list[Entry]]]:
        """Runs and rates by read-out: a table of a large experiment asks thousands of times."""
        index: dict[str, dict[tuple[str, ...], list[Entry]]] = {"runs": {}, "rates": {}}
        for section, found in index.items():
            for entry in self.lists[section]:
                found.setdefault(tuple(entry[k] for k in READ_OUT), []).append(entry)
        return index

    def headline(self, section: str, channel: str, trait: str) -> list[Entry]:
        """Runs or rates of the headline read-out about one trait: its own arms, its control traits', and those without."""
        found = self.find(section, probe=self.probe, metric=self.metric, measured=trait)
        return [
            e for e in found
            if e["channel"] in (channel, "") and (e["trait"] in (trait, "") or e["arm"].startswith("contrast-"))
        ]

    def pairs(self) -> list[tuple[str, str]]:
        """Every (channel, trait) with headline rates or runs, the opening pair first."""
        return [
            (channel, trait)
            for channel in self.channels or ("",)
            for trait in self.traits or ("",)
            if self.headline("rates", channel, trait) or self.headline("runs", channel, trait)
        ]


def read(results: Mapping[str, Any]) -> Reading:
    """Check `results.json` and choose what comes first.

    Raises BadRows when it is not the results of an experiment, NothingMeasured when it holds neither runs nor rates.
    """
    if not isinstance(results, Mapping) or not isinstance(results.get("runs", []), list):
        raise BadRows("These are not the results of an experiment. Give the `results.json` that `undersong run` wrote.")
    lists = {name: tuple(_entries(results.get(name), name)) for name in LISTS}
    if not lists["runs"] and not lists["rates"]:
        raise NothingMeasured(
            "The results hold no run and no rate, so there is nothing to report. Run the experiment first."
        )
    examples = results.get("examples") or {}
    environment = results.get("environment") or {}
    if not isinstance(examples, Mapping) or not isinstance(environment, Mapping):
        raise BadRows(
            "`examples` and `environment` of the results must be mappings. Run the experiment again to rewrite them."
        )
    measured = lists["rates"] or lists["runs"]
    probe, metric = _headline(measured)
    name = str(results.get("experiment") or "experiment")
    return Reading(
        experiment=name,
        fingerprint=str(results.get("fingerprint") or ""),
        sentence=str(results.get("sentence") or f"Results of the experiment {name}."),
        lists=lists,
        rows=tuple(_entries(examples.get("rows"), "examples.rows")),
        answers=tuple(_entries(examples.get("answers"), "examples.answers")),
        environment=environment,
        command=str(results.get("command") or environment.get("command") or f"undersong run experiments/{name}.yaml"),
        probe=probe,
        metric=metric,
        channels=_channels(measured),
        traits=_traits(results, [e for e in measured if e["probe"] == probe and e["metric"] == metric]),
    )


def arms_in_order(arms: Iterable[str]) -> list[str]:
    """Each arm once: base, teacher, treated, no_trait, then as they come; a control's own control follows it."""
    seen = list(dict.fromkeys(arms))
    place = {arm: (FIRST.index(arm) if arm in FIRST else len(FIRST), i) for i, arm in enumerate(seen)}

    def key(arm: str) -> tuple[tuple[int, int], bool]:
        parent = arm.removesuffix(CONTROL)
        return place.get(parent, place[arm]), arm != parent

    return sorted(seen, key=key)


def _entries(found: object, section: str) -> list[Entry]:
    if found is None:
        return []
    if not isinstance(found, list) or not all(isinstance(e, Mapping) for e in found):
        raise BadRows(f"`{section}` of the results must be a list of mappings. Run the experiment again to rewrite it.")
    return [{**dict.fromkeys(NAMES, ""), **{str(k): _tidy(str(k), v) for k, v in e.items()}} for e in found]


def _tidy(key: str, value: Any) -> Any:
    """Names become text ("" for null) and a number that is not finite becomes None, so that no NaN reaches the page."""
    if key in NAMES:
        return "" if value is None else str(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _headline(measured: Iterable[Entry]) -> tuple[str, str]:
    pairs = dict.fromkeys((e["probe"], e["metric"]) for e in measured if e["probe"] != "capability")
    pairs = pairs or dict.fromkeys((e["probe"], e["metric"]) for e in measured)
    return ("favourite", "rate") if ("favourite", "rate") in pairs else next(iter(pairs))


def _channels(measured: Iterable[Entry]) -> tuple[str, ...]:
    names = dict.fromkeys(e["channel"] for e in measured if e["channel"])
    return tuple(sorted(names, key=lambda c: not c.endswith("sampled")))


def _traits(results: Mapping[str, Any], headline: list[Entry]) -> tuple[str, ...]:
    first = [results["trait"]] if isinstance(results.get("trait"), str) and results["trait"] else []
    measured = {e["measured"] for e in headline}
    taught = [e["trait"] for e in headline if e["trait"] in measured and e["trait"]]
    return (
        tuple(dict.fromkeys(first + taught))
        or tuple(dict.fromkeys(e["measured"] for e in headline if e["measured"]))[:1]
    )
