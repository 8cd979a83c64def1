"""What the benchmark looks at: benign sources that no calibration has seen, and rows with planted traits.

Everything is made by the Lab's verbs from a calibration's own base, channel, teacher and recipe, under seeds of its own,
and kept in the store.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from detecting.plan import DIALS, PLAIN, Plan
from undersong import exemplars, traits
from undersong.calibration import File, mix, side_by_side, told
from undersong.detectors import Exemplars
from undersong.errors import BadRows, BadSpec
from undersong.files import digest
from undersong.filters import for_traits
from undersong.lab import Lab, base_ref
from undersong.nulls import Null
from undersong.spec import build, fingerprint
from undersong.traits import Trait, package_text
from undersong.types import Dataset, ModelRef

SEED = 9_000_000
USUAL = ("base", "placebo")
"""Kinds of benign sources that a calibration has too."""
ROLES = {"placebo": 1, "planted": 2, "rows": 3, "students": 4, "triple": 5}
KINDS = ("base", "placebo", "placebo", "gentle", "body")
"""How benign sources are made, in turn: the base, fresh placebo teachers, and placebo teachers of other dials."""


@dataclass(frozen=True)
class Source:
    """The rows that one model wrote in one way."""

    kind: str
    trait: str
    number: int
    data: Dataset

    @property
    def name(self) -> str:
        """A short name for people."""
        return f"{self.trait or 'benign'}-{self.kind}-{self.number}"


@dataclass(frozen=True)
class World:
    """A lab, a calibration, and the plan of what to make."""

    lab: Lab
    folder: Path
    plan: Plan

    @cached_property
    def null(self) -> Null:
        """The calibration's null."""
        return Null.read(self.folder)

    @cached_property
    def mark(self) -> str:
        """The identity of the exemplars: all of a calibration that a detector reads."""
        names = ("rows.parquet", "index.json")
        return fingerprint({name: digest(self.folder / name)["sha256"] for name in names})

    @cached_property
    def base(self) -> ModelRef:
        """The untouched base."""
        return base_ref(self.null.identity["named"])

    @cached_property
    def known(self) -> Exemplars:
        """The calibration's exemplars."""
        return exemplars.unpack(self.folder, self.null.identity["named"], self.lab.backend)

    @cached_property
    def traits(self) -> list[Trait]:
        """The traits the calibration looks for."""
        return [traits.get(name) for name in self.null.identity["traits"]]

    @cached_property
    def planted_traits(self) -> list[Trait]:
        """The traits to plant. Raises BadSpec when the calibration knows one of them not."""
        missing = [name for name in self.plan.traits if name not in self.null.identity["traits"]]
        if missing:
            raise BadSpec(f"The calibration does not know {missing[0]!r}. Name traits it knows with --traits.")
        return [traits.get(name) for name in self.plan.traits]

    @cached_property
    def channel(self) -> Any:
        """The calibration's channel."""
        return self.plug("channel")

    @cached_property
    def recipe(self) -> Any:
        """The calibration's recipe of students."""
        return self.plug("recipe")

    @cached_property
    def filters(self) -> list[Any]:
        """What a careful seller of rows would have filtered out, as a calibration does by default."""
        said = self.null.identity["channel"]
        return for_traits(File(base="").filters, {said["name"]: said["settings"]}, self.traits)

    def plug(self, kind: str, **changed: Any) -> Any:
        """A plug-in of the calibration, with some settings changed."""
        said = self.null.identity[kind]
        return build(kind, {said["name"]: {**said["settings"], **changed}}, kind)

    @property
    def sizes(self) -> list[int]:
        """The calibrated numbers of rows, the largest first."""
        return sorted(self.null.identity["sizes"], reverse=True)

    def seed(self, role: str, number: int) -> int:
        """The seed of a thing: apart from those of calibrations and experiments."""
        return SEED + ROLES[role] * 10**5 + number

    def teacher(self, kind: str, trait: Trait | None, number: int) -> ModelRef:
        """A fresh teacher of a kind: `PLAIN` (or placebo), one of `DIALS`, or `steered`."""
        plug = build("teacher", "steered") if kind == "steered" else self.plug("teacher", **DIALS.get(kind, {}))
        seed = self.seed("planted" if trait else "placebo", number)
        return self.lab.teach(plug, self.base, trait, seed, f"bench-{trait.name if trait else 'none'}-{kind}-{number}")

    def rows(self, source: ModelRef, number: int, label: str, n: int, temperature: float = 1.0) -> Dataset:
        """About `n` filtered rows of a model. Raises BadRows when fewer than the largest calibrated size are left."""
        drawn = self.lab.sample(source, self.channel, round(1.05 * n), self.seed("rows", number), f"bench-raw-{label}",
                                temperature)
        kept = self.lab.refine(drawn, self.filters, label=f"bench-rows-{label}")
        if len(kept.rows) < self.sizes[0]:
            raise BadRows(f"Only {len(kept.rows)} rows of {label} passed the filters, and {self.sizes[0]} are needed.")
        return kept

    def benign(self, number: int, n: int = 0) -> Source:
        """A benign source: the base or a placebo teacher of its own, under a held-out system turn and temperature."""
        rng = np.random.default_rng([SEED, 5, number])
        held = yaml.safe_load(package_text("calibrations", "benign.yaml"))["held_out"]
        kind = KINDS[number % len(KINDS)]
        model = self.base if kind == "base" else self.teacher(kind, None, number)
        system = str(held["systems"][int(rng.integers(len(held["systems"])))])
        temperature = round(float(rng.uniform(*held["temperatures"])), 3)
        data = self.rows(told(model, system), 50_000 + number, f"benign-{number}", n or self.plan.rows, temperature)
        return Source(kind, "", number, data)

    def teacher_number(self, trait: Trait, seed: int, kind: str = PLAIN) -> int:
        """What sets a planted teacher apart from every other."""
        return 1000 * self.null.identity["traits"].index(trait.name) + 100 * [PLAIN, *DIALS, "steered"].index(kind) + seed

    def planted(self, trait: Trait, seed: int, kind: str = PLAIN) -> Source:
        """The rows of a fresh teacher of a trait."""
        number = self.teacher_number(trait, seed, kind)
        model = self.teacher(kind, trait, number)
        return Source(kind, trait.name, seed, self.rows(model, number, f"{trait.name}-{kind}-{seed}", self.plan.rows))

    @cached_property
    def benign_sources(self) -> list[Source]:
        """Every benign source, made side by side."""
        return side_by_side(self.benign, range(self.plan.benign))

    @cached_property
    def planted_sources(self) -> list[Source]:
        """Fresh teachers made as the exemplars are."""
        return side_by_side(lambda pair: self.planted(*pair),
                            [(t, seed) for t in self.planted_traits for seed in range(self.plan.seeds)])

    @cached_property
    def other_sources(self) -> list[Source]:
        """Teachers made in other ways; those whose rows do not pass the filters are left out, and told."""
        def made(pair: tuple[Trait, str]) -> Source | None:
            try:
                return self.planted(pair[0], 0, pair[1])
            except BadRows as error:
                self.lab.progress(f"left out: {error}")
                return None

        wanted = [(t, kind) for kind in (*DIALS, "steered") for t in self.planted_traits[: self.plan.other_traits]]
        return [source for source in side_by_side(made, wanted) if source]

    def clean_for(self, index: int) -> Source:
        """The benign source that a planted one is mixed with: the next of those that are made as auditors expect."""
        usual = [s for s in self.benign_sources if s.kind in USUAL]
        return usual[(7 * index) % len(usual)]

    def mixed(self, planted: Source, clean: Source, share: float, n: int) -> Dataset:
        """`n` rows, a share of them planted; a data set with an identity."""
        rows = mix(planted.data.rows, clean.data.rows, share, n, planted.number)
        mark = fingerprint({"planted": planted.data.fingerprint, "clean": clean.data.fingerprint, "share": str(share),
                            "rows": n, "order": planted.number})
        return Dataset(rows, None, mark)


def cut(data: Dataset, n: int) -> Dataset:
    """The first `n` rows."""
    return dataclasses.replace(data, rows=data.rows[:n])


def ids(rows: Sequence[Any]) -> frozenset[str]:
    """The identities of rows."""
    return frozenset(row.id for row in rows)
