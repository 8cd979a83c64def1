"""Whole files only: written under a temporary name in their own folder, flushed to disk and renamed.

A name is either whole or absent, whenever the process dies. Every value is checked to read back as given before it
is stored, and whatever is read may come from a stranger. Names that start with a dot are never payload. No pickle.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from undersong.errors import BadRows, BrokenArtefact, NoRoom, UndersongError

RECORD = "record.json"
TEMP = ".tmp-"
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FULL_WORDS = ("no space left on device", *(f"os error {number})" for number in sorted(_FULL)))
_CLOSED = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.EISDIR}


def put(path: Path, data: bytes) -> None:
    """Put a whole file in place or leave what was there: after a kill the name holds the old bytes or the new ones."""
    temp = path.parent / f"{TEMP}{os.getpid()}-{path.name}"
    with room(path):
        make_folder(path.parent)
        try:
            with open(temp, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temp, path)
        except BaseException:
            with contextlib.suppress(OSError):
                temp.unlink()
            raise
        _flush_folder(path.parent)


def make_folder(folder: Path) -> None:
    """Make a folder that outlives a power cut; nothing when it exists. Its parent must exist."""
    if not folder.is_dir():
        folder.mkdir(exist_ok=True)
        _flush_folder(folder.parent)


def _flush_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def room(path: Path) -> Iterator[None]:
    """Turn a full or unwritable disk into NoRoom with what to do."""
    try:
        yield
    except OSError as error:
        if not isinstance(error, UndersongError) and (is_full(error) or error.errno in _CLOSED):
            raise no_room(path, error) from error
        raise


def is_full(error: BaseException) -> bool:
    """Whether an error means a full disk; safetensors and torch say so only in words."""
    words = str(error).lower()
    return getattr(error, "errno", None) in _FULL or any(sign in words for sign in _FULL_WORDS)


def no_room(path: Path, error: BaseException) -> NoRoom:
    """The error for a write that failed: the disk is full, or the folder cannot be written to."""
    if is_full(error):
        return NoRoom(
            f"The disk is full while writing {path}. "
            "What was finished is kept: free some space, then run the same command again."
        )
    why = getattr(error, "strerror", error)
    return NoRoom(f"{path} cannot be written ({why}). Make it writable, or choose another store folder.")


def inside(folder: Path, name: str) -> Path:
    """The path of a payload file. Raises BrokenArtefact when the name, or a link, leads out of the folder."""
    pieces = name.split("/")
    plain = name.isprintable() and "\\" not in name and len(name) <= 1000
    if plain and all(p and not p.startswith(".") and len(p.encode()) < 256 for p in pieces):
        path = folder.joinpath(*pieces)
        if path.resolve().is_relative_to(folder.resolve()):
            return path
    raise BrokenArtefact(f"{folder.name}: {name[:200]!r} names no file of this folder. Delete this artefact unused.")


def payload(folder: Path) -> list[str]:
    """The names of all payload files, relative to the folder, sorted. Raises BrokenArtefact for a link."""
    names = []
    for top, folders, files in os.walk(folder):
        folders[:] = [f for f in folders if not f.startswith(".")]
        here = Path(top).relative_to(folder)
        for entry in (*folders, *(f for f in files if not f.startswith("."))):
            if os.path.islink(os.path.join(top, entry)):
                raise BrokenArtefact(f"{folder.name}: {here / entry} is a link. Put the file itself there.")
        names += [(here / f).as_posix() for f in files if not f.startswith(".")]
    return sorted(n for n in names if n != RECORD)


def digest(path: Path, flush: bool = False) -> dict[str, Any]:
    """`{"sha256": hex, "bytes": size}` of a file. Raises BrokenArtefact when it is not there."""
    if not path.is_file():
        raise BrokenArtefact(f"{path} is missing. Delete its artefact folder and run the same command again.")
    with open(path, "rb") as file:
        found = {"sha256": hashlib.file_digest(file, "sha256").hexdigest(), "bytes": file.tell()}
        if flush:
            with room(path):
                os.fsync(file.fileno())
    return found


def dump(value: Any, where: str) -> bytes:
    """JSON text. Raises BadRows when the value would not read back as given."""
    try:
        text = json.dumps(value, allow_nan=False, ensure_ascii=False, indent=1)
        data = text.encode()
        same = json.loads(text) == _plain(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise BadRows(f"{where} cannot be JSON: {error}. Use text, finite numbers, lists and mappings.") from None
    if not same:
        raise BadRows(f"{where} would not read back as given. Use text as the keys of mappings.")
    return data + b"\n"


def load(data: bytes, where: str) -> Any:
    """The value of JSON text from anywhere. Raises BrokenArtefact for what is not JSON, NaN and infinity included."""
    try:
        return json.loads(data.decode("utf-8"), parse_constant=_finite, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise BrokenArtefact(f"{where} is not valid JSON ({error}). Delete its folder and run again.") from None


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(f"{text} is not a finite number")
    return number


def encode_rows(rows: Sequence[Mapping[str, Any]], where: str) -> bytes:
    """Rows as Parquet, read back to check: pyarrow takes the columns from the first row and drops other keys."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        sink = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist(list(rows)), sink, compression="zstd")
        data: bytes = sink.getvalue().to_pybytes()
    except (pa.ArrowException, TypeError, ValueError, OverflowError, AttributeError) as error:
        why = f"no table holds these rows ({error})"
        raise BadRows(f"{where}: {why}. Give every row the same keys and types.") from None
    back = decode_rows(data, where)
    given = [_plain(row) for row in rows]
    if [_plain(row) for row in back] != given:
        index = next((i for i, (a, b) in enumerate(zip(given, back, strict=False)) if a != _plain(b)), len(back))
        raise BadRows(f"{where}: row {index} would not read back as given. Give every row the same keys and types.")
    return data


def decode_rows(data: bytes, where: str) -> list[dict[str, Any]]:
    """The rows of a Parquet file's bytes. Raises BrokenArtefact, naming `where`, when they cannot be read."""
    """The rows of Parquet bytes from anywhere. Raises BrokenArtefact for what is not Parquet."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # On one thread: a pool thread of Arrow may be the last to let go of `data`, and if the interpreter is ending by
        # then, it dies while waiting for Python's lock and takes the process with it ("terminate called without an
        # active exception", exit 134).
        rows: list[dict[str, Any]] = pq.ParquetFile(pa.BufferReader(data)).read(use_threads=False).to_pylist()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise BrokenArtefact(f"{where} is damaged ({error}). Delete its artefact folder and run again.") from None
    return rows


def _plain(value: Any) -> Any:
    """A value in a form that can be compared: tuples and arrays as lists, NaN as itself."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return "\0NaN" if isinstance(value, float) and math.isnan(value) else value
