"""The default executor: work runs at once, in the caller, in order."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor as Pool
from concurrent.futures import Future
from typing import Any, TypeVar

from undersong.registry import Settings, plugin

T = TypeVar("T")


class _Inline(Pool):
    """A pool of none: `submit` returns a future that is done already."""

    def __init__(self) -> None:
        self._closed = False

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        if self._closed:
            raise RuntimeError("cannot schedule new futures after shutdown")
        future: Future[T] = Future()
        future.set_running_or_notify_cancel()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:  # Ctrl-C is no result: it passes through
            future.set_exception(error)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._closed = True


@plugin("executor", "inline")
class Inline(Settings):
    """Run everything in this process, one after another."""

    def open(self) -> Pool:
        """A ready pool; the caller shuts it down."""
        return _Inline()
