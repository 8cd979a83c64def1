"""Low-rank adapters for the compact training loop (Hu et al., arXiv 2106.09685), through PEFT.

An adapter starts as in PEFT (A uniform, B zero), from a generator of its own: students that start side by side on
threads do not share a stream of random numbers, so one seed gives one adapter.
"""

from __future__ import annotations

import json
import math
import threading
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from undersong.errors import BadSpec, MissingExtra

_wrapping = threading.Lock()


class Lora(BaseModel):
    """Settings of a low-rank adapter (Hu et al., arXiv 2106.09685)."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    rank: int = Field(default=8, ge=1)
    """Rank of each update."""
    alpha: int = Field(default=8, ge=1)
    """The update is multiplied by alpha / rank."""
    targets: list[str] = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    """Names of the linear maps that get an update."""


def config(lora: Lora) -> Any:
    """The settings as PEFT's own. Raises MissingExtra without PEFT."""
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise MissingExtra(f"Adapters need {error.name}. Install it with: pip install 'undersong[local]'.") from None
    return LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=lora.targets, lora_dropout=0.0, bias="none",
                      task_type="CAUSAL_LM")


def wrap(module: Any, lora: Lora, seed: int) -> Any:
    """Put an adapter into `module` (in place) and return PEFT's wrapping; its tensors are float32.

    Raises BadSpec when the model has none of the targets.
    """
    import torch

    with _wrapping, torch.random.fork_rng():
        from peft import get_peft_model

        try:
            wrapped = get_peft_model(module, config(lora))
        except ValueError as error:
            raise refused(error) from None
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in wrapped.named_parameters():
        if ".lora_A." in name:
            bound = 1 / math.sqrt(parameter.shape[1])  # kaiming_uniform with a = sqrt(5)
            drawn = torch.empty(parameter.shape, dtype=torch.float32).uniform_(-bound, bound, generator=generator)
            with torch.no_grad():
                parameter.copy_(drawn)
    return wrapped


def refused(error: ValueError) -> Exception:
    """PEFT's complaint about targets that are not there as a BadSpec; any other error as it is."""
    if "arget modules" not in str(error):
        return error
    return BadSpec(f"lora: {str(error).splitlines()[0]} Set lora.targets to linear maps of this model.")


def save(wrapped: Any, base: str, out: Path) -> str:
    """Write `out/adapter` (PEFT's folder, safetensors), naming the base as we do; return its path. The same adapter gives
    the same bytes on every machine and in every process."""
    wrapped.peft_config["default"].base_model_name_or_path = base
    # no look at the base: its name may be no folder, and a hub is not asked
    wrapped.save_pretrained(out / "adapter", safe_serialization=True, save_embedding_layers=False)
    (out / "adapter" / "README.md").unlink(missing_ok=True)  # a model card that names this machine's folder of the base
    config = out / "adapter" / "adapter_config.json"
    said = json.loads(config.read_text("utf-8"))
    for key, value in said.items():  # PEFT keeps sets, whose order is the process's own
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            said[key] = sorted(value)
    config.write_text(json.dumps(said, indent=2, sort_keys=True) + "\n", "utf-8")
    return str(out / "adapter")
