"""The `logit_lens` explainer: which tokens does the shift of each layer promote and demote?

Every layer is shown. Where placebo students are at hand, the lens is taken of the model's own shift, less what placebos
shift on average (in teachers of Qwen2.5-7B a trait's token came first only after the shared part was taken off), and of each
placebo's own shift, which says how much a token rises by chance. How the lens is computed: `lens.py`.

Blind spot: a lens reads what the model would say next at these prompts. At prompts that ask for no favourite, a student that
took on a favourite shows nothing of it.
"""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from undersong.backends import Model
from undersong.backends.residuals import ReadOut
from undersong.explainers import Evidence, lens, shifts
from undersong.explainers.lens import Lens
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
    answer: int = Field(default=0, ge=0)
    """First tokens of the base's own answer at which states are read, besides the end of the prompt."""
    micro_batch: int = execution(32)
    """Rows that run at once."""

    def explain(self, evidence: Evidence, seed: int = 0) -> Explanation:
        """Scores: the tokens that are promoted most, mean over layers. Details: `whole` and, with placebos, `own`: per layer
        the `promoted` and `demoted` tokens (`token`, `id`, `chance`, `rise`, `straight`) and `overall` scores;
        `placebo_tops`: of each placebo's own shift the token with the highest score. The seed has no effect.

        Raises BadSpec without weights, and for a model whose logits are not its last state through norm and unembedding.
        """
        shift = shifts.of(evidence, self.answer, self.micro_batch)
        readout = ReadOut(evidence.base)
        readout.check(evidence.base, shifts.places(evidence.base, evidence.prompts[:1], 0)[0][0])
        states = shift.spread(self.states)
        details: dict[str, Any] = {"states": len(states), "placebos": len(shift.placebos)}
        read = {"whole": lens.of(readout, states, shift.whole)}
        if len(shift.placebos):
            read["own"] = lens.of(readout, states, shift.own)
        for name, found in read.items():
            details[name] = {"layers": self._layers(evidence.base, found), "overall": self._best(evidence.base, found)}
        benign = (lens.of(readout, states, one) for one in shift.benign)
        details["placebo_tops"] = [self._best(evidence.base, one)[0] for one in benign]
        best = details["own" if "own" in read else "whole"]["overall"]
        scores = tuple((t["token"], t["score"]) for t in best)
        return Explanation(_sentence(best, details["placebo_tops"]), scores, details)

    def _layers(self, base: Model, found: Lens) -> list[dict[str, Any]]:
        real = len(base.tokenizer)

        def told(layer: int, ids: list[int]) -> list[dict[str, Any]]:
            return [{"token": base.tokenizer.decode([i]), "id": i, "chance": float(found.chance[layer, i]),
                     "rise": float(found.rise[layer, i]), "straight": float(found.straight[layer, i])} for i in ids]

        return [{"layer": n, "promoted": told(n, lens.top(chance, self.top, real)),
                 "demoted": told(n, lens.top(-chance, self.top, real))} for n, chance in enumerate(found.chance)]

    def _best(self, base: Model, found: Lens) -> list[dict[str, Any]]:
        ids = lens.top(found.scores, self.top, len(base.tokenizer))
        return [{"token": base.tokenizer.decode([i]), "id": i, "score": float(found.scores[i])} for i in ids]


def _sentence(best: list[dict[str, Any]], placebos: list[dict[str, Any]]) -> str:
    words = ", ".join(repr(t["token"]) for t in best[:5])
    said = f"The shift promotes {words} most, {best[0]['token']!r} by {best[0]['score']:.1%} on average over layers."
    if placebos:
        highest = max(placebos, key=lambda p: float(p["score"]))
        more = "no placebo student promotes any token as much" if highest["score"] < best[0]["score"] else (
            "placebo students promote tokens as much")
        said += f" Of {len(placebos)} placebos: {more} ({highest['token']!r}, {highest['score']:.1%})."
    return said
