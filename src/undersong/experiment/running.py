"""Running an experiment: the missing work of its plan, in an order in which everything a step needs is there before it."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from undersong.detectors import Evidence
from undersong.errors import NothingMeasured
from undersong.experiment.steps import Run
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
    data: dict[str, Dataset] = field(default_factory=dict)
    models: dict[str, ModelRef] = field(default_factory=dict)

    def everything(self) -> dict[str, ModelRef]:
        """Do the missing work. Returns references of students, and of repaired ones, by fingerprint."""
        runs = self.experiment.runs()
        self._measure_references()  # first: a probe that cannot ask this base about these traits says so at once
        for run in runs:
            self.rows(run)
        # plain students before any mitigation: some are granted them
        self._train([run for run in runs if run.arm.stage in ("", "model")])
        for run in runs:
            if run.changed and run.changed.fingerprint not in self.data:
                change = self.lab.mitigate(self.rows(run), self._defence(run), run.seed, run.changed.label)
                self.data[run.changed.fingerprint] = change
        self._train([run for run in runs if run.arm.stage in ("data", "training")])
        for run in runs:
            if run.student and run.repaired:
                student = self.models[run.student.fingerprint]
                repaired = self.lab.repair(student, self._defence(run), run.seed, run.repaired.label)
                self.models[run.repaired.fingerprint] = repaired
        self._measure(runs)
        self._audit()
        return self.models

    def rows(self, run: Run) -> Dataset:
        """The kept rows of a run: its teacher, what that wrote, and what the filters left."""
        f = self.experiment.file
        if run.rows.fingerprint not in self.data:
            if run.raw.fingerprint not in self.data:
                base = self.experiment.base(f.base)
                source = self.lab.teach(run.arm.teacher, base, run.arm.trait, run.seed, run.teacher.label)
                raw = self.lab.sample(source, self.experiment.channel, f.rows, run.seed, run.raw.label)
                self.data[run.raw.fingerprint] = raw
            raw = self.data[run.raw.fingerprint]
            kept = self.lab.refine(raw, self.experiment.filters, keep=f.keep, label=run.rows.label)
            self.data[run.rows.fingerprint] = kept
        return self.data[run.rows.fingerprint]

    def student(self, run: Run) -> ModelRef:
        """The student of a run without a mitigation."""
        assert run.student is not None
        if run.student.fingerprint not in self.models:
            self._train([run])
        return self.models[run.student.fingerprint]

    def _defence(self, run: Run) -> Defence:
        held = self.experiment.holdings(run.arm, run.seed)
        return held.defence(partial(held.grant, self.lab, self.rows, self.student))

    def _train(self, runs: Sequence[Run]) -> None:
        for recipe in self.experiment.recipes:
            mine = {r.student.fingerprint: r for r in runs if r.student and r.arm.recipe is recipe}
            students = [
                Student(self.experiment.base(r.arm.start), self._learnt(r), r.seed, r.student.label,
                        self._defence(r) if r.arm.stage == "training" else None)
                for r in mine.values()
                if r.student
            ]
            self.models |= dict(zip(mine, self.lab.train(recipe, self.experiment.channel, students), strict=True))

    def _learnt(self, run: Run) -> Dataset:
        return self.data[run.changed.fingerprint] if run.changed else self.rows(run)

    def _measure(self, runs: Sequence[Run]) -> None:
        """Every model with every probe. A model that a probe finds nothing in is recorded so, and the others go on."""
        for run in runs:
            final = run.repaired or run.student
            model = self.models[final.fingerprint] if final else self.experiment.base(run.arm.start)
            context, shown = (None, 0) if final else (self.rows(run), self.experiment.file.context_rows)
            for probe, step in zip(self.experiment.probes, run.measures, strict=True):
                with contextlib.suppress(NothingMeasured):
                    self.lab.measure(model, probe, self.experiment.traits, run.seed, context, shown, step.label)

    def _measure_references(self) -> None:
        for _, _, seed, start, steps in self.experiment.references():
            for probe, step in zip(self.experiment.probes, steps, strict=True):
                with contextlib.suppress(NothingMeasured):
                    self.lab.measure(self.experiment.base(start), probe, self.experiment.traits, seed, label=step.label)

    def _audit(self) -> None:
        detector = self.experiment.classifier
        for step in self.experiment.audits().values():
            rows = [self.data[p].rows for p in step.parents]
            half = len(rows) // 2
            evidence = Evidence({"rows": tuple(rows[:half]), "reference": tuple(rows[half:])}).only(detector.needs)
            self.lab.audit(detector, evidence, step.parents, step.label)
