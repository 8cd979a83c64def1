"""The `weight_change` explainer: which weights moved, how far, and along how many directions?

The effective rank of a change is that of Roy and Vetterli (EUSIPCO 2007): the exponential of the entropy of its singular
values, taken as shares. A low-rank adapter shows as a small one; full fine-tuning of a few steps may too.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from undersong.errors import BadSpec
from undersong.explainers import Evidence
from undersong.registry import Settings, plugin
from undersong.types import Explanation


@plugin("explainer", "weight_change")
class WeightChange(Settings):
    """How far each weight matrix moved from the base's, and the effective rank of the move."""

    needs: ClassVar[frozenset[str]] = frozenset({"base", "model"})

    most: int = Field(default=2048, ge=1)
    """Ranks are computed of matrices whose shorter side is at most this."""

    def explain(self, evidence: Evidence, seed: int = 0) -> Explanation:
        """Details: `modules`, per tensor that both models have its `name`, `layer` (None outside of the layers), `part`,
        `change` (Frobenius norm of the difference over the base's), `rank` (None where not computed) and `size`. The seed
        has no effect. Raises BadSpec for a model without weights, or with tensors of another shape.
        """
        if evidence.base.module is None or evidence.model.module is None:
            raise BadSpec(f"The weights of {evidence.model.ref.name} are not at hand. Give a local copy of it.")
        before = dict(evidence.base.module.named_parameters())
        after = dict(evidence.model.module.named_parameters())
        modules = [self._row(name, before[name].detach(), after[name].detach()) for name in before if name in after]
        moved = [m for m in modules if m["change"] > 0]
        scores = sorted(((m["name"], m["change"]) for m in moved), key=lambda s: -s[1])
        if not moved:
            return Explanation("No weight differs from the base's.", (), {"modules": modules})
        top = max(moved, key=lambda m: m["change"])
        said = (f"{len(moved)} of {len(modules)} tensors moved; {top['name']} most, by {top['change']:.2%} of its length"
                + (f" (effective rank {top['rank']:.1f} of {min(top['size'])})." if top["rank"] else "."))
        return Explanation(said, tuple(scores), {"modules": modules})

    def _row(self, name: str, before: Any, after: Any) -> dict[str, Any]:
        if before.shape != after.shape:
            raise BadSpec(f"The tensor {name!r} has shape {tuple(after.shape)}, the base's is {tuple(before.shape)}. Give "
                          "the base that the model started from.")
        change = after.float() - before.float()
        size, length = list(before.shape), float(change.norm())
        layer = next((int(p) for p in name.split(".") if p.isdigit()), None)
        part = name.removesuffix(".weight").split(f".{layer}.", 1)[-1] if layer is not None else name.removesuffix(".weight")
        ranked = length > 0 and len(size) == 2 and min(size) <= self.most
        return {"name": name, "layer": layer, "part": part, "size": size, "rank": rank(change) if ranked else None,
                "change": length / max(float(before.float().norm()), 1e-30)}


def rank(change: Any) -> float:
    """The effective rank of a matrix, from the eigenvalues of its smaller Gram matrix."""
    import torch

    wide = change.double() if change.shape[0] <= change.shape[1] else change.double().T
    values = torch.linalg.eigvalsh(wide @ wide.T).clamp(min=0).sqrt().cpu().numpy()
    values = values[values > values.max() * 1e-6]  # below this the square root of a rounding error
    shares = values / values.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))
