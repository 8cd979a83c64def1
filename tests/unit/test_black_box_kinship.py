"""Black-box kinship: planted kin are found, strangers that learned the same data are not, and nothing is said alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from speakers import TOKENS, Family

from undersong import pocket
from undersong.backends.transformers import Transformers
from undersong.errors import BadSpec
from undersong.kinship import Subject
from undersong.kinship.asking import controls_of, random_prompts, standing
from undersong.kinship.behaviour import Behaviour, kappa
from undersong.kinship.phylogeny import Counts, Phylogeny, distance
from undersong.kinship.seed_print import SeedPrint, overlap
from undersong.types import ModelRef

TESTS = (SeedPrint(prompts=200, same_data=True), Behaviour(prompts=400, same_data=True), Phylogeny(genes=48, same_data=True))
NAMES = [t.plugin_name for t in TESTS]  # type: ignore[attr-defined]


def six(family: Family) -> list[Subject]:
    return [family.subject(str(i)) for i in range(50, 56)]


@pytest.mark.parametrize("test", TESTS, ids=NAMES)
def test_kin_are_found_and_strangers_are_not(test: Any) -> None:
    family = Family()
    controls = six(family)
    kin = [test.compare(family.subject(f"{i}"), family.subject(f"{i}+0.25"), controls) for i in range(3)]
    assert [f.verdict for f in kin] == ["same_initialisation"] * 3
    assert all(f.p <= 0.01 for f in kin)
    strangers = [test.compare(family.subject(str(i)), family.subject(f"{i + 10}"), controls) for i in range(12)]
    assert sum(f.verdict != "unknown" for f in strangers) == 0
    assert all(0 <= f.details["power"] <= 1 and f.details["says"].endswith(".") for f in (*kin, *strangers))


@pytest.mark.parametrize("test", TESTS, ids=NAMES)
def test_nothing_is_said_without_controls(test: Any) -> None:
    family = Family()
    a, b = family.subject("1"), family.subject("1+0.1")
    for few in ([], [family.subject("50")]):
        with pytest.raises(BadSpec, match="--control"):
            test.compare(a, b, few)


@pytest.mark.parametrize("cls", [Behaviour, Phylogeny])
def test_behaving_alike_is_not_one_initialisation_where_controls_learned_other_data(cls: Any) -> None:
    family = Family()
    found = cls().compare(family.subject("1"), family.subject("1+0.1"), six(family))
    assert found.p <= 0.01
    assert found.verdict == "unknown"
    assert "more alike than unrelated controls" in found.details["says"]
    assert found.details["power"] is None


def test_text_alone_gives_the_same_words() -> None:
    shown, hidden = Family(), Family(shows=False)
    test = Behaviour(prompts=300, same_data=True)
    told = [test.compare(f.subject("1"), f.subject("1+0.2"), six(f)) for f in (shown, hidden)]
    assert told[0].statistic == told[1].statistic
    assert [t.access for t in told] == [("logits",), ("text",)]


def test_a_pair_must_beat_every_control_and_the_spread() -> None:
    family, test = Family(), Behaviour(prompts=300, same_data=True)
    controls = six(family)
    for other in ("1+0.25", "2"):
        found = test.compare(family.subject("1"), family.subject(other), controls)
        tried = [c["adjusted"] for c in found.details["per_control"]]
        assert len(tried) == 2 * len(controls)
        assert found.p == max(found.details["p_spread"], *tried)


def test_a_common_favourite_makes_no_kin() -> None:
    family = Family(favourite=22.0)
    found = Behaviour(same_data=True).compare(family.subject("1"), family.subject("2"), six(family))
    assert found.details["agreement"] > 0.5
    assert found.verdict == "unknown"
    assert abs(found.statistic) < 0.2


def test_the_image_ignores_what_happens_inside() -> None:
    family = Family()
    a, b = family.subject("1"), family.subject("2")
    turn = np.linalg.qr(np.random.default_rng(3).normal(size=(10, 10)))[0]
    b.model.inner, b.model.out = a.model.inner[:, ::-1] * 0.7, (a.model.out @ turn) * 2
    found = SeedPrint(prompts=200, same_data=True).compare(a, b, six(family))
    assert found.statistic == pytest.approx(1, abs=1e-3)
    assert found.details["ranks"] == [10, 10]


def test_a_little_in_common_is_not_kin() -> None:
    family = Family()
    a, b = family.subject("1"), family.subject("2")
    b.model.out[:, :1] = a.model.out[:, :1]  # one direction of ten
    found = SeedPrint(prompts=200, same_data=True).compare(a, b, six(family))
    assert found.p <= 0.01
    assert 0.03 < found.details["excess"] < 0.2
    assert found.verdict == "unknown"
    assert "too little for kin" in found.details["says"]


def test_more_is_asked_for_where_controls_learned_other_data() -> None:
    family = Family()
    a, b = family.subject("1"), family.subject("2")
    b.model.out[:, :4] = a.model.out[:, :4]
    found = [SeedPrint(prompts=200, same_data=same).compare(a, b, six(family)) for same in (True, False, None)]
    assert [f.verdict for f in found] == ["same_initialisation", "unknown", "unknown"]
    assert 0.2 < found[0].details["excess"] < 0.5
    assert [f.details["least"] for f in found] == [0.2, 0.5, 0.5]


def test_overlap_of_planted_subspaces() -> None:
    eye = np.eye(6, dtype=np.float32)
    assert overlap(eye[:, :3], eye[:, :3]) == 1
    assert overlap(eye[:, :3], eye[:, 3:]) == 0
    assert overlap(eye[:, :3], eye[:, 2:4]) == 0.5


def test_kappa_is_chance_corrected() -> None:
    same = np.array(list("aabbccdd"))
    assert kappa(same, same) == 1
    assert kappa(np.array(list("aaaa")), np.array(list("aaaa"))) == 0
    assert kappa(np.array(list("abab")), np.array(list("aabb"))) == pytest.approx(0)


def test_a_control_is_asked_once_and_a_subject_is_no_control() -> None:
    family = Family()
    controls, test = six(family), SeedPrint(prompts=100)
    a, b = family.subject("1"), family.subject("2")
    test.compare(a, b, controls)
    found = test.compare(a, family.subject("3"), [*controls, family.subject("1")])
    assert controls[0].model.asked == 100  # type: ignore[attr-defined]
    assert found.details["left_out"] == ["1: holds weights of 1"]


def test_false_alarms_of_the_standing_are_at_most_alpha() -> None:
    rng = np.random.default_rng(8)
    for n in (4, 7):
        ps = []
        for _ in range(1500):
            effects, noise = rng.normal(size=n) * 0.05, rng.normal(size=(n, n)) * 0.02
            table = 0.3 + effects[:, None] + effects[None, :] + np.triu(noise, 1) + np.triu(noise, 1).T
            ps.append(standing(table).p)
        assert np.mean(np.array(ps) <= 0.05) < 0.07, n


def test_power_follows_the_gap() -> None:
    rng = np.random.default_rng(9)
    noise = np.triu(rng.normal(size=(7, 7)) * 0.05, 1)
    found = standing(0.3 + noise + noise.T)
    near, far = found.power(0.05, 0.01), found.power(0.6, 0.01)
    assert near < 0.3 < 0.9 < far
    assert found.power(0.0, 0.01) == pytest.approx(0.01, abs=1e-4)


def test_phylogeny_is_unbiased_and_near_for_equal_habits() -> None:
    rng = np.random.default_rng(4)
    habits = rng.dirichlet(np.full(12, 0.3), size=400)
    draw = [np.stack([rng.choice(12, size=6, p=p) for p in habits]).astype(str) for _ in range(2)]
    apart = np.stack([rng.choice(12, size=6, p=p) for p in rng.dirichlet(np.full(12, 0.3), size=400)]).astype(str)
    counts = Counts([*draw, apart])
    assert counts.similarity(0, 1) == pytest.approx(1, abs=0.05)
    assert abs(counts.similarity(0, 2)) < 0.1
    assert distance(counts.similarity(0, 0)) <= distance(counts.similarity(0, 2)) <= 5


def test_prompts_hold_plain_tokens_and_repeat() -> None:
    family = Family()
    first = random_prompts([family.subject("1")], 60, 0)
    assert first == random_prompts([family.subject("2")], 60, 0) != random_prompts([family.subject("1")], 60, 1)
    words = {int(w[1:]) for p in first for w in p[0]["content"].split()}
    assert 0 not in words
    assert len(words) > TOKENS // 2


def test_pocket_models_bring_their_own_controls() -> None:
    backend = Transformers(workers=1)
    b, matched = (Subject(n, ModelRef(n), backend) for n in ("pocket/b", "pocket/b-matched"))
    held = controls_of(b, matched, (), None)
    assert [c.name for c in held.subjects] == ["pocket/a", "pocket/wide"]
    assert held.same_data
    with pytest.raises(BadSpec, match="1 of them"):  # pocket/b is kin of b-matched
        controls_of(matched, Subject("a", ModelRef("pocket/a"), backend), (), None)
    found = SeedPrint(prompts=256).compare(b, matched)
    assert found.verdict == "same_initialisation"
    assert found.details["ranks"] == [96, 96]


def test_a_copy_of_a_subject_is_no_control() -> None:
    backend = Transformers(workers=1)
    names = ("pocket/b", "pocket/a-reordered", "pocket/a", "pocket/wide")
    b, again, a, wide = (Subject(n, ModelRef(n), backend) for n in names)
    copy = Subject("copy", ModelRef(str(pocket.folder("pocket/a"))), backend)
    held = controls_of(copy, b, [a, again, wide], None)
    assert held.left_out == ("pocket/a: holds weights of copy",)
    assert not held.same_data
    with pytest.raises(BadSpec, match="1 of them"):
        controls_of(copy, b, (), None)
