"""The `activation_shift` explainer: where, and how far, does the residual stream move on ordinary prompts?

The activation difference of Minder et al. (arXiv 2510.13900), for every layer. Its length is told beside the length of the
base's own states, and two things say what it is worth: the cosine of the shifts of two halves of the prompts (1 when the
shift is one direction whatever is asked, 0 when it is noise), and the shifts of placebo students where these are at hand.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from undersong.explainers import Evidence, shifts
from undersong.explainers.shifts import Floats, Shift
from undersong.registry import Settings, plugin
from undersong.spec import execution
from undersong.types import Explanation


@plugin("explainer", "activation_shift")
class ActivationShift(Settings):
    """How far each layer's residual stream moves from the base's, on ordinary prompts."""

    needs: ClassVar[frozenset[str]] = frozenset({"base", "model", "prompts"})
    may_use: ClassVar[frozenset[str]] = shifts.USES

    answer: int = Field(default=0, ge=0)
    """First tokens of the base's own answer at which states are read, besides the end of the prompt."""
    splits: int = Field(default=20, ge=1)
    """Random halvings of the prompts for the stability of the shift."""
    micro_batch: int = execution(32)
    """Rows that run at once."""

    def explain(self, evidence: Evidence, seed: int = 0) -> Explanation:
        """Details, per layer: `length` of the mean shift, `relative` to the mean length of the base's states, `own`
        (relative, less what placebos shift on average), `halves` (cosine of two halves of the prompts), `placebos` and
        `placebos_own` (the same of each placebo student); and `cosines` [layers, layers] between the shifts of two layers.

        Raises BadSpec without weights.
        """
        shift = shifts.of(evidence, self.answer, self.micro_batch)
        whole, own, norms = shift.whole, shift.own, shift.norms
        halves = stability(shift, self.splits, seed)
        layers: list[dict[str, Any]] = [
            {"layer": i, "length": float(np.linalg.norm(whole[i])), "relative": float(np.linalg.norm(whole[i]) / norms[i]),
             "own": float(np.linalg.norm(own[i]) / norms[i]), "halves": float(halves[i]),
             "placebos": [float(np.linalg.norm(p[i]) / norms[i]) for p in shift.placebos],
             "placebos_own": [float(np.linalg.norm(p[i]) / norms[i]) for p in shift.benign]}
            for i in range(len(whole))
        ]
        unit = whole / np.maximum(np.linalg.norm(whole, axis=1, keepdims=True), 1e-30)
        scores = sorted(((f"layer {one['layer']}", one["relative"]) for one in layers), key=lambda s: -s[1])
        details = {"layers": layers, "cosines": (unit @ unit.T).tolist(), "prompts": len(shift.each),
                   "placebos": len(shift.placebos), "answer": self.answer}
        return Explanation(_sentence(layers), tuple(scores), details)


def stability(shift: Shift, splits: int, seed: int) -> Floats:
    """[layers]: the mean cosine between the mean shifts of two random halves of the prompts; NaN-free: 0 for no shift."""
    rng, count = np.random.default_rng([seed, 21]), len(shift.each)
    out = np.zeros(shift.each.shape[1])
    if count < 2:
        return out
    for _ in range(splits):
        order = rng.permutation(count)
        a, b = (shift.each[part].mean(axis=0, dtype=np.float64) for part in (order[: count // 2], order[count // 2 :]))
        out += (a * b).sum(axis=1) / np.maximum(np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1), 1e-30)
    return out / splits


def _sentence(layers: list[dict[str, Any]]) -> str:
    top = max(layers, key=lambda one: float(one["relative"]))
    said = (f"The residual stream moves most after layer {top['layer']}: by {top['relative']:.1%} of its length; the shifts "
            f"of two halves of the prompts have cosine {top['halves']:.2f}.")
    usual = top["placebos"]
    if usual:
        said += f" {len(usual)} placebo students move there by {min(usual):.1%} to {max(usual):.1%}."
    return said
