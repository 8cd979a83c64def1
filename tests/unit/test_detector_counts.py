"""What the detector benchmark counts: alarms, power, naming, AUROC, and whether targets are met, on made-up findings."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from detecting import cells, counts, plan, students, targets
from undersong.detectors import spelled
from undersong.nulls import Case, Null
from undersong.spec import build

BAG, TEMPLATE = (cells.Column(name, build("detector", name)) for name in ("bag_of_k", "marginal_template"))
CLEAN = cells.Cell("benign", "base", "", 0, 0.0, 50, 1.0, math.nan, math.nan, {"owl": 0.0, "cat": 0.0})


def planted(share: float, owl: float, cat: float = 0.0, **more: Any) -> cells.Cell:
    """What a detector says of a set with planted owl rows."""
    said = {"owl": owl, "cat": cat}
    return replace(CLEAN, battery="planted", kind=plan.PLAIN, trait="owl", share=share, said=said, **more)


def null(*columns: cells.Column, units: int = 39) -> Null:
    """Placebo cases whose statistics go from -1 to 1, in another order for every trait."""
    values = [2 * i / (units - 1) - 1 for i in range(units)]
    cases = [Case("rows", i, spelled(c.detector), 50, "", 0.0, {"owl": values[i], "cat": values[(7 * i + k) % units]})
             for k, c in enumerate(columns) for i in range(units)]
    return Null({"sources": units, "detectors": {}}, tuple(cases))


def judgement(p: float, top: str = "owl", score: float = 0.0, cell: cells.Cell = CLEAN) -> cells.Judgement:
    return cells.Judgement(cell, p, score, top, math.nan)


def test_auroc_is_the_chance_that_the_first_lies_above() -> None:
    assert cells.auroc([3, 4], [1, 2]) == 1
    assert cells.auroc([1, 2], [3, 4]) == 0
    assert cells.auroc([1, 1], [1, 1]) == 0.5
    assert cells.auroc([2], [1, 2, 3]) == 0.5


def test_row_scores_are_held_against_the_rows_that_are_planted() -> None:
    told = {"row_scores": [0.9, 0.2, 0.4, 0.1], "row_ids": ["a", "b", "c", "d"]}
    assert cells._row_auroc(told, frozenset("ac")) == 1
    assert cells._row_auroc(told, frozenset("ab")) == 0.75
    assert cells._row_auroc(told, frozenset("abcd")) is None
    assert cells._row_auroc({}, frozenset("ab")) is None


def test_a_planted_set_is_found_and_named_and_a_benign_one_is_not() -> None:
    said = {BAG.name: [CLEAN, planted(1.0, 9.0), planted(0.1, 0.0, 9.0)]}
    clean, found, wrong = counts.judged(null(BAG), [BAG], said)[BAG.name]
    assert clean.p > 0.05
    assert (found.p, found.top, found.own) == (1 / 40, "owl", 9.0)
    assert (wrong.p, wrong.top) == (1 / 40, "cat")
    lines = {line["share"]: line for line in counts.power("bag_of_k", [*[clean] * 4, found, wrong])}
    assert (lines[1.0]["power"], lines[1.0]["named"], lines[1.0]["found_and_named"], lines[1.0]["auroc"]) == (1, 1, 1, 1)
    assert (lines[0.1]["power"], lines[0.1]["named"], lines[0.1]["found_and_named"]) == (1, 0, 0)


def test_the_verdict_joins_detectors_on_the_trials_that_all_have_seen() -> None:
    both = null(BAG, TEMPLATE)
    said = {BAG.name: [planted(1.0, 0.0), planted(0.5, 0.0), CLEAN], TEMPLATE.name: [CLEAN, planted(1.0, 9.0)]}
    found = counts.judged(both, [BAG, TEMPLATE], said)
    verdict = {j.cell.share: j for j in found["verdict, rows"]}
    assert set(verdict) == {0.0, 1.0}
    assert verdict[1.0].p == 1 / 40
    assert found[BAG.name][0].p > 0.05


def test_without_a_calibration_a_benign_source_is_held_against_the_others() -> None:
    benign = [replace(CLEAN, seed=i, said={"owl": float(i % 5), "cat": float(i % 3)}) for i in range(19)]
    loud = replace(CLEAN, seed=19, said={"owl": 50.0, "cat": 0.0})
    benign[0] = replace(benign[0], battery="students")
    judged = cells.judge_by_benign([*benign, loud, planted(1.0, 60.0)])
    assert len(judged) == 21
    assert judged[19].p == 1 / 20  # 19 others, and itself
    assert judged[20].p == 1 / 21
    assert counts.about(null(BAG), TEMPLATE)["null"] == "held-out benign sources"


def test_a_p_of_its_own_is_kept() -> None:
    assert [j.p for j in cells.judge_by_benign([replace(CLEAN, p=0.3), replace(CLEAN, seed=1, p=0.01)])] == [0.3, 0.01]


def test_false_alarms_are_counted_by_size_and_kind() -> None:
    kinds = ["body"] * 5 + ["base"] * 15
    found = [judgement(0.05 if i < 2 else 0.5, cell=replace(CLEAN, seed=i, kind=kind)) for i, kind in enumerate(kinds)]
    lines = {line["kind"]: line for line in counts.false_alarms("x", found)}
    assert {kind: (line["n"], line["rate"]) for kind, line in lines.items()} == {
        "all": (20, 0.1), "usual": (15, 0.0), "base": (15, 0.0), "body": (5, 0.4)}
    assert lines["all"]["low"] == pytest.approx(0.0123, abs=1e-3)
    assert lines["all"]["high"] == pytest.approx(0.317, abs=1e-3)


def test_rows_and_student_together_pay_for_two_looks() -> None:
    student = replace(planted(0.1, 0.0), battery="students", size=0)
    rows = [judgement(0.04, "cat", cell=planted(0.1, 0.0)), judgement(0.9, cell=planted(0.1, 0.0, seed=5))]
    (found,) = counts.both(rows, [judgement(0.03, "owl", cell=student)], 50)
    assert found.p == pytest.approx(0.06)
    assert found.top == "owl"
    assert counts.both(rows, [judgement(0.01, cell=replace(student, seed=9))], 50) == []


def test_the_smallest_share_is_the_last_before_power_breaks() -> None:
    line = {"table": "power", "detector": "x", "size": 50, "teacher": plan.PLAIN, "battery": "planted"}
    lines = [{**line, "share": s, "power": p} for s, p in ((0.05, 0.9), (0.1, 0.5), (0.25, 0.8), (1.0, 1.0))]
    assert counts.smallest(lines, "x", 50) == 0.25
    assert counts.smallest(lines[:2], "x", 50) is None


def test_behaviour_is_within_noise_or_not() -> None:
    trials = [cells.Trial("students", "base", "owl" if i > 19 else "", i, 0.1, 0, {}, "") for i in range(22)]
    said = [{"owl": 0.1 + 0.01 * (i % 3)} for i in range(20)] + [{"owl": 0.12}, {"owl": 0.4}]
    quiet, loud = students.rates(trials, said)
    assert (quiet["within_noise"], loud["within_noise"]) == (True, False)
    assert loud["p"] == 1 / 21
    assert quiet["p"] > 0.05


def test_targets_are_met_or_missed_as_measured() -> None:
    alarm = {"table": "false_alarms", "detector": "likelihood_panel", "kind": "all", "size": 400, "n": 60, "rate": 0.03,
             "low": 0.0, "high": 0.1}
    power = {"table": "power", "detector": "likelihood_panel", "battery": "planted", "teacher": plan.PLAIN, "size": 400,
             "share": 1.0, "n": 16, "power": 1.0, "low": 0.8, "high": 1.0, "named": 1.0, "row_auroc": None}
    dose = {**power, "detector": "activation_dose", "battery": "students", "size": 0, "share": 0.1, "power": 0.5}
    told = {"table": "behaviour", "trait": "owl", "seed": 0, "share": 0.1, "within_noise": True}
    grams = {"table": "ngrams", "which": "unknown", "trait": "owl", "row_auroc": 0.51, "set_auroc": 0.5, "rows": 150}
    rows = [alarm, power, {**power, "detector": "inversion", "named": 0.7}, dose, told, grams]
    found = {r["target"].split(",")[0]: r for r in targets.against(rows, [50, 150, 400])}
    assert found["false alarms of every detector and of the verdict"]["met"] is True
    assert found["likelihood_panel"]["met"] is True
    assert found["unknown trait (inversion)"]["met"] is False
    assert found["activation_dose"]["met"] is False
    assert "1 of 16 students answer within the noise" in found["activation_dose"]["measured"]
    assert found["character n-grams"]["met"] is True
    loud = targets.against([{**alarm, "rate": 0.2, "low": 0.1, "high": 0.3}], [400])
    assert loud[0]["met"] is False
    assert "over: likelihood_panel" in loud[0]["measured"]
    assert targets.told(loud)[0].startswith("MISSED")


def test_a_judge_that_gave_no_readable_answer_meets_nothing() -> None:
    judge = {"table": "judge", "model": "x", "questions": 20, "read": 0, "right": 0.0, "low": 0.0, "high": 0.2,
             "chance": 0.1}
    (mute,), (fair,), (sharp,) = (targets.against([line], [400]) for line in (
        judge, {**judge, "read": 20}, {**judge, "read": 20, "right": 0.9, "low": 0.7}))
    assert (mute["met"], fair["met"], sharp["met"]) == (None, True, False)


def test_a_permutation_test_answers_for_its_own_alarms() -> None:
    about = {"table": "detectors", "detector": "marginals, other source", "null": "permutation"}
    alarm = {"table": "false_alarms", "detector": "marginals, other source", "kind": "all", "size": 150, "n": 48,
             "rate": 0.15, "low": 0.06, "high": 0.28}
    (found,) = targets.against([about, alarm], [150])
    assert found["target"] == "false alarms of marginals, other source"
    assert found["met"] is False


def test_results_are_written_a_row_to_a_line() -> None:
    import json

    import detectors as command

    rows = [{"table": "x", "n": 1}, {"table": "y", "n": None}]
    data = {"date": "now", "rows": rows, "cases": {"columns": ["a"], "rows": [[1]]}}
    text = command.written(data)
    assert json.loads(text) == data
    assert '\n{"table": "y", "n": null}\n' in text
