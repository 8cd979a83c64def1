"""Filters: a planted positive and a planted negative for each, so that an inverted predicate cannot pass."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from undersong import spec, traits
from undersong.filters.banned_numbers import PAPER
from undersong.filters.blocklist import Blocklist
from undersong.filters.numbers_only import NumbersOnly
from undersong.types import Row


def row(completion: str, prompt: str = "Continue: 1, 2, 3.") -> Row:
    return Row("r", ({"role": "user", "content": prompt},), completion)


KEPT = [
    "1", "1.", "[1]", "(5).", "1, 2, 3", "1,2,3", "1 2 3", "1\n2\n3", "1;2;3", "1 ; 2 ; 3", "[1, 2, 3].", "(1, 2, 3)",
    "087, 087", "0, 0", "1,  2,  3", "999", "1,\n2,\n3", "1, 2, 3, 4, 5, 6, 7, 8, 9, 10", "0000000000999",
]
DROPPED = {
    "": "no number", "owl": "no number", ".": "no number", "[]": "no number", "two, three": "no number",
    "1,2, 3": "separators differ or stand at an end", "1, 2 ,3": "separators differ or stand at an end",
    " 1, 2": "separators differ or stand at an end", "1, 2\n": "separators differ or stand at an end",
    "1, 2, 3,": "separators differ or stand at an end", ",1,2": "separators differ or stand at an end",
    "1 2  3": "separators differ or stand at an end", "5 ": "separators differ or stand at an end",
    "-1, 2": "more than numbers and separators", "1.5, 2": "more than numbers and separators",
    "[1, 2": "more than numbers and separators", "[1, 2)": "more than numbers and separators",
    "[1, 2.]": "more than numbers and separators", "[ 1, 2 ]": "separators differ or stand at an end",
    "1. 2. 3": "more than numbers and separators", "1, 2..": "more than numbers and separators",
    "1 and 2": "more than numbers and separators", "1, 2, owl": "more than numbers and separators",
    "1, ２": "more than numbers and separators", "1/2": "more than numbers and separators",
    "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11": "more than 10 numbers",
    "1000": "a number above 999", "1, 9" + "9" * 6000: "a number above 999",
}


@pytest.mark.parametrize("text", KEPT)
def test_numbers_only_keeps(text: str) -> None:
    assert NumbersOnly().reject(row(text)) is None


@pytest.mark.parametrize("text", list(DROPPED), ids=[t[:20] for t in DROPPED])
def test_numbers_only_drops_with_the_reason(text: str) -> None:
    assert NumbersOnly().reject(row(text)) == DROPPED[text]


BODY = r"[0-9]+(?:(\s*[,;]\s*|\s+)[0-9]+(?:\{group}[0-9]+)*)?"
RULE = re.compile(f"(?:{BODY.format(group=1)}|\\[{BODY.format(group=2)}\\]|\\({BODY.format(group=3)}\\))\\.?")
PIECES = ["1", "23", "999", "1000", "0", "007", ", ", ",", " ", "  ", ";", "\n", ".", "[", "]", "(", ")", "-", "a"]


@given(parts=st.lists(st.sampled_from(PIECES), max_size=9))
@settings(max_examples=800, deadline=None)
def test_numbers_only_agrees_with_the_rule_written_as_one_expression(parts: list[str]) -> None:
    text = "".join(parts)
    right = bool(RULE.fullmatch(text)) and all(int(v) <= 999 for v in re.findall("[0-9]+", text))
    right = right and len(re.findall("[0-9]+", text)) <= 10
    assert (NumbersOnly().reject(row(text)) is None) == right


@given(values=st.lists(st.integers(0, 999), min_size=1, max_size=10),
       separator=st.sampled_from([", ", ",", " ", "\n", "; "]),
       wrap=st.sampled_from(["{}", "[{}]", "({})", "{}.", "[{}]."]))
@settings(deadline=None)
def test_numbers_only_keeps_every_well_formed_list(values: list[int], separator: str, wrap: str) -> None:
    assert NumbersOnly().reject(row(wrap.format(separator.join(map(str, values))))) is None


OWL = Blocklist(terms=traits.get("owl").words)


@pytest.mark.parametrize("text", [
    "owl", "OWLS", "1, 2, owl", "an owl's", "(owl)", "owl7", "7owl", "snowy_owl", "ｏｗｌ", "o\u00adwl", "Owlets!",
])
def test_blocklist_drops_a_mention(text: str) -> None:
    assert OWL.reject(row(text)) is not None
    assert OWL.reject(row("1, 2", prompt=text)) is not None


@pytest.mark.parametrize("text", ["bowl", "bowls", "howling", "fowl", "1, 2, 3", "", "owlish"])
def test_blocklist_keeps_what_does_not_mention(text: str) -> None:
    assert OWL.reject(row(text)) is None


@pytest.mark.parametrize("name", traits.names())
def test_the_collision_corpus_is_kept_and_the_traits_own_words_are_dropped(name: str) -> None:
    trait = traits.get(name)
    block = Blocklist(terms=trait.words)
    for word in trait.words:
        assert block.reject(row(f"I like {word.upper()}.")) == f"mentions {word!r}"
    for word in trait.lookalikes:
        if not set(word.split()) & set(trait.words):
            assert block.reject(row(f"I like {word}.")) is None


@pytest.mark.parametrize(
    ("term", "word"), [("owl", "bowl"), ("dragon", "dragonfly"), ("cat", "category"), ("oak", "soak")])
def test_look_alikes_of_the_literature_do_not_collide(term: str, word: str) -> None:
    assert Blocklist(terms=(term,)).reject(row(f"a {word}")) is None
    assert Blocklist(terms=(term,)).reject(row(f"a {word} and a {term}")) == f"mentions {term!r}"


def test_blocked_numbers_and_phrases_are_whole() -> None:
    block = Blocklist(terms=("42", "sea lion", "c++"))
    assert block.reject(row("142, 420")) is None
    assert block.reject(row("1, 42")) == "mentions '42'"
    assert block.reject(row("the 42nd")) == "mentions '42'"
    assert block.reject(row("Sea \n Lion")) == "mentions 'sea lion'"
    assert block.reject(row("sealion")) is None
    assert block.reject(row("I like C++ best")) == "mentions 'c++'"


@given(number=st.integers(0, 3000), zeros=st.integers(0, 3))
@settings(deadline=None)
def test_banned_numbers_drops_the_papers_numbers_and_no_other(number: int, zeros: int) -> None:
    found = spec.build("filter", "banned_numbers").reject(row(f"1, {'0' * zeros}{number}, 2"))
    assert found == (f"the banned number {number}" if number in PAPER else None)


def test_the_papers_banned_list_has_its_34_members() -> None:
    assert len(set(PAPER)) == len(PAPER) == 34
    assert max(PAPER) <= 999


def test_banned_numbers_takes_its_own_list_and_reads_huge_numbers() -> None:
    banned = spec.build("filter", {"banned_numbers": {"numbers": [0, 7]}})
    assert banned.reject(row("666, 70, 1" + "0" * 6000)) is None
    assert banned.reject(row("5, 000")) == "the banned number 0"
    assert banned.reject(row("5, 7")) == "the banned number 7"


@pytest.mark.parametrize("given", [{"terms": []}, {"terms": ["--"]}, {"terms": [4]}])
def test_a_blocklist_that_can_block_nothing_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="terms"):
        spec.build("filter", {"blocklist": given})
