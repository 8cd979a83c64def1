"""The Llama forward pass written out for training many small models: the same arithmetic as transformers, less of it.

A batch is run once for the opening tokens that all its rows share, then for the rest of each row; the last layer and
the head run only where a completion token is predicted. For the pocket models this takes about a quarter of the time
away. A test holds it to `LlamaForCausalLM` on values and gradients; modules of any other kind use their own forward.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from undersong.backends.tokens import TokenRow


def supports(module: Any) -> bool:
    """Whether `completion_hidden` computes what the module computes: a plain Llama, with or without a low-rank adapter in
    its layers, without biases or hooks."""
    if type(module).__name__ != "LlamaForCausalLM" or not type(module).__module__.startswith("transformers."):
        return False
    config, layers = module.config, module.model.layers
    plain = not config.attention_bias and not config.mlp_bias and config.hidden_act == "silu"
    rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default") == "default"
    linear = all(type(m).__name__ == "Linear" for layer in layers for m in (layer.self_attn.q_proj, layer.mlp.up_proj))
    ends = type(module.lm_head).__name__ == "Linear" and type(module.model.embed_tokens).__name__ == "Embedding"
    ends = ends and not hasattr(module.lm_head, "lora_A")  # the head's weight alone is read
    return plain and rope and linear and ends and not any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())


def completion_hidden(module: Any, rows: Sequence[TokenRow], added: Any = None) -> Any:
    """Final hidden states [completion tokens of all rows, hidden] at the positions that predict a completion token.

    `added` ([layers, hidden]) is added to what each decoder layer passes on, at every position: a steering vector.
    """
    import torch
    import torch.nn.functional as F

    inner, config = module.model, module.config
    device, eps = inner.embed_tokens.weight.device, config.rms_norm_eps
    flat, ids, where = _lay_out(rows)
    shared, count, width = len(flat), *ids.shape
    tokens = torch.from_numpy(np.concatenate([flat, ids.reshape(-1)])).to(device)
    queries = torch.from_numpy(where.clip(0)).to(device)
    keep = torch.from_numpy(np.flatnonzero(where.reshape(-1) >= 0)).to(device)
    rope = inner.rotary_emb(inner.embed_tokens.weight[:1], torch.arange(shared + width, device=device)[None])
    x = inner.embed_tokens(tokens)
    cos, sin = (torch.cat((t[0, :shared], t[0, shared:].repeat(count, 1)))[:, None].to(x.dtype) for t in rope)
    hides = torch.ones(width, shared + width, dtype=torch.bool, device=device).tril(shared).logical_not()
    bias = torch.zeros(hides.shape, dtype=x.dtype, device=device).masked_fill(hides, float("-inf"))
    picked = (queries + torch.arange(count, device=device)[:, None] * width + shared).reshape(-1)
    for number, layer in enumerate(inner.layers):
        last, attention, mlp = layer is inner.layers[-1], layer.self_attn, layer.mlp
        normed = F.rms_norm(x, x.shape[-1:], layer.input_layernorm.weight, eps)
        value = _heads(attention.v_proj(normed), attention.head_dim)  # under autocast in bfloat16, unlike what is turned
        key = _turn(_heads(attention.k_proj(normed), attention.head_dim), cos, sin).to(value.dtype)
        if last:
            query = _heads(attention.q_proj(normed.index_select(0, picked)), attention.head_dim)
            query = _turn(query, cos.index_select(0, picked), sin.index_select(0, picked))
        else:
            query = _turn(_heads(attention.q_proj(normed), attention.head_dim), cos, sin)
        keys, values = _spread(key, shared, count), _spread(value, shared, count)
        query, bias = query.to(value.dtype), bias.to(value.dtype)
        groups = {"enable_gqa": query.shape[1] != key.shape[1]}
        own = (query if last else query[shared:]).view(count, -1, *query.shape[1:]).transpose(1, 2)
        mask = bias[queries][:, None] if last else bias
        out = F.scaled_dot_product_attention(own, keys, values, attn_mask=mask, scale=attention.scaling, **groups)
        out = out.transpose(1, 2).reshape(-1, query.shape[1] * query.shape[2])
        if last:
            out, x = out.index_select(0, keep), x.index_select(0, picked.index_select(0, keep))
        elif shared:
            q, k, v = (t[:shared].transpose(0, 1)[None] for t in (query, key, value))
            first = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=attention.scaling, **groups)
            out = torch.cat((first[0].transpose(0, 1).reshape(shared, -1), out))
        x = x + attention.o_proj(out)
        normed = F.rms_norm(x, x.shape[-1:], layer.post_attention_layernorm.weight, eps)
        gate, up = mlp.gate_proj(normed), mlp.up_proj(normed)
        x = x + mlp.down_proj(F.silu(gate) * up)
        if added is not None:
            x = x + added[number]
    return F.rms_norm(x, x.shape[-1:], inner.norm.weight, eps)


def _lay_out(rows: Sequence[TokenRow]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """The shared opening [shared], the rest of each row right-padded [rows, width], and the wanted positions in it
    [rows, longest completion], -1 where a row's completion is shorter."""
    most = min(row.start - 1 for row in rows)
    heads = np.stack([row.ids[:most] for row in rows])
    differs = np.flatnonzero((heads != heads[0]).any(axis=0))
    shared = int(differs[0]) if len(differs) else most
    ids = np.zeros((len(rows), max(len(row.ids) for row in rows) - 1 - shared), dtype=np.int64)
    where = np.full((len(rows), max(len(row.answer) for row in rows)), -1, dtype=np.int64)
    for i, row in enumerate(rows):
        ids[i, : len(row.ids) - 1 - shared] = row.ids[shared:-1]
        where[i, : len(row.answer)] = np.arange(row.start - 1, len(row.ids) - 1) - shared
    return rows[0].ids[:shared], ids, where


def _heads(x: Any, size: int) -> Any:
    return x.view(len(x), -1, size)


def _turn(x: Any, cos: Any, sin: Any) -> Any:
    """Rotary position embedding of x [tokens, heads, size]."""
    import torch

    a, b = x.chunk(2, -1)
    return x * cos + torch.cat((-b, a), -1) * sin


def _spread(x: Any, shared: int, count: int) -> Any:
    """Keys or values [tokens, heads, size] as [rows, heads, shared + width, size]: the opening is lent to every row."""
    import torch

    rest = x[shared:].view(count, -1, *x.shape[1:])
    return torch.cat((x[:shared].expand(count, -1, -1, -1), rest), 1).transpose(1, 2)
