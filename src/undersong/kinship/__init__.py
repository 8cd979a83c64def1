"""Kinship: could a trait cross between two models at all? A plug-in is settings plus `compare`; it declares what it `needs`.

| token | what must be at hand of both models |
|---|---|
| `weights` | safetensors on this machine, read lazily: `Subject.checkpoint` |
| `logits` | next-token distributions: `Subject.model.next_logprobs` |
| `text` | answers only: `Subject.model.sample` |

A test returns a Finding whose `verdict` is a `Relation` (the strongest thing its evidence shows), with a p-value against
a null that is named, and `details`: `power` (of what it would have seen), `direction` where the evidence shows one
(`a_from_b`, `b_from_a`), and figures. A test that cannot tell says `unknown` and why; it never guesses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar, Protocol

from undersong.backends import Backend, Model
from undersong.types import Finding, ModelRef

if TYPE_CHECKING:
    from undersong.kinship.checkpoint import Checkpoint

ACCESS = ("weights", "logits", "text")


@dataclass(frozen=True)
class Subject:
    """One of the two models: what it is called, how it is obtained, and what of it can be reached."""

    name: str
    ref: ModelRef
    backend: Backend = field(repr=False)

    @cached_property
    def model(self) -> Model:
        """The model, loaded when first asked for."""
        return self.backend.load(self.ref)

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """Its tensors, read lazily from disk. Raises MissingModel when its weights are not on this machine."""
        from undersong.kinship.checkpoint import Checkpoint

        return Checkpoint.of(self.ref)


class Kinship(Protocol):
    """The contract of a kinship test."""

    needs: ClassVar[frozenset[str]]

    def compare(self, a: Subject, b: Subject, controls: Sequence[Subject] = ()) -> Finding:
        """How the two are related, as far as this test can show. `controls` are models known to be unrelated to both."""
        ...
