"""Simulated nulls: tests over runs reject at their nominal rate, tests over answers far above it.

Every run of both arms has the same expected rate; runs differ by their own luck (sd .05), answers by a coin.
"""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats as scipy_stats

from undersong import stats

TRIALS, QUESTIONS, RATE, LUCK = 800, 200, 0.3, 0.05


def null_arms(runs, seed=0):
    """Answers [trial, arm, run, question] of experiments in which nothing happened."""
    rng = np.random.default_rng(seed)
    rates = np.clip(rng.normal(RATE, LUCK, (TRIALS, 2, runs, 1)), 0, 1)
    return (rng.random((TRIALS, 2, runs, QUESTIONS)) < rates).astype(float)


@pytest.mark.parametrize("runs", [3, 5])
def test_p_values_per_run_reject_near_the_nominal_rate(runs):
    rates = null_arms(runs).mean(axis=-1)
    rejected = np.mean([stats.contrast(treated, control).p < 0.05 for treated, control in rates])
    assert 0.015 <= rejected <= 0.075


@pytest.mark.parametrize("runs", [3, 5])
def test_p_values_per_answer_instead_of_per_run_reject_far_above_the_nominal_rate(runs):
    """Defect: p-values per answer instead of per run. This is what the rule is there for."""
    answers = null_arms(runs).reshape(TRIALS, 2, -1)
    rejected = np.mean(scipy_stats.ttest_ind(answers[:, 0], answers[:, 1], axis=1).pvalue < 0.05)
    assert rejected > 0.2


def test_paired_contrasts_reject_near_the_nominal_rate():
    rng = np.random.default_rng(1)
    shared = rng.normal(0, 0.1, (TRIALS, 1, 5))
    arms = 0.4 + shared + rng.normal(0, 0.03, (TRIALS, 2, 5))
    rejected = np.mean([stats.contrast(x, y, paired=True).p < 0.05 for x, y in arms])
    assert 0.025 <= rejected <= 0.08


def test_exact_permutation_p_values_never_reject_too_often():
    rates = null_arms(4, seed=2).mean(axis=-1)[:300]
    p = np.array([stats.permutation_p(x, y) for x, y in rates])
    assert p.min() >= 2 / 70 - 1e-12
    assert np.mean(p <= 0.1) <= 0.145


def test_intervals_cover_the_truth_at_their_level():
    rng = np.random.default_rng(3)
    draws = np.clip(rng.normal(0.5, 0.1, (TRIALS, 5)), 0, 1)
    covered = [low <= 0.5 <= high for _, low, high in map(stats.mean_interval, draws)]
    assert 0.93 <= np.mean(covered) <= 0.97


def test_intervals_of_all_or_nothing_runs_cover_too():
    """Runs that convert wholly or not at all: a bare t-interval of equal runs has no width and covers nothing."""
    rng = np.random.default_rng(4)
    for chance in (0.05, 0.2):
        runs = (rng.random((TRIALS, 5)) < chance).astype(float)
        covered = np.mean([low <= chance <= high for _, low, high in map(stats.mean_interval, runs)])
        assert covered >= 0.93


def test_specificity_under_row_and_column_effects_alone_rejects_near_the_nominal_rate():
    """Teachers that raise everything and traits that every teacher raises are no specific effect."""
    rng = np.random.default_rng(5)
    row, col, traits = np.array([0.4, 0.0, 0.1]), np.array([0.0, 0.3, 0.1]), ("t0", "t1", "t2")
    found = []
    for _ in range(250):
        noise = rng.normal(0, 0.1, (3, 3, 3)) + rng.normal(0, 0.1, (3, 3, 1))
        found.append(stats.specificity([
            {"run": f"{i}{r}", "trait": traits[i], "lifts": dict(zip(traits, row[i] + col + noise[i, r], strict=True))}
            for i in range(3) for r in range(3)
        ]))
    assert np.mean([f.p < 0.05 for f in found]) <= 0.09
    assert np.mean([f.p for f in found]) == pytest.approx(0.5, abs=0.06)
    assert np.mean([f.low <= 0 <= f.high for f in found]) >= 0.88
