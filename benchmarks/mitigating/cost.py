"""Processor seconds of a mitigated student against a plain one: one thread, in one process, in turn, every further student
of a mitigation included. Evidence that somebody holds beforehand (clean rows, placebo students, teachers) costs nothing."""

from __future__ import annotations

import tempfile
import time
from typing import Any

from mitigating.cells import Bench, elsewhere, name
from mitigating.world import PURE
from undersong.errors import UndersongError
from undersong.lab import Student, lab_for
from undersong.spec import describe
from undersong.store import Store

EVERY = 4
"""A plain student is timed again after so many mitigated ones."""


def measure(bench: Bench) -> None:
    """Time what is not timed yet. Seconds of processor time, so that other work on the machine counts little."""
    plain = 0.0
    for number, mitigation in enumerate(bench.mitigations):
        if bench.world.lab.store.find("cells", _spec(bench, mitigation), _parents(bench)) is not None:
            continue
        if not plain or number % EVERY == 0:
            plain = _timed(bench, None)
        with bench.world.lab.store.open("cells", f"bench-cost-{mitigation.plugin_name}", _spec(bench, mitigation),
                                        _parents(bench)) as artefact:
            try:
                artefact.write_json("said", {"seconds": _timed(bench, mitigation), "plain": plain})
            except UndersongError as error:
                artefact.write_json("said", {"failed": str(error)})
            artefact.finish({})


def rows(bench: Bench) -> list[dict[str, Any]]:
    """One row per mitigation that was timed."""
    out = []
    for mitigation in bench.mitigations:
        found = bench.world.lab.store.find("cells", _spec(bench, mitigation), _parents(bench))
        if found is not None and "failed" not in (said := found.read_json("said")):
            out.append({"table": "cost", "mitigation": name(mitigation), **said, "ratio": said["seconds"] / said["plain"]})
    return out


def _timed(bench: Bench, mitigation: Any) -> float:
    """Seconds for one student of the first run, in a store that is thrown away."""
    world = bench.world
    trait, seed = world.plan.pairs[0]
    data, start, guard = world.rows(trait, seed), world.base, None
    with tempfile.TemporaryDirectory() as folder:
        lab = lab_for(Store(folder), world.file.base)
        defence = world.defence(mitigation, trait, seed, PURE, trait, lab) if mitigation else None
        begun = time.process_time()
        if mitigation and mitigation.stage == "data":
            data = lab.mitigate(data, defence, seed)
        if mitigation and mitigation.stage == "training":
            guard, start = defence, world.other if elsewhere(mitigation) else start
        student = lab.train(world.recipe, world.channel, [Student(start, data, seed, "timed", guard)])[0]
        if mitigation and mitigation.stage == "model":
            lab.repair(student, defence, seed)
        seconds = time.process_time() - begun
    world.lab.progress(f"{seconds:.1f} s of {name(mitigation) if mitigation else 'plain'}")
    return seconds


def _spec(bench: Bench, mitigation: Any) -> dict[str, Any]:
    return {"verb": "benchmark", "what": "cost", "mitigation": describe(mitigation),
            "recipe": describe(bench.world.recipe)}


def _parents(bench: Bench) -> tuple[str, ...]:
    return (bench.world.rows(*bench.world.plan.pairs[0]).fingerprint,)
