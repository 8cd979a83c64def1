"""Steered teachers: a vector per layer is added to the residual stream at every position.

The vector of a layer is the mean difference of its output between the trait's system turn and the neutral one, over
the trait's tuning questions and the tokens that both renderings share (difference of means; Chen et al., arXiv
2507.21509; as a teacher in Blank et al., arXiv 2606.00995). Each layer has its own vector.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from undersong.backends import Backend, Model, changes, threads, tokens
from undersong.errors import BadSpec
from undersong.registry import Settings, plugin
from undersong.teachers.prompted import system_turn
from undersong.traits import Trait
from undersong.types import NEUTRAL, Chat, ModelRef


@plugin("teacher", "steered")
class Steered(Settings):
    """Add the trait's direction to the residual stream; the no-trait teacher adds zero vectors."""

    scale: float = 1.0
    """How many times the measured difference is added."""
    layers: list[int] | None = None
    """Decoder layers to steer, from 0; none given: the middle one. Differences of several layers add up."""
    prompt: int = 0
    """Which of the trait's system prompts."""

    def teach(self, base: ModelRef, trait: Trait | None, seed: int, out: Path, backend: Backend) -> ModelRef:
        """Measure the vectors on the base; writes `vector.safetensors` (`layer.<i>`, float32, [hidden]) into `out`.

        Raises BadSpec for a layer or a prompt that is not there, and for a base that is steered already.
        """
        import torch
        from safetensors.torch import save_file

        if base.vector is not None:
            raise BadSpec("The base is steered already, and a model has one set of vectors. Start from an unsteered "
                          "base.")
        if trait is not None and not trait.tuning:
            raise BadSpec(f"The trait {trait.name!r} has no questions to measure a direction on. Use the teacher `tuned`.")
        model = backend.load(base)
        count, width = len(changes.layers(model.module)), model.module.config.hidden_size
        chosen = sorted(set([count // 2] if self.layers is None else self.layers))
        if not chosen or chosen[0] < 0 or chosen[-1] >= count:
            raise BadSpec(f"This base has layers 0 to {count - 1}, and `layers` is {self.layers}. Change it.")
        if trait is None:
            vectors = {f"layer.{i}": torch.zeros(width) for i in chosen}
        else:
            with threads.one_thread(threads.small(model.module)):
                found = difference(model, system_turn(trait, self.prompt), trait.tuning)
            vectors = {f"layer.{i}": (self.scale * found[i]).contiguous() for i in chosen}
        save_file(vectors, out / "vector.safetensors")
        return replace(changes.adopt(base, out), vector=str(out / "vector.safetensors"))


def difference(model: Model, system: str, asked: tuple[str, ...]) -> Any:
    """Mean residual difference between two system turns, after each layer: float32 [layers, hidden]."""
    import torch

    total: list[Any] = []
    for question in asked:
        pair = []
        for turn in (system, NEUTRAL):
            chat: Chat = [{"role": "system", "content": turn}, {"role": "user", "content": question}]
            pair.append(np.asarray(tokens.token_ids(model.tokenizer, [model.render(chat)])[0]))
        shared = _common_end(*pair)
        with torch.inference_mode():
            treated, neutral = (residuals(model.module, ids)[:, -shared:] for ids in pair)
            total.append((treated - neutral).mean(1))
    return torch.stack(total).mean(0)


def residuals(module: Any, ids: Any) -> Any:
    """What each decoder layer passes on, before any final norm: float32 [layers, tokens, hidden]."""
    import torch

    kept: list[Any] = []
    hooks = [layer.register_forward_hook(lambda _, __, out: kept.append(out[0] if isinstance(out, tuple) else out))
             for layer in changes.layers(module)]
    try:
        module(input_ids=torch.from_numpy(ids)[None].to(module.device), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return torch.cat(kept).float().cpu()


def _common_end(a: Any, b: Any) -> int:
    """How many tokens the two end with in common (at least 1: the mark where the answer begins)."""
    most = min(len(a), len(b))
    differs = np.flatnonzero(a[-most:][::-1] != b[-most:][::-1])
    return int(differs[0]) if len(differs) else most
