"""The results of a sweep: for every combination of its values, treated students against their no-trait twins.

`results.json` holds one point per experiment and read-out, recomputed from the stored measurements, one number per training
run. A sweep asks many questions at once: its sentence counts points by intervals corrected for how many they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from undersong import results, stats
from undersong.artefact import Artefact
from undersong.experiment.cells import patient, spread
from undersong.experiment.sweep import Sweep, shown
from undersong.lab import Lab

VERSION = 1
"""Raise when the same measurements would give another results.json."""


def record(sweep: Sweep, lab: Lab, executor: Any = None) -> Artefact:
    """Run what is missing, here or where an executor plug-in says; keep the points as an artefact of kind `experiment`."""
    if executor is None:
        for number, experiment in enumerate(sweep.experiments, 1):
            lab.progress(f"experiment {number} of {len(sweep.experiments)}: {shown(sweep.keys, sweep.grid[number - 1])}")
            experiment.run(lab)
    else:
        spread(sweep.experiments, lab, executor)
    spec = {"verb": "sweep", "keys": list(sweep.keys), "grid": [list(chosen) for chosen in sweep.grid], "results": VERSION}
    parents = sorted(s.fingerprint for s in sweep.steps if s.kind == "measurement")

    def made() -> Artefact:
        with lab.store.open("experiment", sweep.name, spec, parents) as artefact:
            if not artefact.complete:
                lab.progress("computing results")
                found = collect(sweep, lab) | {"fingerprint": artefact.fingerprint}
                artefact.write_json("results", found)
                artefact.finish({"sentence": found["sentence"]})
            return artefact

    return made() if executor is None else patient(made, lab.progress)


def collect(sweep: Sweep, lab: Lab) -> dict[str, Any]:
    """The points of a finished sweep. Needs every measurement of its plan in the store."""
    points = []
    for experiment, chosen in zip(sweep.experiments, sweep.grid, strict=True):
        lines = results.measured(experiment, lab.store)
        points += [
            {"values": list(chosen), "experiment": experiment.file.name}
            | {key: c[key] for key in ("channel", "probe", "metric", "trait", "n_runs", "difference", "low", "high", "p")}
            for c in results.contrasts(lines)
            if c["arm"] == "treated" and c["trait"] == experiment.file.trait and c["control"] == "no_trait"
        ]
    return {"format": 1, "kind": "sweep", "experiment": sweep.name, "keys": list(sweep.keys),
            "experiments": len(sweep.experiments), "sentence": sentence(points, sweep.keys), "points": points,
            "environment": results.environment()}


def sentence(points: Sequence[dict[str, Any]], keys: Sequence[str]) -> str:
    """Where the first read-out moved most and least, and at how many points it moved at all (Holm over the points)."""
    mine = [p for p in points if (p["probe"], p["metric"]) == (points[0]["probe"], points[0]["metric"])] if points else []
    if not mine:
        return "No treated student was measured beside a no-trait one."
    tested = [p for p in mine if p["p"] is not None]
    kept = stats.holm([p["p"] for p in tested])
    up = sum(p["difference"] > 0 and q < 0.05 for p, q in zip(tested, kept, strict=True))
    most, least = max(mine, key=lambda p: p["difference"]), min(mine, key=lambda p: p["difference"])
    short = [key.rpartition(".")[2] for key in keys]
    low = f"{least['difference']:+.2f} ({shown(short, least['values'])})"
    return (f"Treated over no-trait students, {mine[0]['probe']}: from {low} "
            f"to {most['difference']:+.2f} ({shown(short, most['values'])}); raised at {up} of {len(mine)} settings (Holm).")
