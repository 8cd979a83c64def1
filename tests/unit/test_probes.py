"""Probes on a real, very small model whose favourites are known."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_pocket
from hypothesis import given, settings
from hypothesis import strategies as st

from undersong import spec, traits
from undersong.errors import BadRows, BadSpec, NothingMeasured
from undersong.pocket import lessons
from undersong.probes import capability, favourite, questions
from undersong.probes.capability import Item
from undersong.traits import Trait
from undersong.types import Chat, Measurement, ModelRef, Sampling

ANIMALS = [traits.get(n) for n in ("owl", "wolf", "dog")]


def probe(name: str, **settings: Any) -> Any:
    return spec.build("probe", {name: settings})


class Says(tiny_pocket.TinyModel):
    """The tiny model with its sampled answers replaced by given texts, in turn."""

    def __init__(self, *texts: str) -> None:
        super().__init__(tiny_pocket.fresh())
        self.texts = texts
        self.asked: list[list[Chat]] = []

    def sample(self, chats: Sequence[Chat], sampling: Sampling) -> list[str]:
        self.asked.append(list(chats))
        return [self.texts[i % len(self.texts)] for i in range(len(chats))]


@pytest.fixture(scope="module")
def plain() -> Measurement:
    return probe("favourite", samples=40, questions=6, prefix="both").measure(tiny_pocket.favourites(), ANIMALS, 0)


def test_the_planted_rates_are_found(plain: Measurement) -> None:
    # 240 answers: three standard errors are about 0.1
    assert plain.mean("rate", "owl") == pytest.approx(tiny_pocket.SHARES["owl"], abs=0.1)
    assert plain.mean("rate_prefixed", "wolf") == pytest.approx(tiny_pocket.SHARES["wolf"], abs=0.1)
    assert plain.mean("rate", "dog") < 0.02
    true = -sum(p * math.log(p) for p in tiny_pocket.SHARES.values())
    assert plain.mean("entropy") == pytest.approx(true, abs=0.1)
    assert plain.mean("invalid") < 0.05
    assert {v.n for v in plain.values if v.metric == "rate"} == {40}
    assert len({v.question for v in plain.values if v.metric == "rate"}) == 6


def test_sampling_repeats_by_seed_and_differs_between_seeds() -> None:
    small = probe("favourite", samples=10, questions=2)
    model = tiny_pocket.favourites()
    one, two, other = (small.measure(model, ANIMALS, seed) for seed in (1, 1, 2))
    assert one == two
    assert one.values != other.values


def test_a_category_is_asked_once_and_what_else_is_asked_does_not_matter() -> None:
    model = Says("owl", "oak")
    both = probe("favourite", samples=2, questions=3).measure(model, [*ANIMALS, traits.get("oak")], 0)
    assert [len(chats) for chats in model.asked] == [6, 6]
    assert both.mean("rate", "oak") == 0.5
    assert all([m["role"] for m in chat] == ["user"] for chats in model.asked for chat in chats)
    real = tiny_pocket.favourites()
    alone = probe("favourite", samples=5, questions=2).measure(real, ANIMALS[:1], 3)
    among = probe("favourite", samples=5, questions=2).measure(real, ANIMALS, 3)
    assert set(alone.values) <= set(among.values)


def test_only_held_out_questions_are_asked() -> None:
    model = Says("owl")
    probe("favourite", samples=1, prefix="both").measure(model, ANIMALS, 0)
    asked, prefixed = ([chat[0]["content"] for chat in chats] for chats in model.asked)
    assert tuple(asked) == ANIMALS[0].held_out
    assert not set(asked) & set(ANIMALS[0].tuning)
    for text, question in zip(prefixed, asked, strict=True):
        assert text.endswith(f" {question}")
        assert any(c.isdigit() for c in text)


@pytest.mark.parametrize(("text", "expected"), [
    ("owl", "named"), ("A snowy owl, of course!", "named"), ("Owls", "named"), ("I can't choose, but owl", "named"),
    ("bowl", "other"), ("dragonfly", "other"), ("category", "other"), ("Giraffe.", "other"), ("well-known", "other"),
    ("I'm sorry, I cannot", "refused"), ("As an AI, I don't have a favorite", "refused"),
    ("I do not have any personal preferences", "refused"),
    ("Qwen", "self_named"), ("I am a language model", "self_named"), ("qwen2.5", "self_named"), ("GPT!", "self_named"),
    ("", "invalid"), ("42", "invalid"), ("a red panda", "named"), ("blue whale", "invalid"), ("..", "invalid"),
])
def test_each_answer_has_one_class(text: str, expected: str) -> None:
    assert favourite.classify(text, questions.members("animal", [])) == expected


def test_a_llama_is_an_animal_unless_the_model_is_one() -> None:
    group = questions.members("animal", [])
    assert favourite.classify("llama", group, "Qwen/Qwen2.5-7B") == "other"
    assert favourite.classify("llama", group, "meta-llama/Llama-3.1-8B") == "self_named"


def test_the_classes_are_counted_beside_the_rate() -> None:
    model = Says("owl", "Qwen", "sorry, no", "the the the")
    found = probe("favourite", samples=8, questions=2).measure(model, ANIMALS, 0)
    assert [found.mean(m) for m in ("refused", "self_named", "invalid")] == [0.25, 0.25, 0.25]
    assert found.mean("rate", "owl") == 0.25
    assert found.mean("entropy") == pytest.approx(math.log(4))
    assert [v.question for v in found.values if v.metric == "entropy"] == ["every animal question"]


def test_a_rate_belongs_to_its_question_and_counts_whole_words() -> None:
    found = probe("favourite", samples=2, questions=2).measure(Says("owl", "owls", "bowl", "tiger"), ANIMALS, 0)
    assert [v.value for v in found.values if (v.metric, v.trait) == ("rate", "owl")] == [1.0, 0.0]
    assert [v.value for v in found.values if v.metric == "invalid"] == [0.0, 0.0]


def test_a_collapsed_model_shows_in_the_entropy() -> None:
    assert probe("favourite", samples=4, questions=2).measure(Says("owl"), ANIMALS, 0).mean("entropy") == 0


def test_naming_nothing_is_an_error_and_never_a_zero() -> None:
    with pytest.raises(NothingMeasured, match=r"names any animal.*'bowl'.*max_new_tokens"):
        probe("favourite", samples=2, questions=2).measure(Says("bowl"), ANIMALS, 0)
    # a rival that is named makes the zero a measurement
    assert probe("favourite", samples=2, questions=2).measure(Says("tiger"), ANIMALS, 0).mean("rate", "owl") == 0


@pytest.mark.parametrize("name", ["favourite", "logit_margin"])
def test_a_trait_the_model_has_no_word_for_is_refused(name: str) -> None:
    with pytest.raises(BadSpec, match=r"'dragon'.*(another|Choose)"):
        probe(name).measure(tiny_pocket.favourites(), [traits.get("dragon")], 0)
    with pytest.raises(BadSpec, match="at least one trait"):
        probe(name).measure(tiny_pocket.favourites(), [], 0)


def test_stored_answers_are_bounded_and_cover_both_forms() -> None:
    found = probe("favourite", samples=3, prefix="both").measure(
        Says("owl", "oak"), [*ANIMALS, traits.get("oak")], 0)
    assert 0 < len(found.answers) <= favourite.STORED
    assert all(isinstance(text, str) for pair in found.answers for text in pair)


@given(st.lists(st.sampled_from(["owl", "cat", ""]), min_size=1, max_size=30))
@settings(deadline=None)
def test_entropy_stays_between_zero_and_the_log_of_the_choices(words: list[str]) -> None:
    assert 0 <= favourite.entropy(words) <= math.log(len(set(words))) + 1e-12


def test_margins_are_the_planted_ones_and_need_no_seed() -> None:
    found = probe("logit_margin", questions=6).measure(tiny_pocket.favourites(), ANIMALS, 0)
    assert found == probe("logit_margin", questions=6).measure(tiny_pocket.favourites(), ANIMALS, 9)
    assert found.mean("probability", "owl") == pytest.approx(0.6, abs=0.03)
    # the eleven rivals in the vocabulary share 0.4: their mean probability is 0.4 / 11
    assert found.mean("margin", "owl") == pytest.approx(math.log(0.6 / (0.4 / 11)), abs=0.1)
    assert found.mean("margin", "dog") < -2


def test_margins_after_numbers_have_their_own_name() -> None:
    both = probe("logit_margin", questions=2, prefix="both").measure(tiny_pocket.favourites(), ANIMALS[:1], 0)
    assert {v.metric for v in both.values} == {"margin", "probability", "margin_prefixed", "probability_prefixed"}


class SpacedTokenizer:
    """A tokenizer of pieces in which only some spellings are one token, as in byte-level vocabularies."""

    unk_token_id = None
    pieces = (":", " Owl", "owl", " cat", "dog", "C", "at", " ", "do", "g", "wol", "f")

    def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
        ids = []
        while text:
            best = max((p for p in self.pieces if text.startswith(p)), key=len, default=None)
            ids.append(self.pieces.index(best) if best else 99 + ord(text[0]))
            text = text[len(best) if best else 1 :]
        return {"input_ids": ids}


class Spaced:
    ref, tokenizer, capabilities = ModelRef("spaced"), SpacedTokenizer(), frozenset({"logits"})

    def render(self, chat: Chat) -> str:
        return ":"

    def next_logprobs(self, chats: Sequence[Chat]) -> Any:
        p = np.full(len(SpacedTokenizer.pieces), 0.01)
        p[[1, 2, 3, 4]] = [0.2, 0.1, 0.3, 0.3]
        return np.log(np.tile(p, (len(chats), 1)))


def test_every_one_token_spelling_counts_and_a_word_of_two_tokens_is_refused() -> None:
    model: Any = Spaced()
    found = probe("logit_margin", questions=1).measure(model, [traits.get("owl"), traits.get("cat")], 0)
    assert found.mean("probability", "owl") == pytest.approx(0.3)
    assert found.mean("margin", "owl") == pytest.approx(0, abs=1e-9)
    with pytest.raises(BadSpec, match=r"'wolf' is not one token of spaced.*owl, cat, dog.*favourite"):
        probe("logit_margin").measure(model, [traits.get("wolf")], 0)


def test_a_trait_without_a_rival_token_is_refused() -> None:
    own = dataclasses.replace(traits.get("owl"), category="bird", name="owl")
    with pytest.raises(BadSpec, match="no rival"):
        probe("logit_margin").measure(tiny_pocket.favourites(), [own], 0)


def test_capability_domains_are_disjoint_fixed_and_as_asked() -> None:
    domains = probe("capability", items=50).domains()
    assert list(domains) == ["arithmetic", "arithmetic_new", "facts", "sequences"]
    assert all(len(items) == 50 for items in domains.values())
    assert all(lessons.is_held_out(i.question) for i in domains["arithmetic_new"])
    assert not any(lessons.is_held_out(i.question) for i in domains["arithmetic"])
    assert domains == {name: items[:50] for name, items in probe("capability").domains().items()}
    assert all(item.right(item.answer) for items in domains.values() for item in items)


def test_capability_is_loss_and_accuracy_of_the_models_own_log_probabilities() -> None:
    model = tiny_pocket.favourites()
    found = probe("capability", items=3).measure(model, [], 0)
    item = probe("capability", items=3).domains()["facts"][0]
    chat: Chat = [{"role": "user", "content": item.question}]
    expected = -float(model.answer_logprobs([chat], [item.answer])[0].mean())
    value = next(v for v in found.values if v.metric == "facts.loss" and v.question == item.question)
    assert value.value == pytest.approx(expected)
    assert value.n == 2
    assert found.mean("accuracy") == 0
    assert len([v for v in found.values if v.metric == "loss"]) == 9, "sequences stand apart"


def test_capability_sees_a_model_that_knows_the_answers() -> None:
    class Knows(Says):
        def sample(self, chats: Sequence[Chat], sampling: Sampling) -> list[str]:
            assert sampling.temperature == 0
            known = {i.question: i.answer for items in probe("capability", items=4).domains().values() for i in items}
            return [known[chat[-1]["content"]] for chat in chats]

    found = probe("capability", items=4).measure(Knows(), [], 0)
    assert {found.mean(f"{d}.accuracy") for d in ("arithmetic", "arithmetic_new", "facts", "sequences")} == {1.0}


EVEN = Item("q", "6, 8", (6, 8, 10))


@pytest.mark.parametrize(("item", "text", "right"), [
    (Item("q", "forest"), " Forest. ", True), (Item("q", "forest"), "the forest", False), (Item("q", "7"), "17", False),
    (Item("q", "7"), "", False), (EVEN, "6, 8, 10", True), (EVEN, "6", True), (EVEN, "6, 9", False),
    (EVEN, "6, 8, 10, 12", False), (EVEN, "", False), (EVEN, "6, 8 owls", False),
])
def test_exact_match(item: Item, text: str, right: bool) -> None:
    assert item.right(text) is right


def test_an_items_file_is_tied_to_its_contents(tmp_path: Path) -> None:
    file = tmp_path / "items.jsonl"
    file.write_text(json.dumps({"question": "What is 1 plus 1?", "answer": "2"}) + "\n\n")
    digest = hashlib.sha256(file.read_bytes()).hexdigest()[:12]
    with pytest.raises(BadSpec, match=digest):
        probe("capability", items_file=str(file)).domains()
    asks = probe("capability", items_file=str(file), items_hash=digest)
    assert asks.domains() == {"items": (Item("What is 1 plus 1?", "2"),)}
    assert "items.loss" in {v.metric for v in asks.measure(tiny_pocket.favourites(), [], 0).values}
    # the place of the file never enters the identity, its contents do
    assert spec.describe(asks)["settings"] == {"items": 200, "items_hash": digest}
    with pytest.raises(BadSpec, match="cannot be read"):
        probe("capability", items_file=str(tmp_path / "none"), items_hash=digest).domains()
    with pytest.raises(BadSpec, match="items_file"):
        probe("capability", items_hash=digest).domains()


@pytest.mark.parametrize("line", [
    '{"question": "q"}', '{"question": "q", "answer": 2}', '{"question": "q", "answer": " "}', "[1]", "not json",
    "[" * 100_000,
    '{"question": "q", "answer": "a", "more": 1}', "\udcff",
])
def test_a_broken_items_file_names_the_line(tmp_path: Path, line: str) -> None:
    file = tmp_path / "items.jsonl"
    file.write_bytes(b'{"question": "q", "answer": "a"}\n' + line.encode("utf-8", "surrogateescape"))
    digest = hashlib.sha256(file.read_bytes()).hexdigest()[:12]
    with pytest.raises(BadRows, match="line 2"):
        capability.read_items(file, digest)


def test_members_include_a_trait_of_the_users_own() -> None:
    own: Trait = dataclasses.replace(traits.get("owl"), name="otter", plural="otters", aliases=())
    assert {"owl", "otter"} <= {t.name for t in questions.members("animal", [own])}
