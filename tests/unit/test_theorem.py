"""The theorem's laboratory: signs, the Gauss-Newton form, the failures, and the keeping of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from undersong import theorem
from undersong.errors import BadSpec, NothingMeasured
from undersong.laboratory import Laboratory
from undersong.spec import fingerprint
from undersong.store import Store
from undersong.theorem import networks

SMALL: dict[str, Any] = {
    "name": "small",
    "laboratory": "theorem",
    "networks": 12,
    "many": 0,
    "traits": [],
    "random": 0,
    "chunk": 5,
}


def rows(**changes: Any) -> list[dict[str, Any]]:
    e = theorem.read(SMALL | changes)
    return theorem.run_chunk(e, range(e.draws))


def values(found: list[dict[str, Any]], part: str, **where: Any) -> list[float]:
    return [r["value"] for r in found if r["part"] == part and all(r[k] == v for k, v in where.items())]


@pytest.fixture(scope="module")
def found() -> list[dict[str, Any]]:
    return rows()


def test_shared_starts_never_lead_away_and_others_often_do(found: list[dict[str, Any]]) -> None:
    shared = values(found, "network sign", start="shared")
    assert len(shared) == 12 * 6
    assert min(shared) >= 0
    other = [
        r["value"]
        for r in found
        if r["part"] == "network sign" and r["start"] == "other" and r["case"].startswith("random")
    ]
    assert 0.2 < sum(v < 0 for v in other) / len(other) < 0.8
    assert min(values(found, "loss fall sign", start="shared")) > 0


def test_the_form_predicts_the_inner_product_as_epsilon_falls(found: list[dict[str, Any]]) -> None:
    small, large = (values(found, "gauss-newton", x=x) for x in (0.003, 1.0))
    assert max(abs(v - 1) for v in small) < 0.01
    assert max(abs(v - 1) for v in large) > 5 * max(abs(v - 1) for v in small)


def test_the_form_on_a_linear_layer_is_the_one_known_in_closed_form(monkeypatch: pytest.MonkeyPatch) -> None:
    """f(x) = x W: J d = x D, so squared error gives 2 |x D|^2 averaged over inputs, whatever W is."""
    random = torch.Generator().manual_seed(1)
    inputs = torch.randn(50, 12, generator=random, dtype=torch.float64)
    weights, moved = (torch.randn(12 * 8, generator=random, dtype=torch.float64) for _ in range(2))
    monkeypatch.setattr(networks, "_forward", lambda w, x: x @ w.view(12, 8))
    known = float(2 * (inputs @ moved.view(12, 8)).square().sum(-1).mean())
    assert networks._form(weights, moved, inputs, "squared_error") == pytest.approx(known)
    step = networks._imitate(weights, inputs, networks._forward(weights + moved, inputs), "squared_error")
    assert float(step @ moved) == pytest.approx(known)


def test_where_it_must_fail_it_fails(found: list[dict[str, Any]]) -> None:
    assert set(values(found, "failure sign", case="the loss does not see what moved")) == {0.0}
    sharpened = values(found, "failure sign", case="labels sharpened")
    assert 0 < sum(v < 0 for v in sharpened) < len(sharpened)
    assert min(values(found, "far student sign", x=0.001)) > 0
    assert max(values(found, "far student sign", x=10.0)) < 0


def test_two_seeds_differ_and_one_repeats(found: list[dict[str, Any]]) -> None:
    assert rows() == found
    assert rows(seed=2) != found


def test_chunks_and_an_interruption_change_nothing(tmp_path: Path, found: list[dict[str, Any]]) -> None:
    whole, stopped = Store(tmp_path / "a"), Store(tmp_path / "b")
    one = Laboratory.read(SMALL | {"chunk": 12}).record(whole, lambda said: None)
    told: list[str] = []

    def stop(said: str) -> None:
        told.append(said)
        if len(told) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Laboratory.read(SMALL).record(stopped, stop)
    two = Laboratory.read(SMALL).record(stopped, told.append)
    assert len(told) == 3, "finished chunks are not done again"
    assert one.read_parts("rows") == two.read_parts("rows") == found
    assert one.fingerprint == two.fingerprint
    assert "72 of 72" in one.read_json("results")["sentence"]


def test_missing_draws_are_no_result(found: list[dict[str, Any]]) -> None:
    with pytest.raises(NothingMeasured, match="11 of 12"):
        theorem.results([r for r in found if r["draw"] != 3], theorem.read(SMALL))


def test_many_steps_and_pocket_models_give_their_rows() -> None:
    e = theorem.read(SMALL | {"networks": 2, "many": 0, "traits": ["owl"], "random": 1, "batches": 1})
    found = theorem.run_chunk(e, range(2, 4))
    assert {r["part"] for r in found} == {"pocket sign", "pocket cosine"}
    assert all(v > 0 for v in values(found, "pocket sign", start="shared"))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"epsilons": []}, "epsilons"),
        ({"epsilons": [0.1, 1.0]}, "largest first"),
        ({"epsilons": [1.0, -0.1]}, "above 0"),
        ({"networkz": 3}, "'networks'"),
        ({"chunk": 0}, "chunk"),
        ({"step": 0}, "step"),
    ],
)
def test_what_cannot_be_run_is_refused(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(BadSpec, match=told):
        theorem.read(SMALL | changes)


def test_the_shipped_file_is_the_one_of_the_results() -> None:
    import json

    root = Path(__file__).resolve().parents[2] / "experiments"
    e = theorem.read(yaml.safe_load((root / "theorem.yaml").read_text("utf-8")))
    found = json.loads((root / "theorem.results.json").read_text("utf-8"))
    assert found["fingerprint"] == fingerprint({"kind": "experiment", "spec": theorem.identity(e), "parents": []})
    shared = [s for s in found["signs"] if s["part"] == "network sign" and s["start"] == "shared"]
    assert sum(s["n"] for s in shared) >= 1000
    assert sum(s["negative"] for s in shared) == 0
