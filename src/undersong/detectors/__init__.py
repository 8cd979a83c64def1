"""Detectors: could an auditor tell, blind? A plug-in is settings plus `detect`; it declares what it `needs` and is
handed no more than that.

| token | what the auditor holds |
|---|---|
| `rows` | the suspected rows, one collection per source or training run |
| `reference` | clean rows from the same kind of source, in the same form |
| `base` | the model the student will start from, loaded |
| `traits` | suspected traits |
| `student` | the trained model, loaded |
| `teacher` | the suspected teacher, loaded |
| `exemplars` | known cases that the auditor has made from `base` and `traits` (`undersong calibrate`) |

A detector returns a Finding whose `details["by_trait"]` holds one statistic per trait, larger for more suspicion (the
key "" where it is about no trait), and whose `statistic` is the largest of them. It is `uncalibrated`: the audit turns
statistics into p-values by a null of the same detector on placebo cases (`undersong.calibration`). Only a detector that
tests by permuting what is exchangeable gives a p-value itself; it sets `permutes = True`. `details["shares"]` may hold the
estimated share (0..1) of rows per trait.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, cast

import numpy as np

from undersong.backends import Backend, Model
from undersong.evidence import Granted
from undersong.spec import describe, fingerprint
from undersong.traits import Trait
from undersong.types import Finding, ModelRef, Row

ACCESS = ("rows", "reference", "base", "traits", "student", "teacher", "exemplars")
Runs = tuple[Collection[Row], ...]
"""Rows by source or training run. A collection can be read again and again and knows its length; it may lie on disk."""
PLACEBO = ""
"""The name under which exemplars hold cases without a trait."""


@dataclass(frozen=True)
class Exemplars:
    """Known cases, made from a base and a list of traits; keys are trait names, and `PLACEBO` for those without one."""

    backend: Backend
    teacher_refs: Mapping[str, tuple[ModelRef, ...]] = field(default_factory=dict)
    """Teachers tuned on each trait, and teachers tuned on nothing."""
    rows: Mapping[str, Runs] = field(default_factory=dict)
    """Filtered rows that these teachers wrote, one run per teacher."""
    student_refs: Mapping[str, tuple[ModelRef, ...]] = field(default_factory=dict)
    """Students trained on such rows."""

    @property
    def names(self) -> list[str]:
        """The traits there are teachers of, in order; the placebo is none."""
        return [name for name in self.teacher_refs if name != PLACEBO]

    def teachers(self, trait: str) -> Iterator[Model]:
        """The teachers of a trait, loaded one by one."""
        return (self.backend.load(ref) for ref in self.teacher_refs.get(trait, ()))

    def students(self, trait: str) -> Iterator[Model]:
        """The students of a trait, loaded one by one."""
        return (self.backend.load(ref) for ref in self.student_refs.get(trait, ()))


@dataclass(frozen=True)
class Evidence(Granted):
    """What an auditor holds. Reading anything that was not granted raises BadSpec."""

    ACCESS: ClassVar[tuple[str, ...]] = ACCESS
    KIND: ClassVar[str] = "detector"

    @property
    def rows(self) -> Runs:
        """The suspected rows, one tuple per source or training run."""
        return cast(Runs, self.read("rows"))

    @property
    def reference(self) -> Runs:
        """Clean rows, one tuple per source or training run."""
        return cast(Runs, self.read("reference"))

    @property
    def base(self) -> Model:
        """The model the student will start from."""
        return cast(Model, self.read("base"))

    @property
    def traits(self) -> tuple[Trait, ...]:
        """The suspected traits."""
        return cast(tuple[Trait, ...], self.read("traits"))

    @property
    def student(self) -> Model:
        """The trained model."""
        return cast(Model, self.read("student"))

    @property
    def teacher(self) -> Model:
        """The suspected teacher."""
        return cast(Model, self.read("teacher"))

    @property
    def exemplars(self) -> Exemplars:
        """Known cases of each trait and placebos."""
        return cast(Exemplars, self.read("exemplars"))


class Detector(Protocol):
    """The contract of a detector plug-in: pure; the same finding for the same evidence and seed."""

    @property
    def needs(self) -> frozenset[str]:
        """The tokens of `ACCESS` that it reads (a class variable will do)."""
        ...

    def detect(self, evidence: Evidence, seed: int = 0) -> Finding:
        """What the evidence says: verdict `found`, `clean` or `unknown`, with a p-value or None when uncalibrated."""
        ...


def uncalibrated(by_trait: Mapping[str, float], access: Iterable[str], **details: Any) -> Finding:
    """The finding of a detector that leaves the p-value to the audit."""
    return Finding("unknown", max(by_trait.values()), None, tuple(sorted(access)), "uncalibrated",
                   {"by_trait": dict(by_trait), **details})


def drawn(runs: Runs, most: int, seed: int) -> list[Row]:
    """At most `most` rows of all runs together, in their order: a uniform sample drawn by the seed (Vitter's algorithm R,
    1985), so that rows on disk are read once and never all held."""
    rng = np.random.default_rng([seed, 11])
    kept: list[tuple[int, Row]] = []
    for number, row in enumerate(row for rows in runs for row in rows):
        if len(kept) < most:
            kept.append((number, row))
        elif (place := int(rng.integers(number + 1))) < most:
            kept[place] = (number, row)
    return [row for _, row in sorted(kept, key=lambda pair: pair[0])]


def family(detector: Any) -> str:
    """What kind of thing a detector judges: a suspected teacher, a student, or rows."""
    return next((kind for kind in ("teacher", "student") if kind in detector.needs), "rows")


def spelled(detector: Any) -> str:
    """A detector's name in a null: its settings and version are in it."""
    return f"{detector.plugin_name}@{fingerprint(describe(detector))}"


def learnt(detector: Any) -> tuple[str, str]:
    """Where the memo of an audit holds what a detector has learnt of its calibration's exemplars.

    A detector that has a slow part of that kind gives it as JSON by a method `learn(evidence)`; the calibration keeps it.
    """
    return "learnt", spelled(detector)
