"""Small models side by side, one torch thread each; large models one after another on every thread."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from threading import Event
from typing import Any, TypeVar

SMALL = 20_000_000
"""Models below this many parameters run on one thread each, several side by side; larger ones take every thread."""
T = TypeVar("T")
R = TypeVar("R")


def small(module: Any) -> bool:
    """Whether a module runs on one CPU thread, beside others."""
    return bool(module.num_parameters() <= SMALL and module.device.type == "cpu")


def side_by_side(
    work: Callable[[T, Event], R], items: Sequence[T], workers: int, done: Callable[[int, R], None]
) -> list[R]:
    """Run `work(item, stop)` over items on threads of one torch thread each; `done(index, result)` is called here, in
    the caller.

    torch lets go of Python's lock inside its kernels, so threads train small models almost as fast as processes do,
    without their start-up. Each item runs on one torch thread whatever `workers` is: its bits do not depend on its
    neighbours. An error or Ctrl-C sets `stop`, cancels what has not begun, and is raised again.
    """
    from concurrent.futures import ThreadPoolExecutor, as_completed

    stop = Event()
    with one_thread(), ThreadPoolExecutor(min(workers or os.cpu_count() or 1, max(1, len(items)))) as pool:
        futures = {pool.submit(_alone, work, item, stop): i for i, item in enumerate(items)}
        try:
            for future in as_completed(futures):
                done(futures[future], future.result())
        except BaseException:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise
        return [future.result() for future in futures]


def _alone(work: Callable[[T, Event], R], item: T, stop: Event) -> R:
    import torch

    torch.set_num_threads(1)
    return work(item, stop)


@contextlib.contextmanager
def one_thread(wanted: bool = True) -> Iterator[None]:
    """One torch thread inside (where `wanted`), the former number afterwards."""
    import torch

    before = torch.get_num_threads()
    if wanted:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
