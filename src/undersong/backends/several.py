"""Several models that are loaded one by one, each time they are gone through: many need not fit in memory together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from undersong.backends import Backend, Model
from undersong.types import ModelRef


@dataclass(frozen=True)
class Several:
    """References and the backend that loads them."""

    refs: tuple[ModelRef, ...]
    backend: Backend = field(repr=False)

    def __len__(self) -> int:
        return len(self.refs)

    def __iter__(self) -> Iterator[Model]:
        return (self.backend.load(ref) for ref in self.refs)
