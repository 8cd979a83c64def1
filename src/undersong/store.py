"""The Store remembers: one folder per artefact, a record of what it is, and the payload.

    <root>/<kind>/<label>.<fingerprint>/record.json     and payload beside it

The label is for people; the fingerprint (of kind, spec and parents) is the identity. Four rules make a kill harmless:

1. A file is written under a temporary name, flushed and renamed (artefact.py).
2. The record says `started` before any payload exists and turns `complete` last.
3. One process at a time writes an artefact: an exclusive lock that the kernel drops when the process dies.
4. Whoever opens an unfinished artefact removes temporary files and keeps finished ones, if the record holds the same
   spec. Without a readable record nothing there is believed: it is set aside in `.set-aside-N` and work starts anew.

Records may come from strangers and are read as hostile data.
"""

from __future__ import annotations

import contextlib
import difflib
import fcntl
import json
import os
import re
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from undersong import journal
from undersong import spec as specs
from undersong.artefact import FORMAT, LOCK, Artefact, Unreadable, read_record
from undersong.environment import command_line, environment, now
from undersong.errors import BadSpec, BrokenArtefact, StoreBusy, UnknownName
from undersong.files import RECORD, TEMP, digest, dump, inside, make_folder, payload, put, room

__all__ = ["Artefact", "Store", "clean_label", "read_record"]
_FOLDER = re.compile(r"(.+)\.([0-9a-f]{12})")
_ASIDE = ".set-aside-"


@dataclass(frozen=True)
class Store:
    """Artefact folders under `root` (made when first written to), their records, and the questions one asks of them."""

    root: str | Path

    @property
    def name(self) -> str:
        """What opens this store from any process or folder of the same machine."""
        return str(Path(self.root).absolute())

    def open(self, kind: str, label: str, spec: Mapping[str, Any], parents: Sequence[str] = ()) -> Artefact:
        """The artefact of this identity: complete as it is, else ours to write, with what is finished kept.

        An artefact of the same identity under another label is the same artefact. Raises StoreBusy while another
        process or handle writes it, BrokenArtefact when the folder holds another spec or lacks payload, NoRoom.
        """
        name = clean_label(label)
        found = self.find(kind, spec, parents, like=label)
        if found is not None:
            return found
        wanted = _identity(kind, spec, parents)
        folder = self._place(kind, name, specs.fingerprint(wanted))
        lock = _lock(folder)
        try:
            record = _resume(folder, wanted)
            if record["status"] == "started":
                return Artefact(folder, record, lock)
            # Another process finished it between our look and our lock.
            (folder / LOCK).unlink(missing_ok=True)
        except BaseException:
            lock.close()
            raise
        lock.close()
        return Artefact(folder, record)

    def find(
        self, kind: str, spec: Mapping[str, Any], parents: Sequence[str] = (), label: str | None = None, like: str = ""
    ) -> Artefact | None:
        """The complete artefact of this identity, or None. `label` narrows it to the one made under that label; `like` is a
        label that it probably has, and only makes it quick to find.

        Raises BrokenArtefact when its record names another spec or payload that is not there; unreadable is None.
        """
        _check(kind, parents)
        name = None if label is None else clean_label(label)
        for folder in self._named(kind, specs.identity(kind, spec, parents), like or label):
            with contextlib.suppress(Unreadable):
                record = read_record(folder, _identity(kind, spec, parents))
                if record["status"] == "complete" and name in (None, record["label"]):
                    return Artefact(folder, record)
        return None

    def get(self, ref: str) -> Artefact:
        """The artefact with this fingerprint, label (`label`, `kind/label`) or start of a fingerprint; complete or not.

        Raises UnknownName when nothing matches (naming the nearest label) or several do (listing them); BrokenArtefact.
        """
        known = [(folder, *_split_name(folder)) for folder in self._folders()]
        ways = (
            [f for f, _, mark in known if ref in (mark, f.name, f"{f.parent.name}/{f.name}")],
            [f for f, label, _ in known if ref in (label, f"{f.parent.name}/{label}")],
            [f for f, _, mark in known if ref and mark.startswith(ref)],
        )
        for found in ways:
            if len({_split_name(folder)[1] for folder in found}) > 1:
                listed = ", ".join(f"{f.parent.name}/{f.name}" for f in found[:10]) + (", …" if len(found) > 10 else "")
                raise UnknownName(f"{ref!r} could be any of {len(found)}: {listed}. Give more of the fingerprint.")
            if found:
                return Artefact(found[0], read_record(found[0]))
        close = difflib.get_close_matches(ref, {label for _, label, _ in known}, n=1, cutoff=0.5)
        hint = f"Did you mean {close[0]!r}?" if close else "`undersong ls` lists what there is."
        raise UnknownName(f"The store {self.root} holds no artefact {ref!r}. {hint}")

    def records(self, kind: str | None = None) -> list[dict[str, Any]]:
        """Every believable record, complete or not, oldest first. The others are in `broken()`."""
        found = [record for _, record in self._scan(kind) if isinstance(record, dict)]
        return sorted(found, key=lambda r: (str(r["provenance"].get("started", "")), r["fingerprint"]))

    def some(self, kind: str, most: int) -> list[dict[str, Any]]:
        """Complete records of a kind, of at most so many folders, taken evenly from all of them: enough for an estimate."""
        folders = self._folders(kind)
        out = []
        for folder in folders[:: max(1, -(-len(folders) // most))]:
            with contextlib.suppress(BrokenArtefact):
                out.append(read_record(folder))
        return [record for record in out if record["status"] == "complete"]

    def broken(self) -> list[tuple[Path, str]]:
        """Artefact folders that cannot be believed, each with the reason as a sentence."""
        return [(folder, str(record)) for folder, record in self._scan() if isinstance(record, BrokenArtefact)]

    def lineage(self, fingerprint: str) -> list[dict[str, Any]]:
        """The records of all ancestors of an artefact, each after its own parents (the oldest come first); itself not.

        Raises UnknownName when the artefact or an ancestor is not in the store, BrokenArtefact for a circle.
        """
        known = {record["fingerprint"]: record for record in self.records()}
        order: dict[str, dict[str, Any]] = {}
        todo, waiting = [self.get(fingerprint).fingerprint], set()
        while todo:
            mark = todo[-1]
            if mark not in known:
                raise UnknownName(f"{mark}, an ancestor of {fingerprint}, is not in the store. Copy or remake it.")
            missing = [parent for parent in known[mark]["parents"] if parent not in order]
            if not missing:
                order.setdefault(todo.pop(), known[mark])
                continue
            if mark in waiting:
                raise BrokenArtefact(f"{mark} is its own ancestor: its record is forged. Delete it.")
            waiting.add(mark)
            todo.extend(reversed(missing))
        return list(order.values())[:-1]

    def changed(self, kind: str, label: str, spec: Mapping[str, Any], parents: Sequence[str] = ()) -> list[str]:
        """Which fields differ from the latest complete artefact of this kind and label, as `recipe.epochs: 3 -> 4`.

        Empty when an artefact of this identity is complete already, and when there is none to compare with.
        """
        wanted, name = _identity(kind, spec, parents), clean_label(label)
        with contextlib.suppress(BrokenArtefact):
            if self.find(kind, spec, parents) is not None:
                return []
        old = []
        for folder in self._folders(kind):
            if _split_name(folder)[0] == name:  # the others are not read: a plan asks this of every step
                with contextlib.suppress(BrokenArtefact):
                    old += [record for record in [read_record(folder)] if record["status"] == "complete"]
        if not old:
            return []
        last = max(old, key=lambda record: str(record["provenance"].get("finished", "")))
        return specs.diff(last["spec"], wanted["spec"]) + specs.diff(last["parents"], wanted["parents"], "parents")

    def verify(self, artefact: Artefact) -> None:
        """Hash the payload again. Raises BrokenArtefact naming the first file that is wrong, missing or unrecorded."""
        folder, rebuild = artefact.path, "Delete the folder and run the same command again."
        record = read_record(folder)
        if record["status"] != "complete":
            raise BrokenArtefact(f"{folder.name} is not finished. Run its command again to complete it.")
        for name, known in sorted(record["files"].items()):
            if digest(inside(folder, name)) != known:
                raise BrokenArtefact(f"{folder.name}: {name} is not the file that was recorded. {rebuild}")
        extra = [name for name in payload(folder) if name not in record["files"]]
        if extra:
            raise BrokenArtefact(f"{folder.name}: {extra[0]} is not in the record. Remove it, or: {rebuild}")

    def query(self, sql: str) -> list[dict[str, Any]]:
        """One SELECT over the table `records` (DuckDB), as a list of rows; it can read nothing else and write nothing.

        Columns: kind, label, fingerprint, status, path, started, finished, seconds, parents (list) and, as JSON, spec,
        summary, files, provenance: `select label, summary->>'$.rows' from records where kind = 'dataset'`.
        Raises BadSpec.
        """
        import duckdb

        connection = duckdb.connect()
        try:
            _fill(connection, [(folder, record) for folder, record in self._scan() if isinstance(record, dict)])
            statements = connection.extract_statements(sql)
            if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
                raise BadSpec("The store answers one SELECT at a time and changes nothing. Write it as one SELECT.")
            found = connection.execute(statements[0])
            names = [column[0] for column in found.description]
            return [dict(zip(names, row, strict=True)) for row in found.fetchall()]
        except duckdb.Error as error:
            raise BadSpec(f"The query cannot be answered: {error}. Change it; the only table is `records`.") from None
        finally:
            connection.close()

    def _folders(self, kind: str | None = None) -> list[Path]:
        kinds = [folder for folder in _listed(Path(self.root)) if kind in (None, folder.name)]
        return [folder for parent in kinds for folder in _listed(parent) if _FOLDER.fullmatch(folder.name)]

    def _named(self, kind: str, mark: str, like: str | None = None) -> Iterator[Path]:
        """The folders of one identity, the one labelled `like` first; more than one only where somebody copied them."""
        parent, first = Path(self.root) / kind, None
        if like and (parent / f"{clean_label(like)}.{mark}").is_dir():
            first = parent / f"{clean_label(like)}.{mark}"
            yield first
        for name in sorted(journal.known(parent).get(mark, ())):
            if parent / name != first and (parent / name).is_dir():
                yield parent / name

    def _scan(self, kind: str | None = None) -> Iterator[tuple[Path, dict[str, Any] | BrokenArtefact]]:
        for folder in self._folders(kind):
            try:
                yield folder, read_record(folder)
            except BrokenArtefact as error:
                yield folder, error

    def _place(self, kind: str, label: str, mark: str) -> Path:
        """The folder of an identity, made if need be. Guarded: two labels must not give one identity two folders."""
        parent = Path(self.root) / kind
        with room(parent):
            parent.mkdir(parents=True, exist_ok=True)
            with open(parent / LOCK, "ab") as guard:
                fcntl.flock(guard, fcntl.LOCK_EX)
                folder = next(self._named(kind, mark, label), parent / f"{label}.{mark}")
                if not folder.is_dir():
                    guard.write(folder.name.encode() + b"\n")  # its name first: see journal.py
                    guard.flush()
                    make_folder(folder)
        return folder


def clean_label(label: str) -> str:
    """A label as a folder name: anything but letters, digits, `_ + -` and inner dots becomes a dash; 60 at most.

    Raises BadSpec when nothing is left.
    """
    clean = re.sub(r"(?:[^\w.+-]|\.{2,})+", "-", label).strip(".-")[:60].rstrip(".-")
    if not clean:
        raise BadSpec(f"{label!r} cannot be a label. Use a few letters or digits.")
    return clean


def _resume(folder: Path, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """The record to go on from, with the folder repaired. The caller holds the lock."""
    provenance = {**environment(), "command": command_line(), "started": now(), "earlier": []}
    try:
        record = read_record(folder, wanted)
    except Unreadable as error:
        aside = _set_aside(folder)
        if aside is not None:
            provenance["earlier"] = [{"set_aside": aside.name, "why": str(error)}]
        mark = specs.fingerprint(wanted)
        record = {"format": FORMAT, "kind": wanted["kind"], "label": _split_name(folder)[0], "fingerprint": mark,
                  "spec": wanted["spec"], "parents": wanted["parents"], "status": "started", "summary": {}, "files": {}}
    else:
        if record["status"] == "complete":
            return record
        _remove_temporary(folder)
        old = record["provenance"]
        here = {key: [old.get(key), provenance[key]] for key in environment() if old.get(key) != provenance[key]}
        earlier = old["earlier"] if isinstance(old.get("earlier"), list) else []
        provenance["earlier"] = [*earlier, {"started": old.get("started"), "changed_since": sorted(here)}]
    record["provenance"] = provenance
    put(folder / RECORD, dump(record, folder.name))
    return record


def _set_aside(folder: Path) -> Path | None:
    """Move what an unreadable artefact holds out of the way; None when it holds nothing but temporary files."""
    _remove_temporary(folder)
    found = [entry for entry in folder.iterdir() if entry.name != LOCK and not entry.name.startswith(_ASIDE)]
    if not found:
        return None
    with room(folder):
        aside = folder / f"{_ASIDE}{sum(entry.name.startswith(_ASIDE) for entry in folder.iterdir())}"
        aside.mkdir()
        for entry in found:
            entry.rename(aside / entry.name)
    return aside


def _remove_temporary(folder: Path) -> None:
    for top, folders, files in os.walk(folder):
        folders[:] = [f for f in folders if not f.startswith(".")]
        for name in files:
            if name.startswith(TEMP):
                os.unlink(os.path.join(top, name))


def _lock(folder: Path) -> IO[bytes]:
    """The open lock file of an artefact; closing it releases the lock, and so does the death of the process."""
    with room(folder):
        lock = open(folder / LOCK, "a+b")  # noqa: SIM115 (it stays open as long as the artefact)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            holder = lock.read(200).decode("utf-8", "replace")
            lock.close()
            who = holder if re.fullmatch(r"process \d+ on [\w.-]+", holder) else "another process"
            raise StoreBusy(
                f"{folder.parent.name}/{folder.name} is being written by {who}. "
                "Wait for it to end or stop it, then run the same command again: finished work is kept."
            ) from None
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()}".encode())
        lock.flush()
    return lock


def _identity(kind: str, spec: Mapping[str, Any], parents: Sequence[str]) -> dict[str, Any]:
    _check(kind, parents)
    return {"kind": kind, "spec": specs.plain(spec), "parents": list(parents)}


def _check(kind: str, parents: Sequence[str]) -> None:
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,40}", kind):
        raise BadSpec(f"{kind!r} cannot be a kind of artefact. Use one lower-case word.")
    for parent in parents:
        if not re.fullmatch(r"[0-9a-f]{12}", parent):
            raise BadSpec(f"{parent!r} is not a fingerprint. Give the parents' fingerprints (12 hexadecimal digits).")


def _split_name(folder: Path) -> tuple[str, str]:
    label, _, mark = folder.name.rpartition(".")
    return label, mark


def _listed(folder: Path) -> list[Path]:
    """The folders in a folder, by name; none when it does not exist."""
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        return sorted(folder / e.name for e in entries if e.is_dir() and not e.name.startswith("."))


def _fill(connection: Any, found: Sequence[tuple[Path, Mapping[str, Any]]]) -> None:
    """Make the table `records`, then shut the connection off from files, network and settings."""
    connection.execute(
        "create table records (kind text, label text, fingerprint text, status text, path text, started text, "
        "finished text, seconds double, parents text[], spec json, summary json, files json, provenance json)"
    )
    for folder, record in found:
        told = record["provenance"]
        times = [told[key] if isinstance(told.get(key), str) else None for key in ("started", "finished")]
        seconds = told.get("seconds") if isinstance(told.get("seconds"), int | float) else None
        texts = [json.dumps(record[key]) for key in ("spec", "summary", "files", "provenance")]
        head = [record[key] for key in ("kind", "label", "fingerprint", "status")]
        connection.execute(
            "insert into records values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [*head, str(folder), *times, seconds, record["parents"], *texts],
        )
    connection.execute("set enable_external_access = false")
    connection.execute("set lock_configuration = true")
