"""Per-row gradients by bergson (EleutherAI), an optional engine of `attribution`: batched, by hooks on linear layers.

It yields what `Body.of_each` yields, in the same layout, with zeros where bergson does not look: only weights of linear
layers, no norms and no biases. `linear` is the mask of what it looks at, so that a query can be held to the same tensors.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from undersong.backends.tokens import TokenRow
from undersong.errors import MissingExtra
from undersong.explainers.gradients import Body

BATCH = 16


def of_each(body: Body, rows: Sequence[TokenRow]) -> Iterator[Any]:
    """Minus the gradient of each row's mean loss per answer token: flat float32 tensors of the body's layout.

    Raises MissingExtra without bergson."""
    try:
        import bergson
        from bergson.collector.collector import fwd_bwd_factory
        from bergson.data import pad_and_tensor
        from datasets import Dataset
    except ImportError:
        raise MissingExtra("The engine `bergson` is not installed. Install it: pip install 'undersong[attribution]'; or "
                             "leave `engine` out.") from None
    import torch

    places, size = _places(body), sum(p.numel() for _, p in body.named)
    names = {name.removeprefix(f"{body.model.module.base_model_prefix}.").removesuffix(".weight"): at
             for name, at in places.items()}
    cfg = bergson.IndexConfig(run_path="", loss_reduction="mean")
    step = fwd_bwd_factory(cfg)
    for first in range(0, len(rows), BATCH):
        here = rows[first : first + BATCH]
        # -100 is what is not learned from: the prompt
        data = Dataset.from_dict({"input_ids": [row.ids.tolist() for row in here], "labels": [
            np.where(np.arange(len(row.ids)) < row.start, -100, row.ids).tolist() for row in here]})
        collector = bergson.InMemoryCollector(
            model=body.model.module.base_model, data=data, cfg=cfg, target_modules=set(names),
            processor=bergson.GradientProcessor(projection_dim=None))
        batch = data[:]
        x, y, _, mask = pad_and_tensor(batch["input_ids"], labels=batch["labels"], device=body.model.module.device)
        with collector.with_batch(mask):
            losses = step(body.model.module, x, y, batch)
        collector.process_batch(list(range(len(here))), losses=losses)
        collector.teardown()
        whole = torch.zeros(len(here), size)
        for name, found in collector.gradients.items():
            whole[:, names[name]] = -found.float()
        yield from whole


def linear(body: Body) -> Any:
    """1.0 where bergson looks, 0.0 elsewhere: a flat float32 tensor of the body's layout."""
    import torch

    mask = torch.zeros(sum(p.numel() for _, p in body.named))
    for part in _places(body).values():
        mask[part] = 1.0
    return mask


def _places(body: Body) -> dict[str, slice]:
    """Per weight of a linear layer of the body, where it stands in the flat layout."""
    import torch

    owned = {f"{name}.weight" for name, m in body.model.module.named_modules() if isinstance(m, torch.nn.Linear)}
    out, at = {}, 0
    for name, p in body.named:
        if name in owned:
            out[name] = slice(at, at + p.numel())
        at += p.numel()
    return out
