"""A slice of the mitigation bench: teachers hardly taught, a few mitigations of every stage. Everything runs, is counted and
becomes a page; nothing is done twice. The committed page is what the committed results make."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytest.importorskip("torch", reason="torch is not installed")
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def scripts() -> Iterator[dict[str, ModuleType]]:
    """The benchmark and its page, each with its neighbours at hand."""
    found, path = {}, list(sys.path)
    for folder in ("benchmarks", "docs"):
        sys.path.insert(0, str(ROOT / folder))
        sys.modules.pop("mitigations", None)
        sys.modules.pop("figures", None)
        found[folder] = importlib.import_module("mitigations")
    yield found
    sys.path[:] = path
    for name in ("mitigations", "figures"):
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def ran(scripts: dict[str, ModuleType], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A store after one call, and what that wrote."""
    root = tmp_path_factory.mktemp("mitigations")
    return root, run(scripts, root)


def run(scripts: dict[str, ModuleType], root: Path, *more: str) -> dict[str, Any]:
    """One call of the command, and what it wrote."""
    out = root / "results.json"
    scripts["benchmarks"].main(["--slice", "--only", "shuffle", "corridor", "other_base", "merge_back", "--store",
                                str(root / "store"), "--out", str(out), *more])
    found: dict[str, Any] = json.loads(out.read_text("utf-8"))
    return found


@pytest.mark.slow
def test_every_stage_is_measured_counted_and_never_done_twice(
    scripts: dict[str, ModuleType], ran: tuple[Path, dict[str, Any]]
) -> None:
    root, found = ran
    cells = {(r["mitigation"], r["dose"], r["knows"]): r for r in found["rows"] if r["table"] == "removed"}
    names = ("shuffle", "corridor", "other_base", "merge_back")
    assert {key for key in cells if key[1] == "pure"} == {
        *((name, "pure", "known") for name in names), ("corridor", "pure", "unknown")}
    assert {key[0] for key in cells if key[1] == "mixed"} == set(names)
    assert cells["other_base", "pure", "known"]["activation"] is None, "an axis of one base means nothing in another"
    for key, row in cells.items():
        assert row["runs"] == 3, key
        assert row["fits"] == (row["fit"] >= 0.9), key
        if row["margin_low"] is not None:
            assert row["margin_low"] <= row["margin"] <= row["margin_high"], key
    runs = [r for r in found["rows"] if r["table"] == "runs" and r["mitigation"] == "shuffle" and r["dose"] == "pure"]
    left, plain = (sum(r[key] for r in runs) for key in ("margin", "margin_plain"))
    assert cells["shuffle", "pure", "known"]["margin"] == pytest.approx(1 - left / plain, abs=1e-3)
    assert {r["mitigation"] for r in found["rows"] if r["table"] == "clean"} == {"corridor"}

    before = {path: path.stat().st_mtime_ns for path in (root / "store").glob("*/*/record.json")}
    again = run(scripts, root)
    assert {path: path.stat().st_mtime_ns for path in (root / "store").glob("*/*/record.json")} == before
    assert again["rows"] == found["rows"]


@pytest.mark.slow
def test_the_page_says_what_was_measured(scripts: dict[str, ModuleType], ran: tuple[Path, dict[str, Any]]) -> None:
    page = scripts["docs"]
    text = page.page(page.Results(ran[1]))
    parts = ("## Targets", "## What to use", "## What fails", "| `merge_back` | model | `base`", "## A quarter of the rows")
    for part in parts:
        assert part in text
    assert set(page.figures(page.Results(ran[1]))) == {"front", "residuals", "doses"}


def line(name: str, **changed: Any) -> dict[str, Any]:
    """A row of results that was never measured."""
    row: dict[str, Any] = {"table": "removed", "mitigation": name, "stage": "training", "needs": ["base"], "may_use": [],
                           "dose": "pure", "knows": "known", "runs": 5, "fit": 0.95, "fits": True, "others": 0.1,
                           "others_plain": 0.1, "points_plain": 0.0, "points_none": 0.0}
    for key in ("margin", "rate", "activation", "rise"):
        row |= {key: 0.5, f"{key}_low": 0.4, f"{key}_high": 0.6, f"{key}_effect": 1.0}
    for against in ("plain", "none"):
        row |= {f"points_{against}_low": -1.0, f"points_{against}_high": 1.0}
    return row | changed


def test_advice_and_the_front_leave_out_what_does_not_fit_or_costs(scripts: dict[str, ModuleType]) -> None:
    from mitigating.counts import on_front, targets

    page = scripts["docs"]
    rows = [line("fine"), line("unlearnt", margin=1.0, fit=0.5, fits=False), line("costly", margin=0.9, points_plain=-3.0),
            line("named", margin=0.9, needs=["base", "trait"]), line("taught", margin=0.95, needs=["teacher"])]
    found = page.Results({"rows": rows})
    best = {title: [r["mitigation"] for r in page.able(found, held, stages, knows)]
            for title, _, held, stages, knows in page.SITUATIONS}
    assert best["The trait is known"] == ["named", "fine"]
    assert best["The trait is unknown"] == ["fine"]
    assert best["The teacher is at hand"] == ["taught", "fine"]
    assert best["The student is trained already"] == []
    assert [r["mitigation"] for r in rows if on_front(r, rows)] == ["taught"]
    known, blind = targets(rows)
    assert (known["met"], known["best"]) == (True, "taught")
    assert (blind["met"], blind["by"]) == (True, ["fine"])
    assert not targets([line("weak", margin=0.4), line("taught", margin=0.9, needs=["teacher"])])[1]["met"]


def test_the_committed_page_is_what_the_committed_results_make(scripts: dict[str, ModuleType]) -> None:
    page = scripts["docs"]
    results = json.loads((ROOT / "benchmarks" / "mitigations.results.json").read_text("utf-8"))
    assert (ROOT / "docs" / "mitigations.md").read_text("utf-8") == page.page(page.Results(results))
