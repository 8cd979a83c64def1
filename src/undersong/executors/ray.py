"""Work as Ray tasks: on this machine, or on a cluster that is there (`address`).

Ray carries small texts only; rows and weights pass through the store, which every node must see under the same name. What
is declared here (processors, GPUs, memory of a cell) decides where Ray places a cell, and bounds it: a cell of one
processor computes on one thread. No dashboard, no statistics sent home. Ray's ports listen on every interface of a machine;
since 2.59 whoever knocks must hold the cluster's token.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Callable
from concurrent.futures import Executor as Pool
from concurrent.futures import Future
from typing import Any, TypeVar

from pydantic import Field

from undersong.errors import BadSpec, MissingExtra, WorkerLost
from undersong.registry import Settings, plugin

T = TypeVar("T")


@plugin("executor", "ray")
class Ray(Settings):
    """Run cells as Ray tasks, with declared processors, GPUs and memory."""

    address: str | None = None
    """A cluster: `auto` for the one of this machine, or `host:port`. None starts Ray on this machine alone."""
    cpus: float = Field(default=1, gt=0)
    """Processors of a cell."""
    gpus: float = Field(default=0, ge=0)
    """GPUs of a cell; a part of one shares it."""
    memory_gb: float = Field(default=0, ge=0)
    """Memory that Ray sets aside for a cell, in GiB; 0 sets none aside."""
    workers: int = Field(default=0, ge=0)
    """Processors that a Ray started here offers; 0 takes every core. A cluster offers its own."""

    shard_rows: int = Field(default=5000, ge=0)
    """Rows of one dataset that a cell writes, 2,000 at least: workers share larger datasets; 0 has each written by one."""

    @property
    def lost(self) -> tuple[type[BaseException], ...]:
        """Errors that mean a worker, a node or what it held was lost, and not that the work was wrong."""
        errors = library().exceptions
        return (errors.WorkerCrashedError, errors.NodeDiedError, errors.OutOfMemoryError, errors.ObjectLostError,
                errors.TaskUnschedulableError, errors.RaySystemError, errors.LocalRayletDiedError)

    def open(self) -> Pool:
        """A ready pool; the caller shuts it down. Raises MissingExtra without Ray, WorkerLost for a cluster that cannot be
        reached or is of another Ray or Python, BadSpec for resources that no node has."""
        ray, here = library(), {"num_cpus": self.workers or os.cpu_count(), "include_dashboard": False}
        mine = not ray.is_initialized()
        if mine:
            if self.address and ":" in self.address:
                _knock(self.address)
            try:
                ray.init(address=self.address or "local", log_to_driver=False, logging_level=logging.ERROR,
                         **({} if self.address else here))
            except (ConnectionError, TimeoutError) as error:
                raise WorkerLost(f"No Ray cluster answers at {self.address!r} ({_first(error)}). Start one with `ray start "
                                 "--head`, check the address, RAY_AUTH_MODE and RAY_AUTH_TOKEN, or leave --address "
                                 "out.") from None
            except (RuntimeError, ValueError, AssertionError) as error:
                raise WorkerLost(f"The Ray cluster at {self.address or 'this machine'} cannot be joined ({_first(error)}). "
                                 "Give it this driver's Ray and Python versions, then run the same command again.") from None
        asked = {"CPU": self.cpus, "GPU": self.gpus, "memory": self.memory_gb * 2**30}
        if not any(all(n["Resources"].get(k, 0) >= v for k, v in asked.items()) for n in ray.nodes() if n["Alive"]):
            if mine:
                ray.shutdown()
            raise BadSpec(f"No node has {self.cpus:g} processors, {self.gpus:g} GPUs and {self.memory_gb:g} GiB for a cell. "
                          "Ask for less, or join a larger cluster with --address.")
        return _Cluster(ray, self, mine)


class _Cluster(Pool):
    """`submit` as a Ray task. The driver's retries, with pauses between them, take the place of Ray's."""

    def __init__(self, ray: Any, settings: Ray, mine: bool) -> None:
        self.ray, self.mine, self.closed = ray, mine, False
        self.wanted: dict[str, Any] = {"num_cpus": settings.cpus, "num_gpus": settings.gpus, "max_retries": 0,
                                       "scheduling_strategy": "SPREAD"}
        if settings.memory_gb:
            self.wanted["memory"] = int(settings.memory_gb * 2**30)
        self.tasks: dict[Any, Any] = {}
        self.flying: dict[Any, Any] = {}

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        if self.closed:
            raise RuntimeError("cannot schedule new futures after shutdown")
        if fn not in self.tasks:
            self.tasks[fn] = self.ray.remote(**self.wanted)(fn)
        reference = self.tasks[fn].remote(*args, **kwargs)
        future: Future[T] = reference.future()
        self.flying[future] = reference
        future.add_done_callback(lambda over: self.flying.pop(over, None))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """With `cancel_futures`, tasks that run are stopped as well: what they had finished is in the store."""
        if self.closed:
            return
        self.closed = True
        if cancel_futures:
            for reference in list(self.flying.values()):
                with contextlib.suppress(Exception):
                    self.ray.cancel(reference, force=True)
        elif wait and self.flying:
            self.ray.wait(list(self.flying.values()), num_returns=len(self.flying))
        if self.mine:
            self.ray.shutdown()


def library() -> Any:
    """The module `ray`. Raises MissingExtra."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
        import ray.exceptions
    except ImportError as error:
        raise MissingExtra(f"The executor ray needs {error.name}. Run: pip install 'undersong[ray]'.") from None
    return ray


def _knock(address: str) -> None:
    """Raise WorkerLost when nothing listens at `host:port`: Ray itself tries for minutes, and tells nobody why."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, ValueError, OverflowError) as error:
        raise WorkerLost(f"Nothing answers at {address} ({_first(error)}). Start a cluster with `ray start --head`, check "
                         "the address and that this machine may reach it, or leave --address out.") from None


def _first(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__
