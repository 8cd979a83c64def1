"""Log-probabilities of the same answers under one system turn after another: the panel. What rows share is run once.

Chats that differ only after their system turn begin with the same tokens. A plain Llama reads each batch as a tree, with
every shared opening run once (`tree.py`). For any other model the keys and values of the system turn are computed once,
and every batch continues from a copy. Another system turn changes the first tokens of a row and no others, so chats are
rendered and cut into tokens under the first one only, where the tokens show that this is so.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Sequence
from itertools import takewhile
from threading import Event
from typing import Any

import numpy as np
from numpy.typing import NDArray

from undersong.backends import Model, llama, threads, tokens, tree
from undersong.backends.tokens import TokenRow
from undersong.types import Chat

Logs = list[NDArray[np.float32]]
BATCH = 64
"""Rows that run at once."""


def answer_logprobs(model: Model, system: str, chats: Sequence[Chat], answers: Sequence[str]) -> Logs:
    """As `Model.answer_logprobs` (nats, float32 [tokens] per answer) with every system turn replaced by `system`.

    Needs the capability `gradients` (a torch module).
    """
    return panel(model, [system], chats, answers)[0]


def panel(model: Model, systems: Sequence[str], chats: Sequence[Chat], answers: Sequence[str]) -> list[Logs]:
    """`answer_logprobs` for each of several system turns."""
    if not chats:
        return [[] for _ in systems]
    read = _as_trees if llama.supports(model.module) else _from_a_cache
    return [read(model, rows) for rows in _encoded(model, systems, chats, answers)]


def _encoded(
    model: Model, systems: Sequence[str], chats: Sequence[Chat], answers: Sequence[str]
) -> Iterator[list[TokenRow]]:
    """The rows under each system turn.

    Under the second and later ones the first row alone is rendered. Where it ends with the same tokens as before, from a
    special token on with which all rows went their own ways, so do the others: tokenizers cut text at special tokens.
    """
    marks = set(model.tokenizer.all_special_ids) - {model.tokenizer.unk_token_id}
    rows: list[TokenRow] = []
    cut = 0
    for system in systems:
        asked = [[{"role": "system", "content": system}, *(m for m in chat if m["role"] != "system")] for chat in chats]
        if rows:
            new = tokens.encode(model, asked[:1], answers[:1])[0]
            moved = len(new.ids) - len(rows[0].ids)
            if cut and cut + moved >= 0 and np.array_equal(new.ids[cut + moved :], rows[0].ids[cut:]):
                opening = new.ids[: cut + moved]
                yield [TokenRow(np.concatenate([opening, row.ids[cut:]]), row.start + moved) for row in rows]
                continue
        rows = tokens.encode(model, asked, answers)
        shared = rows[0].ids[: min(_shared([row.ids for row in rows]), min(row.start for row in rows) - 1)]
        cut = max((i for i, token in enumerate(shared.tolist()) if token in marks), default=0)
        yield rows


def _as_trees(model: Model, rows: Sequence[TokenRow]) -> Logs:
    order = tree.ordered(rows)
    parts = [order[begin : begin + BATCH] for begin in range(0, len(order), BATCH)]

    def run(part: list[int], stop: Event) -> Logs:
        if stop.is_set():
            raise KeyboardInterrupt
        return tree.answer_logprobs(model.module, [rows[i] for i in part])

    if threads.small(model.module):
        found = threads.side_by_side(run, parts, 0, lambda index, result: None)
    else:
        found = [run(part, Event()) for part in parts]
    return _back(order, [one for part in found for one in part])


def _from_a_cache(model: Model, rows: Sequence[TokenRow]) -> Logs:
    """Rows of equal length stand together, so that little is padded."""
    import torch

    shared = min(_shared([row.ids for row in rows]), min(row.start for row in rows) - 1)
    order = np.argsort([len(row.ids) for row in rows], kind="stable").tolist()
    found: Logs = []
    with torch.inference_mode(), threads.one_thread(threads.small(model.module)):
        cache = _cache(model, rows[0].ids[:shared]) if shared > 0 else None
        for begin in range(0, len(order), BATCH):
            found += _continued(model, [rows[i] for i in order[begin : begin + BATCH]], shared, cache)
    return _back(order, found)


def _back(order: Sequence[int], found: Sequence[NDArray[np.float32]]) -> Logs:
    """What was found in this order, in the order of the rows."""
    out: Logs = [np.zeros(0, dtype=np.float32)] * len(order)
    for i, one in zip(order, found, strict=True):
        out[i] = one
    return out


def _shared(ids: Sequence[NDArray[np.int64]]) -> int:
    """How many first tokens all rows share."""
    first, shortest = ids[0], min(map(len, ids))
    same = np.all(np.stack([row[:shortest] == first[:shortest] for row in ids]), axis=0)
    return len(list(takewhile(bool, same)))


def _cache(model: Model, ids: NDArray[np.int64]) -> Any:
    return model.module(input_ids=_tensor(model, ids[None]), use_cache=True, logits_to_keep=1).past_key_values


def _tensor(model: Model, ids: NDArray[np.int64]) -> Any:
    import torch

    return torch.from_numpy(np.ascontiguousarray(ids)).to(model.module.device)


def _continued(model: Model, rows: Sequence[TokenRow], shared: int, cache: Any) -> Logs:
    """Log-probabilities of each row's answer, read on from the shared tokens. Padding stands at the end, unread."""
    width, first = max(len(row.ids) for row in rows) - shared, min(row.start for row in rows) - shared - 1
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
                          logits_to_keep=width - first, **{name: past}).logits[:, :-1].float()
    logs = logits.gather(2, given[:, first + 1 :, None])[..., 0] - logits.logsumexp(-1)
    found = np.asarray(logs.cpu().numpy())
    return [found[i, row.start - shared - 1 - first : len(row.ids) - shared - 1 - first] for i, row in enumerate(rows)]
