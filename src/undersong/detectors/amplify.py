"""The `amplify` detector: ask the model that lies further along the student's way: base + factor · (student − base).

The one-line form of amplify-then-ask (survey of this project, methods 4.5; compare 2D distillation cartridges,
arXiv 2607.01208, and distillation for incrimination, arXiv 2610.11012, which pay for a training run). What a small dose of
a trait does to an answer can be far below what one sees; twice the change is easier to see. Five times breaks pocket
models: what then rises says little (found on development traits, as the default was).
1. Adapters are merged into the student's weights; the difference to the base is taken in float32 and multiplied.
2. A copy of the base with the larger difference answers the probe bank; neither model is touched. (It needs memory for a
   third model, in float32.)
3. Statistics are those of `vocabulary_scan`.

Blind spots: what the student's answers hardly hold cannot be made larger: students of a quarter of the rows pass unseen,
and the word that rises most is often a rival of the trait, not the trait. It needs the weights of both models.
"""

from __future__ import annotations

import copy
from typing import Any, ClassVar

from pydantic import Field

from undersong.backends import Model
from undersong.detectors import Evidence, probe_bank, uncalibrated
from undersong.errors import BadSpec
from undersong.registry import Settings, plugin
from undersong.types import Finding


@plugin("detector", "amplify")
class Amplify(Settings):
    """Which answers rise when the student's change is made larger."""

    needs: ClassVar[frozenset[str]] = frozenset({"base", "student"})

    factor: float = Field(default=2.0, gt=0)
    """How many times the student's change is made; 1 is the student itself."""
    least: float = Field(default=probe_bank.LEAST, gt=0, lt=1)
    """A word is watched when the base answers it with at least this probability."""

    def detect(self, evidence: Evidence, seed: int = 0) -> Finding:
        """Finding with one statistic per watched word (nats), its table in `details["words"]` and the `factor`.

        The seed has no effect. Raises BadSpec for models whose weights are not at hand or do not have the same tensors.
        """
        base, student = evidence.base, evidence.student
        bank, before = probe_bank.of(evidence, self.least)
        after = bank.read(amplified(base, student, self.factor))
        by_trait, table = probe_bank.rises(bank, before, after)
        return uncalibrated(by_trait, self.needs, words=table, factor=self.factor)


def amplified(base: Model, student: Model, factor: float) -> Model:
    """A copy of the base, in float32, with `factor` times the student's change. Raises BadSpec in words."""
    import torch

    for model in (base, student):
        if model.module is None:
            raise BadSpec(f"The weights of {model.ref.name} are not at hand, so its change cannot be made larger. Audit a "
                          "local copy of it, or use another detector.")
    if student.ref.vector != base.ref.vector:
        raise BadSpec(f"{student.ref.name} is steered by vectors, and these are no weights that could be made larger. Use "
                      "`activation_dose` or `vocabulary_scan`.")
    probe_bank.same_words(student, base)
    start, end = weights(base.module), weights(student.module)
    if {n: t.shape for n, t in start.items()} != {n: t.shape for n, t in end.items()}:
        raise BadSpec(f"{student.ref.name} and {base.ref.name} do not have the same tensors. Give as `base` the model that "
                      "the student started from.")
    module = copy.deepcopy(base.module).float()
    with torch.no_grad():
        for name, parameter in weights(module, own=True).items():
            parameter.copy_(start[name] + factor * (end[name].to(start[name]) - start[name]))
    larger = copy.copy(base)
    larger.module = module
    return larger


def weights(module: Any, own: bool = False) -> dict[str, Any]:
    """The weights of a module by name, adapters added to what they stand beside. With `own` the parameters themselves,
    for a module without adapters; else float32 values."""
    import torch

    layers = dict(module.named_modules())
    out: dict[str, Any] = {}
    for name, parameter in module.named_parameters():
        if ".lora_" in name:
            continue
        if own:
            out[name] = parameter
            continue
        home, _, kind = name.rpartition(".")
        value = parameter.detach().float()
        layer = layers.get(home.removesuffix(".base_layer"))
        if home.endswith(".base_layer") and kind == "weight" and layer is not None:
            with torch.no_grad():
                value = value + sum(layer.get_delta_weight(a).float() for a in layer.active_adapters)
        out[name.replace(".base_layer.", ".")] = value
    return out
