"""Cells: one mitigation on one run, under one dose and one state of knowledge. A cell that is done is read back; a
mitigation that refuses, or a student that learnt nothing, is a cell that says so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from mitigating import reading
from mitigating.plan import PLAIN
from mitigating.world import MIXED, NONE, PURE, World
from undersong.errors import NothingMeasured, UndersongError
from undersong.lab import Student
from undersong.registry import Settings
from undersong.spec import build, describe, plain
from undersong.types import ModelRef

RIGHT, WRONG_TRAIT = "known", "unknown"


@dataclass(frozen=True)
class Cell:
    """One student under one mitigation. `trait` "" is the no-trait teacher's rows."""

    mitigation: Any
    trait: str
    seed: int
    dose: str = PURE
    knows: str = RIGHT

    @property
    def key(self) -> tuple[str, str, int, str, str]:
        """What tells it from others."""
        return name(self.mitigation), self.trait, self.seed, self.dose, self.knows


def name(mitigation: Any) -> str:
    """A short name: the plug-in's, and the settings that are not its defaults."""
    changed = {k: v for k, v in mitigation.model_dump().items() if v != type(mitigation).model_fields[k].default}
    return " ".join([mitigation.plugin_name, *(f"{k}={v}" for k, v in changed.items())])


class Gentler(Settings):
    """A control in a mitigation's place: the same recipe with a lower rate or fewer steps. None where it is as it was."""

    plugin_kind: ClassVar[str] = "recipe"
    plugin_name: ClassVar[str] = "gentler"
    plugin_version: ClassVar[int] = 1
    stage: ClassVar[str] = "recipe"
    needs: ClassVar[frozenset[str]] = frozenset()
    rate: float | None = None
    steps: int | None = None


def asks_trait(mitigation: Any) -> bool:
    """Whether it reads the trait's name."""
    return "trait" in mitigation.needs | getattr(mitigation, "may_use", frozenset())


def elsewhere(mitigation: Any) -> bool:
    """Whether its students start from another base."""
    return bool(getattr(mitigation, "elsewhere", False))


class Bench:
    """The cells of a world."""

    def __init__(self, world: World) -> None:
        self.world, self.mitigations = world, [build("mitigation", given) for given in world.plan.mitigations]
        self.mitigations += [Gentler(**given) for given in world.plan.gentler]

    def groups(self, ranked: Sequence[Any] = ()) -> list[list[Cell]]:
        """Cells in the order of work; `ranked` are the mitigations in the order in which the later ones are wanted."""
        plan, n = self.world.plan, len(self.world.plan.seeds)
        first, later = plan.pairs[:n], plan.pairs[n:]
        order = list(ranked) or self.mitigations
        out = [[Cell(m, *pair) for pair in first] for m in self.mitigations]
        out += [[Cell(m, "", seed) for seed in plan.seeds] for m in self.mitigations if elsewhere(m)]
        out += [[Cell(m, *pair, knows=WRONG_TRAIT) for pair in first] for m in order if asks_trait(m)]
        out += [[Cell(m, *pair, dose=MIXED) for pair in first] for m in order]
        out += [[Cell(m, "", seed) for seed in plan.seeds[: plan.clean_seeds]] for m in order
                if m.stage == "training" and not elsewhere(m)]
        out += [[Cell(m, *pair) for pair in later] for m in order]
        return [group for group in out if group]

    def find(self, cell: Cell) -> dict[str, Any] | None:
        """What a cell said, or None where it is not done."""
        made = self.world.lab.store.find("cells", *self._identity(cell))
        return None if made is None else dict(made.read_json("said"))

    def run(self, group: Sequence[Cell]) -> None:
        """Do the missing cells of a group: students of one mitigation, trained side by side."""
        todo = [cell for cell in group if self.find(cell) is None]
        if not todo:
            return
        self.world.lab.progress(f"{len(todo)} of {' '.join(map(str, todo[0].key))}")
        try:
            refs = self.students(todo)
        except UndersongError:  # one of them: each by itself says which
            refs = [self._alone(cell) for cell in todo]
        reading.questions(self.world), reading.carriers(self.world)  # made before threads ask for them
        self.world.side_by_side(lambda pair: self._keep(*pair), list(zip(todo, refs, strict=True)))

    def _keep(self, cell: Cell, ref: ModelRef | str) -> None:
        try:
            said = {"failed": ref} if isinstance(ref, str) else self._read(cell, ref)
        except NothingMeasured as nothing:  # a student that answers in numbers only
            said = {"failed": str(nothing)}
        with self.world.lab.store.open("cells", self._label(cell), *self._identity(cell)) as artefact:
            artefact.write_json("said", said)
            artefact.finish({})

    def students(self, cells: Sequence[Cell]) -> list[ModelRef]:
        """The final model of every cell."""
        lab, world = self.world.lab, self.world
        out, jobs = dict[int, ModelRef](), dict[int, Student]()
        for i, cell in enumerate(cells):
            if cell.mitigation.stage == "recipe":
                out[i] = self._gentler(cell)
                continue
            defence = world.defence(cell.mitigation, cell.trait, cell.seed, cell.dose, self.told(cell))
            if cell.mitigation.stage == "model":
                student = world.plain(cell.trait, cell.seed, cell.dose)
                out[i] = lab.repair(student, defence, cell.seed, self._label(cell))
                continue
            data, guard = world.rows(cell.trait, cell.seed, cell.dose), None
            if cell.mitigation.stage == "data":
                data = lab.mitigate(data, defence, cell.seed, self._label(cell))
            else:
                guard = defence
            start = world.other if elsewhere(cell.mitigation) else world.base
            jobs[i] = Student(start, data, cell.seed, self._label(cell), guard)
        if jobs:
            out |= dict(zip(jobs, lab.train(world.recipe, world.channel, list(jobs.values())), strict=True))
        return [out[i] for i in range(len(cells))]

    def _gentler(self, cell: Cell) -> ModelRef:
        world = self.world
        changed = {key: value for key, value in cell.mitigation.model_dump().items() if value is not None}
        student = Student(world.base, world.rows(cell.trait, cell.seed, cell.dose), cell.seed, self._label(cell))
        return world.lab.train(world.recipe.model_copy(update=changed), world.channel, [student])[0]

    def told(self, cell: Cell) -> str:
        """The trait that a cell's mitigation is told."""
        plan = self.world.plan
        return plan.wrong if cell.knows == WRONG_TRAIT else cell.trait or plan.traits[0]

    def _alone(self, cell: Cell) -> ModelRef | str:
        try:
            return self.students([cell])[0]
        except UndersongError as error:
            self.world.lab.progress(f"{cell.key}: {error}")
            return str(error)

    def _read(self, cell: Cell, ref: ModelRef) -> dict[str, Any]:
        held = self.world.held(cell.trait, cell.seed, cell.dose)
        return reading.read(self.world, ref, held)

    def references(self, pairs: Sequence[tuple[str, int]], dose: str = PURE) -> None:
        """Read the unmitigated models that cells of these runs are compared with, side by side."""
        reading.questions(self.world), reading.carriers(self.world)  # made before threads ask for them
        clean = [(PLAIN, "", seed, PURE) for seed in sorted({seed for _, seed in pairs})]
        base = [("base", *pair, dose) for pair in pairs]
        self.reference(*base[0])  # what does not depend on rows is read once for all of them
        self.world.side_by_side(lambda job: self.reference(*job), [*base, *((PLAIN, *p, dose) for p in pairs), *clean])

    def reference(self, what: str, trait: str, seed: int, dose: str = PURE) -> dict[str, Any]:
        """The same figures of an unmitigated model: `plain` (of "" the no-trait student) or the `base`."""
        world = self.world

        def make() -> dict[str, Any]:
            ref = world.plain(trait, seed, dose) if what == PLAIN else world.base
            return reading.read(world, ref, world.held(trait, seed, dose))

        return dict(world.once(("read", what, trait, seed, dose), make))

    def _label(self, cell: Cell) -> str:
        return f"bench-{cell.mitigation.plugin_name}-{cell.trait or NONE}-{cell.seed}-{cell.dose}-{cell.knows}"

    def _identity(self, cell: Cell) -> tuple[dict[str, Any], tuple[str, ...]]:
        """From values alone: asking whether a cell is done makes nothing."""
        plan, asks = self.world.plan, asks_trait(cell.mitigation)
        spec = {"verb": "benchmark", "what": "mitigated", "mitigation": describe(cell.mitigation), "trait": cell.trait,
                "seed": cell.seed, "dose": cell.dose, "told": self.told(cell) if asks else "", "version": 1,
                "experiment": plain(self.world.file), "items": plan.items, "prompts": plan.prompts, "held": plan.held,
                "share": plan.share, "traits": [t.name for t in reading.measured(self.world)]}
        return spec, (self.world.base.fingerprint, self.world.other.fingerprint)
