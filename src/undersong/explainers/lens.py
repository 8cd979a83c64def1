"""The logit lens of a shift: which tokens it promotes and demotes where it is added to typical states.

nostalgebraist's logit lens (2020) reads a state through the final norm and the unembedding. Of a shift d at a layer:
1. Rise: the mean over prompts of log-softmax(lens(h + d)) − log-softmax(lens(h)), h the base's own states of that layer. The
   norm sees the whole state, so its gain and its scale are those that the model would apply.
2. Straight: W_U · (gain ∘ d) / rms(h), mean over the vocabulary taken off: the first-order part, the norm's scale held.
Every layer is read; a token's score is the mean over layers of its rise in standard deviations over the vocabulary of that
layer, so that no layer is chosen by its result.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from undersong.backends.residuals import ReadOut

Floats = NDArray[np.float64]
PART = 8
"""Prompts whose whole vocabularies are held at once."""


@dataclass(frozen=True)
class Lens:
    """What a shift does to the read-out of each layer: nats, [layers, vocabulary]."""

    rise: Floats
    straight: Floats

    @property
    def scores(self) -> Floats:
        """[vocabulary]: the mean over layers of the standardised rise; 0 where a layer does not move."""
        spread = self.rise.std(axis=1, keepdims=True)
        return np.asarray(((self.rise - self.rise.mean(axis=1, keepdims=True)) / np.where(spread > 0, spread, 1)).mean(axis=0))


def of(readout: ReadOut, states: NDArray[np.float32], shift: Floats) -> Lens:
    """The lens of a shift [layers, width] at states [prompts, layers, width]."""
    import torch

    given = shift.astype(np.float32)
    rises = []
    with torch.inference_mode():
        for layer in range(states.shape[1]):
            total: Any = 0.0
            for i in range(0, len(states), PART):
                here = states[i : i + PART, layer]
                after = readout.logits(here + given[layer]).log_softmax(-1)
                total = total + (after - readout.logits(here).log_softmax(-1)).double().sum(dim=0)
            rises.append((total / len(states)).cpu().numpy())
        straight = readout.straight(given, states).double().cpu().numpy()
    return Lens(np.stack(rises), np.asarray(straight))


def top(values: Floats, count: int, real: int) -> list[int]:
    """The ids of the largest values, largest first, among the first `real` ids (an embedding may be padded beyond)."""
    return [int(i) for i in np.argsort(-values[:real], kind="stable")[:count]]
