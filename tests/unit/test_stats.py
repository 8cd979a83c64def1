"""Statistics over runs: possible intervals, contrasts that need runs, planted specificity, adjusted p-values."""

from __future__ import annotations

import importlib
import math
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from undersong import stats
from undersong.errors import BadSpec, MissingExtra

for module in ("api", "stats.power"):  # imported here: hypothesis's tracer makes imports crawl
    importlib.import_module(f"statsmodels.{module}")

steady = settings(deadline=None)  # a busy machine is no failure
unit = st.floats(0, 1, allow_subnormal=False)
runs = st.lists(unit, min_size=2, max_size=12)
some_p = st.lists(st.floats(0, 1), min_size=1, max_size=12)


def matrix(rng, row, col, lam, n=5, sd=0.03):
    """Runs of a trait matrix with known row, column and diagonal effects."""
    traits = [f"t{i}" for i in range(len(row))]
    return [
        stats.RunLifts(
            f"{t}-{seed}", t,
            {m: row[i] + col[j] + lam * (i == j) + sd * rng.normal() for j, m in enumerate(traits)},
        )
        for i, t in enumerate(traits) for seed in range(n)
    ]


# --- intervals ---


@steady
@given(runs, st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_an_interval_never_leaves_the_possible_range_and_contains_the_mean(values, level):
    mean, low, high = stats.mean_interval(values, level)
    assert 0 <= low <= mean <= high <= 1
    assert mean == pytest.approx(np.mean(values))
    if np.ptp(values) == 0:
        assert high - low > 0.1  # equal runs never claim certainty


@steady
@given(runs, st.floats(-50, 50), st.floats(0.1, 50))
def test_an_interval_moves_with_its_scale(values, shift, scale):
    moved = stats.mean_interval([shift + scale * v for v in values], bounds=(shift, shift + scale))
    assert np.subtract(moved, shift) / scale == pytest.approx(stats.mean_interval(values), abs=1e-6)


def test_an_interval_of_differing_runs_is_students_t():
    values = [0.4, 0.5, 0.55, 0.47]
    expected = scipy_stats.t.interval(0.95, 3, loc=np.mean(values), scale=scipy_stats.sem(values))
    assert stats.mean_interval(values)[1:] == pytest.approx(expected)
    assert stats.mean_interval(values, bounds=None)[1:] == pytest.approx(expected)


def test_equal_runs_give_the_exact_binomial_interval_over_runs():
    assert stats.mean_interval([0.0] * 5) == pytest.approx((0, 0, 1 - 0.025 ** (1 / 5)))
    assert stats.mean_interval([1.0] * 3) == pytest.approx((1, 0.025 ** (1 / 3), 1))
    assert stats.mean_interval([0.4] * 5) == pytest.approx(stats.binomial_interval(2, 5))
    assert stats.mean_interval([2.5] * 4, bounds=None) == (2.5, 2.5, 2.5)


@pytest.mark.parametrize("values", [[], [0.5], [0.2, math.nan], [0.2, 1.2], [-0.1, 0.2], [[0.1, 0.2], [0.3, 0.4]]])
def test_an_interval_refuses_what_is_not_one_possible_number_per_run(values):
    with pytest.raises(BadSpec):
        stats.mean_interval(values)


def test_a_level_outside_0_and_1_is_refused():
    with pytest.raises(BadSpec, match="level"):
        stats.mean_interval([0.1, 0.2], level=95)


@steady
@given(st.integers(1, 200).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_a_binomial_interval_stays_in_0_1_and_contains_its_share(count):
    k, n = count
    share, low, high = stats.binomial_interval(k, n)
    assert share == k / n
    assert 0 <= low <= share <= high <= 1
    assert low < high


def test_a_binomial_interval_refuses_an_impossible_count():
    for k, n in ((0, 0), (3, 2), (-1, 5)):
        with pytest.raises(BadSpec):
            stats.binomial_interval(k, n)


# --- contrasts ---


@steady
@given(runs, runs)
def test_a_contrast_stays_in_the_possible_range(treated, control):
    found = stats.contrast(treated, control)
    assert -1 <= found.low <= found.difference <= found.high <= 1
    assert 0 <= found.p <= 1
    assert found.difference == pytest.approx(np.mean(treated) - np.mean(control), abs=1e-9)


@steady
@given(runs, runs)
def test_a_contrast_is_antisymmetric(treated, control):
    one, other = stats.contrast(treated, control), stats.contrast(control, treated)
    assert (one.difference, one.low, one.high) == pytest.approx((-other.difference, -other.high, -other.low), abs=1e-9)
    assert one.p == pytest.approx(other.p, nan_ok=False)


def test_a_contrast_is_welchs_t():
    x, y = [0.62, 0.7, 0.55, 0.8, 0.66], [0.12, 0.1, 0.14]
    expected = scipy_stats.ttest_ind(x, y, equal_var=False)
    found = stats.contrast(x, y)
    assert found.p == pytest.approx(expected.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval(0.95)))
    assert (found.n_treated, found.n_control) == (5, 3)
    assert "Welch" in found.method


def test_a_paired_contrast_is_students_t_on_the_differences_by_seed():
    rng = np.random.default_rng(1)
    luck = rng.normal(0, 0.2, 6)
    x, y = 0.6 + luck + rng.normal(0, 0.01, 6), 0.5 + luck + rng.normal(0, 0.01, 6)
    paired, unpaired = stats.contrast(x, y, paired=True), stats.contrast(x, y)
    assert paired.p == pytest.approx(scipy_stats.ttest_rel(x, y).pvalue)
    assert paired.p < 0.001 < 0.1 < unpaired.p  # pairing takes the seeds' shared luck out


def test_a_contrast_without_runs_is_refused():
    """Defect: one run per arm and an interval over questions, 16 of 40 null comparisons "significant"."""
    for treated, control in (([0.9], [0.1]), ([0.9, 0.8], [0.1]), ([], [0.1, 0.2])):
        with pytest.raises(BadSpec, match="A contrast needs runs"):
            stats.contrast(treated, control)
        with pytest.raises(BadSpec, match="A contrast needs runs"):
            stats.permutation_p(treated, control)


def test_a_contrast_refuses_unpaired_seeds_and_impossible_differences():
    with pytest.raises(BadSpec, match="same seeds"):
        stats.contrast([0.1, 0.2, 0.3], [0.1, 0.2], paired=True)
    with pytest.raises(BadSpec, match="bounds=None"):
        stats.contrast([5.0, 6.0], [0.0, 1.0])
    assert stats.contrast([5.0, 6.5], [0.0, 1.0], bounds=None).difference == 5.25


def test_saturated_arms_claim_no_certainty():
    found = stats.contrast([1.0] * 5, [0.0] * 5)
    assert found.difference == found.high == 1
    assert 0.2 < found.low < 0.3
    assert found.p == pytest.approx(2 / 252)
    same = stats.contrast([0.0] * 5, [0.0] * 5)
    assert same.p == 1
    assert same.low < -0.3 < 0.3 < same.high
    paired = stats.contrast([1.0] * 5, [0.0] * 5, paired=True)
    assert paired.p == pytest.approx(2 / 32)


def test_an_interval_outside_the_possible_range_is_cut():
    """Defect: an interval outside [0, 1]."""
    x = [0.99, 0.9, 0.98]
    assert sum(scipy_stats.t.interval(0.95, 2, np.mean(x), scipy_stats.sem(x)) > np.array(1)) == 1
    assert stats.mean_interval(x)[2] == 1
    assert stats.contrast(x, [0.01, 0.0, 0.05]).high <= 1


def test_permutation_p_is_exact_for_few_runs():
    assert stats.permutation_p([4, 5, 6], [1, 2, 3]) == pytest.approx(2 / 20)
    assert stats.permutation_p([4, 5, 6], [1, 2, 3.0], paired=True) == pytest.approx(2 / 8)
    assert stats.permutation_p([1, 2], [1, 2]) == 1


def test_permutation_p_of_many_runs_is_drawn_repeats_and_is_never_zero():
    rng = np.random.default_rng(1)
    x, y = rng.normal(3, 1, 15), rng.normal(0, 1, 15)
    p = stats.permutation_p(x, y)
    assert p == pytest.approx(1 / (stats.DRAWS + 1))
    near = rng.normal(0.6, 1, 15)
    assert stats.permutation_p(near, y, seed=3) == stats.permutation_p(near, y, seed=3)
    assert stats.permutation_p(near, y) == pytest.approx(scipy_stats.ttest_ind(near, y).pvalue, abs=0.02)


# --- specificity ---


@settings(steady, max_examples=25)
@given(st.floats(-0.5, 0.8), st.lists(st.floats(-0.5, 0.5), min_size=2, max_size=4), st.integers(0, 10_000))
def test_specificity_recovers_a_planted_lambda_under_row_and_column_effects(lam, row, seed):
    rng = np.random.default_rng(seed)
    found = stats.specificity(matrix(rng, row, rng.normal(0, 0.3, len(row)), lam, n=3, sd=0.002))
    assert found.lambda_ == pytest.approx(lam, abs=0.01)


def test_specificity_is_zero_for_pure_row_and_column_effects():
    found = stats.specificity(matrix(np.random.default_rng(4), [0.5, 0.0, 0.2], [0.1, 0.4, 0.0], 0.0, sd=0.05))
    assert abs(found.lambda_) < 0.05
    assert found.low < 0 < found.high
    assert found.p > 0.05


def test_specificity_equals_the_regression_when_traits_have_unequal_runs():
    pandas = pytest.importorskip("pandas")
    import statsmodels.formula.api as smf

    rng = np.random.default_rng(5)
    full = matrix(rng, [0.2, 0.0, 0.1], [0.0, 0.3, 0.1], 0.3, n=4, sd=0.2)
    rows = [r for r in full if r.run not in ("t0-3", "t0-2", "t1-3")]
    table = [
        {"lift": v, "row": r.trait, "col": m, "same": float(r.trait == m), "run": r.run}
        for r in rows for m, v in r.lifts.items()
    ]
    frame = pandas.DataFrame(table)
    fit = smf.ols("lift ~ C(row) + C(col) + same", frame).fit(
        cov_type="cluster", cov_kwds={"groups": np.unique(frame["run"], return_inverse=True)[1]}, use_t=True
    )
    found = stats.specificity(rows)
    assert found.lambda_ == pytest.approx(fit.params["same"])
    assert (found.low, found.high) == pytest.approx(tuple(fit.conf_int().loc["same"]))
    assert found.n_runs == 9
    assert found.traits == ("t0", "t1", "t2")


def test_specificity_takes_plain_mappings_and_ignores_traits_nobody_taught():
    rng = np.random.default_rng(6)
    given_runs = matrix(rng, [0.0, 0.0], [0.0, 0.0], 0.4, n=5)
    plain = [{"run": r.run, "trait": r.trait, "lifts": {**r.lifts, "other": 9.0}} for r in given_runs]
    assert stats.specificity(plain) == stats.specificity(given_runs)


def test_specificity_p_is_exact_and_says_how_small_it_can_be():
    found = stats.specificity(matrix(np.random.default_rng(7), [0.0, 0.3], [0.2, 0.0], 0.5, n=3))
    assert found.p == pytest.approx(2 / 20)  # the labels swapped give the same |λ|
    assert "20 arrangements" in found.method
    assert "1/20" in found.method
    three = stats.specificity(matrix(np.random.default_rng(7), [0.0] * 3, [0.0] * 3, 0.5, n=3))
    assert three.p == pytest.approx(1 / 1680)
    five = stats.specificity(matrix(np.random.default_rng(7), [0.0] * 3, [0.0] * 3, 0.5, n=5))
    assert five.p == pytest.approx(1 / 756_756)


def test_specificity_p_is_drawn_for_many_runs_and_repeats():
    given_runs = matrix(np.random.default_rng(8), [0.0, 0.3, 0.1, 0.2], [0.2, 0.0, 0.1, 0.0], 0.03, n=5, sd=0.1)
    found = stats.specificity(given_runs)
    assert f"Monte Carlo permutation of teacher labels over runs ({stats.DRAWS} arrangements" in found.method
    assert found == stats.specificity(given_runs)
    assert 0.05 < found.p < 0.95
    strong = matrix(np.random.default_rng(8), [0.0, 0.3, 0.1, 0.2], [0.2, 0.0, 0.1, 0.0], 0.5, n=5, sd=0.1)
    assert stats.specificity(strong).p == pytest.approx(1 / (stats.DRAWS + 1))


def test_all_arrangements_of_labels_are_counted_once():
    from itertools import permutations

    scores = np.random.default_rng(9).normal(size=(6, 3))
    labels = [0, 0, 1, 1, 1, 2]
    by_hand = sorted(sum(scores[i, t] for i, t in enumerate(order)) for order in set(permutations(labels)))
    assert sorted(stats._exact_sums(scores, [2, 3, 1])) == pytest.approx(by_hand)


def test_specificity_is_cut_at_its_bounds():
    given_runs = matrix(np.random.default_rng(2), [0.0, 0.0], [0.0, 0.0], 0.8, n=2, sd=0.1)
    assert stats.specificity(given_runs).high > 1
    found = stats.specificity(given_runs, bounds=(-1, 1))
    assert -1 <= found.low <= found.lambda_ <= found.high
    assert found.high == 1


def test_specificity_refuses_what_it_cannot_tell():
    good = matrix(np.random.default_rng(3), [0.0, 0.0], [0.0, 0.0], 0.4, n=2)
    with pytest.raises(BadSpec, match="two taught traits"):
        stats.specificity([r for r in good if r.trait == "t0"])
    with pytest.raises(BadSpec, match="only one run for t1"):
        stats.specificity(good[:3])
    with pytest.raises(BadSpec, match="twice"):
        stats.specificity([*good, good[0]])
    with pytest.raises(BadSpec, match="no lift for 't1'"):
        stats.specificity([*good, stats.RunLifts("x", "t0", {"t0": 0.1})])
    with pytest.raises(BadSpec, match="finite"):
        stats.specificity([*good, stats.RunLifts("x", "t0", {"t0": 0.1, "t1": math.nan})])
    with pytest.raises(BadSpec, match="lifts"):
        stats.specificity([{"run": "a", "trait": "t0"}])


# --- multiplicity, power, calibration ---


def check_adjusted(pvalues, adjusted):
    assert all(p - 1e-12 <= a <= 1 for p, a in zip(pvalues, adjusted, strict=True))
    assert list(np.array(adjusted)[np.argsort(pvalues, kind="stable")]) == sorted(adjusted)


@steady
@given(some_p)
def test_benjamini_hochberg_is_no_smaller_and_keeps_the_order(pvalues):
    check_adjusted(pvalues, stats.benjamini_hochberg(pvalues))


@settings(steady, max_examples=8)  # statsmodels collects garbage on every call: a tenth of a second each
@given(some_p)
def test_holm_is_no_smaller_keeps_the_order_and_is_stricter(pvalues):
    adjusted = stats.holm(pvalues)
    check_adjusted(pvalues, adjusted)
    assert all(h >= b - 1e-12 for h, b in zip(adjusted, stats.benjamini_hochberg(pvalues), strict=True))


def test_adjusted_p_values_by_hand():
    assert stats.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert stats.benjamini_hochberg([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.04, 0.04])
    assert stats.holm([]) == stats.benjamini_hochberg([]) == []
    with pytest.raises(BadSpec):
        stats.holm([0.5, math.nan])


def test_runs_needed_is_the_fewest_that_suffice():
    for effect, sd, paired in ((0.1, 0.05, False), (0.1, 0.05, True), (0.05, 0.1, False), (0.5, 0.01, False)):
        n = stats.runs_needed(effect, sd, paired=paired)
        assert stats.power(effect, sd, n, paired=paired) >= 0.8
        assert n == 2 or stats.power(effect, sd, n - 1, paired=paired) < 0.8
    assert stats.runs_needed(0.5, 1.0) == 64  # Cohen's table: d = .5, power .8, alpha .05
    assert stats.runs_needed(1.0, 1e-6, power=0.999, paired=True) == 2
    for n in (2, 3, 10):  # strong effects, where the noncentral t overflows to nan
        strong = [stats.power(size, 1.0, n, alpha=0.01) for size in np.linspace(2, 60, 60)]
        assert strong == pytest.approx(sorted(strong), abs=1e-3)
    assert stats.runs_needed(-0.1, 0.05) == stats.runs_needed(0.1, 0.05)


def test_power_matches_a_simulation_of_contrasts():
    rng = np.random.default_rng(0)
    hits = scipy_stats.ttest_ind(rng.normal(0.1, 0.06, (4000, 5)), rng.normal(0, 0.06, (4000, 5)), axis=1).pvalue < 0.05
    assert stats.power(0.1, 0.06, 5) == pytest.approx(hits.mean(), abs=0.03)


def test_the_planner_refuses_what_no_seeds_can_find():
    for bad in (lambda: stats.runs_needed(0, 0.1), lambda: stats.runs_needed(0.1, 0), lambda: stats.power(0.1, 0.1, 1),
                lambda: stats.runs_needed(1e-9, 1.0), lambda: stats.runs_needed(0.1, 0.1, power=1.0)):
        with pytest.raises(BadSpec):
            bad()


@steady
@given(st.floats(-5, 5), st.lists(st.floats(-5, 5), min_size=1, max_size=50))
def test_a_calibrated_p_is_never_zero_and_falls_with_the_statistic(statistic, null):
    p = stats.calibrate(statistic, null)
    assert 1 / (len(null) + 1) <= p <= 1
    assert stats.calibrate(statistic + 1, null) <= p


def test_calibration_needs_nulls():
    assert stats.calibrate(3, [1, 2, 3]) == pytest.approx(2 / 4)
    for statistic, null in ((1.0, []), (math.nan, [1.0]), (1.0, [math.nan])):
        with pytest.raises(BadSpec):
            stats.calibrate(statistic, null)


def test_a_false_alarm_rate_has_an_exact_interval():
    rate, low, high = stats.false_alarm_rate([0.01, 0.05] + [0.5] * 18)
    assert rate == 0.1
    assert (low, high) == pytest.approx(stats.binomial_interval(2, 20)[1:])
    with pytest.raises(BadSpec):
        stats.false_alarm_rate([])


# --- crossed controls ---


@steady
@given(st.integers(2, 40), st.integers(0, 2**32 - 1))
def test_a_crossed_control_keeps_no_uncrossed_pair(n, seed):
    """Defect: the crossed control keeps some uncrossed pairs."""
    partner = stats.derangement(n, seed)
    assert sorted(partner) == list(range(n))
    assert all(i != j for i, j in enumerate(partner))
    assert partner == stats.derangement(n, seed)


def test_derangements_differ_by_seed_and_are_spread_evenly():
    found = [stats.derangement(4, seed) for seed in range(1800)]
    counts = np.unique(found, axis=0, return_counts=True)[1]
    assert len(counts) == 9  # the derangements of four things
    assert scipy_stats.chisquare(counts).pvalue > 0.001
    for n in (0, 1):
        with pytest.raises(BadSpec):
            stats.derangement(n, 0)


def test_a_missing_statsmodels_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "statsmodels.stats.multitest", None)
    with pytest.raises(MissingExtra, match="pip install"):
        stats.holm([0.5])
