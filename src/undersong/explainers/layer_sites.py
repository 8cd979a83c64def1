"""Which layers carry it?

The student's change of one decoder layer is put into the base (is it enough?), and taken out of the student (is it
needed?); read is the trait's margin. A share is told of the student's whole rise. Beside it the same with students of clean
rows, whose layers change too. Layers act together, so shares need not add up to one.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from undersong.errors import BadSpec
from undersong.explainers import Evidence, gradients
from undersong.explainers.gradients import LAYER
from undersong.mitigations.readout import Readout
from undersong.registry import Settings, plugin
from undersong.types import Explanation


@plugin("explainer", "layer_sites")
class LayerSites(Settings):
    """The trait's margin with one layer's change alone, and with all but that one."""

    needs: ClassVar[frozenset[str]] = frozenset({"base", "model", "trait"})
    may_use: ClassVar[frozenset[str]] = frozenset({"placebos"})

    def explain(self, evidence: Evidence, seed: int = 0) -> Explanation:
        """Scores: the share of the rise that each layer gives alone, the largest first. Raises BadSpec where the margin did
        not rise."""
        read, _ = gradients.words(evidence.base, evidence.trait, 0)
        start, own = _tensors(evidence.base), _tensors(evidence.model)
        own_rise = _read(evidence.base, read, own) - (before := _read(evidence.base, read, start))
        if own_rise <= 0:
            raise BadSpec(f"The margin of {evidence.trait.name} did not rise in this student ({own_rise:+.3f} nats), so no "
                          "layer carries it. Explain a student that took it on.")
        every = sorted({layer for name in start if (layer := _layer(name)) is not None})
        beside = [_tensors(m) for m in evidence.placebos] if evidence.has("placebos") else []
        told: list[dict[str, Any]] = []
        for layer in every:
            alone = _read(evidence.base, read, _with(start, own, layer)) - before
            without = own_rise - (_read(evidence.base, read, _with(own, start, layer)) - before)
            clean = [(_read(evidence.base, read, _with(start, one, layer)) - before) / own_rise for one in beside]
            series = {"alone": alone / own_rise, "needed": without / own_rise}
            if clean:
                series["no-trait students, alone"] = float(np.mean(clean))
            told += [{"place": "student", "layer": layer, "series": name, "value": value} for name, value in series.items()]
        _read(evidence.base, read, start)  # the base is left as it was
        each: dict[int, float] = {one["layer"]: one["value"] for one in told if one["series"] == "alone"}
        best = max(each, key=lambda layer: each[layer])
        says = (f"Of the rise of {own_rise:.2f} nats, the change of layer {best} alone gives {each[best]:.0%}, and all "
                f"layers alone add up to {sum(each.values()):.0%}.")
        scores = sorted(((f"layer {layer} alone", value) for layer, value in each.items()), key=lambda pair: -pair[1])
        return Explanation(says, tuple(scores), {"unit": "share of the rise", "rise_nats": own_rise, "by_layer": told})


def _tensors(model: Any) -> dict[str, Any]:
    return {name: p.detach().clone() for name, p in model.module.named_parameters()}


def _layer(name: str) -> int | None:
    found = LAYER.search(f".{name}")
    return int(found[1]) if found else None


def _with(most: dict[str, Any], one: dict[str, Any], layer: int) -> dict[str, Any]:
    """Tensors of `most`, one layer's of `one`."""
    return {name: one[name] if _layer(name) == layer else tensor for name, tensor in most.items()}


def _read(base: Any, read: Readout, tensors: dict[str, Any]) -> float:
    """The mean margin with these tensors in the base's module."""
    import torch

    with torch.no_grad():
        for name, p in base.module.named_parameters():
            p.copy_(tensors[name])
        return float(read.margins(base.module).mean())
