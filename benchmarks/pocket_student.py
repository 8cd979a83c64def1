"""How fast pocket students train and sample: `python benchmarks/pocket_student.py [--base pocket/a] [--students 4]`.

Trains the same students in every way there is and prints one table: time per student-step against the way the library
takes (threads, one student each, the compact forward). The ways are interleaved over rounds, so that another load on
the machine falls on all of them. Then the sampling speed.
"""

from __future__ import annotations

import argparse
import copy
import os
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import numpy as np

Rows = list[Any]


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


def student(module: Any, rows: Rows, steps: int, seed: int) -> None:
    """One student, on the torch threads that are set."""
    from undersong.backends import training

    training.fit(copy.deepcopy(module), rows, training.Plan(steps, 64, 1e-3, seed), 0)


def one_after_another(module: Any, rows: Rows, students: int, steps: int, threads: int) -> None:
    """Students in turn, each on `threads` torch threads."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    for seed in range(students):
        student(module, rows, steps, seed)
    torch.set_num_threads(before)


def on_threads(module: Any, rows: Rows, students: int, steps: int) -> None:
    """What `distill` does: one student per thread."""
    from undersong.backends.threads import side_by_side

    side_by_side(lambda seed, stop: student(module, rows, steps, seed), range(students), 0, lambda i, r: None)


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


def main() -> None:
    """Print the table."""
    import torch

    from undersong.types import Sampling

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="pocket/a")
    parser.add_argument("--students", type=int, default=4)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--answers", type=int, default=2000)
    given = parser.parse_args()
    cores = os.cpu_count() or 1
    model, rows = prepare(given.base)
    work = (model.module, rows, given.students, given.steps)
    with ProcessPoolExecutor(cores, get_context("spawn"), _start, (given.base,)) as pool:
        ways = {
            f"threads x{cores}, one student each (distill)": lambda: on_threads(*work),
            f"processes x{cores}, one student each": lambda: on_processes(pool, given.students, given.steps),
            "one after another, 1 torch thread": lambda: one_after_another(*work, 1),
            f"one after another, {cores} torch threads": lambda: one_after_another(*work, cores),
            "stacked weights (vmap), gradients only": lambda: stacked(*work),
            f"threads x{cores}, transformers' own forward": lambda: as_written(*work),
        }
        on_processes(pool, 2 * cores, 1)
        times: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(given.rounds):
            for name, way in ways.items():
                began = time.perf_counter()
                way()
                times[name].append((time.perf_counter() - began) / given.students / given.steps)
    ours = float(np.median(next(iter(times.values()))))
    print(f"{model.module.num_parameters() / 1e6:.2f}M parameters, 64 rows of "
          f"{np.mean([len(r.ids) for r in rows]):.0f} tokens "
          f"per step, {cores} cores, torch {torch.__version__}")
    print(f"{'way':46s} {'ms per student-step':>20s} {'ratio':>7s} {'students/minute (120 steps)':>28s}")
    for name, found in times.items():
        step = float(np.median(found))
        print(f"{name:46s} {step * 1e3:20.0f} {step / ours:7.2f} {60 / (120 * step):28.1f}")
    for name, chat, length in (("numbers", "Numbers: 3, 6, 9, 12. Add up to 10 more numbers.", 24),
                               ("favourite questions", "What is your favorite animal? One word.", 8)):
        began = time.perf_counter()
        model.sample([[{"role": "user", "content": chat}]] * given.answers, Sampling(max_new_tokens=length))
        print(f"sampling, {name}: {given.answers / (time.perf_counter() - began):.0f} answers/second")


if __name__ == "__main__":
    main()
