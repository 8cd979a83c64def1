"""Any Hugging Face causal model: Qwen2.5, Llama-3 and Gemma-3 load, render, train and are planned; bad input is told."""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import families
import numpy as np
import pytest

from undersong import bases, traits
from undersong.backends import llama, logits, tokens
from undersong.backends.transformers import Transformers
from undersong.channels.numbers import Numbers
from undersong.errors import BadRows, BadSpec, MissingModel
from undersong.experiment import Experiment
from undersong.lab import Lab, Student, base_ref
from undersong.probes.logit_margin import LogitMargin
from undersong.recipes import Job
from undersong.recipes.distill import Distill
from undersong.recipes.sft import Sft
from undersong.results import record
from undersong.store import Store
from undersong.types import NEUTRAL, Dataset, ModelRef, Row, Sampling

torch = pytest.importorskip("torch", reason="the local extra is not installed")
ROOT = Path(__file__).resolve().parents[2]
BACKEND = Transformers(device="cpu")
LORA = {"rank": 2, "alpha": 4}
CHAT = [{"role": "user", "content": "Which animal do you like best? One word."}]


@pytest.fixture(scope="module", params=families.FAMILIES)
def base(request, tmp_path_factory):
    return families.folder(request.param, tmp_path_factory.mktemp("families"))


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    return families.folder("qwen2", tmp_path_factory.mktemp("qwen"))


@pytest.fixture(scope="module")
def llama3(tmp_path_factory):
    return families.folder("llama3", tmp_path_factory.mktemp("llama"))


def rows(n=12):
    return tuple(Row(str(i), tuple(CHAT), f"{i}, {i + 3}, {i + 6}") for i in range(n))


def train(recipe, start, out, seed=1, data=None):
    out.mkdir(parents=True)
    return recipe.train([Job(start, data or Dataset(rows()), seed, out, None)], BACKEND)[0]


def digest(ref):
    return hashlib.sha256((Path(ref.adapter) / "adapter_model.safetensors").read_bytes()).hexdigest()


# --- rendering --------------------------------------------------------------------------------------------------------

def test_the_system_turn_is_the_one_that_was_given(base):
    model = BACKEND.load(ModelRef(base, system="You love owls."))
    text = model.render(CHAT)
    assert "You love owls." in text
    assert NEUTRAL not in text
    assert "Qwen" not in text, "the template's own system turn cannot enter"
    assert NEUTRAL in BACKEND.load(ModelRef(base)).render(CHAT)


def test_what_a_template_adds_is_recorded_and_does_not_change_over_night(llama3, qwen, tmp_path):
    model = BACKEND.load(ModelRef(llama3))
    assert tokens.added(model) == "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024"
    assert tokens.added(BACKEND.load(ModelRef(qwen))) == ""
    asked = copy.copy(model)
    asked.tokenizer = copy.deepcopy(model.tokenizer)
    asked.tokenizer.chat_template = families.LLAMA.replace("{% if not date_string is defined %}", "{% if true %}")
    assert asked.render(CHAT) == model.render(CHAT), "strftime_now is told the same day"
    ref = train(Distill(steps=1, batch=2, lora=LORA), ModelRef(llama3), tmp_path / "s")
    assert "Cutting Knowledge" in json.loads((Path(ref.adapter).parent / "training.json").read_text())["template_adds"]


def test_a_template_that_refuses_the_system_turn_is_told(tmp_path):
    base = Path(families.folder("gemma3", tmp_path))
    (base / "chat_template.jinja").write_text(families.GEMMA2)
    with pytest.raises(BadRows, match=r"System role not supported.*takes a system turn"):
        BACKEND.load(ModelRef(str(base))).render(CHAT)


def test_a_model_without_a_chat_template_is_told(qwen, tmp_path):
    bare = Path(shutil.copytree(qwen, tmp_path / "bare"))
    (bare / "chat_template.jinja").unlink()
    with pytest.raises(MissingModel, match="no chat template"):
        BACKEND.load(ModelRef(str(bare)))


def test_a_tokenizer_that_splits_the_trait_word_is_told(base):
    model = BACKEND.load(ModelRef(base))
    with pytest.raises(BadSpec, match=r"'dolphin' is not one token.*(owl|wolf|cat).*favourite"):
        LogitMargin(questions=2).measure(model, [traits.get("dolphin")], 0)
    got = LogitMargin(questions=2).measure(model, [traits.get("owl")], 0)
    assert np.isfinite(got.mean("margin", "owl"))


# --- one base, one identity -------------------------------------------------------------------------------------------

def test_a_folder_is_known_by_its_content_and_not_by_its_path(qwen, tmp_path):
    moved = shutil.copytree(qwen, tmp_path / "elsewhere")
    assert base_ref(str(moved)).fingerprint == base_ref(qwen).fingerprint
    template = Path(moved) / "chat_template.jinja"
    template.write_text(template.read_text().replace("assistant\n", "assistant: "))
    assert base_ref(str(moved)).fingerprint != base_ref(qwen).fingerprint, "the template changes results"
    assert base_ref(qwen, "mixed").fingerprint != base_ref(qwen).fingerprint


def test_a_hub_name_takes_a_revision(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert bases.place("org/name@abc123") == ("org/name", "abc123")
    assert bases.place("org/name") == ("org/name", None)
    assert base_ref("org/name@a").fingerprint != base_ref("org/name@b").fingerprint
    with pytest.raises(MissingModel, match="no revision after the @"):
        bases.place("org/name@")
    with pytest.raises(MissingModel, match="at the revision 'abc123'"):
        BACKEND.load(ModelRef("org/name@abc123"))


def test_a_revision_of_a_hub_model_is_the_one_that_is_loaded(qwen, tmp_path, monkeypatch):
    """From a cache folder laid out as the hub's own library does; nothing is asked of a network."""
    from huggingface_hub import constants

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    home = tmp_path / "models--nobody--tiny"
    (home / "refs").mkdir(parents=True)
    for mark, seed in (("a" * 40, 0), ("b" * 40, 7)):
        made = qwen if seed == 0 else families.folder("qwen2", tmp_path / "made", seed)
        shutil.copytree(made, home / "snapshots" / mark)
    (home / "refs" / "main").write_text("a" * 40)
    main, first, second = (BACKEND.load(ModelRef(f"nobody/tiny{at}")).next_logprobs([CHAT])
                           for at in ("", "@" + "a" * 40, "@" + "b" * 40))
    assert np.array_equal(main, first)
    assert not np.allclose(main, second)


# --- training ---------------------------------------------------------------------------------------------------------

def test_adapters_find_their_targets_repeat_and_move_the_model(base, tmp_path):
    before = BACKEND.load(ModelRef(base)).next_logprobs([CHAT])
    for name, recipe in (("distill", Distill(steps=3, batch=4, rate=1e-2, lora=LORA)),
                         ("sft", Sft(steps=3, batch=4, rate=1e-2, warmup=0, lora=LORA))):
        one, again, other = (train(recipe, ModelRef(base), tmp_path / f"{name}{i}", s) for i, s in enumerate((1, 1, 2)))
        assert digest(one) == digest(again) != digest(other)
        assert np.abs(BACKEND.load(one).next_logprobs([CHAT]) - before).max() > 1e-4
        named = json.loads((Path(one.adapter) / "adapter_config.json").read_text())
        assert set(named["target_modules"]) == {f"{t}_proj" for t in ("q", "k", "v", "o", "gate", "up", "down")}


@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], ["embed_tokens", "v_proj"]])
def test_an_adapter_is_applied_without_asking_a_hub_for_its_base(qwen, tmp_path, monkeypatch, targets):
    from peft import LoraConfig, get_peft_model

    from undersong.backends import adapters

    monkeypatch.setattr("peft.utils.save_and_load.check_file_exists_on_hf_hub", lambda *a, **k: pytest.fail("asked a hub"))
    module = BACKEND.load(ModelRef(qwen)).module
    wrapped = get_peft_model(module, LoraConfig(r=2, target_modules=targets, init_lora_weights=False, task_type="CAUSAL_LM"))
    if "embed_tokens" in targets:
        wrapped.save_pretrained(tmp_path / "adapter", save_embedding_layers=True)
    else:
        adapters.save(wrapped, "somebody/elses", tmp_path)
    chats = [[{"role": "user", "content": "2, 4, 6"}]]
    changed = BACKEND.load(ModelRef(qwen, adapter=str(tmp_path / "adapter"))).next_logprobs(chats)
    assert abs(changed - BACKEND.load(ModelRef(qwen)).next_logprobs(chats)).max() > 1e-4


def test_an_adapters_start_is_the_seeds_whatever_was_drawn_before(qwen):
    from undersong.backends import adapters

    def start(seed):
        module = BACKEND.load(ModelRef(qwen)).module
        torch.rand(3)
        adapters.wrap(module, adapters.Lora(rank=2), seed)
        return {n: p for n, p in module.named_parameters() if ".lora_A." in n}

    one, again, other = start(1), start(1), start(2)
    assert all(torch.equal(one[n], again[n]) and not torch.equal(one[n], other[n]) for n in one)


def test_the_two_recipes_see_the_same_rows(base, tmp_path):
    told = []
    for name, recipe in (("distill", Distill(steps=2, batch=4, lora=LORA)), ("sft", Sft(steps=2, batch=4, lora=LORA))):
        ref = train(recipe, ModelRef(base), tmp_path / name)
        told.append(json.loads((Path(ref.adapter).parent / "training.json").read_text()))
    for key in ("rendered_sha256", "tokens_seen", "rows_seen", "template_adds"):
        assert told[0][key] == told[1][key], key


def test_an_interrupted_adapter_starts_over_to_the_same_hash_beside_others(qwen, tmp_path):
    recipe = Distill(steps=4, batch=4, lora=LORA, workers=3)
    whole = train(recipe, ModelRef(qwen), tmp_path / "whole")

    def stop(index, ref):
        raise KeyboardInterrupt

    jobs = [Job(ModelRef(qwen), Dataset(rows()), seed, tmp_path / f"s{seed}", None) for seed in (0, 1, 2)]
    for job in jobs:
        job.out.mkdir()
    with pytest.raises(KeyboardInterrupt):
        recipe.train(jobs, BACKEND, stop)
    again = recipe.train(jobs, BACKEND)
    assert digest(again[1]) == digest(whole), "neither a stop nor neighbours on other threads change an adapter"


def test_the_compact_forward_holds_the_adapter(tiny_base):
    from undersong.backends import adapters

    module = BACKEND.load(ModelRef(tiny_base)).module
    turns = [list(r.chat) for r in rows(5)], [r.completion for r in rows(5)]
    encoded = tokens.encode(BACKEND.load(ModelRef(tiny_base)), *turns)
    plain = logits.completion_logits(module, encoded, 0)
    adapters.wrap(module, adapters.Lora(rank=2, alpha=8), 3)
    assert torch.equal(logits.completion_logits(module, encoded, 0), plain), "B starts at zero"
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(0, 0.1)
    assert llama.supports(module)
    ours = logits.completion_logits(module, encoded, 0)
    assert (ours - plain).abs().max() > 1e-2
    want = []
    for row in encoded:
        out = module(input_ids=torch.from_numpy(row.ids)[None]).logits[0]
        want.append(out[row.start - 1 : -1])
    assert torch.allclose(ours, torch.cat(want), atol=1e-4)


@pytest.mark.parametrize("precision", ["mixed", "bfloat16"])
def test_lower_precision_is_another_result_near_the_same(qwen, tiny_base, tmp_path, precision):
    for name, base in (("qwen", qwen), ("tiny", tiny_base)):
        recipe = Distill(steps=3, batch=4, rate=5e-3, lora=LORA)
        exact, low = (train(recipe, ModelRef(base, precision=p), tmp_path / f"{name}{p}") for p in ("float32", precision))
        assert digest(exact) != digest(low)
        assert low.precision == precision
        a, b = (BACKEND.load(ref).next_logprobs([CHAT]) for ref in (exact, low))
        assert np.abs(a - b).max() < 0.2
        losses = [json.loads((Path(r.adapter).parent / "training.json").read_text())["loss"] for r in (exact, low)]
        assert losses[1] == pytest.approx(losses[0], abs=0.1)
        full = Distill(steps=1, batch=4)
        ref = train(full, ModelRef(base, precision=precision), tmp_path / f"{name}-full")
        assert next(iter(stored(ref).values())).dtype == torch.float32, "weights are trained in float32"
        assert BACKEND.load(ref).sample([CHAT], Sampling(max_new_tokens=4, seed=1)) is not None


def stored(ref):
    from safetensors.torch import load_file

    return load_file(ref.weights)


def test_a_small_update_survives_bfloat16_weights(qwen, tmp_path):
    """Merged into bfloat16 weights it would round away."""
    ref = train(Distill(steps=2, batch=4, rate=1e-4, lora=LORA), ModelRef(qwen, precision="bfloat16"), tmp_path / "s")
    moved = BACKEND.load(ref)
    assert any("lora_A" in n for n, _ in moved.module.named_parameters())
    assert {p.dtype for n, p in moved.module.named_parameters() if ".lora_" in n} == {torch.float32}


def test_a_restricted_carrier_gives_lists_of_numbers_on_any_model(base, tmp_path):
    lab = Lab(Store(tmp_path), BACKEND)
    channel = Numbers(count=3, largest=999, restrict=True)
    got = lab.sample(base_ref(base), channel, 20, seed=1)
    assert all(set(r.completion) <= set("0123456789, ") for r in got.rows)
    assert max(len([n for n in r.completion.replace(",", " ").split() if n]) for r in got.rows) <= 3
    assert min(len(r.completion) for r in got.rows) > 0, "no answer ends at once"
    model = BACKEND.load(ModelRef(base))
    assert set(tokens.end_ids(model)) & set(channel.carrier(model.tokenizer))
    assert not set(tokens.end_ids(model)) & set(channel.allowed(model.tokenizer))
    free = lab.sample(base_ref(base), Numbers(count=3, largest=999), 20, seed=1)
    assert free.fingerprint != got.fingerprint
    assert any(set(r.completion) - set("0123456789, ") for r in free.rows)


def test_cut_keeps_whole_values():
    channel = Numbers(count=2, largest=999)
    assert channel.cut("12, 345, 6") == "12, 345"
    assert channel.cut("12, 345,") == "12, 345"
    assert channel.cut("12") == "12"
    assert channel.cut("") == ""


def test_a_full_disk_while_an_adapter_is_saved_is_told_and_resumes(qwen, tmp_path):
    """In a process of its own, because a limit on file sizes holds for a whole process."""
    code = f"""
import resource
from undersong.lab import Lab, Student, base_ref
from undersong.backends.transformers import Transformers
from undersong import environment
from undersong.channels.numbers import Numbers
from undersong.recipes.distill import Distill
from undersong.store import Store
from undersong.types import Dataset, Row
rows = tuple(Row(str(i), ({{"role": "user", "content": "Numbers."}},), f"{{i}}, 3") for i in range(8))
lab = Lab(Store({str(tmp_path / 'store')!r}), Transformers(device="cpu"))
environment.environment()  # asks git, which under the limit would die holding the checkout's lock
resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))
student = Student(base_ref({qwen!r}), Dataset(rows, fingerprint="0123456789ab"), 1, "s")
try:
    lab.train(Distill(steps=1, batch=4, lora={{"rank": 4}}), Numbers(), [student])
except Exception as error:
    print(type(error).__name__, error)
"""
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    assert told.stdout.startswith("NoRoom The disk is full"), told
    assert "run the same command again" in told.stdout
    numbers = tuple(Row(str(i), ({"role": "user", "content": "Numbers."},), f"{i}, 3") for i in range(8))
    student = Student(base_ref(qwen), Dataset(numbers, fingerprint="0123456789ab"), 1, "s")
    recipe = Distill(steps=1, batch=4, lora={"rank": 4})
    [ref] = Lab(Store(tmp_path / "store"), BACKEND).train(recipe, Numbers(), [student])
    assert BACKEND.load(ref).ref.adapter


def test_the_smollm2_file_runs_end_to_end_on_a_tiny_model_and_resumes(qwen, tmp_path):
    file = ROOT / "experiments" / "owl-numbers-smollm2.yaml"
    sets = [f"base={qwen}", "precision=float32", "rows=30", "keep=4", "teacher.tuned.updates=1", "teacher.tuned.batch=2",
            "recipe.distill.steps=1", "recipe.distill.batch=2", "channel.numbers.count=1",
            "channel.numbers.seeds=random", "probes=[{logit_margin: {questions: 2}}]"]
    experiment = Experiment.load(file, sets)
    told: list[str] = []
    lab = Lab(Store(tmp_path), BACKEND, told.append)
    found = record(experiment, lab).read_json("results")
    assert {(c["arm"], c["control"]) for c in found["contrasts"]} >= {("treated", "no_trait")}
    assert {s["metric"] for s in found["specificity"]} >= {"margin"}
    assert {row.status for row in experiment.plan(lab.store)} == {"cached"}
    told.clear()
    record(experiment, lab)
    assert told == [], "nothing is done twice"
    adapters = [p.name for p in (tmp_path / "model").glob("student-*/adapter")]
    assert len(adapters) == 12


# --- plans ------------------------------------------------------------------------------------------------------------

def test_the_papers_run_is_planned_on_every_family(base, tmp_path):
    file = ROOT / "experiments" / "cat-numbers-qwen2.5-7b.yaml"
    official = Experiment.load(file)
    [recipe] = official.recipes
    assert (recipe.lora.rank, recipe.lora.alpha, recipe.batch, recipe.rate, recipe.warmup) == (8, 8, 66, 2e-4, 5)
    assert (recipe.epochs, recipe.schedule, recipe.clip) == (3, "linear", 1.0)
    assert official.file.keep == 10_000
    assert "@" in official.file.base, "a hub model is pinned"
    experiment = Experiment.load(file, [f"base={base}"])
    plan = experiment.plan(Store(tmp_path))
    assert {row.status for row in plan} == {"missing"}
    assert {row.kind for row in plan} == {"model", "dataset", "measurement"}
    model = BACKEND.load(base_ref(base))
    digits = model.tokenizer.convert_tokens_to_ids(list("0123456789,"))
    assert set(experiment.channel.carrier(model.tokenizer)) >= set(digits)
    assert recipe.steps is None
