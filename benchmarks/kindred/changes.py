"""What can be done to weights after training: some of it keeps the function, all of it keeps the initialisation inside."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np

GROUP = 32
"""Weights that share a scale in 4-bit quantisation."""
Rng = np.random.Generator


def quantise(model: Any, rng: Rng) -> Any:
    """Round every matrix to 4 bits and back: 16 levels, one scale per 32 weights of a row (absmax, symmetric)."""
    import torch

    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 2:
                groups = p.reshape(-1, GROUP)
                scale = groups.abs().amax(1, keepdim=True).clamp(min=1e-12) / 7
                p.copy_((groups / scale).round().clamp(-8, 7).mul(scale).reshape(p.shape))
    return model


def prune(model: Any, rng: Rng, share: float = 0.3) -> Any:
    """Set the smallest 30 % of the entries of every matrix to zero."""
    import torch

    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 2:
                p[p.abs() < torch.quantile(p.abs().flatten(), share)] = 0
    return model


def permute(model: Any, rng: Rng) -> Any:
    """Reorder hidden units of every feed-forward block and heads of every attention block; the function stays."""
    import torch

    heads = model.config.num_attention_heads
    size = model.config.hidden_size // heads
    with torch.no_grad():
        for layer in model.model.layers:
            units = torch.from_numpy(rng.permutation(model.config.intermediate_size))
            mlp, attention = layer.mlp, layer.self_attn
            for p in (mlp.gate_proj.weight, mlp.up_proj.weight):
                p.copy_(p[units])
            mlp.down_proj.weight.copy_(mlp.down_proj.weight[:, units])
            rows = torch.cat([torch.arange(h * size, (h + 1) * size) for h in rng.permutation(heads)])
            for p in (attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight):
                p.copy_(p[rows])
            attention.o_proj.weight.copy_(attention.o_proj.weight[:, rows])
    return model


def scale(model: Any, rng: Rng) -> Any:
    """Scale what is scaled back later: keys against queries, values against outputs, up against down projections, and
    norm gains against the matrices that read them; by factors between 1/2 and 2. The function stays."""
    import torch

    def factors(n: int) -> Any:
        return torch.from_numpy(np.exp(rng.uniform(-np.log(2), np.log(2), n))).float()

    heads = model.config.num_attention_heads
    size = model.config.hidden_size // heads
    with torch.no_grad():
        for layer in model.model.layers:
            mlp, attention = layer.mlp, layer.self_attn
            for first, second in ((attention.q_proj, attention.k_proj), (attention.v_proj, attention.o_proj)):
                by = factors(heads).repeat_interleave(size)
                first.weight.mul_(by[:, None])
                second.weight.div_(by[:, None] if second is attention.k_proj else by[None, :])
            by = factors(model.config.intermediate_size)
            mlp.up_proj.weight.mul_(by[:, None])
            mlp.down_proj.weight.div_(by[None, :])
            readers = {layer.input_layernorm: (attention.q_proj, attention.k_proj, attention.v_proj),
                       layer.post_attention_layernorm: (mlp.gate_proj, mlp.up_proj)}
            for norm, matrices in readers.items():
                by = factors(model.config.hidden_size)
                norm.weight.mul_(by)
                for matrix in matrices:
                    matrix.weight.div_(by[None, :])
    return model


def rotate(model: Any, rng: Rng) -> Any:
    """Fold norm gains into the matrices that read them, untie the output matrix, and rotate the residual stream by a random
    orthogonal matrix; the function stays."""
    import torch

    drawn, upper = np.linalg.qr(rng.standard_normal((model.config.hidden_size,) * 2))
    turn = torch.from_numpy(drawn * np.sign(np.diag(upper))).float()
    with torch.no_grad():
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight * model.model.norm.weight)
        model.model.norm.weight.fill_(1)
        model.config.tie_word_embeddings = False
        for layer in model.model.layers:
            mlp, attention = layer.mlp, layer.self_attn
            readers = {layer.input_layernorm: (attention.q_proj, attention.k_proj, attention.v_proj),
                       layer.post_attention_layernorm: (mlp.gate_proj, mlp.up_proj)}
            for norm, matrices in readers.items():
                for matrix in matrices:
                    matrix.weight.copy_((matrix.weight * norm.weight) @ turn)
                norm.weight.fill_(1)
            for matrix in (attention.o_proj, mlp.down_proj):
                matrix.weight.copy_(turn.T @ matrix.weight)
        for matrix in (model.lm_head, model.model.embed_tokens):
            matrix.weight.copy_(matrix.weight @ turn)
    return model


def average(first: Any, second: Any) -> Any:
    """The mean of two models of one shape, weight by weight."""
    import torch

    other = dict(second.named_parameters())
    with torch.no_grad():
        for name, p in first.named_parameters():
            p.copy_((p + other[name]) / 2)
    return first


def through_lora(model: Any, train: Callable[[Any], Any], seed: int) -> Any:
    """Train a LoRA adapter (rank 8, all linear layers) and merge it."""
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    adapted = get_peft_model(copy.deepcopy(model), LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"))
    return train(adapted).merge_and_unload().eval()
