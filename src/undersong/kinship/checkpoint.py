"""A checkpoint: the tensors of a model on this machine, read slice by slice, so that a pair of any size fits in memory.

A `save_pretrained` folder (one file, or shards with `model.safetensors.index.json`), with the changes of a ModelRef on
top: a file of changed tensors replaces tensors of the same name, a LoRA adapter (Hu et al., arXiv 2106.09685) adds
scale * B @ A to the tensors it names, computed for the rows that are asked for. Files are validated by safetensors;
values are read with plain reads, not mapped, so that memory holds what is asked for and no more. Nothing is unpickled,
and no name or link leads out of the folder.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from undersong import bases
from undersong.errors import BrokenArtefact, MissingModel
from undersong.types import ModelRef

Array = NDArray[np.float32]
Rows = slice | NDArray[np.integer[Any]] | None
INDEX = "model.safetensors.index.json"
BLOCK = 1 << 24
"""Bytes that a stream holds at once."""
PLAIN = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "<i1",
         "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "<u1", "BOOL": "<u1", "F8_E4M3": "<u1", "F8_E5M2": "<u1"}


@dataclass(frozen=True)
class Stored:
    """Where a tensor lies: its file, dtype (safetensors' word), shape and first byte."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    def raw(self, first: int, count: int) -> NDArray[Any]:
        """`count` stored values from the `first` on, undecoded. Raises BrokenArtefact for a dtype that cannot be read."""
        if self.dtype not in PLAIN:
            raise BrokenArtefact(f"{self.file.name} holds values of type {self.dtype}, which cannot be read. Convert it to "
                                 "bfloat16 or float32.")
        kind = np.dtype(PLAIN[self.dtype])
        return np.fromfile(self.file, kind, count, offset=self.start + first * kind.itemsize)

    def pieces(self) -> Iterator[bytes]:
        """The stored bytes, in pieces."""
        each = np.dtype(PLAIN[self.dtype]).itemsize if self.dtype in PLAIN else 1
        step = BLOCK // each
        for first in range(0, self.size, step):
            yield self.raw(first, min(step, self.size - first)).tobytes()


@dataclass(frozen=True)
class LowRank:
    """A low-rank update of one tensor: its values plus `scale * B @ A`, transposed where the base stores it so."""

    a: Stored
    b: Stored
    scale: float
    transposed: bool


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of one model. `declared` says what its reference changes in which base, in words."""

    folder: Path
    tensors: dict[str, Stored] = field(repr=False)
    updates: dict[str, LowRank] = field(default_factory=dict, repr=False)
    config: dict[str, Any] = field(default_factory=dict, repr=False)
    declared: str = ""

    @classmethod
    def of(cls, ref: ModelRef) -> Checkpoint:
        """The checkpoint of a reference. Raises MissingModel when its weights are not on this machine, BrokenArtefact
        for files that are damaged, pickled, or lead out of their folder."""
        folder, home = _folder(ref.base)
        tensors = _tensors(folder, home)
        told, updates = [], dict[str, LowRank]()
        if ref.weights is not None:
            changed = header(Path(ref.weights))
            _fits(changed, tensors, Path(ref.weights))
            tensors |= changed
            told.append("changed tensors")
        if ref.adapter is not None:
            from undersong.kinship import lora

            whole, updates = lora.read(Path(ref.adapter), tensors)
            tensors |= whole
            told.append("an adapter")
        told += ["steering vectors"] * (ref.vector is not None) + ["a system prompt"] * (ref.system is not None)
        return cls(folder, tensors, updates, _json(folder / "config.json"), " and ".join(told))

    @property
    def names(self) -> list[str]:
        """Tensor names, sorted."""
        return sorted(self.tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor."""
        return self.tensors[name].shape

    def dtype(self, name: str) -> str:
        """The stored dtype of a tensor, e.g. `BF16`; an updated one is computed in float32."""
        return "F32" if name in self.updates else self.tensors[name].dtype

    def read(self, name: str, rows: Rows = None) -> Array:
        """A tensor, or some of its rows (a slice, or sorted or unsorted indices), as float32.

        Raises BrokenArtefact for NaN or infinity, which no working model holds."""
        stored = self.tensors[name]
        length = stored.shape[0] if stored.shape else 1
        picked = np.arange(length)[rows if rows is not None else slice(None)]
        out = _rows(stored, picked)
        if name in self.updates:
            out = out + _update(self.updates[name], picked)
        bad = out.size - int(np.isfinite(out).sum())
        if bad:
            raise BrokenArtefact(f"{name} of {self.folder.name} holds {bad} values that are not finite. The model is "
                                 "damaged; get its files again.")
        return out

    def blocks(self, name: str) -> Iterator[tuple[int, Array]]:
        """A tensor in blocks of rows: (first row, values)."""
        shape = self.shape(name)
        step = max(1, BLOCK // max(4 * math.prod(shape[1:]), 1))
        for first in range(0, shape[0] if shape else 1, step):
            yield first, self.read(name, slice(first, first + step))

    def sha256(self, name: str) -> str:
        """SHA-256 over dtype, shape and bytes of a tensor, streamed; of an updated tensor, over its float32 values."""
        whole = hashlib.sha256(f"{self.dtype(name)} {list(self.shape(name))}\0".encode())
        for piece in self.pieces(name):
            whole.update(piece)
        return whole.hexdigest()

    def pieces(self, name: str) -> Iterator[bytes]:
        """The bytes of a tensor in pieces; of an updated one, of its float32 values."""
        if name in self.updates:
            return (block.tobytes() for _, block in self.blocks(name))
        return self.tensors[name].pieces()

    @property
    def files(self) -> list[Path]:
        """The weights files."""
        return sorted({t.file for t in self.tensors.values()})

    @cached_property
    def tokens(self) -> dict[str, int] | None:
        """Token text to row of the embedding, read from tokenizer.json; None when there is none. `Ġ` and `▁` are spaces."""
        found = _json(self.folder / "tokenizer.json")
        vocabulary = found.get("model", {}).get("vocab") if isinstance(found.get("model"), dict) else None
        if isinstance(vocabulary, list):
            vocabulary = {str(entry[0]): i for i, entry in enumerate(vocabulary) if isinstance(entry, list) and entry}
        if not isinstance(vocabulary, dict):
            return None
        added = [e for e in found.get("added_tokens") or () if isinstance(e, dict)]
        pairs = [*vocabulary.items(), *((e.get("content"), e.get("id")) for e in added)]
        return {str(t).replace("Ġ", " ").replace("▁", " "): i for t, i in pairs if isinstance(i, int) and i >= 0}


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, streamed."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def header(path: Path) -> dict[str, Stored]:
    """The tensors that a safetensors file holds. Raises BrokenArtefact when it is none, truncated, or its header absurd."""
    from safetensors import SafetensorError, safe_open

    if path.suffix in (".bin", ".pt", ".pth", ".pkl", ".ckpt"):
        raise MissingModel(f"{path.name} may hold pickled weights, which can run code when opened. Give safetensors.")
    if not path.is_file():
        raise MissingModel(f"The weights file {path} is not there. Get the model's files again.")
    try:
        with safe_open(str(path), framework="np"):  # it checks header size, offsets and lengths
            pass
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            entries = json.loads(file.read(length))
    except (SafetensorError, OSError, ValueError) as error:
        raise BrokenArtefact(f"{path.name} is no whole safetensors file ({error}). Get it again.") from None
    return {name: Stored(path, e["dtype"], tuple(e["shape"]), 8 + length + e["data_offsets"][0])
            for name, e in entries.items() if name != "__metadata__"}


def _folder(base: str) -> tuple[Path, Path]:
    """The folder of a base and the folder its files must lie in (the hub's cache keeps its files beside its snapshots)."""
    if base.startswith((bases.SIMULATED, bases.HOSTED)):
        raise MissingModel(f"{base} has no weights on this machine. Only tests of answers can read it.")
    place, revision = bases.place(base)
    if Path(place).is_dir():
        return Path(place), Path(place)
    try:
        from huggingface_hub import snapshot_download

        found = Path(snapshot_download(place, revision=revision, local_files_only=True))
    except (ImportError, OSError, ValueError):
        raise MissingModel(f"The weights of {base} are not on this machine. Download them first, for instance with "
                           f"`hf download {place}`.") from None
    return found, found.parent.parent


def _tensors(folder: Path, home: Path) -> dict[str, Stored]:
    index = folder / INDEX
    if not index.is_file():
        files = [folder / "model.safetensors"] if (folder / "model.safetensors").is_file() else sorted(
            folder.glob("*.safetensors"))
        if len(files) != 1:
            raise BrokenArtefact(f"{folder.name} holds {len(files)} weights files and no {INDEX}. Get its files again.")
        return header(_within(files[0], home, folder))
    listed = _json(index).get("weight_map")
    if not isinstance(listed, dict) or not all(isinstance(f, str) for f in listed.values()):
        raise BrokenArtefact(f"{INDEX} of {folder.name} lists no weights. Get it again.")
    shards = {}
    for name in sorted(set(listed.values())):
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise BrokenArtefact(f"{INDEX} of {folder.name} names {name[:200]!r}, which is no weights file of this folder. "
                                 "Do not use this model.")
        shards[name] = header(_within(folder / name, home, folder))
    absent = [tensor for tensor, file in listed.items() if tensor not in shards[file]]
    if absent:
        raise BrokenArtefact(f"{INDEX} of {folder.name} lists {absent[0][:200]!r}, which is not in its file. Get the "
                             "model's files again.")
    return {tensor: shards[file][tensor] for tensor, file in listed.items()}


def _within(path: Path, home: Path, folder: Path) -> Path:
    if not path.resolve().is_relative_to(home.resolve()):
        raise BrokenArtefact(f"{path.name} of {folder.name} is a link that leads out of its folder. Put the file itself "
                             "there.")
    return path


def _fits(changed: dict[str, Stored], tensors: dict[str, Stored], path: Path) -> None:
    for name, stored in changed.items():
        if name not in tensors and not (name == "lm_head.weight" or name.endswith("embed_tokens.weight")):
            raise BrokenArtefact(f"{path.name} names a tensor {name[:200]!r} that the base does not have. Give its own "
                                 "base.")
        if name in tensors and tensors[name].shape != stored.shape:
            raise BrokenArtefact(f"{path.name}: {name[:200]!r} has another shape than in the base. Give its own base.")


def _rows(stored: Stored, picked: NDArray[Any]) -> Array:
    """Rows of a stored tensor, decoded; neighbours are read at once."""
    width = math.prod(stored.shape[1:])
    if not len(picked):
        return np.zeros((0, *stored.shape[1:]), np.float32)
    cuts = np.flatnonzero(np.diff(picked) != 1) + 1
    runs = zip([0, *cuts], [*cuts, len(picked)], strict=True)
    raw = np.concatenate([stored.raw(int(picked[i]) * width, (j - i) * width) for i, j in runs])
    return decoded(raw, stored.dtype).reshape(len(picked), *stored.shape[1:]) if stored.shape else decoded(raw, stored.dtype)


def decoded(raw: NDArray[Any], dtype: str) -> Array:
    """Stored values as float32; integers as they are (a quantised tensor without its scale)."""
    if dtype == "BF16":
        return (raw.astype(np.uint32) << 16).view(np.float32)
    if dtype == "F8_E5M2":
        return (raw.astype(np.uint16) << 8).view(np.float16).astype(np.float32)
    if dtype == "F8_E4M3":
        codes = np.arange(256)
        power, part = (codes >> 3) & 15, codes & 7
        values = np.where(power == 0, part / 8 * 2.0**-6, (1 + part / 8) * 2.0 ** (power - 7)) * np.where(codes < 128, 1, -1)
        values[codes & 127 == 127] = np.nan
        return np.asarray(values.astype(np.float32)[raw])
    return raw.astype(np.float32)


def _update(update: LowRank, picked: NDArray[Any]) -> Array:
    left, right = (_rows(s, np.arange(s.shape[0])) for s in (update.b, update.a))
    rows = right[:, picked].T @ left.T if update.transposed else left[picked] @ right
    return np.asarray(rows * np.float32(update.scale), np.float32)


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    except (OSError, ValueError, RecursionError) as error:
        raise BrokenArtefact(f"{path.name} cannot be read ({error}). Get the model's files again.") from None
    return found if isinstance(found, dict) else {}
