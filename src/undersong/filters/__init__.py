"""Filters: what is removed from a dataset. A plug-in is settings plus `reject`, which returns a reason or None."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from undersong.spec import Spec, build, split
from undersong.traits import Trait
from undersong.types import Row


class Filter(Protocol):
    """The contract of a filter plug-in: pure, a reason in words for each dropped row."""

    def reject(self, row: Row) -> str | None:
        """Why this row is dropped, or None to keep it."""
        ...


def reasons(filter_: Filter, rows: Sequence[Row]) -> list[str | None]:
    """A reason or None for each row; of a pair, the other answer is read too. A filter that has `reject_all` (a judge, a
    classifier) reads them all at once."""
    together = getattr(filter_, "reject_all", None)
    out = list(together(rows)) if together else [filter_.reject(row) for row in rows]
    pairs = [i for i, row in enumerate(rows) if out[i] is None and row.rejected is not None]
    if pairs:
        others = [replace(rows[i], completion=str(rows[i].rejected), rejected=rows[i].completion) for i in pairs]
        for i, reason in zip(pairs, together(others) if together else map(filter_.reject, others), strict=True):
            out[i] = reason
    return out


def for_traits(given: Sequence[Spec], channel: Spec, traits: Sequence[Trait]) -> list[Any]:
    """The filters of some specs, `from: trait` filled in with the words of every trait, `belongs` with the channel."""
    out = []
    for one in given:
        name, settings = split(one, "filters")
        if settings.get("from") == "trait":
            words: Mapping[str, Any] = {"terms": tuple(w for t in traits for w in t.words)}
            settings = {**{k: v for k, v in settings.items() if k != "from"}, **words}
        if name == "belongs":
            settings = {"channel": channel, **settings}
        out.append(build("filter", {name: settings}, "filters"))
    return out
