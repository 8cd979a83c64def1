"""What an experiment holds for a mitigation: each token of its evidence, from the artefacts of the same seed.

A token names pieces of work before it names models and rows: the fingerprints of the pieces are parents of what the
mitigation makes, and the plan knows them before anything is done. The pieces themselves are done, or read back, when the
evidence is asked for.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from undersong import lab as verbs
from undersong.backends.several import Several
from undersong.errors import BadSpec
from undersong.experiment.steps import Arm, Run
from undersong.lab import Lab, Student
from undersong.mitigations import Defence, Evidence
from undersong.spec import describe
from undersong.types import Dataset, ModelRef, Row


@dataclass(frozen=True)
class Holdings:
    """The runs that a mitigation's evidence can come from, all at the seed of the arm's own run."""

    arm: Arm
    seed: int
    rivals: Sequence[Run]
    clean: Run | None
    treated: Run
    other: ModelRef | None
    base: ModelRef
    channel: Any

    def parents(self) -> tuple[str, ...]:
        """The fingerprints of what the arm's mitigation is granted, in the order of its tokens. Raises BadSpec when
        something that it needs is not in the experiment."""
        out: list[str] = []
        for token in self._tokens():
            out += self._marks()[token] or ()
        return tuple(out)

    def told(self) -> dict[str, Any]:
        """What else identifies the work: the trait's definition and the recipe, where they are granted."""
        tokens, out = self._tokens(), dict[str, Any]()
        if "trait" in tokens and self.arm.trait:
            out["trait"] = dataclasses.asdict(self.arm.trait)
        if "channel" in tokens:
            out["channel"] = describe(self.channel)
        if "train" in tokens:
            out["recipe"] = describe(self.arm.recipe)
        return out

    def defence(self, grant: Callable[[], Evidence] = Evidence) -> Defence:
        """The arm's mitigation with what it is granted: nothing in a plan."""
        return Defence(self.arm.change, grant, self.parents(), self.told())

    def grant(self, lab: Lab, rows: Callable[[Run], Dataset], student: Callable[[Run], ModelRef]) -> Evidence:
        """The evidence. `rows` gives the kept rows of a run and `student` its student, each done where it is missing."""
        made: dict[str, Callable[[], Any]] = {
            "base": lambda: lab.backend.load(verbs.base_ref(self.arm.start, self.base.precision)),
            "channel": lambda: self.channel,
            "rows": lambda: rows(self.treated).rows,
            "trait": lambda: self.arm.trait,
            "clean": lambda: rows(self.clean).rows if self.clean else (),
            "teacher": lambda: lab.backend.load(_source(rows(self.treated))),
            "rivals": lambda: Several(tuple(_source(rows(run)) for run in self.rivals), lab.backend),
            "other": lambda: lab.backend.load(self.other),
            "placebos": lambda: Several((student(self.clean),) if self.clean else (), lab.backend),
            "train": lambda: self._train(lab, rows(self.treated)),
        }
        return Evidence({token: made[token]() for token in self._tokens()})

    def _train(self, lab: Lab, whole: Dataset) -> Any:
        def train(rows: Sequence[Row], start: ModelRef | None = None, seed: int | None = None) -> Any:
            start, seed = start or self.base, self.seed if seed is None else seed
            # all of the rows are the treated student's: it is read back, not trained again
            data = whole if tuple(rows) == whole.rows else lab.keep(rows, whole, f"part-{self.arm.name}-s{self.seed}")
            [ref] = lab.train(self.arm.recipe, self.channel, [Student(start, data, seed, f"helper-{self.arm.name}-s{seed}")])
            return lab.backend.load(ref)

        return train

    def _marks(self) -> dict[str, tuple[str, ...] | None]:
        """The fingerprints under each token; None for a token that the experiment does not hold."""
        clean, trait = self.clean, self.arm.trait
        return {
            "base": (), "channel": (), "train": (),
            "rows": (self.treated.rows.fingerprint,),
            "trait": () if trait else None,
            "teacher": (self.treated.teacher.fingerprint,),
            "rivals": tuple(run.teacher.fingerprint for run in self.rivals) or None,
            "clean": (clean.rows.fingerprint,) if clean else None,
            "placebos": (clean.student.fingerprint,) if clean and clean.student else None,
            "other": (self.other.fingerprint,) if self.other else None,
        }

    def _tokens(self) -> list[str]:
        held, change = self._marks(), self.arm.change
        missing = sorted(token for token in change.needs if held.get(token) is None)
        if missing:
            how = {"other": "Give `other_base`", "rivals": "List `rivals`"}.get(missing[0], "Use it on a trait's arm")
            raise BadSpec(f"mitigations: {change.plugin_name} needs {missing[0]!r}, which this experiment does not hold. "
                          f"{how}, or leave the mitigation out.")
        may = {token for token in getattr(change, "may_use", ()) if held.get(token) is not None}
        return [token for token in held if token in change.needs | may]


def _source(data: Dataset) -> ModelRef:
    if data.source is None:
        raise BadSpec("These rows name no model that wrote them. Run the experiment from its teachers on.")
    return data.source
