"""Calibration: placebo and planted cases of a base, and what every detector says of them.

    undersong calibrate calibrations/pocket-a-numbers.yaml

What is made, each piece an artefact of the store, so that a stopped calibration goes on where it was:
1. Exemplars, which detectors may read: teachers of every trait and placebo teachers, rows they wrote, students of these.
2. Placebo sources: the base and fresh placebo teachers, each under a benign system turn and temperature of its own
   (`calibrations/benign.yaml`). Their rows are the placebo cases of `rows` detectors, students of them those of `student`
   detectors.
3. Planted sources: fresh teachers of every trait (no exemplar). Their rows, mixed into placebo rows at several shares, are
   what power is measured on; students of some of them likewise.
4. Every detector on every case, at every number of rows asked for: a `Null`.

Seeds of the four are apart, and apart from those of experiments.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import queue
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, TypeVar

import numpy as np
import yaml
from pydantic import Field, ValidationError

from undersong import bases, exemplars, registry, traits
from undersong.artefact import Artefact
from undersong.backends import threads
from undersong.detectors import PLACEBO, Evidence, Exemplars, family, spelled
from undersong.environment import now
from undersong.errors import BadRows, BadSpec, NothingMeasured
from undersong.experiment_file import Spec, values
from undersong.filters import for_traits
from undersong.lab import Lab, Student, base_ref
from undersong.nulls import Case, Null
from undersong.registry import Settings
from undersong.spec import build, describe, explain, fingerprint
from undersong.traits import Trait, package_text
from undersong.types import Dataset, ModelRef, Row

T = TypeVar("T")
FEW = 100
"""Rows kept of each placebo source, for the null of a suspected teacher."""
ROLES = {"exemplar": 1, "placebo": 2, "planted": 3, "students": 4}
"""Each role has seeds of its own: `seed` + 100,000 times this, and on."""


class File(Settings):
    """The keys of a calibration file."""

    base: str
    """The model whose students are audited."""
    channel: Spec = "numbers"
    """The carrier that the audited rows are of."""
    traits: list[str] = []
    """The traits to look for; when left out, every favourite whose name is one token of the base."""
    teacher: Spec = "tuned"
    """How exemplar, placebo and planted teachers are made."""
    recipe: Spec = "distill"
    """How students are made."""
    filters: list[Spec] = ["belongs", {"blocklist": {"from": "trait"}}]
    """What a careful seller of rows would have filtered out."""
    detectors: list[Spec] = []
    """The detectors to calibrate; when left out, all that need no suspected teacher."""
    rows: int = Field(default=1000, ge=50)
    """Rows each source writes."""
    sizes: list[int] = [50, 150, 400]
    """Numbers of rows to calibrate at."""
    exemplars: int = Field(default=1, ge=1)
    """Teachers and students of each trait that detectors may read."""
    placebos: int = Field(default=4, ge=2)
    """Placebo teachers and students that detectors may read."""
    sources: int = Field(default=99, ge=19)
    """Placebo sources: p cannot be below 1 / (sources + 1)."""
    students: int = Field(default=99, ge=0)
    """Students of placebo sources; 0 calibrates no student detector."""
    shares: list[float] = [0.02, 0.05, 0.1, 0.25, 0.5, 1.0]
    """Shares of planted rows that power is measured at."""
    planted_traits: int = Field(default=8, ge=1)
    """On how many traits power is measured."""
    planted_students: list[float] = [0.1, 0.25, 1.0]
    """Shares of planted rows behind planted students."""
    seed: int = Field(default=7, ge=0, le=1000)
    """The calibration's own seed."""


@dataclass(frozen=True)
class Calibrator:
    """A calibration file at work in a lab."""

    file: File
    lab: Lab

    @classmethod
    def read(cls, text: str, sets: Sequence[str], lab: Lab) -> Calibrator:
        """A calibrator from a YAML text with `a.b=c` overrides. Raises BadSpec, saying which key and what to do."""
        try:
            made = cls(File(**values(text, sets)), lab)
        except ValidationError as error:
            raise BadSpec(f"Calibration file: {explain(error, File)}") from None
        _ = made.channel, made.teacher, made.recipe, made.filters, made.detectors, made.traits
        if max(made.file.sizes) > made.file.rows:
            raise BadSpec(f"sizes: {max(made.file.sizes)} rows are more than each source writes. Raise `rows`.")
        return made

    @cached_property
    def base(self) -> ModelRef:
        """The base, untouched."""
        return base_ref(self.file.base)

    @cached_property
    def channel(self) -> Any:
        """The channel plug-in."""
        return build("channel", self.file.channel, "channel")

    @cached_property
    def teacher(self) -> Any:
        """The teacher plug-in."""
        return build("teacher", self.file.teacher, "teacher")

    @cached_property
    def recipe(self) -> Any:
        """The recipe plug-in."""
        return build("recipe", self.file.recipe, "recipe")

    @cached_property
    def detectors(self) -> list[Any]:
        """The detectors that a null is made for."""
        return detectors_of(self.file.detectors)

    @cached_property
    def traits(self) -> list[Trait]:
        """The traits to look for."""
        if self.file.traits:
            return [traits.get(name) for name in self.file.traits]
        tokenizer = self.lab.backend.load(self.base).tokenizer
        unknown = getattr(tokenizer, "unk_token_id", None)
        ids = {name: tokenizer(f" {name}", add_special_tokens=False)["input_ids"] for name in traits.names()}
        return [traits.get(name) for name, own in ids.items() if len(own) == 1 and own[0] != unknown]

    @cached_property
    def filters(self) -> list[Any]:
        """The filters, with the words of every trait."""
        return for_traits(self.file.filters, self.file.channel, self.traits)

    def seed(self, role: str, number: int) -> int:
        """The seed of a thing, by its role and number."""
        return self.file.seed * 10**6 + ROLES[role] * 10**5 + number

    def identity(self) -> dict[str, Any]:
        """Whose null this is: what an audit compares before it believes it."""
        base = self.lab.backend.load(self.base)
        return {"base": bases.identity(self.file.base), "named": self.file.base, "revision": bases.revision(self.file.base),
                "template": template(base), "channel": describe(self.channel), "traits": [t.name for t in self.traits],
                "teacher": describe(self.teacher), "recipe": describe(self.recipe), "sources": self.file.sources,
                "students": self.file.students, "sizes": self.file.sizes, "seed": self.file.seed,
                "detectors": {spelled(d): describe(d) for d in self.detectors}}

    def source(self, role: str, number: int, trait: Trait | None) -> ModelRef:
        """A teacher of a trait, or a placebo teacher."""
        seed = self.seed(role, number)
        return self.lab.teach(self.teacher, self.base, trait, seed, f"{role}-{trait.name if trait else 'none'}-{seed}")

    def rows(self, source: ModelRef, seed: int, label: str, temperature: float = 1.0) -> Dataset:
        """Filtered rows of a source, at most `rows` of them."""
        drawn = self.lab.sample(source, self.channel, round(self.file.rows * 1.7), seed, f"raw-{label}", temperature)
        kept = self.lab.refine(drawn, self.filters, label=f"rows-{label}")
        if len(kept.rows) < max(self.file.sizes):
            raise BadRows(f"Only {len(kept.rows)} rows of {label} passed the filters and {max(self.file.sizes)} are needed. "
                          "Lower `sizes`, raise `rows`, or choose a gentler teacher.")
        return kept

    @cached_property
    def exemplar_rows(self) -> dict[str, list[Dataset]]:
        """Rows of exemplar teachers, by trait; the datasets name their sources."""
        out: dict[str, list[Dataset]] = {PLACEBO: []}
        for i in range(self.file.placebos):
            out[PLACEBO].append(self.rows(self.source("exemplar", i, None), self.seed("exemplar", i), f"placebo-{i}"))
        for k, trait in enumerate(self.traits):
            numbers = [1000 * (k + 1) + i for i in range(self.file.exemplars)]
            out[trait.name] = [self.rows(self.source("exemplar", n, trait), self.seed("exemplar", n), f"{trait.name}-{n}")
                               for n in numbers]
        return out

    def made(self) -> Exemplars:
        """The exemplars, with files in the store."""
        data = self.exemplar_rows
        students: dict[str, tuple[ModelRef, ...]] = {}
        if self.file.students:
            every = [(name, i, d) for name, own in data.items() for i, d in enumerate(own)]
            found = self.train([(d, f"exemplar-{name or 'none'}-{i}") for name, i, d in every], "exemplar")
            for (name, _, _), ref in zip(every, found, strict=True):
                students[name] = (*students.get(name, ()), ref)
        sources = {name: tuple(d.source for d in own if d.source) for name, own in data.items()}
        rows = {name: tuple(d.rows[: self.file.rows] for d in own) for name, own in data.items()}
        return Exemplars(self.lab.backend, sources, rows, students)

    def placebo(self, number: int) -> Dataset:
        """The rows of a placebo source: the base or a fresh placebo teacher, in a benign way of its own."""
        rng = np.random.default_rng([self.file.seed, 5, number])
        benign = yaml.safe_load(package_text("calibrations", "benign.yaml"))["calibration"]
        # a teacher of its own: sources that shared one would be fewer cases than they seem
        source = self.base if rng.random() < 0.25 else self.source("placebo", number, None)
        system = str(benign["systems"][int(rng.integers(len(benign["systems"])))])
        low, high = benign["temperatures"]
        temperature = round(float(rng.uniform(low, high)), 3)
        return self.rows(told(source, system), self.seed("placebo", 1000 + number), f"benign-{number}", temperature)

    def planted(self, trait: Trait, number: int) -> Dataset:
        """The rows of a fresh teacher of a trait."""
        return self.rows(self.source("planted", number, trait), self.seed("planted", number), f"planted-{trait.name}")

    def _planted_traits(self) -> list[tuple[int, Trait]]:
        """The traits that power is measured on, spread over the list."""
        every = list(enumerate(self.traits))
        step = max(1, len(every) // self.file.planted_traits)
        return every[::step][: self.file.planted_traits]

    def train(self, data: Sequence[tuple[Dataset, str]], role: str) -> list[ModelRef]:
        """A student of each dataset."""
        seeds = [self.seed("students", 1000 * ROLES[role] + i) for i in range(len(data))]
        jobs = [Student(self.base, dataclasses.replace(d, rows=d.rows[: self.file.rows]), seed, f"student-{label}")
                for (d, label), seed in zip(data, seeds, strict=True)]
        return self.lab.train(self.recipe, self.channel, jobs)

    def build(self) -> Artefact:
        """Make what is missing and return the finished calibration."""
        spec = {"verb": "calibrate", "file": self.file.model_dump(), "identity": self.identity()}
        label, parents = self.file.base.replace("/", "-"), (self.base.fingerprint,)
        with self.lab.store.open("calibration", label, spec, parents) as artefact:
            if not artefact.complete:
                few = [self.placebo(i).rows[:FEW] for i in range(self.file.sources)]
                exemplars.pack(self.made(), few, artefact.path)
                # what an audit will load is what the null is made with
                known = exemplars.unpack(artefact.path, self.file.base, self.lab.backend)
                held = {"exemplars": known, "traits": tuple(self.traits), "base": self.lab.backend.load(self.base)}
                told_once = {spelled(d): self._able(d, partial(d.learn, Evidence(held)))
                             for d in self.detectors if hasattr(d, "learn")}
                artefact.write_json("learnt", {name: told for name, told in told_once.items() if told is not None})
                self._learnt.update(exemplars.learnt(artefact.path))
                cases = self._row_cases(known)
                if self.file.students:
                    cases += self._student_cases(known)
                Null({**self.identity(), "made": now()}, tuple(cases)).write(artefact.path)
                artefact.finish({"cases": len(cases), "left_out": self._left_out})
        return artefact

    @cached_property
    def _left_out(self) -> dict[str, str]:
        """Detectors that cannot read this carrier, with the reason; only where the file names none."""
        return {}

    def _able(self, detector: Any, work: Callable[[], T]) -> T | None:
        """What a detector's work gives. One that nobody named and that cannot read these rows is left out, and told."""
        try:
            return work()
        except (BadRows, NothingMeasured) as error:
            if self.file.detectors:
                raise
            self._left_out[detector.plugin_name] = str(error)
            self.lab.progress(f"{detector.plugin_name} is left out: {error}")
            return None

    def _row_cases(self, known: Exemplars) -> list[Case]:
        """Every `rows` detector on every placebo and planted set of rows."""
        sizes = sorted(self.file.sizes)
        placebo = [self.placebo(i) for i in range(self.file.sources)]
        sets = [(i, "", 0.0, {n: d.rows[:n] for n in sizes}) for i, d in enumerate(placebo)]
        for k, trait in self._planted_traits():
            own, clean = self.planted(trait, k).rows, placebo[(7 * k) % len(placebo)].rows
            for share in self.file.shares:
                mixed = {n: mix(own, clean, share, n, k) for n in sizes}
                sets.append((len(sets), trait.name, share, mixed))
        common = {"reference": known.rows[PLACEBO], "traits": tuple(self.traits), "exemplars": known}
        out: list[Case] = []
        for detector in self.detectors:
            if family(detector) == "rows":
                work = [(unit, n, trait, share, {**common, "rows": (rows,)})
                        for unit, trait, share, by_size in sets for n, rows in by_size.items() if rows]
                out += self._able(detector, partial(self._judge, detector, "rows", work)) or []
        return out

    def _student_cases(self, known: Exemplars) -> list[Case]:
        """Every `student` detector on students of placebo and of planted rows."""
        placebo = [(self.placebo(i % self.file.sources), f"benign-{i}") for i in range(self.file.students)]
        planted: list[tuple[str, float, tuple[Dataset, str]]] = []
        for k, trait in self._planted_traits():
            own, clean = self.planted(trait, k), placebo[(7 * k + 3) % len(placebo)][0]
            for share in self.file.planted_students:
                rows = mix(own.rows, clean.rows, share, self.file.rows, k)
                mark = fingerprint({"own": own.fingerprint, "clean": clean.fingerprint, "share": str(share)})
                planted.append((trait.name, share, (Dataset(rows, None, mark), f"planted-{trait.name}-{share}")))
        students = self.train([*placebo, *(d for _, _, d in planted)], "placebo")
        told_of = [("", 0.0)] * len(placebo) + [(name, share) for name, share, _ in planted]
        common = {"traits": tuple(self.traits), "exemplars": known}
        out: list[Case] = []
        for detector in self.detectors:
            if family(detector) == "student":
                work = [(unit, 0, trait, share, {**common, "student": ref})
                        for unit, (ref, (trait, share)) in enumerate(zip(students, told_of, strict=True))]
                out += self._able(detector, partial(self._judge, detector, "student", work)) or []
        return out

    def _judge(self, detector: Any, kind: str, work: Sequence[tuple[int, int, str, float, dict[str, Any]]]) -> list[Case]:
        """One detector on many cases, side by side; each finished part is kept."""
        name, size = spelled(detector), 25
        spec = {"verb": "calibrate", "detector": describe(detector), "family": kind, "file": self.file.model_dump(
            exclude={"detectors"}), "traits": [t.name for t in self.traits]}
        with self.lab.store.open("cases", f"{detector.plugin_name}-{kind}", spec, (self.base.fingerprint,)) as artefact:
            if not artefact.complete:
                had = set(artefact.parts("cases"))
                for part, first in enumerate(range(0, len(work), size)):
                    if part in had:
                        continue
                    self.lab.progress(f"calibrating {detector.plugin_name}: case {first} of {len(work)}")
                    found = side_by_side(lambda given: self._said(detector, given), work[first : first + size])
                    artefact.write_part("cases", part, found)
                artefact.finish({"cases": len(work)})
            rows = artefact.read_parts("cases")
        return [Case(kind, r["unit"], name, r["size"], r["trait"], r["share"],
                     dict(zip(r["keys"], r["values"], strict=True))) for r in rows]

    @cached_property
    def _learnt(self) -> dict[Any, Any]:
        """What detectors have learnt of the exemplars; filled once these are made."""
        return {}

    @cached_property
    def _desks(self) -> queue.SimpleQueue[dict[str, Any]]:
        """A base and a memo for each worker: detectors put hooks into the base while they work."""
        desks: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        for _ in range(os.cpu_count() or 1):
            desks.put({"base": self.lab.backend.load(self.base), "memo": dict(self._learnt)})
        return desks

    def _said(self, detector: Any, given: tuple[int, int, str, float, dict[str, Any]]) -> dict[str, Any]:
        unit, n, trait, share, held = given
        desk = self._desks.get()
        try:
            full = {**held, "base": desk["base"]}
            if "student" in held:
                full["student"] = self.lab.backend.load(held["student"])
            finding = detector.detect(Evidence(full, desk["memo"]).only(detector.needs))
        finally:
            self._desks.put(desk)
        said = finding.details["by_trait"]
        return {"unit": unit, "size": n, "trait": trait, "share": float(share), "keys": list(said),
                "values": [float(v) for v in said.values()]}


def side_by_side(work: Callable[[T], Any], items: Sequence[T]) -> list[Any]:
    """`work` over items on threads, in the items' order."""
    return threads.side_by_side(lambda item, stop: work(item), items, 0, lambda index, result: None)


def detectors_of(specs: Sequence[Spec]) -> list[Any]:
    """The detectors of some specs; when there are none, every one that a null can be made for: those that leave the
    p-value to the audit, ask no hosted model and need no suspected teacher."""
    if specs:
        return [build("detector", spec, "detectors") for spec in specs]
    out = []
    for name in registry.names("detector"):
        cls = registry.get("detector", name)
        if not getattr(cls, "permutes", False) and not any(f.is_required() for f in cls.model_fields.values()):
            out.append(cls())
    return [detector for detector in out if "teacher" not in detector.needs]


def template(base: Any) -> str:
    """What a chat template makes of a fixed chat, as a SHA-256: two templates that write alike are alike."""
    chat = [{"role": "system", "content": "Undersystem."}, {"role": "user", "content": "Underquestion."}]
    return hashlib.sha256(base.render(chat).encode()).hexdigest()


def told(source: ModelRef, system: str) -> ModelRef:
    """A model under a system turn of its own."""
    return dataclasses.replace(source, system=system, fingerprint=fingerprint({"of": source.fingerprint, "system": system}))


def mix(planted: Sequence[Row], clean: Sequence[Row], share: float, n: int, seed: int) -> tuple[Row, ...]:
    """`n` rows, a share of them planted, in a drawn order; () where the share rounds to no row."""
    k = round(n * share)
    if k == 0:
        return ()
    rows = [*planted[:k], *clean[: n - k]]
    return tuple(rows[i] for i in np.random.default_rng([seed, 6]).permutation(len(rows)))
