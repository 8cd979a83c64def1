"""Which layers carry it?

The student's change of one decoder layer is put into the base (is it enough?), and taken out of the student (is it
needed?); read is the trait's margin. A share is told of the student's whole rise. Beside it stand students of clean rows,
whose layers change too: their layer in the base, and their layer in the student in the place of its own. Layers act
together, so shares need not add up to one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from undersong.errors import BadSpec
from undersong.explainers import Evidence, gradients
from undersong.explainers.gradients import LAYER
from undersong.mitigations.readout import Readout
from undersong.registry import Settings, plugin
from undersong.types import Explanation

Tensors = dict[str, Any]


@plugin("explainer", "layer_sites")
class LayerSites(Settings):
    """The trait's margin with one layer's change alone, and with all but that one."""

    needs: ClassVar[frozenset[str]] = frozenset({"base", "model", "trait"})
    may_use: ClassVar[frozenset[str]] = frozenset({"placebos"})

    def explain(self, evidence: Evidence, seed: int = 0) -> Explanation:
        """Scores: the share of the rise that each layer gives alone, that is lost without it, and that the same layer of
        no-trait students gives. Raises BadSpec where the margin rose no more than in a student of clean rows."""
        read, _ = gradients.words(evidence.base, evidence.trait, 0)
        start, own = _tensors(evidence.base), _tensors(evidence.model)
        beside = [_tensors(m) for m in evidence.placebos] if evidence.has("placebos") else []
        try:
            return self._explained(evidence, read, start, own, beside)
        finally:
            _put(evidence.base, start)  # the base is left as it was

    def _explained(
        self, evidence: Evidence, read: Readout, start: Tensors, own: Tensors, beside: Sequence[Tensors],
    ) -> Explanation:
        own_rise = _read(evidence.base, read, own) - (before := _read(evidence.base, read, start))
        usual = [_read(evidence.base, read, one) - before for one in beside]
        if own_rise <= max([0.0, *usual]):
            other = f"; up to {max(usual):+.3f} in students of clean rows" if usual else ""
            raise BadSpec(f"The margin of {evidence.trait.name} did not rise in this student ({own_rise:+.3f} nats{other}), "
                          "so no layer carries it. Explain a student that took it on.")
        every = sorted({layer for name in start if (layer := _layer(name)) is not None})
        told: list[dict[str, Any]] = []
        for layer in every:
            alone = _read(evidence.base, read, _with(start, own, layer)) - before
            without = own_rise - (_read(evidence.base, read, _with(own, start, layer)) - before)
            series = {"alone": alone / own_rise, "needed": without / own_rise}
            if beside:
                clean = [_read(evidence.base, read, _with(start, one, layer)) - before for one in beside]
                swapped = [own_rise - (_read(evidence.base, read, _with(own, one, layer)) - before) for one in beside]
                series["no-trait students, alone"] = float(np.mean(clean)) / own_rise
                series["lost with a no-trait student's layer"] = float(np.mean(swapped)) / own_rise
            told += [{"place": "student", "layer": layer, "series": name, "value": value} for name, value in series.items()]
        each: dict[int, float] = {one["layer"]: one["value"] for one in told if one["series"] == "alone"}
        best = max(each, key=lambda layer: each[layer])
        by = {(one["series"], one["layer"]): one["value"] for one in told}
        clean_best = by.get(("no-trait students, alone", best))
        says = (f"Of the rise of {own_rise:.2f} nats, the change of layer {best} alone gives {each[best]:.0%}"
                + (f" (the same layer of no-trait students {clean_best:.0%})" if clean_best is not None else "")
                + f"; without it {by['needed', best]:.0%} is lost. All layers alone add up to {sum(each.values()):.0%}.")
        names = {"alone": "alone", "needed": "needed", "no-trait students, alone": "alone, no-trait students"}
        scores = tuple((f"layer {layer} {said}", by[series, layer]) for series, said in names.items() for layer in every
                       if (series, layer) in by)
        return Explanation(says, scores, {"unit": "share of the rise", "rise_nats": own_rise, "no_trait_nats": usual,
                                          "by_layer": told})


def _tensors(model: Any) -> Tensors:
    return {name: p.detach().clone() for name, p in model.module.named_parameters()}


def _layer(name: str) -> int | None:
    found = LAYER.search(f".{name}")
    return int(found[1]) if found else None


def _with(most: Tensors, one: Tensors, layer: int) -> Tensors:
    """Tensors of `most`, one layer's of `one`."""
    return {name: one[name] if _layer(name) == layer else tensor for name, tensor in most.items()}


def _read(base: Any, read: Readout, tensors: Tensors) -> float:
    """The mean margin with these tensors in the base's module."""
    import torch

    _put(base, tensors)
    with torch.no_grad():
        return float(read.margins(base.module).mean())


def _put(base: Any, tensors: Tensors) -> None:
    import torch

    with torch.no_grad():
        for name, p in base.module.named_parameters():
            p.copy_(tensors[name])
