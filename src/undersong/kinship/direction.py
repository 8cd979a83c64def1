"""Which of two related models is the child, where the weights show it: what was rounded, pruned or put on a grid.

A sign counts only if it excludes the other way round. A dense model tuned from a quantised one also has more values than
its parent: so the differences must be spread over the grid's cells as rounding spreads them. A model tuned from a pruned
one fills its zeros: so what is left beside the zeros must be equal. A difference of low rank shows nothing: base plus
update and merged minus update look the same.
"""

from __future__ import annotations

import numpy as np

from undersong.kinship.checkpoint import Array, Checkpoint

GROUP = 32
"""Neighbouring values that share a scale in the common 4-bit formats (32 to 128)."""
SAMPLED = 1 << 16
"""Values read per tensor."""
Pair = tuple[Array, Array]


def direction(a: Checkpoint, b: Checkpoint) -> tuple[str | None, str]:
    """`a_from_b`, `b_from_a` or None, and the evidence in words. Reads the first rows of eight matrices."""
    names = [n for n in a.names if n in b.tensors and a.shape(n) == b.shape(n) and len(a.shape(n)) == 2]
    names = [names[int(i)] for i in np.unique(np.linspace(0, len(names) - 1, 8).astype(int))] if names else []
    pairs = [(_some(a, n), _some(b, n)) for n in names]
    if all(np.array_equal(x, y) for x, y in pairs):
        return None, ""
    for way, turned in (("b_from_a", pairs), ("a_from_b", [(y, x) for x, y in pairs])):
        if evidence := _made_from(turned):
            return way, evidence
    return None, ""


def _made_from(pairs: list[Pair]) -> str:
    """How the second of each pair was made from the first, in words; "" when it does not show."""
    for kind in ("bfloat16", "float16"):
        if all(np.array_equal(_rounded(x, kind), y) for x, y in pairs):
            return f"every value read is the other's rounded to {kind}"
    zeros = float(np.mean([(y == 0).mean() - (x == 0).mean() for x, y in pairs]))
    if zeros > 0.05 and all(np.array_equal(x[y != 0], y[y != 0]) for x, y in pairs):
        return f"{zeros:.0%} more of its values are zero, and the others are equal"
    inside, spread = (float(np.mean(each)) for each in zip(*[_cells(x, y) for x, y in pairs], strict=True))
    if inside > 0.99 and 0.2 < spread < 0.3:
        return f"its values lie on a coarse grid, and {inside:.0%} of the other's are in the cell of theirs, spread evenly"
    return ""


def _cells(x: Array, y: Array) -> tuple[float, float]:
    """Of the values of x, the share within half a step of y's grid; and their mean distance from y, in steps (1/4 for
    rounding). The step is the smallest gap between y's values in a group; groups without repeated values have no grid."""
    whole = len(x) // GROUP * GROUP
    x, y = x[:whole].reshape(-1, GROUP), y[:whole].reshape(-1, GROUP)
    gaps = np.diff(np.sort(y, axis=1), axis=1)
    real = gaps > 1e-4 * np.abs(y).max(axis=1, keepdims=True, initial=1e-30)
    step = np.where(real, gaps, np.inf).min(axis=1, initial=np.inf)
    gridded = (real.sum(axis=1) < 0.75 * GROUP) & np.isfinite(step)
    if gridded.mean() < 0.9:
        return 0.0, 0.0
    away = np.abs(x - y)[gridded] / step[gridded, None]
    return float((away <= 0.501).mean()), float(away.mean())


def _some(checkpoint: Checkpoint, name: str) -> Array:
    rows = max(1, SAMPLED // checkpoint.shape(name)[1])
    return checkpoint.read(name, slice(0, rows)).ravel()


def _rounded(values: Array, kind: str) -> Array:
    if kind == "float16":
        return values.astype(np.float16).astype(np.float32)
    bits = values.view(np.uint32).astype(np.uint64)
    return (((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16 << 16).astype(np.uint32)).view(np.float32)
