"""What a ModelRef changes in its base: tensors, a PEFT adapter, per-layer vectors. A change that does not fit is an
error."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from undersong.errors import BrokenArtefact
from undersong.types import ModelRef


def read_tensors(path: Path) -> dict[str, Any]:
    """The tensors of a safetensors file. Raises BrokenArtefact when it is missing or damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise BrokenArtefact(f"The weights file {path} is missing. Remove its artefact and run again to rebuild it.")
    try:
        return dict(load_file(path))
    except (SafetensorError, OSError) as error:
        raise BrokenArtefact(f"The file {path} is no safetensors file ({error}). Remove its artefact and run "
                             "again.") from None


def apply_weights(module: Any, path: Path) -> None:
    """Replace the tensors of `module` that the file names. Raises BrokenArtefact for an unknown name or another
    shape."""
    import torch

    owned = dict(module.named_parameters(remove_duplicate=False))
    for name, tensor in read_tensors(path).items():
        if name not in owned:
            raise BrokenArtefact(f"{path} names a tensor {name!r} that the base does not have. It belongs to another "
                                 "base.")
        if owned[name].shape != tensor.shape:
            raise BrokenArtefact(f"{path}: the tensor {name!r} has shape {tuple(tensor.shape)}, the base's is "
                                 f"{tuple(owned[name].shape)}. It belongs to another base; train it again from this "
                                 "one.")
        with torch.no_grad():
            owned[name].copy_(tensor)


def apply_adapter(module: Any, folder: Path, merge: bool = True) -> Any:
    """The module with a PEFT adapter merged into its weights, or (without `merge`) beside them.

    Raises BrokenArtefact unless every adapter tensor found its place.

    An adapter that is silently not applied is a known defect of this field; hence the count of tensors, and the
    merge.
    """
    from peft import PeftModel, get_peft_model_state_dict

    weights = folder / "adapter_model.safetensors"
    if not (folder / "adapter_config.json").is_file() or not weights.is_file():
        raise BrokenArtefact(f"{folder} is no adapter: it needs adapter_config.json and adapter_model.safetensors. "
                             "Train it again.")
    stored = read_tensors(weights)
    try:
        adapted = PeftModel.from_pretrained(module, str(folder), is_trainable=False)
    except (RuntimeError, ValueError, KeyError, json.JSONDecodeError) as error:
        raise BrokenArtefact(f"The adapter {folder} does not fit its base ({str(error).splitlines()[0]}). Train it "
                             "again.") from None
    # told, because PEFT would otherwise ask a hub for the base's configuration
    embeds = any("embed_tokens" in name or "lm_head" in name for name in stored)
    wanted = get_peft_model_state_dict(adapted, save_embedding_layers=embeds)
    if set(wanted) != set(stored):
        raise BrokenArtefact(f"The adapter {folder} names {len(set(stored) ^ set(wanted))} tensors that do not match "
                             "the base's, "
                             "so it would not be applied. It belongs to another base; train it again from this one.")
    return adapted.merge_and_unload() if merge else adapted.base_model.model


def adopt(ref: ModelRef, out: Path) -> ModelRef:
    """The reference with its files copied into `out`: an artefact holds everything it needs."""
    found: dict[str, str] = {}
    for kind in ("weights", "adapter", "vector"):
        given = getattr(ref, kind)
        if given is None or Path(given).is_relative_to(out):
            continue
        target = out / ("adapter" if kind == "adapter" else f"{kind}.safetensors")
        if kind == "adapter":
            shutil.copytree(given, target, dirs_exist_ok=True)
        else:
            shutil.copyfile(given, target)
        found[kind] = str(target)
    return replace(ref, **found, fingerprint="")


def write(ref: ModelRef, model: Any, backend: Any, vectors: Mapping[str, Any], out: Path) -> ModelRef:
    """The reference of a model whose tensors were changed after loading: writes into `out` the tensors that differ from its
    base, and `vectors` (`layer.<i>`: float32 [hidden]) together with those that the reference had."""
    import torch
    from safetensors.torch import save_file

    from undersong.backends.training import save_changes, untouched

    base = backend.load(replace(untouched(ref), precision="float32")).module
    all_vectors = read_tensors(Path(ref.vector)) if ref.vector else {}
    for name, vector in vectors.items():
        own = torch.as_tensor(vector, dtype=torch.float32).detach().cpu()
        all_vectors[name] = (all_vectors[name] + own if name in all_vectors else own).contiguous()
    if all_vectors:
        save_file(all_vectors, out / "vector.safetensors")
    return replace(ref, weights=str(save_changes(model.module, base, out)), adapter=None, fingerprint="",
                   vector=str(out / "vector.safetensors") if all_vectors else None)


def layers(module: Any) -> Any:
    """The decoder layers of a causal language model, in order."""
    import torch

    count = module.config.num_hidden_layers
    for part in module.modules():
        if isinstance(part, torch.nn.ModuleList) and len(part) == count:
            return part
    raise BrokenArtefact(f"No list of {count} decoder layers was found in {type(module).__name__}. Use another model "
                         "to steer.")


def apply_vector(module: Any, path: Path) -> None:
    """Add the file's vector `layer.<i>` (float32, [hidden]) to what decoder layer i passes on, at every position."""
    stack, hidden = layers(module), module.config.hidden_size
    for name, vector in read_tensors(path).items():
        prefix, _, index = name.partition(".")
        if prefix != "layer" or not index.isdigit() or int(index) >= len(stack) or vector.shape != (hidden,):
            raise BrokenArtefact(f"{path}: {name!r} of shape {tuple(vector.shape)} is no vector of this base, which "
                                 "has layers "
                                 f"layer.0 to layer.{len(stack) - 1} of width {hidden}. Make the vectors again from "
                                 "this base.")
        stack[int(index)].register_forward_hook(_adder(vector))


@contextlib.contextmanager
def steered(module: Any, vectors: Any = None) -> Iterator[None]:
    """Add row i of `vectors` ([layers, hidden]) to what decoder layer i passes on, inside; None adds nothing."""
    hooks = [] if vectors is None else [
        layer.register_forward_hook(_adder(vectors[i])) for i, layer in enumerate(layers(module))
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _adder(vector: Any) -> Any:
    def add(layer: Any, given: Any, out: Any) -> Any:
        if isinstance(out, tuple):
            return (out[0] + vector.to(out[0]), *out[1:])
        return out + vector.to(out)

    return add
