"""From cells to the rows of the results: shares removed, costs, who is on the front, and what to use when."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mitigating import reading
from mitigating.cells import RIGHT, WRONG_TRAIT, Bench, Cell, asks_trait, elsewhere, name
from mitigating.plan import PLAIN
from mitigating.world import MIXED, PURE
from undersong import stats
from undersong.detectors import PLACEBO
from undersong.detectors.activation_dose import learn
from undersong.errors import BadSpec
from undersong.shares import share_kept, share_removed

RESIDUALS = ("margin", "rate", "activation", "rise")
FITS = 0.9
"""The least part of the plain student's gain that a mitigation must keep."""
LEAST = 5
"""Cells of fewer runs are left out."""
Row = dict[str, Any]


class Counts:
    """The tables of a bench, from the cells that are done. `rows` may be asked for at any time."""

    def __init__(self, bench: Bench) -> None:
        self.bench, self.world = bench, bench.world
        self.axes: dict[tuple[str, int], Any] = {}

    def rows(self) -> list[Row]:
        """Every table: `removed`, `runs`, `clean`, `failed`, `front` and `targets`."""
        cells, runs = list[Row](), list[Row]()
        for m in self.bench.mitigations:
            for dose, knows in ((PURE, RIGHT), (PURE, WRONG_TRAIT), (MIXED, RIGHT)):
                if knows == WRONG_TRAIT and not asks_trait(m):
                    continue
                own = self.runs(m, dose, knows)
                runs += own
                if len(own) >= min(LEAST, len(self.world.plan.seeds)):
                    cells.append(self.cell(m, dose, knows, own))
        for row in cells:
            row["front"] = on_front(row, [r for r in cells if (r["dose"], r["knows"]) == (row["dose"], row["knows"])])
        return [*cells, *runs, *self.clean(), *self.failed(), *targets(cells)]

    def runs(self, m: Any, dose: str, knows: str) -> list[Row]:
        """One row per finished run of a cell: lifts of the plain and of the mitigated student, fit and capability."""
        out = []
        for trait, seed in self.world.plan.pairs:
            said = self.bench.find(Cell(m, trait, seed, dose, knows))
            twin = self.bench.find(Cell(m, "", seed)) if elsewhere(m) else {}
            if said is None or "failed" in said or twin is None or "failed" in twin:
                continue
            refer = self.bench.reference
            plain, none, base = refer(PLAIN, trait, seed, dose), refer(PLAIN, "", seed), refer("base", trait, seed, dose)
            line: Row = {"table": "runs", "mitigation": name(m), "dose": dose, "knows": knows, "trait": trait, "seed": seed}
            for what in RESIDUALS:
                low = self.level(none, what, trait, seed)
                line[f"{what}_plain"] = self.level(plain, what, trait, seed) - low
                if not twin:
                    line[what] = self.level(said, what, trait, seed) - low
                else:  # axes of one base mean nothing in another
                    line[what] = None if what == "activation" else self.level(said, what, trait, seed) - twin[what][trait]
            others = [t.name for t in reading.measured(self.world) if t.name != trait]
            line["others_plain"] = float(np.mean([abs(plain["margin"][t] - none["margin"][t]) for t in others]))
            line["others"] = float(np.mean([abs(said["margin"][t] - (twin or none)["margin"][t]) for t in others]))
            line |= {"gain_plain": base["fit"] - plain["fit"], "gain": base["fit"] - said["fit"],
                     "capability": said["capability"], "capability_plain": plain["capability"],
                     "capability_none": none["capability"], "capability_base": base["capability"]}
            out.append(line)
        return out

    def cell(self, m: Any, dose: str, knows: str, runs: Sequence[Row]) -> Row:
        """One row: the shares removed with their intervals, and the costs."""
        needs = sorted(m.needs)
        row: Row = {"table": "removed", "mitigation": name(m), "stage": m.stage, "needs": needs,
                    "may_use": sorted(getattr(m, "may_use", ())), "dose": dose, "knows": knows, "runs": len(runs)}
        for what in RESIDUALS:
            share = self._share(share_removed, runs, f"{what}_plain", what)
            row |= {what: share[0], f"{what}_low": share[1], f"{what}_high": share[2]}
            row[f"{what}_effect"] = float(np.mean([r[f"{what}_plain"] for r in runs]))
        kept = self._share(share_kept, runs, "gain_plain", "gain")
        row |= {"fit": kept[0], "fit_low": kept[1], "fit_high": kept[2], "fits": kept[0] is not None and kept[0] >= FITS}
        for against in ("plain", "none"):
            points = [100 * (r["capability"] - r[f"capability_{against}"]) for r in runs]
            mean, low, high = stats.mean_interval(points, bounds=None)
            row |= {f"points_{against}": mean, f"points_{against}_low": low, f"points_{against}_high": high}
        row |= {key: float(np.mean([r[key] for r in runs])) for key in ("others", "others_plain")}
        return row

    def level(self, said: Mapping[str, Any], what: str, trait: str, seed: int) -> float:
        """A residual of one model before anything is taken off."""
        return self.activation(said["states"], trait, seed) if what == "activation" else float(said[what][trait])

    def activation(self, states: Any, trait: str, seed: int) -> float:
        """How far a student's activations lie towards plain students of the other seeds, as a share of theirs."""
        if (trait, seed) not in self.axes:
            refer, pairs = self.bench.reference, self.world.plan.pairs[: len(self.world.plan.seeds)]
            start = np.asarray(refer("base", trait, seed)["states"])
            seen = {PLACEBO: [refer(PLAIN, "", s) for s in self.world.plan.seeds if s != seed]}
            for t, s in pairs:
                if s != seed:
                    seen.setdefault(t, []).append(refer(PLAIN, t, s))
            known = {t: np.stack([np.asarray(one["states"]) - start for one in own]) for t, own in seen.items()}
            self.axes[trait, seed] = start, learn(known, start, (), span=2, shrink=1.0)
        start, known = self.axes[trait, seed]
        return float(known.scaled(np.asarray(states) - start) @ known.axes[trait] / known.own[trait])

    def clean(self) -> list[Row]:
        """What guards do to students of rows without a trait: how far margins and capability move."""
        out = []
        for m in self.bench.mitigations:
            moved, points = list[float](), list[float]()
            for seed in self.world.plan.seeds:
                said = self.bench.find(Cell(m, "", seed)) if not elsewhere(m) else None
                if said and "failed" not in said:
                    none = self.bench.reference(PLAIN, "", seed)
                    moved += [said["margin"][t.name] - none["margin"][t.name] for t in reading.measured(self.world)]
                    points.append(100 * (said["capability"] - none["capability"]))
            if points:
                out.append({"table": "clean", "mitigation": name(m), "runs": len(points), "points": float(np.mean(points)),
                            "moved": float(np.mean(np.abs(moved))), "most": float(np.max(np.abs(moved)))})
        return out

    def failed(self) -> list[Row]:
        """Cells that ended in words."""
        out = []
        for cell in [c for group in self.bench.groups() for c in group]:
            said = self.bench.find(cell)
            if said and "failed" in said:
                out.append({"table": "failed", "mitigation": name(cell.mitigation), "trait": cell.trait, "seed": cell.seed,
                            "dose": cell.dose, "knows": cell.knows, "why": said["failed"]})
        return out

    @staticmethod
    def _share(of: Any, runs: Sequence[Row], whole: str, part: str) -> tuple[float | None, float | None, float | None]:
        """A share of two columns; None where there is none, or no bound."""
        if any(r[part] is None for r in runs):
            return None, None, None
        try:
            found = of([r[whole] for r in runs], [r[part] for r in runs])
        except BadSpec:
            return None, None, None
        return found[0], *(bound if math.isfinite(bound) else None for bound in found[1:])


def on_front(row: Row, rivals: Sequence[Row]) -> bool:
    """Whether a mitigation that fits is beaten by no other that fits, in margin removed and capability together."""
    def better(a: Row, b: Row) -> bool:
        ours, theirs = (a["margin"], a["points_plain"]), (b["margin"], b["points_plain"])
        return ours != theirs and all(x >= y for x, y in zip(ours, theirs, strict=True))

    return bool(row["fits"]) and not any(r["fits"] and better(r, row) for r in rivals)


def targets(cells: Sequence[Row]) -> list[Row]:
    """The targets set beforehand, each with the best mitigation that could meet it."""
    asked = (
        ("known trait: 80 % removed at .5 points of capability", 0.8, 0.5, lambda r: r["knows"] == RIGHT),
        ("unknown trait, no teacher: 50 % removed at 1 point", 0.5, 1.0, blind),
    )
    out = []
    for goal, share, points, may in asked:
        able = [r for r in cells if r["dose"] == PURE and may(r) and r["fits"] and r["stage"] != "recipe"]
        meets = [r for r in able if r["margin"] >= share and (r["margin_low"] or 0) > 0 and r["points_plain"] >= -points]
        best = min(meets or able, key=lambda r: abs(1 - r["margin"]), default=None)  # to overshoot is no virtue
        out.append({"table": "targets", "target": goal, "met": bool(meets), "by": [r["mitigation"] for r in meets],
                    "best": best and best["mitigation"], "margin": best and best["margin"],
                    "points": best and best["points_plain"]})
    return out


def blind(row: Row) -> bool:
    """Whether a row is of somebody without a trait's name and without teachers. A wrong guess does not count: the guessed
    animal has the right one among its rivals."""
    return not (set(row["needs"]) | set(row["may_use"])) & {"teacher", "rivals", "trait"}
