"""Sampling whose answers depend on the seed and the row, never on the micro-batch.

`generate` draws from one global stream, so that other batches give other answers. Here each (seed, row, position) has
its own uniform number from a counter-based hash (SplitMix64; Steele, Lea and Flood 2014), and the token is read off
the inverse cumulative distribution at it. One number per token instead of one per vocabulary entry makes the noise
free of cost. What is left is rounding: batches of another width may differ in a logit's last bit, which moves about
one token in a million.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

_STEP = np.uint64(0x9E3779B97F4A7C15)


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def uniforms(seed: int, rows: NDArray[np.int64], positions: int) -> NDArray[np.float64]:
    """Numbers in (0, 1), [rows, positions], each a function of (seed, row, position) alone."""
    with np.errstate(over="ignore"):
        start = _mix(np.array([seed & 0xFFFFFFFFFFFFFFFF], dtype=np.uint64) + _STEP)
        row = _mix(start ^ _mix(rows.astype(np.uint64) * _STEP + np.uint64(1)))
        bits = _mix(row[:, None] + np.arange(1, positions + 1, dtype=np.uint64)[None] * _STEP)
    return ((bits >> np.uint64(11)).astype(np.float64) + 0.5) / 2.0**53


class Chooser:
    """A logits processor for greedy `generate`: it leaves only the token that was drawn (or the best one, at
    temperature 0).

    `draws` is float64 [rows, positions]; `allowed` restricts the vocabulary to these token ids.
    """

    def __init__(
        self, draws: NDArray[np.float64], temperature: float, allowed: Sequence[int] | None, device: Any
    ) -> None:
        import torch

        self.draws = torch.from_numpy(draws).to(device)
        self.temperature = temperature
        self.allowed = None if allowed is None else torch.tensor(sorted(set(allowed)), dtype=torch.int64, device=device)
        self.position = 0

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """The scores with everything but the chosen token at minus infinity."""
        import torch

        kept = scores if self.allowed is None else scores.index_select(1, self.allowed)
        if self.temperature == 0:
            pick = kept.argmax(-1, keepdim=True)
        else:
            mass = (kept.double() / self.temperature).softmax(-1).cumsum_(-1)
            point = self.draws[:, self.position, None] * mass[:, -1:]
            pick = torch.searchsorted(mass, point).clamp_(max=kept.shape[1] - 1)
        self.position += 1
        token = pick if self.allowed is None else self.allowed[pick]
        return torch.full_like(scores, float("-inf")).scatter_(1, token, 0.0)
