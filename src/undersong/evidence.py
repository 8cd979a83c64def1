"""What a plug-in is granted, and nothing besides: the base of the evidence of detectors, explainers and mitigations.

A kind lists its tokens in `ACCESS`; a plug-in declares which of them it `needs`, and which it `may_use` where they are
there. Its evidence is a view that holds these and no more, so what a plug-in knew is a fact and no promise.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self, TypeVar, cast

from undersong.errors import BadSpec, UnknownName, nearest

T = TypeVar("T")


@dataclass(frozen=True)
class Granted:
    """Values by token. Reading one that was not granted raises BadSpec."""

    granted: Mapping[str, Any] = field(default_factory=dict)
    memo: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)
    """Pure results that plug-ins with the same evidence share: it saves time and changes nothing."""

    ACCESS: ClassVar[tuple[str, ...]] = ()
    """The tokens of the kind."""
    KIND: ClassVar[str] = "plug-in"
    """What the kind is called in sentences."""

    def __post_init__(self) -> None:
        """Raises UnknownName for a token that is none of `ACCESS`."""
        for token in self.granted:
            if token not in self.ACCESS:
                raise UnknownName(f"There is no kind of evidence called {token!r}. {nearest(token, self.ACCESS)}")

    def only(self, needs: Iterable[str], may_use: Iterable[str] = ()) -> Self:
        """A view of what a plug-in declares. Raises BadSpec when something that it needs is missing."""
        there = [token for token in may_use if token in self.granted]
        return type(self)({token: self.read(token) for token in sorted({*needs, *there})}, self.memo)

    def has(self, token: str) -> bool:
        """Whether something was granted that a plug-in may use and does not need."""
        return token in self.granted

    def remembered(self, *key: Hashable, make: Callable[[], T]) -> T:
        """A pure result of this evidence, made once. `key` names it."""
        if key not in self.memo:
            self.memo[key] = make()
        return cast(T, self.memo[key])

    def read(self, token: str) -> Any:
        """What lies under a token. Raises BadSpec when it was not granted."""
        if token not in self.granted:
            held = ", ".join(sorted(self.granted)) or "nothing"
            raise BadSpec(f"This {self.KIND} needs {token!r} and was granted {held}. Supply it, name it in its `needs`, or "
                          f"choose a {self.KIND} that works without it.")
        return self.granted[token]
