"""Detectors: could an auditor tell, blind? A plug-in is settings plus `detect`; it declares what it `needs` and is
handed no more than that.

| token | what the auditor holds |
|---|---|
| `rows` | the suspected rows, one tuple per source or training run |
| `reference` | clean rows from the same kind of source, in the same form |
| `base` | the model the student will start from, loaded |
| `traits` | suspected traits |
| `student` | the trained model, loaded |
| `teacher` | the suspected teacher, loaded |
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, cast

from undersong.backends import Model
from undersong.errors import BadSpec, UnknownName, nearest
from undersong.traits import Trait
from undersong.types import Finding, Row

ACCESS = ("rows", "reference", "base", "traits", "student", "teacher")
Runs = tuple[tuple[Row, ...], ...]


@dataclass(frozen=True)
class Evidence:
    """What an auditor holds. Reading anything that was not granted raises BadSpec."""

    granted: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raises UnknownName for a token that is none of `ACCESS`."""
        for token in self.granted:
            if token not in ACCESS:
                raise UnknownName(f"There is no kind of evidence called {token!r}. {nearest(token, ACCESS)}")

    def only(self, needs: Iterable[str]) -> Evidence:
        """A view of what a detector declares it needs. Raises BadSpec when some of it is missing."""
        return Evidence({token: self._read(token) for token in sorted(needs)})

    def _read(self, token: str) -> Any:
        if token not in self.granted:
            held = ", ".join(sorted(self.granted)) or "nothing"
            raise BadSpec(
                f"This audit needs {token!r} and was granted {held}. Supply it, name it in the detector's `needs`, "
                "or choose a detector that works without it."
            )
        return self.granted[token]

    @property
    def rows(self) -> Runs:
        """The suspected rows, one tuple per source or training run."""
        return cast(Runs, self._read("rows"))

    @property
    def reference(self) -> Runs:
        """Clean rows, one tuple per source or training run."""
        return cast(Runs, self._read("reference"))

    @property
    def base(self) -> Model:
        """The model the student will start from."""
        return cast(Model, self._read("base"))

    @property
    def traits(self) -> tuple[Trait, ...]:
        """The suspected traits."""
        return cast(tuple[Trait, ...], self._read("traits"))

    @property
    def student(self) -> Model:
        """The trained model."""
        return cast(Model, self._read("student"))

    @property
    def teacher(self) -> Model:
        """The suspected teacher."""
        return cast(Model, self._read("teacher"))


class Detector(Protocol):
    """The contract of a detector plug-in: pure; the same finding for the same evidence and seed."""

    needs: ClassVar[frozenset[str]]
    """The tokens of `ACCESS` that it reads."""

    def detect(self, evidence: Evidence, seed: int = 0) -> Finding:
        """What the evidence says: verdict `found`, `clean` or `unknown`, with a p-value or None when uncalibrated."""
        ...
