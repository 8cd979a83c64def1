"""An experiment as cells that can be done anywhere: in this process, in others, on other machines.

A cell is a chain of steps of one run: `rows` (a teacher, what it wrote, what the filters left), `run` (a student and its
measurements, with the mitigation of its arm), `reference` (an untouched base, measured) or `audit`. Where the rows are many,
`teacher` and `shard` cells come before `rows`: several workers then write one dataset (`writing.py`). `cells` finds which
cell makes what another needs; `spread` hands them to a `concurrent.futures.Executor`, each as soon as those before it are
done. What crosses to a worker is text: the experiment file, the name of the store, which cell. Rows and weights pass
through the store alone, so that it does not matter where, or how often, a cell is begun:

* a cell that fails leaves the others going; its sentence is raised when they are done;
* a cell whose worker died is begun again after a pause, `TRIES` times; what it had finished is read back;
* a cell that finds another process at the same work waits and looks again: two drivers may share a store.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, wait
from dataclasses import dataclass, field
from functools import cache, cached_property, lru_cache
from pathlib import Path
from typing import Any, TypeVar

from undersong import files
from undersong.environment import environment
from undersong.errors import BadSpec, StoreBusy, UndersongError, WorkerLost
from undersong.experiment import Experiment
from undersong.experiment.running import Running
from undersong.experiment.steps import Run, Step
from undersong.experiment_file import File
from undersong.lab import Lab, lab_for
from undersong.shared_store import open_store
from undersong.store import Store
from undersong.writing import SHARD

T = TypeVar("T")
TRIES = 4
"""How often a cell is begun whose workers die."""
LONGEST_PAUSE = 60.0
"""Seconds; pauses double up to it."""
FLYING = 1000
"""Cells handed over at a time: a pool need not hold a whole sweep."""
SAME = ("numpy", "torch", "transformers", "tokenizers", "peft", "trl")
"""Packages that a worker must have in the driver's version: another one may give other bits under the same fingerprint."""


@dataclass(frozen=True)
class Cell:
    """A piece of an experiment. `index` counts in the experiment's runs, references or audits."""

    experiment: Experiment
    kind: str
    index: int
    label: str
    makes: tuple[Step, ...]
    needs: frozenset[str]
    """Fingerprints of what must be there before it begins."""
    part: int = 0
    """Which shard, for a `shard`."""
    instead: tuple[Step, ...] = ()
    """What makes it needless where it is there: the dataset of a shard."""

    def done(self, store: Store) -> bool:
        """Whether the store holds all that it makes, or what makes it needless."""
        return any(steps and all(store.has(s.kind, s.spec, s.parents, s.label) for s in steps)
                   for steps in (self.instead, self.makes))


@dataclass
class Cells:
    """The cells of some experiments, those before first that others need. What two of them share is one cell's."""

    experiments: Sequence[Experiment]
    shard: int = 0
    """Rows of a shard; 0 has every dataset written by one worker."""
    maker: dict[str, int] = field(default_factory=dict)
    """The place in `all` of the cell that makes a fingerprint."""

    @cached_property
    def all(self) -> list[Cell]:
        """Every cell; each comes after those that it waits for."""
        out: list[Cell] = []
        for experiment in self.experiments:
            runs, gate = experiment.runs(), set[str]()
            for i, (arm, _, seed, _, steps) in enumerate(experiment.references()):
                self._add(out, experiment, "reference", i, f"{arm} seed {seed}", steps)
                gate |= {step.fingerprint for step in steps if seed == experiment.file.seeds[0]}
            for i, run in enumerate(runs):
                who, parts = f"{run.arm.trait_name or 'no trait'} seed {run.seed}", run.shards(self.shard)
                # a probe that cannot ask this base about these traits says so before anything is taught
                if parts:
                    self._add(out, experiment, "teacher", i, f"teacher of {who}", (run.teacher,), frozenset(gate))
                for number, (step, _) in enumerate(parts):
                    self._add(out, experiment, "shard", i, f"rows of {who}, {number + 1} of {len(parts)}", (step,),
                              part=number, instead=(run.raw,))
                written = frozenset(step.fingerprint for step, _ in parts)
                self._add(out, experiment, "rows", i, f"rows of {who}", (run.teacher, run.raw, run.rows), written | gate)
            # students without a mitigation first: some mitigations are granted them
            for i in sorted(range(len(runs)), key=lambda i: runs[i].arm.stage != ""):
                run, own = runs[i], [s for s in (runs[i].changed, runs[i].student, runs[i].repaired) if s]
                name = f"{run.arm.name} {run.arm.trait_name or 'no trait'} seed {run.seed}"
                self._add(out, experiment, "run", i, name, (*own, *run.measures), _also(experiment, run))
            for i, (trait, step) in enumerate(experiment.audits().items()):
                self._add(out, experiment, "audit", i, f"classifier on {trait}", (step,))
        return out

    def before(self, cell: Cell) -> set[int]:
        """The places in `all` of the cells that a cell waits for."""
        return {self.maker[mark] for mark in cell.needs if mark in self.maker}

    def _add(self, out: list[Cell], experiment: Experiment, kind: str, index: int, label: str, steps: Sequence[Step],
             also: frozenset[str] = frozenset(), **more: Any) -> None:
        own = tuple(step for step in steps if step.fingerprint not in self.maker)
        if not own:
            return
        marks = {step.fingerprint for step in own}
        needs = {mark for step in steps for mark in (step.fingerprint, *step.parents)} - marks
        self.maker |= dict.fromkeys(marks, len(out))
        out.append(Cell(experiment, kind, index, label, own, frozenset(needs) | also, **more))


def _also(experiment: Experiment, run: Run) -> frozenset[str]:
    """What a mitigated run may ask for besides its parents: the plain student of its seed (under the token `train`)."""
    plain = experiment.holdings(run.arm, run.seed).treated.student if run.arm.change else None
    return frozenset({plain.fingerprint} if plain else ())


def spread(experiments: Sequence[Experiment], lab: Lab, executor: Any) -> None:
    """Do every missing cell on the pool that an executor plug-in opens; none is opened when nothing is missing.

    Raises the first cell's own error when some failed, after all others are done; WorkerLost when a cell's workers died
    `TRIES` times; BadSpec when a worker is of other versions; and what the executor raises."""
    size = executor.shard_rows if hasattr(executor, "shard_rows") else SHARD
    work = Spread(Cells(experiments, size), lab, getattr(executor, "lost", ()))
    if not work.todo:
        return
    _running.cache_clear()  # where cells run in this process: the store may have changed since the last time
    pool = executor.open()
    try:
        work.on(pool)
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()


def patient(work: Callable[[], T], say: Callable[[str], None]) -> T:
    """Do some work of this process; while another driver of the same store is at it, wait for what that makes."""
    while True:
        try:
            return work()
        except StoreBusy as busy:
            say(str(busy))
            time.sleep(2)


@dataclass
class Spread:
    """One go through cells. `lost` are the pool's errors that mean a worker died at no fault of the cell."""

    cells: Cells
    lab: Lab
    lost: tuple[type[BaseException], ...] = ()
    failed: dict[int, UndersongError] = field(default_factory=dict)
    ended: int = 0

    @cached_property
    def todo(self) -> list[int]:
        """The places in `cells.all` of those that are missing in the store."""
        return [i for i, cell in enumerate(self.cells.all) if not cell.done(self.lab.store)]

    def on(self, pool: Executor) -> None:
        """Hand over, wait, hand over what became possible, until nothing is left."""
        missing = set(self.todo)
        self.left = {i: self.cells.before(self.cells.all[i]) & missing for i in self.todo}
        self.followers: dict[int, list[int]] = {i: [] for i in self.todo}
        for i, before in self.left.items():
            for j in before:
                self.followers[j].append(i)
        self.tries: dict[int, int] = dict.fromkeys(self.todo, 0)
        self.lab.progress(f"{len(self.todo)} of {len(self.cells.all)} cells to do")
        with _signed(self.lab.store) as self.sign:
            self._on(pool)
        if self.failed:
            if len(self.failed) > 1:
                self.lab.progress(f"{len(self.failed)} of {len(self.todo)} cells failed; the first of their errors:")
            raise next(iter(self.failed.values()))

    def _on(self, pool: Executor) -> None:
        ready = deque(i for i in self.todo if not self.left[i])
        paused, flying = dict[int, float](), dict[Future[dict[str, Any]], int]()
        try:
            while ready or flying or paused:
                due = [i for i, until in paused.items() if until <= time.monotonic()]
                ready.extend(due)
                for i in due:
                    del paused[i]
                while ready and len(flying) < FLYING:
                    i = ready.popleft()
                    flying[self._begin(i, pool)] = i
                if not flying:
                    time.sleep(0.1)
                    continue
                over, _ = wait(flying, timeout=0.5 if paused else None, return_when=FIRST_COMPLETED)
                for future in over:
                    i = flying.pop(future)
                    again = self._end(i, future)
                    if again is not None:
                        paused[i] = time.monotonic() + again
                    ready.extend(self._free(i) if again is None else ())
        finally:
            for future in flying:
                future.cancel()

    def _begin(self, i: int, pool: Executor) -> Future[dict[str, Any]]:
        cell = self.cells.all[i]
        return pool.submit(perform, cell.experiment.text, self.lab.store.name, cell.kind, cell.index, os.getcwd(),
                           versions(), self.sign, cell.part, self.cells.shard)

    def _end(self, i: int, future: Future[dict[str, Any]]) -> float | None:
        """What became of a cell: None when it is over, else the seconds until it is begun again."""
        label, self.tries[i] = self.cells.all[i].label, self.tries[i] + 1
        pause = min(LONGEST_PAUSE, 2.0 ** (self.tries[i] - 1))
        try:
            told = future.result()
        except self.lost as error:
            if self.tries[i] >= TRIES:
                self.failed[i] = WorkerLost(
                    f"The worker of the cell {label!r} died {TRIES} times ({_short(error)}). Give cells more memory, or "
                    "look at that machine; then run the same command again: finished work is kept.")
                return None
            self.lab.progress(f"the worker of {label} died ({type(error).__name__}); again in {pause:.0f} s")
            return pause
        except BrokenExecutor as error:  # a pool that does not outlive its workers
            raise WorkerLost(f"A worker process died in the cell {label!r} ({_short(error)}), most often for want of "
                             "memory. Use fewer workers, and run the same command again: finished work is kept.") from None
        if told["busy"]:
            self.lab.progress(f"{label}: another process is at it; looking again in {pause:.0f} s")
            return pause
        if told["error"] is not None:
            self.failed[i] = told["error"]
            self.lab.progress(f"failed: {label}")
            return None
        self.ended += 1
        self.lab.progress(f"{self.ended}/{len(self.todo)} cells: {label}, {told['seconds']:.1f} s on {told['where']}")
        return None

    def _free(self, i: int) -> Iterator[int]:
        """The cells that may begin now. Those that wait for a failed one never do: what failed is told instead."""
        if i in self.failed:
            return
        for j in self.followers[i]:
            self.left[j].discard(i)
            if not self.left[j]:
                yield j


def perform(
    said: str, store: str, kind: str, index: int, folder: str, asked: Mapping[str, str], sign: str = "", part: int = 0,
    shard: int = 0,
) -> dict[str, Any]:
    """Do one cell where this process runs, and tell how it went: `error` (an UndersongError or None), `busy`, `seconds`,
    `where`. The function that an executor is given: everything that it takes and returns is small."""
    start, out = time.monotonic(), dict[str, Any](error=None, busy=False, where=f"{os.uname().nodename}:{os.getpid()}")
    try:
        _same(asked)
        if sign and not os.path.exists(sign):  # work done in a folder of the same name would be lost
            raise BadSpec(f"The worker on {os.uname().nodename} does not see the driver's store {store}. Use a folder that "
                          "all machines share, or --store s3://BUCKET/PREFIX.")
        elsewhere = os.path.isdir(folder) and os.getcwd() != folder  # the file may name folders of models
        with contextlib.chdir(folder) if elsewhere else contextlib.nullcontext():
            running = _running(said, store, os.getpid(), shard)
            runs, experiment = running.experiment.runs(), running.experiment
            if kind == "reference":
                _, _, seed, begin, steps = list(experiment.references())[index]
                running.reference(begin, seed, steps)
            elif kind == "teacher":
                running.teacher(runs[index])
            elif kind == "shard":
                running.write(runs[index], part)
            elif kind == "rows":
                running.rows(runs[index])
            elif kind == "run":
                running.measure(runs[index])
            else:
                running.audit(list(experiment.audits().values())[index])
    except StoreBusy:
        out["busy"] = True
    except UndersongError as error:
        out["error"] = error
    return out | {"seconds": time.monotonic() - start}


@contextlib.contextmanager
def _signed(store: Store) -> Iterator[str]:
    """The path of a file in a store's folder by which workers know that they see the same one; "" for an address."""
    if "://" in store.name:
        yield ""
        return
    sign = Path(store.name) / f".driver-{secrets.token_hex(8)}"
    with files.room(sign):
        sign.parent.mkdir(parents=True, exist_ok=True)
        sign.touch()
    try:
        yield str(sign)
    finally:
        sign.unlink(missing_ok=True)


def versions() -> dict[str, str]:
    """What must be the same on a worker for the same bits."""
    found = environment()
    return {"undersong": found["undersong"], "python": ".".join(map(str, sys.version_info[:2])),
            **{name: found["packages"].get(name, "none") for name in SAME}}


def _same(asked: Mapping[str, str]) -> None:
    own = versions()
    other = [f"{name} {own[name]} instead of {asked[name]}" for name in asked if own.get(name) != asked[name]]
    if other:
        raise BadSpec(f"The worker on {os.uname().nodename} has {', '.join(other)}. Install the driver's versions there "
                      "(pip install -c constraints.txt), then run the same command again.")


@lru_cache(maxsize=4)
def _running(said: str, store: str, process: int, shard: int) -> Running:
    """What a process knows of an experiment: cells that follow one another share rows, and need not read them again."""
    return Running(Experiment(File.model_validate_json(said)), _lab(store, process), shard)


@cache
def _lab(store: str, process: int) -> Lab:
    """One Lab to a process: a base that is loaded stays loaded."""
    return lab_for(open_store(store), "")


def _short(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
