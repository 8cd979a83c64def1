"""Filters: what is removed from a dataset. A plug-in is settings plus `reject`, which returns a reason or None."""

from __future__ import annotations

from typing import Protocol

from undersong.types import Row


class Filter(Protocol):
    """The contract of a filter plug-in: pure, a reason in words for each dropped row."""

    def reject(self, row: Row) -> str | None:
        """Why this row is dropped, or None to keep it."""
        ...
