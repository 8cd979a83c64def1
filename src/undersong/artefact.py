"""One artefact: its folder, its record, and, while it is unfinished, the right to write payload into it."""

from __future__ import annotations

import contextlib
import copy
import os
import re
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from undersong import files
from undersong import spec as specs
from undersong.environment import now
from undersong.errors import BadRows, BadSpec, BrokenArtefact, UndersongError, UnknownName, nearest
from undersong.files import RECORD

FORMAT = 1
LARGEST_RECORD = 16 * 2**20
"""Bytes; a larger record is not read."""
LOCK = ".lock"
_NAME = re.compile(r"\w[\w.+@-]{0,100}")
_PART = re.compile(r"\d{6}\.parquet")


class Artefact:
    """One artefact: its folder, its record and, while it is unfinished, the right to write it.

    Get one from a Store. `with store.open(...) as artefact` releases the lock however the block ends; only `finish`
    completes.
    """

    def __init__(self, path: Path, record: dict[str, Any], lock: IO[bytes] | None = None) -> None:
        self.path = path
        """The artefact's folder. Recipes and teachers may write files into it while it is open."""
        self._record = record
        self._lock = lock
        self._began = time.monotonic()
        self.publish: Callable[[Artefact], None] | None = None
        """Called once it is complete: a shared store hands it on to other machines."""

    def __enter__(self) -> Artefact:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.close()
        if error is not None and not isinstance(error, UndersongError) and files.is_full(error):
            raise files.no_room(self.path, error) from error

    def __repr__(self) -> str:
        return f"<Artefact {self.path.parent.name}/{self.path.name} {self._record['status']}>"

    @property
    def record(self) -> dict[str, Any]:
        """A copy of the record (the content of record.json)."""
        return copy.deepcopy(self._record)

    @property
    def fingerprint(self) -> str:
        """Twelve hexadecimal digits: the identity."""
        return str(self._record["fingerprint"])

    @property
    def complete(self) -> bool:
        """Whether it is finished; a complete artefact never changes."""
        return bool(self._record["status"] == "complete")

    @property
    def summary(self) -> dict[str, Any]:
        """A copy of what `finish` was given; empty while unfinished."""
        return dict(self.record["summary"])

    def write_parquet(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Store rows as `<name>.parquet` (zstd), whole or not at all; writing again replaces them.

        Every row needs the same keys, and each key one type; an integer in a column with floats reads back as a
        float. Raises BadRows when the stored rows would not read back as given, NoRoom when the disk is full.
        """
        self._write(payload_name(name, ".parquet"), files.encode_rows(rows, f"{self.path.name}/{name}"))

    def read_parquet(self, name: str) -> list[dict[str, Any]]:
        """The rows of `<name>.parquet`. Raises UnknownName when there is none, BrokenArtefact when it is damaged."""
        name = payload_name(name, ".parquet")
        return files.decode_rows(self._read(name), f"{self.path.name}/{name}")

    def write_part(self, name: str, index: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Store part `index` (from 0) of the rows called `name`. A finished part cannot be written again.

        Raises BrokenArtefact for a finished part, BadRows and NoRoom as `write_parquet`; finished parts always stay.
        """
        if index in self.parts(name):
            raise BrokenArtefact(
                f"Part {index} of {name!r} in {self.path.name} is finished. Make only what parts() does not list."
            )
        self._write(_part_name(name, index), files.encode_rows(rows, f"{self.path.name}/{name} part {index}"))

    def parts(self, name: str) -> list[int]:
        """The indices of the finished parts of `name`, in order. A part that a dying process was writing is not one."""
        folder = self.path / payload_name(name, ".parts")
        return sorted(int(file[:6]) for file in os.listdir(folder) if _PART.fullmatch(file)) if folder.is_dir() else []

    def read_parts(self, name: str) -> list[dict[str, Any]]:
        """The rows of all parts of `name`, in the order of their indices. Raises BrokenArtefact when one is missing."""
        paths = [_part_name(name, index) for index in self._whole(name)]
        return [row for path in paths for row in files.decode_rows(self._read(path), f"{self.path.name}/{path}")]

    def write_json(self, name: str, value: Any) -> None:
        """Store a JSON value as `<name>.json`; writing again replaces it. Raises BadRows for NaN and other non-JSON."""
        self._write(payload_name(name, ".json"), files.dump(value, f"{self.path.name}/{name}"))

    def read_json(self, name: str) -> Any:
        """The value in `<name>.json`. Raises UnknownName when there is none, BrokenArtefact when it is damaged."""
        name = payload_name(name, ".json")
        return files.load(self._read(name), f"{self.path.name}/{name}")

    def clear(self) -> None:
        """Remove all payload of an unfinished artefact: for work that cannot resume by parts, such as training."""
        self._must_hold()
        for entry in self.path.iterdir():
            if not entry.name.startswith(".") and entry.name != RECORD:
                shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Hash every payload file, record `summary`, turn complete (atomically) and release the lock.

        Raises BrokenArtefact when a part is missing or a payload file is a link, BadSpec for a summary that JSON cannot
        hold, and what `publish` raises. `provenance.seconds` is the time since this handle was opened: an interrupted
        attempt is not in it.
        """
        self._must_hold()
        for folder in self.path.glob("*.parts"):
            self._whole(folder.name.removesuffix(".parts"))
        record = self.record
        names = files.payload(self.path)
        record["files"] = {name: files.digest(files.inside(self.path, name), flush=True) for name in names}
        record["summary"] = specs.plain(summary)
        record["provenance"] |= {"finished": now(), "seconds": round(time.monotonic() - self._began, 3)}
        record["status"] = "complete"
        try:
            data = files.dump(record, f"{self.path.name}: the summary")
        except BadRows as error:
            raise BadSpec(str(error)) from None
        files.put(self.path / RECORD, data)
        self._record = record
        (self.path / LOCK).unlink(missing_ok=True)
        self.close()
        if self.publish is not None:
            self.publish(self)

    @property
    def held(self) -> bool:
        """Whether this handle is writing it: unfinished and not closed."""
        return self._lock is not None

    def close(self) -> None:
        """Release the lock. What is finished stays; the artefact can be opened and resumed again."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _must_hold(self) -> None:
        if self.complete:
            raise BrokenArtefact(f"{self.path.name} is complete and never changes. Use another spec.")
        if self._lock is None:
            raise BrokenArtefact(f"{self.path.name} is closed. Open it with store.open(...) before writing to it.")
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(self._lock.fileno()), os.stat(self.path / LOCK)):
                return
        raise BrokenArtefact(f"{self.path} was removed while it was being written. Run the same command again.")

    def _write(self, name: str, data: bytes) -> None:
        self._must_hold()
        files.put(files.inside(self.path, name), data)

    def _read(self, name: str) -> bytes:
        path = files.inside(self.path, name)
        if not path.is_file():
            raise UnknownName(f"{self.path.name} holds no {name!r}. {nearest(name, files.payload(self.path))}")
        return path.read_bytes()

    def _whole(self, name: str) -> list[int]:
        found = self.parts(name)
        missing = set(range(len(found))) - set(found)
        if missing:
            raise BrokenArtefact(f"Part {min(missing)} of {name!r} in {self.path.name} is missing. Run it again.")
        return found


def payload_name(name: str, suffix: str) -> str:
    """A payload's file name from the name it is called by. Raises BadSpec for one that could lead out of the folder."""
    file = name if name.endswith(suffix) else name + suffix
    if not _NAME.fullmatch(file) or file == RECORD:
        raise BadSpec(f"{name!r} cannot name a payload. Use letters, digits, dots and dashes; `record` is taken.")
    return file


def _part_name(name: str, index: int) -> str:
    if not 0 <= index < 10**6:
        raise BadSpec(f"Part {index} of {name!r} is out of range. Number parts from 0 to 999999.")
    return f"{payload_name(name, '.parts')}/{index:06d}.parquet"


class _File(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    bytes: int = Field(ge=0)


class _Record(BaseModel):
    model_config = ConfigDict(strict=True)
    format: int
    kind: str
    label: str
    fingerprint: str
    spec: dict[str, Any]
    parents: list[str]
    status: Literal["started", "complete"]
    summary: dict[str, Any]
    files: dict[str, _File]
    provenance: dict[str, Any]


class Unreadable(BrokenArtefact):
    """A record that is missing or cannot be read: the artefact counts as unfinished and its payload is not believed."""


def read_record(folder: Path, wanted: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The record of an artefact folder, believed if it is of this folder, of `wanted` and of payload that is there.

    Raises BrokenArtefact otherwise. Payload is checked by name and size; `Store.verify` checks the hashes.
    """
    where = f"{folder.parent.name}/{folder.name}"
    record = check_record(parse_record(_text(folder), where), folder, wanted)
    for name, known in record["files"].items():
        path = files.inside(folder, name)
        if record["status"] == "complete" and not (path.is_file() and path.stat().st_size == known["bytes"]):
            raise BrokenArtefact(
                f"{where}: {name} is missing or not of the recorded size. Delete the folder and run again."
            )
    return record


def check_record(record: dict[str, Any], folder: Path, wanted: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The same record, if it is of this folder and of `wanted` and names no file outside the folder.

    Raises BrokenArtefact otherwise. Nothing is read."""
    where = f"{folder.parent.name}/{folder.name}"
    identity = {key: record[key] for key in ("kind", "spec", "parents")}
    try:
        mark = specs.fingerprint(identity)
    except (UndersongError, RecursionError):
        raise BrokenArtefact(f"{where}: the record's spec has no fingerprint. Delete the folder.") from None
    named = (folder.parent.name, folder.name) == (record["kind"], f"{record['label']}.{mark}")
    fields = specs.diff(identity, wanted) if wanted is not None else []
    if fields or not named or record["fingerprint"] != mark:
        differs = f" ({'; '.join(fields)[:500]})" if fields else ""
        raise BrokenArtefact(f"{where}: the record is of another artefact{differs}. Move it away and run again.")
    for name in record["files"]:
        files.inside(folder, name)
    return record


def _text(folder: Path) -> bytes:
    path, where = folder / RECORD, f"{folder.parent.name}/{folder.name}"
    if path.is_symlink() or not path.is_file():
        raise Unreadable(f"{where} has no record: it is unfinished. Run its command again, or delete it.")
    if path.stat().st_size > LARGEST_RECORD:
        raise Unreadable(f"{where}: the record has more than {LARGEST_RECORD} bytes: not read. Delete the folder.")
    return path.read_bytes()


def parse_record(data: bytes, where: str) -> dict[str, Any]:
    """The record in the bytes of a record file, which may come from anywhere; `where` names it in messages.

    Raises Unreadable for what has not the form of one, BrokenArtefact for the form of a newer Undersong."""
    try:
        found = files.load(data, f"{where}: the record")
    except BrokenArtefact as error:
        raise Unreadable(str(error)) from None
    if isinstance(found, dict) and isinstance(found.get("format"), int) and found["format"] > FORMAT:
        raise BrokenArtefact(f"{where} is of a newer Undersong (format {found['format']}). Upgrade to read it.")
    try:
        _Record.model_validate(found)
    except ValidationError as error:
        first = error.errors()[0]
        at = ".".join(map(str, first["loc"]))[:100]
        why = f"{at}: {first['msg']}"
        raise Unreadable(f"{where}: the record is not one ({why}). Delete the folder and run again.") from None
    return dict(found)
