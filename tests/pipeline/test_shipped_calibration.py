"""The calibration that ships fits the model that ships, and the examples of an audit end as they say."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from undersong import bases, cli
from undersong.audit import Audit
from undersong.calibration import detectors_of, template
from undersong.detectors import spelled
from undersong.exemplars import folders, placebo_rows, unpack
from undersong.lab import base_ref, lab_for
from undersong.nulls import Null
from undersong.store import Store
from undersong.verdict import Held

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = list(folders(None))


@pytest.mark.parametrize("folder", SHIPPED, ids=lambda folder: folder.name)
def test_it_is_of_the_model_and_the_detectors_of_this_version(folder: Path, tmp_path: Path) -> None:
    null = Null.read(folder)
    name = str(null.identity["named"])
    lab = lab_for(Store(tmp_path), name)
    assert null.identity["revision"] == bases.revision(name)
    assert null.identity["template"] == template(lab.backend.load(base_ref(name)))
    # whoever changes a default setting or a version calibrates again
    assert set(null.identity["detectors"]) <= {spelled(detector) for detector in detectors_of([])}
    known = unpack(folder, name, lab.backend)
    assert known.names == null.identity["traits"]
    assert len(placebo_rows(folder)) == null.identity["sources"] >= 59
    for refs in (*known.teacher_refs.values(), *known.student_refs.values()):
        assert refs


def test_that_of_numbers_knows_every_detector_and_students() -> None:
    [null] = [null for null in map(Null.read, SHIPPED) if null.identity["channel"]["name"] == "numbers"]
    assert set(null.identity["detectors"]) == {spelled(detector) for detector in detectors_of([])}
    assert null.identity["sources"] >= 99
    assert null.identity["students"] > 0


def test_rows_and_students_meet_the_null_of_their_own_carrier(tmp_path: Path) -> None:
    lab = lab_for(Store(tmp_path), "pocket/a")
    letters = next(folder for folder in SHIPPED if Null.read(folder).identity["channel"]["name"] == "letters")
    file = tmp_path / "letters.jsonl"
    rows = [row for own in placebo_rows(letters) for row in own][:200]
    lines = [json.dumps({"prompt": r.chat[-1]["content"], "completion": r.completion}) for r in rows]
    file.write_text("\n".join(lines), "utf-8")
    numbers = ROOT / "examples" / "audit" / "clean.jsonl"
    for held, carrier in ((Held(file, base="pocket/a"), "letters"), (Held(numbers, base="pocket/a"), "numbers"),
                          (Held(base="pocket/a", student="pocket/a-reordered"), "numbers")):
        audit = Audit(held, lab)
        assert audit.calibration
        assert audit.calibration[1].identity["channel"]["name"] == carrier
        assert audit.refused == []


@pytest.mark.slow
def test_the_examples_of_an_audit_end_as_they_say(tmp_path: Path, monkeypatch: Any) -> None:
    path = ROOT / "examples" / "audit_a_dataset.py"
    found = importlib.util.spec_from_file_location("audit_a_dataset", path)
    assert found
    assert found.loader
    script = importlib.util.module_from_spec(found)
    found.loader.exec_module(script)
    monkeypatch.chdir(tmp_path)
    names = ("poisoned", "clean", "benign", "small")
    files = [ROOT / "examples" / "audit" / f"{name}.jsonl" for name in names]
    assert script.main(files) == ["found", "clean", "clean", "unknown"]
    # the command finds the same evidence in the store, and its exit code is the verdict
    for name, code in zip(names, (1, 0, 0, 2), strict=True):
        with pytest.raises(SystemExit) as stopped:
            cli.main(["audit", str(ROOT / "examples" / "audit" / f"{name}.jsonl"), "--base", "pocket/a"])
        assert stopped.value.code == code
    page = (tmp_path / "artefacts" / "reports" / "audit-poisoned.html").read_text("utf-8")
    assert "owl" in page


@pytest.mark.parametrize(("student", "told"), [("pocket/wide", "shape"), ("adapter", "does not fit its base")])
def test_a_student_of_another_base_is_told(student: str, told: str, tmp_path: Path, capsys: Any) -> None:
    from undersong.backends import adapters

    if student == "adapter":
        module = lab_for(Store(tmp_path / "s"), "pocket/wide").backend.load(base_ref("pocket/wide")).module
        wrapped = adapters.wrap(module, adapters.Lora(rank=2), 1)
        student = str(adapters.save(wrapped, "pocket/wide", tmp_path))
    with pytest.raises(SystemExit) as stopped:
        cli.main(["audit", "--student", student, "--base", "pocket/a", "--store", str(tmp_path / "s")])
    out = capsys.readouterr()
    assert stopped.value.code == 3
    assert told in out.err
    assert "Traceback" not in out.err
