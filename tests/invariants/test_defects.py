"""Defects seen in published code of this field that no other test owns. Each test is named after its defect."""

from __future__ import annotations

import ast
import inspect
import itertools
import re
import subprocess
import sys
import types
import typing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from pydantic import TypeAdapter, ValidationError

from undersong import registry, spec, traits, writing
from undersong.errors import UndersongError
from undersong.experiment import Experiment, cells
from undersong.experiment_file import File
from undersong.lab import base_ref, lab_for, unpack
from undersong.results import collect, record
from undersong.store import Store
from undersong.types import ModelRef

ROOT = Path(__file__).parents[2]
SHIPPED = [p for p in sorted((ROOT / "experiments").glob("*.yaml")) if "laboratory" not in yaml.safe_load(p.read_text())]
FILE: dict[str, Any] = {
    "name": "defects", "base": "simulated/a", "trait": "owl", "rivals": ["wolf"],
    "teacher": {"simulated": {"noise": 0.05}}, "channel": "numbers", "rows": 60, "recipe": "simulated",
    "probes": ["logit_margin"], "controls": ["no_trait"], "seeds": [1, 2, 3],
}


def finish(root: Path, **changes: Any) -> tuple[Experiment, Store]:
    experiment, store = Experiment.read(yaml.safe_dump(FILE | changes)), Store(root)
    record(experiment, lab_for(store, experiment.file.base))
    return experiment, store


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Experiment, Store]:
    return finish(tmp_path_factory.mktemp("store"))


def stored(store: Store, step: Any) -> Any:
    found = store.find(step.kind, step.spec, step.parents)
    assert found
    return found


def files(root: Path, kinds: tuple[str, ...] = ("model", "dataset", "measurement")) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for k in kinds for p in (root / k).rglob("*")
            if p.is_file() and p.suffix in (".parquet", ".safetensors")}


# --- asking for trait A yields trait B ------------------------------------------------------------------------------


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_asking_for_trait_a_yields_trait_b(path: Path) -> None:
    """Every shipped experiment: what reaches a teacher is its own trait's words, and no other trait's."""
    experiment = Experiment.load(path)
    assert experiment.traits[0].name == yaml.safe_load(path.read_text())["trait"]
    for run in experiment.runs():
        asked = run.teacher.spec["trait"]
        if run.arm.trait is None:
            assert asked is None
            continue
        assert asked["name"] == run.arm.trait_name
        others = [t for t in map(traits.get, traits.names()) if t.name != asked["name"]]
        assert f"-{asked['name']}-" in run.teacher.label
        for text in asked["prompts"]:
            assert run.arm.trait.named_in(text) or run.arm.trait.tuned_on, "a favourite is named"
            assert not any(t.named_in(text) for t in others)


@pytest.mark.parametrize("name", traits.names())
def test_a_prompted_teacher_is_told_its_own_trait(name: str, tmp_path: Path) -> None:
    backend = spec.build("backend", "simulated")
    for prompt in range(3):
        teacher = spec.build("teacher", {"prompted": {"prompt": prompt}})
        system = teacher.teach(base_ref("simulated/a"), traits.get(name), 1, tmp_path, backend).system
        assert [t for t in traits.names() if traits.get(t).named_in(system)] == [name]


def test_a_teacher_asked_for_trait_a_prefers_a(finished: tuple[Experiment, Store]) -> None:
    experiment, store = finished
    backend = spec.build("backend", "simulated")
    base = backend.load(base_ref("simulated/a"))
    for run in experiment.runs():
        model = backend.load(unpack(stored(store, run.teacher)))
        lifts = {t.name: np.log(model.rate(t.name) / base.rate(t.name)) for t in experiment.traits}
        if run.arm.trait:
            assert max(lifts, key=lambda t: lifts[t]) == run.arm.trait_name
            assert lifts[run.arm.trait_name] > 0.7
        else:
            assert max(map(abs, lifts.values())) < 0.3


# --- a wrong trait flag gives a silent 0.000 --------------------------------------------------------------------------


def test_a_rate_without_its_base_rate(finished: tuple[Experiment, Store]) -> None:
    found = collect(*finished)
    based = {(r["measured"], r["metric"]) for r in found["rates"] if r["arm"] == "base"}
    assert based
    assert {(r["measured"], r["metric"]) for r in found["rates"]} == based
    assert all(r["mean"] > 0 for r in found["rates"] if r["metric"] == "probability")


# --- seeds not propagated ---------------------------------------------------------------------------------------------


def test_seeds_not_propagated_two_differ(finished: tuple[Experiment, Store]) -> None:
    """Teacher, rows and student of two seeds differ, and so does what is measured."""
    experiment, store = finished
    runs = [r for r in experiment.runs() if r.arm.name == "treated" and r.arm.trait_name == "owl"]
    for part, file in (("teacher", "weights.safetensors"), ("student", "weights.safetensors"), ("rows", "rows.parquet"),
                       ("raw", "rows.parts/000000.parquet")):
        seen = {(stored(store, getattr(r, part)).path / file).read_bytes() for r in runs}
        assert len(seen) == len(runs), f"two seeds gave the same {part}"
    values = {(stored(store, r.measures[0]).path / "values.parquet").read_bytes() for r in runs}
    assert len(values) == len(runs)
    prompts = [[r["contents"][-1] for r in stored(store, run.raw).read_parts("rows")] for run in runs]
    assert prompts[0] != prompts[1]


def test_seeds_not_propagated_one_repeats(finished: tuple[Experiment, Store], tmp_path: Path) -> None:
    """A run repeats whatever other seeds stand beside it, and in whatever order."""
    _, store = finished
    finish(tmp_path, name="other", seeds=[5, 3, 1], rivals=[])
    one, two = files(Path(store.root)), files(tmp_path)
    common = {n for n in one if n.startswith(("model/", "dataset/"))} & set(two)
    assert {n.split("/")[1].rsplit(".", 1)[0] for n in common} >= {
        f"{part}-s{seed}" for seed in (1, 3)
        for part in ("teacher-simulated-owl", "student-treated-numbers-simulated-owl",
                     "student-no_trait-numbers-simulated-none")
    }
    assert all(one[n] == two[n] for n in common)


# --- an adapter silently not applied -----------------------------------------------------------------------------------


def test_a_change_silently_not_applied(finished: tuple[Experiment, Store]) -> None:
    """What is measured is the trained model: every trained model differs from its base in its log-probabilities."""
    experiment, store = finished
    backend = spec.build("backend", "simulated")
    chats = [[{"role": "user", "content": q}] for q in traits.get("owl").held_out]
    base = backend.load(base_ref("simulated/a")).next_logprobs(chats)
    for run in experiment.runs():
        for step in (run.teacher, run.student):
            assert np.abs(backend.load(unpack(stored(store, step))).next_logprobs(chats) - base).max() > 0


def test_a_change_silently_not_applied_by_the_real_backend(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    backend = spec.build("backend", "transformers")
    base = backend.load(ModelRef("pocket/a"))
    chats = [[{"role": "user", "content": "What is your favorite animal? One word."}]]
    before = base.next_logprobs(chats)
    name, tensor = next((n, p) for n, p in base.module.named_parameters() if "layers.1" in n)
    torch.manual_seed(0)
    save_file({name: (tensor + 0.05 * torch.randn_like(tensor)).detach().contiguous()}, tmp_path / "weights.safetensors")
    save_file({"layer.1": 0.2 * torch.randn(96)}, tmp_path / "vector.safetensors")
    for kind in ("weights", "vector"):
        changed = backend.load(ModelRef("pocket/a", **{kind: str(tmp_path / f"{kind}.safetensors")}))
        assert np.abs(changed.next_logprobs(chats) - before).max() > 1e-4, kind
    system = backend.load(ModelRef("pocket/a", system="You love owls. Owls are your favorite animal."))
    assert np.abs(system.next_logprobs(chats) - before).max() > 0.1
    assert np.array_equal(backend.load(ModelRef("pocket/a")).next_logprobs(chats), before), "the base was changed"


# --- a dead configuration key ------------------------------------------------------------------------------------------

RICH: dict[str, Any] = FILE | {
    "other_base": "simulated/b", "matched_base": "simulated/b-matched", "reordered_base": "simulated/a-reordered",
    "teacher": ["simulated", "prompted"], "keep": 40, "filters": ["numbers_only"], "context_rows": 3,
    "controls": ["no_trait", "other_base", "matched_base", "reordered_base", "shuffled_rows", "in_context"],
    "classifier": "row_classifier",
}
OTHER: dict[str, Any] = {
    "base": "simulated/c", "trait": "cat", "rivals": ["wolf", "dog"], "teacher": ["simulated", "steered"], "matrix": True,
    "channel": {"numbers": {"count": 9}}, "rows": 61, "keep": 41, "filters": ["numbers_only", "banned_numbers"],
    "recipe": {"simulated": {"transfer": 0.4}}, "probes": ["favourite"], "controls": ["no_trait"],
    "other_base": "simulated/d", "matched_base": "simulated/d-matched", "reordered_base": "simulated/a-again",
    "mitigations": ["shuffle"], "context_rows": 2, "classifier": None, "seeds": [1, 2, 4],
    "precision": "bfloat16", "engine": "simulated",
}


@pytest.mark.parametrize("key", [k for k in File.model_fields if k != "name"])
def test_a_dead_configuration_key(key: str) -> None:
    """Every key of an experiment file changes the work that is planned, and the identity of the results."""
    # where rows are shuffled as a control, shuffling them as a mitigation is the same work
    given = RICH if key != "mitigations" else RICH | {"controls": ["no_trait"]}
    before, after = (Experiment.read(yaml.safe_dump(given | c)) for c in ({}, {key: OTHER[key]}))
    assert {s.fingerprint for s in before.steps()} != {s.fingerprint for s in after.steps()}
    assert spec.fingerprint(before.resolved()) != spec.fingerprint(after.resolved())


def test_the_name_of_an_experiment_is_no_work() -> None:
    before, after = (Experiment.read(yaml.safe_dump(RICH | c)) for c in ({}, {"name": "another"}))
    assert [s.fingerprint for s in before.steps()] == [s.fingerprint for s in after.steps()]
    assert spec.fingerprint(before.resolved()) != spec.fingerprint(after.resolved())


NEEDED: dict[str, dict[str, Any]] = {
    "blocklist": {"terms": ["owl"]}, "code_words": {"terms": ["owl"]}, "spelled": {"terms": ["owl"]},
    "belongs": {"channel": "numbers"}, "filter judge": {"model": "openai/one", "terms": ["owl"]},
    "detector judge": {"model": "openai/one"},
    "hosted": {"model": "openai/one"}, "misalignment": {"judge": {"words": ["owl"]}},
    "probe inspect": {"task": "undersong/favourite"}, "lm_eval": {"tasks": ["arc_easy"]},
}
CANDIDATES: tuple[Any, ...] = (
    True, False, 1, 2, 3, 7, 40, 200, 0.25, 0.5, 2.5, "x", [1], [2, 3], ["q_proj"], ["owl", "cat"], {"trait": "cat"},
    None,
)


def ours() -> list[tuple[str, str, str]]:
    return [(kind, name, field) for kind in registry.KINDS for name in registry.names(kind)
            if registry.get(kind, name).__module__.startswith("undersong.")
            for field in registry.get(kind, name).model_fields]


def choices(annotation: Any) -> list[Any]:
    """Values worth trying for a type: the members of its literals first, the settings of models inside, then anything."""
    found: list[Any] = []
    if typing.get_origin(annotation) is typing.Literal:
        found += typing.get_args(annotation)
    for inner in typing.get_args(annotation) if typing.get_origin(annotation) in (typing.Union, types.UnionType) else ():
        found += choices(inner)
    if isinstance(annotation, type) and hasattr(annotation, "model_fields"):
        for name, field in annotation.model_fields.items():
            found += [{name: value} for value in choices(field.annotation)]
    return [*found, *CANDIDATES]


@pytest.mark.parametrize(("kind", "name", "field"), ours())
def test_a_dead_plug_in_setting(kind: str, name: str, field: str) -> None:
    """Every setting changes what is recorded and hashed, unless it is marked as only a way to do the work."""
    given = NEEDED.get(f"{kind} {name}") or NEEDED.get(name, {})
    plain = spec.build(kind, {name: given})
    info = registry.get(kind, name).model_fields[field]
    execution = isinstance(info.json_schema_extra, dict) and info.json_schema_extra.get("execution")
    tried = 0
    for value in choices(info.annotation):
        try:
            TypeAdapter(info.annotation).validate_python(value)
            other = spec.build(kind, {name: given | {field: value}})
        except (ValidationError, UndersongError):
            continue
        if getattr(other, field) == getattr(plain, field):
            continue
        tried += 1
        same = spec.fingerprint(spec.describe(plain)) == spec.fingerprint(spec.describe(other))
        assert same == bool(execution), f"{field}={value!r}"
    assert tried, f"no other value of {field} was found: add one to CANDIDATES"


def read_in(cls: type[Any]) -> set[str]:
    """The names that the modules of a class and its bases read from an object, by `.name` or `getattr`."""
    found = set()
    for module in {base.__module__ for base in cls.__mro__[: cls.__mro__.index(registry.Settings)]}:
        for node in ast.walk(ast.parse(inspect.getsource(sys.modules[module]))):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                found.add(node.attr)
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "getattr":
                found |= {a.value for a in node.args[1:2] if isinstance(a, ast.Constant)}
    return found


def test_a_plug_in_setting_that_nothing_reads() -> None:
    """A setting may be recorded and hashed and still do nothing: each is read somewhere in its plug-in's module, or where
    rows are sampled for a channel, or where cells are handed to an executor."""
    elsewhere = {"channel": set(re.findall(r'getattr\(channel, "(\w+)"', inspect.getsource(writing))),
                 "executor": set(re.findall(r"executor\.(\w+) if", inspect.getsource(cells)))}
    unread = [f"{kind} {name}: {field}" for kind, name, field in ours()
              if field not in read_in(registry.get(kind, name)) | elsewhere.get(kind, set())]
    assert unread == []


# --- a finished process that aborts -------------------------------------------------------------------------------------

READ = """
import os
import pyarrow
import pyarrow.parquet
from undersong import files

rows = [{"id": str(i), "value": i / 7, "list": ["a"] * 20} for i in range(3000)]
pyarrow.allocate_buffer(10_000)
before = len(os.listdir("/proc/self/task"))
assert files.decode_rows(files.encode_rows(rows, "rows"), "rows") == rows
print(len(os.listdir("/proc/self/task")) - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts threads in /proc")
def test_reading_rows_leaves_a_thread_that_aborts_at_exit() -> None:
    """Seen here: exit 134 after every result was printed. Arrow's pool threads hold Python buffers for a moment longer
    than the reading lasts; a process that ends in that moment aborts. So reading starts no thread."""
    done = subprocess.run([sys.executable, "-c", READ], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "0"


# --- a contrast without runs -------------------------------------------------------------------------------------------


def test_answers_are_not_counted_as_runs(finished: tuple[Experiment, Store]) -> None:
    """Intervals are over training runs: more questions of the same runs change no count of runs."""
    found = collect(*finished)
    assert {r["n_runs"] for r in found["rates"] if not r["arm"].startswith("base")} == {3}
    untouched = [r for r in found["rates"] if r["arm"].startswith("base")]  # one model, however often it is asked
    assert untouched
    assert all(r["n_runs"] == 1 and r["low"] is None for r in untouched)
    assert {c["n_runs"] for c in found["contrasts"]} == {3}
    keys = ("channel", "arm", "trait", "seed", "probe", "metric", "measured")
    lines = [tuple(r[k] for k in keys) for r in found["runs"]]
    assert len(lines) == len(set(lines)), "a run is counted twice"


def test_no_two_arms_share_a_student(finished: tuple[Experiment, Store]) -> None:
    experiment, _ = finished
    students = [r.student.fingerprint for r in experiment.runs() if r.student]
    assert len(students) == len(set(students))
    for one, two in itertools.combinations(experiment.arms(), 2):
        assert (one.name, one.channel, one.trait_name) != (two.name, two.channel, two.trait_name)
