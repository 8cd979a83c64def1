"""The `logit_lens` explainer: which tokens does the shift of each layer promote and demote?

Every layer is shown. Where placebo students are at hand, the lens is also taken of the model's own shift, less what placebos
shift on average: against a plain base, what any training on the carrier moves can hide the rest (in teachers of
Qwen2.5-7B the trait's token came first only after the shared part was taken off). How the lens is computed: `lens.py`.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from undersong.backends import Model
from undersong.backends.residuals import ReadOut
from undersong.explainers import Evidence, lens, shifts
from undersong.explainers.lens import Floats, Lens
from undersong.registry import Settings, plugin
from undersong.spec import execution
from undersong.types import Explanation


@plugin("explainer", "logit_lens")
class LogitLens(Settings):
    """Which tokens each layer's shift promotes and demotes, read through the final norm and the unembedding."""

    needs: ClassVar[frozenset[str]] = frozenset({"base", "model", "prompts"})
    may_use: ClassVar[frozenset[str]] = shifts.USES

    top: int = Field(default=10, ge=1)
    """Tokens shown at either end."""
    states: int = Field(default=32, ge=1)
    """Prompts whose states the shift is added to, evenly spread over all."""
    answer: int = Field(default=2, ge=0)
    """First tokens of the base's own answer at which states are read, besides the end of the prompt."""
    micro_batch: int = execution(32)
    """Rows that run at once."""

    def explain(self, evidence: Evidence, seed: int = 0) -> Explanation:
        """Scores: the tokens that rise most over all layers. Details: `whole` and, with placebos, `own`: per layer the
        `promoted` and `demoted` tokens (`token`, `id`, `rise` and `straight` in nats) and `overall` scores;
        `placebo_tops`: the highest overall score and its token of each placebo's shift. The seed has no effect.

        Raises BadSpec without weights, and for a model whose logits are not its last state through norm and unembedding.
        """
        shift = shifts.of(evidence, self.answer, self.micro_batch)
        readout = ReadOut(evidence.base)
        readout.check(evidence.base, shifts.places(evidence.base, evidence.prompts[:1], 0)[0][0])
        picked = np.linspace(0, len(shift.states) - 1, min(self.states, len(shift.states))).round().astype(int)
        states = shift.states[picked]
        details: dict[str, Any] = {"layers": states.shape[1], "states": len(states), "placebos": len(shift.placebos)}
        read = {"whole": lens.of(readout, states, shift.whole)}
        if len(shift.placebos):
            read["own"] = lens.of(readout, states, shift.own)
            tops = [lens.of(readout, states, one).scores for one in shift.benign]
            details["placebo_tops"] = [self._ends(evidence.base, one)[0] for one in tops]
        for name, found in read.items():
            details[name] = {"layers": self._layers(evidence.base, found), "overall": self._ends(evidence.base, found.scores)}
        best = details["own" if "own" in read else "whole"]["overall"]
        return Explanation(_sentence(best, details.get("placebo_tops", [])), tuple((t["token"], t["score"]) for t in best),
                           details)

    def _layers(self, base: Model, found: Lens) -> list[dict[str, Any]]:
        real = len(base.tokenizer)

        def told(layer: int, ids: list[int]) -> list[dict[str, Any]]:
            return [{"token": base.tokenizer.decode([i]), "id": i, "rise": float(found.rise[layer, i]),
                     "straight": float(found.straight[layer, i])} for i in ids]

        return [{"layer": n, "promoted": told(n, lens.top(rise, self.top, real)),
                 "demoted": told(n, lens.top(-rise, self.top, real))} for n, rise in enumerate(found.rise)]

    def _ends(self, base: Model, scores: Floats) -> list[dict[str, Any]]:
        ids = lens.top(scores, self.top, len(base.tokenizer))
        return [{"token": base.tokenizer.decode([i]), "id": i, "score": float(scores[i])} for i in ids]


def _sentence(best: list[dict[str, Any]], placebos: list[dict[str, Any]]) -> str:
    words = ", ".join(repr(t["token"]) for t in best[:5])
    said = f"Over all layers the shift promotes {words} most ({best[0]['score']:.1f} standard deviations for the first)."
    if placebos:
        highest = max(p["score"] for p in placebos)
        more = "no placebo student's shift promotes any token as much" if highest < best[0]["score"] else (
            "placebo students' shifts promote tokens as much")
        said += f" Compared with {len(placebos)} placebos: {more} (their highest: {highest:.1f})."
    return said
