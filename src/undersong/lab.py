"""The verbs: sample, refine, train, measure, audit (and teach, the step that makes a source to sample from).

A Lab holds a store and a backend. Each verb first asks the store; finished work is read back, missing work is done, recorded
and returned. What identifies a piece of work is written once, in the `*_spec` functions, which the experiment's plan
uses too: what `plan` shows is what `run` does.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from undersong import bases, files
from undersong import spec as specs
from undersong.artefact import Artefact
from undersong.backends import changes
from undersong.backends.in_context import InContext
from undersong.backends.routing import ByName
from undersong.errors import BadRows, BadSpec, NothingMeasured, UndersongError
from undersong.filters import reasons
from undersong.mitigations import Defence
from undersong.recipes import Job
from undersong.spec import describe, fingerprint
from undersong.store import Store
from undersong.traits import Trait
from undersong.types import Dataset, Finding, Measurement, ModelRef, Row, Value
from undersong.writing import Writing, copy, engines, flat, row_of, sample_spec, shard_spec

Progress = Callable[[str], None]


def quiet(message: str) -> None:
    """The progress callback that says nothing."""


def base_ref(name: str, precision: str = "float32") -> ModelRef:
    """A reference to an untouched base model; its fingerprint covers its content where that is at hand."""
    said = {"base": bases.identity(name), "revision": bases.revision(name)}
    if precision != "float32":
        said["precision"] = precision
    return ModelRef(base=name, fingerprint=fingerprint(said), precision=precision)


def identity(kind: str, spec: Mapping[str, Any], parents: Sequence[str]) -> str:
    """The fingerprint the store gives to a piece of work."""
    return specs.identity(kind, spec, parents)


def teach_spec(teacher: Any, trait: Trait | None, seed: int) -> dict[str, Any]:
    """What identifies a teacher, besides its base (its parent)."""
    return {"verb": "teach", "teacher": describe(teacher), "trait": trait and trait.said, "seed": seed}


def refine_spec(filters: Sequence[Any], keep: int | None) -> dict[str, Any]:
    """What identifies refined rows, besides the rows they come from (their parent)."""
    return {"verb": "refine", "filters": [describe(f) for f in filters], "keep": keep}


def mitigate_spec(defence: Defence, seed: int) -> dict[str, Any]:
    """What identifies rows changed by a mitigation, besides the rows and its evidence (their parents)."""
    return {"verb": "mitigate", **defence.said, "seed": seed}


def train_spec(recipe: Any, channel: Any, seed: int, guard: Defence | None = None) -> dict[str, Any]:
    """What identifies a student, besides its start, its rows and a guard's evidence (its parents)."""
    said = {"verb": "train", "recipe": describe(recipe), "channel": describe(channel)["name"], "seed": seed}
    return said | ({"guard": guard.said} if guard else {})


def repair_spec(defence: Defence, seed: int) -> dict[str, Any]:
    """What identifies a repaired student, besides the student and the mitigation's evidence (its parents)."""
    return {"verb": "repair", **defence.said, "seed": seed}


def measure_spec(probe: Any, traits: Sequence[Trait], seed: int, context: int) -> dict[str, Any]:
    """What identifies a measurement, besides the model (and the rows in its context): its parents."""
    return {
        "verb": "measure",
        "probe": describe(probe),
        "traits": [t.said for t in traits],
        "seed": seed,
        "context": context,
    }


def audit_spec(detector: Any) -> dict[str, Any]:
    """What identifies a finding, besides the evidence (its parents)."""
    return {"verb": "audit", "detector": describe(detector)}


@dataclass(frozen=True)
class Student:
    """One student to train: its start, rows, seed and a label for people; `guard` is a mitigation of the training stage."""

    start: ModelRef
    data: Dataset
    seed: int
    label: str
    guard: Defence | None = None

    @property
    def parents(self) -> tuple[str, ...]:
        """What it is made from."""
        return (self.start.fingerprint, self.data.fingerprint, *(self.guard.parents if self.guard else ()))


@dataclass(frozen=True)
class Lab:
    """The verbs over one store and one backend. `progress` is told what happens, in short sentences."""

    store: Store
    backend: Any
    progress: Progress = quiet

    def teach(self, teacher: Any, base: ModelRef, trait: Trait | None, seed: int, label: str = "teacher") -> ModelRef:
        """A model with the trait in it (the no-trait teacher for None)."""
        with self.store.open("model", label, teach_spec(teacher, trait, seed), (base.fingerprint,)) as artefact:
            if not artefact.complete:
                self.progress(f"teaching {artefact.path.name}")
                artefact.clear()  # training starts over: nothing of an interrupted attempt may stay
                start = time.monotonic()
                ref = teacher.teach(base, trait, seed, artefact.path, self.backend)
                artefact.finish({"ref": _pack(ref, artefact.path), "seconds": round(time.monotonic() - start, 2)})
            return unpack(artefact)

    def sample(
        self, source: ModelRef, channel: Any, n: int, seed: int, label: str = "rows", temperature: float = 1.0,
        engine: Any = None, shards: Sequence[Artefact] = (),
    ) -> Dataset:
        """`n` rows that `source` writes on the channel's prompts. Resumes by parts. A `Writer` knows no temperature.

        `engine` is a backend that draws in place of the model's own. Parts that `shards` hold are copied from there."""
        spec = sample_spec(channel, n, seed, temperature, engine)
        with self.store.open("dataset", label, spec, (source.fingerprint,)) as artefact:
            if not artefact.complete:
                self.progress(f"sampling {artefact.path.name}")
                start, writing = time.monotonic(), self._writing(source, channel, n, seed, temperature, engine)
                held = [copy(shard, artefact) for shard in shards]
                if sum(shard.rows for shard in held) < n:  # else nothing is loaded
                    writing.write(artefact, range(n))
                    held.append(writing.told())
                spent = time.monotonic() - start + sum(shard.seconds for shard in held)
                artefact.finish({"rows": n, "seconds": round(spent, 2)} | engines(held))
            rows_read = tuple(row_of(r) for r in artefact.read_parts("rows"))
            return Dataset(rows_read, source, artefact.fingerprint)

    def shard(
        self, source: ModelRef, channel: Any, n: int, seed: int, rows: range, label: str = "shard", engine: Any = None
    ) -> Artefact:
        """Some of the rows that `sample` would write, as an artefact for it to copy. Resumes by parts."""
        spec = shard_spec(sample_spec(channel, n, seed, engine=engine), rows)
        with self.store.open("shard", label, spec, (source.fingerprint,)) as artefact:
            if not artefact.complete:
                self.progress(f"sampling {artefact.path.name}")
                start, writing = time.monotonic(), self._writing(source, channel, n, seed, 1.0, engine)
                writing.write(artefact, rows)
                told = writing.told(rows, round(time.monotonic() - start, 2))
                artefact.finish(told.model_dump(exclude_none=True))
            return artefact

    def _writing(
        self, source: ModelRef, channel: Any, n: int, seed: int, temperature: float, engine: Any
    ) -> Writing:
        plain = base_ref(source.base, source.precision)
        return Writing(source, plain, channel, n, seed, temperature, engine, self.backend)

    def refine(self, data: Dataset, filters: Sequence[Any], *, keep: int | None = None, label: str = "refined") -> Dataset:
        """The rows that pass every filter (the first `keep` of them). Each dropped row is stored with filter and reason.

        Raises BadRows when fewer than `keep` rows pass."""
        with self.store.open("dataset", label, refine_spec(filters, keep), (data.fingerprint,)) as artefact:
            if not artefact.complete:
                kept, dropped = sift(data.rows, filters)
                if keep is not None and len(kept) < keep:
                    raise BadRows(
                        f"Only {len(kept)} of {len(data.rows)} rows passed the filters and {keep} are to be kept. "
                        "Raise `rows` or lower `keep` in the experiment file."
                    )
                used = kept[:keep]
                artefact.write_parquet("rows", flat(used))
                if dropped:
                    artefact.write_parquet("dropped", dropped)
                told: dict[str, dict[str, int]] = {describe(f)["name"]: {} for f in filters}
                for d in dropped:
                    told[d["filter"]][d["reason"]] = told[d["filter"]].get(d["reason"], 0) + 1
                artefact.finish({"given": len(data.rows), "passed": len(kept), "kept": len(used), "reasons": told})
            return Dataset(read_rows(artefact), data.source, artefact.fingerprint)

    def keep(self, rows: Sequence[Row], whole: Dataset, label: str = "part") -> Dataset:
        """Rows that somebody made from those of `whole`, as a dataset of their own. Raises BadRows for none."""
        if not rows:
            raise BadRows("There are no rows to keep. Choose at least one.")
        spec = {"verb": "select", "rows": fingerprint(flat(rows))}
        with self.store.open("dataset", label, spec, (whole.fingerprint,)) as artefact:
            if not artefact.complete:
                artefact.write_parquet("rows", flat(rows))
                artefact.finish({"given": len(whole.rows), "kept": len(rows)})
            return Dataset(tuple(rows), whole.source, artefact.fingerprint)

    def mitigate(self, data: Dataset, defence: Defence, seed: int, label: str = "mitigated") -> Dataset:
        """Rows changed by a mitigation of the data stage. Raises BadSpec for one of another stage, BadRows for none left."""
        mitigation, parents = defence.at("data"), (data.fingerprint, *defence.parents)
        with self.store.open("dataset", label, mitigate_spec(defence, seed), parents) as artefact:
            if not artefact.complete:
                self.progress(f"mitigating {artefact.path.name}")
                start, evidence = time.monotonic(), defence.evidence()
                rows = mitigation.apply(data.rows, evidence, seed)
                if not rows:
                    raise BadRows(f"The mitigation {mitigation.plugin_name} left none of {len(data.rows)} rows. Make it "
                                  "weaker, or give it more rows.")
                artefact.write_parquet("rows", flat(rows))
                before = {row.id: row for row in data.rows}
                same = sum(before.get(row.id) == row for row in rows)
                artefact.finish({"given": len(data.rows), "kept": len(rows), "unchanged": same,
                                 "seconds": round(time.monotonic() - start, 2)})
            return Dataset(read_rows(artefact), data.source, artefact.fingerprint)

    def repair(self, student: ModelRef, defence: Defence, seed: int, label: str = "repaired") -> ModelRef:
        """A student changed by a mitigation of the model stage. Raises BadSpec for one of another stage."""
        mitigation, parents = defence.at("model"), (student.fingerprint, *defence.parents)
        with self.store.open("model", label, repair_spec(defence, seed), parents) as artefact:
            if not artefact.complete:
                self.progress(f"repairing {artefact.path.name}")
                artefact.clear()
                start, plain = time.monotonic(), dataclasses.replace(student, vector=None, precision="float32")
                model = self.backend.load(plain)
                vectors = dict(mitigation.repair(model, defence.evidence(), seed))
                told = vectors.pop("told", {})
                ref = changes.write(student, model, self.backend, vectors, artefact.path)
                summary = {"ref": _pack(ref, artefact.path), "seconds": round(time.monotonic() - start, 2)}
                artefact.finish(summary | ({"told": told} if told else {}))
            return unpack(artefact)

    def train(self, recipe: Any, channel: Any, students: Sequence[Student]) -> list[ModelRef]:
        """Train students, several at once where the recipe can; each is recorded the moment it is done."""
        found: dict[int, ModelRef] = {}
        opened: dict[int, Artefact] = {}
        carriers: dict[str, tuple[int, ...] | None] = {}
        jobs: list[Job] = []
        try:
            for i, s in enumerate(students):
                spec = train_spec(recipe, channel, s.seed, s.guard)
                artefact = self.store.open("model", s.label, spec, s.parents).__enter__()
                if artefact.complete:
                    found[i] = unpack(artefact)
                    continue
                opened[i] = artefact
                artefact.clear()
                if s.start.base not in carriers:
                    base = self.backend.load(base_ref(s.start.base, s.start.precision))
                    shows = "logits" in base.capabilities  # a hosted base shows none, and nothing restricts them
                    carriers[s.start.base] = tuple(channel.carrier(base.tokenizer)) if shows else None
                guard = s.guard.at("training").guard(s.guard.evidence(), s.seed) if s.guard else None
                jobs.append(Job(s.start, s.data, s.seed, artefact.path, carriers[s.start.base], guard))
            order, since = list(opened), [time.monotonic()]

            def done(index: int, ref: ModelRef) -> None:
                artefact = opened.pop(order[index])
                now = time.monotonic()  # what it took from the one before: students may be trained side by side
                artefact.finish({"ref": _pack(ref, artefact.path), "seconds": round(now - since[0], 2)})
                since[0] = now
                found[order[index]] = unpack(artefact)
                artefact.__exit__(None, None, None)
                self.progress(f"trained {artefact.path.name} ({len(found)}/{len(students)})")

            if jobs:
                recipe.train(jobs, self.backend, done)
        except Exception as error:
            if not isinstance(error, UndersongError) and files.is_full(error):
                raise files.no_room(Path(self.store.root), error) from error
            raise
        finally:
            for artefact in opened.values():
                artefact.__exit__(None, None, None)
        return [found[i] for i in range(len(students))]

    def measure(
        self,
        model: ModelRef,
        probe: Any,
        traits: Sequence[Trait],
        seed: int,
        context: Dataset | None = None,
        shown: int = 0,
        label: str = "measured",
    ) -> Measurement:
        """Per-question values of one model; with `context`, the model sees `shown` of those rows as earlier turns.

        Raises NothingMeasured when the probe matched nothing; that too is recorded, so that it is not tried again."""
        parents = (model.fingerprint, *([context.fingerprint] if context else []))
        with self.store.open("measurement", label, measure_spec(probe, traits, seed, shown), parents) as artefact:
            if not artefact.complete:
                self.progress(f"measuring {artefact.path.name}")
                loaded = self.backend.load(model)
                if context is not None:
                    loaded = InContext(loaded, context.rows, shown, seed)
                try:
                    got = probe.measure(loaded, traits, seed)
                except NothingMeasured as nothing:
                    artefact.finish({"probe": probe.plugin_name, "values": 0, "nothing": str(nothing)})
                    raise
                artefact.write_parquet("values", [dataclasses.asdict(v) for v in got.values])
                if got.answers:
                    artefact.write_parquet("answers", [{"question": q, "answer": a} for q, a in got.answers])
                artefact.finish({"probe": got.probe, "values": len(got.values)})
            return read_measurement(artefact)

    def audit(self, detector: Any, evidence: Any, parents: Sequence[str], label: str = "finding") -> Finding:
        """What a detector finds in the evidence it was granted; `parents` identify that evidence."""
        with self.store.open("finding", label, audit_spec(detector), tuple(parents)) as artefact:
            if not artefact.complete:
                self.progress(f"auditing {artefact.path.name}")
                finding = detector.detect(evidence)
                artefact.write_json("finding", dataclasses.asdict(finding))
                artefact.finish({"verdict": finding.verdict})
            return read_finding(artefact)


def lab_for(store: Store, base: str, progress: Progress = quiet) -> Lab:
    """A Lab that runs every model by the backend its name asks for, `base` and others alike."""
    return Lab(store, ByName(), progress)


def sift(rows: Sequence[Row], filters: Sequence[Any]) -> tuple[list[Row], list[dict[str, str]]]:
    """The rows every filter keeps, and for each other row its id, the first filter that dropped it and the reason."""
    left, dropped = list(range(len(rows))), dict[int, dict[str, str]]()
    for f in filters:
        told = dict(zip(left, reasons(f, [rows[i] for i in left]), strict=True))
        dropped |= {i: {"id": rows[i].id, "filter": describe(f)["name"], "reason": str(reason),
                        "completion": rows[i].completion} for i, reason in told.items() if reason is not None}
        left = [i for i in left if i not in dropped]
    return [rows[i] for i in left], [dropped[i] for i in sorted(dropped)]


def read_measurement(artefact: Artefact) -> Measurement:
    """A stored measurement. Raises NothingMeasured when the probe had matched nothing."""
    if "nothing" in artefact.summary:
        raise NothingMeasured(artefact.summary["nothing"])
    values = tuple(Value(**v) for v in artefact.read_parquet("values"))
    answers: tuple[tuple[str, str], ...] = ()
    if "answers.parquet" in artefact.record["files"]:
        answers = tuple((a["question"], a["answer"]) for a in artefact.read_parquet("answers"))
    return Measurement(artefact.summary["probe"], values, answers)


def read_finding(artefact: Artefact) -> Finding:
    """A stored finding."""
    got = artefact.read_json("finding")
    return Finding(**{**got, "access": tuple(got["access"])})


def read_rows(artefact: Artefact) -> tuple[Row, ...]:
    """The rows of a refined dataset."""
    return tuple(row_of(r) for r in artefact.read_parquet("rows"))


def _pack(ref: ModelRef, home: Path) -> dict[str, Any]:
    """A reference as JSON, its files named relative to the artefact."""
    out = dataclasses.asdict(ref)
    for key in ("weights", "adapter", "vector"):
        if out[key] is not None:
            path = Path(out[key])
            if not path.is_relative_to(home):
                raise BadSpec(
                    f"A plug-in wrote {key} outside the folder it was given. Write into `out` and return that path."
                )
            out[key] = str(path.relative_to(home))
    return out


def unpack(artefact: Artefact) -> ModelRef:
    """The reference a model artefact holds, with absolute paths and the artefact's own fingerprint."""
    given = dict(artefact.summary["ref"])
    for key in ("weights", "adapter", "vector"):
        if given[key] is not None:
            given[key] = str(artefact.path / given[key])
    return ModelRef(**{**given, "fingerprint": artefact.fingerprint})
