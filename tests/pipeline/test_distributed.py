"""One student on two processes: the same rows a step, the same losses, the same student to rounding."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from undersong.backends.guarding import Guard
from undersong.backends.routing import ByName
from undersong.errors import BadSpec
from undersong.lab import base_ref
from undersong.recipes import Job
from undersong.spec import build, describe
from undersong.types import Dataset, ModelRef, Row

pytest.importorskip("ray", reason="the ray extra is not installed")
pytest.importorskip("trl", reason="the local extra is not installed")
DICE = np.random.default_rng(0)
ROWS = tuple(
    Row(str(i), ({"role": "user", "content": "Continue: 1, 2, 3"},), ", ".join(map(str, DICE.integers(0, 999, 8))))
    for i in range(48)
)


def recipe(processes: int, **more: Any) -> Any:
    settings = {"steps": 4, "batch": 16, "rate": 1e-3, "micro_batch": 8, "processes": processes, "lora": {"rank": 4}}
    return build("recipe", {"sft": settings | more})


def train(processes: int, out: Path) -> tuple[ModelRef, dict[str, Any]]:
    out.mkdir()
    [ref] = recipe(processes).train([Job(base_ref("pocket/a"), Dataset(ROWS, None, ""), 3, out)], ByName())
    return ref, json.loads((out / "training.json").read_text())


def test_two_processes_train_the_student_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_worker_niceness", "0")
    (one, told), (two, shared) = train(1, tmp_path / "one"), train(2, tmp_path / "two")
    assert shared["processes"] == 2
    assert told["effective_batch"] == shared["effective_batch"] == 16
    assert shared["loss"] == pytest.approx(told["loss"], abs=1e-4)
    assert sorted(p.name for p in (tmp_path / "one").rglob("*")) == sorted(p.name for p in (tmp_path / "two").rglob("*"))
    chat, answer = list(ROWS[0].chat), ROWS[0].completion
    read = [ByName().load(ref).answer_logprobs([chat], [answer])[0] for ref in (one, two)]
    assert read[1] == pytest.approx(read[0], abs=1e-3)
    untrained = ByName().load(base_ref("pocket/a")).answer_logprobs([chat], [answer])[0]
    assert np.abs(read[1] - untrained).max() > 1e-2


def test_how_many_processes_is_no_part_of_what_is_trained() -> None:
    assert describe(recipe(1)) == describe(recipe(2))


def test_what_cannot_be_shared_is_refused(tmp_path: Path) -> None:
    job = Job(base_ref("pocket/a"), Dataset(ROWS, None, ""), 3, tmp_path)
    with pytest.raises(BadSpec, match="does not divide"):
        recipe(3).train([job], ByName())
    with pytest.raises(BadSpec, match="one process"):
        recipe(2).train([Job(job.start, job.data, 3, tmp_path, None, Guard())], ByName())
    assert not list(tmp_path.iterdir())
