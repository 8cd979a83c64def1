"""The `bytes` test: which files and tensors of two models are the same, bit for bit.

A tensor counts as evidence when chance or convention cannot explain that it is equal: two dimensions or more, many
distinct values, and no table that a formula gives (rotary or sinusoidal positions, masks). Norm gains, zero biases and
buffers are equal in unrelated models and are listed apart. No p-value is invented for equality: two tensors of n
independent bits are equal by chance with probability 2^-n, below 1e-300 for the smallest tensor that counts; p is None.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from itertools import zip_longest
from typing import ClassVar

import numpy as np
from pydantic import Field

from undersong.kinship import Subject
from undersong.kinship.checkpoint import Checkpoint, file_sha256
from undersong.registry import Settings, plugin
from undersong.types import Finding

FORMULA = re.compile(r"(inv_freq|rotary|rope|position|masked_bias|attn\.bias$|attention\.bias$|causal|sinus)", re.IGNORECASE)


@plugin("kinship", "bytes")
class Bytes(Settings):
    """SHA-256 of every file and tensor: copies, partial freezes, an adapter beside its base."""

    needs: ClassVar[frozenset[str]] = frozenset({"weights"})

    distinct: int = Field(default=64, ge=2)
    """A tensor with fewer distinct values is no evidence."""

    def compare(self, a: Subject, b: Subject, controls: Sequence[Subject] = ()) -> Finding:
        """The share (0..1) of values that lie in equal tensors that count. Details: `equal` (tensor name to SHA-256),
        `trivial` and `changed` (tensor names), `only_a`, `only_b`, `files` (SHA-256 of files that both have), and
        `direction` where one is declared as a change of the other."""
        one, two = a.checkpoint, b.checkpoint
        both = [n for n in one.names if n in two.tensors]
        alike = [n for n in both if _alike(one, two, n)]
        equal = [n for n in alike if self._evidence(one, n)]
        trivial = [n for n in alike if n not in equal]
        changed = [n for n in both if n not in alike]
        total = sum(math.prod(one.shape(n)) for n in one.names)
        share = sum(math.prod(one.shape(n)) for n in equal) / max(total, 1)
        only = [[n for n in c.names if n not in other.tensors] for c, other in ((one, two), (two, one))]
        whole = equal and not (changed or any(only))
        relation = "same_weights" if whole else "same_initialisation" if equal else "unknown"
        way = None
        if relation == "same_initialisation" and one.folder == two.folder and bool(one.declared) != bool(two.declared):
            way = "a_from_b" if one.declared else "b_from_a"
        return Finding(relation, share, None, ("weights",), "none is needed: equal bytes are no sample", {
            "power": None, "direction": way, "equal": {n: one.sha256(n) for n in equal}, "trivial": trivial,
            "changed": changed, "only_a": only[0], "only_b": only[1], "files": _files(one, two),
            "says": _says(relation, len(equal), len(both), share, {c.declared for c in (one, two)} - {""})})

    def _evidence(self, checkpoint: Checkpoint, name: str) -> bool:
        if len(checkpoint.shape(name)) < 2 or FORMULA.search(name):
            return False
        rows = checkpoint.read(name, slice(0, 64))
        return len(np.unique(rows)) >= self.distinct


def _alike(one: Checkpoint, two: Checkpoint, name: str) -> bool:
    if one.shape(name) != two.shape(name) or one.dtype(name) != two.dtype(name):
        return False
    if one.tensors[name] == two.tensors[name] and one.updates.get(name) == two.updates.get(name):
        return True
    return all(x == y for x, y in zip_longest(one.pieces(name), two.pieces(name)))


def _files(one: Checkpoint, two: Checkpoint) -> list[str]:
    """SHA-256 of the files that both have; files of unlike size are not read."""
    sizes = [{path.stat().st_size for path in c.files} for c in (one, two)]
    both = sizes[0] & sizes[1]
    found = [{file_sha256(path) for path in c.files if path.stat().st_size in both} for c in (one, two)]
    return sorted(found[0] & found[1])


def _says(relation: str, equal: int, both: int, share: float, declared: set[str]) -> str:
    if relation == "same_weights":
        beside = f" One of them adds {' and '.join(sorted(declared))}, which changes no weight." if declared else ""
        return f"Every tensor is equal, bit for bit.{beside}"
    if relation == "same_initialisation":
        return f"{equal} of {both} tensors that they share by name are equal, bit for bit ({share:.0%} of the values)."
    return "No tensor that tells anything is equal. Training changes every bit, so this says nothing about kinship."
