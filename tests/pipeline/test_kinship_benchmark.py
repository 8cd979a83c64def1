"""A slice of the kinship benchmark: a tree of six roots trained for a few steps, judged by every test, counted, and written
as a page. The committed page is what the committed results make."""

from __future__ import annotations

import importlib
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="torch is not installed")
ROOT = Path(__file__).parents[2]
PAIRS = ("r201~r202", "r201~r201-permuted", "r201~r201-rotated", "r202~r201-lookalike", "r201~r201-lookalike")


@pytest.fixture(scope="module")
def scripts() -> Iterator[dict[str, ModuleType]]:
    """The benchmark and its page, each with its neighbours at hand."""
    found, path = {}, list(sys.path)
    for folder in ("benchmarks", "docs"):
        sys.path.insert(0, str(ROOT / folder))
        sys.modules.pop("kinship", None)
        found[folder] = importlib.import_module("kinship")
    yield found
    sys.path[:] = path
    for name in ("kinship", "figures"):
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def grown(scripts: dict[str, ModuleType], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, list[Any]]:
    """A store with what the pairs need, its plan, and the pairs."""
    from kindred import growing, pairs, tree

    store = tmp_path_factory.mktemp("kin")
    plan = tree.Plan((101, 102, 103, 104), (201, 202), families=(201, 202), reordered=(), distilled=(201,),
                     steps=4, tuned=4, continued=4, copied=2)
    chosen = [p for p in pairs.pairs(plan) if p.name in PAIRS]
    wanted = {m for p in chosen for m in (p.a.name, p.b.name)} | {f"r{s}" for s in plan.development}
    for member in tree.members(plan):
        if member.name in wanted:
            growing.grow(store, plan, member)
            assert not growing.ready(store, member)
    return store, plan, chosen


def test_the_slice_finds_kin_and_no_strangers(scripts: dict[str, ModuleType], grown: tuple[Path, Any, list[Any]]) -> None:
    from kindred import pairs

    store, plan, chosen = grown
    assert {p.name for p in pairs.judge(store, plan, chosen, math.inf)} == set(PAIRS)
    assert list(pairs.judge(store, plan, chosen, math.inf)) == []
    rows = scripts["benchmarks"].results(store, plan)
    said = {(r["kind"], r["test"]): r for r in rows if r["table"] == "pairs"}
    assert said["other seed", "relate"]["verdict"] == "same_architecture"
    for kind in ("permuted", "rotated", "distilled"):
        for test in ("weights", "seed_print", "relate"):
            assert said[kind, test]["verdict"] == "same_initialisation", (kind, test)
    for test in ("weights", "seed_print", "relate"):
        assert said["look-alike", test]["verdict"] != "same_initialisation"
    alarms = next(r for r in rows if r["table"] == "false_alarms" and r["test"] == "relate" and r["kind"] == "other seed")
    assert (alarms["called"], alarms["n"]) == (0, 1)
    assert alarms["high"] == pytest.approx(0.975)
    for test in ("relate", "relate, logits"):
        whole = next(r for r in rows if r["table"] == "overall" and r["test"] == test)
        assert (whole["pairs"], whole["kin"], whole["precision"], whole["recall"]) == (5, 3, 1, 1)
    data = {"date": "2026-11-26T01:00:00", "command": "python benchmarks/kinship.py", "alpha": 0.01, "rows": rows,
            "plan": {"development": [1, 2, 3, 4], "held_out": [5, 6], "steps": 4}}
    text = scripts["docs"].page(scripts["docs"].Results(json.loads(scripts["benchmarks"].written(data))))
    assert "| `relate` | all | 0.0 % [0.0, 97.5] |" in text
    assert "| permuted |" in text


def test_changes_that_keep_the_function_keep_it(grown: tuple[Path, Any, list[Any]]) -> None:
    import torch

    from kindred import changes, growing

    store, *_ = grown
    ids = torch.arange(20, 60).reshape(4, 10)
    with torch.inference_mode():
        plain = growing.open_model(growing.folder(store, "r201"))(ids).logits
        for name, kept in (("permute", True), ("scale", True), ("rotate", True), ("quantise", False), ("prune", False)):
            changed = growing.open_model(growing.folder(store, "r201"))
            with torch.inference_mode(False):
                changed = getattr(changes, name)(changed, np.random.default_rng(1))
            far = float((changed(ids).logits - plain).abs().max())
            assert (far < 1e-3) == kept, (name, far)


def test_no_pair_crosses_the_split(scripts: dict[str, ModuleType]) -> None:
    from kindred import pairs, tree

    found = pairs.pairs(tree.Plan())
    assert all(p.a.held_out == p.b.held_out for p in found)
    assert len({p.name for p in found}) == len(found)
    assert sum(p.kind == "other seed" and p.held_out for p in found) >= 200
    assert all(p.kin == (p.truth == "same_initialisation") for p in found)


def test_the_committed_page_is_what_the_results_make(scripts: dict[str, ModuleType]) -> None:
    data = json.loads((ROOT / "benchmarks" / "kinship.results.json").read_text("utf-8"))
    assert (ROOT / "docs" / "kinship.md").read_text("utf-8") == scripts["docs"].page(scripts["docs"].Results(data))
