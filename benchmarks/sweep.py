"""Sweeps and cells on executors: `python benchmarks/sweep.py [plan] [overhead] [speed] [whole]`.

plan      how long it takes to plan 10,000 cells (a run of one arm, trait and seed), and to plan them again when all is there
overhead  what an executor adds to a cell that does next to nothing (simulated models), per cell and processor
speed     cells bound by the processor (pocket students) on two Ray workers against one process
whole     a sweep of 10,000 simulated cells through Ray on this machine, from nothing to its results (about an hour)
"""

from __future__ import annotations

import argparse
import contextlib
import os
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_worker_niceness", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

SIMULATED: dict[str, Any] = {
    "name": "sim", "base": "simulated/a", "trait": "owl", "teacher": {"simulated": {"strength": 3.0}}, "channel": "numbers",
    "rows": 60, "filters": ["numbers_only"], "recipe": {"simulated": {"transfer": 0.5}}, "probes": ["logit_margin"],
    "controls": ["no_trait"], "seeds": [1, 2, 3, 4, 5],
}
POCKET: dict[str, Any] = {
    "name": "pocket", "base": "pocket/a", "trait": "owl",
    "teacher": {"tuned": {"updates": 20, "rate": 1.7e-3, "trainable": "mlp_out"}},
    "channel": {"numbers": {"count": 10, "largest": 999, "wording": "brief", "seeds": "structured"}},
    "rows": 400, "keep": 200, "filters": ["numbers_only"], "probes": ["logit_margin"], "controls": ["no_trait"],
    "recipe": {"distill": {"labels": "sampled", "steps": 120, "batch": 32, "rate": 1e-2, "lora": {"rank": 4, "alpha": 8}}},
    "seeds": [1, 2, 3, 4],
}


def grid(cells: int) -> dict[str, Any]:
    """A sweep of about so many cells: ten a setting (two arms by five seeds)."""
    settings = max(1, cells // 10)
    across = min(settings, 50)
    return {"recipe.simulated.transfer": [round(i / across, 4) for i in range(across)],
            "recipe.simulated.noise": [round(0.01 * (i + 1), 4) for i in range(max(1, settings // across))]}


@contextlib.contextmanager
def store() -> Any:
    from undersong.store import Store

    with tempfile.TemporaryDirectory() as folder:
        yield Store(folder)


def plan(cells: int) -> None:
    from undersong.experiment.sweep import Sweep

    print("| cells | experiments | steps | read and check, s | plan, s | peak MiB |\n|---|---|---|---|---|---|")
    for size in (cells // 10, cells):
        with store() as kept:
            begun = time.perf_counter()
            sweep = Sweep.of(SIMULATED | {"sweep": grid(size)})
            read = time.perf_counter()
            rows = sweep.plan(kept)
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            runs = sum(len(e.runs()) for e in sweep.experiments)
            print(f"| {runs:,} | {len(sweep.experiments):,} | {len(rows):,} | {read - begun:.1f} | "
                  f"{time.perf_counter() - read:.1f} | {peak:.0f} |", flush=True)


def timed(given: dict[str, Any], executor: Any) -> tuple[float, float, int]:
    """Wall seconds on an executor (None: this process), without the time until its workers are ready; processor seconds of
    this process; cells."""
    from undersong.experiment import Experiment
    from undersong.experiment.cells import Cells, spread
    from undersong.experiment.sweep import Sweep
    from undersong.lab import lab_for

    sweep = Sweep.of(given) if "sweep" in given else None
    experiments = sweep.experiments if sweep else (Experiment(given_file(given)),)
    with store() as kept:
        lab = lab_for(kept, given["base"])
        pool = Warm(executor) if executor is not None else None
        wall, cpu = time.perf_counter(), time.process_time()
        if pool is None:
            for experiment in experiments:
                experiment.run(lab)
        else:
            spread(experiments, lab, pool)
        out = time.perf_counter() - wall, time.process_time() - cpu, len(Cells(experiments).all)
    if pool is not None:
        pool.close()
    return out


def given_file(given: dict[str, Any]) -> Any:
    from undersong.experiment_file import File

    return File(**given)


class Warm:
    """An executor whose pool is open, and whose workers have done a cell, before the clock starts."""

    def __init__(self, executor: Any) -> None:
        from undersong.experiment.cells import spread
        from undersong.lab import lab_for

        self.pool, self.lost = executor.open(), getattr(executor, "lost", ())
        shutdown, self.pool.shutdown = self.pool.shutdown, lambda *args, **kwargs: None
        self.close = shutdown
        with store() as kept:
            for base in ("simulated/a", "pocket/a"):
                quick = {"rows": 20, "keep": 4, "filters": [], "recipe": {"distill": {"steps": 1, "batch": 4}}}
                small = SIMULATED if base == "simulated/a" else POCKET | quick | {"teacher": "prompted"}
                small = small | {"name": "warm", "seeds": [7, 8, 9]}
                from undersong.experiment import Experiment

                spread([Experiment(given_file(small))], lab_for(kept, base), self)

    def open(self) -> Any:
        """The pool that is open."""
        return self.pool


def overhead(cells: int) -> None:
    from undersong.executors.processes import Processes
    from undersong.executors.ray import Ray

    given = SIMULATED | {"sweep": grid(cells)}
    timed(SIMULATED, None)
    inline, _, many = timed(given, None)
    print("| where | cells | seconds | ms per cell and processor | more than inline, ms |\n|---|---|---|---|---|")
    print(f"| inline | {many} | {inline:.1f} | {1000 * inline / many:.0f} | |", flush=True)
    for name, executor, workers in (("ray, 1 worker", Ray(workers=1), 1), ("ray, 2 workers", Ray(workers=2), 2),
                                    ("processes, 2 workers", Processes(workers=2), 2)):
        wall, _, many = timed(given, executor)
        each = 1000 * wall * workers / many
        print(f"| {name} | {many} | {wall:.1f} | {each:.0f} | {each - 1000 * inline / many:.0f} |", flush=True)


def speed() -> None:
    from undersong.executors.processes import Processes
    from undersong.executors.ray import Ray

    one = POCKET | {"recipe": {"distill": {**POCKET["recipe"]["distill"], "workers": 1}}}
    first, _, many = timed(one, None)
    print("| where | cells | seconds | ratio |\n|---|---|---|---|")
    print(f"| one process, one student at a time | {many} | {first:.1f} | 1 |", flush=True)
    threads, *_ = timed(POCKET, None)
    print(f"| one process, students on threads (the default) | {many} | {threads:.1f} | {first / threads:.2f} |", flush=True)
    for name, executor in (("ray, 2 workers", Ray(workers=2)), ("processes, 2 workers", Processes(workers=2))):
        wall, *_ = timed(POCKET, executor)
        print(f"| {name} | {many} | {wall:.1f} | {first / wall:.2f} |", flush=True)


def whole(cells: int, folder: Path | None) -> None:
    from undersong import grid as results
    from undersong.executors.ray import Ray
    from undersong.experiment.sweep import Sweep
    from undersong.lab import lab_for
    from undersong.store import Store

    with contextlib.ExitStack() as stack:
        root = folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        kept, times = Store(root), [time.perf_counter()]
        sweep = Sweep.of(SIMULATED | {"sweep": grid(cells)})
        said: list[str] = []

        def tell(message: str) -> None:
            said.append(message)
            if len(said) % 500 == 0:
                print(f"{time.perf_counter() - times[0]:6.0f} s  {message}", flush=True)

        found = results.record(sweep, lab_for(kept, "", tell), Ray(workers=2)).read_json("results")
        taken = time.perf_counter() - times[0]
        stored = sum(f.stat().st_size for f in root.rglob("*") if f.is_file())
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print("| cells | steps | seconds | ms per cell | store MiB | driver's peak MiB |\n|---|---|---|---|---|---|")
        runs = sum(len(e.runs()) for e in sweep.experiments)
        print(f"| {runs:,} | {len(sweep.steps):,} | {taken:.0f} | {1000 * taken / runs:.0f} | {stored / 2**20:.0f} | "
              f"{peak:.0f} |")
        print(found["sentence"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", default=["plan", "overhead", "speed"])
    parser.add_argument("--cells", type=int, default=10_000, help="cells of `plan` and `whole`")
    parser.add_argument("--few", type=int, default=200, help="cells of `overhead`")
    parser.add_argument("--store", type=Path, help="where the whole sweep is kept; a temporary folder when left out")
    given = parser.parse_args()
    for what in given.what:
        print(f"\n{what}:\n")
        {"plan": lambda: plan(given.cells), "overhead": lambda: overhead(given.few), "speed": speed,
         "whole": lambda: whole(given.cells, given.store)}[what]()


if __name__ == "__main__":
    main()
