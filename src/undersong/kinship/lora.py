"""PEFT LoRA adapters as updates of a base's tensors (Hu et al., arXiv 2106.09685), without loading the base."""

from __future__ import annotations

import json
import math
from pathlib import Path

from undersong.errors import BrokenArtefact
from undersong.kinship.checkpoint import LowRank, Stored, header

PREFIX = "base_model.model."
UNREAD = ("use_dora", "rank_pattern", "alpha_pattern", "layer_replication", "megatron_config")
"""Settings under which the update is not scale * B @ A with one scale."""


def read(folder: Path, base: dict[str, Stored]) -> tuple[dict[str, Stored], dict[str, LowRank]]:
    """Tensors that the adapter replaces whole, and its low-rank updates by the name of the base's tensor.

    Raises BrokenArtefact for another kind of adapter, and for one that does not fit the base.
    """
    try:
        config = json.loads((folder / "adapter_config.json").read_text("utf-8"))
        alpha, kind = float(config["lora_alpha"]), config.get("peft_type")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise BrokenArtefact(f"adapter_config.json of {folder.name} cannot be read ({error}). Get the adapter "
                             "again.") from None
    odd = [key for key in UNREAD if config.get(key)]
    if kind != "LORA" or odd or config.get("bias", "none") != "none":
        raise BrokenArtefact(f"{folder.name} is no plain LoRA adapter ({', '.join([str(kind), *odd])}). Merge it into its "
                             "base with save_pretrained, and compare the merged model.")
    whole, updates = dict[str, Stored](), dict[str, LowRank]()
    stored = header(folder / "adapter_model.safetensors")
    for name, a in stored.items():
        target, embeds = name.removeprefix(PREFIX), "lora_embedding_A" in name
        if "lora_B" in name or "lora_embedding_B" in name:
            continue
        if "lora_A" not in name and not embeds:
            whole[_fitting(target, a.shape, base, folder)] = a
            continue
        other = name.replace("lora_embedding_A", "lora_embedding_B").replace("lora_A", "lora_B")
        if other not in stored or len(a.shape) != 2 or a.shape[0] != stored[other].shape[-1]:
            raise BrokenArtefact(f"{folder.name}: {name[:200]!r} has no matching half. Get the adapter again.")
        b, turned = stored[other], embeds or bool(config.get("fan_in_fan_out"))
        shape = (a.shape[1], b.shape[0]) if turned else (b.shape[0], a.shape[1])
        module = target.split(".lora_")[0]
        rank = a.shape[0]
        scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
        updates[_fitting(f"{module}.weight", shape, base, folder)] = LowRank(a, b, scale, turned)
    return whole, updates


def _fitting(name: str, shape: tuple[int, ...], base: dict[str, Stored], folder: Path) -> str:
    if name not in base or base[name].shape != shape:
        raise BrokenArtefact(f"{folder.name} changes {name[:200]!r}, which its base does not have in that shape. Give the "
                             "base that the adapter belongs to.")
    return name
