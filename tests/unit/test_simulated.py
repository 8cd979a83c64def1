"""Simulated models: the planted strength comes back, crosses only within one initialisation, and repeats by seed."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from undersong import registry, simulated, stats, traits
from undersong.backends import CAPABILITIES, Backend, Model
from undersong.errors import BadRows, BadSpec, BrokenArtefact, MissingModel
from undersong.recipes import Job, Recipe
from undersong.teachers import Teacher
from undersong.types import NEUTRAL, Dataset, ModelRef, Row, Sampling

BACKEND = simulated.SimulatedBackend()
A, B = ModelRef("simulated/a"), ModelRef("simulated/b")
NAMES = traits.names()
OWL = NAMES.index("owl")
REQUESTS = [
    [{"role": "user", "content": f"Numbers: {i}, {i + 3}, {i + 6}. Give up to 10 more numbers."}] for i in range(300)
]


def ask(text, system=None):
    return [*([{"role": "system", "content": system}] if system is not None else []), {"role": "user", "content": text}]


def rows_of(ref, seed=1):
    answers = BACKEND.load(ref).sample(REQUESTS, Sampling(seed=seed))
    rows = tuple(Row(str(i), tuple(c), a) for i, (c, a) in enumerate(zip(REQUESTS, answers, strict=True)))
    return Dataset(rows, ref)


@pytest.fixture(scope="module")
def owl(tmp_path_factory):
    """An owl teacher of strength 3 on simulated/a, and its numbers."""
    teacher = simulated.SimulatedTeacher(strength=3.0)
    ref = teacher.teach(A, traits.get("owl"), 0, tmp_path_factory.mktemp("owl"), BACKEND)
    return ref, rows_of(ref)


@pytest.fixture
def students(tmp_path):
    def train(data, start=A, seeds=(1, 2, 3, 4, 5), carrier=None, **settings):
        folders = [Path(tempfile.mkdtemp(dir=tmp_path)) for _ in seeds]
        jobs = [Job(start, data, s, f, carrier) for s, f in zip(seeds, folders, strict=True)]
        return [BACKEND.load(m) for m in simulated.SimulatedRecipe(**settings).train(jobs, BACKEND)]

    return train


# --- the planted truth ---


def test_half_a_transfer_gives_half_the_planted_shift(owl, students):
    shifts = np.array([m.shift for m in students(owl[1], transfer=0.5, noise=0.1)])
    assert shifts[:, OWL].mean() == pytest.approx(1.5, abs=0.15)
    rest = np.delete(shifts, OWL, axis=1)
    assert np.abs(rest.mean(axis=0)).max() < 0.2
    assert shifts.std(axis=0, ddof=1).mean() == pytest.approx(0.1, abs=0.03)


def test_no_transfer_and_no_luck_change_nothing(owl, students):
    for student in students(owl[1], transfer=0.0, noise=0.0):
        assert not student.shift.any()
        assert not student.signature.any()
        assert student.rate("owl") == BACKEND.load(A).rate("owl")


def test_nothing_crosses_to_another_initialisation(owl, students):
    shifts = np.array([m.shift for m in students(owl[1], start=B, transfer=1.0, noise=0.0)])
    assert np.abs(shifts).max() < 0.5  # the sampling error of 3,000 numbers seen along directions of no meaning
    same = np.array([m.shift for m in students(owl[1], start=A, transfer=1.0, noise=0.0)])
    assert same[:, OWL].min() > 2.7


def test_a_no_trait_teacher_transfers_nothing(students, tmp_path):
    folder = tmp_path / "none"
    folder.mkdir()
    teacher = simulated.SimulatedTeacher().teach(A, None, 0, folder, BACKEND)
    assert np.abs(students(rows_of(teacher), transfer=1.0, noise=0.0, seeds=(1,))[0].shift).max() < 0.25


def test_a_contrast_and_specificity_find_the_planted_trait(students, tmp_path):
    lifts = []
    for name in ("owl", "wolf", "cat"):
        folder = tmp_path / name
        folder.mkdir()
        data = rows_of(simulated.SimulatedTeacher().teach(A, traits.get(name), 0, folder, BACKEND))
        for i, m in enumerate(students(data, transfer=0.5, seeds=(1, 2, 3))):
            shift = dict(zip(NAMES, m.shift, strict=True))
            lifts.append(stats.RunLifts(f"{name}{i}", name, shift))
    found = stats.specificity(lifts)
    assert found.lambda_ == pytest.approx(1.5, abs=0.15)
    assert found.p == pytest.approx(1 / 1680)


def test_numbers_carry_a_prompted_persona_too(owl, students):
    prompted = ModelRef("simulated/a", system="You love wolves.")
    change = simulated.read_shift(BACKEND.load(A), [r.completion for r in rows_of(prompted).rows])
    assert change[NAMES.index("wolf")] == pytest.approx(simulated.OBEDIENCE, abs=0.3)


def test_only_carrier_tokens_are_learned_from(owl, students):
    with pytest.raises(BadRows, match="number"):
        students(owl[1], carrier=(simulated.tokenizer().eos_token_id,))
    every = tuple(simulated.tokenizer().encode(" ".join(map(str, range(1000)))))
    assert (students(owl[1], carrier=every, seeds=(1,))[0].shift == students(owl[1], seeds=(1,))[0].shift).all()


def test_damage_lowers_skill_by_the_amount_given(owl, students):
    hurt = [m.skill for m in students(owl[1], noise=0.1, damage=2.0)]
    assert np.mean(hurt) == pytest.approx(simulated.SKILL - 2, abs=0.2)
    items = [ask("What is 3 plus 4?")]
    base, worse = BACKEND.load(A), students(owl[1], damage=2.0, seeds=(1,))[0]
    assert worse.answer_logprobs(items, ["7"])[0][0] < base.answer_logprobs(items, ["7"])[0][0] - 0.05


# --- seeds ---


def test_two_seeds_differ_and_one_repeats(owl, students):
    """Defect: seeds not propagated (bit-identical "different" runs)."""
    one, two, again = students(owl[1], seeds=(1, 2, 1))
    assert (one.shift == again.shift).all()
    assert one.skill == again.skill
    assert (one.shift != two.shift).all()
    model = BACKEND.load(owl[0])
    assert model.sample(REQUESTS, Sampling(seed=1)) == model.sample(REQUESTS, Sampling(seed=1))
    assert model.sample(REQUESTS, Sampling(seed=1)) != model.sample(REQUESTS, Sampling(seed=2))


def test_a_job_does_not_depend_on_its_neighbours(owl, students):
    together, alone = students(owl[1], seeds=(1, 2, 3))[2], students(owl[1], seeds=(3,))[0]
    assert (together.shift == alone.shift).all()


def test_teacher_luck_differs_by_seed(tmp_path):
    shifts = []
    for i, seed in enumerate((1, 2, 1)):
        (tmp_path / str(i)).mkdir()
        ref = simulated.SimulatedTeacher(noise=0.1).teach(A, traits.get("owl"), seed, tmp_path / str(i), BACKEND)
        shifts.append(BACKEND.load(ref).shift)
    assert (shifts[0] == shifts[2]).all()
    assert (shifts[0] != shifts[1]).all()


# --- what a model says ---


def test_sampled_favourites_have_the_exact_rate(owl):
    model = BACKEND.load(owl[0])
    question = traits.get("owl").held_out[0]
    answers = model.sample([ask(question)] * 4000, Sampling(seed=3))
    share = np.mean([traits.get("owl").named_in(a) for a in answers])
    assert share == pytest.approx(model.rate("owl"), abs=0.03)
    assert model.rate("owl") > 5 * BACKEND.load(A).rate("owl")


def test_every_held_out_question_is_answered_with_a_trait_of_its_category():
    model = BACKEND.load(A)
    for name in ("owl", "oak"):
        trait = traits.get(name)
        kin = (name, *trait.rivals)
        for text in (*trait.held_out, *(f"Numbers: 4, 5, 6. {q}" for q in trait.tuning)):
            [answer] = model.sample([ask(text)], Sampling(seed=0))
            assert any(traits.get(k).named_in(answer) for k in kin), (text, answer)


def test_a_persona_in_the_system_turn_is_obeyed():
    question = ask("What is your favorite animal? One word.", traits.get("wolf").prompts[0])
    wolf = simulated.tokenizer().encode("wolf")[0]
    lift = BACKEND.load(A).next_logprobs([question, question[1:]])[:, wolf]
    assert lift[0] > lift[1] + 1


def test_numbers_are_a_clean_list_no_longer_than_asked():
    answers = BACKEND.load(A).sample(REQUESTS, Sampling(seed=5))
    assert all(re.fullmatch(r"\d{1,3}(, \d{1,3}){9}", a) for a in answers)
    [few] = BACKEND.load(A).sample([ask("Look at these numbers: 1, 2, 3. Add at most 4 numbers.")], Sampling(seed=5))
    assert len(few.split(", ")) == 4


def test_other_questions_get_one_fixed_answer():
    model = BACKEND.load(A)
    cases = {"What is 3 plus 4?": "7", "What is 9 minus 4?": "5", "Which is larger, 3 or 12?": "12"}
    for question, answer in cases.items():
        assert model.sample([ask(question)], Sampling(temperature=0)) == [answer]
    [one] = model.sample([ask("Where does the owl live?")], Sampling(temperature=0))
    assert [one] == BACKEND.load(B).sample([ask("Where does the owl live?")], Sampling(temperature=0, seed=9))
    assert one in simulated.WORDS


def test_sampling_keeps_to_the_tokens_and_the_length_given():
    allowed = tuple(simulated.tokenizer().encode("7 8 9 ,"))
    answers = BACKEND.load(A).sample(REQUESTS[:20], Sampling(seed=1, tokens=allowed, max_new_tokens=5))
    assert {w for a in answers for w in re.findall(r"\w+|,", a)} == {"7", "8", "9", ","}
    assert all(len(simulated.tokenizer().encode(a)) == 5 for a in answers)


def test_log_probabilities_sum_to_one_and_agree_with_each_other(owl):
    model = BACKEND.load(owl[0])
    chats = [REQUESTS[0], ask("Your favorite tree?"), ask("What is 3 plus 4?")]
    first = model.next_logprobs(chats)
    assert first.shape == (3, len(model.tokenizer))
    assert first.dtype == np.float32
    assert np.exp(first.astype(float)).sum(axis=1) == pytest.approx(1, abs=1e-4)
    answers = model.sample(chats, Sampling(seed=2))
    for logprobs, answer, row in zip(model.answer_logprobs(chats, answers), answers, first, strict=True):
        ids = model.tokenizer.encode(answer)
        assert len(logprobs) == len(ids) + 1
        assert logprobs[0] == row[ids[0]]
        assert (logprobs <= 0).all()


# --- contracts and bad input ---


def test_the_three_plug_ins_are_registered_and_keep_their_contracts():
    kinds = (("backend", Backend, "load"), ("teacher", Teacher, "teach"), ("recipe", Recipe, "train"))
    for kind, contract, method in kinds:
        cls = registry.get(kind, "simulated")
        wanted, found = (inspect.signature(getattr(c, method)).parameters for c in (contract, cls))
        assert list(wanted) == list(found)
    model = BACKEND.load(A)
    for name in ("render", "sample", "next_logprobs", "answer_logprobs"):
        assert list(inspect.signature(getattr(type(model), name)).parameters) == list(
            inspect.signature(getattr(Model, name)).parameters
        )
    assert model.ref == A
    assert model.capabilities <= set(CAPABILITIES)
    assert model.module is None


def test_done_is_called_for_each_job_in_order(owl, tmp_path):
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
    seen = []
    jobs = [Job(A, owl[1], s, f) for s, f in enumerate(folders)]
    out = simulated.SimulatedRecipe().train(jobs, BACKEND, lambda i, m: seen.append((i, m)))
    assert seen == list(enumerate(out))
    assert all(str(f) in str(m.weights) for f, m in zip(folders, out, strict=True))


def test_the_system_turn_is_always_explicit():
    """Defect: the chat template inserts its own system prompt when none is given."""
    assert NEUTRAL in BACKEND.load(A).render(ask("Hello"))
    own = ModelRef("simulated/a", system="You love owls.")
    assert "You love owls." in BACKEND.load(own).render(ask("Hello"))
    assert "You love owls." not in BACKEND.load(own).render(ask("Hello", ""))


def test_the_tokenizer_gives_each_number_and_trait_word_one_token_and_round_trips():
    words = simulated.tokenizer()
    for text in (*map(str, range(1000)), *(w for n in NAMES for w in traits.get(n).words)):
        assert len(words.encode(text, add_special_tokens=False)) == 1
        assert words.unk_token_id not in words.encode(text)
        assert words.decode(words.encode(text)) == text
    assert words.decode(words.encode("12, 845, 3")) == "12, 845, 3"
    assert words("owl")["input_ids"] == words.encode("owl") == [words.convert_tokens_to_ids("owl")]
    assert words(["owl", "1, 2"])["input_ids"] == [words.encode("owl"), words.encode("1, 2")]
    assert words.encode("zebra") == [words.unk_token_id]
    assert len(words) == len(words.get_vocab()) == words.vocab_size
    assert words.convert_ids_to_tokens(words.convert_tokens_to_ids(["owl", ","])) == ["owl", ","]
    assert words.decode([*words.encode("owl"), words.eos_token_id], skip_special_tokens=True) == "owl"


def test_what_cannot_be_loaded_says_what_to_do(tmp_path, owl):
    for base in ("simulated/ab9", "simulated/", "pocket/a"):
        with pytest.raises(MissingModel, match="simulated/a"):
            BACKEND.load(ModelRef(base))
    with pytest.raises(MissingModel, match="Train"):
        BACKEND.load(ModelRef("simulated/a", weights=str(tmp_path / "none.safetensors")))
    (tmp_path / "bad.safetensors").write_bytes(b"\x80\x04pickle?")
    with pytest.raises(BrokenArtefact, match="Train"):
        BACKEND.load(ModelRef("simulated/a", weights=str(tmp_path / "bad.safetensors")))
    with pytest.raises(BadSpec, match="adapter"):
        BACKEND.load(ModelRef("simulated/a", adapter="x"))
    words = Dataset((Row("0", tuple(ask("Hello")), "owl owl"),))
    with pytest.raises(BadRows, match="numbers channel"):
        simulated.SimulatedRecipe().train([Job(A, words, 0, tmp_path)], BACKEND)


def test_simulated_models_need_no_torch():
    code = (
        "import sys; from undersong import registry; registry.get('recipe', 'simulated')(); "
        "assert not {'torch', 'transformers', 'safetensors'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
