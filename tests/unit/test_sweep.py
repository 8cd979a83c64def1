"""A sweep is a grid of experiments: planned at once, shared where they agree, refused where they are the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from undersong import grid
from undersong.cli import main
from undersong.errors import BadSpec, UnknownName
from undersong.experiment.cells import Cells
from undersong.experiment.cost import cost
from undersong.experiment.sweep import Sweep
from undersong.lab import lab_for
from undersong.reports import grid as page
from undersong.store import Store

FILE: dict[str, Any] = {
    "name": "sim", "base": "simulated/a", "trait": "owl", "teacher": {"simulated": {"strength": 3.0}}, "channel": "numbers",
    "rows": 60, "filters": ["numbers_only"], "recipe": {"simulated": {"noise": 0.02}}, "probes": ["logit_margin"],
    "controls": ["no_trait"], "seeds": [1, 2, 3],
    "sweep": {"recipe.simulated.transfer": [0.0, 0.4, 0.8], "teacher.simulated.strength": [1.0, 4.0]},
}


def swept(**changes: Any) -> Sweep:
    return Sweep.of(FILE | changes)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, dict[str, Any]]:
    store = Store(tmp_path_factory.mktemp("sweep"))
    return store, grid.record(swept(), lab_for(store, "")).read_json("results")


def test_every_combination_is_an_experiment_with_its_values() -> None:
    sweep = swept()
    assert [e.file.name for e in sweep.experiments] == [f"sim-{i}" for i in range(1, 7)]
    told = [(e.file.recipe["simulated"]["transfer"], e.file.teacher["simulated"]["strength"])  # type: ignore[index, call-overload]
            for e in sweep.experiments]
    assert told == list(sweep.grid) == [(t, s) for t in (0.0, 0.4, 0.8) for s in (1.0, 4.0)]


def test_what_experiments_share_is_made_once() -> None:
    sweep, cells = swept(), Cells(swept().experiments)
    teachers = {s.fingerprint for s in sweep.steps if s.spec["verb"] == "teach"}
    assert len(teachers) == 2 * 3 + 3 + 3  # two strengths by three seeds; no-trait teachers have a strength in their spec too
    made = [s.fingerprint for cell in cells.all for s in cell.makes]
    assert len(made) == len(set(made)) == len(sweep.steps)


@pytest.mark.parametrize(("given", "sentence"), [
    ({}, "mapping of keys"), ([1], "mapping of keys"), (None, "mapping of keys"),
    ({"rows": 60}, "list of values"), ({"rows": []}, "list of values"), ({"rows": [60, 60]}, "twice"),
    ({"name": ["a", "b"]}, "cannot be swept"), ({"seeds": [[1, 2, 3], [1, 2]]}, "seeds=[1, 2]"),
    ({"rows": [60, "many"]}, "rows=many"), ({"recipe.simulated.speed": [1, 2]}, "speed"), ({"base.x": [1]}, "no keys"),
    ({"rows": list(range(10, 210)), "keep": list(range(1, 201))}, "20,000"),
    ({"recipe.simulated.transfer": [0.5], "keep": [60, None]}, "the same experiment"),
])
def test_what_is_no_grid_is_refused_in_a_sentence(given: Any, sentence: str) -> None:
    fixed = {"recipe": {"simulated": {}}, "rows": 60}
    if isinstance(given, dict) and "keep" in given and len(given["keep"]) == 2:
        given = {"context_rows": [4, 5]}  # no arm sees rows in context: nothing changes
    with pytest.raises((BadSpec, UnknownName), match=r".") as caught:
        swept(sweep=given, **fixed)
    assert sentence in str(caught.value)
    assert str(caught.value).rstrip().endswith(".")


def test_results_find_the_planted_dial(finished: tuple[Store, dict[str, Any]]) -> None:
    _, found = finished
    points = {tuple(p["values"]): p for p in found["points"] if p["metric"] == "margin"}
    assert len(points) == 6
    for strength in (1.0, 4.0):
        moved = [points[t, strength]["difference"] for t in (0.0, 0.4, 0.8)]
        assert moved == sorted(moved)
        assert moved[2] == pytest.approx(0.8 * strength, abs=0.5)
    assert abs(points[0.0, 4.0]["difference"]) < 0.3
    assert "strength=4.0" in found["sentence"]


def test_a_finished_sweep_is_read_back_and_planned_as_finished(finished: tuple[Store, dict[str, Any]]) -> None:
    store, found = finished
    said: list[str] = []
    assert grid.record(swept(), lab_for(store, "", said.append)).read_json("results") == found
    assert not any("sampling" in line or "trained" in line for line in said)
    assert {row.status for row in swept().plan(store)} == {"cached"}


def test_costs_are_the_medians_of_what_was_measured(finished: tuple[Store, dict[str, Any]], tmp_path: Path) -> None:
    store, _ = finished
    steps = swept(rows=70).steps
    known = cost(steps, store)
    assert known.steps == len(steps)
    assert not known.unknown
    assert known.bytes > 0
    assert known.seconds > 0
    new = cost(steps, Store(tmp_path))
    assert sum(new.unknown.values()) == len(steps)
    assert "not counted" in new.said()
    assert "GPU hours" in known.said(4, 1.0)
    assert "on 4 workers" in known.said(4)


def test_the_page_shows_every_point_and_nothing_runs_in_it(finished: tuple[Store, dict[str, Any]]) -> None:
    _, found = finished
    html = page.render(found)
    assert html == page.render(found)
    assert "<script>alert" not in page.render(found | {"experiment": "<script>alert(1)</script>"})
    assert page.summary(found).count("\n") > 6
    with pytest.raises(BadSpec, match="no results of a sweep"):
        page.render({"points": 3})


def test_the_commands_take_a_sweep(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, store = tmp_path / "sim.yaml", str(tmp_path / "store")
    file.write_text(yaml.safe_dump(FILE | {"sweep": {"rows": [60, 70]}}))
    for command in (["plan", str(file), "--store", store], ["run", str(file), "--store", store, "--executor", "inline"],
                    ["report", "sim", "--store", store, "--out", str(tmp_path / "page.html")]):
        with pytest.raises(SystemExit) as left:
            main(command)
        assert left.value.code == 0, command
    told = capsys.readouterr()
    assert "steps to do" in told.out
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")
    with pytest.raises(SystemExit):
        main(["plan", str(file), "--store", store, "--json"])
    assert {row["status"] for row in json.loads(capsys.readouterr().out)} == {"cached"}
