"""Log-probabilities of answers from a plain Llama, with every opening that rows share run once: a prefix tree.

Rows sorted by their tokens form a tree: a row owns what follows the opening that it shares with the row before it, and
reads the rest from there. Only what is owned passes through the layers, laid end to end without padding; only attention
sees rows of equal width. The first layer's projections depend on the token alone, so they run once per different token.
The last layer and the head run where an answer's token is predicted. Values only: training has `llama.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from undersong.backends.llama import _heads, _turn
from undersong.backends.tokens import TokenRow

Whole = NDArray[np.int64]
_LOGITS = 2**19
"""About so many logits are held at once: they stay in the processor's cache."""


@dataclass(frozen=True)
class _Tree:
    """Rows as one tree. A node is a token together with all that stands before it in its row."""

    ids: Whole
    """[nodes]: their tokens."""
    place: Whole
    """[nodes]: their positions in a row, from 0."""
    path: Whole
    """[rows, width]: the node at each position; 0 past the end, where nothing looks."""
    own: Whole
    """[rows, most owned]: the positions a row owns, left to right; -1 where it owns fewer."""
    asked: Whole
    """[rows, longest answer]: the positions that predict an answer's token; -1 where an answer is shorter."""


def ordered(rows: Sequence[TokenRow]) -> list[int]:
    """The places of the rows in the order of their tokens, in which neighbours share the longest openings."""
    return sorted(range(len(rows)), key=lambda i: rows[i].ids.astype(">u4").tobytes())


def answer_logprobs(module: Any, rows: Sequence[TokenRow]) -> list[NDArray[np.float32]]:
    """Natural log-probabilities (float32 [answer tokens] per row) of each answer's tokens given all before them.

    The module is one that `llama.supports`, without steering; the rows best stand in the order of `ordered`.
    """
    import torch

    with torch.inference_mode():
        hidden, head = _hidden(module, _grown(rows)), module.lm_head.weight
        target = torch.from_numpy(np.concatenate([row.answer for row in rows])).to(hidden.device)
        step, parts = max(128, _LOGITS // len(head)), []
        for begin in range(0, len(target), step):
            logits = torch.nn.functional.linear(hidden[begin : begin + step], head).float()
            own = logits.gather(1, target[begin : begin + step, None])[:, 0]
            parts.append(own - logits.logsumexp(1))
        found = torch.cat(parts).cpu().numpy()
    return np.split(found, np.cumsum([len(row.answer) for row in rows])[:-1])


def _grown(rows: Sequence[TokenRow]) -> _Tree:
    """The tree of rows, each without its last token, which predicts nothing. What all of them share is a row of its own
    before them, so that no row owns much more than the others."""
    spans = [(row.ids[:-1], row.start - 1) for row in rows]
    opening = min((_shared(spans[0][0], ids) for ids, _ in spans[1:]), default=0)
    spans.insert(0, (spans[0][0][:opening], opening))
    sizes = [len(ids) for ids, _ in spans]
    path = np.zeros((len(spans), max(sizes)), dtype=np.int64)
    begins, parts, nodes = [0], [spans[0][0]], opening
    path[0, :opening] = np.arange(opening)
    for i, (ids, _) in enumerate(spans[1:], 1):
        begin = _shared(spans[i - 1][0], ids)
        path[i, :begin] = path[i - 1, :begin]
        path[i, begin : len(ids)] = np.arange(nodes, nodes + len(ids) - begin)
        begins.append(begin)
        parts.append(ids[begin:])
        nodes += len(ids) - begin
    own, asked = _places(begins, sizes), _places([start for _, start in spans], sizes)
    return _Tree(np.concatenate(parts), own[own >= 0], path, own, asked)


def _shared(a: Whole, b: Whole) -> int:
    """How many first tokens two rows share."""
    most = min(len(a), len(b))
    differs = np.flatnonzero(a[:most] != b[:most])
    return int(differs[0]) if len(differs) else most


def _places(begins: Sequence[int], ends: Sequence[int]) -> Whole:
    """[rows, longest span]: the numbers from begin up to end, then -1."""
    first, last = np.asarray(begins)[:, None], np.asarray(ends)[:, None]
    places = first + np.arange(int((last - first).max()))
    return np.where(places < last, places, -1)


def _hidden(module: Any, tree: _Tree) -> Any:
    """Final hidden states [asked positions of all rows, hidden]."""
    import torch
    import torch.nn.functional as F

    inner, eps = module.model, module.config.rms_norm_eps
    weight = inner.embed_tokens.weight
    different, token = (torch.from_numpy(t).to(weight.device) for t in np.unique(tree.ids, return_inverse=True))
    path, place = (torch.from_numpy(t).to(weight.device) for t in (tree.path, tree.place))
    rope = inner.rotary_emb(weight[:1], torch.arange(path.shape[1], device=weight.device)[None])
    cos, sin = (t[0].index_select(0, place)[:, None].to(weight.dtype) for t in rope)
    own, asked = (_Queries.at(places, path, weight.dtype) for places in (tree.own, tree.asked))
    x = inner.embed_tokens(different)  # of each different token; from the second layer on, of each node
    for number, layer in enumerate(inner.layers):
        attention, mlp, last = layer.self_attn, layer.mlp, number == len(inner.layers) - 1
        normed = F.rms_norm(x, x.shape[-1:], layer.input_layernorm.weight, eps)
        q, k, v = attention.q_proj(normed), attention.k_proj(normed), attention.v_proj(normed)
        if number == 0:
            q, k, v, x = (t.index_select(0, token) for t in (q, k, v, x))
        q, k, v = (_heads(t, attention.head_dim) for t in (q, k, v))
        queries = asked if last else own
        out = queries.attend(_turn(q, cos, sin), _turn(k, cos, sin), v, path, attention.scaling)
        x = (x.index_select(0, queries.nodes.index_select(0, queries.real)) if last else x) + attention.o_proj(out)
        normed = F.rms_norm(x, x.shape[-1:], layer.post_attention_layernorm.weight, eps)
        x = x + mlp.down_proj(F.silu(mlp.gate_proj(normed)).mul_(mlp.up_proj(normed)))
    return F.rms_norm(x, x.shape[-1:], inner.norm.weight, eps)


@dataclass(frozen=True)
class _Queries:
    """Who looks back in attention: some positions of every row, padded to the same number."""

    nodes: Any
    """[rows x most]: the node at each position; 0 where a row has fewer."""
    real: Any
    """[positions that are there]: their places among those."""
    bias: Any
    """[rows, 1, most, width]: 0 where a position may look, minus infinity where it may not."""

    @classmethod
    def at(cls, places: Whole, path: Any, dtype: Any) -> _Queries:
        import torch

        found = torch.from_numpy(places).to(path.device)
        hides = torch.arange(path.shape[1], device=path.device) > found.clamp(min=0)[..., None]
        bias = torch.zeros(hides.shape, dtype=dtype, device=path.device).masked_fill_(hides, float("-inf"))
        nodes = path.gather(1, found.clamp(min=0)).reshape(-1)
        return cls(nodes, torch.nonzero(found.reshape(-1) >= 0)[:, 0], bias[:, None])

    def attend(self, q: Any, k: Any, v: Any, path: Any, scale: float) -> Any:
        """What these positions read [positions, heads x size] from queries, keys and values [nodes, heads, size]."""
        import torch.nn.functional as F

        count = len(path)
        queries, keys, values = (t.index_select(0, at.reshape(-1)).view(count, -1, *t.shape[1:]).transpose(1, 2)
                                 for t, at in ((q, self.nodes), (k, path), (v, path)))
        out = F.scaled_dot_product_attention(queries, keys, values, attn_mask=self.bias, scale=scale,
                                             enable_gqa=q.shape[1] != k.shape[1])
        return out.transpose(1, 2).flatten(2).flatten(0, 1).index_select(0, self.real)
