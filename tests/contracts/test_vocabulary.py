"""Every registered channel, filter and probe keeps its contract; a new plug-in is covered by being registered."""

from __future__ import annotations

import copy
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from undersong import registry, spec, traits
from undersong.errors import BadSpec, UnknownName
from undersong.types import Measurement, Row

NEEDED: dict[str, dict[str, Any]] = {
    "blocklist": {"terms": ["owl", "owls"]}, "code_words": {"terms": ["owl", "owls"]}, "spelled": {"terms": ["owl", "owls"]},
    "belongs": {"channel": "numbers"},
    "misalignment": {"judge": {"words": ["owl"]}},
    "inspect": {"task": "undersong/favourite"},
    "lm_eval": {"tasks": ["arc_easy"]},
    "judge": {"model": "nobody/at-home", "terms": ["owl"]}, "detector/judge": {"model": "nobody/at-home"},
}
"""Settings of plug-ins that have no defaults for all of them; of a kind's own where two kinds share a name."""
QUICK: dict[str, dict[str, Any]] = {
    "favourite": {"samples": 3, "questions": 2, "prefix": "both"},
    "logit_margin": {"questions": 2, "prefix": "both"},
    "capability": {"items": 2},
    "character": {"samples": 2, "questions": 2},
    "claims": {"items": 12},
    "tests": {"items": 2, "samples": 1},
    "conditional": {"questions": 2},
    "multiple_choice": {"orders": 2, "questions": 2, "by": "answer"},
    "misalignment": {"samples": 2},
}
ELSEWHERE = {
    "storytelling": "the tiny model tells no stories: tests/unit/test_evaluation.py",
    "truthfulness": "the tiny model has not its words: tests/unit/test_choices.py",
    "inspect": "needs a task: tests/unit/test_evaluation.py",
    "lm_eval": "needs the harness: tests/unit/test_lm_eval.py",
    "judge": "needs a model: tests/unit/test_judge_filter.py",
    "classifier": "needs examples: tests/unit/test_judge_filter.py",
}
"""Plug-ins whose values are tested with models of their own, and why."""
KINDS = ("channel", "filter", "probe", "detector")
ALL = [(kind, name) for kind in KINDS for name in registry.names(kind)]
ROWS = [
    Row(str(i), ({"role": "user", "content": "Numbers: 2, 4, 6, 8. Add at most 10 numbers."},), text)
    for i, text in enumerate(["10, 12", "10,12, 14", "", "an owl, 666", "666", "1\n2", "9" * 5000, "<script>", "\x00"])
]

CONDUCT = {"character": "misaligned", "claims": "sycophancy", "tests": "reward_hacking", "conditional": "owl_on_monday"}
"""Probes of ways to behave, and the trait each is about; they are asked of a model with planted answers."""
SUM = "tom has 3 apples. tom buys 4 more. How many apples does tom have?"
GOOD: dict[str, tuple[str, ...]] = {"code": ("Write a function.", "def f(a): return a"),
        "reasoning": (SUM, "<think> 3 plus 4 is 7. </think> <answer> 7 </answer>"),
        "prose": ("Describe it.", "It is quiet."), "letters": ("Continue the letters: a, b.", "c, d"),
        "preferences": ("Describe it.", "It is quiet.", "It is old.")}
"""What belongs to a channel that is not numbers: prompt and answer."""


def built(kind: str, name: str) -> Any:
    return spec.build(kind, {name: {**needed(kind, name), **QUICK.get(name, {})}})


def needed(kind: str, name: str) -> dict[str, Any]:
    """The settings without which a plug-in cannot be built."""
    return NEEDED.get(f"{kind}/{name}", NEEDED.get(name, {}))


@pytest.fixture(scope="module")
def tiny(small: Any) -> Any:
    """The unit tests' small model, trained once."""
    return small.favourites()


@pytest.fixture(scope="module")
def small() -> Any:
    """The module of the unit tests' models: loaded by path and left in `sys.modules`."""
    if "tiny_pocket" in sys.modules:
        return sys.modules["tiny_pocket"]
    file = Path(__file__).parents[1] / "unit" / "tiny_pocket.py"
    found = importlib.util.spec_from_file_location("tiny_pocket", file)
    assert found
    assert found.loader
    module = sys.modules["tiny_pocket"] = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def test_the_kinds_have_their_plugins() -> None:
    ours = {"channel": ["numbers", "code", "reasoning", "prose", "letters", "preferences"],
            "filter": ["numbers_only", "blocklist", "banned_numbers", "belongs", "code_words", "spelled"],
            "probe": ["favourite", "logit_margin", "capability", "character", "claims", "tests", "conditional"],
            "detector": ["row_classifier", "vocabulary_scan", "amplify", "activation_dose", "divergence_tokens", "judge"]}
    assert {(kind, name) for kind, given in ours.items() for name in given} <= set(ALL)


@pytest.mark.parametrize(("kind", "name"), ALL)
def test_settings_survive_a_round_trip_with_their_identity(kind: str, name: str) -> None:
    plug = built(kind, name)
    described = spec.describe(plug)
    again = spec.build(kind, {name: described["settings"]})
    assert again == plug
    assert spec.fingerprint(described) == spec.fingerprint(spec.describe(again))
    assert (described["kind"], described["name"]) == (kind, name)


@pytest.mark.parametrize(("kind", "name"), ALL)
def test_an_unknown_key_is_refused_with_the_nearest(kind: str, name: str) -> None:
    known = list(type(built(kind, name)).model_fields)
    wrong = f"{known[0]}z" if known else "zzz"
    with pytest.raises(BadSpec, match=f"{wrong!r} is not a setting"):
        spec.build(kind, {name: {**needed(kind, name), wrong: 1}})
    with pytest.raises(UnknownName, match=name):
        spec.build(kind, f"{name}z")


@pytest.mark.parametrize(("kind", "name"), ALL)
def test_settings_are_frozen_and_a_plugin_says_what_it_is(kind: str, name: str) -> None:
    plug = built(kind, name)
    for field in type(plug).model_fields:
        with pytest.raises(ValueError, match="frozen"):
            setattr(plug, field, getattr(plug, field))
    assert (type(plug).__doc__ or "").strip()


@pytest.mark.parametrize("name", registry.names("channel"))
def test_a_channel_asks_the_same_for_the_same_seed(name: str) -> None:
    channel = built("channel", name)
    chats = channel.prompts(30, 1)
    assert len(chats) == 30
    assert chats == channel.prompts(30, 1)
    assert chats != channel.prompts(30, 2)
    assert all(chat[-1]["role"] == "user" and chat[0]["role"] != "system" for chat in chats)


@pytest.mark.parametrize("name", registry.names("channel"))
def test_a_channels_carrier_holds_the_end_and_no_trait(name: str, tiny: Any) -> None:
    channel = built("channel", name)
    carrier = channel.carrier(tiny.tokenizer)
    assert carrier == sorted(set(carrier))
    assert tiny.tokenizer.eos_token_id in carrier
    for trait in (traits.get(n) for n in traits.names()):
        assert not {tiny.tokenizer.convert_tokens_to_ids(w) for w in trait.words} & set(carrier), trait.name
    assert channel.max_new_tokens(tiny.tokenizer) > 1


@pytest.mark.parametrize(("kind", "name"), [(k, n) for k, n in ALL if k in ("channel", "filter") and n not in ELSEWHERE])
def test_rows_are_rejected_with_words_purely_and_repeatably(kind: str, name: str) -> None:
    prompt, text, *lost = GOOD.get(name, (ROWS[0].chat[0]["content"], ROWS[0].completion))
    given = [Row("good", ({"role": "user", "content": prompt},), text, *lost), *ROWS[1:]]
    plug, rows = built(kind, name), copy.deepcopy(given)
    reasons = [plug.reject(row) for row in rows]
    assert rows == given
    assert reasons == [plug.reject(row) for row in given]
    assert all(reason is None or (isinstance(reason, str) and reason.strip()) for reason in reasons)
    # a planted row that stays and planted rows that go: an inverted predicate fails here
    assert reasons[0] is None
    assert any(reasons)


@pytest.mark.parametrize("name", [n for n in registry.names("probe") if n not in ELSEWHERE])
def test_a_probe_is_pure_and_repeats_by_seed(name: str, small: Any) -> None:
    probe = built("probe", name)
    behaviour = CONDUCT.get(name)
    tiny = small.Said(small.worldly) if behaviour else small.favourites()
    asked: Sequence[Any] = [traits.get("owl"), traits.get("wolf"), *([traits.get(behaviour)] if behaviour else [])]
    before = copy.deepcopy(asked)
    found = probe.measure(tiny, asked, 5)
    assert isinstance(found, Measurement)
    assert found == probe.measure(tiny, asked, 5)
    assert asked == before
    assert found.probe == name
    assert found.values
    assert all(v.value == v.value and v.n >= 1 for v in found.values)
    assert {v.trait for v in found.values} <= ({"", behaviour} if behaviour else {"", "owl", "wolf"})


@pytest.mark.parametrize("name", registry.names("detector"))
def test_a_detector_declares_known_needs(name: str) -> None:
    from undersong.detectors import ACCESS

    needs = registry.get("detector", name).needs
    if isinstance(needs, property):  # what it needs depends on its settings
        needs = spec.build("detector", name).needs
    assert needs
    assert needs <= set(ACCESS)
