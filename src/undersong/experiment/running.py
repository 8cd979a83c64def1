"""Doing the work of an experiment. `Running` holds one method per piece: each asks the store first, so that a piece can be
done here, in another process or on another machine, and whoever comes later reads it back. `everything` does them in this
process, all students of a recipe at once; `cells.py` does them anywhere."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from undersong.detectors import Evidence
from undersong.errors import NothingMeasured
from undersong.experiment.steps import Run, Step
from undersong.lab import Lab, Student
from undersong.mitigations import Defence
from undersong.types import Dataset, ModelRef

if TYPE_CHECKING:
    from undersong.experiment import Experiment


@dataclass
class Running:
    """One go through a plan. `data` and `models` hold what is done, by fingerprint of the step that made it."""

    experiment: Experiment
    lab: Lab
    shard: int = 0
    """Rows of the shards that other workers may have written; 0 for none."""
    data: dict[str, Dataset] = field(default_factory=dict)
    models: dict[str, ModelRef] = field(default_factory=dict)

    def everything(self) -> dict[str, ModelRef]:
        """Do the missing work. Returns references of students, and of repaired ones, by fingerprint."""
        runs = self.experiment.runs()
        for _, _, seed, start, steps in self.experiment.references():
            self.reference(start, seed, steps)  # first: a probe that cannot ask this base about these traits says so at once
        for run in runs:
            self.rows(run)
        # plain students before any mitigation: some are granted them
        self.train([run for run in runs if run.arm.stage in ("", "model")])
        for run in runs:
            self.learnt(run)
        self.train([run for run in runs if run.arm.stage in ("data", "training")])
        for run in runs:
            self.repair(run)
        for run in runs:
            self.measure(run)
        for step in self.experiment.audits().values():
            self.audit(step)
        return self.models

    def teacher(self, run: Run) -> ModelRef:
        """The model that writes the rows of a run."""
        base = self.experiment.base(self.experiment.file.base)
        return self.lab.teach(run.arm.teacher, base, run.arm.trait, run.seed, run.teacher.label)

    def write(self, run: Run, number: int) -> None:
        """A shard of the rows of a run."""
        step, rows = run.shards(self.shard)[number]
        self.lab.shard(self.teacher(run), self.experiment.channel, self.experiment.file.rows, run.seed, rows, step.label,
                       self.experiment.engine)

    def rows(self, run: Run) -> Dataset:
        """The kept rows of a run: its teacher, what that wrote, and what the filters left."""
        if run.rows.fingerprint not in self.data:
            if run.raw.fingerprint not in self.data:
                source, store, asked = self.teacher(run), self.lab.store, run.raw
                # a shared store fetches what is found: nobody needs the shards of a dataset that is there
                there = store.has(asked.kind, asked.spec, asked.parents, asked.label)
                wanted = [] if there else run.shards(self.shard)
                found = [store.find(step.kind, step.spec, step.parents, like=step.label) for step, _ in wanted]
                self.data[run.raw.fingerprint] = self.lab.sample(
                    source, self.experiment.channel, self.experiment.file.rows, run.seed, run.raw.label,
                    engine=self.experiment.engine, shards=[shard for shard in found if shard])
            raw = self.data[run.raw.fingerprint]
            keep = self.experiment.file.keep
            kept = self.lab.refine(raw, self.experiment.filters, keep=keep, label=run.rows.label)
            self.data[run.rows.fingerprint] = kept
        return self.data[run.rows.fingerprint]

    def learnt(self, run: Run) -> Dataset:
        """The rows that the student of a run learns from: the kept ones, changed where a mitigation acts on data."""
        if run.changed is None:
            return self.rows(run)
        if run.changed.fingerprint not in self.data:
            change = self.lab.mitigate(self.rows(run), self._defence(run), run.seed, run.changed.label)
            self.data[run.changed.fingerprint] = change
        return self.data[run.changed.fingerprint]

    def student(self, run: Run) -> ModelRef:
        """The student of a run, before a repair."""
        assert run.student is not None
        if run.student.fingerprint not in self.models:
            self.train([run])
        return self.models[run.student.fingerprint]

    def train(self, runs: Sequence[Run]) -> None:
        """The students of some runs, those of one recipe side by side."""
        for recipe in self.experiment.recipes:
            mine = {r.student.fingerprint: r for r in runs if r.student and r.arm.recipe is recipe}
            students = [
                Student(self.experiment.base(r.arm.start), self.learnt(r), r.seed, r.student.label,
                        self._defence(r) if r.arm.stage == "training" else None)
                for r in mine.values()
                if r.student
            ]
            self.models |= dict(zip(mine, self.lab.train(recipe, self.experiment.channel, students), strict=True))

    def repair(self, run: Run) -> None:
        """The student of a run after a mitigation of the model stage, where it has one."""
        if run.repaired and run.repaired.fingerprint not in self.models:
            repaired = self.lab.repair(self.student(run), self._defence(run), run.seed, run.repaired.label)
            self.models[run.repaired.fingerprint] = repaired

    def measure(self, run: Run) -> None:
        """A run's model with every probe. That a probe finds nothing in it is recorded, and the others go on."""
        final = run.repaired or run.student
        if run.repaired:
            self.repair(run)
        elif final:
            self.student(run)
        model = self.models[final.fingerprint] if final else self.experiment.base(run.arm.start)
        context, shown = (None, 0) if final else (self.rows(run), self.experiment.file.context_rows)
        for probe, step in zip(self.experiment.probes, run.measures, strict=True):
            with contextlib.suppress(NothingMeasured):
                self.lab.measure(model, probe, self.experiment.traits, run.seed, context, shown, step.label)

    def reference(self, start: str, seed: int, steps: Sequence[Step]) -> None:
        """An untouched base with every probe."""
        for probe, step in zip(self.experiment.probes, steps, strict=True):
            with contextlib.suppress(NothingMeasured):
                self.lab.measure(self.experiment.base(start), probe, self.experiment.traits, seed, label=step.label)

    def audit(self, step: Step) -> None:
        """What the classifier makes of the rows of a trait beside those of no trait."""
        made = {run.rows.fingerprint: run for run in self.experiment.runs()}
        rows = [self.rows(made[parent]).rows for parent in step.parents]
        half, detector = len(rows) // 2, self.experiment.classifier
        evidence = Evidence({"rows": tuple(rows[:half]), "reference": tuple(rows[half:])}).only(detector.needs)
        self.lab.audit(detector, evidence, step.parents, step.label)

    def _defence(self, run: Run) -> Defence:
        held = self.experiment.holdings(run.arm, run.seed)
        return held.defence(partial(held.grant, self.lab, self.rows, self.student))
