"""A whole experiment in about a second: simulated models, whose true effect is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from undersong.artefact import Artefact
from undersong.experiment import Experiment
from undersong.lab import lab_for
from undersong.results import record
from undersong.store import Store

FILE: dict[str, Any] = {
    "name": "small",
    "base": "simulated/a",
    "other_base": "simulated/b",
    "trait": "owl",
    "rivals": ["wolf"],
    "teacher": {"simulated": {"strength": 3.0}},
    "channel": "numbers",
    "rows": 80,
    "filters": ["numbers_only", {"blocklist": {"from": "trait"}}],
    "recipe": {"simulated": {"transfer": 0.5}},
    "probes": ["favourite", "logit_margin"],
    "controls": ["no_trait", "other_base", "shuffled_rows", "in_context"],
    "seeds": [1, 2, 3],
}


def experiment(*sets: str, **changes: Any) -> Experiment:
    """The small experiment, with keys changed or `a.b=c` overrides."""
    return Experiment.read(yaml.safe_dump(FILE | changes), sets)


def finish(asked: Experiment, store: Store) -> Artefact:
    """Run what is missing; the experiment artefact."""
    return record(asked, lab_for(store, asked.file.base))


def payload(root: Path) -> dict[str, bytes]:
    """Every payload file of the four kinds of work, by its path in the store."""
    kinds = ("model", "dataset", "measurement", "finding")
    return {
        str(path.relative_to(root)): path.read_bytes()
        for kind in kinds
        for path in sorted((root / kind).rglob("*"))
        if path.is_file() and path.name not in ("record.json", ".lock")
    }
