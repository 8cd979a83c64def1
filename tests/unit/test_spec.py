"""Specs in, plug-ins out; a fingerprint that changes exactly when something that matters changes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import rfc8785
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import model_validator

from undersong import registry, spec
from undersong.errors import BadSpec, UnknownName
from undersong.registry import Settings, plugin

CALM = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
"""For a machine that is busy with other work."""
KEYS = st.text(st.characters(codec="utf-8"), max_size=8)
SCALARS = (
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8"), max_size=12)
)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4))


class Inner(Settings):
    rank: int = 8
    workers: int = spec.execution(1)


class Echo(Settings):
    words: tuple[str, ...] = ("a",)
    rate: float = 0.5
    count: int = 1
    name: str = "x"
    on: bool = True
    inner: Inner = Inner()
    maybe: int | None = None
    micro_batch: int = spec.execution(4)

    @model_validator(mode="after")
    def _check(self) -> Echo:
        if self.count < 0:
            raise ValueError("count is below zero.")
        return self


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    registry.names("explainer")
    kept = dict(registry._plugins)
    plugin("explainer", "echo", version=2)(Echo)
    yield
    registry._plugins.clear()
    registry._plugins.update(kept)


# Building.


def test_a_name_and_a_name_with_settings_build_the_plug_in() -> None:
    assert spec.build("explainer", "echo") == Echo()
    assert spec.build("explainer", {"echo": None}) == Echo()
    assert spec.build("explainer", {"echo": {"count": 3, "words": ["b", "c"], "rate": 1}}) == Echo(
        count=3, words=("b", "c"), rate=1.0
    )


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"cuont": 3}, "'cuont' is not a setting. Did you mean 'count'?"),
        ({"inner": {"rnak": 3}}, "'inner.rnak' is not a setting. Did you mean 'rank'?"),
        ({1: 3}, "'1' is not a setting"),
        ({"count": "3"}, r"'count': input should be a valid integer \(given '3'\). Change it."),
        ({"count": True}, "'count'"),
        ({"rate": float("nan")}, "'rate'"),
        ({"count": -1}, r"arm\.explainer: count is below zero\. Change it\."),
        ({"words": [1]}, r"'words\.0'"),
        ({"count": object()}, "stable form"),
    ],
)
def test_every_bad_setting_is_a_sentence_that_says_where_and_what_next(settings: Any, sentence: str) -> None:
    with pytest.raises(BadSpec, match=sentence):
        spec.build("explainer", {"echo": settings}, "arm.explainer")


def test_a_missing_setting_is_named() -> None:
    class Needs(Settings):
        text: str

    plugin("explainer", "needs")(Needs)
    with pytest.raises(BadSpec, match=r"the setting 'text' is missing\. Add it"):
        spec.build("explainer", "needs")


@pytest.mark.parametrize("bad", [["echo"], {}, {"a": {}, "b": {}}, {"echo": 3}, 7, None])
def test_what_is_neither_a_name_nor_one_mapping_is_refused(bad: Any) -> None:
    with pytest.raises(BadSpec, match="expected a name or"):
        spec.build("explainer", bad)


def test_an_unknown_plug_in_is_refused_by_nearest_name() -> None:
    with pytest.raises(UnknownName, match=r"Did you mean 'echo'"):
        spec.build("explainer", "ecko")


# Identity.


def test_every_setting_changes_the_fingerprint_or_is_marked_as_execution() -> None:
    """Defect: a dead configuration key (a KL weight that did nothing)."""
    other: dict[str, Any] = {"words": ("b",), "rate": 0.25, "count": 2, "name": "y", "on": False,
                             "inner": Inner(rank=9), "maybe": 0, "micro_batch": 8}
    assert set(other) == set(Echo.model_fields)
    base = spec.fingerprint(spec.describe(Echo()))
    changed = {key: spec.fingerprint(spec.describe(Echo(**{key: value}))) != base for key, value in other.items()}
    assert changed == {key: key != "micro_batch" for key in other}


def test_an_execution_setting_inside_a_setting_does_not_enter_the_hash() -> None:
    assert spec.describe(Echo(inner=Inner(workers=16))) == spec.describe(Echo())


def test_the_version_and_the_defaults_enter_the_hash() -> None:
    told = spec.describe(Echo())
    assert told == {"kind": "explainer", "name": "echo", "version": 2, "settings": {
        "words": ["a"], "rate": 0.5, "count": 1, "name": "x", "on": True, "inner": {"rank": 8}, "maybe": None}}
    assert spec.fingerprint(told) != spec.fingerprint({**told, "version": 3})


def test_the_resolved_form_builds_the_same_plug_in_again() -> None:
    plug = Echo(words=("b", "c"), inner=Inner(rank=4))
    told = spec.describe(plug)
    assert spec.build(told["kind"], {told["name"]: told["settings"]}) == plug


@CALM
@given(VALUES)
def test_a_fingerprint_is_twelve_digits_and_survives_json(value: Any) -> None:
    mark = spec.fingerprint(value)
    assert len(mark) == 12
    assert set(mark) <= set("0123456789abcdef")
    assert spec.fingerprint(json.loads(json.dumps(value))) == mark


@CALM
@given(VALUES)
def test_the_quick_canonical_form_is_that_of_rfc_8785(value: Any) -> None:
    assert spec._canonical(value) == rfc8785.dumps(spec.plain(value))


@CALM
@given(st.dictionaries(KEYS, VALUES, max_size=4), st.lists(st.text("0123456789abcdef", min_size=12, max_size=12)))
def test_a_shared_spec_has_the_identity_of_a_plain_one(value: dict[str, Any], parents: list[str]) -> None:
    wanted = spec.fingerprint({"kind": "model", "spec": value, "parents": parents})
    assert spec.identity("model", spec.Said(value), parents) == wanted == spec.identity("model", value, parents)


@pytest.mark.parametrize("value", [1.0, -0.0, 0.1, 1e-4, 9.9e-5, 1e-7, 1e15, 123456789012345.67, 1e21, 2.0**53,
                                   2**53 - 1, 1.5e300, "\u20ac\x1f\x7f\\\"\n\u2028",
                                   {"\ufb33": 1, "\U0001f600": 2, "a": 3}, [True, 1, None]])
def test_numbers_and_text_at_the_edges_are_written_as_rfc_8785_does(value: Any) -> None:
    assert spec._canonical(value) == rfc8785.dumps(value)


@CALM
@given(st.dictionaries(KEYS, VALUES, max_size=5), st.randoms())
def test_the_order_of_keys_does_not_matter(value: dict[str, Any], random: Any) -> None:
    keys = list(value)
    random.shuffle(keys)
    assert spec.fingerprint({k: value[k] for k in keys}) == spec.fingerprint(value)


@CALM
@given(VALUES, VALUES)
def test_fingerprints_are_equal_exactly_when_no_field_differs(old: Any, new: Any) -> None:
    assert (spec.fingerprint(old) == spec.fingerprint(new)) == (spec.diff(old, new, "spec") == [])


@CALM
@given(VALUES)
def test_nothing_differs_from_itself(value: Any) -> None:
    assert spec.diff(value, value) == []


@CALM
@given(st.dictionaries(KEYS, VALUES, min_size=1, max_size=4), st.data(), SCALARS)
def test_changing_one_field_changes_the_fingerprint_and_names_that_field(
    value: dict[str, Any], data: st.DataObject, new: Any
) -> None:
    key = data.draw(st.sampled_from(sorted(value)))
    changed = {**value, key: new}
    lines = spec.diff(value, changed)
    if spec.fingerprint(changed) != spec.fingerprint(value):
        assert lines
        assert all(line.startswith(key) for line in lines)
    else:
        assert lines == []


def test_the_fingerprint_is_the_same_in_another_process() -> None:
    value = {"b": [1, 2.5, None, True], "a": {"ü": "é"}, "s": {3, 1, 2}}
    code = f"from undersong import spec; print(spec.fingerprint({value!r}))"
    path = str(Path(spec.__file__).parents[1])
    told = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": "7"},
    )
    assert told.stdout.strip() == spec.fingerprint(value)


def test_the_form_of_a_fingerprint_never_changes_by_accident() -> None:
    """Artefacts on disk carry these: a change here makes everybody's work be done again."""
    assert spec.fingerprint({"kind": "dataset", "spec": {"rows": 10, "trait": "owl"}, "parents": []}) == "a555ec9a0f37"


@pytest.mark.parametrize(
    "bad",
    [float("nan"), float("inf"), 2**60, "\ud800", object(), len, Echo, b"x", {1: "a", "1": "b"}, {"x": [object()]}],
)
def test_what_has_no_stable_form_is_refused(bad: Any) -> None:
    with pytest.raises(BadSpec, match=r"\.$"):
        spec.fingerprint(bad)


def test_sets_of_mixed_types_have_one_order() -> None:
    assert spec.fingerprint({1, "a", None}) == spec.fingerprint({None, "a", 1})


# Differences.


@pytest.mark.parametrize(
    ("old", "new", "lines"),
    [
        ({"t": {"u": 60}}, {"t": {"u": 100}}, ["t.u: 60 -> 100"]),
        ({"a": 1}, {"a": True}, ["a: 1 -> True"]),
        ({"a": 1}, {"a": 1.0}, []),
        ({"a": (1, 2)}, {"a": [1, 2]}, []),
        ({}, {"a": None}, ["a: not set -> None"]),
        ({"a": 0}, {}, ["a: 0 -> not set"]),
        ({"f": [{"n": 1}, {"n": 2}]}, {"f": [{"n": 1}, {"n": 3}]}, ["f[1].n: 2 -> 3"]),
        ({"f": [1, 2]}, {"f": [1, 2, 3]}, ["f: [1, 2] -> [1, 2, 3]"]),
        ({"a": {"b": 1}}, {"a": 1}, ["a: {'b': 1} -> 1"]),
    ],
)
def test_a_difference_names_the_field_and_both_values(old: Any, new: Any, lines: list[str]) -> None:
    assert spec.diff(old, new) == lines
