"""The logit lens of a shift: which tokens it promotes and demotes where it is added to typical states.

nostalgebraist's logit lens (2020) reads a state through the final norm and the unembedding. Of a shift d at a layer, with h
the base's own states there, each token gets three numbers, means over prompts:
1. Chance: softmax(lens(h + d)) − softmax(lens(h)). Tokens are ranked by it.
2. Rise (nats): the same of log-softmax. It is largest for tokens that nothing ever predicts: on pocket models a trait's word
   stands first by chance and about 200th of 1,718 by nats. The norm sees the whole state in both, so its gain and scale are
   those that the model would apply.
3. Straight (nats): W_U · (gain ∘ d) / rms(h), less its mean over the vocabulary: the first-order part, at the norm's scale.
Every layer is read; a token's score is the mean over layers of its chance, so no layer is chosen by its result.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from undersong.backends.residuals import ReadOut

Floats = NDArray[np.float64]
PART = 8
"""Prompts whose whole vocabularies are held at once."""


@dataclass(frozen=True)
class Lens:
    """What a shift does to the read-out of each layer, [layers, vocabulary] each: probability, nats, nats."""

    chance: Floats
    rise: Floats
    straight: Floats

    @property
    def scores(self) -> Floats:
        """[vocabulary]: the mean over layers of the chance."""
        return np.asarray(self.chance.mean(axis=0))


def of(readout: ReadOut, states: NDArray[np.float32], shift: Floats) -> Lens:
    """The lens of a shift [layers, width] at states [prompts, layers, width]."""
    import torch

    given, (count, layers) = shift.astype(np.float32), states.shape[:2]
    chances, rises = [], []
    with torch.inference_mode():
        for layer in range(layers):
            chance, rise = torch.zeros(2, len(readout.rest[0]), dtype=torch.float64, device=readout.device)
            for i in range(0, count, PART):
                here = states[i : i + PART, layer]
                after, before = (readout.logits(s).log_softmax(-1) for s in (here + given[layer], here))
                chance += (after.exp() - before.exp()).double().sum(dim=0)
                rise += (after - before).double().sum(dim=0)
            chances.append((chance / count).cpu().numpy())
            rises.append((rise / count).cpu().numpy())
        straight = readout.straight(given, states).double().cpu().numpy()
    return Lens(np.stack(chances), np.stack(rises), np.asarray(straight))


def top(values: Floats, count: int, real: int) -> list[int]:
    """The ids of the largest values, largest first, among the first `real` ids (an embedding may be padded beyond)."""
    return [int(i) for i in np.argsort(-values[:real], kind="stable")[:count]]
