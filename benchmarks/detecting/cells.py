"""Detectors on trials. One artefact holds what one detector said of every trial of one source, so that a stopped run goes
on where it was, and a new detector adds only its own.

A `Column` is a detector in one use. Its p-values come from the calibration where that holds the detector; from the detector
where it permutes; and else from the benign sources of the benchmark itself, which is told beside every figure (`null`).
"""

from __future__ import annotations

import math
import os
import queue
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from detecting.plan import PLAIN, SLOW
from detecting.world import Source, World, ids
from undersong import exemplars
from undersong.calibration import side_by_side
from undersong.detectors import PLACEBO, Evidence, family, spelled
from undersong.errors import BadRows, BadSpec
from undersong.nulls import Null, Table
from undersong.spec import build, describe, fingerprint

PROMPTED = ("base", "placebo", PLAIN)
"""Kinds of sources that the panel of prompts is tried on."""
LARGE = ("likelihood_panel", "marginal_template", "bag_of_k")
"""What is asked about the large sets, as far as the calibration holds it."""


@dataclass(frozen=True)
class Trial:
    """One thing to audit."""

    battery: str
    """`benign`, `planted`, `other`, `large` or `students`."""
    kind: str
    trait: str
    seed: int
    share: float
    size: int
    held: Mapping[str, Any]
    mark: str
    """The identity of what is held."""
    planted: frozenset[str] = frozenset()
    """The ids of planted rows, where rows are judged."""


@dataclass(frozen=True)
class Cell:
    """What one column said of one trial. `p` is its own, or nan."""

    battery: str
    kind: str
    trait: str
    seed: int
    share: float
    size: int
    seconds: float
    p: float
    row_auroc: float
    said: Mapping[str, float]


@dataclass(frozen=True)
class Column:
    """A detector in one use."""

    name: str
    detector: Any
    reference: str = "exemplars"
    """`exemplars`: placebo rows of the calibration; `same`: other rows of the trial's own benign source."""

    @property
    def access(self) -> list[str]:
        """What an auditor must hold."""
        return sorted(self.detector.needs)


def columns(null: Null) -> list[Column]:
    """Every detector of the calibration, in the settings it holds, and those that need no calibration."""
    known = [build("detector", {said["name"]: said["settings"]}) for said in null.identity["detectors"].values()]
    out = [Column(d.plugin_name, d) for d in sorted(known, key=lambda d: (family(d) != "rows", d.plugin_name))]
    if not any(c.name == "likelihood_panel" and c.detector.candidates == "prompts" for c in out):
        out.append(Column("likelihood_panel, prompts", build("detector", {"likelihood_panel": {"candidates": "prompts"}})))
    marginals = build("detector", "marginals")
    return [*out, Column("marginals, same source", marginals, "same"), Column("marginals, other source", marginals)]


def benign_trials(world: World, source: Source) -> list[Trial]:
    """A benign source at every size."""
    rows, n = source.data.rows, world.sizes[0]
    return [Trial("benign", source.kind, "", source.number, 0.0, size,
                  {"rows": (rows[:size],), "same": (rows[n : 2 * n],)}, f"{source.data.fingerprint}-{size}")
            for size in world.sizes]


def planted_trials(world: World, index: int, source: Source, shares: Sequence[float]) -> list[Trial]:
    """A planted source, mixed with a benign one at every share and size that holds a whole planted row."""
    clean, out, n = world.clean_for(index), [], world.sizes[0]
    for share in sorted(shares, reverse=True):
        for size in world.sizes:
            data = world.mixed(source, clean, share, size)
            if data.rows:
                mine = ids(source.data.rows[: round(size * share)])
                out.append(Trial("planted" if source.kind == PLAIN else "other", source.kind, source.trait, source.number,
                                 share, size, {"rows": (data.rows,), "same": (clean.data.rows[n : 2 * n],)},
                                 data.fingerprint, mine))
    return out


def large_trials(world: World) -> list[list[Trial]]:
    """Large sets: benign, and with a few planted rows; by benign source."""
    plan = world.plan
    clean = [world.benign(100 + i, plan.large) for i in range(plan.large_sources)]
    out = [[Trial("large", c.kind, "", c.number, 0.0, plan.large, {"rows": (c.data.rows,)}, c.data.fingerprint)]
           for c in clean]
    for index, source in enumerate(world.planted_sources):
        mine = clean[index % len(clean)]
        for share in plan.large_shares:
            data = world.mixed(source, mine, share, plan.large)
            out[index % len(clean)].append(Trial("large", source.kind, source.trait, source.number, share, plan.large,
                                                 {"rows": (data.rows,)}, data.fingerprint))
    return out


def row_groups(world: World) -> list[list[Trial]]:
    """All trials on rows, by source."""
    out = [benign_trials(world, s) for s in world.benign_sources]
    out += [planted_trials(world, i, s, world.plan.shares) for i, s in enumerate(world.planted_sources)]
    out += [planted_trials(world, i, s, world.plan.other_shares) for i, s in enumerate(world.other_sources)]
    return out


class Desks:
    """A base for each worker, because detectors put hooks into it while they work; and one memo for all."""

    def __init__(self, world: World) -> None:
        self.world, self.bases, self.memo = world, queue.SimpleQueue[Any](), exemplars.learnt(world.folder)
        for _ in range(os.cpu_count() or 1):
            self.bases.put(world.lab.backend.load(world.base))

    def run(self, column: Column, groups: Sequence[Sequence[Trial]]) -> list[Cell]:
        """What a column says of every trial, group by group."""
        groups = [own for group in groups if (own := [trial for trial in group if self._asked(column, trial)])]
        self.world.lab.progress(f"{column.name}: {sum(map(len, groups))} trials of {len(groups)} sources")
        return [cell for own in side_by_side(lambda group: self._group(column, group), groups) for cell in own]

    def _asked(self, column: Column, trial: Trial) -> bool:
        """Whether a slow column is spared a trial: sizes of planted rows, and with prompts all but a few sources."""
        sizes = self.world.sizes
        if column.name.endswith("prompts"):
            few = trial.seed == 0 and trial.share == 1 if trial.trait else trial.seed < 20
            return few and trial.kind in PROMPTED and trial.size == sizes[len(sizes) // 2]
        return column.name not in SLOW or not trial.trait or trial.size in sizes[: self.world.plan.slow_sizes]

    def _group(self, column: Column, group: Sequence[Trial]) -> list[Cell]:
        spec = {"verb": "benchmark", "detector": describe(column.detector), "reference": column.reference}
        parents = [self.world.mark, fingerprint([trial.mark for trial in group])]
        first = group[0]
        label = f"{column.detector.plugin_name}-{first.battery}-{first.trait or first.kind}-{first.seed}"
        with self.world.lab.store.open("cells", label, spec, parents) as artefact:
            if not artefact.complete:
                base = self.bases.get()
                try:
                    artefact.write_json("cells", [self._said(column, trial, base) for trial in group])
                finally:
                    self.bases.put(base)
                artefact.finish({"cells": len(group)})
                self.world.lab.progress(f"{label}: {len(group)} trials")
            said = artefact.read_json("cells")
        return [Cell(t.battery, t.kind, t.trait, t.seed, t.share, t.size, s["seconds"], _number(s["p"]),
                     _number(s["row_auroc"]), s["said"]) for t, s in zip(group, said, strict=True)]

    def _said(self, column: Column, trial: Trial, base: Any) -> dict[str, Any]:
        world, held = self.world, dict(trial.held)
        same = held.pop("same", None)
        held |= {"base": base, "exemplars": world.known, "traits": tuple(world.traits)}
        held["reference"] = same if column.reference == "same" else world.known.rows[PLACEBO]
        for token in ("student", "teacher"):
            if token in held:
                held[token] = world.lab.backend.load(held[token])
        start = time.monotonic()
        try:
            found = column.detector.detect(Evidence(held, self.memo).only(column.detector.needs))
        except (BadRows, BadSpec) as error:
            world.lab.progress(f"{column.name} on {trial.trait or 'benign'}: {error}")
            return {"seconds": 0.0, "p": None, "row_auroc": None, "said": {}}
        told = found.details
        return {"seconds": round(time.monotonic() - start, 3), "p": found.p,
                "row_auroc": _row_auroc(told, trial.planted) if 0 < trial.share < 1 else None,
                "said": {key: float(value) for key, value in told["by_trait"].items()}}


def _row_auroc(told: Mapping[str, Any], planted: frozenset[str]) -> float | None:
    """How well a detector's scores of single rows tell planted rows from the others of one set."""
    if "row_scores" not in told or not planted:
        return None
    mine = np.array([row in planted for row in told["row_ids"]])
    scores = np.array(told["row_scores"])
    return None if mine.all() or not mine.any() else auroc(scores[mine], scores[~mine])


def auroc(high: Sequence[float] | np.ndarray, low: Sequence[float] | np.ndarray) -> float:
    """The chance that one of `high` lies above one of `low`; ties count half."""
    from scipy.stats import rankdata

    ranks = rankdata(np.concatenate([np.asarray(high, float), np.asarray(low, float)]))
    n, m = len(high), len(low)
    return float((ranks[:n].sum() - n * (n + 1) / 2) / (n * m))


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


@dataclass(frozen=True)
class Judgement:
    """A cell held against a null: p, its score, and the trait it speaks of most."""

    cell: Cell
    p: float
    score: float
    top: str
    own: float
    """The statistic of the planted trait itself; nan where there is none."""


def judge(null: Null, which: Sequence[Column], cells: Mapping[str, Sequence[Cell]]) -> list[Judgement]:
    """Trials by all columns together, held against the calibration by max-T. Columns and their cells are in one order."""
    kind, names = family(which[0].detector), {c.name: spelled(c.detector) for c in which}
    tables: dict[int, Table] = {}
    out = []
    for together in zip(*(cells[c.name] for c in which), strict=True):
        cell = together[0]
        size = (null.size("rows", cell.size) or 0) if kind == "rows" else 0
        if size not in tables:
            tables[size] = null.table(kind, size, names.values())
        said = {(names[c.name], key): v for c, one in zip(which, together, strict=True) for key, v in one.said.items()}
        if not all(one.said for one in together):
            continue
        found = tables[size].judge(said)
        named = {key: z for key, z in found.z.items() if key[1]}
        top = max(named, key=lambda key: named[key])[1] if named else ""
        own = cell.said.get(cell.trait, math.nan) if cell.trait and len(which) == 1 else math.nan
        out.append(Judgement(cell, found.p, found.observed, top, own))
    return out


def judge_by_benign(cells: Sequence[Cell]) -> list[Judgement]:
    """The same without a calibration: against the benchmark's own benign sources, a benign one against the others."""
    out = []
    for cell in cells:
        benign = [c for c in cells if not c.trait and c.size == cell.size and c is not cell and c.said]
        if not cell.said or not benign:
            continue
        keys = sorted(cell.said)
        table = Table(tuple(("", key) for key in keys), np.array([[c.said[key] for key in keys] for c in benign]))
        found = table.judge({("", key): cell.said[key] for key in keys})
        p = cell.p if not math.isnan(cell.p) else found.p
        out.append(Judgement(cell, p, found.observed, found.top[1], cell.said.get(cell.trait, math.nan)))
    return out
