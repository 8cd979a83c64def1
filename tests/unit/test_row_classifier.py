"""Evidence is what was granted and no more; the row classifier finds a planted difference and no other."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from undersong import spec
from undersong.detectors import ACCESS, Evidence
from undersong.detectors.row_classifier import confound_features, interval, value_features
from undersong.errors import BadRows, BadSpec, UnknownName
from undersong.types import Row


def run(
    seed: int, low_share: float = 0.0, rows: int = 60, separator: str = ", ", lengths: tuple[int, int] = (6, 11)
) -> tuple[Row, ...]:
    """Rows of uniform numbers; `low_share` of the values come from the lower half only."""
    rng = np.random.default_rng(seed)
    out = []
    for i in range(rows):
        values = rng.integers(0, 1000, int(rng.integers(*lengths)))
        values = np.where(rng.random(len(values)) < low_share, values // 2, values)
        out.append(Row(str(i), ({"role": "user", "content": "1, 2"},), separator.join(map(str, values))))
    return tuple(out)


def detect(suspected: Any, reference: Any, seed: int = 0, **settings: Any) -> Any:
    evidence = Evidence({"rows": tuple(suspected), "reference": tuple(reference)})
    return spec.build("detector", {"row_classifier": settings}).detect(evidence, seed)


CLEAN = [run(100 + i) for i in range(4)]


@pytest.mark.parametrize("token", ACCESS)
def test_reading_what_was_not_granted_is_an_error(token: str) -> None:
    with pytest.raises(BadSpec, match=f"{token!r} and was granted nothing"):
        getattr(Evidence({}), token)
    assert getattr(Evidence({token: "x"}), token) == "x"


def test_a_view_holds_what_was_needed_and_nothing_else() -> None:
    full = Evidence({"rows": (), "reference": (), "student": "model"})
    view = full.only(frozenset({"rows"}))
    assert view.rows == ()
    with pytest.raises(BadSpec, match="'student'"):
        view.student  # noqa: B018
    with pytest.raises(BadSpec, match="'base'"):
        full.only({"base"})
    with pytest.raises(UnknownName, match="teacher"):
        Evidence({"teachr": 1})


def test_a_planted_difference_of_values_is_found_and_not_laid_to_format() -> None:
    found = detect([run(i, 0.6) for i in range(4)], CLEAN)
    assert found.verdict == "found"
    assert found.p == pytest.approx(2 / 70)
    assert found.statistic > 0.6
    assert found.details["bag_accuracy"] > found.details["accuracy"]
    assert found.details["confound_accuracy"] < 0.57
    assert 0 <= found.details["low"] <= found.details["accuracy"] <= found.details["high"] <= 1
    assert found.access == ("reference", "rows")
    assert (found.details["n_runs"], found.details["n_rows"]) == (4, 8 * 60)


def test_a_difference_of_format_alone_is_seen_by_the_confounds_alone() -> None:
    found = detect([run(i, separator=",", lengths=(3, 6)) for i in range(4)], CLEAN)
    assert found.details["confound_accuracy"] > 0.95
    assert found.details["accuracy"] < 0.62


def test_clean_against_clean_is_at_chance_and_alarms_at_the_stated_rate() -> None:
    settings = {"rows_per_run": 24, "alpha": 0.1}
    runs = [[run(10 * k + i, rows=24) for i in range(6)] for k in range(30)]
    findings = [detect(six[:3], six[3:], **settings) for six in runs]
    assert np.mean([f.details["accuracy"] for f in findings]) == pytest.approx(0.5, abs=0.03)
    # p can be 0.1 at the least; more than 8 alarms of 30 have probability below 1 in 1000
    assert sum(f.verdict == "found" for f in findings) <= 8
    assert {f.verdict for f in findings} <= {"found", "clean"}


def test_too_few_runs_to_tell_is_unknown_and_no_permutations_is_uncalibrated() -> None:
    two = detect([run(i, 0.9) for i in range(2)], CLEAN[:2])
    assert (two.verdict, two.p) == ("unknown", pytest.approx(1 / 3))
    bare = detect([run(i, 0.9) for i in range(2)], CLEAN[:2], permutations=0)
    assert (bare.verdict, bare.p, bare.null) == ("unknown", None, "uncalibrated")
    assert bare.details["false_alarm_rate"] is None


def test_the_finding_repeats_by_seed_and_uneven_runs_are_fine() -> None:
    suspected = [run(i, 0.5) for i in range(3)]
    settings = {"rows_per_run": 30, "permutations": 10}
    one, two, other = (detect(suspected, CLEAN, seed, **settings) for seed in (0, 0, 1))
    assert one == two
    assert one.details["accuracies"] != other.details["accuracies"]
    assert one.details["n_runs"] == 3


@pytest.mark.parametrize(("suspected", "message"), [
    (CLEAN[:1], "at least two"), ([CLEAN[0], ()], "Run 2"), ([CLEAN[0], (Row("r", (), "owl"),)], "no number"),
])
def test_runs_that_cannot_be_read_are_refused(suspected: Any, message: str) -> None:
    with pytest.raises(BadRows, match=message):
        detect(suspected, CLEAN)


def test_value_features_do_not_show_the_format_and_confounds_do_not_show_the_values() -> None:
    def rows(*texts: str) -> list[Row]:
        return [Row("r", (), t) for t in texts]

    values = value_features(rows("5, 10", "[5;10].", "005\n10"))
    assert (values == values[0]).all()
    assert values[0, [5, 10]].tolist() == [0.5, 0.5]
    confounds = confound_features(rows("5, 10", "999, 0"))
    assert (confounds[0] == confounds[1]).all()
    assert not (confound_features(rows("5,10")) == confounds[0]).all()
    value_features(rows("9" * 7000, ""))


def test_intervals_stay_in_range() -> None:
    assert interval([1.0, 0.7]) == (0.0, 1.0)
    assert interval([0.9]) == (0.0, 1.0)
    low, high = interval([0.5, 0.52, 0.48, 0.5])
    assert 0.45 < low < 0.5 < high < 0.55
