"""What missing work will cost, from what finished work of the same sort took: hours, GPU hours, disk.

Work of the same sort is the same verb by the same plug-in with the same settings, whatever its seed and trait; failing that,
the same verb by the same plug-in. A step takes the median of its sort. What was never measured in this store is told as
such and counts nothing: run one cell first.
"""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from undersong.experiment.steps import Step
from undersong.spec import fingerprint
from undersong.store import Store

RECORDS = 400
"""Records of a kind that are read for an estimate."""
PARTS = ("teacher", "channel", "recipe", "probe", "detector", "mitigation")


@dataclass(frozen=True)
class Cost:
    """The missing steps, their seconds one after another, the bytes they will store, and those of unknown sorts."""

    steps: int
    seconds: float
    bytes: int
    unknown: Mapping[str, int]

    def said(self, workers: int = 1, gpus: float = 0) -> str:
        """One or two sentences for people; `gpus` are those of one cell."""
        if not self.steps:
            return "Nothing to do."
        known = self.steps - sum(self.unknown.values())
        out = f"{self.steps:,} steps to do"
        if known:
            alone = f", about {_time(self.seconds)} one after another" if workers == 1 else (
                f", about {_time(self.seconds / workers)} on {workers} workers")
            gpu = f", {self.seconds * gpus / 3600:.1f} GPU hours" if gpus else ""
            out += f"{alone}{gpu}, {_size(self.bytes)} of disk"
        out += "."
        if self.unknown:
            sorts = ", ".join(f"{n:,} × {sort}" for sort, n in self.unknown.items())
            out += f" Not measured in this store yet, and not counted: {sorts}."
        return out


def cost(missing: Iterable[Step], store: Store) -> Cost:
    """The cost of missing steps, by the records of a store."""
    known: dict[str, list[tuple[float, int]]] = defaultdict(list)
    steps = list(missing)
    for kind in dict.fromkeys(step.kind for step in steps):
        for record in store.some(kind, RECORDS):
            took = record["summary"].get("seconds", record["provenance"].get("seconds"))
            size = sum(file["bytes"] for file in record["files"].values())
            if isinstance(took, int | float):
                for sort in _sorts(record["spec"]):
                    known[sort].append((float(took), size))
    typical = {sort: (statistics.median(t for t, _ in some), statistics.median(b for _, b in some))
               for sort, some in known.items()}
    seconds, stored, unknown, asked = 0.0, 0.0, Counter[str](), dict[int, tuple[str, str]]()
    for step in steps:
        if id(step.spec) not in asked:  # steps share specs
            asked[id(step.spec)] = _sorts(step.spec)
        near = next((typical[sort] for sort in asked[id(step.spec)] if sort in typical), None)
        if near is None:
            unknown[asked[id(step.spec)][1]] += 1
        else:
            seconds, stored = seconds + near[0], stored + near[1]
    return Cost(len(steps), seconds, round(stored), dict(unknown))


def _sorts(spec: Mapping[str, Any]) -> tuple[str, str]:
    """The sort of a piece of work, narrow and wide."""
    narrow = fingerprint({key: value for key, value in spec.items() if key not in ("seed", "trait", "traits")})
    part: Mapping[str, Any] = next((spec[p] for p in PARTS if isinstance(spec.get(p), Mapping)), {})
    return narrow, " ".join(filter(None, (str(spec.get("verb")), str(part.get("name", "")))))


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} minutes" if seconds < 6000 else (
        f"{seconds / 3600:.1f} hours" if seconds < 360_000 else f"{seconds / 86_400:.0f} days")


def _size(stored: float) -> str:
    return f"{stored / 2**20:.0f} MiB" if stored < 2**30 else f"{stored / 2**30:.1f} GiB"
