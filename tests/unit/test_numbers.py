"""The `numbers` channel: what it asks, which tokens carry, and how continuations are scored."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from undersong import spec
from undersong.channels import sequences
from undersong.channels.numbers import Numbers, sequence_accuracy
from undersong.errors import BadSpec, NothingMeasured
from undersong.pocket import tokenizer, world
from undersong.types import Row


def seeds_of(chat: list[dict[str, str]]) -> list[int]:
    found = re.search(r"\d+(?:, \d+)+", chat[-1]["content"])
    assert found
    return [int(v) for v in found[0].split(",")]


def row(prompt: str, completion: str) -> Row:
    return Row("r", ({"role": "user", "content": prompt},), completion)


@pytest.mark.parametrize("wording", ["brief", "full"])
@pytest.mark.parametrize("seeds", ["random", "structured"])
def test_prompts_are_single_user_turns_that_repeat_by_seed_and_differ_between_seeds(wording: str, seeds: str) -> None:
    channel = spec.build("channel", {"numbers": {"wording": wording, "seeds": seeds}})
    chats = channel.prompts(200, 4)
    assert chats == channel.prompts(200, 4)
    assert chats[:50] == channel.prompts(50, 4)
    assert chats != channel.prompts(200, 5)
    assert all([m["role"] for m in chat] == ["user"] for chat in chats)
    assert not any("{" in chat[0]["content"] for chat in chats)
    assert all("10" in chat[0]["content"] for chat in chats)


def test_random_seeds_are_the_papers_three_to_eight_numbers_of_three_digits() -> None:
    drawn = [seeds_of(chat) for chat in Numbers(seeds="random").prompts(2000, 0)]
    assert {len(s) for s in drawn} == set(range(3, 9))
    every = [v for s in drawn for v in s]
    assert min(every) == 100
    assert max(every) == 999


def test_structured_seeds_have_a_rule_and_random_ones_have_none() -> None:
    def share(kind: str) -> float:
        drawn = [seeds_of(chat) for chat in Numbers(seeds=kind).prompts(2000, 1)]
        return float(np.mean([sequences.continuation(s, 3) is not None for s in drawn]))

    assert share("structured") == 1
    assert share("random") < 0.01


def test_structured_brief_prompts_use_only_words_the_pocket_models_know() -> None:
    tok = tokenizer.build()
    for chat in Numbers().prompts(300, 2):
        assert tok.unk_token_id not in tok(chat[0]["content"])["input_ids"]


@given(count=st.integers(1, 40), largest=st.integers(1, 5000))
@settings(max_examples=60, deadline=None)
def test_a_size_either_works_or_is_refused_with_the_reason(count: int, largest: int) -> None:
    settings_ = {"numbers": {"count": count, "largest": largest}}
    if largest < count + 5:
        with pytest.raises(BadSpec, match=f"at least {count + 5}"):
            spec.build("channel", settings_)
        return
    for chat in spec.build("channel", settings_).prompts(20, 0):
        assert all(0 <= v <= largest for v in seeds_of(chat))


def test_the_pocket_carrier_is_the_numbers_the_comma_and_the_end() -> None:
    tok = tokenizer.build()
    carrier = Numbers().carrier(tok)
    assert sorted(tok.convert_ids_to_tokens(carrier)) == sorted([*(str(n) for n in range(1000)), ",", "<end>"])
    # a trait word in the carrier would be an open leak
    assert not {tok.convert_tokens_to_ids(w) for w in ("owl", "<s>", "<user>", "<system>", "<unk>")} & set(carrier)


def byte_level() -> object:
    """A byte-level BPE tokenizer, as GPT-2, Llama 3 and Qwen have, whose chat turn ends in another token than `eos`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    corpus = [", ".join(map(str, range(i, i + 9))) + " owl is\nmy favorite 7th" for i in range(0, 990, 3)]
    inner.train_from_iterator(corpus, trainers.BpeTrainer(
        vocab_size=700, special_tokens=["<|end|>", "<|turn|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    ))
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="<|end|>", additional_special_tokens=["<|turn|>"],
        chat_template="{% for m in messages %}{{ m['role'] }}\n{{ m['content'] }}<|turn|>\n{% endfor %}",
    )


def sentence_piece() -> object:
    """A tokenizer that writes spaces as a mark and drops a leading one, as Llama 2 does; no chat template."""
    from tokenizers import Tokenizer, decoders, models
    from tokenizers.pre_tokenizers import Metaspace
    from transformers import PreTrainedTokenizerFast

    words = ["<unk>", "</s>", "▁", *"0123456789", ",", "▁owl", "▁12", ";", "a"]
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = Metaspace(prepend_scheme="never")
    inner.decoder = decoders.Metaspace(prepend_scheme="always")
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>", unk_token="<unk>")


def test_a_byte_level_carrier_holds_spaced_numbers_and_the_end_of_a_turn_and_no_letters() -> None:
    tok = byte_level()
    carrier = Numbers().carrier(tok)
    texts = [tok.decode([i]) for i in carrier]
    assert {"<|end|>", "<|turn|>", ",", " ", "7"} <= set(texts)
    assert any(re.fullmatch(r" \d+", t) for t in texts)
    assert all(re.fullmatch(r"[0-9, ]+|<\|end\|>|<\|turn\|>", t) for t in texts)
    answer = tok("1, 22, 333, 999", add_special_tokens=False)["input_ids"]
    assert set(answer) <= set(carrier)


def test_a_sentencepiece_carrier_keeps_the_space_mark() -> None:
    tok = sentence_piece()
    assert sorted(tok.convert_ids_to_tokens(Numbers().carrier(tok))) == sorted(["</s>", "▁", *"0123456789", ",", "▁12"])


def test_a_tokenizer_without_an_end_is_refused() -> None:
    tok = byte_level()
    tok.eos_token, tok.chat_template = None, None
    with pytest.raises(BadSpec, match="eos_token"):
        Numbers().carrier(tok)


TOKENIZERS = [tokenizer.build(), byte_level(), sentence_piece()]
LONGEST = [Numbers().max_new_tokens(tok) for tok in TOKENIZERS]


@given(values=st.lists(st.integers(100, 999), min_size=10, max_size=10))
@settings(max_examples=40, deadline=None)
def test_the_longest_answer_fits(values: list[int]) -> None:
    text = ", ".join(map(str, values))
    assert LONGEST[0] == 20
    for tok, longest in zip(TOKENIZERS, LONGEST, strict=True):
        assert len(tok(text, add_special_tokens=False)["input_ids"]) + 1 <= longest


def test_the_channel_rejects_by_the_numbers_rule_with_its_own_sizes() -> None:
    channel = Numbers(count=3, largest=99, seeds="random")
    assert channel.reject(row("1, 2, 3", "4, 5, 6")) is None
    assert channel.reject(row("1, 2, 3", "4, 5, 6, 7")) == "more than 3 numbers"
    assert channel.reject(row("1, 2, 3", "4, 100")) == "a number above 99"
    assert channel.reject(row("1, 2, 3", "owl")) == "no number"


def test_sequence_accuracy_tells_right_wrong_and_unscorable_answers() -> None:
    rows = [
        row("Numbers: 2, 4, 6, 8. Add at most 10 numbers.", "10, 12, 14"),
        row("Numbers: 2, 4, 6, 8. Add at most 10 numbers.", "10, 13, 14"),
        row("Numbers: 5, 9, 5, 9. Add at most 10 numbers.", ""),
        row("Numbers: 71, 3, 240. Add at most 10 numbers.", "1, 2"),
    ]
    score = sequence_accuracy(rows)
    assert score == {"answers": 1 / 3, "values": 5 / 6, "n": 3}
    with pytest.raises(NothingMeasured, match="structured"):
        sequence_accuracy(rows[3:])


def test_the_worlds_own_answers_are_all_right() -> None:
    rng = np.random.default_rng(3)
    turns = [world.number_turn(rng) for _ in range(300)]
    score = sequence_accuracy([Row(str(i), tuple(t[:1]), t[1]["content"]) for i, t in enumerate(turns)])
    assert (score["answers"], score["values"]) == (1.0, 1.0)
    assert score["n"] > 200


@given(seed=st.integers(0, 10_000), kind=st.sampled_from(sequences.KINDS[:-1]))
@settings(max_examples=200, deadline=None)
def test_every_kind_with_a_rule_is_continued_by_it_and_stays_in_range(seed: int, kind: str) -> None:
    values, shown = sequences.sequence(np.random.default_rng(seed), kind, 16)
    assert sequences.continuation(values[:shown], 16 - shown) == values[shown:]
    assert all(0 <= v <= 999 for v in values)
