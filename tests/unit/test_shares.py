"""Shares of an effect: what they are at the ends, what leaves them as they are, and how often the interval is right."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from undersong.errors import BadSpec
from undersong.shares import share_kept, share_removed

EFFECTS = st.lists(st.tuples(st.floats(0.5, 4), st.floats(-1, 4)), min_size=2, max_size=12)


@settings(deadline=None)
@given(EFFECTS)
def test_the_interval_holds_the_share_and_kept_mirrors_removed(pairs: list[tuple[float, float]]) -> None:
    plain, left = zip(*pairs, strict=True)
    share, low, high = share_removed(plain, left)
    assert low <= share <= high
    assert share == pytest.approx(1 - np.mean(left) / np.mean(plain))
    kept = share_kept(plain, left)
    assert kept == pytest.approx((1 - share, 1 - high, 1 - low))


@settings(deadline=None)
@given(EFFECTS)
def test_nothing_left_is_all_removed_and_everything_left_is_nothing(pairs: list[tuple[float, float]]) -> None:
    plain = [p for p, _ in pairs]
    nothing, everything = share_removed(plain, [0.0] * len(plain)), share_removed(plain, plain)
    assert (nothing[0], everything[0]) == (1, 0)
    if math.isfinite(nothing[1]):  # bounds exist where the plain effect is told from 0
        assert nothing == pytest.approx((1, 1, 1), abs=1e-6)
        assert everything == pytest.approx((0, 0, 0), abs=1e-6)


@settings(deadline=None)
@given(EFFECTS, st.floats(0.01, 1e6))
def test_units_and_order_of_runs_change_nothing(pairs: list[tuple[float, float]], unit: float) -> None:
    plain, left = (np.array(v) for v in zip(*pairs, strict=True))
    asked = share_removed(plain, left)
    assert share_removed(plain * unit, left * unit) == pytest.approx(asked, rel=1e-6, abs=1e-6)
    assert share_removed(plain[::-1], left[::-1]) == pytest.approx(asked, rel=1e-6, abs=1e-6)


def test_an_effect_that_is_not_there_has_no_bounds() -> None:
    share, low, high = share_removed([0.9, -1.0, 1.1, -0.8], [0.1, 0.2, 0.1, 0.2])
    assert math.isfinite(share)
    assert (low, high) == (-math.inf, math.inf)


def test_a_planted_share_is_covered_as_often_as_promised() -> None:
    rng, held = np.random.default_rng(3), 0
    for _ in range(600):
        plain = rng.normal(2, 0.7, 8)
        left = 0.3 * plain + rng.normal(0, 0.3, 8)
        _, low, high = share_removed(plain, left)
        held += low <= 0.7 <= high
    assert 0.925 <= held / 600 <= 0.975


def test_refusals_say_what_to_do() -> None:
    for plain, left in (([1.0], [1.0]), ([1.0, 2.0], [1.0]), ([1.0, math.nan], [1.0, 1.0])):
        with pytest.raises(BadSpec, match="run"):
            share_removed(plain, left)
    with pytest.raises(BadSpec, match="no plain effect"):
        share_removed([1.0, -1.0], [1.0, 1.0])
    with pytest.raises(BadSpec, match="level"):
        share_removed([1.0, 2.0], [1.0, 1.0], level=1.0)
