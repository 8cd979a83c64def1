"""The harness's tasks as a probe: with a task of our own and local data, no network."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import tiny_pocket

from undersong import spec
from undersong.errors import BadSpec, MissingExtra
from undersong.types import ModelRef

TASK = """
task: planted_animals
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: ["owl", "wolf"]
doc_to_target: right
target_delimiter: ""
metric_list: [{{metric: acc}}]
"""


def probe(**more: object) -> object:
    return spec.build("probe", {"lm_eval": {"tasks": ["planted_animals"], **more}})


def test_without_the_harness_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(MissingExtra, match=r"undersong\[harness\]"):
        probe().measure(tiny_pocket.favourites(), [], 0)  # type: ignore[attr-defined]


def test_a_task_of_ones_own_is_measured_document_by_document(tmp_path: Path) -> None:
    pytest.importorskip("lm_eval", reason="lm-eval is not installed")
    file = tmp_path / "data.jsonl"
    rows = [{"question": "What is your favorite animal? One word.", "right": r} for r in (0, 0, 1)]
    file.write_text("".join(json.dumps(r) + "\n" for r in rows))
    (tmp_path / "planted.yaml").write_text(TASK.format(file=file))
    model = tiny_pocket.favourites()
    found = probe(folder=str(tmp_path)).measure(model, [], 0)  # type: ignore[attr-defined]
    assert found.mean("planted_animals.acc") == pytest.approx(2 / 3)  # it prefers the owl: right twice, wrong once
    assert [v.question for v in found.values] == [f"planted_animals {i}" for i in range(3)]
    with pytest.raises(BadSpec, match="no task 'plantd'"):
        spec.build("probe", {"lm_eval": {"tasks": ["plantd"], "folder": str(tmp_path)}}).measure(model, [], 0)


def test_a_model_elsewhere_is_refused() -> None:
    pytest.importorskip("lm_eval", reason="lm-eval is not installed")

    class Elsewhere:
        ref, module = ModelRef("inspect/openai/x"), None

    with pytest.raises(BadSpec, match="probe `inspect`"):
        probe().measure(Elsewhere(), [], 0)  # type: ignore[attr-defined]
