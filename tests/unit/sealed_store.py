"""A store with one artefact of every kind, made by hand in milliseconds: a chain from pocket/a down. Not a test file."""

from __future__ import annotations

import shutil
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from undersong import lab, registry
from undersong.artefact import Artefact
from undersong.lab import base_ref
from undersong.seals import Sealer, keys
from undersong.store import Store
from undersong.types import Row
from undersong.writing import flat, sample_spec, shard_spec

BASE = "pocket/a"
ROWS = [Row(f"1-{i}", ({"role": "user", "content": f"Continue: {i}, {i + 1}."},), f"{i + 2}, {i + 3}") for i in range(6)]


def _weights(artefact: Artefact, name: str, seed: int) -> str:
    from safetensors.numpy import save_file

    path = artefact.path / name
    path.parent.mkdir(exist_ok=True)
    save_file({"layer.weight": np.random.default_rng(seed).normal(size=(8, 8)).astype("float32")}, path)
    return name


def _ref(**change: Any) -> dict[str, Any]:
    empty = {"weights": None, "adapter": None, "vector": None, "system": None, "fingerprint": "", "precision": "float32"}
    return {"base": BASE, **empty, **change}


def build(root: Path) -> dict[str, Artefact]:
    """The store's artefacts by what they are: teacher (vector), raw rows (two parts), refined rows, student (weights),
    adapter, measurement, finding, calibration and its cases, kinship, explanation, experiment."""
    store, out = Store(root), dict[str, Artefact]()
    numbers, sft = registry.get("channel", "numbers")(), registry.get("recipe", "sft")()
    base = base_ref(BASE).fingerprint

    def made(name: str, kind: str, spec: dict[str, Any], parents: list[str], write: Any) -> str:
        with store.open(kind, name, spec, parents) as artefact:
            artefact.finish(write(artefact))
        out[name] = artefact
        return artefact.fingerprint

    def vector(a: Artefact) -> dict[str, Any]:
        return {"ref": _ref(vector=_weights(a, "vector.safetensors", 1))}

    def raw(a: Artefact) -> dict[str, Any]:
        a.write_part("rows", 0, flat(ROWS[:3]))
        a.write_part("rows", 1, flat(ROWS[3:]))
        return {"rows": 6}

    def refined(a: Artefact) -> dict[str, Any]:
        a.write_parquet("rows", flat(ROWS[:4]))
        why = "names | the <owl>"
        a.write_parquet("dropped", [{"id": "1-5", "filter": "blocklist", "reason": why, "completion": "owl"}])
        return {"given": 6, "passed": 4, "kept": 4, "reasons": {"blocklist": {why: 2}}}

    def adapter(a: Artefact) -> dict[str, Any]:
        _weights(a, "adapter/adapter_model.safetensors", 3)
        (a.path / "adapter" / "adapter_config.json").write_text('{"peft_type": "LORA"}')
        return {"ref": _ref(adapter="adapter")}

    def measured(a: Artefact) -> dict[str, Any]:
        a.write_parquet("values", [{"metric": "rate", "trait": "owl", "question": q, "value": v, "n": 20}
                                   for q, v in (("a", 0.5), ("b", 0.7), ("c", 0.6))])
        a.write_parquet("answers", [{"question": "a", "answer": "owl"}])
        return {"probe": "favourite", "values": 3}

    def found(a: Artefact) -> dict[str, Any]:
        a.write_json("finding", {"verdict": "found", "statistic": 3.0, "p": 0.01, "access": ["rows"], "null": "x"})
        return {"verdict": "found"}

    def whole(a: Artefact) -> dict[str, Any]:
        a.write_json("results", {"sentence": "It crossed."})
        return {"sentence": "It crossed."}

    teach = {"verb": "teach", "teacher": {"name": "steered", "settings": {}}, "trait": {"name": "owl"}, "seed": 1}
    teacher = made("teacher", "model", teach, [base], vector)
    rows = made("raw", "dataset", sample_spec(numbers, 6, 1), [teacher], raw)
    made("shard", "shard", shard_spec(sample_spec(numbers, 6, 1), range(3, 6)), [teacher],
         lambda a: (a.write_part("rows", 0, flat(ROWS[3:])), {"first": 1, "size": 3, "rows": 3, "seconds": 0.1})[1])
    kept = made("rows", "dataset", lab.refine_spec([registry.get("filter", "numbers_only")()], 4), [rows], refined)
    train = lab.train_spec(sft, numbers, 1)
    student = made("student", "model", train, [base, kept],
                   lambda a: {"ref": _ref(weights=_weights(a, "weights.safetensors", 2))})
    made("adapter", "model", {**train, "seed": 2}, [base, kept], adapter)
    probe = {"verb": "measure", "probe": {"name": "favourite"}, "seed": 0}
    measure = made("measured", "measurement", probe, [student], measured)
    made("finding", "finding", {"verb": "audit", "detector": {"name": "marginals"}}, ["0123456789ab"], found)
    made("calibration", "calibration", {"verb": "calibrate", "file": {"base": BASE}}, [base],
         lambda a: (a.write_json("null", {"cases": []}), {"cases": 0})[1])
    made("cases", "cases", {"verb": "calibrate", "detector": {"name": "marginals"}}, [base],
         lambda a: (a.write_part("cases", 0, [{"unit": 0, "size": 50, "trait": "", "share": 0.0}]), {"cases": 1})[1])
    made("kinship", "kinship", {"verb": "kinship", "alpha": 0.01, "relation": "same_initialisation", "tests": []},
         [student, base], lambda a: (a.write_json("kinship", {"relation": "same_initialisation"}), {"p": 1e-9})[1])
    made("explanation", "explanation", {"verb": "explain", "explainer": {"name": "logit_lens"}},
         [student, base, "fedcba987654"], lambda a: (a.write_json("explanation", {"sentence": "owl"}), {})[1])
    made("reading", "reading", {"verb": "read", "base": BASE}, [student, base],
         lambda a: (a.write_json("reading", {"words": {}, "nll": 1.0}), {})[1])
    made("experiment", "experiment", {"verb": "report", "experiment": {"base": BASE}}, sorted([rows, kept, measure]), whole)
    return out


@cache
def original(home: Path) -> tuple[Path, dict[str, str], Path]:
    """A sealed store under `home`: its root, the name of each artefact, and the private key. Made once."""
    key = home / "keys" / "me"
    keys.new(key)
    root = home / "store"
    made = build(root)
    for artefact in made.values():
        Sealer(key, "Me <me@example.org>").seal(Store(root), artefact)
    return root, {name: f"{a.path.parent.name}/{a.path.name}" for name, a in made.items()}, key


def copy(root: Path, target: Path) -> Store:
    """A copy to break."""
    shutil.copytree(root, target)
    return Store(target)
