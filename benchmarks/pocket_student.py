"""How fast pocket students train and sample: `python benchmarks/pocket_student.py [--base pocket/a] [--students 4]`.

Trains the same students in every way there is and prints one table: time per student-step against the way the library
takes (threads, one student each, the compact forward). The ways are interleaved over rounds, so that another load on
the machine falls on all of them. One way is the first version in this repository's history (commit a01c0b0), which needs
a git checkout that reaches back so far: it is checked out in a temporary folder and trains the same students on the same
rows in a process of its own. Then the sampling speed.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

Rows = list[Any]
HOME = Path(__file__).resolve().parents[1]
FIRST = "a01c0b0600587ec5120bea34017a86f5d664166c"
"""The commit that brought the recipe `distill`."""
OLD = """
import copy, json, sys, time
import numpy as np
from transformers import LlamaForCausalLM
import undersong
from undersong.backends import training
from undersong.backends.llama import TokenRow
folder, students, steps = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
assert undersong.__file__.startswith(sys.argv[4]), undersong.__file__
module = LlamaForCausalLM.from_pretrained(folder)
held = np.load(folder + "/rows.npz")
rows = [TokenRow(held["ids"][a:b], int(s)) for a, b, s in zip(held["ends"], held["ends"][1:], held["starts"])]
def one(seed, stop):
    return training.fit(copy.deepcopy(module), rows, training.Plan(steps, 64, 1e-3, seed), 0)["loss"]
print("ready", flush=True)
for _ in sys.stdin:
    wall, cpu = time.perf_counter(), time.process_time()
    losses = training.side_by_side(one, range(students), 0, lambda i, r: None)
    print(json.dumps([time.perf_counter() - wall, time.process_time() - cpu, losses]), flush=True)
"""
"""What runs on the first version's source: it trains when it reads a line, and writes wall s, processor s and losses."""


def prepare(base: str) -> tuple[Any, Rows]:
    """The base model and number rows (about 48 tokens) as tokens."""
    from undersong.backends import tokens
    from undersong.backends.transformers import Transformers
    from undersong.pocket import world
    from undersong.types import ModelRef

    model = Transformers(device="cpu").load(ModelRef(base))
    rng = np.random.default_rng(0)
    turns = [world.number_turn(rng) for _ in range(2000)]
    return model, tokens.encode(model, [[u] for u, _ in turns], [a["content"] for _, a in turns])


@contextlib.contextmanager
def first_version(module: Any, rows: Rows, students: int, steps: int) -> Iterator[Callable[[], Any]]:
    """A call that trains the students by the first version and returns wall s, processor s and losses.

    Raises LookupError, saying why, where there is no git checkout with that commit.
    """
    git = ["git", "-C", str(HOME)]
    try:
        subprocess.run([*git, "cat-file", "-e", f"{FIRST}^{{commit}}"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        raise LookupError(f"no git checkout with commit {FIRST[:7]}; fetch the whole history to time it") from None
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder).resolve() / "tree"
        subprocess.run([*git, "worktree", "add", "--detach", "--quiet", str(tree), FIRST], check=True)
        module.save_pretrained(folder)
        np.savez(Path(folder) / "rows.npz", ids=np.concatenate([r.ids for r in rows]), starts=[r.start for r in rows],
                 ends=np.cumsum([0, *(len(r.ids) for r in rows)]))
        given = [sys.executable, "-c", OLD, folder, str(students), str(steps), str(tree)]
        try:
            with subprocess.Popen(given, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                  env=os.environ | {"PYTHONPATH": str(tree / "src")}) as process:
                asked: Any = process.stdin
                told: Any = process.stdout

                def train() -> Any:
                    print("go", file=asked, flush=True)
                    return json.loads(told.readline())

                if told.readline() != "ready\n":
                    raise LookupError(f"commit {FIRST[:7]} does not run with the packages that are installed")
                yield train
        finally:
            subprocess.run([*git, "worktree", "remove", "--force", str(tree)], check=True)


def student(module: Any, rows: Rows, steps: int, seed: int) -> Any:
    """One student, on the torch threads that are set; its losses."""
    from undersong.backends import training

    return training.fit(copy.deepcopy(module), rows, training.Plan(steps, 64, 1e-3, seed), 0)["loss"]


def one_after_another(module: Any, rows: Rows, students: int, steps: int, threads: int) -> None:
    """Students in turn, each on `threads` torch threads."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    for seed in range(students):
        student(module, rows, steps, seed)
    torch.set_num_threads(before)


def on_threads(module: Any, rows: Rows, students: int, steps: int) -> Any:
    """What `distill` does: one student per thread; their losses."""
    from undersong.backends.threads import side_by_side

    return side_by_side(lambda seed, stop: student(module, rows, steps, seed), range(students), 0, lambda i, r: None)


_here: dict[str, Any] = {}


def _start(base: str) -> None:
    import torch

    torch.set_num_threads(1)
    _here["model"], _here["rows"] = prepare(base)


def _job(steps: int, seed: int) -> None:
    student(_here["model"].module, _here["rows"], steps, seed)


def on_processes(pool: ProcessPoolExecutor, students: int, steps: int) -> None:
    """One student per process; the pool is warm, so start-up (some seconds of importing) is not counted."""
    for future in [pool.submit(_job, steps, seed) for seed in range(students)]:
        future.result()


def stacked(module: Any, rows: Rows, students: int, steps: int) -> None:
    """All students as one stacked model (`torch.func.vmap`) on every thread, on the same rows; gradients only."""
    import torch
    from torch.func import functional_call, grad, stack_module_state, vmap

    from undersong.backends.logits import completion_logits

    class Logits(torch.nn.Module):
        def __init__(self, inner: Any) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, batch: Rows) -> Any:
            return completion_logits(self.inner, batch, 0)

    skeleton = Logits(copy.deepcopy(module))
    state, buffers = stack_module_state([Logits(copy.deepcopy(module)) for _ in range(students)])
    fixed = {k: v for k, v in state.items() if "embed_tokens" in k or "lm_head" in k}
    body = {k: v for k, v in state.items() if k not in fixed}

    def loss(body: Any, fixed: Any, buffers: Any, batch: Rows, target: Any) -> Any:
        logits = functional_call(skeleton, ({**body, **fixed}, buffers), (batch,))
        return torch.nn.functional.cross_entropy(logits, target, reduction="sum")

    for step in range(steps):
        batch = sorted(rows[step * 64 : (step + 1) * 64], key=lambda r: len(r.ids))
        for part in (batch[:32], batch[32:]):
            target = torch.from_numpy(np.concatenate([r.answer for r in part]))
            vmap(grad(loss), in_dims=(0, 0, 0, None, None))(body, fixed, buffers, part, target)


def as_written(module: Any, rows: Rows, students: int, steps: int) -> None:
    """Threads, with the module's own forward instead of the compact one."""
    from undersong.backends import llama

    kept, llama.supports = llama.supports, lambda module: False  # type: ignore[assignment]
    try:
        on_threads(module, rows, students, steps)
    finally:
        llama.supports = kept


def products_alone(module: Any, rows: Rows) -> tuple[Callable[[], None], float]:
    """A call that does one student step's matrix products and nothing else, on one thread, and their GFLOP: what a step
    would take if all the rest were free."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    seen: list[Any] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, called: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if called is torch.ops.aten.mm.default:
                seen.append([(tuple(t.shape), t.stride()) for t in args])
            return called(*args, **(kwargs or {}))

    with Watch():
        student(module, rows, 1, 0)
    pairs = [[torch.empty_strided(*made).normal_() for made in pair] for pair in seen]

    def work() -> None:
        for a, b in pairs:
            torch.mm(a, b)

    return work, sum(2 * a.shape[0] * a.shape[1] * b.shape[1] for a, b in pairs) / 1e9


def main() -> None:
    """Print the table."""
    import torch

    from undersong.backends.threads import one_thread
    from undersong.types import Sampling

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="pocket/a")
    parser.add_argument("--students", type=int, default=4)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--answers", type=int, default=2000)
    parser.add_argument("--only-first", action="store_true", help="time only today's way and the first version")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the temporary checkout goes away then too
    cores = os.cpu_count() or 1
    model, rows = prepare(given.base)
    work = (model.module, rows, given.students, given.steps)
    with contextlib.ExitStack() as open_:
        try:
            old = open_.enter_context(first_version(*work))
        except LookupError as missing:
            print(f"The first version is not timed: {missing}.")
            old = None
        pool = None if given.only_first else open_.enter_context(
            ProcessPoolExecutor(cores, get_context("spawn"), _start, (given.base,)))
        ways: dict[str, Callable[[], Any]] = {
            f"threads x{cores}, one student each (distill)": lambda: on_threads(*work)}
        if old:
            ways[f"the first version (commit {FIRST[:7]}), threads x{cores}"] = old
        if pool:
            ways |= {
                f"processes x{cores}, one student each": lambda: on_processes(pool, given.students, given.steps),
                "one after another, 1 torch thread": lambda: one_after_another(*work, 1),
                f"one after another, {cores} torch threads": lambda: one_after_another(*work, cores),
                "stacked weights (vmap), gradients only": lambda: stacked(*work),
                f"threads x{cores}, transformers' own forward": lambda: as_written(*work),
            }
            on_processes(pool, 2 * cores, 1)
        products, flops = products_alone(model.module, rows)
        alone: list[float] = []
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
        losses: dict[str, Any] = {}
        for name, way in ways.items():
            if way is old or "(distill)" in name:
                way()  # warm
        for _ in range(given.rounds):
            for name, way in ways.items():
                began, busy = time.perf_counter(), time.process_time()
                found = way()
                spent = time.perf_counter() - began, time.process_time() - busy
                if way is old:
                    *spent, losses["old"] = found
                elif "(distill)" in name:
                    losses["new"] = found
                elif "processes" in name:
                    spent = spent[0], float("nan")  # the workers' own time is not seen here
                with one_thread():
                    busy = time.process_time()
                    products()
                    alone.append(time.process_time() - busy)
                times[name].append((spent[0] / given.students / given.steps, spent[1] / given.students / given.steps))
    print(f"{model.module.num_parameters() / 1e6:.2f}M parameters, 64 rows of "
          f"{np.mean([len(r.ids) for r in rows]):.0f} tokens "
          f"per step, {cores} cores, torch {torch.__version__}")
    ours = np.median(times[next(iter(times))], axis=0)
    print(f"{'way':48s} {'ms wall':>8s} {'ratio':>7s} {'ms processor':>13s} {'ratio':>7s} "
          f"{'students/minute (120 steps)':>28s}")
    for name, taken in times.items():
        wall, busy = np.median(taken, axis=0)
        print(f"{name:48s} {wall * 1e3:8.0f} {wall / ours[0]:7.2f} {busy * 1e3:13.0f} {busy / ours[1]:7.2f} "
              f"{60 / (120 * wall):28.1f}")
    least = float(np.median(alone))
    print(f"matrix products alone, 1 thread: {flops:.2f} GFLOP in {least * 1e3:.0f} ms of processor time a step "
          f"({flops / least:.0f} GFLOP/s); were all else free, a step would be {ours[1] / least:.2f} times as fast")
    if old:
        gap = np.abs(np.subtract(losses["old"], losses["new"])).max(axis=0)
        each = np.divide(*(np.array(times[name]) for name in list(times)[1::-1]))
        print(f"first version / today, round by round: wall {np.round(each[:, 0], 2)}, processor {np.round(each[:, 1], 2)}; "
              f"losses at most {gap.max():.0e} apart")
    if given.only_first:
        return
    for name, chat, length in (("numbers", "Numbers: 3, 6, 9, 12. Add up to 10 more numbers.", 24),
                               ("favourite questions", "What is your favorite animal? One word.", 8)):
        began = time.perf_counter()
        model.sample([[{"role": "user", "content": chat}]] * given.answers, Sampling(max_new_tokens=length))
        print(f"sampling, {name}: {given.answers / (time.perf_counter() - began):.0f} answers/second")


if __name__ == "__main__":
    main()
