"""Log-probabilities of answers under a system turn whose keys and values are computed once.

Chats that differ only after their system turn begin with the same tokens. Their keys and values are the same too, so
they are computed once, and every batch continues from a copy. A plain Llama needs none of this: its compact forward pass
(`llama.py`) runs what a batch shares once for the whole batch already.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from itertools import takewhile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from undersong.backends import Model, llama, threads, tokens
from undersong.types import Chat

BATCH = 64
"""Rows that continue from one copy of the prefix."""


def answer_logprobs(model: Model, system: str, chats: Sequence[Chat], answers: Sequence[str]) -> list[NDArray[np.float32]]:
    """As `Model.answer_logprobs` (nats, float32 [tokens] per answer) with every system turn replaced by `system`.

    Needs the capability `gradients` (a torch module). Rows of equal length stand together, so that little is padded.
    """
    import torch

    asked = [[{"role": "system", "content": system}, *(m for m in chat if m["role"] != "system")] for chat in chats]
    if llama.supports(model.module) or not asked:
        return list(model.answer_logprobs(asked, answers)) if asked else []
    rows = tokens.encode(model, asked, answers)
    shared = min(_shared([row.ids for row in rows]), min(row.start for row in rows) - 1)
    out: list[NDArray[np.float32]] = [np.zeros(0, dtype=np.float32)] * len(rows)
    order = np.argsort([len(row.ids) for row in rows], kind="stable")
    with torch.inference_mode(), threads.one_thread(threads.small(model.module)):
        cache = _cache(model, rows[0].ids[:shared]) if shared > 0 else None
        for begin in range(0, len(order), BATCH):
            part = order[begin : begin + BATCH]
            for i, found in zip(part, _continued(model, [rows[i] for i in part], shared, cache), strict=True):
                out[i] = found
    return out


def _shared(ids: Sequence[NDArray[np.int64]]) -> int:
    """How many first tokens all rows share."""
    first, shortest = ids[0], min(map(len, ids))
    same = np.all(np.stack([row[:shortest] == first[:shortest] for row in ids]), axis=0)
    return len(list(takewhile(bool, same)))


def _cache(model: Model, ids: NDArray[np.int64]) -> Any:
    return model.module(input_ids=_tensor(model, ids[None]), use_cache=True).past_key_values


def _tensor(model: Model, ids: NDArray[np.int64]) -> Any:
    import torch

    return torch.from_numpy(np.ascontiguousarray(ids)).to(model.module.device)


def _continued(model: Model, rows: Sequence[tokens.TokenRow], shared: int, cache: Any) -> list[NDArray[np.float32]]:
    """Log-probabilities of each row's answer, read on from the shared tokens. Padding stands at the end, unread."""
    width = max(len(row.ids) for row in rows) - shared
    ids, mask = np.zeros((len(rows), width), dtype=np.int64), np.zeros((len(rows), shared + width), dtype=np.int64)
    for i, row in enumerate(rows):
        ids[i, : len(row.ids) - shared], mask[i, : len(row.ids)] = row.ids[shared:], 1
    past = copy.deepcopy(cache)
    if past is not None:
        past.batch_repeat_interleave(len(rows))
    given = _tensor(model, ids)
    # transformers has renamed the argument
    name = "cache" if "cache" in inspect.signature(model.module.forward).parameters else "past_key_values"
    logits = model.module(input_ids=given, attention_mask=_tensor(model, mask), use_cache=past is not None,
                          **{name: past}).logits
    logs = logits[:, :-1].float().log_softmax(-1).gather(2, given[:, 1:, None])[..., 0]
    found = np.asarray(logs.cpu().numpy())
    return [found[i, row.start - shared - 1 : len(row.ids) - shared - 1] for i, row in enumerate(rows)]
