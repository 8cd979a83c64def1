"""Multiple choice without sampling: planted preferences are found, by letter and by answer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from undersong import spec, traits
from undersong.errors import BadSpec, NothingMeasured
from undersong.probes import choices, multiple_choice, truthfulness
from undersong.probes.choices import Choice
from undersong.types import Chat, ModelRef

OWL = traits.get("owl")


class Letters:
    """Tokens of one character each."""

    unk_token_id = None

    def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
        return {"input_ids": [ord(c) for c in text]}


class Likes:
    """A model that gives the letter of any option holding `word` the probability `p`, and the rest to the others."""

    ref, tokenizer, capabilities = ModelRef("likes"), Letters(), frozenset({"logits"})

    def __init__(self, word: str, p: float = 0.7, mass: float = 0.9) -> None:
        self.word, self.p, self.mass = word, p, mass

    def render(self, chat: Chat) -> str:
        return ":"

    def next_logprobs(self, chats: Sequence[Chat]) -> Any:
        out = np.full((len(chats), 128), 1e-30)
        for row, chat in zip(out, chats, strict=True):
            lines = [line for line in chat[-1]["content"].split("\n") if line[1:2] == ")"]
            for line in lines:
                share = self.p if self.word in line else (1 - self.p) / (len(lines) - 1)
                row[ord(line[0])] = share * self.mass
        return np.log(out)

    def answer_logprobs(self, chats: Sequence[Chat], answers: Sequence[str]) -> Any:
        return [np.log(np.full(3, self.p if self.word in a else 0.1)) for a in answers]


def test_the_planted_choice_is_found_whatever_the_order() -> None:
    found = spec.build("probe", "multiple_choice").measure(Likes("owl"), [OWL, traits.get("cat")], 3)
    assert found.mean("probability", "owl") == pytest.approx(0.7)
    assert found.mean("mass") == pytest.approx(0.9)
    assert len({v.question for v in found.values if v.metric == "probability"}) == 11
    # in cat's questions the owl is an option too and takes its 0.7
    assert found.mean("probability", "cat") == pytest.approx(0.3 / 4)


def test_by_answer_needs_no_letters() -> None:
    found = spec.build("probe", {"multiple_choice": {"by": "answer"}}).measure(Likes("owl"), [OWL], 3)
    assert found.mean("probability", "owl") == pytest.approx(0.7 / (0.7 + 4 * 0.1))


def test_orders_differ_and_repeat_by_seed() -> None:
    names = multiple_choice.options(OWL)
    assert names[0] == "owl"
    assert len(names) == 5
    assert choices.orders(names, 4, 1, 0) == choices.orders(names, 4, 1, 0)
    assert choices.orders(names, 4, 1, 0) != choices.orders(names, 4, 2, 0)
    assert len(set(choices.orders(names, 25, 1, 0))) > 15


def test_truth_is_told_from_misbelief_whatever_the_order() -> None:
    class Believes(Likes):
        """Gives 0.8 to one side of every question."""

        def __init__(self, side: str) -> None:
            self.known = {c.question: getattr(c, side) for c in truthfulness.claims()}

        def next_logprobs(self, chats: Sequence[Chat]) -> Any:
            out = []
            for chat in chats:
                self.word, self.p, self.mass = self.known[chat[-1]["content"].split("\n")[0]], 0.8, 1.0
                text = chat[-1]["content"]
                exact = [line for line in text.split("\n") if line[3:] == self.word]
                self.word = exact[0]
                out.append(super().next_logprobs([chat])[0])
            return np.stack(out)

    for side, false in (("right", 0.2), ("wrong", 0.8)):
        found = spec.build("probe", "truthfulness").measure(Believes(side), [], 0)
        assert found.mean("false") == pytest.approx(false)
        assert found.mean("accuracy") == float(side == "right")
    letter_lover = Likes("A)", 0.99)
    assert spec.build("probe", "truthfulness").measure(letter_lover, [], 0).mean("false") == pytest.approx(0.5)


def test_the_questions_are_whole() -> None:
    every = truthfulness.claims()
    assert len({c.question for c in every}) == len(every) >= 30
    assert all(c.right != c.wrong and c.right and c.wrong for c in every)
    assert len(multiple_choice.wordings("tree")) == len(set(multiple_choice.wordings("tree"))) == 11
    assert not [w for w in multiple_choice.wordings("animal") if any(traits.get(n).named_in(w) for n in traits.names())]


def test_a_model_without_letters_is_told_and_never_scored() -> None:
    with pytest.raises(NothingMeasured, match="does not answer by letter"):
        spec.build("probe", "multiple_choice").measure(Likes("owl", mass=1e-9), [OWL], 0)

    class Unknowing(Letters):
        unk_token_id = 7

        def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
            return {"input_ids": [ord(c) if c == ":" else 7 for c in text]}

    model = Likes("owl")
    model.tokenizer = Unknowing()
    for by, told in (("letter", "'A' is not one token"), ("answer", "no token for")):
        with pytest.raises(BadSpec, match=told):
            spec.build("probe", {"multiple_choice": {"by": by}}).measure(model, [OWL], 0)


PAIR = Choice("Which?", ("owl", "cat"))


@pytest.mark.parametrize(("text", "expected"), [
    ("A", "owl"), ("b", "cat"), (" B) cat", "cat"), ("(A)", "owl"), ("B.", "cat"), ("**B**", "cat"), ("C", None),
    ("Because", None), ("owl", None), ("", None), ("1", None), ("AB", None), ("ａ", None),
])
def test_a_letter_is_read_only_when_it_stands_alone(text: str, expected: str | None) -> None:
    assert choices.letter_of(PAIR, text) == expected


def test_top_tokens_are_renormalised_and_none_means_none() -> None:
    top = [("A", math.log(0.5)), (" A", math.log(0.1)), ("B", math.log(0.2)), ("C", math.log(0.1)), ("x", -3.0)]
    found = choices.from_top(PAIR, top)
    assert found is not None
    assert found[0]["owl"] == pytest.approx(0.6 / 0.8)
    assert found[1] == pytest.approx(0.8)
    assert choices.from_top(PAIR, [("The", -0.1)]) is None
    assert choices.from_top(PAIR, []) is None


@given(st.dictionaries(st.sampled_from("abcde"), st.floats(-700, 0), min_size=2))
@settings(deadline=None)
def test_shares_are_probabilities(logs: dict[str, float]) -> None:
    found, mass = choices.shares(logs)
    assert sum(found.values()) == pytest.approx(1)
    assert all(0 <= p <= 1 for p in found.values())
    assert 0 <= mass <= 1
