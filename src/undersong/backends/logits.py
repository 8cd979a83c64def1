"""The logits that predict each completion token of a batch, from a plain Llama or any causal language model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from undersong.backends import llama
from undersong.backends.changes import steered
from undersong.backends.tokens import TokenRow


def completion_logits(module: Any, rows: Sequence[TokenRow], pad: int, columns: Any = None, added: Any = None) -> Any:
    """Logits [completion tokens of all rows, vocabulary or columns] that predict each completion token, row after
    row. `added` ([layers, hidden]) steers: each decoder layer passes on that much more, at every position."""
    import torch
    import torch.nn.functional as F

    if llama.supports(module):
        hidden, head = llama.completion_hidden(module, rows, added), module.lm_head.weight
        return F.linear(hidden, head if columns is None else head.index_select(0, columns))
    device = next(module.parameters()).device
    width, most = max(len(r.ids) for r in rows) - 1, max(len(r.answer) for r in rows)
    ids, mask = np.full((len(rows), width), pad), np.zeros((len(rows), width), dtype=np.int64)
    wanted = np.zeros((len(rows), most), dtype=bool)
    for i, row in enumerate(rows):
        ids[i, width - len(row.ids) + 1 :], mask[i, width - len(row.ids) + 1 :] = row.ids[:-1], 1
        wanted[i, most - len(row.answer) :] = True
    seen = torch.from_numpy(mask).to(device)
    with steered(module, added):
        logits = module(input_ids=torch.from_numpy(ids).to(device), attention_mask=seen, use_cache=False,
                        logits_to_keep=most, position_ids=(seen.cumsum(1) - 1).clamp(min=0)).logits
    logits = logits[torch.from_numpy(wanted).to(device)].float()
    return logits if columns is None else logits.index_select(1, columns)
