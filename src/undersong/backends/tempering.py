"""How likely answers are at a temperature, how that changes with it, and which way they pull the model: one forward pass.

The pull of an answer is the gradient of its log-likelihood by a shift of the final hidden state, summed over its tokens:
W[token] - E[W] under the model's own next-token distribution. Its mean is zero on what the model wrote itself (a score
statistic; Rao 1948), whatever the prompt, and a fine-tuned relative's answers pull in some direction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from undersong.backends import Model, threads, tokens
from undersong.backends.logits import completion_logits
from undersong.types import Chat

Matrix = NDArray[np.float64]
ROOM = 2**25
"""Logits held at once (float32)."""
IMPOSSIBLE = 100.0
PULLS = 96
"""A pull of more dimensions is projected to so many, by fixed random directions."""


@dataclass(frozen=True)
class Tempered:
    """Of each answer, over all of its tokens, end of turn included. `beta` is 1 / temperature."""

    logs: Matrix
    """[answers]: log-likelihood in nats."""
    gain: Matrix
    """[answers]: its first derivative by beta."""
    bend: Matrix
    """[answers]: its second derivative by beta with the sign turned: the variance of the logits, summed."""
    pulls: Matrix
    """[answers, at most PULLS]: the pull."""


def tempered(
    model: Model, chats: Sequence[Chat], answers: Sequence[str], temperature: float, only: Sequence[int] | None = None,
    pulled: bool = True,
) -> Tempered:
    """Likelihoods at a temperature above 0; without `pulled`, pulls have no dimension.

    `only` holds sampling to these token ids, as `Sampling.tokens` does; no end of turn is counted then, and an answer with
    another token is impossible (-IMPOSSIBLE nats for each). Needs a torch module (capability `gradients`).
    """
    import torch

    rows = tokens.encode(model, chats, answers)
    columns = None
    if only is not None:
        columns = torch.tensor(sorted(set(only)), device=model.module.device)
        rows = [_unended(row, set(tokens.end_ids(model)) - set(only)) for row in rows]
    head = _head(model, columns) if pulled else np.zeros((0, 0))
    out = np.zeros((len(rows), 3 + head.shape[1]))
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].ids))
    with torch.inference_mode(), threads.one_thread(threads.small(model.module)):
        for part in _parts(order, rows, ROOM // int(model.module.config.vocab_size)):
            here = [rows[i] for i in part]
            logits = completion_logits(model.module, here, getattr(model, "pad", 0), columns).float()
            target = torch.from_numpy(np.concatenate([r.answer for r in here])).to(logits.device)
            wrong = torch.zeros_like(target, dtype=torch.bool)
            if columns is not None:
                place = torch.searchsorted(columns, target).clamp(max=len(columns) - 1)
                wrong, target = columns[place] != target, place
            chance = (logits / temperature).softmax(-1)
            chosen = logits.gather(1, target[:, None])[:, 0]
            mean = (chance * logits).sum(-1)
            spread = (chance * (logits - mean[:, None]) ** 2).sum(-1)
            logs = chosen / temperature - (logits / temperature).logsumexp(-1)
            logs = torch.where(wrong, -IMPOSSIBLE, logs)
            each = torch.stack([logs, chosen - mean, spread], 1)
            if pulled:
                each = torch.cat([each, head[target] - chance @ head], 1)
            each = each.double()
            # from tokens to rows
            of = torch.repeat_interleave(torch.tensor([len(r.answer) for r in here], device=logits.device))
            total = torch.zeros((len(here), each.shape[1]), dtype=torch.float64, device=each.device)
            out[part] = total.index_add_(0, of, each).cpu().numpy()
    return Tempered(out[:, 0], out[:, 1], out[:, 2], out[:, 3:])


def _unended(row: tokens.TokenRow, ends: set[int]) -> tokens.TokenRow:
    """A row without its end of turn, where an answer is left."""
    cut = len(row.answer) > 1 and int(row.ids[-1]) in ends
    return tokens.TokenRow(row.ids[:-1], row.start) if cut else row


def _head(model: Model, columns: Any) -> Any:
    """What each token adds to the pull [tokens, dimensions]."""
    import torch

    weight = model.module.get_output_embeddings().weight.detach().float()
    weight = weight if columns is None else weight.index_select(0, columns)
    hidden = weight.shape[1]
    if hidden <= PULLS:
        return weight
    across = np.random.default_rng(hidden).normal(size=(hidden, PULLS)) / PULLS**0.5
    return weight @ torch.from_numpy(across).to(weight)


def _parts(order: Sequence[int], rows: Sequence[tokens.TokenRow], most: int) -> list[list[int]]:
    """Rows of about equal length in batches of at most `most` answer tokens (at least one row)."""
    out: list[list[int]] = [[]]
    held = 0
    for i in order:
        size = len(rows[i].answer)
        if out[-1] and (held + size > most or len(out[-1]) == 128):
            out.append([])
            held = 0
        out[-1].append(i)
        held += size
    return [part for part in out if part]
