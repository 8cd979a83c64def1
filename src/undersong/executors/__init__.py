"""Executors: where work runs. The seam is `concurrent.futures.Executor`; a plug-in's `open` returns one."""

from __future__ import annotations

from concurrent.futures import Executor as Pool
from typing import Protocol


class Executor(Protocol):
    """The contract of an executor plug-in."""

    def open(self) -> Pool:
        """A ready pool; the caller shuts it down."""
        ...
