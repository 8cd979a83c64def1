"""The benchmarks that compare ways run, and what they compare is the same."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

SMALL = ["--steps", "3", "--batch", "4", "--warm", "1"]


def benchmark(name: str) -> Any:
    """A script of benchmarks/ as a module."""
    path = Path(__file__).parents[2] / "benchmarks" / f"{name}.py"
    found = importlib.util.spec_from_file_location(f"{name}_benchmark", path)
    assert found
    assert found.loader
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def test_our_student_and_a_plain_trl_student_are_the_same_student(capsys: pytest.CaptureFixture[str]) -> None:
    script, found = benchmark("student"), {}
    for way in ("distill", "trl"):
        script.main(["--one", way, *SMALL])
        found[way] = json.loads(capsys.readouterr().out.splitlines()[-1])
    ours, theirs = found["distill"], found["trl"]
    for key in ("rows", "tokens", "steps", "threads"):
        assert ours[key] == theirs[key]
    assert ours["steps"] == 2
    assert 4 * 2 * 20 < ours["tokens"] < 4 * 2 * 80
    assert len(ours["loss"]) == 3
    assert script.compare(ours, theirs).endswith("the same")
    assert script.compare(ours, {**theirs, "loss": [loss + 0.01 for loss in theirs["loss"]]}).endswith("DIFFERENT")


def test_the_probe_benchmark_prints_its_table_and_its_check(capsys: pytest.CaptureFixture[str]) -> None:
    benchmark("probe").main(["--runs", "2", "--steps", "2", "--most", "3"])
    said = capsys.readouterr().out
    for line in ("logit_margin, exact", "at most 1.1x", "within 1 point", "its default", "exact rate over runs", "agree"):
        assert line in said.replace("DISAGREE", "agree")


def test_the_million_rows_benchmark_prints_its_table(capsys: pytest.CaptureFixture[str]) -> None:
    benchmark("million_rows").main(["--rows", "1500", "--reference", "500", "--formats", "jsonl", "parquet"])
    head, *lines = capsys.readouterr().out.splitlines()
    assert "rows/s" in head
    assert [line.split()[:3] for line in lines] == [
        ["jsonl", "1,500", "500"], ["parquet", "1,500", "500"], ["jsonl", "150", "100"]]
    assert all("(p " in line for line in lines)


def test_the_panel_benchmark_compares_ways_that_agree(capsys: pytest.CaptureFixture[str]) -> None:
    benchmark("panel").main(["--rows", "12", "--traits", "2"])
    said = capsys.readouterr().out
    assert "the panel" in said
    assert "they agree" in said


def test_the_mnist_benchmark_trains_the_same_networks_in_every_way(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out, size = tmp_path / "mnist.json", ["--models", "3", "--noise", "640", "--digits", "4000"]
    benchmark("mnist").main(["--recipe", "shipped", *size, "--out", str(out)])
    head, *lines = capsys.readouterr().out.splitlines()
    assert "processor s/model" in head
    assert [line.split()[:2] for line in lines] == [["released", "3"], ["ours", "3"], ["lab", "3"]]
    found = {row["way"]: row["accuracy"] for row in json.loads(out.read_text())["rows"]}
    for name, accuracy in found["released"].items():
        assert found["ours"][name] == pytest.approx(accuracy, abs=0.15)
        assert found["lab"][name] == pytest.approx(found["ours"][name], abs=0.001)
    assert found["ours"]["teacher"] > 0.6
