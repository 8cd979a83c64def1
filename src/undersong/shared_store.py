"""A store that many machines share: finished artefacts on object storage, and a folder of this machine to work in.

    <uri>/blobs/<sha256>                     payload files, named by their content: two writers cannot mix
    <uri>/records/<kind>/<fingerprint>.json  the completed record, put last and in one piece: it is there or it is not

Work happens in the local folder as in any store (lock, parts, rename) and is published once it is complete; unfinished
work stays local. What another machine finished is fetched when it is asked for: every file is checked against the size
and hash of the record, and the local record is written last. The first record published stays. Retries with back-off are
those of the storage library. Records and blobs may come from strangers and are read as hostile data.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from undersong import fetched, files
from undersong import spec as specs
from undersong.artefact import LARGEST_RECORD, LOCK, Artefact, Unreadable, check_record, parse_record, read_record
from undersong.bucket import LIBRARIES, Bucket
from undersong.errors import BadSpec, BrokenArtefact, StoreBusy, UndersongError
from undersong.store import Store, clean_label, identity, locked, remove_temporary, split_name

PUBLISHED = ".published"
"""In an artefact's folder: its record is on the shared store."""
PATIENCE = 10.0
"""Seconds for which a plan, which asks of every step, believes one listing."""
PIECE = 32 * 2**20
"""Bytes of a file that are fetched at once."""
_RECORD = re.compile(r"records/([a-z][a-z0-9_]{0,40})/([0-9a-f]{12})\.json")
_ADDRESS = re.compile(r"([a-z0-9]+)://([\w.-]+)((?:/[\w.=+-]+)*)/?")
_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "STORAGE_EMULATOR_HOST", "AZURE_STORAGE_ACCOUNT_NAME")


def open_store(place: str | Path, cache: str | Path | None = None) -> Store:
    """The store of a folder or of an address such as s3://bucket/prefix; `Store.name` is such a text.

    `cache` is the local folder of a shared store: by default one for this address under UNDERSONG_CACHE, or under the
    user's cache folder. Raises BadSpec for an address that cannot be one, MissingExtra without the library it needs.
    """
    text = str(place)
    if slip := re.match(r"(\w+):/(?!/)", text):
        raise BadSpec(f"{text!r} has one slash. Write {slip[1]}://BUCKET/PREFIX, and pass it as text, not as a Path.")
    if "://" not in text:
        return Store(place)
    scheme = text.partition("://")[0]
    if scheme not in LIBRARIES:
        hint = "A folder is a store as it is: give its path." if scheme in ("file", "local") else ""
        known = ", ".join(f"{name}://BUCKET/PREFIX" for name in LIBRARIES if name != "memory")
        raise BadSpec(f"{scheme}:// cannot be a store. {hint or f'Use a folder, or one of: {known}.'}")
    found = _ADDRESS.fullmatch(text)
    if found is None or any(set(piece) == {"."} for piece in text.split("/")):
        raise BadSpec(
            f"{scheme}:// address of the store: only BUCKET/PREFIX in letters, digits and . _ = + - can follow it. "
            "Keys, ports and options belong in the environment variables of the storage library."
        )
    address = f"{scheme}://{found[2]}{found[3]}"
    where = "\n".join([address, *(os.environ.get(name, "") for name in _ENDPOINTS)])
    mark = hashlib.sha256(where.encode()).hexdigest()[:16]
    above = Path(os.environ.get("UNDERSONG_CACHE") or fetched.home() / "stores")
    return SharedStore(Path(cache) if cache else above / mark, address)


@dataclass
class _Seen:
    """What one SharedStore has learnt: when it listed what, the records it saw, what is being written, what waits."""

    looked: dict[str | None, float] = field(default_factory=dict)
    records: dict[tuple[str, str], dict[str, Any] | BrokenArtefact] = field(default_factory=dict)
    writing: list[Artefact] = field(default_factory=list)
    late: list[Artefact] = field(default_factory=list)


@dataclass(frozen=True)
class SharedStore(Store):
    """A Store whose folder `root` is a local cache of `address`. Open it with `open_store`.

    Every question may raise what Bucket raises, too; finished work is then kept in `root`, and the same command
    publishes it.
    """

    address: str = ""
    _seen: _Seen = field(default_factory=_Seen, repr=False, compare=False)

    @cached_property
    def _bucket(self) -> Bucket:
        return Bucket(self.address, Path(self.root))

    @property
    def name(self) -> str:
        """The address: `open_store` opens the store by it, on another machine too."""
        return self.address

    _called = name

    def open(self, kind: str, label: str, spec: Mapping[str, Any], parents: Sequence[str] = ()) -> Artefact:
        """As Store.open; what another machine finished is fetched, and what is finished here is published."""
        artefact = super().open(kind, label, spec, parents)
        if artefact.complete:
            self._publish(artefact)
        else:
            artefact.publish = self._finished
            self._seen.writing.append(artefact)
        return artefact

    def find(
        self, kind: str, spec: Mapping[str, Any], parents: Sequence[str] = (), label: str | None = None, like: str = ""
    ) -> Artefact | None:
        """As Store.find; fetched with its payload when only another machine has it, published when only this one has."""
        found = super().find(kind, spec, parents, label, like)
        if found is not None:
            self._publish(found)
            return found
        wanted = identity(kind, spec, parents)
        record = self._fetch_record(kind, specs.fingerprint(wanted), wanted)
        if record is None:
            return None
        self._fetch(record)
        return super().find(kind, spec, parents, label, like)

    def has(self, kind: str, spec: Mapping[str, Any], parents: Sequence[str] = (), like: str = "") -> bool:
        """As Store.has; no payload is fetched, and a listing may be ten seconds old."""
        if super().find(kind, spec, parents, like=like) is not None:
            return True
        self._look(kind, PATIENCE)
        return isinstance(self._seen.records.get((kind, specs.fingerprint(identity(kind, spec, parents)))), dict)

    def changed(self, kind: str, label: str, spec: Mapping[str, Any], parents: Sequence[str] = ()) -> list[str]:
        """As Store.changed, over what every machine finished."""
        self._look(kind, PATIENCE)
        return super().changed(kind, label, spec, parents)

    def get(self, ref: str) -> Artefact:
        """As Store.get; fetched with its payload when only another machine has it."""
        self._look()
        return super().get(ref)

    # What every question of Store goes through.

    def _scan(self, kind: str | None = None) -> Iterator[tuple[Path, dict[str, Any] | BrokenArtefact]]:
        self._look(kind)
        return super()._scan(kind)

    def _known(self, kind: str | None = None) -> list[Path]:
        here = self._folders(kind)
        marks = {(folder.parent.name, split_name(folder)[1]) for folder in here}
        return here + [
            Path(self.root) / at / f"{record['label'] if isinstance(record, dict) else 'unreadable'}.{mark}"
            for (at, mark), record in sorted(self._seen.records.items(), key=lambda item: item[0])
            if kind in (None, at) and (at, mark) not in marks
        ]

    def _record(self, folder: Path) -> dict[str, Any]:
        there = self._seen.records.get((folder.parent.name, split_name(folder)[1]))
        try:
            record = read_record(folder)
        except Unreadable:
            if there is None:
                raise
            if isinstance(there, BrokenArtefact):
                raise there from None
            return there
        return there if isinstance(there, dict) and record["status"] != "complete" else record

    def _artefact(self, folder: Path) -> Artefact:
        record = self._record(folder)
        mark = record["fingerprint"]
        if isinstance(self._seen.records.get((record["kind"], mark)), dict):
            self._fetch(record)
        return super()._artefact(next(self._named(record["kind"], mark), folder))

    # The shared store.

    def _fetch_record(self, kind: str, mark: str, wanted: Mapping[str, Any] | None = None) -> dict[str, Any] | None:
        """The record on the shared store; None when there is none, or none that can be read: work starts anew."""
        data = self._bucket.get(f"records/{kind}/{mark}.json", LARGEST_RECORD + 1)
        with contextlib.suppress(Unreadable):
            return None if data is None else self._believed(data, kind, mark, wanted)
        return None

    def _believed(self, data: bytes, kind: str, mark: str, wanted: Mapping[str, Any] | None = None) -> dict[str, Any]:
        where = f"{self.address}/records/{kind}/{mark}.json"
        if len(data) > LARGEST_RECORD:
            raise Unreadable(f"{where} has more than {LARGEST_RECORD} bytes: not read. Delete that object.")
        record = parse_record(data, where)
        label, names = record["label"], record["files"]
        try:
            if clean_label(label) != label or record["status"] != "complete":
                raise BrokenArtefact("it is of no finished artefact. Delete that object.")
            check_record(record, Path(self.root) / kind / f"{label}.{mark}", wanted)
            if clash := [n for n in names if n.split("/")[0] == files.RECORD or any(a in names for a in _above(n))]:
                raise BrokenArtefact(f"{clash[0]!r} cannot be a file beside the others. Delete that object.")
        except (BrokenArtefact, BadSpec) as error:
            raise BrokenArtefact(f"{where} is not believed: {error}") from None
        return record

    def _look(self, kind: str | None = None, patience: float = 0.0) -> None:
        """Learn which records the shared store holds, all of them or one kind. A record is fetched once and kept."""
        since = max((at for of, at in self._seen.looked.items() if of in (None, kind)), default=-patience - 1)
        if patience and time.monotonic() - since < patience:
            return
        sizes = self._bucket.sizes("records" + (f"/{kind}" if kind else ""))
        there = {(named[1], named[2]): path for path in sizes if (named := _RECORD.fullmatch(path))}
        seen = self._seen.records
        for key in [key for key in seen if kind in (None, key[0]) and key not in there]:
            del seen[key]
        new = {path: key for key, path in there.items() if not isinstance(seen.get(key), dict)}
        for path, data in self._texts({path: sizes[path] for path in new}):
            try:
                seen[new[path]] = self._believed(data, *new[path])
            except BrokenArtefact as error:
                seen[new[path]] = error
        self._seen.looked[kind] = time.monotonic()

    def _texts(self, sizes: Mapping[str, int]) -> Iterator[tuple[str, bytes]]:
        """The bytes of records: from the local copies, the others from the shared store, many at once."""
        missing, copies = {}, Path(self.root) / ".records"
        for path, size in sizes.items():
            copy = copies / path.removeprefix("records/")
            if copy.is_file() and copy.stat().st_size == size:
                yield path, copy.read_bytes()
            else:
                missing[path] = min(size, LARGEST_RECORD + 1)
        for path, data in self._bucket.get_many(missing):
            copy = copies / path.removeprefix("records/")
            if len(data) <= LARGEST_RECORD:
                with files.room(copy):
                    copy.parent.mkdir(parents=True, exist_ok=True)
                files.put(copy, data)
            yield path, data

    def _fetch(self, record: Mapping[str, Any]) -> None:
        """Bring a published artefact into the local folder: files first, each checked, the record last.

        One process fetches at a time. When another one is making the artefact, it is left to it."""
        folder = self._place(record["kind"], record["label"], record["fingerprint"])
        with open(folder.parent / f".fetching-{record['fingerprint']}", "ab") as guard:
            fcntl.flock(guard, fcntl.LOCK_EX)
            with contextlib.suppress(Unreadable):
                if read_record(folder)["status"] == "complete":
                    return
            try:
                lock = locked(folder)
            except StoreBusy:
                return
            with lock, files.room(folder):
                try:
                    for known in record["files"].values():
                        self._fetch_blob(known["sha256"], known["bytes"], folder / f"{files.TEMP}{known['sha256']}")
                    self._settle(folder, record)
                finally:
                    remove_temporary(folder)
                (folder / LOCK).unlink(missing_ok=True)

    def _fetch_blob(self, sha256: str, size: int, target: Path) -> None:
        if target.exists():  # another file of the same content
            return
        found = hashlib.sha256()
        with open(target, "wb") as file:
            for start in range(0, size, PIECE):
                piece = self._bucket.get(f"blobs/{sha256}", min(start + PIECE, size), start)
                if not piece:
                    break
                found.update(piece)
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        if target.stat().st_size != size or found.hexdigest() != sha256:
            raise BrokenArtefact(
                f"{self.address}/blobs/{sha256} is missing or not of its name's content. Delete it and the record that "
                "names it (records/KIND/FINGERPRINT.json), then run the same command again."
            )

    def _settle(self, folder: Path, record: Mapping[str, Any]) -> None:
        """Replace an unfinished attempt by the fetched files."""
        (folder / files.RECORD).unlink(missing_ok=True)
        for entry in folder.iterdir():
            if not entry.name.startswith("."):
                shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
        uses = Counter(known["sha256"] for known in record["files"].values())
        for name, known in record["files"].items():
            path, got = files.inside(folder, name), folder / f"{files.TEMP}{known['sha256']}"
            path.parent.mkdir(parents=True, exist_ok=True)
            uses[known["sha256"]] -= 1
            if uses[known["sha256"]]:
                shutil.copyfile(got, path)
                files.digest(path, flush=True)
            else:
                os.replace(got, path)
        here = {**record, "label": split_name(folder)[0]}  # an identity keeps the folder it has
        files.put(folder / files.RECORD, files.dump(here, folder.name))
        files.put(folder / PUBLISHED, b"")

    def _finished(self, artefact: Artefact) -> None:
        """Publish what was just finished. While others of its kind are being written here (students that train
        together), a failure waits for the last of them: they must not be lost to it."""
        seen = self._seen
        seen.writing, seen.late = [a for a in seen.writing if a.held], [*seen.late, artefact]
        try:
            while seen.late:
                self._publish(seen.late[0])
                seen.late.pop(0)
        except UndersongError:
            if not any(a.path.parent == artefact.path.parent for a in seen.writing):
                raise

    def _publish(self, artefact: Artefact) -> None:
        """Put the files of a complete artefact, then its record, unless somebody's record is there already."""
        if (artefact.path / PUBLISHED).is_file():
            return
        record, mark = artefact.record, artefact.fingerprint
        name = f"{record['kind']}/{artefact.path.name}"
        if self._fetch_record(record["kind"], mark) is None:
            self.verify(artefact)
            for file, known in record["files"].items():
                self._bucket.put(f"blobs/{known['sha256']}", files.inside(artefact.path, file), name)
            text = (artefact.path / files.RECORD).read_bytes()
            self._bucket.put(f"records/{record['kind']}/{mark}.json", text, name)
        files.put(artefact.path / PUBLISHED, b"")


def _above(name: str) -> list[str]:
    pieces = name.split("/")
    return ["/".join(pieces[:i]) for i in range(1, len(pieces))]
