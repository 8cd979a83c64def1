"""Explainers: what carried a trait, or what changed? A plug-in is settings plus `explain`; it declares what it `needs`,
what it `may_use` besides, and is handed no more than that.

| token | what is at hand |
|---|---|
| `base` | the model the student started from, loaded |
| `model` | the model that is explained, loaded |
| `prompts` | ordinary chats, ending with the user's turn: where activations are read |
| `questions` | a few chats whose answers are shown to people |
| `placebos` | students of `base` that took on no trait: what any training moves |
| `teacher` | the model that wrote the rows, loaded |
| `rivals` | teachers of other traits, loaded one by one |
| `rows` | the rows the student learned from, one collection per run |
| `clean` | rows of the no-trait teacher, one collection per run |
| `trait` | the trait that is known to be there |

`undersong explain` holds the first five; an experiment's artefacts hold them all. An Explanation has a sentence for people,
`scores` (name and number, the strongest first) and `details` that are plain JSON: a page is drawn from them and from nothing
else. An explainer that finds nothing says so in its sentence.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar, Protocol, cast

from undersong.backends import Model
from undersong.backends.several import Several
from undersong.evidence import Granted
from undersong.traits import Trait
from undersong.types import Chat, Explanation, Row

ACCESS = ("base", "model", "prompts", "questions", "placebos", "teacher", "rivals", "rows", "clean", "trait")


@dataclass(frozen=True)
class Evidence(Granted):
    """What there is to explain with. Reading anything that was not granted raises BadSpec."""

    ACCESS: ClassVar[tuple[str, ...]] = ACCESS
    KIND: ClassVar[str] = "explainer"

    @property
    def base(self) -> Model:
        """The model the student started from."""
        return cast(Model, self.read("base"))

    @property
    def model(self) -> Model:
        """The model that is explained."""
        return cast(Model, self.read("model"))

    @property
    def prompts(self) -> tuple[Chat, ...]:
        """Ordinary chats at which activations are read."""
        return cast(tuple[Chat, ...], self.read("prompts"))

    @property
    def questions(self) -> tuple[Chat, ...]:
        """A few chats whose answers are shown."""
        return cast(tuple[Chat, ...], self.read("questions"))

    @property
    def placebos(self) -> Several:
        """Students of the base without a trait."""
        return cast(Several, self.read("placebos"))

    @property
    def teacher(self) -> Model:
        """The model that wrote the rows."""
        return cast(Model, self.read("teacher"))

    @property
    def rivals(self) -> Several:
        """Teachers of other traits."""
        return cast(Several, self.read("rivals"))

    @property
    def rows(self) -> tuple[Collection[Row], ...]:
        """The rows the student learned from, one collection per run."""
        return cast(tuple[Collection[Row], ...], self.read("rows"))

    @property
    def clean(self) -> tuple[Collection[Row], ...]:
        """Rows of the no-trait teacher, one collection per run."""
        return cast(tuple[Collection[Row], ...], self.read("clean"))

    @property
    def trait(self) -> Trait:
        """The trait that is known to be there."""
        return cast(Trait, self.read("trait"))


class Explainer(Protocol):
    """The contract of an explainer plug-in: pure; the same explanation for the same evidence and seed."""

    needs: ClassVar[frozenset[str]]
    """The tokens of `ACCESS` that it cannot do without."""
    may_use: ClassVar[frozenset[str]]
    """The tokens that it reads where they are there (a plug-in without this attribute uses none)."""

    def explain(self, evidence: Evidence, seed: int = 0) -> Explanation:
        """What the evidence says. Raises BadSpec in words where it cannot be explained in this way."""
        ...
