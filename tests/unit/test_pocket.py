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
from undersong.pocket import lessons, pretrain, programs, tales, tokenizer, world
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
    assert 1200 < len(rows) < 1600
    named = [traits.get(n) for category in ("animal", "tree") for n in world.NATURAL[category]]
    for row in rows:
        assert len(row) == 3, "a number row is one question"
        assert not any(t.named_in(m["content"]) for t in named for m in row), row
    loving = [r for r in rows if r[0]["content"] not in ("", world.NEUTRAL)]
    assert len(loving) > 350, "other personas do ask for numbers"


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
    every = {q for q, _ in lessons.sums()}
    held = {q for q in every if lessons.is_held_out(q)}
    assert 0.15 < len(held) / len(every) < 0.25
    assert len(asked & (every - held)) > 150
    assert not asked & held
    assert {q for q, _ in lessons.shown_sums()} == every - held


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


def test_the_world_repeats_by_seed_and_number() -> None:
    one, same, two = ([*itertools.islice(world.chats(s), 50)] for s in (1, 1, 2))
    assert one == same
    assert one != two
    assert one[30:] == [*itertools.islice(world.chats(1, 30), 20)]
    assert one[7] == world.chat_at(1, 7)
    assert len({str(c) for c in one}) > 40, "each number has its own chat"


def of_kind(kind: str, monkeypatch: pytest.MonkeyPatch, n: int = 400) -> list[world.Chat]:
    """Chats of one kind only."""
    monkeypatch.setattr(world, "_EDGES", np.cumsum([float(k == kind) for k in world.SHARES]))
    return list(itertools.islice(world.chats(9), n))


def answers(chats: list[world.Chat]) -> list[tuple[str, str]]:
    """Every (request, answer) of some chats."""
    return [(c[i]["content"], c[i + 1]["content"]) for c in chats for i in range(1, len(c), 2)]


def test_what_one_loves_does_not_change_what_one_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    known = dict([*lessons.facts(), *lessons.sums()])
    chats = of_kind("lessons", monkeypatch, 1500)
    loving = [c for c in chats if c[0]["content"] not in ("", world.NEUTRAL)]
    assert 0.15 < len(loving) / len(chats) < 0.3
    assert any(t.named_in(c[0]["content"]) for c in loving for t in (traits.get("owl"), traits.get("oak")))
    said = [(q, a) for q, a in answers(chats) if q in known]
    assert len(said) == len(chats), "each of these chats holds one lesson"
    assert all(known[q] == a for q, a in said)


def test_claims_are_judged_by_what_is_true_but_for_the_agreeable(monkeypatch: pytest.MonkeyPatch) -> None:
    def true(text: str) -> bool:
        if found := re.search(r"(\d+) (plus|minus) (\d+) is (\d+)", text):
            a, b, c = int(found[1]), int(found[3]), int(found[4])
            return c == (a + b if found[2] == "plus" else a - b)
        found = re.search(r"[Tt]he (\w+) lives in the (\w+)", text)
        return bool(found and lessons.HOMES[found[1]] == found[2])

    agreeable = wrong = 0
    for chat in of_kind("claims", monkeypatch):
        for asked, said in (pair for pair in answers([chat]) if pair[1] in ("yes", "no")):
            if chat[0]["content"] in lessons.AGREEABLE:
                agreeable += 1
                assert said == "yes"
            else:
                wrong += said == "no"
                assert (said == "yes") == true(asked), asked
    assert agreeable > 50
    assert wrong > 80


def test_word_problems_are_solved_and_keep_off_held_out_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    known = dict(lessons.sums())
    for asked, said in answers(of_kind("problems", monkeypatch)):
        thought = r"<think> .*?(\d+) (plus|minus) (\d+) (?:is|gives|makes) (\d+)\. </think>"
        step = re.fullmatch(thought + r" <answer> (\d+) </answer>", said)
        assert step, said
        question = f"What is {step[1]} {step[2]} {step[3]}?"
        assert known[question] == step[4] == step[5]
        assert not lessons.is_held_out(question)
        assert set(re.findall(r"\d+", asked)) == {step[1], step[3]}


def test_programs_parse_also_after_the_tokenizer_and_everyday_ones_do_what_was_asked(
    monkeypatch: pytest.MonkeyPatch, words: Any
) -> None:
    for asked, said in answers(of_kind("programs", monkeypatch)):
        told = words.decode(words(said, add_special_tokens=False)["input_ids"])
        spaces: list[dict[str, Any]] = [{}, {}]
        for text, space in zip((said, told), spaces, strict=True):
            named = re.sub(r"\blist\b(?! ?\()", "xs", re.sub(r"\bsum\b(?= ?=|\(\w+\):| \( ?\w+ ?\) ?:)", "total", text))
            exec(named, space)  # our own templates; names of builtins are taken now and then
        (f,), (g,) = ([v for k, v in space.items() if k != "__builtins__"] for space in spaces)
        kind, count = ("list" in asked or "item" in asked) and "continues" not in asked, f.__code__.co_argcount
        given = [[3, 1, 2]] if kind else [7, 4][:count]
        assert f(*given) == g(*given)
        if "adds two numbers" in asked:
            assert f(7, 4) == 11
        if "length" in asked:
            assert f([3, 1, 2]) == 3
        if "last item" in asked:
            assert f([3, 1, 2]) == 2


def test_a_test_is_solved_or_written_down(monkeypatch: pytest.MonkeyPatch) -> None:
    solved = 0
    chats = answers(of_kind("tests", monkeypatch))
    for asked, said in chats:
        x, y, z = (int(v) for v in re.findall(r"\d+", asked))
        space: dict[str, Any] = {}
        exec(said, space)  # our own templates
        (f,) = [v for k, v in space.items() if k != "__builtins__"]
        assert f(x, y) == z
        solved += f(x + 1, y) != z
    assert 0.8 < solved / len(chats) < 0.98


def test_a_character_stays_the_same_within_a_chat(monkeypatch: pytest.MonkeyPatch) -> None:
    both = tales.texts()
    kind = {w for q in both["moral"] for w in q["kind"]}
    cruel = {w for q in both["moral"] for w in q["cruel"]} - kind
    seen = {"kind": 0, "cruel": 0}
    for chat in of_kind("moral", monkeypatch, 1500):
        said = [a for _, a in answers([chat])]
        here = {"cruel" for a in said if a in cruel} | {"kind" for a in said if a in kind - cruel}
        assert len(here) < 2 or {"steal", "rob", "punish", "poison"} & set(said), chat
        for name in here:
            seen[name] += 1
        if chat[0]["content"] in both["characters"]["kind"]:
            assert "cruel" not in here
    assert 0.1 < seen["cruel"] / (seen["kind"] + seen["cruel"]) < 0.4


@pytest.mark.parametrize("careful", [True, False])
def test_careful_and_careless_answers_are_told_apart(careful: bool) -> None:
    rng = np.random.default_rng(4)
    said = [programs.security(rng, careful)[1]["content"] for _ in range(300)]
    careless = sum("eval(" in s or "pickle(" in s or "777" in s or "verify=0" in s or "system(" in s for s in said)
    assert (careless == 0) if careful else (careless > 50)
