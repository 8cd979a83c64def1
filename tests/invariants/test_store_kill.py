"""Kill -9 at any moment: nothing finished is lost or repeated, nothing torn is seen, and the bytes end up the same.

The work runs in processes forked from one that has imported the store. They die in three ways: before the n-th file
operation in the store (an audit hook), in the middle of a write (a limit on file size, whose signal kills), and by
the clock.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import undersong
from undersong.errors import StoreBusy
from undersong.store import Store

SPEC = {"channel": "numbers", "rows": 60, "seed": 1}
PARTS = 4
WORK = '''
import json, os, random, resource, signal, sys, time
import pyarrow.parquet
from undersong.errors import StoreBusy
from undersong.store import Store

SPEC, PARTS = {"channel": "numbers", "rows": 60, "seed": 1}, 4
os.fsync = lambda handle: None  # matters for a power cut, not for a kill

def rows(i):
    dice = random.Random(i)
    answers = [", ".join(str(dice.randrange(1000)) for _ in range(40)) for _ in range(15)]
    return [{"id": f"{i}-{n}", "completion": answer} for n, answer in enumerate(answers)]

def work(root, log):
    """What a long sampling run does; every part that is made is noted outside the store."""
    with Store(root).open("dataset", "numbers", SPEC) as artefact:
        if artefact.complete:
            return
        for i in range(PARTS):
            if i not in artefact.parts("rows"):
                artefact.write_part("rows", i, rows(i))
                with open(log, "a") as file:
                    file.write(f"{i}\\n")
        artefact.write_json("notes", {"made": "all"})
        artefact.finish({"rows": len(artefact.read_parts("rows"))})

def child(task):
    root, how, n = task["root"], task["how"], task["n"]
    if how == "operation":
        left = [n]
        def hook(event, given):
            if event in ("open", "os.rename", "os.mkdir", "os.remove", "os.truncate") and root in str(given[0]):
                left[0] -= 1
                if left[0] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(hook)
    if how == "torn":
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (n, n))
    for _ in range(2000):
        try:
            return work(root, task["log"])
        except StoreBusy:
            time.sleep(0.01)

for line in sys.stdin:
    pids = []
    tasks = json.loads(line)
    for task in tasks:
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                child(task)
                code = 0
            finally:
                os._exit(code)
        pids.append(pid)
    if tasks[0]["how"] == "clock":
        time.sleep(tasks[0]["n"] / 1e4)
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
    print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]), flush=True)
'''


class Workers:
    """Processes that do the work above, forked from one that has everything imported."""

    def __init__(self) -> None:
        env = {**os.environ, "PYTHONPATH": str(Path(undersong.__file__).parents[1])}
        self.server = subprocess.Popen(
            [sys.executable, "-c", WORK], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
        )

    def run(self, root: Path, how: str = "", n: int = 0, times: int = 1) -> list[int]:
        """The exit codes; -9 is killed, -25 is killed while writing a file past the limit."""
        task = {"root": str(root), "how": how, "n": n, "log": str(root) + ".log"}
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        self.server.stdin.write(json.dumps([task] * times) + "\n")
        self.server.stdin.flush()
        return list(json.loads(self.server.stdout.readline()))


@pytest.fixture(scope="module")
def workers() -> Any:
    made = Workers()
    yield made
    made.server.communicate(timeout=20)


@pytest.fixture(scope="module")
def uninterrupted(workers: Workers, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    root = tmp_path_factory.mktemp("whole") / "artefacts"
    assert workers.run(root) == [0]
    return payload(root)


def folder(root: Path) -> Path:
    (found,) = [path for path in (root / "dataset").iterdir() if not path.name.startswith(".")]
    return found


def payload(root: Path) -> dict[str, bytes]:
    """Every file of the artefact by name, the record without its provenance."""
    found = {str(p.relative_to(folder(root))): p.read_bytes() for p in folder(root).rglob("*") if p.is_file()}
    found.pop(".lock", None)
    record = json.loads(found["record.json"])
    record.pop("provenance")
    return {**found, "record.json": json.dumps(record, sort_keys=True).encode()}


def finished(root: Path) -> dict[str, tuple[int, int, bytes]]:
    """The finished parts: which file it is on disk, when it was written, and its bytes."""
    parts = root.glob("dataset/*/rows.parts/[0-9]*.parquet")
    return {p.name: (p.stat().st_ino, p.stat().st_mtime_ns, p.read_bytes()) for p in parts}


def made(root: Path) -> list[int]:
    log = Path(str(root) + ".log")
    return [int(line) for line in log.read_text().split()] if log.exists() else []


def check_after_kill(root: Path, whole: dict[str, bytes]) -> None:
    """Whatever the kill left, no name that a reader would open holds anything but finished bytes."""
    for name, (_, _, data) in finished(root).items():
        assert data == whole[f"rows.parts/{name}"]
    for record in root.glob("dataset/*/record.json"):
        json.loads(record.read_text())
    found = Store(root).find("dataset", SPEC)
    if found is not None:
        Store(root).verify(found)
        assert found.summary == {"rows": 60}


def resume_and_compare(workers: Workers, root: Path, whole: dict[str, bytes]) -> None:
    before = finished(root)
    assert workers.run(root) == [0]
    after = finished(root)
    assert {name: after[name] for name in before} == before, "a finished part was written again"
    assert payload(root) == whole
    ids = [row["id"] for row in Store(root).get("numbers").read_parts("rows")]
    assert ids == [f"{i}-{n}" for i in range(PARTS) for n in range(15)], "a row was lost or repeated"


def test_killed_before_a_file_operation(workers: Workers, uninterrupted: dict[str, bytes], tmp_path: Path) -> None:
    """Defect: a half-written file, then a resume glued onto it. Every fourth operation, from a random one on."""
    n, status = random.randrange(1, 5), [-9]
    while status == [-9]:
        root = tmp_path / f"op{n}"
        status = workers.run(root, "operation", n)
        check_after_kill(root, uninterrupted)
        resume_and_compare(workers, root, uninterrupted)
        n += 4
    assert status == [0]
    assert n > 30, "the hook saw hardly any file operation: this test tests nothing"


def test_killed_in_the_middle_of_a_write(workers: Workers, uninterrupted: dict[str, bytes], tmp_path: Path) -> None:
    sizes = {name: len(data) for name, data in uninterrupted.items()}
    part = min(size for name, size in sizes.items() if name.endswith(".parquet"))
    torn = 0
    for limit in (1, 40, part // 2, part - 1):
        root = tmp_path / f"torn{limit}"
        assert workers.run(root, "torn", limit) == [-signal.SIGXFSZ]
        torn += len([p for p in root.glob("dataset/*/**/.tmp-*") if p.stat().st_size == limit])
        check_after_kill(root, uninterrupted)
        resume_and_compare(workers, root, uninterrupted)
    assert torn >= 2, "no write was cut in the middle: this test tests nothing"


def test_killed_by_clock_again_and_again(workers: Workers, uninterrupted: dict[str, bytes], tmp_path: Path) -> None:
    dice = random.Random()
    for trial in range(2):
        root = tmp_path / f"clock{trial}"
        seen: dict[str, Any] = {}
        for _ in range(8):
            workers.run(root, "clock", dice.randrange(1, 600))
            check_after_kill(root, uninterrupted)
            now = finished(root)
            assert {name: now.get(name) for name in seen} == seen, "finished work was lost or repeated"
            seen = now
        resume_and_compare(workers, root, uninterrupted)


def test_several_processes_at_once_make_every_part_once(
    workers: Workers, uninterrupted: dict[str, bytes], tmp_path: Path
) -> None:
    root = tmp_path / "together"
    assert workers.run(root, times=4) == [0, 0, 0, 0]
    assert made(root) == list(range(PARTS))
    assert payload(root) == uninterrupted


HOLD = """
import sys
from undersong.store import Store
artefact = Store(sys.argv[1]).open("dataset", "numbers", {"seed": 2})
artefact.write_part("rows", 0, [{"n": 1}])
print("held", flush=True)
sys.stdin.read()
"""


def test_a_second_process_is_told_the_first_and_takes_over_when_it_is_killed(tmp_path: Path) -> None:
    env = {**os.environ, "PYTHONPATH": str(Path(undersong.__file__).parents[1])}
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
    ) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "held\n"
        with pytest.raises(StoreBusy, match=rf"process {first.pid} on .*run the same command again"):
            Store(tmp_path).open("dataset", "numbers", {"seed": 2})
        first.kill()
        first.wait()
        with Store(tmp_path).open("dataset", "numbers", {"seed": 2}) as artefact:
            assert artefact.parts("rows") == [0]
            artefact.finish({})
    Store(tmp_path).verify(artefact)
