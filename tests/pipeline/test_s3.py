"""A store on S3, against moto's server on loopback: whole experiments, deleted caches, dead and rival drivers."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("moto.server", reason="the dev extra is not installed: no S3 server on loopback")
pytest.importorskip("s3fs", reason="the shared extra is not installed")

import boto3
import small_experiment
import yaml

from undersong.errors import BadSpec, BrokenArtefact, ServerFailed
from undersong.shared_store import open_store
from undersong.store import Store

SOURCE = Path(__file__).resolve().parents[2] / "src"
FEW: dict[str, Any] = {"controls": ["no_trait"], "probes": ["favourite"], "other_base": None}
"""Changes that leave an experiment few artefacts."""
KINDS = ("model", "dataset", "measurement", "finding")


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen([sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            with socket.socket() as there:
                if there.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert server.poll() is None, "moto's server did not start"
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()


@pytest.fixture
def s3(endpoint: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """A client of the server, with an empty bucket `runs`; the environment says where the server is."""
    for name in [n for n in os.environ if n.startswith(("AWS_", "UNDERSONG_")) or n.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    for name, value in {"AWS_ENDPOINT_URL": endpoint, "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret",
                        "AWS_DEFAULT_REGION": "us-east-1", "UNDERSONG_CACHE": str(tmp_path / "cache"),
                        "AWS_CONFIG_FILE": os.devnull, "AWS_SHARED_CREDENTIALS_FILE": os.devnull}.items():
        monkeypatch.setenv(name, value)
    client = boto3.client("s3")
    client.create_bucket(Bucket="runs")
    for found in objects(client):
        client.delete_object(Bucket="runs", Key=found)
    return client


def objects(client: Any) -> dict[str, bytes]:
    """Every object of the bucket."""
    pages = client.get_paginator("list_objects_v2").paginate(Bucket="runs")
    keys = [found["Key"] for page in pages for found in page.get("Contents", ())]
    return {key: client.get_object(Bucket="runs", Key=key)["Body"].read() for key in keys}


def believed(found: dict[str, bytes]) -> None:
    """Every blob is of its name, and every record's files are there."""
    blobs = {key.rpartition("/")[2]: data for key, data in found.items() if "/blobs/" in key}
    assert all(hashlib.sha256(data).hexdigest() == name for name, data in blobs.items())
    records = [json.loads(data) for key, data in found.items() if "/records/" in key]
    assert records
    assert all(len(blobs[known["sha256"]]) == known["bytes"] for r in records for known in r["files"].values())


def run(*args: str, **env: str) -> subprocess.Popen[str]:
    """The command line in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "undersong.cli", *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(SOURCE), **env},
    )


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(small_experiment.FILE | FEW))
    return str(path)


@pytest.mark.slow
def test_an_experiment_on_s3_is_done_once(s3: Any, tmp_path: Path) -> None:
    asked, plain = small_experiment.experiment(**FEW), Store(tmp_path / "plain")
    small_experiment.finish(asked, plain)
    first = open_store("s3://runs/owls")
    done = small_experiment.finish(asked, first)
    found = objects(s3)
    believed(found)

    local = {(r["kind"], r["fingerprint"]): r["files"] for r in plain.records()}
    shared = {(r["kind"], r["fingerprint"]): r["files"] for r in first.records()}
    assert set(local) == set(shared)
    assert all(local[key] == shared[key] for key in local if key[0] in KINDS), "the same bytes in both stores"
    kept = small_experiment.payload(Path(first.root))
    assert small_experiment.payload(Path(plain.root)) == {n: d for n, d in kept.items() if not Path(n).name.startswith(".")}

    results = done.read_json("results")
    shutil.rmtree(first.root)
    again = open_store("s3://runs/owls")
    said: list[str] = []
    assert {row.status for row in asked.plan(again)} == {"cached"}
    assert not list(Path(again.root).rglob("*.parquet")), "a plan fetches no payload"
    from undersong.lab import lab_for
    from undersong.results import record

    redone = record(asked, lab_for(again, asked.file.base, said.append))
    assert said == [], "nothing was done anew"
    assert redone.read_json("results") == results
    assert objects(s3) == found
    assert {(r["kind"], r["fingerprint"]): r for r in again.records()} == {
        (r["kind"], r["fingerprint"]): r for key, data in found.items() if "/records/" in key for r in [json.loads(data)]
    }
    cache = Store(again.root)
    for found_again in cache.records():
        cache.verify(cache.get(found_again["fingerprint"]))


@pytest.mark.slow
def test_the_commands_work_on_an_address(s3: Any, file: str, tmp_path: Path) -> None:
    store = ("--store", "s3://runs/cli", "--json")
    done = run("run", file, *store)
    out, err = done.communicate(timeout=300)
    assert done.returncode == 0, err
    told = json.loads(out)
    assert Path(told["report"]).is_file()
    assert Path(told["results"]).is_file()
    assert Path(told["report"]).is_relative_to(tmp_path / "cache")

    elsewhere = {"UNDERSONG_CACHE": str(tmp_path / "elsewhere")}
    for args in (("plan", file), ("ls",), ("show", "small"), ("lineage", "small"),
                 ("report", "small", "--out", str(tmp_path / "again.html"))):
        asked = run(*args, *store, **elsewhere)
        out, err = asked.communicate(timeout=300)
        assert asked.returncode == 0, err
        if args[0] == "plan":
            assert {row["status"] for row in json.loads(out)} == {"cached"}
        if args[0] == "ls":
            assert len(json.loads(out)["artefacts"]) > 10
    assert (tmp_path / "again.html").read_text("utf-8") == Path(told["report"]).read_text("utf-8")


DIES = """
import os, sys
from undersong.bucket import Bucket
real, left = Bucket.put, [int(sys.argv.pop(1))]
def put(self, path, content, what):
    left[0] -= path.startswith("records/")
    if left[0] < 0:
        os._exit(9)
    real(self, path, content, what)
Bucket.put = put
from undersong.cli import main
main(sys.argv[1:])
"""


@pytest.mark.slow
def test_a_driver_that_dies_before_a_record_loses_nothing(s3: Any, file: str) -> None:
    dead = subprocess.run([sys.executable, "-c", DIES, "5", "run", file, "--store", "s3://runs/dies"], capture_output=True,
                          text=True, env={**os.environ, "PYTHONPATH": str(SOURCE)}, check=False, timeout=300)
    assert dead.returncode == 9, dead.stderr
    found = objects(s3)
    assert sum("/records/" in key for key in found) == 5
    believed(found)
    store = open_store("s3://runs/dies")
    kept = {p: p.read_bytes() for p in Path(store.root).rglob("record.json") if b'"complete"' in p.read_bytes()}
    assert len(kept) == 6, "the sixth was finished here and not yet published"
    small_experiment.finish(small_experiment.experiment(**FEW), store)
    assert all(path.read_bytes() == data for path, data in kept.items())
    after = objects(s3)
    believed(after)
    assert {key: data for key, data in after.items() if key in found} == found
    assert sum("/records/" in key for key in after) == len(store.records())


@pytest.mark.slow
def test_two_drivers_on_one_store_lose_nothing(s3: Any, file: str, tmp_path: Path) -> None:
    drivers = [run("run", file, "--json", "--store", "s3://runs/two", *more, UNDERSONG_CACHE=str(tmp_path / name))
               for name, more in {"a": (), "b": ("--executor", "{processes: {workers: 2}}")}.items()]
    told = [(d.communicate(timeout=300), d.returncode) for d in drivers]
    assert [code for _, code in told] == [0, 0], told
    found = objects(s3)
    believed(found)
    asked, third = small_experiment.experiment(**FEW), open_store("s3://runs/two", tmp_path / "third")
    assert {row.status for row in asked.plan(third)} == {"cached"}
    plain = Store(tmp_path / "plain")
    small_experiment.finish(asked, plain)
    marks = [{(r["kind"], r["fingerprint"]) for r in store.records()} for store in (third, plain)]
    assert marks[0] == marks[1]
    own = {r["fingerprint"]: r["files"] for r in plain.records() if r["kind"] in KINDS}
    assert {r["fingerprint"]: r["files"] for r in third.records() if r["kind"] in KINDS} == own


def test_a_bucket_that_is_not_there(s3: Any) -> None:
    for ask in (lambda s: s.records(), lambda s: s.find("dataset", {}), lambda s: s.open("dataset", "owl", {})):
        with pytest.raises(BadSpec, match="no such bucket"):
            ask(open_store("s3://ruins/owls"))


def test_damage_on_s3_is_noticed(s3: Any, tmp_path: Path) -> None:
    store = open_store("s3://runs/damage")
    with store.open("dataset", "owl", {"seed": 1}) as artefact:
        artefact.write_json("notes", {"kept": 6})
        artefact.finish({})
    known = artefact.record["files"]["notes.json"]
    for name, body in (("empty", b""), ("shorter", b"{"), ("other", b"x" * known["bytes"])):
        s3.put_object(Bucket="runs", Key=f"damage/blobs/{known['sha256']}", Body=body)
        with pytest.raises(BrokenArtefact, match="missing or not"):
            open_store("s3://runs/damage", tmp_path / name).get("owl")
    s3.put_object(Bucket="runs", Key=f"damage/records/dataset/{artefact.fingerprint}.json", Body=b"")
    other = open_store("s3://runs/damage", tmp_path / "last")
    assert other.records() == []
    assert "not valid JSON" in other.broken()[0][1]
    assert other.find("dataset", {"seed": 1}) is None


def test_many_records_are_listed_by_pages(s3: Any, tmp_path: Path) -> None:
    store = open_store("s3://runs/many")
    for seed in range(70):
        with store.open("dataset", f"owl-{seed}", {"seed": seed}) as artefact:
            artefact.finish({"seed": seed})
    seen = open_store("s3://runs/many", tmp_path / "b").records()
    assert sorted(r["summary"]["seed"] for r in seen) == list(range(70))


def test_a_server_that_is_gone_is_told_in_a_sentence(s3: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    said = run("ls", "--store", "s3://runs/gone")
    out, err = said.communicate(timeout=120)
    assert (said.returncode, out) == (3, "")
    assert "Traceback" not in err
    assert "Could not connect" in err
    with pytest.raises(ServerFailed, match="Finished work is kept"):
        open_store("s3://runs/gone", tmp_path / "x").open("dataset", "owl", {})
