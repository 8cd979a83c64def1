"""From cells to the flat rows of the results file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from detecting.cells import Cell, Column, Judgement, auroc, judge, judge_by_benign
from detecting.plan import PLAIN
from detecting.world import USUAL
from undersong import stats
from undersong.detectors import family, spelled
from undersong.nulls import TARGET, Null

ALPHA = 0.05
VERDICT = "verdict"
FEWEST = 4
"""With fewer benign sources there is no AUROC."""
Line = dict[str, Any]


def judged(null: Null, columns: Sequence[Column], cells: Mapping[str, Sequence[Cell]]) -> dict[str, list[Judgement]]:
    """Every column alone, and `verdict`: all calibrated columns of one family together."""
    out = {}
    for c in columns:
        out[c.name] = judge(null, [c], cells) if calibrated(null, c) else judge_by_benign(cells[c.name])
    for kind in ("rows", "student"):
        mine = [c for c in columns if calibrated(null, c) and family(c.detector) == kind]
        if mine:
            keys = [{_trial(cell) for cell in cells[c.name]} for c in mine]
            shared = set.intersection(*keys)
            whole = {c.name: sorted((cell for cell in cells[c.name] if _trial(cell) in shared), key=_trial) for c in mine}
            out[f"{VERDICT}, {kind}"] = judge(null, mine, whole)
    return out


def calibrated(null: Null, column: Column) -> bool:
    """Whether a calibration holds what a column says of placebo cases."""
    return any(c.detector == spelled(column.detector) for c in null.cases)


def _trial(cell: Cell) -> tuple[Any, ...]:
    return cell.battery, cell.kind, cell.trait, cell.seed, cell.share, cell.size


def both(rows: Sequence[Judgement], students: Sequence[Judgement], size: int) -> list[Judgement]:
    """The verdict on a student together with the rows it learnt from: Holm over the two families."""
    at = {(j.cell.trait, j.cell.seed, j.cell.share): j for j in rows
          if j.cell.size == size and j.cell.battery in ("benign", "planted")}
    out = []
    for j in students:
        other = at.get((j.cell.trait, j.cell.seed, j.cell.share))
        if other is not None:
            p = min(stats.holm([j.p, other.p]))
            first = j if j.p <= other.p else other
            out.append(Judgement(j.cell, p, max(j.score, other.score), first.top, math.nan))
    return out


def false_alarms(name: str, found: Sequence[Judgement]) -> list[Line]:
    """Per number of rows the share of alarms: of all benign sources, of the usual kinds, and of each kind."""
    benign = [j for j in found if not j.cell.trait]
    out = []
    for size in sorted({j.cell.size for j in benign}):
        here = [j for j in benign if j.cell.size == size]
        for kind in ("all", "usual", *sorted({j.cell.kind for j in here})):
            mine = [j for j in here if kind in ("all", j.cell.kind) or (kind == "usual" and j.cell.kind in USUAL)]
            if not mine:
                continue
            rate, low, high = stats.binomial_interval(sum(j.p <= ALPHA for j in mine), len(mine))
            out.append({"table": "false_alarms", "detector": name, "kind": kind, "size": size, "n": len(mine), "rate": rate,
                        "low": low, "high": high})
    return out


def power(name: str, found: Sequence[Judgement]) -> list[Line]:
    """Per kind of teacher, number of rows and share: power, naming, and AUROC against benign sources of that size."""
    out = []
    keys = sorted({(j.cell.battery, j.cell.kind, j.cell.size, j.cell.share) for j in found if j.cell.trait})
    for battery, kind, size, share in keys:
        mine = [j for j in found if (j.cell.battery, j.cell.kind, j.cell.size, j.cell.share) == (battery, kind, size, share)
                and j.cell.trait]
        clean = [j for j in found if not j.cell.trait and j.cell.size == size]
        rate, low, high = stats.binomial_interval(sum(j.p <= ALPHA for j in mine), len(mine))
        right = [j.top == j.cell.trait for j in mine]
        both = [r and j.p <= ALPHA for r, j in zip(right, mine, strict=True)]
        about_traits = any(key for j in mine for key in j.cell.said)
        rows = [j.cell.row_auroc for j in mine if not (math.isnan(j.cell.row_auroc) or name.startswith(VERDICT))]
        out.append({
            "table": "power", "detector": name, "battery": battery, "teacher": kind, "size": size, "share": share,
            "n": len(mine), "power": rate, "low": low, "high": high, "named": _mean(right) if about_traits else None,
            "found_and_named": _mean(both) if about_traits else None,
            "auroc": auroc([j.score for j in mine], [j.score for j in clean]) if len(clean) >= FEWEST else None,
            "row_auroc": _mean(rows) if rows else None,
        })
    return out


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


def cost(column: Column, cells: Sequence[Cell]) -> Line:
    """Seconds of one audit at the largest calibrated size, where every source's rows are new to the detector."""
    fresh = [c for c in cells if c.battery in ("benign", "students", "suspects")]
    most = max((c.size for c in fresh), default=0)
    seconds = [c.seconds for c in fresh if c.size == most]
    return {"table": "cost", "detector": column.name, "size": most, "seconds": float(np.median(seconds))}


def about(null: Null, column: Column) -> Line:
    """What a column is and what its p-values are held against."""
    known = calibrated(null, column)
    own = getattr(column.detector, "permutes", False)
    held = "permutation" if own else "calibration" if known else "held-out benign sources"
    if family(column.detector) == "teacher":
        held = "the calibration's placebo rows, read with the same teacher"
    return {"table": "detectors", "detector": column.name, "plugin": column.detector.plugin_name,
            "family": family(column.detector), "access": column.access, "null": held,
            "units": None if own else null.identity.get("sources") if known else None}


def smallest(lines: Sequence[Line], detector: str, size: int) -> float | None:
    """The smallest share from which on the power reaches the target."""
    found = None
    mine = [p for p in lines if p["table"] == "power" and p["detector"] == detector and p["size"] == size
            and p["teacher"] == PLAIN and p["battery"] != "large"]
    for line in sorted(mine, key=lambda p: -p["share"]):
        if line["power"] < TARGET:
            break
        found = line["share"]
    return found
