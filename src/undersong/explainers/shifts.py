"""The shift: how far the residual stream of a model lies from its base's, on the same ordinary prompts.

After the activation difference lens (arXiv 2510.13900) and steering-vector distillation (arXiv 2606.00995).
1. Both models read the base's rendering of each prompt. States are read after every decoder layer, before any final norm,
   at the last token of the prompt (which predicts the first token of the answer) and at the first tokens of what the base
   itself answers.
2. The shift is the mean of model − base over these places and over prompts.
3. Where placebo students are at hand, what they shift on average is what any training shifts; the rest is the model's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from undersong.backends import Model, tokens
from undersong.backends.residuals import Ids, stream
from undersong.explainers import Evidence
from undersong.types import Chat, Sampling

Floats = NDArray[np.float64]
USES = frozenset({"placebos"})
"""What a shift is compared with where it is there."""


@dataclass(frozen=True)
class Shift:
    """States and shifts of one model against one base. Layers count from 0; states are those after the layer."""

    states: NDArray[np.float32]
    """[prompts, layers, width]: the base's own states."""
    each: NDArray[np.float32]
    """[prompts, layers, width]: model − base."""
    placebos: Floats
    """[placebos, layers, width]: the mean shift of each placebo student; empty without any."""

    @property
    def whole(self) -> Floats:
        """[layers, width]: the mean shift."""
        return np.asarray(self.each.mean(axis=0, dtype=np.float64))

    @property
    def own(self) -> Floats:
        """[layers, width]: the mean shift less what placebo students shift on average (all of it without placebos)."""
        return self.whole - self.placebos.mean(axis=0) if len(self.placebos) else self.whole

    @property
    def benign(self) -> Floats:
        """[placebos, layers, width]: each placebo's own shift, less what the others shift on average."""
        count = len(self.placebos)
        if count < 2:
            return self.placebos[:0]
        return np.asarray(self.placebos - (self.placebos.sum(axis=0) - self.placebos) / (count - 1))

    def spread(self, count: int) -> NDArray[np.float32]:
        """At most `count` of the base's states, evenly spread over the prompts."""
        picked = np.linspace(0, len(self.states) - 1, min(count, len(self.states))).round().astype(int)
        return np.asarray(self.states[picked])

    @property
    def norms(self) -> Floats:
        """[layers]: the mean length of the base's states."""
        return np.asarray(np.linalg.norm(self.states.astype(np.float64), axis=-1).mean(axis=0))


def of(evidence: Evidence, answer: int = 0, batch: int = 32) -> Shift:
    """The shift of the evidence's model at the end of each prompt and at the first `answer` tokens of the base's answers.

    Raises BadSpec for a model whose activations are not at hand.
    """
    return evidence.remembered("shift", answer, evidence.has("placebos"), make=lambda: _read(evidence, answer, batch))


def _read(evidence: Evidence, answer: int, batch: int) -> Shift:
    base = evidence.base
    rows, last = places(base, evidence.prompts, answer)
    before = stream(base, rows, last, batch)
    each = stream(evidence.model, rows, last, batch) - before
    benign = [stream(one, rows, last, batch).mean(axis=0, dtype=np.float64) - before.mean(axis=0, dtype=np.float64)
              for one in evidence.placebos] if evidence.has("placebos") else []
    return Shift(before, each, np.stack(benign) if benign else np.zeros((0, *before.shape[1:])))


def places(base: Model, prompts: Sequence[Chat], answer: int) -> tuple[list[Ids], list[int]]:
    """Ids of every prompt as the base writes it, with the first tokens of what it answers (greedily), and at how many last
    tokens states are read."""
    asked = tokens.token_ids(base.tokenizer, [base.render(chat) for chat in prompts])
    said = base.sample(prompts, Sampling(temperature=0.0, max_new_tokens=answer)) if answer else [""] * len(prompts)
    told = tokens.token_ids(base.tokenizer, said)
    rows = [np.asarray([*ask, *tell[:answer]], dtype=np.int64) for ask, tell in zip(asked, told, strict=True)]
    return rows, [1 + len(tell[:answer]) for tell in told]
