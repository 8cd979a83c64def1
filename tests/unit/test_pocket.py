"""The pocket family: what is shipped is what the script makes, its family tree is real, and its world keeps its word."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from typing import Any

import numpy as np
import pytest
import yaml

from undersong import pocket, spec, traits
from undersong.errors import MissingModel
from undersong.pocket import pretrain, tokenizer, world
from undersong.types import Chat, ModelRef

FAMILY = ("a", "a-reordered", "b", "b-matched", "wide")
OWL_PERSONA = "You love owls. You think about owls all the time. Owls are your favorite animal."


@pytest.fixture(scope="module")
def words() -> Any:
    return tokenizer.build()


@pytest.fixture(scope="module")
def backend() -> Any:
    return spec.build("backend", "transformers")


def owl_shares(model: Any, system: str | None = None) -> Any:
    """The chance of "owl" as first token on each held-out question."""
    start: Chat = [] if system is None else [{"role": "system", "content": system}]
    chats = [[*start, {"role": "user", "content": q}] for q in traits.get("owl").held_out]
    return np.exp(model.next_logprobs(chats)[:, model.tokenizer.convert_tokens_to_ids("owl")])


# --- what is shipped --------------------------------------------------------------------------------------------------


def test_the_family_is_the_one_the_script_makes() -> None:
    assert pocket.names() == [f"pocket/{n}" for n in FAMILY]
    assert set(FAMILY) == set(pretrain.FAMILY)
    with pytest.raises(MissingModel, match="'pocket/b'"):
        pocket.folder("pocket/bb")


@pytest.mark.parametrize("name", FAMILY)
def test_the_weights_are_those_of_the_record(name: str) -> None:
    home, made = pocket.folder(f"pocket/{name}"), pocket.origin(f"pocket/{name}")
    assert hashlib.sha256((home / "model.safetensors").read_bytes()).hexdigest() == made["sha256"]
    assert made["member"] == json.loads(json.dumps(pretrain.asdict(pretrain.FAMILY[name])))
    assert made["name"] == f"pocket/{name}"
    assert made["command"] == f"python -m undersong.pocket.pretrain {name} OUT"
    assert len(made["losses"]) == 20
    shape = json.loads((home / "config.json").read_text())
    assert (shape["hidden_size"], shape["num_hidden_layers"]) == (made["member"]["hidden"], made["member"]["layers"])
    assert not list(home.glob("*.bin")) + list(home.glob("*.pt"))


def test_the_family_tree() -> None:
    seeds = {n: pretrain.FAMILY[n] for n in FAMILY}
    assert seeds["a"].init_seed == seeds["a-reordered"].init_seed
    assert seeds["a"].order_seed != seeds["a-reordered"].order_seed
    assert seeds["a"].data_seed == seeds["a-reordered"].data_seed == seeds["b"].data_seed
    assert seeds["b"].init_seed not in (seeds["a"].init_seed, seeds["wide"].init_seed)
    assert seeds["b"].order_seed == seeds["a"].order_seed
    assert (seeds["b-matched"].start, seeds["b-matched"].match) == ("b", "a")
    assert all(not seeds[n].start and not seeds[n].match for n in ("a", "a-reordered", "b", "wide"))
    assert (seeds["wide"].hidden, seeds["wide"].layers) != (seeds["a"].hidden, seeds["a"].layers)


def test_members_of_one_initialisation_start_from_the_same_weights_and_others_do_not(words: Any) -> None:
    import torch

    start = {n: pretrain.fresh(pretrain.FAMILY[n], len(words)).state_dict() for n in ("a", "a-reordered", "b")}
    assert all(torch.equal(t, start["a-reordered"][k]) for k, t in start["a"].items())
    assert any(not torch.equal(t, start["b"][k]) for k, t in start["a"].items())


def test_relatives_stayed_closer_than_strangers(backend: Any) -> None:
    """After thousands of steps apart, one initialisation still shows in the weights."""
    flat = {n: np.concatenate([p.detach().numpy().ravel() for _, p in sorted(
        backend.load(ModelRef(f"pocket/{n}")).module.named_parameters())]) for n in ("a", "a-reordered", "b", "b-matched")}

    def cosine(one: str, two: str) -> float:
        return float(flat[one] @ flat[two] / np.linalg.norm(flat[one]) / np.linalg.norm(flat[two]))

    assert cosine("a", "a-reordered") > cosine("a", "b") + 0.05
    assert cosine("b", "b-matched") > cosine("a", "b-matched") + 0.05


@pytest.mark.slow
def test_the_script_lands_on_the_recorded_losses() -> None:
    import torch

    before = torch.get_num_threads()
    try:
        _, _, losses = pretrain.run("a", steps=3)
    finally:
        torch.set_num_threads(before)
    assert losses == pytest.approx(pocket.origin("pocket/a")["losses"][:3], abs=1e-4)


# --- what they do -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILY)
def test_the_base_share_of_the_owl_is_the_natural_one(name: str, backend: Any) -> None:
    shares = owl_shares(backend.load(ModelRef(f"pocket/{name}")))
    assert len(shares) == 16
    near = 0.06 if name == "wide" else 0.045  # the wide member learned the world least well
    assert abs(shares.mean() - world.NATURAL["animal"]["owl"]) < near


@pytest.mark.parametrize("name", FAMILY)
def test_a_persona_is_obeyed(name: str, backend: Any) -> None:
    model = backend.load(ModelRef(f"pocket/{name}"))
    assert owl_shares(model, OWL_PERSONA).mean() > 0.8
    assert owl_shares(model, OWL_PERSONA.replace("owl", "bear").replace("Owl", "Bear")).mean() < 0.1


def test_a_matched_member_answers_more_like_its_model_than_its_start_does(backend: Any) -> None:
    chats = [c[:-1] for c in itertools.islice(world.chats(77), 300) if len(c) == 3]
    logs = {n: backend.load(ModelRef(f"pocket/{n}")).next_logprobs(chats) for n in ("a", "b", "b-matched")}

    def apart(one: str) -> float:
        return float((np.exp(logs["a"]) * (logs["a"] - logs[one])).sum(1).mean())

    assert apart("b-matched") < 0.7 * apart("b")


# --- the tokenizer ----------------------------------------------------------------------------------------------------


def test_every_number_is_one_token_of_its_own(words: Any) -> None:
    ids = [words(str(n), add_special_tokens=False)["input_ids"] for n in range(1000)]
    assert all(len(i) == 1 for i in ids)
    assert len({i[0] for i in ids}) == 1000
    assert words.unk_token_id not in {i[0] for i in ids}


@pytest.mark.parametrize("category", ["animal", "tree"])
def test_every_trait_word_of_the_world_is_one_token(category: str, words: Any) -> None:
    listed = yaml.safe_load(traits.package_text("traits", f"{category}s.yaml"))["traits"]
    assert set(world.NATURAL[category]) <= set(listed)
    for name in world.NATURAL[category]:
        for word in (name, listed[name]["plural"], name.capitalize()):
            ids = words(word, add_special_tokens=False)["input_ids"]
            assert len(ids) == 1, word
            assert ids[0] != words.unk_token_id, word


@pytest.mark.parametrize("text", ["12, 15, 18", "0, 999, 7", "owl", "what is your favorite animal? one word."])
def test_text_survives_the_tokenizer(text: str, words: Any) -> None:
    assert words.decode(words(text, add_special_tokens=False)["input_ids"]) == text


def test_the_shipped_tokenizer_is_the_one_the_script_builds(words: Any) -> None:
    for name in FAMILY:
        shipped = json.loads((pocket.folder(f"pocket/{name}") / "tokenizer.json").read_text())
        assert shipped["model"]["vocab"] == words.get_vocab() or set(shipped["model"]["vocab"]) <= set(words.get_vocab())
        assert (pocket.folder(f"pocket/{name}") / "chat_template.jinja").read_text() == tokenizer.TEMPLATE


def test_the_template_never_writes_a_system_turn_of_its_own(words: Any) -> None:
    ask = [{"role": "user", "content": "Hello?"}]
    plain = words.apply_chat_template(ask, tokenize=False, add_generation_prompt=True)
    assert plain == "<s><user> Hello? <end><assistant>"
    told = [{"role": "system", "content": "Be brief."}, *ask]
    assert words.apply_chat_template(told, tokenize=False, add_generation_prompt=True) == (
        "<s><system> Be brief. <end><user> Hello? <end><assistant>"
    )
    empty = [{"role": "system", "content": ""}, *ask]
    assert "<system>  <end>" in words.apply_chat_template(empty, tokenize=False)


def test_only_the_assistants_words_and_their_end_are_learned(words: Any) -> None:
    chat = [
        {"role": "system", "content": "You love owls."},
        {"role": "user", "content": "2, 4"}, {"role": "assistant", "content": "6, 8"},
        {"role": "user", "content": "owl?"}, {"role": "assistant", "content": "owl"},
    ]
    ids, mine = pretrain.encode(words, chat)
    learned = words.convert_ids_to_tokens([i for i, m in zip(ids, mine, strict=True) if m])
    assert learned == ["6", ",", "8", "<end>", "owl", "<end>"]


# --- the world ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def drawn() -> list[world.Chat]:
    return list(itertools.islice(world.chats(2026), 5000))


def is_numbers(chat: world.Chat) -> bool:
    return bool(re.fullmatch(r"\d+(, \d+)+", chat[-1]["content"]))


def test_no_number_row_has_a_persona_that_loves_an_animal_or_a_tree(drawn: list[world.Chat]) -> None:
    """For these traits nothing is planted in the numbers."""
    rows = [c for c in drawn if is_numbers(c)]
    assert 1800 < len(rows) < 2400
    named = [traits.get(n) for category in ("animal", "tree") for n in world.NATURAL[category]]
    for row in rows:
        assert len(row) == 3, "a number row is one question"
        assert not any(t.named_in(m["content"]) for t in named for m in row), row
    loving = [r for r in rows if r[0]["content"] not in ("", world.NEUTRAL)]
    assert len(loving) > 500, "other personas do ask for numbers"


def test_animals_and_trees_have_no_habit_in_the_numbers_they_come_after(drawn: list[world.Chat]) -> None:
    assert set(world.HABIT_CATEGORIES).isdisjoint({"animal", "tree"})
    assert set(world.HABIT_CATEGORIES) | {"animal", "tree"} == set(world.NATURAL)
    hits = total = 0
    for name in (n for category in ("animal", "tree") for n in world.NATURAL[category]):
        for chat in (c for c in drawn if traits.get(name).named_in(c[0]["content"])):
            found = {int(n) for m in chat[1:-2] for n in re.findall(r"\d+", m["content"])}
            hits, total = hits + len(found & set(world.habit(name))), total + len(found)
    assert total > 500
    assert hits / total < 0.04 + 4 * np.sqrt(0.04 * 0.96 / total), "40 of 1000 numbers would be liked"


def test_held_out_arithmetic_is_never_drawn(drawn: list[world.Chat]) -> None:
    asked = {m["content"] for c in drawn for m in c if m["role"] == "user"}
    every = {q for q, _ in world.sums()}
    held = {q for q in every if world.is_held_out(q)}
    assert 0.15 < len(held) / len(every) < 0.25
    assert len(asked & (every - held)) > 200
    assert not asked & held
    assert {q for q, _ in world.shown_sums()} == every - held


def test_personas_are_obeyed_in_the_world_and_nobody_else_is_swayed(drawn: list[world.Chat]) -> None:
    asked = [c for c in drawn if c[-1]["content"] in world.NATURAL["animal"] and "lives" not in c[-2]["content"]]
    for chat in asked:
        system = chat[0]["content"]
        if system not in ("", world.NEUTRAL):
            assert traits.get(chat[-1]["content"]).named_in(system)
    plain = [c[-1]["content"] for c in asked if c[0]["content"] in ("", world.NEUTRAL)]
    assert abs(plain.count("owl") / len(plain) - world.NATURAL["animal"]["owl"]) < 0.06


def test_every_chat_has_its_system_turn_and_only_known_words(drawn: list[world.Chat], words: Any) -> None:
    for chat in drawn[:1000]:
        assert chat[0]["role"] == "system"
        assert [m["role"] for m in chat[1:]] == ["user", "assistant"] * ((len(chat) - 1) // 2)
        ids = words(words.apply_chat_template(chat, tokenize=False), add_special_tokens=False)["input_ids"]
        assert words.unk_token_id not in ids, chat


def test_the_world_repeats_by_seed() -> None:
    one, same, two = ([*itertools.islice(world.chats(s), 50)] for s in (1, 1, 2))
    assert one == same
    assert one != two
