"""A null's p-values are exact for exchangeable cases, whatever the keys look like, and planted cases are found."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from undersong.errors import BadSpec, BrokenArtefact
from undersong.nulls import Case, Null, Table, smallest_share

KEYS = tuple(("panel", f"t{i}") for i in range(8)) + tuple(("scan", f"w{i}") for i in range(30))


def said(values: np.ndarray) -> dict[tuple[str, str], float]:
    return dict(zip(KEYS, map(float, values), strict=True))


def draws(rng: np.random.Generator, n: int) -> np.ndarray:
    """Shares that are nearly always 0, beside normal statistics of very different spread."""
    sparse = rng.random((n, 8)) ** 8 * (rng.random((n, 8)) < 0.1)
    return np.concatenate([sparse, rng.normal(size=(n, 30)) * np.geomspace(1e-3, 1e3, 30)], axis=1)


def test_clean_cases_are_found_at_the_nominal_rate_over_all_detectors_and_keys() -> None:
    rng = np.random.default_rng(1)
    ps = np.array([Table(KEYS, values[1:]).judge(said(values[0])).p for values in (draws(rng, 40) for _ in range(800))])
    for alpha in (0.05, 0.1, 0.5):
        rate, error = (ps <= alpha).mean(), np.sqrt(alpha * (1 - alpha) / len(ps))
        assert rate <= alpha + 3 * error
        assert rate >= alpha - 3 * error - 1 / 40  # ties and the step of 1/40 may make it cautious


def test_one_extreme_placebo_case_does_not_hide_an_extreme_case() -> None:
    values = np.random.default_rng(7).normal(size=(100, 38))
    values[50, 3] = 60.0  # a placebo that is far out in another detector
    values[0, 20] = 300.0
    judged = Table(KEYS, values[1:]).judge(said(values[0]))
    assert judged.p == 1 / 100


def test_a_statistic_that_is_0_in_every_placebo_still_speaks() -> None:
    values = np.random.default_rng(8).normal(size=(100, 38))
    values[:, :8] = 0.0
    values[0, 2] = 0.01
    judged = Table(KEYS, values[1:]).judge(said(values[0]))
    assert judged.p == 1 / 100
    assert judged.top == KEYS[2]


def test_p_is_the_rank_and_never_below_its_floor() -> None:
    rng = np.random.default_rng(2)
    values = draws(rng, 20)
    own = values[0].copy()
    own[10] = 1e6
    judged = Table(KEYS, values[1:]).judge(said(own))
    assert judged.p == judged.floor == 1 / 20
    assert judged.top == KEYS[10]
    assert judged.p_of[KEYS[10]] == judged.p
    assert all(p >= judged.p for p in judged.p_of.values())


def test_a_planted_share_is_not_hidden_by_sparse_placebo_shares() -> None:
    rng = np.random.default_rng(3)
    values = draws(rng, 100)
    values[:, :8] *= 0.02  # placebo shares of at most 2 %, a different trait each
    own = values[0].copy()
    own[3] = 0.2
    judged = Table(KEYS, values[1:]).judge(said(own))
    assert judged.p == pytest.approx(1 / 100)
    assert judged.top == KEYS[3]


def test_shift_and_scale_of_a_detector_change_nothing() -> None:
    values = draws(np.random.default_rng(4), 30)
    scale, shift = np.where(np.arange(38) < 8, 7.0, 0.01), np.linspace(-5, 5, 38)
    one = Table(KEYS, values[1:]).judge(said(values[0]))
    two = Table(KEYS, values[1:] * scale + shift).judge(said(values[0] * scale + shift))
    assert one.p == two.p
    assert one.observed == pytest.approx(two.observed)


def test_a_constant_statistic_finds_nothing() -> None:
    table = Table((("a", "x"),), np.zeros((30, 1)))
    assert table.judge({("a", "x"): 0.0}).p == 1.0


def test_a_missing_key_or_a_number_that_is_none_is_told() -> None:
    table = Table((("a", "x"), ("a", "y")), np.random.default_rng(5).normal(size=(20, 2)))
    with pytest.raises(BadSpec, match="'y'"):
        table.judge({("a", "x"): 1.0})
    with pytest.raises(BadSpec, match="finite"):
        table.judge({("a", "x"): 1.0, ("a", "y"): float("nan")})


def cases(effect: float) -> list[Case]:
    """Thirty placebo cases, and ten planted ones at each of three shares; the statistic rises by the share."""
    rng = np.random.default_rng(6)
    out = []
    for unit in range(60):
        trait, share = ("", 0.0) if unit < 30 else ("owl", (0.1, 0.5, 1.0)[unit % 3])
        noise = rng.normal(size=2)
        out.append(Case("rows", unit, "d@1", 100, trait, share, {"owl": noise[0] + effect * share, "cat": noise[1]}))
    return out


def test_power_rises_with_the_share_and_names_the_trait() -> None:
    null = Null({}, tuple(cases(12.0)))
    curve = null.power("rows", 100, ["d@1"], 0.05)
    assert [point["share"] for point in curve] == [0.1, 0.5, 1.0]
    assert curve[0]["power"] < 0.8 <= curve[2]["power"]
    assert curve[2]["named"] == curve[2]["power"] == 1.0
    assert smallest_share(curve) == 0.5
    wrong = [replace(c, by_trait={"owl": c.by_trait["cat"], "cat": c.by_trait["owl"]}) for c in cases(12.0)]
    swapped = Null({}, tuple(wrong)).power("rows", 100, ["d@1"], 0.05)
    assert swapped[2]["power"] == 1.0
    assert swapped[2]["named"] == 0.0
    nothing = Null({}, tuple(cases(0.0))).power("rows", 100, ["d@1"], 0.05)
    assert smallest_share(nothing) is None


def test_a_share_counts_as_seen_only_if_every_larger_one_is() -> None:
    curve = [{"share": 0.1, "power": 0.9}, {"share": 0.5, "power": 0.5}, {"share": 1.0, "power": 1.0}]
    assert smallest_share(curve) == 1.0


def test_the_size_is_the_largest_that_the_rows_reach() -> None:
    null = Null({}, tuple(Case("rows", 0, "d@1", n, "", 0.0, {"x": 1.0}) for n in (50, 400)))
    assert [null.size("rows", n) for n in (49, 50, 399, 400, 10**6)] == [None, 50, 50, 400, 400]


def test_a_null_reads_back_as_written(tmp_path: Path) -> None:
    null = Null({"base": "pocket/a", "sizes": [100]}, tuple(cases(1.0)))
    null.write(tmp_path)
    assert Null.read(tmp_path) == null
    assert repr(Null.read(tmp_path)) == repr(null)


def test_a_damaged_null_is_refused_in_words(tmp_path: Path) -> None:
    Null({}, tuple(cases(1.0))).write(tmp_path)
    (tmp_path / "null.parquet").write_bytes(b"PAR1 torn")
    with pytest.raises(BrokenArtefact, match="null"):
        Null.read(tmp_path)
    (tmp_path / "null.json").unlink()
    with pytest.raises(BrokenArtefact, match="calibrate"):
        Null.read(tmp_path)


def test_units_with_other_keys_do_not_make_a_table() -> None:
    odd = [Case("rows", 0, "d@1", 1, "", 0.0, {"x": 1.0}), Case("rows", 1, "d@1", 1, "", 0.0, {"y": 1.0})]
    with pytest.raises(BadSpec, match="do not fit"):
        Table.of(odd, ["d@1"])
