"""Integer sequences a reader would recognise, and the rule behind each.

One sequence of each kind continues its seed numbers by a rule that the seeds pin down, so that a continuation can
be scored as right or wrong; `random` has no rule. Used by the `numbers` channel (structured seeds), by the pocket world
and by the `capability` probe.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

KINDS = ("progression", "alternation", "interleaved", "repeat", "random")
SHARES = (0.32, 0.18, 0.2, 0.15, 0.15)
"""How often the pocket world draws each kind."""
RULED = KINDS[:-1]
RULED_SHARES = tuple(share / sum(SHARES[:-1]) for share in SHARES[:-1])
"""The kinds with a rule, and how often the `numbers` channel draws each."""


def sequence(rng: np.random.Generator, kind: str, length: int, largest: int = 999) -> tuple[list[int], int]:
    """Draw `length` integers in 0..largest by the rule `kind`; also return how many seeds pin the rule down."""
    if kind == "progression":
        return _progression(rng, length, largest), int(rng.integers(3, 6))
    if kind == "alternation":
        a, b = (int(v) for v in rng.integers(0, largest + 1, 2))
        return [a if i % 2 == 0 else b for i in range(length)], int(rng.integers(4, 6))
    if kind == "interleaved":
        half = (length + 1) // 2
        one, two = _progression(rng, half, largest), _progression(rng, half, largest)
        return [one[i // 2] if i % 2 == 0 else two[i // 2] for i in range(length)], 6
    if kind == "repeat":
        cycle = [int(v) for v in rng.integers(0, largest + 1, 3)]
        return [cycle[i % 3] for i in range(length)], int(rng.integers(5, 7))
    if kind == "random":
        return [int(v) for v in rng.integers(0, largest + 1, length)], int(rng.integers(3, 6))
    raise ValueError(f"unknown sequence kind {kind!r}; choose one of {', '.join(KINDS)}")


def _progression(rng: np.random.Generator, length: int, largest: int) -> list[int]:
    most = max(1, min(50, largest // max(1, length)))
    step = int(rng.integers(1, most + 1)) * (1 if rng.random() < 0.6 else -1)
    span = step * (length - 1)
    start = int(rng.integers(max(0, -span), min(largest, largest - span) + 1))
    return [start + step * i for i in range(length)]


def continuation(seeds: Sequence[int], length: int) -> list[int] | None:
    """The values that follow `seeds` by the simplest rule that fits them, or None when no rule does."""
    n = len(seeds)
    if n >= 3 and len({b - a for a, b in pairwise(seeds)}) == 1:
        step = seeds[1] - seeds[0]
        return [seeds[-1] + step * (i + 1) for i in range(length)]
    for period in (2, 3):
        if n > period and all(seeds[i] == seeds[i - period] for i in range(period, n)):
            return [seeds[n - period + i % period] for i in range(length)]
    if n >= 6 and all(len({b - a for a, b in pairwise(s)}) == 1 for s in (seeds[0::2], seeds[1::2])):
        steps = [seeds[2] - seeds[0], seeds[3] - seeds[1]]
        values = list(seeds)
        for i in range(n, n + length):
            values.append(values[i - 2] + steps[i % 2])
        return values[n:]
    return None
