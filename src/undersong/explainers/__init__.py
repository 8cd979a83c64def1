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
| `trait` | the trait that is known to be there |

`undersong explain` holds the first five; an experiment's artefacts hold them all. An Explanation has a sentence for people,
`scores` (name and number, the strongest first) and `details` that are plain JSON: a page is drawn from them and from nothing
else. An explainer that finds nothing says so in its sentence.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, TypeVar, cast

from undersong.backends import Backend, Model
from undersong.errors import BadSpec, UnknownName, nearest
from undersong.traits import Trait
from undersong.types import Chat, Explanation, ModelRef, Row

ACCESS = ("base", "model", "prompts", "questions", "placebos", "teacher", "rivals", "rows", "trait")
T = TypeVar("T")


@dataclass(frozen=True)
class Several:
    """Models that are loaded one by one, each time they are gone through: many need not fit in memory together."""

    refs: tuple[ModelRef, ...]
    backend: Backend = field(repr=False)

    def __len__(self) -> int:
        return len(self.refs)

    def __iter__(self) -> Iterator[Model]:
        return (self.backend.load(ref) for ref in self.refs)


@dataclass(frozen=True)
class Evidence:
    """What there is to explain with. Reading anything that was not granted raises BadSpec."""

    granted: Mapping[str, Any] = field(default_factory=dict)
    memo: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)
    """Pure results that explainers of the same evidence share: it saves time and changes nothing."""

    def __post_init__(self) -> None:
        """Raises UnknownName for a token that is none of `ACCESS`."""
        for token in self.granted:
            if token not in ACCESS:
                raise UnknownName(f"There is no kind of evidence called {token!r}. {nearest(token, ACCESS)}")

    def only(self, needs: Iterable[str], may_use: Iterable[str] = ()) -> Evidence:
        """A view of what an explainer declares. Raises BadSpec when something that it needs is missing."""
        there = [token for token in may_use if token in self.granted]
        return Evidence({token: self._read(token) for token in sorted({*needs, *there})}, self.memo)

    def has(self, token: str) -> bool:
        """Whether something was granted that an explainer may use and does not need."""
        return token in self.granted

    def remembered(self, *key: Hashable, make: Callable[[], T]) -> T:
        """A pure result of this evidence, made once. `key` names it."""
        if key not in self.memo:
            self.memo[key] = make()
        return cast(T, self.memo[key])

    def _read(self, token: str) -> Any:
        if token not in self.granted:
            held = ", ".join(sorted(self.granted)) or "nothing"
            raise BadSpec(f"This explainer needs {token!r} and was granted {held}. Supply it, name it in the explainer's "
                          "`needs`, or choose an explainer that works without it.")
        return self.granted[token]

    @property
    def base(self) -> Model:
        """The model the student started from."""
        return cast(Model, self._read("base"))

    @property
    def model(self) -> Model:
        """The model that is explained."""
        return cast(Model, self._read("model"))

    @property
    def prompts(self) -> tuple[Chat, ...]:
        """Ordinary chats at which activations are read."""
        return cast(tuple[Chat, ...], self._read("prompts"))

    @property
    def questions(self) -> tuple[Chat, ...]:
        """A few chats whose answers are shown."""
        return cast(tuple[Chat, ...], self._read("questions"))

    @property
    def placebos(self) -> Several:
        """Students of the base without a trait."""
        return cast(Several, self._read("placebos"))

    @property
    def teacher(self) -> Model:
        """The model that wrote the rows."""
        return cast(Model, self._read("teacher"))

    @property
    def rivals(self) -> Several:
        """Teachers of other traits."""
        return cast(Several, self._read("rivals"))

    @property
    def rows(self) -> tuple[Collection[Row], ...]:
        """The rows the student learned from, one collection per run."""
        return cast(tuple[Collection[Row], ...], self._read("rows"))

    @property
    def trait(self) -> Trait:
        """The trait that is known to be there."""
        return cast(Trait, self._read("trait"))


class Explainer(Protocol):
    """The contract of an explainer plug-in: pure; the same explanation for the same evidence and seed."""

    needs: ClassVar[frozenset[str]]
    """The tokens of `ACCESS` that it cannot do without."""
    may_use: ClassVar[frozenset[str]]
    """The tokens that it reads where they are there (a plug-in without this attribute uses none)."""

    def explain(self, evidence: Evidence, seed: int = 0) -> Explanation:
        """What the evidence says. Raises BadSpec in words where it cannot be explained in this way."""
        ...
