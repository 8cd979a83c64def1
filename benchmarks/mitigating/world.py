"""The world of the bench: teachers, rows of both doses, plain and no-trait students, and what mitigations are granted.

Everything is made by the Lab's verbs from the values of an experiment file, and kept in the store.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, cast

import numpy as np

from mitigating.plan import Plan
from undersong import traits
from undersong.backends import threads
from undersong.backends.several import Several
from undersong.errors import BadRows
from undersong.experiment_file import File
from undersong.filters import for_traits
from undersong.lab import Lab, Student, base_ref
from undersong.mitigations import Defence, Evidence
from undersong.spec import build, describe
from undersong.traits import Trait
from undersong.types import Dataset, ModelRef, Row

PURE, MIXED, NONE = "pure", "mixed", "none"
DOSES = (PURE, MIXED)


@dataclass(frozen=True)
class World:
    """A lab, an experiment's values and a plan."""

    lab: Lab
    file: File
    plan: Plan
    workers: int = 0
    """Students trained and read side by side; 0 takes every core."""
    _made: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)

    @cached_property
    def base(self) -> ModelRef:
        """The untouched base."""
        return base_ref(self.file.base)

    @cached_property
    def other(self) -> ModelRef:
        """A base of another initialisation."""
        return base_ref(str(self.file.other_base))

    @cached_property
    def channel(self) -> Any:
        """The carrier."""
        return build("channel", self.file.channel)

    @cached_property
    def recipe(self) -> Any:
        """How students learn."""
        given = self.file.recipe
        recipe = build("recipe", given[0] if isinstance(given, list | tuple) else given)
        return recipe.model_copy(update={"workers": self.workers})

    @cached_property
    def told(self) -> list[Trait]:
        """The traits of the experiment: taught, or measured beside."""
        return [traits.get(name) for name in (*self.plan.traits, *self.plan.rivals)]

    def once(self, key: Any, make: Callable[[], Any]) -> Any:
        """What `make` gives, made or read back once."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def teacher(self, trait: str, seed: int) -> ModelRef:
        """A teacher of a trait, or the no-trait teacher for ""."""
        return cast(ModelRef, self.once(("teacher", trait, seed), lambda: self._teacher(trait, seed)))

    def _teacher(self, trait: str, seed: int) -> ModelRef:
        given = self.file.teacher
        plug = build("teacher", given[0] if isinstance(given, list | tuple) else given)
        name = trait or NONE
        return self.lab.teach(plug, self.base, traits.get(trait) if trait else None, seed, f"bench-teacher-{name}-{seed}")

    def passed(self, trait: str, seed: int) -> Dataset:
        """Every row of a teacher that the filters leave."""
        source, name = self.teacher(trait, seed), trait or NONE
        raw = self.lab.sample(source, self.channel, self.file.rows, seed, f"bench-raw-{name}-{seed}")
        filters = for_traits(self.file.filters, self.file.channel, self.told)
        return self.lab.refine(raw, filters, label=f"bench-passed-{name}-{seed}")

    def rows(self, trait: str, seed: int, dose: str = PURE) -> Dataset:
        """The rows that a student learns from. `mixed` is made of other no-trait rows than those handed out as clean."""
        return cast(Dataset, self.once(("rows", trait, seed, dose), lambda: self._cut(trait, seed, dose))[0])

    def held(self, trait: str, seed: int, dose: str = PURE) -> Dataset:
        """Held-out rows of the same source, in the same shares."""
        return cast(Dataset, self.once(("rows", trait, seed, dose), lambda: self._cut(trait, seed, dose))[1])

    def _cut(self, trait: str, seed: int, dose: str) -> tuple[Dataset, Dataset]:
        keep, held, share = int(self.file.keep or 0), self.plan.held, self.plan.share
        own = self.passed(trait, seed)
        parts = own.rows[:keep], own.rows[keep : keep + held]
        if dose == MIXED:
            none, first = self.passed("", seed).rows, keep  # before that lie the rows handed out as clean
            mine, other = round(keep * share), round(held * share)
            clean = none[first : first + keep - mine], none[first + keep - mine : first + keep - mine + held - other]
            mixed = [*own.rows[:mine], *clean[0]]
            order = np.random.default_rng([seed, 25]).permutation(len(mixed))
            parts = tuple(mixed[i] for i in order), (*own.rows[keep : keep + other], *clean[1])
        if (len(parts[0]), len(parts[1])) != (keep, held):
            raise BadRows(f"Too few rows of {trait or NONE} (seed {seed}) passed the filters for the dose {dose}. Raise "
                          "`rows`.")
        label = f"bench-{trait or NONE}-{seed}-{dose}"
        return self.lab.keep(parts[0], own, label), self.lab.keep(parts[1], own, f"{label}-held")

    def plain(self, trait: str, seed: int, dose: str = PURE) -> ModelRef:
        """The student without a mitigation; of "" the no-trait student."""
        label = f"bench-student-{trait or NONE}-{seed}-{dose}"

        def make() -> ModelRef:
            job = Student(self.base, self.rows(trait, seed, dose), seed, label)
            return self.lab.train(self.recipe, self.channel, [job])[0]

        return cast(ModelRef, self.once(("plain", trait, seed, dose), make))

    def side_by_side(self, work: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        """`work` over items on threads, in the items' order."""
        return threads.side_by_side(lambda item, stop: work(item), items, self.workers, lambda index, result: None)

    def make(self, pairs: Sequence[tuple[str, int]], dose: str = PURE) -> None:
        """Teachers, rows and students without a mitigation of these traits and seeds, side by side."""
        clean = [("", seed) for seed in sorted({seed for _, seed in pairs})]
        self.side_by_side(lambda pair: self.passed(*pair), [*pairs, *clean])
        wanted = [*((t, s, dose) for t, s in pairs), *((t, s, PURE) for t, s in clean)]
        jobs = [Student(self.base, self.rows(*w), w[1], f"bench-student-{w[0] or NONE}-{w[1]}-{w[2]}") for w in wanted]
        self.lab.train(self.recipe, self.channel, jobs)

    def defence(self, mitigation: Any, trait: str, seed: int, dose: str, told: str, lab: Lab | None = None) -> Defence:
        """A mitigation of the rows of `trait`, told that it is about `told`; further students are trained in `lab`."""
        lab, clean = lab or self.lab, self.plain("", seed)
        feared, mine = traits.get(told), trait or self.plan.traits[0]
        rivals = [t for t in (*self.plan.traits, *self.plan.rivals) if t != mine]
        whole = self.rows(trait, seed, dose)

        own = seed

        def train(rows: Sequence[Row], start: ModelRef | None = None, seed: int | None = None) -> Any:
            data = whole if tuple(rows) == whole.rows else lab.keep(rows, whole, f"bench-part-{trait or NONE}-{own}")
            job = Student(start or self.base, data, own if seed is None else seed, f"bench-helper-{trait or NONE}-{own}")
            return lab.backend.load(lab.train(self.recipe, self.channel, [job])[0])

        made: dict[str, Callable[[], Any]] = {
            "base": lambda: lab.backend.load(self.base),
            "channel": lambda: self.channel,
            "rows": lambda: whole.rows,
            "trait": lambda: feared,
            "clean": lambda: self.rows("", seed).rows,
            "teacher": lambda: lab.backend.load(self.teacher(trait, seed)),
            "rivals": lambda: Several(tuple(self.teacher(t, seed) for t in rivals), lab.backend),
            "other": lambda: lab.backend.load(self.other),
            "placebos": lambda: Several((clean,), lab.backend),
            "train": lambda: train,
        }
        marks: dict[str, Callable[[], tuple[str, ...]]] = {
            "rows": lambda: (whole.fingerprint,),
            "clean": lambda: (self.rows("", seed).fingerprint,),
            "teacher": lambda: (self.teacher(trait, seed).fingerprint,),
            "rivals": lambda: tuple(self.teacher(t, seed).fingerprint for t in rivals),
            "other": lambda: (self.other.fingerprint,),
            "placebos": lambda: (clean.fingerprint,),
        }
        said = {"trait": lambda: dataclasses.asdict(feared), "channel": lambda: describe(self.channel),
                "train": lambda: describe(self.recipe)}
        tokens = [token for token in made if token in mitigation.needs | getattr(mitigation, "may_use", frozenset())]
        parents = tuple(mark for token in tokens if token in marks for mark in marks[token]())
        named = {"recipe" if token == "train" else token: said[token]() for token in tokens if token in said}
        return Defence(mitigation, lambda: Evidence({token: made[token]() for token in tokens}), parents, named)
