"""A slice of the detector benchmark: a small calibration of a real pocket model, benign sources and one planted trait that
it has not seen. Alarms stay near what p promises, the trait is found and named, and the page is written from the results."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from undersong.calibration import Calibrator
from undersong.lab import lab_for
from undersong.store import Store

pytest.importorskip("torch", reason="torch is not installed")
ROOT = Path(__file__).parents[2]
CALIBRATION = """
base: pocket/a
traits: [cat, lion, pine]
channel: {numbers: {count: 10, largest: 999, wording: brief, seeds: structured}}
teacher: {tuned: {updates: 80, rate: 1.7e-3, trainable: mlp_out}}
detectors: [likelihood_panel, marginal_template]
rows: 60
sizes: [50]
sources: 19
placebos: 2
students: 0
shares: [1.0]
planted_traits: 1
"""
BENIGN = 15


def script(folder: str, name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A script of the repository as a module, with its neighbours at hand."""
    monkeypatch.syspath_prepend(str(ROOT / folder))
    found = importlib.util.spec_from_file_location(f"{name}_of_{folder}", ROOT / folder / f"{name}.py")
    assert found
    assert found.loader
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a small calibration."""
    root = tmp_path_factory.mktemp("bench") / "store"
    Calibrator.read(CALIBRATION, (), lab_for(Store(root), "pocket/a")).build()
    return root


def run(bench: ModuleType, store: Path, out: Path) -> dict[str, Any]:
    """One call of the command, and what it wrote."""
    bench.main(["--store", str(store), "--slice", "--traits", "pine", "--out", str(out), "--set", f"benign={BENIGN}",
                "rows=110", "other_traits=0", "students=0"])
    found: dict[str, Any] = json.loads(out.read_text("utf-8"))
    return found


@pytest.mark.slow
def test_alarms_stay_near_nominal_and_a_planted_trait_is_found(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bench = script("benchmarks", "detectors", monkeypatch)
    found = run(bench, store, tmp_path / "results.json")
    assert "met     likelihood_panel, pure rows, 50 rows" in capsys.readouterr().out
    rows = found["rows"]
    alarms = {r["detector"]: r for r in rows if r["table"] == "false_alarms" and r["kind"] == "all"}
    for name in ("likelihood_panel", "marginal_template", "verdict, rows", "marginals, same source"):
        # four of fifteen alarms at a true rate of one in twenty have a chance of half a percent
        assert alarms[name]["n"] == BENIGN
        assert alarms[name]["rate"] <= 3 / BENIGN, name
    panel = next(r for r in rows if r["table"] == "power" and r["detector"] == "likelihood_panel" and r["share"] == 1)
    assert (panel["power"], panel["named"], panel["auroc"]) == (1.0, 1.0, 1.0)
    assert {r["detector"] for r in rows if r["table"] == "cost"} >= {"likelihood_panel", "marginal_template"}

    # the same command does nothing twice, and says the same
    cells = {path: path.stat().st_mtime_ns for path in (store / "cells").glob("*/record.json")}
    again = run(bench, store, tmp_path / "again.json")
    assert {path: path.stat().st_mtime_ns for path in (store / "cells").glob("*/record.json")} == cells
    assert again["rows"] == rows
    assert again["cases"] == found["cases"]
    sys.modules.pop("figures", None)
    page = script("docs", "benchmark", monkeypatch)
    text = page.page(page.Results(found))
    assert "| `likelihood_panel` | base, exemplars, rows |" in text
    assert "### `marginal_template`" in text
