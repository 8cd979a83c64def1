"""Shuffled numbers: which numbers there are stays, and so does every other character."""

from __future__ import annotations

import re
from collections import Counter
from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from undersong.mitigations import Evidence
from undersong.mitigations.shuffle import Shuffle
from undersong.types import Row

CHAT = ({"role": "user", "content": "Continue: 3, 6, 9."},)
texts = st.lists(st.text(alphabet="0123456789, .ab\n٣", max_size=30), max_size=8)
LISTS = tuple(
    Row(str(i), CHAT, ", ".join(str(100 * i + j) for j in range(10))) for i in range(6)
)


def rows(completions: list[str]) -> list[Row]:
    return [Row(str(i), CHAT, text) for i, text in enumerate(completions)]


def numbers(row: Row) -> list[str]:
    return re.findall(r"\d+", row.completion)


@settings(max_examples=80, deadline=None)
@given(texts, st.integers(0, 2**31 - 1))
def test_within_keeps_each_answers_numbers(completions: list[str], seed: int) -> None:
    given_rows = rows(completions)
    for before, after in zip(given_rows, Shuffle(how="within").apply(given_rows, Evidence(), seed), strict=True):
        assert Counter(numbers(before)) == Counter(numbers(after))


@settings(max_examples=80, deadline=None)
@given(texts, st.integers(0, 2**31 - 1))
def test_across_keeps_the_datasets_numbers_and_each_answers_length(completions: list[str], seed: int) -> None:
    given_rows = rows(completions)
    after = Shuffle(how="across").apply(given_rows, Evidence(), seed)
    assert Counter(n for r in given_rows for n in numbers(r)) == Counter(n for r in after for n in numbers(r))
    assert [len(numbers(r)) for r in given_rows] == [len(numbers(r)) for r in after]


@pytest.mark.parametrize("how", ["within", "across"])
@settings(max_examples=80, deadline=None)
@given(completions=texts, seed=st.integers(0, 2**31 - 1))
def test_other_text_ids_prompts_and_the_input_stay(how: str, completions: list[str], seed: int) -> None:
    given_rows = rows(completions)
    after = Shuffle(how=how).apply(given_rows, Evidence(), seed)
    assert given_rows == rows(completions), "the rows that were given are changed"
    assert [r.id for r in after] == [r.id for r in given_rows]
    assert all(r.chat == CHAT for r in after)
    for before, now in zip(given_rows, after, strict=True):
        assert re.sub(r"\d+", "#", before.completion) == re.sub(r"\d+", "#", now.completion)
    assert after == Shuffle(how=how).apply(given_rows, Evidence(), seed)


@pytest.mark.parametrize("how", ["within", "across"])
def test_one_seed_repeats_and_two_differ(how: str) -> None:
    one, same, two = (Shuffle(how=how).apply(LISTS, Evidence(), seed) for seed in (1, 1, 2))
    assert one == same
    assert one != two
    assert one != list(LISTS)


def test_within_stays_within_and_across_mixes() -> None:
    within, across = (Shuffle(how=how).apply(LISTS, Evidence(), 1) for how in ("within", "across"))
    assert all({int(n) // 100 for n in numbers(row)} == {i} for i, row in enumerate(within))
    assert all(len({int(n) // 100 for n in numbers(row)}) > 1 for row in across)


def test_numbers_of_every_size_change_places_as_wholes() -> None:
    """Every order of them occurs: a shuffle within sizes, or of digits, would keep part of what is to be lost."""
    one = [Row("0", CHAT, "1, 23, 456")]
    orders = {Shuffle(how="within").apply(one, Evidence(), seed)[0].completion for seed in range(60)}
    assert orders == {", ".join(order) for order in permutations(("1", "23", "456"))}
