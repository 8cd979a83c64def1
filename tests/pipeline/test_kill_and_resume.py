"""`undersong run` killed without warning and started again ends with the bytes of an uninterrupted run."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from small_experiment import FILE, experiment, finish, payload

from undersong.store import Store

KILLS = 5
SMALL = {"controls": ["no_trait", "shuffled_rows"], "rivals": [], "rows": 60, "probes": ["favourite"]}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of an uninterrupted run."""
    root = tmp_path_factory.mktemp("whole")
    finish(experiment(**SMALL), Store(root))
    return root


def start(file: Path, store: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "undersong.cli", "run", str(file), "--store", str(store)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=store.parent, env=environment
    )


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(FILE | SMALL))
    return path


def records(store: Path) -> dict[str, dict[str, Any]]:
    """The complete records by folder."""
    found = {}
    for path in store.glob("*/*/record.json"):
        record = json.loads(path.read_text())
        if record["status"] == "complete":
            found[str(path.parent.relative_to(store))] = record
    return found


def results(store: Path) -> dict[str, Any]:
    (path,) = store.glob("experiment/*/results.json")
    return {k: v for k, v in json.loads(path.read_text()).items() if k != "environment"}


def same(store: Path, whole: Path) -> None:
    mine, theirs = payload(store), payload(whole)
    assert sorted(mine) == sorted(theirs)
    assert [name for name in mine if mine[name] != theirs[name]] == []
    assert results(store) == results(whole)
    assert not list(store.rglob(".tmp-*"))
    assert not list(store.rglob(".set-aside-*"))
    kept = Store(store)
    for record in kept.records():
        kept.verify(kept.get(record["fingerprint"]))


def test_killed_again_and_again(file: Path, whole: Path, tmp_path: Path) -> None:
    store, dice = tmp_path / "store", random.Random(4)
    total = len(list(whole.glob("*/*/record.json")))
    finished: dict[str, dict[str, Any]] = {}
    deaths = 0
    for kill in range(KILLS):
        run = start(file, store)
        target = total * (kill + 1) // (KILLS + 1)
        while run.poll() is None and len(list(store.glob("*/*/record.json"))) < target:
            time.sleep(0.002)
        time.sleep(dice.random() * 0.03)
        run.kill()
        run.communicate()
        deaths += run.returncode < 0
        now = records(store)
        assert finished.items() <= now.items(), "what was finished was done again"
        finished = now
    assert deaths >= KILLS - 1, "the run ended before it could be killed"
    assert 0 < len(finished) < total
    last = start(file, store)
    out, err = last.communicate(timeout=400)
    assert last.returncode == 0, err
    assert "Results:" in out
    now = records(store)
    assert finished.items() <= now.items(), "what was finished was done again"
    assert len(now) == total
    same(store, whole)


def test_two_runs_at_once_in_one_store(file: Path, whole: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    runs = [start(file, store) for _ in range(2)]
    told = [run.communicate(timeout=400) for run in runs]
    codes = [run.returncode for run in runs]
    assert set(codes) <= {0, 3}, told
    assert 0 in codes, told
    for code, (_, err) in zip(codes, told, strict=True):
        if code == 3:
            assert "is being written by" in err
            assert "Traceback" not in err
    before = records(store)
    for file_of_both in (file, file):
        again = start(file_of_both, store)
        _, err = again.communicate(timeout=400)
        assert again.returncode == 0, err
    assert before.items() <= records(store).items()
    same(store, whole)
