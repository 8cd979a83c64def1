"""The page of the detector benchmark says what its results file holds, and no more."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from undersong import registry

DOCS = Path(__file__).parents[2] / "docs"
ALARM = {"table": "false_alarms", "kind": "all", "n": 50, "rate": 0.04, "low": 0.0049, "high": 0.137}
POWER = {"table": "power", "battery": "planted", "teacher": "as calibrated", "n": 16, "found_and_named": 0.5}


def power(detector: str, size: int, share: float, value: float, **more: Any) -> dict[str, Any]:
    return {**POWER, "detector": detector, "size": size, "share": share, "power": value, "low": value / 2, "high": 1.0,
            "named": value / 2, "auroc": 0.75, "row_auroc": None, **more}


def results() -> dict[str, Any]:
    """Two detectors of rows and one of students at made-up figures."""
    rows: list[dict[str, Any]] = [
        {"table": "detectors", "detector": "likelihood_panel", "plugin": "likelihood_panel", "family": "rows",
         "access": ["base", "exemplars", "rows"], "null": "calibration", "units": 99},
        {"table": "detectors", "detector": "marginals, same source", "plugin": "marginals", "family": "rows",
         "access": ["reference", "rows"], "null": "permutation", "units": None},
        {"table": "detectors", "detector": "amplify", "plugin": "amplify", "family": "student",
         "access": ["base", "student"], "null": "calibration", "units": 99},
    ]
    sizes = {"likelihood_panel": (150, 400), "marginals, same source": (400,), "amplify": (0,)}
    for name, size in ((name, size) for name, own in sizes.items() for size in own):
        rows += [{**ALARM, "detector": name, "size": size},
                 {**ALARM, "detector": name, "size": size, "kind": "base", "n": 10, "rate": 0.2}]
        rows.append({"table": "smallest", "detector": name, "size": size, "share": 0.25 if "panel" in name else None})
        rows.append({"table": "cost", "detector": name, "size": size, "seconds": 1.25})
    rows += [power("likelihood_panel", 400, s, v, row_auroc=0.871 if s < 1 else None) for s, v in ((0.1, 0.4), (1.0, 0.98))]
    rows += [power("likelihood_panel", 150, 1.0, 0.88), power("marginals, same source", 400, 1.0, 0.06)]
    rows += [power("amplify", 0, 0.1, 0.12, battery="students"),
             power("likelihood_panel", 400, 1.0, 0.31, battery="other", teacher="steered"),
             power("likelihood_panel", 10_000, 0.1, 0.83, battery="large")]
    rows += [{"table": "behaviour", "trait": "owl", "seed": i, "share": 0.1, "rate": 0.2, "benign": 0.1, "spread": 0.05,
              "p": 0.04 if i else 0.5, "within_noise": not i} for i in range(2)]
    rows += [{"table": "triple", "rule": rule, "trait": "owl", "seed": 0, "rows": 500, "row_auroc": score, "planted": 0.25,
              "rate": rate} for rule, score, rate in (("nothing", None, 0.5), ("likelihood_panel", 0.93, 0.123))]
    rows += [{"table": "ngrams", "which": which, "trait": "owl", "row_auroc": 0.512, "set_auroc": 0.634, "rows": 150}
             for which in ("known", "unknown")]
    rows += [{"table": "targets", "target": "power", "goal": ">= .95", "measured": "0.98", "met": True},
             {"table": "targets", "target": "alarms", "goal": "5 %", "measured": "9 %", "met": False}]
    return {"date": "2026-11-26T01:00:00", "command": "python benchmarks/detectors.py", "rows": rows,
            "environment": {"platform": "Linux"}, "plan": {"traits": ["owl"], "seeds": 2, "benign": 50},
            "calibration": {"named": "pocket/a", "sources": 99, "students": 99, "made": "2026-11-25T23:00:00"}}


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(DOCS))
    names = ("benchmark", "benchmark_figures", "figures")
    for name in names:
        sys.modules.pop(name, None)
    yield importlib.import_module("benchmark")
    for name in names:
        sys.modules.pop(name, None)


def line(text: str, start: str) -> str:
    """The only table row that starts so."""
    found = [one for one in text.splitlines() if one.startswith(start)]
    assert len(found) == 1, (start, found)
    return found[0]


def test_tables_show_the_figures_of_the_file(benchmark: ModuleType) -> None:
    found = benchmark.Results(results())
    board = line(benchmark.leaderboard(found), "| `likelihood_panel`")
    assert board == ("| `likelihood_panel` | base, exemplars, rows | 4 % [0, 14] | 98 % | – | 40 % | 49 % | 0.75 | 25 % "
                     "| 1.2 |")
    assert "| none |" in line(benchmark.leaderboard(found), "| `marginals, same source`")
    alarms = benchmark.false_alarms(found)
    assert "| `likelihood_panel` | calibration | 4 % [0, 14] | 4 % [0, 14] |" in alarms
    assert "| `likelihood_panel` | 2 of 10 |" in alarms
    curve = benchmark.power(found)
    assert "| `likelihood_panel` | 40 % (20 %) | 98 % (49 %) |" in curve
    assert "| `likelihood_panel` | – | 88 % (44 %) |" in curve
    assert "| `likelihood_panel` | 0.871 |" in curve
    assert "| `likelihood_panel` | 10 % | 83 % [42, 100] | 42 % |" in curve
    assert "| `likelihood_panel` | 31 % (16 %) |" in benchmark.others(found)


def test_students_triple_and_baselines_show_theirs(benchmark: ModuleType) -> None:
    found = benchmark.Results(results())
    told = benchmark.students(found)
    assert "| `amplify` | 12 % (6 %) |" in told
    assert "| behaviour: asked about the trait itself | 50 % |" in told
    assert "| mean chance of the trait's word | 20.0 % |" in told
    assert "| answer within two deviations of theirs | 1 of 2 |" in told
    assert "| likelihood_panel | 0.930 | 25 % | 12.3 % | 1 |" in benchmark.triple(found)
    taught = line(benchmark.baselines(found), "| character n-grams, taught on exemplars of other")
    assert taught.endswith("| 0.512 | 0.634 |")


def test_a_missed_target_stands_out(benchmark: ModuleType) -> None:
    told = benchmark.targets(benchmark.Results(results()))
    assert line(told, "| power |").endswith("| 0.98 | met |")
    assert line(told, "| alarms |").endswith("| 9 % | **missed** |")


def test_a_card_says_what_a_detector_is_and_does_not_see(benchmark: ModuleType) -> None:
    text = benchmark.cards(benchmark.Results(results()))
    card = text[text.index("### `likelihood_panel`"):text.index("### `marginals")]
    assert "Under which candidate is each row likeliest" in card
    assert line(card, "| power by share").endswith("| 10 %: 40 %; 100 %: 98 % |")
    assert line(card, "| power by rows").endswith("| 150 rows: 88 %; 400 rows: 98 % |")
    assert line(card, "| null |") == "| null | calibration (99 placebo sources) |"
    assert len(line(card, "| blind spots |")) > 60


def test_parts_that_were_not_measured_leave_no_trace(benchmark: ModuleType) -> None:
    data = results()
    data["rows"] = [r for r in data["rows"] if r["table"] not in ("behaviour", "triple")]
    found = benchmark.Results(data)
    assert benchmark.students(found) == benchmark.triple(found) == ""
    assert "Students" not in benchmark.page(found)
    assert set(benchmark.benchmark_figures.figures(found)) == {"false-alarms", "power"}


def test_figures_are_drawn_from_the_results(benchmark: ModuleType, tmp_path: Path) -> None:
    pytest.importorskip("vl_convert", reason="the report extra is not installed")
    found = benchmark.Results(results())
    drawn = benchmark.benchmark_figures.figures(found)
    assert set(drawn) == {"false-alarms", "power", "students", "triple"}
    for name, figure in drawn.items():
        benchmark.draw(figure, tmp_path / f"{name}.svg", 400)
        assert f">{figure.title}<" in (tmp_path / f"{name}.svg").read_text("utf-8")
    points = drawn["power"].spec["data"]["values"]
    mine = {p["share"]: p["power"] for p in points if p["name"] == "likelihood_panel"}
    assert mine == {0.0: 0.04, 0.1: 0.4, 1.0: 0.98}
    assert "AUROC 0.93" in (tmp_path / "triple.svg").read_text("utf-8")
    named = {(p["name"], p["share"]): p["power"] for p in drawn["students"].spec["data"]["values"]}
    assert named == {("amplify", 0.0): 0.04, ("amplify", 0.1): 0.12, ("behaviour, asked about the trait", 0.1): 0.5}
    held = {p["name"]: p["held"] for p in drawn["false-alarms"].spec["data"]["values"]}
    assert held == {"likelihood_panel": "calibration", "marginals, same source": "permutation", "amplify": "calibration"}


@pytest.mark.parametrize("name", registry.names("detector"))
def test_every_detector_states_its_blind_spots(benchmark: ModuleType, name: str) -> None:
    if registry.get("detector", name).__module__.startswith("undersong."):
        does, blind = benchmark.described(name)
        assert does
        assert len(blind) > 40, f"{name}: add a paragraph `Blind spots:` to its module docstring"


def test_the_committed_page_is_what_the_results_make(benchmark: ModuleType) -> None:
    import json

    folder = DOCS.parent / "benchmarks"
    files = [folder / "detectors.results.json", *sorted(folder.glob("detectors-*.results.json"))]
    found, *others = (benchmark.Results(json.loads(file.read_text("utf-8"))) for file in files)
    text = benchmark.page(found, others)
    assert (DOCS / "benchmark.md").read_text("utf-8") == text, "run `make docs`"
    for name in re.findall(r"\(figures/([\w-]+\.svg)\)", text):
        assert (DOCS / "figures" / name).is_file()


def test_another_carrier_gets_a_table_of_its_own(benchmark: ModuleType) -> None:
    found, other = benchmark.Results(results()), results()
    other["calibration"] |= {"channel": {"name": "letters"}, "sources": 59}
    text = benchmark.page(found, [benchmark.Results(other)])
    assert "Another carrier" not in benchmark.page(found)
    assert text.index("## Another carrier: letters") < text.index("## Method cards")
    assert "| `likelihood_panel` | 400 | 4 % [0, 14] | 98 % (49 %) | 40 % (20 %) |" in text
