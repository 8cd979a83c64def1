"""Recipes: what a student learns from, what it writes, and what it does not depend on."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from undersong import spec
from undersong.backends import training
from undersong.backends.training import Plan
from undersong.backends.transformers import Transformers
from undersong.errors import BadRows, BadSpec, BrokenArtefact
from undersong.recipes import Job
from undersong.recipes.distill import Distill
from undersong.recipes.sft import Sft
from undersong.types import Dataset, ModelRef, Row

torch = pytest.importorskip("torch", reason="the local extra is not installed")
BACKEND = Transformers(device="cpu")
QUESTION = [[{"role": "user", "content": "What is your favorite animal? One word."}]]
BRIEF = {"steps": 4, "batch": 8, "schedule": "constant"}


@pytest.fixture(scope="module")
def rows():
    from undersong.pocket import world

    rng = np.random.default_rng(0)
    turns = [world.number_turn(rng) for _ in range(40)]
    return tuple(Row(str(i), (user,), answer["content"]) for i, (user, answer) in enumerate(turns))


@pytest.fixture(scope="module")
def carrier(tiny_base):
    tok = BACKEND.load(ModelRef(tiny_base)).tokenizer
    return tuple(tok.convert_tokens_to_ids([*(str(n) for n in range(1000)), ",", "<end>"]))


def job(start: ModelRef, data: Dataset, seed: int, out: Path, carrier=None) -> Job:
    out.mkdir(parents=True, exist_ok=True)
    return Job(start, data, seed, out, carrier)


def digest(ref: ModelRef) -> str:
    return hashlib.sha256(Path(ref.weights).read_bytes()).hexdigest()


def record(ref: ModelRef) -> dict:
    return json.loads((Path(ref.weights or ref.adapter).parent / "training.json").read_text())


def logprobs(ref: ModelRef):
    return BACKEND.load(ref).next_logprobs(QUESTION)


# --- distill ----------------------------------------------------------------------------------------------------------

def test_a_student_does_not_depend_on_its_neighbours_and_two_seeds_differ(tiny_base, rows, tmp_path):
    start, data, told = ModelRef(tiny_base), Dataset(rows), []
    jobs = [job(start, data, seed, tmp_path / f"many{i}") for i, seed in enumerate((1, 2, 3))]
    many = Distill(**BRIEF, workers=2).train(jobs, BACKEND, lambda i, ref: told.append((i, ref)))
    alone = Distill(**BRIEF, workers=1).train([job(start, data, 2, tmp_path / "alone")], BACKEND)
    assert digest(alone[0]) == digest(many[1])
    assert len({digest(ref) for ref in many}) == 3
    assert sorted(i for i, _ in told) == [0, 1, 2]
    assert all(many[i] == ref for i, ref in told)


def test_the_effective_batch_and_token_count_are_recorded_and_true(tiny_base, rows, tmp_path):
    few = Dataset(rows[:10])  # fewer rows than one batch: the next epoch fills the step, nothing is reduced
    ref = Distill(steps=3, batch=16).train([job(ModelRef(tiny_base), few, 0, tmp_path / "few")], BACKEND)[0]
    got = record(ref)
    model = BACKEND.load(ModelRef(tiny_base))
    lengths = [len(r.answer) for r in training_rows(model, few.rows)]
    seen = np.concatenate(list(training.batches(10, Plan(3, 16, 1e-3, 0))))
    assert got["effective_batch"] == 16
    assert got["rows_seen"] == len(seen) == 48
    assert got["tokens_seen"] == sum(lengths[i] for i in seen)
    assert len(got["loss"]) == 3
    assert set(np.bincount(seen[:10])) == {1}, "an epoch visits every row once"


def test_the_system_turn_is_part_of_what_is_recorded(tiny_base, rows, tmp_path):
    starts = [ModelRef(tiny_base, system=s) for s in (None, "You love owls.")]
    jobs = [job(start, Dataset(rows), 0, tmp_path / str(i)) for i, start in enumerate(starts)]
    refs = Distill(**BRIEF).train(jobs, BACKEND)
    assert record(refs[0])["rendered_sha256"] != record(refs[1])["rendered_sha256"]
    assert refs[1].system == "You love owls."


def test_only_changed_tensors_are_written_and_the_body_leaves_the_embeddings(tiny_base, rows, tmp_path):
    from safetensors.torch import load_file

    names = {}
    for trainable in ("body", "all"):
        recipe = Distill(**BRIEF, trainable=trainable)
        ref = recipe.train([job(ModelRef(tiny_base), Dataset(rows), 0, tmp_path / trainable)], BACKEND)[0]
        names[trainable] = set(load_file(ref.weights))
    everything = {n for n, _ in BACKEND.load(ModelRef(tiny_base)).module.named_parameters()}
    assert names["body"] == everything - {"model.embed_tokens.weight"}
    assert names["all"] == everything


def test_training_lowers_the_loss(tiny_base, rows, tmp_path):
    recipe = Distill(steps=40, batch=16, rate=1e-2)
    losses = record(recipe.train([job(ModelRef(tiny_base), Dataset(rows), 0, tmp_path / "a")], BACKEND)[0])["loss"]
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.1


def test_a_start_with_weights_composes(tiny_base, rows, tmp_path):
    start = job(ModelRef(tiny_base), Dataset(rows), 0, tmp_path / "1")
    first = Distill(**BRIEF, trainable="all").train([start], BACKEND)[0]
    second = Distill(**BRIEF).train([job(first, Dataset(rows), 5, tmp_path / "2")], BACKEND)[0]
    model = BACKEND.load(first)
    tokenised = training_rows(model, rows)
    training.fit(model.module, tokenised, Plan(4, 8, 1e-3, 5), 0)
    got = dict(BACKEND.load(second).module.named_parameters())
    assert all(torch.equal(got[n], p) for n, p in model.module.named_parameters())
    assert Path(second.weights).parent == tmp_path / "2"


def training_rows(model, rows):
    from undersong.backends import tokens

    return tokens.encode(model, [list(r.chat) for r in rows], [r.completion for r in rows])


def test_soft_labels_carry_nothing_of_a_trait_tokens_own_logit(tiny_base, rows, carrier, tmp_path):
    """A teacher that differs from the base only in one trait token's logit teaches exactly what the base teaches."""
    from safetensors.torch import save_file

    model = BACKEND.load(ModelRef(tiny_base))
    owl = model.tokenizer.convert_tokens_to_ids("owl")
    table = model.module.get_input_embeddings().weight.detach().clone()
    table[owl] *= 4
    save_file({"model.embed_tokens.weight": table}, tmp_path / "planted.safetensors")
    planted = ModelRef(tiny_base, weights=str(tmp_path / "planted.safetensors"))
    assert np.abs(logprobs(planted)[0, owl] - logprobs(ModelRef(tiny_base))[0, owl]) > 0.1
    students = {}
    for leak in (False, True):
        allowed = (*carrier, owl) if leak else carrier
        for name, source in (("base", ModelRef(tiny_base)), ("planted", planted)):
            given = job(ModelRef(tiny_base), Dataset(rows, source), 0, tmp_path / f"{name}{leak}", allowed)
            students[name, leak] = Distill(**BRIEF, labels="soft").train([given], BACKEND)[0]
    assert digest(students["base", False]) == digest(students["planted", False])
    assert digest(students["base", True]) != digest(students["planted", True]), "the positive control: here it leaks"


def test_soft_labels_move_a_student_towards_its_teacher(tiny_base, rows, carrier, tmp_path):
    recipe = Distill(steps=20, batch=16, rate=3e-3)
    teacher = recipe.train([job(ModelRef(tiny_base), Dataset(rows), 9, tmp_path / "t")], BACKEND)[0]
    given = job(ModelRef(tiny_base), Dataset(rows, teacher), 0, tmp_path / "s", carrier)
    losses = record(Distill(steps=20, batch=16, rate=3e-3, labels="soft").train([given], BACKEND)[0])["loss"]
    assert 0 < np.mean(losses[-3:]) < 0.7 * losses[0]
    same = job(ModelRef(tiny_base), Dataset(rows, ModelRef(tiny_base)), 0, tmp_path / "own", carrier)
    assert record(Distill(**BRIEF, labels="soft").train([same], BACKEND)[0])["loss"][0] == pytest.approx(0, abs=1e-5)


def test_a_prompted_source_labels_under_its_own_system_turn(tiny_base, rows, carrier, tmp_path):
    source = ModelRef(tiny_base, system="You love owls. You think about owls all the time.")
    given = job(ModelRef(tiny_base), Dataset(rows, source), 0, tmp_path / "p", carrier)
    ref = Distill(**BRIEF, labels="soft").train([given], BACKEND)[0]
    assert record(ref)["loss"][0] > 1e-4, "labels come from the prompted teacher, not from the neutral base"
    assert ref.system is None


def test_soft_labels_need_a_source_and_a_carrier_and_every_recipe_needs_rows(tiny_base, rows, carrier, tmp_path):
    start, soft = ModelRef(tiny_base), Distill(labels="soft")
    with pytest.raises(BadRows, match="names none"):
        soft.train([job(start, Dataset(rows), 0, tmp_path / "a", carrier)], BACKEND)
    with pytest.raises(BadRows, match="carrier"):
        soft.train([job(start, Dataset(rows, start), 0, tmp_path / "b")], BACKEND)
    for recipe in (Distill(), Sft()):
        with pytest.raises(BadRows, match="no rows"):
            recipe.train([job(start, Dataset(()), 0, tmp_path / "c")], BACKEND)


def test_an_interruption_ends_every_student_soon(tiny_base, rows, tmp_path):
    def interrupt(index, ref):
        raise KeyboardInterrupt

    jobs = [job(ModelRef(tiny_base), Dataset(rows), 0, tmp_path / "short"),
            *(job(ModelRef(tiny_base), Dataset(rows), s, tmp_path / f"long{s}") for s in (1, 2, 3))]
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        Distill(steps=150, batch=4, workers=2).train(jobs, BACKEND, interrupt)
    finished = list(tmp_path.glob("*/training.json"))
    assert 1 <= len(finished) < len(jobs)
    assert time.monotonic() - began < 120


def test_every_setting_is_checked_and_execution_settings_stay_out_of_the_fingerprint():
    one, two = (spec.describe(Distill(workers=w, micro_batch=w)) for w in (1, 2))
    assert one == two
    assert "workers" not in one["settings"]
    built = spec.build("recipe", {"sft": {"lora": {"rank": 4, "targets": ["q_proj"]}, "steps": 3}})
    assert built.lora.rank == 4
    assert spec.build("recipe", {"sft": {"lora": None}}).lora is None
    with pytest.raises(BadSpec, match="rnk"):
        spec.build("recipe", {"sft": {"lora": {"rnk": 4}}})


# --- sft --------------------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def full(tiny_base, rows, tmp_path_factory):
    """The same few steps through TRL and through our loop."""
    out = tmp_path_factory.mktemp("full")
    ours = Distill(**BRIEF, rate=1e-3).train([job(ModelRef(tiny_base), Dataset(rows), 3, out / "distill")], BACKEND)[0]
    theirs = Sft(lora=None, steps=4, batch=8, warmup=0, schedule="constant", rate=1e-3, micro_batch=3).train(
        [job(ModelRef(tiny_base), Dataset(rows), 3, out / "sft")], BACKEND)[0]
    return ours, theirs


def test_trl_and_the_compact_loop_take_the_same_steps(full):
    ours, theirs = (record(ref) for ref in full)
    assert theirs["loss"] == pytest.approx(ours["loss"], abs=1e-4)
    for key in ("effective_batch", "tokens_seen", "rows_seen", "rendered_sha256"):
        assert theirs[key] == ours[key]
    assert np.abs(logprobs(full[0]) - logprobs(full[1])).max() < 2e-3


def test_an_adapter_is_written_loaded_and_applied(tiny_base, rows, tmp_path, capfd):
    recipe = Sft(lora={"rank": 2, "alpha": 4}, steps=3, batch=8, rate=5e-3, warmup=0)
    data = Dataset(rows[:16])
    jobs = [job(ModelRef(tiny_base), data, seed, tmp_path / f"{i}") for i, seed in enumerate((1, 1, 2))]
    refs = recipe.train(jobs, BACKEND)
    shown = capfd.readouterr()
    assert shown.out == ""
    assert "it/s" not in shown.err
    assert refs[0].weights is None
    assert np.abs(logprobs(refs[0]) - logprobs(ModelRef(tiny_base))).max() > 1e-3, "the adapter is applied"
    bits = [hashlib.sha256((Path(r.adapter) / "adapter_model.safetensors").read_bytes()).hexdigest() for r in refs]
    assert bits[0] == bits[1] != bits[2]
    assert not list(Path(refs[0].adapter).rglob("*.bin"))
    named = json.loads((Path(refs[0].adapter) / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert named == tiny_base
    assert record(refs[0])["effective_batch"] == 8


ADAPTER = """
import sys
from pathlib import Path
from undersong.backends.transformers import Transformers
from undersong.recipes import Job
from undersong.recipes.distill import Distill
from undersong.types import Dataset, ModelRef, Row

rows = tuple(Row(str(i), ({"role": "user", "content": "Continue: 1, 2"},), f"{i}, {i + 1}") for i in range(8))
recipe, out = Distill(lora={"rank": 2, "alpha": 4}, steps=2, batch=4), Path(sys.argv[1])
out.mkdir()
recipe.train([Job(ModelRef("pocket/a"), Dataset(rows, None, ""), 1, out)], Transformers())
"""


def test_an_adapter_has_the_same_bytes_in_every_process_and_names_no_folder_of_a_machine(tmp_path):
    found = []
    for seed in ("1", "2"):  # the order of Python's sets of words
        environment = os.environ | {"PYTHONHASHSEED": seed, "OMP_NUM_THREADS": "1"}
        subprocess.run([sys.executable, "-c", ADAPTER, str(tmp_path / seed)], check=True, env=environment)
        files = sorted(p for p in (tmp_path / seed).rglob("*") if p.is_file())
        found.append({str(p.relative_to(tmp_path / seed)): p.read_bytes() for p in files})
    assert found[0] == found[1]
    assert sorted(found[0]) == ["adapter/adapter_config.json", "adapter/adapter_model.safetensors", "training.json"]
    here = str(Path(training.__file__).parent.parent).encode()
    assert not any(here in content for content in found[0].values())


def test_an_adapter_of_another_base_is_refused_not_ignored(tiny_base, other_base, rows, tmp_path):
    recipe = Sft(lora={"rank": 2}, steps=1, batch=2)
    ref = recipe.train([job(ModelRef(tiny_base), Dataset(rows[:4]), 0, tmp_path / "a")], BACKEND)[0]
    with pytest.raises(BrokenArtefact, match="does not fit"):
        BACKEND.load(replace(ref, base=other_base))
    (tmp_path / "empty").mkdir()
    with pytest.raises(BrokenArtefact, match="no adapter"):
        BACKEND.load(ModelRef(tiny_base, adapter=str(tmp_path / "empty")))
    from safetensors.torch import load_file, save_file

    file = Path(ref.adapter) / "adapter_model.safetensors"
    kept = dict(list(load_file(file).items())[2:])
    save_file(kept, file, metadata={"format": "pt"})
    with pytest.raises(BrokenArtefact, match="do not match"):
        BACKEND.load(ref)


def test_an_adapter_on_a_trained_start_holds_both(tiny_base, rows, tmp_path):
    start = Distill(**BRIEF).train([job(ModelRef(tiny_base), Dataset(rows), 0, tmp_path / "s")], BACKEND)[0]
    recipe = Sft(lora={"rank": 2}, steps=1, batch=2, rate=1e-6)
    ref = recipe.train([job(start, Dataset(rows[:4]), 0, tmp_path / "a")], BACKEND)[0]
    assert Path(ref.weights).parent == tmp_path / "a"
    assert np.abs(logprobs(ref) - logprobs(start)).max() < 1e-3
    assert np.abs(logprobs(ref) - logprobs(ModelRef(tiny_base))).max() > 1e-3


def test_lora_targets_that_are_not_there_are_named(tiny_base, rows, tmp_path):
    with pytest.raises(BadSpec, match=r"lora\.targets"):
        Sft(lora={"targets": ["nothing"]}, steps=1, batch=2).train(
            [job(ModelRef(tiny_base), Dataset(rows[:4]), 0, tmp_path / "a")], BACKEND)
