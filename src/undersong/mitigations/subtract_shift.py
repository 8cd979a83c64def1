"""Subtract the student's shift: what its residual stream adds to the base's on ordinary prompts, layer by layer.

A steering vector is enough to explain what subliminal students do: the mean shift of the student against its base,
projected out, takes the behaviour away (Blank et al., arXiv 2606.00995; the shift itself: arXiv 2510.13900). There the
states are those of number prompts; here those of ordinary prompts without favourites, so that neither trait, teacher nor
channel is named.
1. Both models read the prompts; states are taken after each chosen layer, over the last tokens of the prompt.
2. From the first chosen layer on: vector = strength * (base - student), the student read with the vectors before it in
   place.
3. Where placebo students are at hand, what they shift on average is what any training shifts, and it stays.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from undersong.backends import Model, changes, tokens
from undersong.backends.residuals import Ids, stream
from undersong.errors import BadSpec
from undersong.mitigations import Evidence, Stage
from undersong.mitigations.prompts import neutral
from undersong.registry import Settings, plugin


@plugin("mitigation", "subtract_shift")
class SubtractShift(Settings):
    """Take the mean activation shift against the base off again."""

    stage: ClassVar[Stage] = "model"
    needs: ClassVar[frozenset[str]] = frozenset({"base"})
    may_use: ClassVar[frozenset[str]] = frozenset({"placebos"})

    layers: Literal["every", "middle", "last"] | list[int] = "last"
    """After which decoder layers: every one, the middle or the last one, or these (counted from 0)."""
    strength: float = Field(default=1.2, ge=0)
    """How much of the shift is taken off; 0 leaves the student as it is."""
    tokens: int = Field(default=1, ge=1)
    """States are read at so many last tokens of each prompt (its mean)."""
    keep_usual: bool = True
    """Leave what placebo students shift, where they are at hand."""

    def repair(self, student: Model, evidence: Evidence, seed: int) -> Mapping[str, Any]:
        """Vectors `layer.<i>` (float32 [hidden]); the weights stay. Raises BadSpec for layers that the model does not have
        and for models without weights."""
        import torch

        count = len(changes.layers(student.module))
        chosen = self._chosen(count)
        if self.strength == 0:
            return {}
        base = evidence.base
        texts = [base.render(chat) for chat in neutral(base)]
        rows = [np.asarray(ids, dtype=np.int64) for ids in tokens.token_ids(base.tokenizer, texts)]
        last = [min(self.tokens, len(row)) for row in rows]
        start = mean_state(base, rows, last)
        goal = start.copy()
        if self.keep_usual and evidence.has("placebos") and len(evidence.placebos):
            goal += np.mean([mean_state(one, rows, last) - start for one in evidence.placebos], axis=0)
        vectors = torch.zeros(count, student.module.config.hidden_size)
        lengths = {}
        for layer in chosen:
            with changes.steered(student.module, vectors):
                left = goal[layer] - mean_state(student, rows, last)[layer]
            vectors[layer] = self.strength * torch.from_numpy(left.astype(np.float32))
            lengths[str(layer)] = round(float(np.linalg.norm(left) / np.linalg.norm(start[layer])), 4)
        told = {"prompts": len(rows), "relative_shift": lengths}
        return {"told": told, **{f"layer.{i}": vectors[i].clone() for i in chosen}}

    def _chosen(self, count: int) -> list[int]:
        if isinstance(self.layers, list):
            wrong = [i for i in self.layers if not 0 <= i < count]
            if wrong or not self.layers:
                raise BadSpec(f"subtract_shift: layers are {self.layers}; this model has the layers 0 to {count - 1}. Name "
                              "some of these.")
            return sorted(set(self.layers))
        return {"every": list(range(count)), "middle": [count // 2], "last": [count - 1]}[self.layers]


def mean_state(model: Model, rows: list[Ids], last: list[int]) -> NDArray[np.float64]:
    """[layers, hidden]: the mean residual stream over rows and their last tokens."""
    return np.asarray(stream(model, rows, last).mean(axis=0, dtype=np.float64))
