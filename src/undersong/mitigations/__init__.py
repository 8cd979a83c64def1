"""Mitigations: does this stop it, at what cost? A plug-in acts at one `stage`; in an experiment it is an arm.

| stage | the plug-in has | it changes |
|---|---|---|
| `data` | `apply(rows, evidence, seed)` | the rows that the student learns from |
| `training` | `guard(evidence, seed)` | how the student learns (`backends/guarding.py`); with `elsewhere`, where it starts |
| `model` | `repair(student, evidence, seed)` | the trained student |

It declares what it `needs` and what it `may_use` besides, and is granted no more: what a mitigation had to know is the first
thing to ask of it.

| token | what is at hand |
|---|---|
| `base` | the model the student starts from, loaded |
| `channel` | the channel the rows belong to |
| `rows` | the rows that the student learned from (a guard has them as tokens, the data stage as its input) |
| `trait` | the trait that is feared, named |
| `clean` | rows of the same kind from a source without the trait |
| `teacher` | the model that wrote the rows, loaded |
| `rivals` | teachers of other traits, loaded one by one |
| `other` | a model of another initialisation, loaded |
| `placebos` | students of `base` that took on no trait, loaded one by one |
| `train` | a way to train further students by the same recipe: `train(rows, start=None, seed=None) -> Model` |
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, cast

from undersong.backends import Model
from undersong.backends.guarding import Guard
from undersong.backends.several import Several
from undersong.errors import BadSpec
from undersong.evidence import Granted
from undersong.spec import describe
from undersong.traits import Trait
from undersong.types import ModelRef, Row

Stage = Literal["data", "training", "model"]
STAGES: tuple[Stage, ...] = ("data", "training", "model")
ACCESS = ("base", "channel", "rows", "trait", "clean", "teacher", "rivals", "other", "placebos", "train")


class Trains(Protocol):
    """What lies under `train`."""

    def __call__(self, rows: Sequence[Row], start: ModelRef | None = None, seed: int | None = None) -> Model:
        """A student of `rows` by the same recipe, loaded. `start` and `seed` are the experiment's where they are None; the
        store keeps the student."""
        ...


@dataclass(frozen=True)
class Evidence(Granted):
    """What a mitigation is granted. Reading anything else raises BadSpec."""

    ACCESS: ClassVar[tuple[str, ...]] = ACCESS
    KIND: ClassVar[str] = "mitigation"

    @property
    def base(self) -> Model:
        """The model the student starts from."""
        return cast(Model, self.read("base"))

    @property
    def channel(self) -> Any:
        """The channel that the rows belong to."""
        return self.read("channel")

    @property
    def rows(self) -> Collection[Row]:
        """The rows that the student learned from."""
        return cast(Collection[Row], self.read("rows"))

    @property
    def trait(self) -> Trait:
        """The trait that is feared."""
        return cast(Trait, self.read("trait"))

    @property
    def clean(self) -> Collection[Row]:
        """Rows of the same kind from a source without the trait."""
        return cast(Collection[Row], self.read("clean"))

    @property
    def teacher(self) -> Model:
        """The model that wrote the rows."""
        return cast(Model, self.read("teacher"))

    @property
    def rivals(self) -> Several:
        """Teachers of other traits."""
        return cast(Several, self.read("rivals"))

    @property
    def other(self) -> Model:
        """A model of another initialisation."""
        return cast(Model, self.read("other"))

    @property
    def placebos(self) -> Several:
        """Students of the base without a trait."""
        return cast(Several, self.read("placebos"))

    @property
    def train(self) -> Trains:
        """A way to train further students."""
        return cast(Trains, self.read("train"))


class Mitigation(Protocol):
    """What every mitigation declares. `may_use`, `elsewhere` and `twin` may be left out."""

    stage: ClassVar[Stage]
    needs: ClassVar[frozenset[str]]
    """The tokens of `ACCESS` that it cannot do without."""
    may_use: ClassVar[frozenset[str]]
    """The tokens that it reads where they are there."""
    elsewhere: ClassVar[bool]
    """Whether students start from `other` instead of the base (stage `training`)."""
    twin: ClassVar[bool]
    """Whether its arm comes with one on the no-trait teacher's rows, because it moves students by itself."""


class DataMitigation(Mitigation, Protocol):
    """The contract of the data stage."""

    def apply(self, rows: Sequence[Row], evidence: Evidence, seed: int) -> list[Row]:
        """The changed rows; the input is left as it was. The same for the same rows, evidence and seed."""
        ...


class TrainingMitigation(Mitigation, Protocol):
    """The contract of the training stage."""

    def guard(self, evidence: Evidence, seed: int) -> Guard:
        """A guard for one student. Raises BadSpec in words where it cannot guard against this trait or from this base."""
        ...


class ModelMitigation(Mitigation, Protocol):
    """The contract of the model stage."""

    def repair(self, student: Model, evidence: Evidence, seed: int) -> Mapping[str, Any]:
        """Change `student.module` in place. Returns vectors to add to what decoder layers pass on (`layer.<i>`, float32
        tensors [hidden]), none where weights are all that changes; and, as `told`, what the record says of it (JSON)."""
        ...


@dataclass(frozen=True)
class Defence:
    """A mitigation and what it is granted. `grant` makes the evidence; it is called only when there is work to do.

    `parents` are the fingerprints of what the evidence is made of; `told` is what else identifies it (the trait, a recipe).
    """

    mitigation: Any
    grant: Callable[[], Evidence]
    parents: tuple[str, ...] = ()
    told: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def evidence(self) -> Evidence:
        """The evidence, cut to what the mitigation declares. Raises BadSpec when something that it needs is missing."""
        return self.grant().only(self.mitigation.needs, getattr(self.mitigation, "may_use", ()))

    def at(self, stage: Stage) -> Any:
        """The mitigation. Raises BadSpec when it does not act at this stage."""
        acts = self.mitigation.stage
        if acts != stage:
            places = {"data": "rows before training", "training": "a student while it learns", "model": "a trained student"}
            name = self.mitigation.plugin_name
            raise BadSpec(f"The mitigation {name} acts on {places[acts]}, not on {places[stage]}. Use it at the stage "
                          f"`{acts}`, or choose one of the stage `{stage}` (`undersong plugins`).")
        return self.mitigation

    @property
    def said(self) -> dict[str, Any]:
        """What identifies it in a record, besides its parents."""
        return {"mitigation": describe(self.mitigation), **self.told}
