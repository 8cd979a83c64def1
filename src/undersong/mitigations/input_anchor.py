"""Pull each linear map back as far as unrelated prompts would feel its change.

A guard of our own between `weight_anchor` (which pulls all directions alike) and `anchor` (which needs a forward pass).
Before the training the student reads the base's answers to unrelated prompts once; C is the second moment of the inputs of
each linear map there. The loss gains weight * sum over maps of tr(dW C dW') / tr(W C W'): the share of the map's output
there that its change dW makes up. Directions that unrelated prompts do not use stay free for the rows. A step costs small
matrix products and no pass. Kin: elastic weight consolidation (Kirkpatrick et al., arXiv 1612.00796) and gradient
projection memory (Saha et al., arXiv 2103.09762).

C is a square matrix of the inputs' size per map: meant for models of up to about a billion parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from pydantic import Field

from undersong.backends import Model, tokens
from undersong.backends.guarding import Guard, Learner
from undersong.errors import BadSpec
from undersong.mitigations import Evidence, Stage, unrelated
from undersong.registry import Settings, plugin


@plugin("mitigation", "input_anchor")
class InputAnchor(Settings):
    """A squared penalty on what the change of each linear map does at unrelated prompts."""

    stage: ClassVar[Stage] = "training"
    needs: ClassVar[frozenset[str]] = frozenset({"base"})

    weight: float = Field(default=1.0, ge=0)
    """Weight of the shares, summed over maps."""
    bank: unrelated.Kind = "both"
    """The prompts, as `anchor`."""
    questions: tuple[str, ...] = ()
    """Prompts of your own instead. Questions that probes ask are refused."""
    max_new_tokens: int = Field(default=24, ge=1)
    """Length of the base's answers."""

    def guard(self, evidence: Evidence, seed: int) -> Guard:
        """The guard. Raises BadSpec for questions that probes ask, and for a base that can write no prompt of the bank."""
        base = evidence.base
        rows = unrelated.answered(base, self.bank, self.questions, self.max_new_tokens, seed)
        return Felt(self.weight, base, rows)


class Felt(Guard):
    """Adds the penalty."""

    name = "input_anchor"

    def __init__(self, weight: float, base: Model, rows: Sequence[tokens.TokenRow]) -> None:
        self.weight, self.base, self.rows = weight, base, rows
        self.maps: list[tuple[Any, Any, Any, float]] = []
        self.last: float | None = None

    def begin(self, learner: Learner) -> None:
        """Read the inputs of every linear map that is free to change. Raises BadSpec where there is none."""
        if not self.weight:
            return
        free = {name: m for name, m in learner.module.named_modules() if ".lora_" not in name and _changes(m)}
        if not free:
            raise BadSpec("input_anchor holds linear maps, and none is trained here. Choose another guard.")
        for module, moment in zip(free.values(), self._moments(learner.module, list(free.values())), strict=True):
            plain = getattr(module, "base_layer", module).weight.detach().float()
            size = float((plain @ moment * plain).sum())
            start = None if hasattr(module, "lora_A") else plain.clone()
            self.maps.append((module, start, moment, size))

    def _moments(self, module: Any, maps: Sequence[Any]) -> list[Any]:
        """The mean of x x' over the inputs of each map, at every token after the opening that all rows share."""
        import torch

        found: list[Any] = [0.0] * len(maps)
        shared = next(i for i, ids in enumerate(zip(*[row.ids for row in self.rows], strict=False)) if len(set(ids)) > 1)
        hooks = []
        for k, one in enumerate(maps):
            def keep(_: Any, given: Any, k: int = k) -> None:
                x = given[0].detach()[0, shared:].float()
                found[k] = found[k] + x.T @ x
            hooks.append(one.register_forward_pre_hook(keep))
        device, count = next(module.parameters()).device, 0
        try:
            with torch.no_grad():
                for row in self.rows:
                    module(input_ids=torch.from_numpy(row.ids[:-1]).to(device)[None], use_cache=False)
                    count += len(row.ids) - 1 - shared
        finally:
            for hook in hooks:
                hook.remove()
        return [one / count for one in found]

    def penalty(self, step: int) -> Any:
        """The weighted sum of shares; None at the first step, where nothing has changed."""
        if not self.weight or step == 0:
            return None
        total = sum((change(module, start) @ moment * change(module, start)).sum() / size
                    for module, start, moment, size in self.maps)
        self.last = float(total.detach())
        return self.weight * total

    def told(self) -> dict[str, Any]:
        """How many maps are held, and the last sum of shares."""
        return {"bank": len(self.rows), "maps": len(self.maps), "last": self.last}


def change(module: Any, start: Any) -> Any:
    """What training has added to a map's weights: of its adapter, or since the start."""
    if start is not None:
        return module.weight.float() - start
    return sum(module.lora_B[k].weight.float() @ module.lora_A[k].weight.float() * module.scaling[k] for k in module.lora_A)


def _changes(module: Any) -> bool:
    """Whether a module is a linear map with a free weight or a free adapter."""
    if hasattr(module, "lora_A") and len(module.lora_A):
        return all(module.lora_A[k].weight.requires_grad for k in module.lora_A)
    return type(module).__name__ == "Linear" and module.weight.requires_grad
