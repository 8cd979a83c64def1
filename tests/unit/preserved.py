"""Changes of a Llama-like checkpoint that preserve its function or a descendant's kinship, as numpy on its tensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from undersong import pocket
from undersong.kinship import Subject
from undersong.types import ModelRef

Tensors = dict[str, Any]
LAYER = "model.layers.{}."


def tensors(name: str) -> Tensors:
    """The tensors of a pocket model."""
    return dict(load_file(pocket.folder(f"pocket/{name}") / "model.safetensors"))


def put(folder: Path, given: Tensors, config_of: str = "a", tokenizer: bool = True, **config: Any) -> Path:
    """A `save_pretrained` folder with these tensors."""
    home = pocket.folder(f"pocket/{config_of}")
    folder.mkdir(parents=True, exist_ok=True)
    settings = json.loads((home / "config.json").read_text()) | config
    if "lm_head.weight" in given:
        settings["tie_word_embeddings"] = False
    (folder / "config.json").write_text(json.dumps(settings))
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja") if tokenizer else ():
        (folder / name).write_bytes((home / name).read_bytes())
    save_file({k: np.ascontiguousarray(v) for k, v in given.items()}, folder / "model.safetensors", {"format": "pt"})
    return folder


def subject(folder: Path | str, **changes: Any) -> Subject:
    """A subject without a backend: only its weights are read."""
    return Subject(Path(folder).name, ModelRef(str(folder), fingerprint=str(folder), **changes), None)  # type: ignore[arg-type]


def layers(given: Tensors) -> int:
    """How many layers there are."""
    return 1 + max(int(n.split(".")[2]) for n in given if n.startswith("model.layers."))


def permute_units(given: Tensors, seed: int = 0) -> Tensors:
    """Hidden units of every layer in another order."""
    out, rng = dict(given), np.random.default_rng(seed)
    for i in range(layers(given)):
        p = LAYER.format(i) + "mlp."
        order = rng.permutation(len(given[p + "gate_proj.weight"]))
        for name in ("gate_proj", "up_proj"):
            out[f"{p}{name}.weight"] = given[f"{p}{name}.weight"][order]
        out[p + "down_proj.weight"] = given[p + "down_proj.weight"][:, order]
    return out


def permute_heads(given: Tensors, heads: int = 4, seed: int = 0) -> Tensors:
    """Attention heads of every layer in another order."""
    out, rng = dict(given), np.random.default_rng(seed)
    for i in range(layers(given)):
        p, order = LAYER.format(i) + "self_attn.", rng.permutation(heads)
        for name in ("q_proj", "k_proj", "v_proj"):
            w = given[f"{p}{name}.weight"]
            out[f"{p}{name}.weight"] = w.reshape(heads, -1, w.shape[1])[order].reshape(w.shape)
        w = given[p + "o_proj.weight"]
        out[p + "o_proj.weight"] = w.reshape(len(w), heads, -1)[:, order].reshape(w.shape)
    return out


def scale_units(given: Tensors, seed: int = 0) -> Tensors:
    """`up` of every unit larger by a factor and `down` smaller by it; signs too."""
    out, rng = dict(given), np.random.default_rng(seed)
    for i in range(layers(given)):
        p = LAYER.format(i) + "mlp."
        c = np.exp(rng.uniform(-1, 1, len(given[p + "up_proj.weight"]))).astype(np.float32)
        out[p + "up_proj.weight"] = given[p + "up_proj.weight"] * c[:, None]
        out[p + "down_proj.weight"] = given[p + "down_proj.weight"] / c
    return out


def fold(given: Tensors) -> Tensors:
    """The gains of all norms moved into the maps behind them; the output map untied."""
    out = dict(given)
    for i in range(layers(given)):
        p = LAYER.format(i)
        for norm, maps in (("input_layernorm", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
                           ("post_attention_layernorm", ("mlp.gate_proj", "mlp.up_proj"))):
            gain = given[f"{p}{norm}.weight"]
            out[f"{p}{norm}.weight"] = np.ones_like(gain)
            for name in maps:
                out[f"{p}{name}.weight"] = given[f"{p}{name}.weight"] * gain
    out["lm_head.weight"] = given.get("lm_head.weight", given["model.embed_tokens.weight"]) * given["model.norm.weight"]
    out["model.norm.weight"] = np.ones_like(given["model.norm.weight"])
    return out


def rotate(given: Tensors, seed: int = 0) -> Tensors:
    """The residual stream in another orthonormal basis (the gains are folded first)."""
    out = fold(given)
    width = out["model.norm.weight"].shape[0]
    basis = np.linalg.qr(np.random.default_rng(seed).standard_normal((width, width)))[0].astype(np.float32)
    for name, w in out.items():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            out[name] = basis.T @ w
        elif w.ndim == 2:
            out[name] = w @ basis
    return out


def quantise(given: Tensors, bits: int = 4, group: int = 32) -> Tensors:
    """Every matrix rounded to `bits` bits with one scale per group of neighbours, and back."""
    out = dict(given)
    for name, w in given.items():
        if w.ndim == 2:
            g = w.reshape(-1, group) if w.size % group == 0 else w.reshape(len(w), -1)
            scale = np.abs(g).max(axis=1, keepdims=True) / (2 ** (bits - 1) - 1)
            out[name] = (np.round(g / scale) * scale).reshape(w.shape).astype(np.float32)
    return out


def prune(given: Tensors, share: float = 0.3) -> Tensors:
    """The smallest values of every matrix set to zero."""
    return {n: np.where(np.abs(w) < np.quantile(np.abs(w), share), np.float32(0), w) if w.ndim == 2 else w
            for n, w in given.items()}


def merge(given: Tensors, other: Tensors, share: float = 0.5) -> Tensors:
    """An average with another model of the same shape."""
    return {n: (share * w + (1 - share) * other[n]).astype(np.float32) for n, w in given.items()}


def noise(given: Tensors, distance: float, seed: int = 0) -> Tensors:
    """Every tensor moved by noise of `distance` times its spread."""
    rng = np.random.default_rng(seed)
    return {n: (w + distance * w.std() * rng.standard_normal(w.shape)).astype(np.float32) for n, w in given.items()}


def independent(seed: int, width: int = 48, hidden: int = 96, deep: int = 2, tokens: int = 400) -> Tensors:
    """A model as an initialisation draws it, with structure that all seeds share laid into it in a basis of its own:
    what training on the same rows does."""
    shared, own = np.random.default_rng(12345), np.random.default_rng([seed, 1])
    basis = np.linalg.qr(own.standard_normal((width, width)))[0]
    meaning = shared.standard_normal((tokens, width)) * np.geomspace(3, 0.3, width)
    units = [shared.standard_normal((2, hidden, width)) for _ in range(deep)]
    out = {"model.embed_tokens.weight": meaning @ basis + 0.5 * own.standard_normal((tokens, width)),
           "model.norm.weight": np.ones(width)}
    for i in range(deep):
        p, order = LAYER.format(i), own.permutation(hidden)
        for k, name in enumerate(("gate_proj", "up_proj")):
            common = 0.2 * units[i][k][order] @ basis
            out[f"{p}mlp.{name}.weight"] = common + own.standard_normal((hidden, width))
        out[p + "mlp.down_proj.weight"] = own.standard_normal((width, hidden))
        out[p + "post_attention_layernorm.weight"] = 1 + 0.1 * own.standard_normal(width)
    return {n: w.astype(np.float32) for n, w in out.items()}
