"""What the tensors of a checkpoint are for, by the names that common architectures give them.

Llama, Mistral, Qwen, Gemma, OLMo, Phi-like names (gate, up, down), and GPT-2 and GPT-NeoX (one map into the hidden units).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from undersong.kinship.checkpoint import Checkpoint

EMBEDDING = re.compile(r"(^|\.)(embed_tokens|wte|embed_in|word_embeddings|tok_embeddings)\.weight$")
HEAD = re.compile(r"(^|\.)(lm_head|embed_out|output)\.weight$")
LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.(.+)\.weight$")
GATE = ("mlp.gate_proj", "feed_forward.w1")
UP = ("mlp.up_proj", "feed_forward.w3", "mlp.c_fc", "mlp.dense_h_to_4h", "mlp.fc1")
NORMS = ("pre_feedforward_layernorm", "post_attention_layernorm", "ln_2", "ffn_norm")


@dataclass(frozen=True)
class Layer:
    """Names of the maps into the hidden units of one layer, and of the gain in front of them ("" when there is none)."""

    maps: tuple[str, ...]
    gain: str
    turned: bool
    """Whether the maps are stored as [model width, hidden units]."""


@dataclass(frozen=True)
class Roles:
    """Names by role: the embedding, an untied output map, and the layers in order."""

    embedding: str
    head: str
    layers: tuple[Layer, ...]


def roles(checkpoint: Checkpoint) -> Roles:
    """The roles that can be told by name; those that cannot are left empty."""
    matrices = [n for n in checkpoint.names if len(checkpoint.shape(n)) == 2]
    embedding = next((n for n in matrices if EMBEDDING.search(n)), "")
    heads = [n for n in matrices if HEAD.search(n) and embedding and checkpoint.shape(n) == checkpoint.shape(embedding)]
    parts: dict[int, dict[str, str]] = {}
    for name in checkpoint.names:
        if found := LAYER.search(name):
            parts.setdefault(int(found[1]), {})[found[2]] = name
    layers = []
    for own in (parts[i] for i in sorted(parts)):
        maps = tuple(own[k] for group in (GATE, UP) for k in group if k in own)
        after_only = "post_feedforward_layernorm" in own and "pre_feedforward_layernorm" not in own
        gain = "" if after_only else next((own[k] for k in NORMS if k in own), "")
        if maps and all(m in matrices for m in maps):
            layers.append(Layer(maps, gain, "mlp.c_fc" in own))
    return Roles(embedding, heads[0] if heads else "", tuple(layers))
