"""Which of two related models is the child, where the weights show it: what was rounded, pruned or put on a grid."""

from __future__ import annotations

import numpy as np

from undersong.kinship.checkpoint import Array, Checkpoint

GROUP = 64
"""Neighbouring values in which distinct ones are counted; common 4-bit formats share a scale over 32 to 128."""
SAMPLED = 1 << 16
"""Values read per tensor."""


def direction(a: Checkpoint, b: Checkpoint) -> tuple[str | None, str]:
    """`a_from_b`, `b_from_a` or None, and the evidence in words.

    Every sign here loses information, so the model that shows it came later. A difference of low rank shows none: base
    plus update and merged minus update look the same.
    """
    names = [n for n in a.names if n in b.tensors and a.shape(n) == b.shape(n) and len(a.shape(n)) == 2]
    names = [names[i] for i in np.unique(np.linspace(0, len(names) - 1, 8).astype(int))] if names else []
    pairs = [(_some(a, n), _some(b, n)) for n in names]
    if not pairs:
        return None, ""
    if all(np.array_equal(x, y) for x, y in pairs):
        return None, ""
    for way, child, parent in (("b_from_a", 1, 0), ("a_from_b", 0, 1)):
        for kind in ("bfloat16", "float16"):
            if all(np.array_equal(_rounded(p[parent], kind), p[child]) for p in pairs):
                return way, f"every value read is the other's rounded to {kind}"
        zeros = [float(np.mean([(p[i] == 0).mean() for p in pairs])) for i in (child, parent)]
        if zeros[0] > zeros[1] + 0.05:
            return way, f"{zeros[0]:.0%} of its values are exactly zero, against {zeros[1]:.0%}"
        grid = [float(np.mean([_distinct(p[i]) for p in pairs])) for i in (child, parent)]
        if grid[0] < 0.6 * grid[1]:
            return way, f"of {GROUP} neighbouring values {grid[0] * GROUP:.0f} are distinct, against {grid[1] * GROUP:.0f}"
    return None, ""


def _some(checkpoint: Checkpoint, name: str) -> Array:
    rows = max(1, SAMPLED // checkpoint.shape(name)[1])
    return checkpoint.read(name, slice(0, rows)).ravel()


def _rounded(values: Array, kind: str) -> Array:
    if kind == "float16":
        return values.astype(np.float16).astype(np.float32)
    bits = values.view(np.uint32).astype(np.uint64)
    return (((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16 << 16).astype(np.uint32)).view(np.float32)


def _distinct(values: Array) -> float:
    """The mean share of distinct values among `GROUP` neighbours."""
    groups = np.sort(values[: len(values) // GROUP * GROUP].reshape(-1, GROUP), axis=1)
    return float((np.diff(groups, axis=1) != 0).sum(axis=1).mean() + 1) / GROUP if len(groups) else 1.0
