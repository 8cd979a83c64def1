"""Arms, and the pieces of work that a run of an arm is made of."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from undersong import lab as verbs
from undersong.traits import Trait
from undersong.writing import shard_spec, shards


@dataclass(frozen=True)
class Arm:
    """One cell of the comparison: who teaches what to whom. `trait` None is the no-trait teacher."""

    name: str
    channel: str
    teacher: Any
    recipe: Any
    trait: Trait | None
    start: str
    change: Any = None
    """The mitigation of this arm."""
    context: bool = False

    @property
    def trait_name(self) -> str:
        """The trait's name, or "" for the no-trait teacher."""
        return self.trait.name if self.trait else ""

    @property
    def stage(self) -> str:
        """Where the arm's mitigation acts; "" without one."""
        return str(self.change.stage) if self.change else ""


@dataclass(frozen=True)
class Step:
    """One piece of work of the plan: enough to look it up, and the fingerprints it depends on."""

    kind: str
    label: str
    spec: dict[str, Any]
    parents: tuple[str, ...]

    @cached_property
    def fingerprint(self) -> str:
        """The identity the store will give it."""
        return verbs.identity(self.kind, self.spec, self.parents)


@dataclass(frozen=True)
class PlanRow:
    """One line of a plan. `changed` names the fields that differ from the last finished work of that label."""

    kind: str
    label: str
    fingerprint: str
    status: str
    changed: tuple[str, ...] = ()


@dataclass(frozen=True)
class Run:
    """The pieces of one arm and seed."""

    arm: Arm
    seed: int
    teacher: Step
    raw: Step
    rows: Step
    student: Step | None
    measures: tuple[Step, ...]
    changed: Step | None = None
    """The rows after a mitigation of the data stage."""
    repaired: Step | None = None
    """The student after a mitigation of the model stage."""

    def shards(self, size: int) -> list[tuple[Step, range]]:
        """The shards, of about `size` rows each, in which workers may write the raw rows; none for few rows."""
        return [(Step("shard", f"{self.raw.label}-{i}", shard_spec(self.raw.spec, rows), self.raw.parents), rows)
                for i, rows in enumerate(shards(self.raw.spec["rows"], size))]

    @property
    def learnt(self) -> Step:
        """The rows that the student learns from."""
        return self.changed or self.rows

    @property
    def work(self) -> list[Step]:
        """Every piece, in the order in which it is made."""
        made = (self.teacher, self.raw, self.rows, self.changed, self.student, self.repaired)
        return [*(step for step in made if step), *self.measures]


def role(trait: Trait) -> str:
    """What students are called: `treated`, or `contrast-<name>` for a control trait, measured as the trait beside it."""
    return "treated" if trait.probes else f"contrast-{trait.name}"
