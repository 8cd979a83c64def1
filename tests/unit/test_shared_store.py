"""The shared store: what other machines see, hostile records, and storage that is full, closed, slow or gone."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fsspec")

from fsspec.implementations.memory import MemoryFileSystem

from undersong import fetched, spec
from undersong.artefact import LARGEST_RECORD, Artefact
from undersong.errors import BadSpec, BrokenArtefact, MissingExtra, NoRoom, ServerFailed, StoreBusy, UnknownName
from undersong.shared_store import PUBLISHED, SharedStore, open_store
from undersong.store import Store

ADDRESS = "memory://runs/owls"
SPEC = {"rows": 6, "seed": 1}
ROWS = [{"id": f"r{i}", "score": i / 7} for i in range(6)]
Machine = Callable[[str], SharedStore]


@pytest.fixture(autouse=True)
def storage(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """What lies on the storage; empty at the start and after a test."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    MemoryFileSystem.store.clear()
    yield MemoryFileSystem.store
    MemoryFileSystem.store.clear()


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """A machine by its name: its own cache, the same storage. A new object each time, as after a restart."""

    def opened(name: str) -> SharedStore:
        found = open_store(ADDRESS, tmp_path / name)
        assert isinstance(found, SharedStore)
        return found

    return opened


def made(store: Store, label: str = "owl", given: dict[str, Any] | None = None, parents: tuple[str, ...] = (),
         kind: str = "dataset") -> Artefact:
    """A complete artefact with parts, a table, JSON, two files of the same content, and an empty one."""
    with store.open(kind, label, given or SPEC, parents) as artefact:
        if not artefact.complete:
            artefact.write_part("rows", 0, ROWS[:4])
            artefact.write_part("rows", 1, ROWS[4:])
            artefact.write_parquet("dropped", [{"id": "x"}])
            artefact.write_json("notes", {"kept": 6})
            artefact.write_json("same", {"kept": 6})
            (artefact.path / "empty.bin").write_bytes(b"")
            artefact.finish({"rows": 6})
    return artefact


def content(artefact: Artefact) -> dict[str, bytes]:
    """Every file of an artefact that is not a mark of the store."""
    found = sorted(p for p in artefact.path.rglob("*") if p.is_file() and not p.name.startswith("."))
    return {str(p.relative_to(artefact.path)): p.read_bytes() for p in found}


def the_record(storage: dict[str, Any]) -> str:
    """The path of the only record."""
    (path,) = [name for name in storage if "/records/" in name]
    return path


def forge(storage: dict[str, Any], change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the only record on the storage."""
    path = the_record(storage)
    record = json.loads(storage[path].getvalue())
    change(record)
    MemoryFileSystem().pipe_file(path, json.dumps(record).encode())


def refuse(monkeypatch: pytest.MonkeyPatch, error: BaseException, *names: str) -> None:
    """Let calls to the storage fail."""

    def fails(*args: Any, **kwargs: Any) -> None:
        raise error

    for name in names or ("put_file", "pipe_file"):
        monkeypatch.setattr(MemoryFileSystem, name, fails)


# What it is.


def test_an_address_opens_a_shared_store_and_a_folder_an_ordinary_one(tmp_path: Path) -> None:
    assert type(open_store(tmp_path)) is Store
    assert open_store(Store(tmp_path).name) == Store(str(tmp_path))
    shared = open_store("s3://bucket/a/prefix/", tmp_path)
    assert isinstance(shared, SharedStore)
    assert shared.name == "s3://bucket/a/prefix"
    assert open_store(shared.name, tmp_path) == shared


def test_the_cache_is_a_folder_for_each_address_and_endpoint(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("UNDERSONG_CACHE", str(tmp_path))
    one, other = (Path(open_store(a).root) for a in ("s3://bucket/a", "s3://bucket/b"))
    assert one.parent == other.parent == tmp_path
    assert one != other
    assert Path(open_store("s3://bucket/a/").root) == one
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9000")
    assert Path(open_store("s3://bucket/a").root) != one
    monkeypatch.delenv("UNDERSONG_CACHE")
    assert Path(open_store("s3://bucket/a").root).is_relative_to(fetched.home())


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("file:///tmp/x", "give its path"),
        ("http://bucket/x", "s3://BUCKET/PREFIX"),
        ("s4://bucket/x", "s3://BUCKET/PREFIX"),
        ("s3://", "BUCKET/PREFIX"),
        ("s3://bucket/../other", "BUCKET/PREFIX"),
        ("s3://bucket//x", "BUCKET/PREFIX"),
        ("s3://key:secret@bucket/x", "environment variables"),
        ("s3://bucket/x?endpoint=here", "environment variables"),
        ("simplecache::s3://bucket/x", "s3://BUCKET/PREFIX"),
        ("s3://bucket/x::file://y", "BUCKET/PREFIX"),
    ],
)
def test_other_addresses_are_refused_in_a_sentence(address: str, words: str) -> None:
    with pytest.raises(BadSpec, match=words) as told:
        open_store(address)
    assert "secret" not in str(told.value)


def test_an_address_that_became_a_path_is_noticed() -> None:
    with pytest.raises(BadSpec, match="one slash"):
        open_store(Path("s3://bucket/x"))


def test_a_missing_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def missing(*args: Any, **kwargs: Any) -> None:
        raise ImportError("no module")

    monkeypatch.setattr("fsspec.filesystem", missing)
    with pytest.raises(MissingExtra, match=r"pip install 'undersong\[shared\]'"):
        open_store("s3://bucket/x", tmp_path).records()


# What others see.


def test_what_one_machine_finished_another_has(machine: Machine, storage: dict[str, Any]) -> None:
    here = made(machine("a"))
    there = machine("b").find("dataset", SPEC)
    assert there is not None
    assert there.path != here.path
    assert content(there) == content(here)
    assert there.read_parts("rows") == ROWS
    machine("b").verify(there)
    assert all(hashlib.sha256(data.getvalue()).hexdigest() == name.rpartition("/")[2]
               for name, data in storage.items() if "/blobs/" in name)


def test_nothing_is_done_again(machine: Machine) -> None:
    made(machine("a"))
    with machine("b").open("dataset", "another label", SPEC) as artefact:
        assert artefact.complete
        assert artefact.record["label"] == "owl"


def test_every_question_sees_what_others_finished(machine: Machine) -> None:
    first = made(machine("a"))
    second = made(machine("a"), "student", {"seed": 2}, (first.fingerprint,), "model")
    b = machine("b")
    assert [r["label"] for r in b.records()] == ["owl", "student"]
    assert [r["label"] for r in b.records("model")] == ["student"]
    assert [r["label"] for r in b.lineage("student")] == ["owl"]
    assert b.query("select label from records order by label") == [{"label": "owl"}, {"label": "student"}]
    assert b.changed("dataset", "owl", {**SPEC, "seed": 2}) == ["seed: 1 -> 2"]
    assert b.changed("dataset", "owl", SPEC) == []
    assert b.broken() == []
    for ref in (second.fingerprint, second.fingerprint[:6], "student", "model/student"):
        assert content(machine("b").get(ref)) == content(second)
    with pytest.raises(UnknownName, match=r"memory://runs/owls holds no artefact 'owls'\. Did you mean 'owl'"):
        b.get("owls")


def test_a_store_that_is_open_sees_what_is_finished_later(machine: Machine) -> None:
    a, b = machine("a"), machine("b")
    assert b.records() == []
    made(a)
    assert len(b.records()) == 1
    made(b, given={"seed": 3})
    assert len(a.records()) == 2


def test_listing_and_planning_fetch_no_payload(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    made(machine("a"))
    b, got = machine("b"), []
    real = MemoryFileSystem.cat_file

    def counted(self: Any, path: str, *args: Any, **kwargs: Any) -> bytes:
        got.append(path)
        return real(self, path, *args, **kwargs)

    monkeypatch.setattr(MemoryFileSystem, "cat_file", counted)
    assert b.has("dataset", SPEC)
    assert not b.has("dataset", {"seed": 2})
    assert b.records()
    assert len(got) == 1
    assert machine("b").records()
    assert len(got) == 1, "a record is fetched once"


def test_unfinished_work_stays_here(machine: Machine, storage: dict[str, Any]) -> None:
    with machine("a").open("dataset", "owl", SPEC) as artefact:
        artefact.write_part("rows", 0, ROWS)
    assert storage == {}
    assert machine("b").records() == []
    with machine("a").open("dataset", "owl", SPEC) as artefact:
        assert artefact.parts("rows") == [0]


def test_an_unfinished_attempt_gives_way_to_finished_work(machine: Machine) -> None:
    b = machine("b")
    with b.open("dataset", "mine", SPEC) as artefact:
        artefact.write_part("rows", 0, ROWS)
        artefact.write_json("old", 1)
    made(machine("a"))
    assert [r["status"] for r in b.records()] == ["complete"]
    found = b.find("dataset", SPEC)
    assert found is not None
    assert "old.json" not in content(found)
    assert found.read_parts("rows") == ROWS
    assert found.record["label"] == "mine", "a folder keeps its name"
    b.verify(found)


def test_work_that_another_process_holds_is_left_to_it(machine: Machine) -> None:
    b = machine("b")
    with b.open("dataset", "owl", SPEC) as artefact:
        artefact.write_part("rows", 0, ROWS[:4])
        made(machine("a"))
        assert machine("b").find("dataset", SPEC) is None
        with pytest.raises(StoreBusy):
            machine("b").open("dataset", "owl", SPEC)
        artefact.write_part("rows", 1, ROWS[4:])
        artefact.finish({"rows": 6})


def test_two_drivers_at_once_keep_the_first_record(machine: Machine, storage: dict[str, Any]) -> None:
    with machine("a").open("dataset", "owl", SPEC) as a, machine("b").open("dataset", "owl", SPEC) as b:
        a.write_json("notes", "by a")
        b.write_json("notes", "by b")
        b.finish({"by": "b"})
        before = storage[the_record(storage)].getvalue()
        a.finish({"by": "a"})
    assert storage[the_record(storage)].getvalue() == before
    assert machine("c").get("owl").read_json("notes") == "by b"
    assert machine("a").get("owl").read_json("notes") == "by a", "a finished artefact never changes"


# Kills and failures.


def test_a_kill_between_files_and_record_shows_nothing_and_the_same_command_publishes(
    machine: Machine, storage: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        refuse(patch, KeyboardInterrupt(), "pipe_file")
        with pytest.raises(KeyboardInterrupt):
            made(machine("a"))
    assert any("/blobs/" in name for name in storage)
    assert machine("b").records() == []
    assert machine("b").find("dataset", SPEC) is None
    assert machine("b").broken() == []
    again = made(machine("a"))
    assert content(machine("b").get("owl")) == content(again)


def test_finished_work_is_published_when_it_is_found(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        refuse(patch, KeyboardInterrupt(), "pipe_file")
        with pytest.raises(KeyboardInterrupt):
            made(machine("a"))
    assert machine("a").has("dataset", SPEC)
    assert machine("b").records() == [], "a plan publishes nothing"
    assert machine("a").find("dataset", SPEC) is not None
    assert len(machine("b").records()) == 1


def test_a_kill_while_fetching_leaves_an_artefact_that_is_fetched_again(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, left = made(machine("a")), [2]
    real = MemoryFileSystem.cat_file

    def dies(self: Any, path: str, *args: Any, **kwargs: Any) -> bytes:
        left[0] -= "/blobs/" in path
        if left[0] < 0:
            raise KeyboardInterrupt
        return real(self, path, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(MemoryFileSystem, "cat_file", dies)
        with pytest.raises(KeyboardInterrupt):
            machine("b").find("dataset", SPEC)
    assert not list((Path(machine("b").root) / "dataset").rglob("record.json"))
    assert [r["status"] for r in machine("b").records()] == ["complete"]
    assert content(machine("b").get("owl")) == content(here)


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), NoRoom, "it is full"),
        (OSError("An error occurred (XMinioStorageFull)"), NoRoom, "it is full"),
        (PermissionError("Access Denied"), NoRoom, "not allowed"),
        (ConnectionError("Could not connect to the endpoint"), ServerFailed, "Could not connect"),
        (TimeoutError(), ServerFailed, "TimeoutError"),
        (RuntimeError("SlowDown: reduce your request rate"), ServerFailed, "SlowDown"),
        (FileNotFoundError("The specified bucket does not exist"), BadSpec, "no such bucket"),
    ],
)
@pytest.mark.parametrize("call", ["put_file", "pipe_file"])
def test_storage_that_takes_nothing_loses_nothing(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, error: Exception, kind: type[Exception], words: str, call: str
) -> None:
    with monkeypatch.context() as patch:
        refuse(patch, error, call)
        with pytest.raises(kind, match=words) as told:
            made(machine("a"))
        said = str(told.value)
        assert "dataset/owl." in said
        assert str(machine("a").root) in said
        assert said.endswith("run the same command again: it publishes what is finished.")
        with pytest.raises(kind, match=words):
            made(machine("a"))
    assert machine("b").records() == []
    kept = next(Path(machine("a").root).glob("dataset/owl.*"))
    before = (kept / "record.json").read_bytes()
    again = made(machine("a"))
    assert (kept / "record.json").read_bytes() == before
    assert content(machine("b").get("owl")) == content(again)


def test_storage_that_answers_nothing_is_told(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    made(machine("a"))
    refuse(monkeypatch, ConnectionError("gone"), "cat_file", "find", "cat_ranges")
    assert machine("a").find("dataset", SPEC) is not None, "what is here and published needs no network"
    asks: list[Callable[[SharedStore], Any]] = [
        lambda s: s.find("dataset", SPEC), lambda s: s.records(), lambda s: s.get("owl"),
        lambda s: s.open("dataset", "owl", SPEC), lambda s: s.has("dataset", SPEC),
    ]
    for ask in asks:
        with pytest.raises(ServerFailed, match="gone"):
            ask(machine("b"))


def test_reading_needs_no_right_to_write(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    made(machine("a"))
    refuse(monkeypatch, PermissionError("Access Denied"))
    assert made(machine("b")).complete
    with pytest.raises(NoRoom, match="not allowed"):
        made(machine("b"), given={"seed": 2})


def test_students_that_train_together_are_all_kept(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        refuse(patch, ConnectionError("gone"))
        a = machine("a")
        students = [a.open("model", f"s{i}", {"seed": i}) for i in range(3)]
        for student in students[:2]:
            student.finish({})
        with pytest.raises(ServerFailed, match="gone"):
            students[2].finish({})
    assert [r["status"] for r in machine("a").records()] == ["complete"] * 3
    a = machine("a")
    for i in range(3):
        assert a.open("model", f"s{i}", {"seed": i}).complete
    assert len(machine("b").records()) == 3


def test_a_failure_that_passes_is_made_good_by_the_next_to_finish(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    a = machine("a")
    students = [a.open("model", f"s{i}", {"seed": i}) for i in range(2)]
    with monkeypatch.context() as patch:
        refuse(patch, ConnectionError("gone"))
        students[0].finish({})
    students[1].finish({})
    assert len(machine("b").records()) == 2


def test_a_damaged_file_is_not_published(machine: Machine, storage: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        refuse(patch, ConnectionError("gone"))
        with pytest.raises(ServerFailed):
            made(machine("a"))
    next(Path(machine("a").root).rglob("notes.json")).write_bytes(b'{\n "kept": 7\n}\n')
    with pytest.raises(BrokenArtefact, match=r"notes\.json is not the file that was recorded"):
        made(machine("a"))
    assert storage == {}


def test_a_marker_is_no_payload(machine: Machine) -> None:
    here = made(machine("a"))
    assert (here.path / PUBLISHED).is_file()
    machine("a").verify(here)
    assert set(here.record["files"]) == set(content(here)) - {"record.json"}


# Hostile storage.


def swap(record: dict[str, Any], name: str) -> None:
    record["files"][name] = record["files"].pop("notes.json")


@pytest.mark.parametrize(
    "change",
    [
        lambda r: swap(r, "../../../outside.json"),
        lambda r: swap(r, "/outside.json"),
        lambda r: swap(r, ".lock"),
        lambda r: swap(r, "a/.hidden"),
        lambda r: swap(r, "record.json"),
        lambda r: swap(r, "same.json/inner"),
        lambda r: swap(r, "new\nline"),
        lambda r: r.update(label="../../owl"),
        lambda r: r.update(label=""),
        lambda r: r.update(kind="model"),
        lambda r: r.update(kind="../model"),
        lambda r: r.update(fingerprint="0" * 12),
        lambda r: r.update(spec={"rows": 7}),
        lambda r: r.update(parents=["0" * 12]),
        lambda r: r.update(status="started"),
        lambda r: r.update(format=99),
    ],
)
def test_a_forged_record_is_refused(machine: Machine, storage: dict[str, Any], tmp_path: Path, change: Any) -> None:
    made(machine("a"))
    forge(storage, change)
    b = machine("b")
    with pytest.raises(BrokenArtefact):
        b.find("dataset", SPEC)
    with pytest.raises(BrokenArtefact):
        machine("b").open("dataset", "owl", SPEC)
    assert b.records() == []
    assert len(b.broken()) == 1
    with pytest.raises((BrokenArtefact, UnknownName)):
        b.get("owl")
    assert not list(tmp_path.rglob("*outside*"))
    assert not list(Path(b.root).rglob("*.parquet"))


@pytest.mark.parametrize(
    "change",
    [
        lambda r: r.pop("files"),
        lambda r: r.update(files={"notes.json": {"sha256": "../x", "bytes": 3}}),
        lambda r: r.update(files={"notes.json": {"sha256": "0" * 64, "bytes": -3}}),
        lambda r: r.update(summary={"x": float("nan")}),
        lambda r: r.update(status="done"),
    ],
)
def test_what_is_no_record_is_made_anew_and_replaced(machine: Machine, storage: dict[str, Any], change: Any) -> None:
    made(machine("a"))
    forge(storage, change)
    assert machine("b").records() == []
    assert len(machine("b").broken()) == 1
    assert machine("b").find("dataset", SPEC) is None
    mine = made(machine("b"))
    assert content(machine("c").get("owl")) == content(mine)


def test_an_enormous_record_is_not_read(machine: Machine, storage: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    made(machine("a"))
    MemoryFileSystem().pipe_file(the_record(storage), b" " * (LARGEST_RECORD + 100))
    asked: list[int] = []
    real = MemoryFileSystem.cat_file

    def counted(self: Any, path: str, start: int = 0, end: int | None = None, **kwargs: Any) -> bytes:
        found = real(self, path, start, end, **kwargs)
        asked.append(len(found))
        return found

    monkeypatch.setattr(MemoryFileSystem, "cat_file", counted)
    assert machine("b").find("dataset", SPEC) is None
    assert machine("b").records() == []
    assert "more than" in machine("b").broken()[0][1]
    assert max(asked) == LARGEST_RECORD + 1


@pytest.mark.parametrize("damage", ["other", "longer", "shorter", "missing"])
def test_a_blob_that_is_not_its_name_is_refused(
    machine: Machine, storage: dict[str, Any], damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = made(machine("a"))
    known = here.record["files"]["dropped.parquet"]
    blob, remote = f"/runs/owls/blobs/{known['sha256']}", MemoryFileSystem()
    whole = storage[blob].getvalue()
    if damage == "missing":
        remote.rm(blob)
    else:
        remote.pipe_file(blob, {"other": bytes(len(whole)), "longer": b"x" + whole, "shorter": whole[:-1]}[damage])
    sizes: list[int] = []
    real = MemoryFileSystem.cat_file

    def counted(self: Any, path: str, *args: Any, **kwargs: Any) -> bytes:
        found = real(self, path, *args, **kwargs)
        if path.endswith(known["sha256"]):
            sizes.append(len(found))
        return found

    monkeypatch.setattr(MemoryFileSystem, "cat_file", counted)
    with pytest.raises(BrokenArtefact, match=f"blobs/{known['sha256']} is missing or not"):
        machine("b").find("dataset", SPEC)
    assert sum(sizes) <= known["bytes"], "never more than the record says"
    left = [p for p in Path(machine("b").root).rglob("*") if p.is_file() and not p.name.startswith(".")]
    assert [p for p in left if ".records" not in p.parts] == []


def test_a_file_is_fetched_in_pieces(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    here = made(machine("a"))
    monkeypatch.setattr("undersong.shared_store.PIECE", 7)
    assert content(machine("b").get("owl")) == content(here)


def test_other_objects_are_left_alone(machine: Machine) -> None:
    remote = MemoryFileSystem()
    for name in ("records/readme.txt", "records/Dataset/0123456789ab.json", "records/dataset/x/0123456789ab.json", "x"):
        remote.pipe_file(f"/runs/owls/{name}", b"{}")
    assert machine("a").records() == []
    assert machine("a").broken() == []


def test_two_prefixes_of_a_bucket_are_two_stores(machine: Machine, tmp_path: Path) -> None:
    made(machine("a"))
    assert open_store("memory://runs/owls2", tmp_path / "z").records() == []
    assert open_store("memory://runs", tmp_path / "y").records() == []


def test_the_fingerprint_does_not_know_where_it_was_made(machine: Machine, tmp_path: Path) -> None:
    plain, shared = made(Store(tmp_path / "plain")), made(machine("a"))
    assert plain.fingerprint == shared.fingerprint == spec.fingerprint({"kind": "dataset", "spec": SPEC, "parents": []})
    assert plain.record["files"] == shared.record["files"]
