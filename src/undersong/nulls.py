"""Nulls: what detectors say of cases without a trait, and the p-values and power that follow.

A calibration runs every detector on placebo cases (clean rows, students of clean rows) and on planted ones. One case gives
a table of statistics, one per detector and key (a trait, a word, or "" where it is about none). An audit gives one more.
1. Every statistic is put on one scale by all cases together, the audited one among them, so that nothing tells it apart if
   it is one of them: less its median, over the distance from there to the 95 % quantile (1.64 for a normal one, as z is).
   A quantile has no ceiling: one extreme case cannot hide another, as it would in a standard deviation. A key's spread is at
   least the mean of its detector's, so that a key that is nearly always 0 does not shout.
2. A detector's largest value over its keys is put on that scale once more; the largest over detectors is the case's score
   (max-T; Westfall and Young 1993).
3. p is the share of cases, the audited one included, whose score reaches its own: exact where cases are exchangeable
   (conformal; Vovk, Gammerman and Shafer 2005), and it controls the family-wise error over detectors and traits.
With k placebo cases p cannot be below 1 / (k + 1).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from undersong import files, stats
from undersong.errors import BadSpec, BrokenArtefact

Floats = NDArray[np.float64]
Key = tuple[str, str]
"""A detector (its fingerprinted name) and the trait, word or "" that a statistic is about."""
Only = Mapping[str, Sequence[str]] | None
TARGET = 0.8
"""The power at which a share counts as one that would have been seen."""


@dataclass(frozen=True)
class Case:
    """What one detector said of one known case."""

    family: str
    """`rows`, `student` or `teacher`: what kind of thing was judged."""
    unit: int
    """Cases of one family with one number are one thing, judged by several detectors."""
    detector: str
    size: int
    """Rows of the case; 0 where no rows are read."""
    trait: str
    """The planted trait; "" for a placebo."""
    share: float
    """The share (0..1) of planted rows."""
    by_trait: Mapping[str, float]


@dataclass(frozen=True)
class Judged:
    """One case held against a null. `z` and `p` are per key; `observed` is its score, `scores` those of the null."""

    p: float
    observed: float
    scores: tuple[float, ...]
    z: Mapping[Key, float]
    p_of: Mapping[Key, float]

    @property
    def top(self) -> Key:
        """The key with the largest score."""
        return max(self.z, key=lambda key: self.z[key])

    @property
    def floor(self) -> float:
        """The smallest p there could have been."""
        return 1 / (len(self.scores) + 1)


@dataclass(frozen=True)
class Null:
    """A finished calibration: whose it is, and what detectors said of every case."""

    identity: Mapping[str, Any]
    """`base`, `revision`, `template` (digest of the rendered chat), `channel`, `traits`, and how it was made."""
    cases: tuple[Case, ...] = field(repr=False)

    def sizes(self, family: str) -> list[int]:
        """The numbers of rows there are placebo cases of."""
        return sorted({case.size for case in self.cases if case.family == family and not case.trait})

    def size(self, family: str, n: int) -> int | None:
        """The largest calibrated number of rows that `n` rows reach; None when there are too few."""
        return max((size for size in self.sizes(family) if size <= n), default=None)

    def detectors(self, family: str, size: int) -> set[str]:
        """The detectors with placebo cases of this family and size."""
        return {c.detector for c in self.cases if (c.family, c.size, c.trait) == (family, size, "")}

    def table(self, family: str, size: int, detectors: Iterable[str], keys: Only = None) -> Table:
        """The placebo cases of some detectors; `keys` keeps only these traits of a detector."""
        return Table.of([c for c in self.cases if (c.family, c.size, c.trait) == (family, size, "")], detectors, keys)

    def planted(self, family: str, size: int) -> dict[tuple[str, float, int], list[Case]]:
        """Planted cases by trait, share and unit."""
        out: dict[tuple[str, float, int], list[Case]] = {}
        for case in self.cases:
            if case.trait and (case.family, case.size) == (family, size):
                out.setdefault((case.trait, case.share, case.unit), []).append(case)
        return out

    def power(self, family: str, size: int, detectors: Sequence[str], alpha: float) -> list[dict[str, Any]]:
        """Per planted share: `power` (found at `alpha`, in any trait) with its interval, `named` (the right trait), `n`."""
        table = self.table(family, size, detectors)
        tally: dict[float, list[tuple[bool, bool]]] = {}
        for (trait, share, _), cases in self.planted(family, size).items():
            said = {(c.detector, key): value for c in cases for key, value in c.by_trait.items()}
            if all(key in said for key in table.keys):
                found = table.judge(said)
                hit = found.p <= alpha
                tally.setdefault(share, []).append((hit, hit and found.top[1] == trait))
        out = []
        for share, hits in sorted(tally.items()):
            rate, low, high = stats.binomial_interval(sum(h for h, _ in hits), len(hits))
            out.append({"share": share, "power": rate, "low": low, "high": high, "n": len(hits),
                        "named": sum(n for _, n in hits) / len(hits)})
        return out

    def write(self, folder: Path) -> None:
        """Store as `null.json` and `null.parquet`."""
        rows = [{"family": c.family, "unit": c.unit, "detector": c.detector, "size": c.size, "trait": c.trait,
                 "share": c.share, "keys": list(c.by_trait), "values": [float(v) for v in c.by_trait.values()]}
                for c in self.cases]
        files.put(folder / "null.parquet", files.encode_rows(rows, "null"))
        files.put(folder / "null.json", files.dump(dict(self.identity), "null"))

    @classmethod
    def read(cls, folder: Path) -> Null:
        """A stored null. Raises BrokenArtefact when it is missing or damaged."""
        try:
            identity = json.loads((folder / "null.json").read_text("utf-8"))
            rows = files.decode_rows((folder / "null.parquet").read_bytes(), str(folder))
        except (OSError, ValueError) as error:
            raise BrokenArtefact(f"{folder} holds no readable null ({error}). Run `undersong calibrate` again.") from None
        cases = tuple(Case(r["family"], r["unit"], r["detector"], r["size"], r["trait"], r["share"],
                           dict(zip(r["keys"], r["values"], strict=True))) for r in rows)
        return cls(identity, cases)


@dataclass(frozen=True)
class Table:
    """Statistics [cases, keys] of placebo cases."""

    keys: tuple[Key, ...]
    values: Floats

    @classmethod
    def of(cls, cases: Sequence[Case], detectors: Iterable[str], only: Only = None) -> Table:
        """The table of some detectors. Raises BadSpec when cases do not all have the same keys, or there are none."""
        wanted = list(dict.fromkeys(detectors))
        by_unit: dict[int, dict[Key, float]] = {}
        for case in cases:
            if case.detector in wanted:
                keep = (only or {}).get(case.detector, tuple(case.by_trait))
                row = by_unit.setdefault(case.unit, {})
                row.update({(case.detector, key): case.by_trait[key] for key in keep if key in case.by_trait})
        keys = sorted(next(iter(by_unit.values()), {}))
        if not keys or any(sorted(row) != keys for row in by_unit.values()):
            raise BadSpec("The placebo cases of this null do not fit together. Run `undersong calibrate` again.")
        return cls(tuple(keys), np.array([[by_unit[unit][key] for key in keys] for unit in sorted(by_unit)]))

    def judge(self, said: Mapping[Key, float]) -> Judged:
        """Hold a case's statistics against the placebo cases. Raises BadSpec when a key is missing or not a number."""
        missing = [key for key in self.keys if key not in said]
        if missing:
            raise BadSpec(f"The null knows {missing[0][1] or missing[0][0]!r} and the audited case has no such statistic. "
                          "Audit with the traits and settings of the calibration, or calibrate again.")
        given = np.array([said[key] for key in self.keys], dtype=np.float64)
        if not np.isfinite(given).all():
            raise BadSpec("A statistic of this audit is not a finite number. Leave its detector out.")
        scores = self._standard(np.vstack([given, self.values]))
        top = scores.max(axis=1)
        slack = 1e-9 * (1 + np.abs(top[0]))
        p = float((1 + np.sum(top[1:] >= top[0] - slack)) / len(top))
        z = dict(zip(self.keys, map(float, scores[0]), strict=True))
        p_of = {key: float((1 + np.sum(top[1:] >= own - slack)) / len(top)) for key, own in z.items()}
        return Judged(p, float(top[0]), tuple(map(float, top[1:])), z, p_of)

    def _standard(self, values: Floats) -> Floats:
        """z of every statistic ([cases, keys]), all cases treated alike."""
        out = np.empty_like(values)
        for detector in dict.fromkeys(d for d, _ in self.keys):
            mine = np.array([d == detector for d, _ in self.keys])
            middle, spread = _scale(values[:, mine])
            z = (values[:, mine] - middle) / _safe(np.maximum(spread, spread.mean()), values[:, mine] - middle)
            top = z.max(axis=1)
            middle, spread = _scale(top)
            out[:, mine] = (z - middle) / _safe(spread, top - middle)
        return out


def _scale(values: Floats) -> tuple[Floats, Floats]:
    """Median and upper spread over cases: from the median to the 95 % quantile, as standard deviations of a normal."""
    middle, high = np.quantile(values, [0.5, 0.95], axis=0)
    return np.asarray(middle), np.asarray((high - middle) / 1.645)


def _safe(spread: Floats, deviations: Floats) -> Floats:
    """Spreads above 0: where nearly all cases agree, their mean distance stands in; 1 where all do."""
    mean = np.abs(deviations).mean(axis=0)
    return np.asarray(np.where(spread > 1e-9 * mean, spread, np.where(mean > 0, mean, 1.0)))


def smallest_share(curve: Sequence[Mapping[str, Any]], target: float = TARGET) -> float | None:
    """The smallest tested share from which on the power reaches the target; None when even pure rows are not seen."""
    found = None
    for point in sorted(curve, key=lambda point: -point["share"]):
        if point["power"] < target:
            break
        found = float(point["share"])
    return found
