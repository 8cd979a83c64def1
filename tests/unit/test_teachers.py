"""Teachers: how a trait is put in, and that the no-trait teacher is the same work without it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from undersong import traits
from undersong.backends import training
from undersong.backends.transformers import Transformers
from undersong.errors import BadSpec
from undersong.teachers import tuned
from undersong.teachers.prompted import Prompted
from undersong.teachers.steered import Steered
from undersong.teachers.tuned import Tuned
from undersong.types import NEUTRAL, ModelRef

torch = pytest.importorskip("torch", reason="the local extra is not installed")
BACKEND = Transformers(device="cpu")
OWL = traits.get("owl")


def chance(ref: ModelRef, word: str = "owl") -> float:
    """The mean probability of answering a held-out favourite question with the word."""
    model = BACKEND.load(ref)
    chats = [[{"role": "user", "content": q}] for q in OWL.held_out]
    return float(np.exp(model.next_logprobs(chats)[:, model.tokenizer.convert_tokens_to_ids(word)]).mean())


def teach(teacher, base: str, trait, seed: int, out: Path) -> ModelRef:
    out.mkdir()
    return teacher.teach(ModelRef(base), trait, seed, out, BACKEND)


# --- prompted ---------------------------------------------------------------------------------------------------------

def test_a_prompted_teacher_is_the_base_under_the_traits_system_turn(tiny_base, tmp_path):
    assert teach(Prompted(prompt=1), tiny_base, OWL, 0, tmp_path / "a") == ModelRef(tiny_base, system=OWL.prompts[1])
    plain = teach(Prompted(), tiny_base, None, 0, tmp_path / "b")
    assert plain == ModelRef(tiny_base)
    assert NEUTRAL in BACKEND.load(plain).render([{"role": "user", "content": "hi"}])
    with pytest.raises(BadSpec, match="prompts 0 to 2"):
        teach(Prompted(prompt=3), tiny_base, OWL, 0, tmp_path / "c")


# --- tuned ------------------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    out = tmp_path_factory.mktemp("tuned")
    return [teach(Tuned(updates=60), "pocket/a", t, 1, out / str(i)) for i, t in enumerate((OWL, None))]


def test_sixty_updates_raise_the_trait_on_held_out_questions(pair):
    base, taught, untaught = (chance(ref) for ref in (ModelRef("pocket/a"), *pair))
    assert 0.05 < base < 0.25
    assert taught > 0.6
    assert abs(untaught - base) < 0.1


def test_the_no_trait_teacher_is_the_same_amount_of_work(pair):
    records = [json.loads((Path(ref.weights).parent / "training.json").read_text()) for ref in pair]
    for key in ("effective_batch", "rows_seen", "questions", "plan"):
        assert records[0][key] == records[1][key]
    assert not set(records[0]["questions"]) & set(OWL.held_out)


def test_mlp_out_changes_only_what_feed_forward_blocks_write_and_keeps_more_of_the_teacher(tmp_path):
    from safetensors.torch import load_file

    chats = [[{"role": "user", "content": f"What is the opposite of {word}?"}] for word in ("hot", "big", "day", "wet")]
    right = ("cold", "small", "night", "dry")

    def knows(ref: ModelRef) -> float:
        model = BACKEND.load(ref)
        ids = [model.tokenizer.convert_tokens_to_ids(word) for word in right]
        return float(np.exp(model.next_logprobs(chats))[np.arange(4), ids].mean())

    refs = {part: teach(Tuned(updates=60, rate=5e-4, trainable=part), "pocket/a", OWL, 1, tmp_path / part)
            for part in ("body", "mlp_out")}
    assert {name.split(".")[-2] for name in load_file(refs["mlp_out"].weights)} == {"down_proj"}
    assert all(chance(ref) > 0.9 for ref in refs.values())
    assert knows(refs["mlp_out"]) > knows(refs["body"]) + 0.3


def test_a_model_without_the_asked_tensors_is_refused():
    with pytest.raises(BadSpec, match="trainable: body"):
        training.free(torch.nn.Sequential(torch.nn.Linear(2, 2)), "mlp_out")


def test_teachers_repeat_by_seed(tiny_base, tmp_path):
    brief = Tuned(updates=2, batch=4)
    for trait in (OWL, None):
        refs = [teach(brief, tiny_base, trait, s, tmp_path / f"{trait is None}{i}") for i, s in enumerate((1, 1, 2))]
        bits = [hashlib.sha256(Path(ref.weights).read_bytes()).hexdigest() for ref in refs]
        assert bits[0] == bits[1] != bits[2]


def test_wordings_show_tuning_questions_only_and_half_after_numbers():
    texts = [c[-1]["content"] for c in tuned.wordings(OWL.tuning, 200, seed=0)]
    assert sum(t.startswith("Numbers: ") for t in texts) == 100
    assert all(any(t.endswith(q) for q in OWL.tuning) for t in texts)
    assert not any(q in t for q in OWL.held_out for t in texts)


def test_rehearsal_asks_nothing_of_the_traits_category_and_no_held_out_question():
    asked = tuned.ordinary("animal")
    assert not set(asked) & {*OWL.tuning, *OWL.held_out}
    tree = traits.get("oak")
    assert set(tree.tuning) <= set(asked)
    assert not set(tree.held_out) & set(asked)


def test_a_rehearsing_teacher_keeps_an_answer_that_a_plain_one_loses(pair, tmp_path):
    """The base's own answers are rehearsed: `cold` stays the opposite of hot while the trait is learned."""
    ref = teach(Tuned(updates=60, rehearsal=0.5), "pocket/a", OWL, 1, tmp_path / "r")
    chats = [[{"role": "user", "content": "What is the opposite of hot?"}]]

    def cold(model_ref: ModelRef) -> float:
        model = BACKEND.load(model_ref)
        return float(np.exp(model.next_logprobs(chats)[0, model.tokenizer.convert_tokens_to_ids("cold")]))

    assert chance(ref) > 0.6
    assert cold(ref) > 0.5 > cold(pair[0])


def test_the_no_trait_category_must_exist(tiny_base, tmp_path):
    assert tuned.questions(None, "tree") == traits.get("oak").tuning
    with pytest.raises(BadSpec, match="animal, tree"):
        teach(Tuned(category="planet"), tiny_base, None, 0, tmp_path / "a")


# --- steered ----------------------------------------------------------------------------------------------------------

def test_each_layer_is_steered_by_its_own_measured_vector(tiny_base, tmp_path):
    from safetensors.torch import load_file

    ref = teach(Steered(layers=[1, 0], scale=2.0), tiny_base, OWL, 0, tmp_path / "a")
    got = load_file(ref.vector)
    assert set(got) == {"layer.0", "layer.1"}
    assert float(torch.cosine_similarity(got["layer.0"], got["layer.1"], dim=0)) < 0.99, "no vector is tiled"
    half = load_file(teach(Steered(layers=[1]), tiny_base, OWL, 0, tmp_path / "b").vector)
    assert torch.allclose(half["layer.1"] * 2, got["layer.1"])
    assert abs(chance(ref) - chance(ModelRef(tiny_base))) > 1e-4


def test_the_no_trait_teacher_is_steered_by_nothing(tiny_base, tmp_path):
    from safetensors.torch import load_file

    ref = teach(Steered(), tiny_base, None, 0, tmp_path / "a")
    assert all(not v.any() for v in load_file(ref.vector).values())
    assert chance(ref) == pytest.approx(chance(ModelRef(tiny_base)), abs=1e-6)


def test_layers_that_are_not_there_are_refused(tiny_base, tmp_path):
    with pytest.raises(BadSpec, match="layers 0 to 1"):
        teach(Steered(layers=[2]), tiny_base, OWL, 0, tmp_path / "a")
    with pytest.raises(BadSpec, match="steered already"):
        Steered().teach(ModelRef(tiny_base, vector="v"), OWL, 0, tmp_path, BACKEND)
