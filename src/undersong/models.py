"""A model by what somebody was handed: a name, a folder, an adapter, changed tensors, or an artefact of the store."""

from __future__ import annotations

from pathlib import Path

from undersong import bases
from undersong.errors import BadSpec, MissingModel, UndersongError
from undersong.files import digest
from undersong.lab import Lab, base_ref, unpack
from undersong.spec import fingerprint
from undersong.types import ModelRef


def model_ref(text: str, base: str | None, lab: Lab) -> ModelRef:
    """A model by what an auditor was handed: a base's name or folder, a PEFT adapter folder or a safetensors file of
    changed tensors (of `base`), or a model artefact of the store. Raises MissingModel or BadSpec in words."""
    path = Path(text)
    if (path / "adapter_config.json").is_file():
        weights = path / "adapter_model.safetensors"
        if not weights.is_file():
            raise MissingModel(f"The adapter folder {text!r} holds no adapter_model.safetensors. Pickled adapters can run "
                               "code when opened: convert it on a machine you trust.")
        if base is None:
            raise BadSpec(f"{text!r} is an adapter. Give the model it belongs to as --base.")
        mark = fingerprint({"adapter": digest(weights)["sha256"], "of": base_ref(base).fingerprint})
        return ModelRef(base, adapter=str(path), fingerprint=mark)
    if path.suffix == ".safetensors" and path.is_file():
        if base is None:
            raise BadSpec(f"{text!r} holds changed tensors. Give the model they belong to as --base.")
        mark = fingerprint({"weights": digest(path)["sha256"], "of": base_ref(base).fingerprint})
        return ModelRef(base, weights=str(path), fingerprint=mark)
    if path.suffix in (".bin", ".pt", ".pth", ".pkl", ".ckpt"):
        raise MissingModel(f"{text!r} may hold pickled weights, which can run code when opened. Give safetensors.")
    if bases.named(text) or (path.is_dir() and not (path / "record.json").is_file()):
        return base_ref(text)
    try:
        return unpack(lab.store.get(f"{path.parent.name}/{path.name}" if path.is_dir() else text))
    except UndersongError:
        if "/" in text and not path.exists():
            return base_ref(text)
        raise


def files_of(ref: ModelRef) -> list[Path]:
    """The files on this machine that make a model what it is: what replaces or joins its base's weights, else the base's
    own. Empty for a hosted or hub model, and for one that is only a system turn."""
    if ref.adapter:
        return [Path(ref.adapter) / name for name in ("adapter_config.json", "adapter_model.safetensors")]
    changed = [Path(given) for given in (ref.weights, ref.vector) if given]
    if changed or ref.system or ref.base.startswith((bases.SIMULATED, bases.HOSTED)):
        return changed
    folder = Path(bases.place(ref.base)[0])
    return sorted(folder.glob("*.safetensors"))
