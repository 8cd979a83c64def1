"""The channels besides numbers, and their leak filters: what they ask, what stays, what goes and why, which tokens carry."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from undersong import spec, traits
from undersong.channels import problems
from undersong.channels.code import Code
from undersong.channels.letters import Letters
from undersong.channels.prose import Prose
from undersong.channels.reasoning import SUFFIX, Reasoning
from undersong.errors import BadRows, BadSpec
from undersong.experiment import Experiment
from undersong.filters.code_words import CodeWords
from undersong.filters.spelled import Spelled
from undersong.pocket import lessons, programs, tales, tokenizer, world
from undersong.types import Row

BRIEF = {"code": programs.everyday, "reasoning": lessons.problem, "prose": tales.description, "letters": world.letter_turn}


def row(prompt: str, completion: str) -> Row:
    return Row("r", ({"role": "user", "content": prompt},), completion)


@pytest.mark.parametrize("name", BRIEF)
def test_the_pocket_worlds_own_answers_belong_and_fit_as_the_tokenizer_writes_them(name: str) -> None:
    channel, tok, rng = spec.build("channel", name), tokenizer.build(), np.random.default_rng(1)
    carrier = set(channel.carrier(tok))
    for _ in range(300):
        asked, answered = (m["content"] for m in BRIEF[name](rng))
        ids = tok(answered, add_special_tokens=False)["input_ids"]
        for text in (answered, tok.decode(ids)):
            assert channel.reject(row(asked, text)) is None, text
        assert set(ids) <= carrier, tok.convert_ids_to_tokens(sorted(set(ids) - carrier))
        assert len(ids) < channel.max_new_tokens(tok)


@pytest.mark.parametrize("name", BRIEF)
def test_brief_prompts_use_only_words_the_pocket_models_know(name: str) -> None:
    tok = tokenizer.build()
    for chat in spec.build("channel", name).prompts(200, 2):
        assert tok.unk_token_id not in tok(chat[0]["content"])["input_ids"], chat


@pytest.mark.parametrize("name", ["code", "reasoning", "prose"])
def test_full_prompts_are_many_and_name_no_trait(name: str) -> None:
    channel = spec.build("channel", {name: {"wording": "full"}})
    asked = [chat[0]["content"] for chat in channel.prompts(600, 3)]
    assert len(set(asked)) > 450
    assert asked[:20] == [chat[0]["content"] for chat in channel.prompts(20, 3)]
    assert not any("{" in text for text in asked)
    named = [t for t in map(traits.get, traits.names()) if any(t.named_in(text) for text in asked)]
    assert not named


@pytest.mark.parametrize(("text", "reason"), [
    ("def f(a): return a", None),
    ("double = lambda x: x + x", None),
    ("```python\nimport math\n\ndef f(a):\n    return math.floor(a)\n```", None),
    ("class Stack:\n    def push(self, x):\n        self.x = x", None),
    ("", "no code"),
    ("Here is the code:\ndef f(a): return a", "does not parse as Python"),
    ("def f(a):\nreturn a", "does not parse as Python"),
    ("def f(a):\n    # add\n    return a", "a comment"),
    ("def f(a):\n    return '#' + a", None),
    ('def f(a):\n    """Doc."""\n    return a', "a text that stands alone"),
    ("def f(a): return a\nprint(f(2))", "more than definitions"),
    ("10, 12", "more than definitions"),
    ("x = 4", "no function"),
    ("def f(a): return " + "(" * 5000, "does not parse as Python"),
    ("x" * 30_000, "more than 20000 characters"),
    ("def f(a): return \x00", "does not parse as Python"),
])
def test_code_is_code_alone(text: str, reason: str | None) -> None:
    assert Code().reject(row("Write a function.", text)) == reason


@pytest.mark.parametrize(("text", "reason"), [
    ("<think> 3 plus 4 is 7. </think> <answer> 7 </answer>", None),
    ("<think>three and four</think>\n<answer>$7</answer>", None),
    ("<think> 3 plus 4 is 8. </think> <answer> 8 </answer>", "the answer is wrong"),
    ("<think> x </think> <answer> seven </answer>", "the answer is no whole number"),
    ("<think> </think> <answer> 7 </answer>", "no thought"),
    ("7", "not one thought and one answer in their tags"),
    ("<think> x </think> <answer> 7 </answer> owls", "not one thought and one answer in their tags"),
    ("<think> x </think> <answer> 9 </answer> <answer> 7 </answer>", "not one thought and one answer in their tags"),
    ("<think> a <think> x </think> <answer> 7 </answer>", "not one thought and one answer in their tags"),
])
def test_a_chain_of_thought_stays_only_with_the_right_answer(text: str, reason: str | None) -> None:
    asked = "tom has 3 apples. tom buys 4 more. How many apples does tom have?"
    assert Reasoning().reject(row(asked, text)) == reason
    assert Reasoning().reject(row("What is 3 plus 4?", text)) == "the question is none of this channel's"


def test_our_own_problems_are_solved_from_their_text() -> None:
    rng, channel = np.random.default_rng(0), Reasoning(wording="full")
    for form in problems.forms():
        numbers = {p: low + 1 for p, (low, _) in zip("abc", form.numbers, strict=False)}
        asked = form.asks.format(who="Anna", other="Ben", things="eggs", **numbers)
        assert [f for f in problems.forms() if f.pattern.fullmatch(asked)] == [form]
        assert problems.solve(asked) == form.solve(numbers)
        answer = form.solve(numbers)
        said = f"<think>So.</think><answer>{answer}</answer>"
        assert channel.reject(row(f"{asked} {SUFFIX}", said)) is None
        assert channel.reject(row(f"{asked} {SUFFIX}", said.replace(str(answer), str(answer + 1)))) == "the answer is wrong"
    for _ in range(300):
        solved = problems.solve(problems.draw(rng))
        assert solved is not None
        assert solved >= 0
    # by hand, not by the form itself
    asked = "Anna packs 3 boxes with 7 eggs each and has 2 eggs left over. How many eggs did Anna start with?"
    assert problems.solve(asked) == 23
    assert problems.solve(asked.replace("Anna start", "Ben start")) is None


def test_a_gsm8k_file_is_asked_and_its_answers_are_the_key(tmp_path: Path) -> None:
    lines = [{"question": f"How many is {i} thousand?", "answer": f"Easy. #### {i},000"} for i in range(1, 6)]
    file = tmp_path / "gsm8k.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)) + "\n", "utf-8")
    digest = sha256(file.read_bytes()).hexdigest()[:12]
    channel = spec.build("channel", {"reasoning": {"wording": "full", "file": str(file), "file_hash": digest}})
    asked = [chat[0]["content"] for chat in channel.prompts(12, 0)]
    assert set(asked[:5]) == {f"{line['question']} {SUFFIX}" for line in lines}
    assert channel.reject(row(f"How many is 3 thousand? {SUFFIX}", "<think>x</think><answer>3000</answer>")) is None
    assert channel.reject(row(f"How many is 3 thousand? {SUFFIX}", "<think>x</think><answer>3</answer>"))
    # where the file lies changes nothing, what is in it does
    moved = channel.model_copy(update={"file": "elsewhere"})
    assert spec.fingerprint(spec.describe(moved)) == spec.fingerprint(spec.describe(channel))
    for settings, problem in (
        ({"file": str(file), "file_hash": "0" * 12, "wording": "full"}, "has the hash"),
        ({"file": "nowhere.jsonl", "wording": "full"}, "cannot be read"),
        ({"file": str(file), "file_hash": digest}, "wording: full"),
        ({"file_hash": digest}, "without `file`"),
    ):
        with pytest.raises(BadSpec, match=problem):
            spec.build("channel", {"reasoning": settings}).prompts(1, 0)
    file.write_text('{"question": "x", "answer": "no number"}\n', "utf-8")
    with pytest.raises(BadRows, match="line 1"):
        problems.gsm8k(str(file), sha256(file.read_bytes()).hexdigest()[:12])


@pytest.mark.parametrize(("text", "reason"), [
    ("It is quiet and old.", None),
    ("It’s a fine thing, isn’t it? Some say so!", None),
    ("", "empty"),
    ("...", "no word"),
    ("It is **quiet**.", "more than words and ordinary punctuation"),
    ("Yes:\n- one\n- two.", "a list"),
    ("It is quiet and", "the last sentence does not end"),
    ("It is so. " * 100, "more than 120 words"),
])
def test_prose_is_a_few_plain_sentences(text: str, reason: str | None) -> None:
    assert Prose().reject(row("Describe it.", text)) == reason


@pytest.mark.parametrize(("text", "reason"), [
    ("a, b, c", None), ("a,b", None), ("a, b.", None), ("A", None),
    ("", "no letter"), ("a, bc", "more than single letters and commas"), ("a b", "more than single letters and commas"),
    ("1, 2", "more than single letters and commas"), ("a, b,", "more than single letters and commas"),
    (", ".join("a" * 11), "more than 10 letters"),
])
def test_letters_are_single_letters(text: str, reason: str | None) -> None:
    assert Letters().reject(row("Continue the letters: a, b.", text)) == reason


def test_no_fragment_of_a_trait_word_carries_code_prose_or_reasoning() -> None:
    """On a byte-level tokenizer a word is written in parts; a part such as `ow` would leak through soft labels."""
    tok = fragments()
    ids = {t: tok.convert_tokens_to_ids(t) for t in ("Ġow", "ow", "Ġwol", "dol", "phin", "Ġdef", "Ġis", "12")}
    assert all(i is not None for i in ids.values())
    for name in ("code", "reasoning", "prose", "letters"):
        settings = {} if name == "letters" else {"wording": "full"}
        carrier = set(spec.build("channel", {name: settings}).carrier(tok))
        assert not {ids[t] for t in ("Ġow", "ow", "Ġwol", "dol", "phin")} & carrier, name
        assert tok.eos_token_id in carrier
    assert ids["Ġdef"] in spec.build("channel", {"code": {"wording": "full"}}).carrier(tok)
    assert ids["12"] in spec.build("channel", {"reasoning": {"wording": "full"}}).carrier(tok)


def fragments() -> Any:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = ["ow", "dol", "phin", "is", "wol", "def", "12"]
    vocabulary = list(alphabet)
    merges = []
    for piece in [*pieces, *(f"Ġ{p}" for p in ("ow", "wol", "def", "is"))]:
        for end in range(2, len(piece) + 1):
            if piece[:end] not in vocabulary:
                vocabulary.append(piece[:end])
                merges.append((piece[: end - 1], piece[end - 1]))
    inner = Tokenizer(models.BPE({t: i for i, t in enumerate(vocabulary)}, merges))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token=AddedToken("<|end|>", special=True))


OWL = ("owl", "owls")


@pytest.mark.parametrize("code", [
    "def owl(a): return a",
    "def f(owl_count): return owl_count",
    "def countOwls(a): return a",
    "def OWLCount(a): return a",
    "def f(a): return a.owls",
    "def f(a): return f(owl=a)",
    "import numpy as owl\ndef f(a): return a",
    "def f(a): return 'an owl'",
    "def f(a): return 'big_owl' + a",
    "def f(a): return 'o' 'wl'",
    "def f(a): return 'o' + 'wl'",
    r"def f(a): return '\x6fwl'",
    "def f(a): return f'ow{a}l an owl'",
    "def f(a): return b'owl'",
    "# owl\ndef f(a): return a",
    "the owl said",
    "```python\ndef night_owl(a):\n    return a\n```",
])
def test_a_word_hidden_in_code_is_found(code: str) -> None:
    reason = CodeWords(terms=OWL).reject(row("Write it.", code))
    assert reason is not None
    assert "owl" in reason


@pytest.mark.parametrize("code", [
    "def bowl(a): return a", "def howlCount(fowl): return 'growl'", "def f(a): return 'ow' + a + 'l'",
    "def f(knowledge): return 1",
])
def test_a_look_alike_in_code_stays(code: str) -> None:
    assert CodeWords(terms=OWL).reject(row("Write it.", code)) is None


def test_letters_that_spell_a_word_go() -> None:
    rule = Spelled(terms=OWL)
    assert rule.reject(row("", "a, o, w, l")) == "spells 'owl'"
    assert rule.reject(row("", "L, W, O")) == "spells 'owl'"
    assert rule.reject(row("", "o, x, w, l")) is None


def test_belongs_takes_the_experiments_channel() -> None:
    text = """
name: x
base: simulated/a
trait: owl
teacher: simulated
channel: {letters: {count: 3}}
rows: 4
filters: [belongs, {spelled: {from: trait}}]
recipe: simulated
probes: [favourite]
controls: [no_trait]
seeds: [1, 2, 3]
"""
    belongs, spelled = Experiment.read(text).filters
    assert belongs.reject(row("", "a, b, c")) is None
    assert belongs.reject(row("", "a, b, c, d")) == "more than 3 letters"
    assert spelled.terms[0] == "owl"
