"""Cells in worker processes and as Ray tasks: the same bytes as inline, whatever dies meanwhile."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from small_experiment import FILE, experiment, finish, payload

from undersong.errors import BadSpec, StoreBusy, WorkerLost
from undersong.executors.inline import Inline
from undersong.executors.processes import Processes
from undersong.executors.ray import Ray
from undersong.experiment.cells import Cells, Spread, perform, spread, versions
from undersong.lab import lab_for
from undersong.spec import build
from undersong.store import Store
from undersong.writing import PART

pytest.importorskip("ray", reason="the ray extra is not installed")
SMALL = {"controls": ["no_trait", "shuffled_rows", "in_context"], "rows": 60}
ALSO = {"OMP_NUM_THREADS": "1", "RAY_worker_niceness": "0", "RAY_USAGE_STATS_ENABLED": "0"}
"""Put into the environment of a command as it is by then: Ray tells its children there whether they need a token."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of an inline run."""
    root = tmp_path_factory.mktemp("whole")
    finish(experiment(**SMALL), Store(root))
    return root


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head without processors and two nodes of one processor each."""
    os.environ.update({"RAY_worker_niceness": "0", "RAY_USAGE_STATS_ENABLED": "0"})
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    made.workers = [made.add_node(num_cpus=1, include_dashboard=False) for _ in range(2)]
    yield made
    made.shutdown()


def command(folder: Path, *more: str) -> list[str]:
    file = folder / "small.yaml"
    file.write_text(yaml.safe_dump(FILE | SMALL))
    return [sys.executable, "-m", "undersong.cli", "run", str(file), "--store", str(folder / "store"), *more]


def run(folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    asked = command(folder, *more)
    return subprocess.run(asked, capture_output=True, text=True, env=os.environ | ALSO, timeout=240, cwd=folder)


def test_worker_processes_end_with_the_same_bytes(whole: Path, tmp_path: Path) -> None:
    done = run(tmp_path, "--executor", "{processes: {workers: 2}}")
    assert done.returncode == 0, done.stderr
    assert payload(tmp_path / "store") == payload(whole)


def test_a_ray_of_this_machine_ends_with_the_same_bytes(whole: Path, tmp_path: Path) -> None:
    done = run(tmp_path, "--executor", "{ray: {workers: 2}}")
    assert done.returncode == 0, done.stderr
    assert payload(tmp_path / "store") == payload(whole)
    again = run(tmp_path, "--executor", "ray")
    assert "cells" not in again.stderr  # all is there: no Ray was started


def test_nodes_that_share_the_writing_of_a_dataset_end_with_the_same_bytes(tmp_path: Path, cluster: Any) -> None:
    large = {"rows": 2 * PART + 100, "rivals": [], "controls": ["no_trait"], "probes": ["logit_margin"]}
    asked = experiment(**SMALL | large)
    finish(asked, Store(tmp_path / "inline"))
    store = Store(tmp_path / "shared")
    spread([asked], lab_for(store, ""), Ray(address=cluster.address, shard_rows=PART))
    assert payload(tmp_path / "shared") == payload(tmp_path / "inline")
    assert len(store.records("shard")) == 2 * 3 * 2  # two teachers by three seeds, two shards each


def test_a_killed_worker_and_a_killed_node_lose_nothing(whole: Path, tmp_path: Path, cluster: Any) -> None:
    asked = command(tmp_path, "--executor", "ray", "--address", cluster.address)
    driver = subprocess.Popen(asked, env=os.environ | ALSO, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                              cwd=tmp_path)
    said: list[str] = []
    reader = threading.Thread(target=lambda: said.extend(driver.stderr or ()))
    reader.start()
    try:
        while driver.poll() is None and not kill_one():
            time.sleep(0.01)
        while driver.poll() is None and not any("the worker of" in line for line in said):
            time.sleep(0.02)
        cluster.remove_node(cluster.workers.pop(), allow_graceful=False)
        assert driver.wait(timeout=200) == 0, said[-5:]
    finally:
        driver.kill()
        reader.join()
    assert any("died" in line for line in said)
    assert payload(tmp_path / "store") == payload(whole)
    for record in Store(tmp_path / "store").records():
        Store(tmp_path / "store").verify(Store(tmp_path / "store").get(record["fingerprint"]))


def kill_one() -> bool:
    """Kill a worker of this test's cluster in the middle of a cell."""
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if any("ray::perform" in word for word in process.cmdline()):
                process.send_signal(signal.SIGKILL)
                return True
    return False


def test_a_cluster_that_does_not_answer_is_a_sentence(tmp_path: Path) -> None:
    done = run(tmp_path, "--executor", "ray", "--address", "127.0.0.1:9")
    assert done.returncode == 3
    assert "ray start --head" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "store").glob("*/*/record.json"))


def test_resources_that_no_node_has_are_refused_before_any_work(tmp_path: Path, cluster: Any) -> None:
    done = run(tmp_path, "--executor", "{ray: {gpus: 3}}", "--address", cluster.address)
    assert done.returncode == 3
    assert "No node has 1 processors, 3 GPUs" in done.stderr


def test_an_address_is_for_ray(tmp_path: Path) -> None:
    done = run(tmp_path, "--executor", "processes", "--address", "auto")
    assert done.returncode == 3
    assert "--executor ray" in done.stderr


def test_a_worker_of_another_version_does_no_work(tmp_path: Path) -> None:
    told = perform(experiment(**SMALL).text, str(tmp_path), "rows", 0, str(tmp_path), versions() | {"numpy": "0.1"})
    assert isinstance(told["error"], BadSpec)
    assert "instead of 0.1" in str(told["error"])
    assert not list(tmp_path.iterdir())


def test_a_worker_that_sees_another_store_does_no_work(tmp_path: Path) -> None:
    sign = str(tmp_path / "elsewhere" / ".driver-1")
    told = perform(experiment(**SMALL).text, str(tmp_path), "rows", 0, str(tmp_path), versions(), sign)
    assert isinstance(told["error"], BadSpec)
    assert "s3://" in str(told["error"])
    assert not list(tmp_path.iterdir())


def test_every_step_has_one_cell_and_waits_for_its_parents() -> None:
    mitigated = {"mitigations": [{"shuffle": {"how": "within"}}], "controls": FILE["controls"][:2]}
    asked = experiment(classifier="row_classifier", **mitigated)
    cells = Cells([asked, experiment(rows=70)])
    steps = {s.fingerprint for e in cells.experiments for s in e.steps()}
    made = [s.fingerprint for cell in cells.all for s in cell.makes]
    assert sorted(made) == sorted(steps)
    for place, cell in enumerate(cells.all):
        assert all(before < place for before in cells.before(cell))
        at = {s.fingerprint for s in cell.makes} | {s.fingerprint for b in cells.before(cell) for s in cells.all[b].makes}
        assert {parent for s in cell.makes for parent in s.parents} & steps <= at
    # the second experiment shares the bases' measurements and the teachers
    assert not any(cell.kind == "reference" for cell in cells.all if cell.experiment is cells.experiments[1])


class Scripted:
    """A pool in this process whose submitted cells meet what a script says first."""

    def open(self) -> Any:
        pool: Any = Inline().open()
        submit, left = pool.submit, dict(SCRIPT)

        def scripted(fn: Any, *args: Any) -> Any:
            trouble = left.get(args[2:4], [])
            return submit(trouble.pop(0) if trouble else fn, *args)

        pool.submit = scripted
        return pool

    lost = (ConnectionResetError,)


SCRIPT: dict[tuple[str, int], list[Any]] = {}


def died(*args: Any) -> Any:
    raise ConnectionResetError("gone")


def busy(*args: Any) -> Any:
    return {"busy": True, "error": None, "seconds": 0.0, "where": "here"}


def refused(*args: Any) -> Any:
    return {"busy": False, "error": BadSpec("No. Change it."), "seconds": 0.0, "where": "here"}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("undersong.experiment.cells.LONGEST_PAUSE", 0.01)


@pytest.mark.usefixtures("quick")
def test_lost_and_busy_cells_are_begun_again(whole: Path, tmp_path: Path) -> None:
    SCRIPT.update({("rows", 0): [died, died, busy], ("run", 1): [busy] * 6})
    said: list[str] = []
    spread([experiment(**SMALL)], lab_for(Store(tmp_path), "simulated/a", said.append), Scripted())
    assert payload(tmp_path) == payload(whole)
    assert sum("died" in line for line in said) == 2
    assert sum("another process" in line for line in said) == 7


@pytest.mark.usefixtures("quick")
def test_a_cell_that_fails_leaves_the_others_going(tmp_path: Path) -> None:
    asked, lab = experiment(**SMALL), lab_for(Store(tmp_path), "simulated/a")
    SCRIPT.clear()
    SCRIPT.update({("rows", 0): [refused], ("rows", 1): [died] * 4})
    with pytest.raises((BadSpec, WorkerLost)) as caught:
        spread([asked], lab, Scripted())
    assert str(caught.value).endswith(("Change it.", "finished work is kept."))
    work = Spread(Cells([asked]), lab)
    # what needs those rows is missing, all else is there
    waiting = {place for place, cell in enumerate(work.cells.all) if cell.kind == "rows" and cell.index in (0, 1)}
    for place, cell in enumerate(work.cells.all):
        if work.cells.before(cell) & waiting:
            waiting.add(place)
    assert set(work.todo) == waiting
    SCRIPT.clear()
    spread([asked], lab, Scripted())
    assert not Spread(Cells([asked]), lab).todo


@pytest.mark.usefixtures("quick")
def test_a_base_that_cannot_be_asked_ends_the_run_at_once(tmp_path: Path) -> None:
    SCRIPT.clear()
    SCRIPT.update({("reference", 0): [refused]})
    with pytest.raises(BadSpec):
        spread([experiment(**SMALL)], lab_for(Store(tmp_path), "simulated/a"), Scripted())
    assert not list(tmp_path.glob("model/*"))


def test_a_pool_that_broke_is_a_sentence(tmp_path: Path) -> None:
    SCRIPT.clear()
    SCRIPT.update({("rows", 1): [lambda *args: broke()]})
    with pytest.raises(WorkerLost, match="fewer workers"):
        spread([experiment(**SMALL)], lab_for(Store(tmp_path), "simulated/a"), Scripted())


def broke() -> Any:
    raise BrokenProcessPool("A process in the process pool was terminated abruptly")


def test_two_drivers_share_a_store(whole: Path, tmp_path: Path) -> None:
    both = [subprocess.Popen(command(tmp_path, "--executor", "{processes: {workers: 1}}"), env=os.environ | ALSO, text=True,
                             stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=tmp_path) for _ in range(2)]
    told = [driver.communicate(timeout=240)[1] for driver in both]
    assert [driver.returncode for driver in both] == [0, 0], told
    assert payload(tmp_path / "store") == payload(whole)


def test_an_executor_is_any_pool(whole: Path, tmp_path: Path) -> None:
    for name in ("inline", "processes", "ray"):
        assert build("executor", name).plugin_kind == "executor"
    assert Ray(cpus=0.5).cpus == 0.5
    assert Processes(workers=1).workers == 1
    spread([experiment(**SMALL)], lab_for(Store(tmp_path), "simulated/a"), Inline())
    assert payload(tmp_path) == payload(whole)
    assert not list(tmp_path.glob(".driver-*"))


def test_a_busy_artefact_makes_a_cell_busy(tmp_path: Path) -> None:
    asked = experiment(**SMALL)
    step = asked.runs()[0].teacher
    with Store(tmp_path).open(step.kind, step.label, step.spec, step.parents):
        told = perform(asked.text, str(tmp_path), "rows", 0, str(tmp_path), versions())
    assert told["busy"]
    assert not isinstance(told["error"], StoreBusy)
