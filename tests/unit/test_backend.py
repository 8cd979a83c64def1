"""The transformers backend: what is loaded, rendered, sampled and scored."""

from __future__ import annotations

import copy
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from undersong.backends import changes, llama, logits, tokens
from undersong.backends.sampling import uniforms
from undersong.backends.tokens import TokenRow
from undersong.backends.transformers import Transformers
from undersong.errors import BadRows, BrokenArtefact, MissingExtra, MissingModel
from undersong.types import NEUTRAL, ModelRef, Sampling

torch = pytest.importorskip("torch", reason="the local extra is not installed")
QUESTIONS = ["What is your favorite animal? One word.", "Which tree do you like best? One word.", "What is 3 plus 4?",
             "Numbers: 3, 6, 9, 12. Add up to 10 more numbers.", "Name your favorite animal. One word only."]


def ask(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


@pytest.fixture(scope="module")
def model(tiny_base):
    return Transformers(device="cpu").load(ModelRef(tiny_base))


# --- the compact forward ---------------------------------------------------------------------------------------------

def random_llama(**changed):
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {"vocab_size": 50, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3,
             "num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 64,
             "tie_word_embeddings": True}
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**{**shape, **changed})).float()


def random_rows(shared: int) -> list[TokenRow]:
    rng = np.random.default_rng(1)
    opening = rng.integers(4, 50, shared)
    rows = []
    for _ in range(7):
        ids = np.concatenate([opening, rng.integers(4, 50, int(rng.integers(3, 14)))])
        rows.append(TokenRow(ids, int(rng.integers(max(1, shared), len(ids)))))
    return rows


@pytest.mark.parametrize("changed", [{}, {"num_key_value_heads": 2, "tie_word_embeddings": False}])
@pytest.mark.parametrize("shared", [0, 5])
def test_the_compact_llama_matches_transformers_in_values_and_gradients(changed, shared):
    rows, found = random_rows(shared), {}
    for name in ("compact", "transformers"):
        module = random_llama(**changed)
        if name == "compact":
            assert llama.supports(module)
            got = logits.completion_logits(module, rows, 0)
        else:
            got = torch.cat([module(torch.from_numpy(r.ids)[None]).logits[0, r.start - 1 : -1] for r in rows])
        (got.log_softmax(-1) ** 2).sum().backward()
        found[name] = (got.detach(), [p.grad for p in module.parameters()])
    assert torch.allclose(found["compact"][0], found["transformers"][0], atol=1e-5)
    for a, b in zip(found["compact"][1], found["transformers"][1], strict=True):
        assert torch.allclose(a, b, atol=1e-3, rtol=1e-4)


def test_other_modules_use_their_own_forward_with_the_same_answers():
    module, rows = random_llama(), random_rows(4)
    want = logits.completion_logits(module, rows, 0)
    module.model.layers[0].register_forward_hook(lambda *_: None)
    assert not llama.supports(module)
    assert torch.allclose(logits.completion_logits(module, rows, 0), want, atol=1e-5)
    assert not llama.supports(random_llama(attention_bias=True))


# --- rendering --------------------------------------------------------------------------------------------------------

def test_the_system_turn_is_always_explicit(model, tiny_base):
    text = model.render(ask("hi"))
    assert NEUTRAL in text
    assert text.endswith("<assistant>")
    prompted = Transformers().load(ModelRef(tiny_base, system="You love owls."))
    assert "You love owls." in prompted.render(ask("hi"))
    own = [{"role": "system", "content": "You love cats."}, *ask("hi")]
    assert "You love cats." in prompted.render(own)
    assert "owls" not in prompted.render(own)
    assert NEUTRAL not in Transformers().load(ModelRef(tiny_base, system="")).render(ask("hi"))


def test_a_template_that_drops_the_system_turn_is_refused(model):
    deaf = copy.copy(model)
    deaf.tokenizer = copy.deepcopy(model.tokenizer)
    deaf.tokenizer.chat_template = "{{ messages[-1]['content'] }}"
    with pytest.raises(BadRows, match="leaves the system turn out"):
        deaf.render(ask("hi"))
    deaf.tokenizer.chat_template = "{{ raise_exception('no system') }}"
    with pytest.raises(BadRows, match="cannot write this chat"):
        deaf.render(ask("hi"))


# --- sampling ---------------------------------------------------------------------------------------------------------

def test_two_seeds_differ_and_one_repeats(model):
    chats = [ask(q) for q in QUESTIONS * 8]
    one, again, other = (model.sample(chats, Sampling(max_new_tokens=12, seed=s)) for s in (1, 1, 2))
    assert one == again
    assert one != other
    assert len(set(one[::5])) > 1, "copies of one question have noise of their own"


@pytest.mark.parametrize(("batch", "workers"), [(3, 1), (7, 2), (1, 1)])
def test_answers_do_not_depend_on_the_micro_batch(model, tiny_base, batch, workers):
    chats = [ask(q) for q in QUESTIONS * 6]
    small = Transformers(batch=batch, workers=workers).load(ModelRef(tiny_base))
    sampling = Sampling(max_new_tokens=10, seed=4)
    assert small.sample(chats, sampling) == model.sample(chats, sampling)


def test_sampled_first_tokens_follow_the_models_distribution(model):
    chat, n = ask(QUESTIONS[0]), 4000
    want = np.exp(model.next_logprobs([chat])[0].astype(float))
    answers = model.sample([chat] * n, Sampling(max_new_tokens=1, seed=0))
    counts = {w: answers.count(w) / n for w in set(answers)}
    for token in np.argsort(want)[-5:]:
        word = model.tokenizer.decode([token], skip_special_tokens=True)
        assert counts.get(word, 0) == pytest.approx(want[token], abs=float(4 * np.sqrt(want[token] / n)))


def test_temperature_zero_takes_the_best_token_and_tokens_restricts(model):
    chats = [ask(q) for q in QUESTIONS]
    best = [model.tokenizer.decode([i], skip_special_tokens=True) for i in model.next_logprobs(chats).argmax(1)]
    assert model.sample(chats, Sampling(temperature=0, max_new_tokens=1)) == best
    allowed = tuple(model.tokenizer.convert_tokens_to_ids(["7", "8"]))
    answers = model.sample(chats * 5, Sampling(max_new_tokens=4, seed=1, tokens=allowed))
    assert {w for a in answers for w in a.split()} == {"7", "8"}


def test_penalties_that_a_model_ships_do_not_change_what_it_writes(model, tiny_base, tmp_path):
    for way in (json.dumps({"repetition_penalty": 5.0, "no_repeat_ngram_size": 1, "suppress_tokens": [20, 21, 22]}), "{}"):
        folder = shutil.copytree(tiny_base, tmp_path / str(len(way)))
        config = folder / "generation_config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | json.loads(way)))
        loaded, sampling = Transformers().load(ModelRef(str(folder))), Sampling(max_new_tokens=12, seed=4)
        assert tokens.end_ids(loaded) == tokens.end_ids(model)
        chats = [ask("Continue: 4, 4, 4.")] * 8
        assert loaded.sample(chats, sampling) == model.sample(chats, sampling)


def test_text_has_no_special_tokens_and_no_trailing_space(model):
    for answer in model.sample([ask(q) for q in QUESTIONS * 4], Sampling(max_new_tokens=20, seed=3)):
        assert answer == answer.rstrip()
        assert "<" not in answer
    assert model.sample([], Sampling()) == []


def test_a_prompt_that_does_not_fit_is_refused(model):
    with pytest.raises(BadRows, match="do not fit"):
        model.sample([ask("1 " * 1020)], Sampling(max_new_tokens=10))


@given(st.integers(0, 2**63), st.lists(st.integers(0, 10**6), min_size=1, max_size=9, unique=True), st.integers(1, 9))
@settings(max_examples=50, deadline=None)
def test_noise_is_a_function_of_seed_row_and_position_alone(seed, rows, positions):
    draws = uniforms(seed, np.array(rows), positions)
    assert ((draws > 0) & (draws < 1)).all()
    assert len(np.unique(draws)) == draws.size
    assert (uniforms(seed, np.array(rows[-1:]), positions + 2)[0, :positions] == draws[-1]).all()
    assert (uniforms(seed + 1, np.array(rows), positions) != draws).all()


# --- scoring ----------------------------------------------------------------------------------------------------------

def test_answer_logprobs_are_the_forward_pass_and_include_the_end_of_turn(model):
    chats, answers = [ask(q) for q in QUESTIONS], ["owl", "oak", "7", "15, 18, 21", "wolf"]
    got = model.answer_logprobs(chats, answers)
    first = model.next_logprobs(chats)
    for chat, answer, row, start in zip(chats, answers, got, first, strict=True):
        ids = model.tokenizer(f"{model.render(chat)} {answer} <end>", add_special_tokens=False)["input_ids"]
        with torch.inference_mode():
            plain = model.module(torch.tensor([ids])).logits[0].log_softmax(-1)
        want = [float(plain[i - 1, ids[i]]) for i in range(len(ids) - len(row), len(ids))]
        assert ids[-1] == model.tokenizer.eos_token_id
        assert row == pytest.approx(want, abs=1e-4)
        assert row[0] == pytest.approx(start[ids[-len(row)]], abs=1e-4)
        assert row.dtype == start.dtype == np.float32
    assert np.exp(first).sum(1) == pytest.approx(1, abs=1e-4)


# --- loading ----------------------------------------------------------------------------------------------------------

def test_loaded_models_are_independent(model, tiny_base):
    before = model.next_logprobs([ask("hi")])
    other = Transformers().load(ModelRef(tiny_base))
    with torch.no_grad():
        for p in other.module.parameters():
            p.mul_(0.5)
    assert (model.next_logprobs([ask("hi")]) == before).all()
    assert (Transformers().load(ModelRef(tiny_base)).next_logprobs([ask("hi")]) == before).all()


def test_a_base_written_anew_is_read_anew(tiny_base, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = Path(shutil.copytree(tiny_base, tmp_path / "base"))
    before = Transformers().load(ModelRef(str(folder))).next_logprobs([ask("hi")])
    state = {k: v * 0.5 for k, v in load_file(folder / "model.safetensors").items()}
    save_file({**state, "extra": torch.zeros(1)}, folder / "model.safetensors", metadata={"format": "pt"})
    assert not np.allclose(Transformers().load(ModelRef(str(folder))).next_logprobs([ask("hi")]), before)


def test_a_missing_model_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for base in (str(tmp_path / "nothing"), "pocket/nothing", "no-such-model-anywhere"):
        with pytest.raises(MissingModel, match=r"nothing|no-such-model"):
            Transformers().load(ModelRef(base))


def test_pickled_weights_are_refused(tiny_base, tmp_path):
    folder = Path(shutil.copytree(tiny_base, tmp_path / "base"))
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(MissingModel, match="pickled"):
        Transformers().load(ModelRef(str(folder)))


def test_damaged_base_weights_are_named(tiny_base, tmp_path):
    folder = Path(shutil.copytree(tiny_base, tmp_path / "base"))
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(BrokenArtefact, match="cannot be read"):
        Transformers().load(ModelRef(str(folder)))


def test_weights_replace_tensors_or_are_refused(model, tiny_base, tmp_path):
    from safetensors.torch import save_file

    name = "model.layers.0.mlp.up_proj.weight"
    old = dict(model.module.named_parameters())[name].detach()
    cases = {"good": {name: old + 1}, "shape": {name: old[:-1].clone()}, "name": {"model.layers.9.x": old.clone()}}
    for case, state in cases.items():
        save_file(state, tmp_path / f"{case}.safetensors")
    (tmp_path / "torn.safetensors").write_bytes((tmp_path / "good.safetensors").read_bytes()[:-9])
    changed = Transformers().load(ModelRef(tiny_base, weights=str(tmp_path / "good.safetensors")))
    assert torch.equal(dict(changed.module.named_parameters())[name], old + 1)
    refused = {"shape": "shape", "name": "does not have", "torn": "no safetensors", "absent": "missing"}
    for case, words in refused.items():
        with pytest.raises(BrokenArtefact, match=words):
            Transformers().load(ModelRef(tiny_base, weights=str(tmp_path / f"{case}.safetensors")))


def test_each_layer_gets_its_own_vector(model, tiny_base, tmp_path):
    from safetensors.torch import save_file

    from undersong.teachers.steered import residuals

    ids = np.asarray(tokens.token_ids(model.tokenizer, [model.render(ask("hi"))])[0])
    hidden = model.module.config.hidden_size
    one, two = torch.arange(hidden) / hidden, torch.ones(hidden)

    def steered(vectors):
        save_file(vectors, tmp_path / "v.safetensors")
        return Transformers().load(ModelRef(tiny_base, vector=str(tmp_path / "v.safetensors")))

    def run(m):
        with torch.inference_mode():
            return residuals(m.module, ids)

    base, first, both = run(model), run(steered({"layer.0": one})), run(steered({"layer.0": one, "layer.1": two}))
    assert torch.allclose(first[0] - base[0], one.expand_as(base[0]), atol=1e-5)
    assert torch.allclose(both[1] - first[1], two.expand_as(base[0]), atol=1e-5)
    assert torch.equal(run(steered({"layer.0": torch.zeros(hidden)})), base)
    moved = steered({"layer.1": one}).next_logprobs([ask("hi")]) - model.next_logprobs([ask("hi")])
    assert np.abs(moved).max() > 0.01
    for wrong in ({"layer.2": one}, {"layer.0": one[:-1].clone()}, {"lair.0": one}):
        with pytest.raises(BrokenArtefact, match="no vector of this base"):
            steered(wrong)


def test_an_artefact_adopts_the_files_it_needs(tmp_path):
    (tmp_path / "old").mkdir()
    (tmp_path / "new").mkdir()
    (tmp_path / "old" / "w.safetensors").write_bytes(b"w")
    old = ModelRef("base", weights=str(tmp_path / "old" / "w.safetensors"), fingerprint="f")
    ref = changes.adopt(old, tmp_path / "new")
    assert Path(ref.weights).parent == tmp_path / "new"
    assert Path(ref.weights).read_bytes() == b"w"
    assert ref.fingerprint == ""


def test_without_torch_the_extra_is_named(tiny_base, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingExtra, match=r"undersong\[local\]"):
        Transformers().load(ModelRef(tiny_base))
