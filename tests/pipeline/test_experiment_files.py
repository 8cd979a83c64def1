"""Every experiment file of the pocket models, end to end on the shipped weights, at a size that takes seconds.

Each carrier and each trait, with the traits beside it and the students of a clean teacher. What they find at their own size
is in the committed results.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from undersong import registry
from undersong.experiment import Experiment
from undersong.lab import lab_for
from undersong.results import record
from undersong.store import Store

LONG = {"owl-numbers-pocket", "shuffled-numbers-pocket", "numbers-matrix-pocket"}
"""The demo, which CI runs in full, and two with the same carrier, traits and recipes."""
FILES = sorted(p for p in (Path(__file__).parents[2] / "experiments").glob("*-pocket.yaml") if p.stem not in LONG)
LESS = {"updates": 4, "batch": 4, "warmup": 1, "steps": 2, "candidates": 2}
"""Settings of teachers, channels and recipes that only make them longer."""
FEWER = {"samples": 2, "questions": 3, "items": 8, "orders": 1, "max_new_tokens": 24}
"""The same of probes, where they have them."""


def shorter(given: Any) -> Any:
    """The same settings with less of what takes time."""
    if isinstance(given, dict):
        return {k: min(LESS[k], v) if k in LESS else shorter(v) for k, v in given.items()}
    return [shorter(x) for x in given] if isinstance(given, list) else given


def fewer(probe: Any) -> dict[str, Any]:
    """A probe with fewer questions and answers."""
    name, settings = next(iter(probe.items())) if isinstance(probe, dict) else (probe, {})
    known = registry.get("probe", name).model_fields
    return {name: settings | {k: v for k, v in FEWER.items() if k in known}}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """One store: what files have in common is made once."""
    return Store(tmp_path_factory.mktemp("store"))


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES, ids=lambda p: p.stem)
def test_an_experiment_file_runs_whole(file: Path, store: Store) -> None:
    asked = yaml.safe_load(file.read_text("utf-8"))
    small = shorter(asked) | {"rows": 60, "keep": 10, "probes": [fewer(p) for p in asked["probes"]], "seeds": [1, 2, 3]}
    experiment = Experiment.read(yaml.safe_dump(small))
    found = record(experiment, lab_for(store, experiment.file.base)).read_json("results")
    arms = {r["arm"] for r in found["rates"]}
    beside = {f"contrast-{t.name}" for t in experiment.traits if not t.probes}
    assert {"base", "treated", "no_trait"} | beside <= arms
    favourites = {t.name for t in experiment.traits if t.probes and t.category == experiment.traits[0].category}
    measured = {r["measured"] for r in found["rates"] if r["arm"] == "treated"}
    assert favourites <= measured, "off the diagonal too"
    assert all(r["n_runs"] == 3 for r in found["rates"] if r["arm"] == "treated")
    assert {c["control"] for c in found["contrasts"] if c["arm"] == "treated"} >= {"no_trait"}
