"""A real chain on a pocket model, from teacher to student: sealed, verified, exported in every format, and tampered with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from undersong import cli, registry, traits
from undersong.lab import Student, base_ref, lab_for
from undersong.provenance.cyclonedx import complaint
from undersong.spec import build
from undersong.store import Store

pytest.importorskip("model_signing", reason="the provenance extra is not installed")


def run(capsys: Any, *args: str | Path) -> tuple[int, str]:
    with pytest.raises(SystemExit) as stopped:
        cli.main([str(a) for a in args])
    return int(stopped.value.code or 0), capsys.readouterr().out


@pytest.mark.slow
def test_a_pocket_student_is_sealed_verified_and_exported(tmp_path: Path, capsys: Any) -> None:
    store = Store(tmp_path / "store")
    lab, base, owl = lab_for(store, "pocket/a"), base_ref("pocket/a"), traits.get("owl")
    numbers = build("channel", "numbers")
    teacher = lab.teach(build("teacher", {"tuned": {"updates": 2, "batch": 4}}), base, owl, 1)
    kept = lab.refine(lab.sample(teacher, numbers, 40, 1), [build("filter", "numbers_only")])
    recipe = build("recipe", {"distill": {"steps": 2, "batch": 8}})
    (student,) = lab.train(recipe, numbers, [Student(base, kept, 1, "student")])
    lab.measure(student, build("probe", "logit_margin"), [owl], 1)

    key, public = tmp_path / "me", ("--key", tmp_path / "me.pub")
    at = ("--store", store.root, "--json")
    assert run(capsys, "keys", "new", key)[0] == 0
    code, said = run(capsys, "seal", "model/student", "--key", key, *at)
    assert (code, len(json.loads(said)["sealed"])) == (0, 6)
    code, said = run(capsys, "verify", "model/student", *public, *at)
    assert (code, json.loads(said)["ok"]) == (0, True)
    assert any("base pocket/a (float32): pinned by content" in line for line in json.loads(said)["checked"])

    for name in registry.names("exporter"):
        what, out = "dataset/refined" if name == "croissant" else "model/student", tmp_path / f"{name}.out"
        assert run(capsys, "export", what, "--format", name, "--out", out, *at)[0] == 0
    bom = json.loads((tmp_path / "cyclonedx.out").read_text())
    metrics = bom["metadata"]["component"]["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]
    assert complaint(bom) is None
    assert {"logit_margin: margin", "logit_margin: probability"} <= {m["type"] for m in metrics}
    assert all(m["confidenceInterval"]["lowerBound"] for m in metrics)

    for what in ("model/student", "model/teacher", "dataset/rows", "dataset/refined"):
        folder = store.get(what).path
        file = next(p for p in sorted(folder.rglob("*")) if p.suffix in (".safetensors", ".parquet"))
        data = file.read_bytes()
        file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        code, said = run(capsys, "verify", "model/student", *public, *at)
        assert code == 1
        assert folder.name in json.loads(said)["first_failure"]
        assert file.name in json.loads(said)["first_failure"]
        file.write_bytes(data)
    assert run(capsys, "verify", "model/student", *public, *at)[0] == 0
