"""Worker processes of this machine, one thread each: several cores without installing anything more."""

from __future__ import annotations

import os
from concurrent.futures import Executor as Pool
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from pydantic import Field

from undersong.registry import Settings, plugin


@plugin("executor", "processes")
class Processes(Settings):
    """Run cells in worker processes of this machine."""

    workers: int = Field(default=0, ge=0)
    """Processes; 0 takes one to a core."""

    shard_rows: int = Field(default=5000, ge=0)
    """Rows of one dataset that a cell writes, 2,000 at least: workers share larger datasets; 0 has each written by one."""

    def open(self) -> Pool:
        """A ready pool; the caller shuts it down. Workers are spawned, not forked: torch's threads do not survive a fork."""
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
            os.environ.setdefault(name, "1")  # read by the workers; this process has its threads already
        return ProcessPoolExecutor(self.workers or os.cpu_count() or 1, get_context("spawn"))
