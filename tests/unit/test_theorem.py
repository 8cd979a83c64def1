"""The theorem's laboratory: signs, the Gauss-Newton form, the failures, and the keeping of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from undersong import theorem
from undersong.errors import BadSpec, NothingMeasured, UndersongError
from undersong.laboratory import Laboratory
from undersong.spec import fingerprint
from undersong.store import Store
from undersong.theorem import failures, losses, networks, steps, students

SMALL: dict[str, Any] = {
    "name": "small",
    "laboratory": "theorem",
    "networks": 12,
    "many": 0,
    "traits": [],
    "random": 0,
    "followed": [],
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
    assert min(values(found, "network fall sign", start="shared")) > 0


def test_the_form_predicts_the_inner_product_as_epsilon_falls(found: list[dict[str, Any]]) -> None:
    small, large = (values(found, "network form", x=x) for x in (0.003, 1.0))
    assert max(abs(v - 1) for v in small) < 0.01
    assert max(abs(v - 1) for v in large) > 5 * max(abs(v - 1) for v in small)


def linear(widths: tuple[int, int], count: int = 50) -> tuple[Any, ...]:
    random = torch.Generator().manual_seed(1)
    size = widths[0] * widths[1]
    inputs = torch.randn(count, widths[0], generator=random, dtype=torch.float64)
    weights, moved = (torch.randn(size, generator=random, dtype=torch.float64) for _ in range(2))
    return inputs, weights, moved, lambda w: inputs @ w.view(*widths)


def test_on_a_linear_model_step_and_form_are_those_known_in_closed_form() -> None:
    """f(x) = x W: under squared error d_S = 2/n X^T X D, so d_S . D = 2/n |X D|^2, at any distance and whatever W is."""
    inputs, weights, moved, told = linear((12, 8))
    known = 2 / len(inputs) * inputs.T @ inputs @ moved.view(12, 8)
    for far in (0.01, 1.0, 100.0):
        wanted = told(weights + far * moved)
        step = losses.downhill(lambda w, y=wanted: losses.imitation(told(w), y, "squared_error", slice(None)), weights)
        assert torch.allclose(step.view(12, 8), far * known)
    inner = float((known * moved.view(12, 8)).sum())
    assert losses.form(told(weights), told(moved), "squared_error", slice(None)) == pytest.approx(inner)


def test_the_form_of_cross_entropy_is_a_variance_that_sees_the_subset_alone() -> None:
    """t^T (diag p - p p^T) t is the variance of t under p: zero for a shift of all outputs, p(1 - p) for two outputs."""
    outputs = torch.tensor([[0.0, float(np.log(3)), 7.0]], dtype=torch.float64)
    tangent = torch.tensor([[1.0, 0.0, 99.0]], dtype=torch.float64)
    assert losses.form(outputs, tangent, "subset_cross_entropy", slice(0, 2)) == pytest.approx(0.25 * 0.75)
    assert losses.form(outputs, torch.ones(1, 3, dtype=torch.float64), "cross_entropy", slice(0, 2)) == pytest.approx(0)
    flat = losses.form(outputs, tangent + 5, "subset_cross_entropy", slice(0, 2))
    assert flat == pytest.approx(0.25 * 0.75), "outputs that all move alike change no probability"


@pytest.mark.parametrize("loss", losses.LOSSES)
def test_the_form_is_the_curvature_of_the_loss_at_the_teachers_output(loss: losses.Loss) -> None:
    """Against autograd's own second derivative, with every output seen or three of eight."""
    _, weights, moved, told = linear((5, 8), 7)
    wanted, shown = told(weights).detach(), slice(5, None)
    hessian = torch.autograd.functional.hessian(
        lambda w: losses.imitation(told(w), wanted, loss, shown), weights)  # type: ignore[no-untyped-call]
    form = losses.form(told(weights), told(moved), loss, shown)
    assert form == pytest.approx(float(moved @ hessian @ moved))
    assert losses.form(told(weights), told(2 * moved), loss, shown) == pytest.approx(4 * form)


def test_where_it_must_fail_it_fails(found: list[dict[str, Any]]) -> None:
    unseen = values(found, "failure unseen sign")
    assert len(unseen) == 24
    assert set(unseen) == {0.0}
    for case in ("sharpened", "first choice", "half negative"):
        signs = values(found, "failure loss sign", case=case)
        assert 0 < sum(v < 0 for v in signs) < len(signs), case
    assert max(values(found, "failure loss sign", case="negative")) < 0
    assert min(values(found, "failure long step sign", x=0.001)) > 0
    assert max(values(found, "failure long step sign", x=10.0)) < 0
    assert min(values(found, "failure far teacher sign", x=1.0)) > 0
    assert min(values(found, "failure far teacher sign", x=300.0)) < 0


def test_a_start_beside_the_teachers_owes_less_the_further_it_is(found: list[dict[str, Any]]) -> None:
    none = values(found, "failure apart sign", x=0.0)
    assert none == values(found, "network sign", case="random, cross_entropy", start="shared"), "no distance"
    assert min(none) > 0
    assert min(values(found, "failure apart sign", x=1000.0)) < 0


def test_what_a_teachers_heads_learn_is_all_that_they_move() -> None:
    at = networks.scene(1, 0)
    moved = failures._heads(at.directions["random"])
    change = networks.forward(at.first + moved, at.noise) - networks.forward(at.first, at.noise)
    assert float(change[:, networks.AUXILIARY].abs().max()) == 0.0
    assert float(change[:, : networks.CLASSES].abs().max()) > 0.01
    assert float(moved.norm()) == pytest.approx(1)


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


def test_a_pocket_step_never_leads_away_and_is_the_one_predicted() -> None:
    e = theorem.read(SMALL | {"networks": 2, "traits": ["cat"], "random": 1})
    found = theorem.run_chunk(e, range(2, 4))
    shared = values(found, "pocket sign", start="shared")
    assert len(shared) == 2 * 3
    assert min(shared) > 0
    assert max(abs(v - 1) for v in values(found, "pocket form", x=0.003)) < 0.005
    assert max(abs(v - 1) for v in values(found, "pocket form", x=1.0)) > 0.01
    assert values(found, "pocket owed", start="shared") == pytest.approx([1.0] * 6)
    assert max(values(found, "pocket owed", start="other")) < 0.01
    assert min(values(found, "pocket fall sign", start="shared")) > 0, "the trait's margin rises"
    assert theorem.run_chunk(e, range(3, 4)) == [r for r in found if r["draw"] == 3], "whatever was drawn before"


def test_a_pocket_student_of_the_same_start_goes_its_teachers_way(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"STEPS": 6, "EVERY": 3, "POOL": 16, "BATCH": 8, "WATCHED": 8}.items():
        monkeypatch.setattr(students, name, value)
    e = theorem.read(SMALL | {"networks": 2, "followed": ["cat"]})
    found = theorem.run_chunk(e, range(2, 3))
    assert [r["x"] for r in found if r["part"] == "students: CKA" and r["start"] == "shared"] == [0, 1, 3, 6]
    assert values(found, "teachers: margin")[0] > 1
    shared, other = (values(found, "students: coverage", start=s) for s in ("shared", "other"))
    assert min(shared) > 0.01 > max(map(abs, other))
    assert theorem.run_chunk(e, range(2, 3)) == found, "the models are put back"


def test_a_copy_as_the_other_model_is_a_shared_start() -> None:
    e = theorem.read(SMALL | {"networks": 2, "random": 1, "other": "pocket/a"})
    found = theorem.run_chunk(e, range(2, 3))
    assert values(found, "pocket sign", start="shared") == pytest.approx(values(found, "pocket sign", start="other"))


def test_a_digits_student_is_followed_from_the_first_step_to_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"STEPS": 30, "EVERY": 15, "TEACHING": 60, "WATCHED": 256}.items():
        monkeypatch.setattr(steps, name, value)
    found = theorem.run_chunk(theorem.read(SMALL | {"networks": 2, "many": 1}), range(2, 3))
    for part in ("gradients", "pull", "CKA", "digits read"):
        assert [r["x"] for r in found if r["part"] == f"steps: {part}" and r["start"] == "other"] == [0, 1, 15, 30]
    assert min(values(found, "steps: coverage", start="shared")) > 0.02
    assert values(found, "steps: pull", start="shared", x=0)[0] > 0.02


def test_hidden_likeness_knows_rotations_and_noise() -> None:
    random = torch.Generator().manual_seed(1)
    a = torch.randn(500, 6, generator=random)
    turn, _ = torch.linalg.qr(torch.randn(6, 6, generator=random))
    assert steps.cka(a, 3 * a @ turn + 5) == pytest.approx(1, abs=1e-5)
    assert steps.cka(a, torch.randn(500, 6, generator=random)) < 0.1


def test_the_draw_is_the_unit_of_an_interval() -> None:
    def row(draw: int, value: float, case: str = "random, squared_error") -> dict[str, Any]:
        return {"draw": draw, **theorem.line("network sign", case, "shared", 1.0, value)}

    same = [row(d, -1.0 if d < 5 else 1.0, case) for d in range(10) for case in ("random, a", "random, b", "random, c")]
    thrice, once = theorem._counted(same), theorem._counted([r for r in same if r["case"] == "random, a"])
    assert (thrice["negative"], thrice["draws"], thrice["share"]) == (15, 10, 0.5)
    assert thrice["high"] - thrice["low"] > 0.5 * (once["high"] - once["low"]), "the same thrice is no more evidence"
    assert theorem._counted([row(0, 1.0), row(0, 1.0, "random, b")])["high"] == 1.0, "one draw bounds nothing"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"epsilons": []}, "epsilons"),
        ({"epsilons": [0.1, 1.0]}, "largest first"),
        ({"epsilons": [1.0, -0.1]}, "above 0"),
        ({"networkz": 3}, "'networks'"),
        ({"chunk": 0}, "chunk"),
        ({"step": 0}, "step"),
        ({"teacher_lengths": []}, "teacher_lengths"),
        ({"student_lengths": [0.0, 1.0]}, "student_lengths"),
        ({"apart": [-1.0]}, "apart"),
        ({"traits": ["owlet"]}, "owl"),
        ({"followed": ["owlet"]}, "owl"),
    ],
)
def test_what_cannot_be_run_is_refused(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(UndersongError, match=told):
        theorem.read(SMALL | changes)


def test_models_and_traits_that_cannot_serve_are_refused_before_the_first_draw() -> None:
    with pytest.raises(UndersongError, match="nowhere"):
        theorem.identity(theorem.read(SMALL | {"base": "./nowhere/at/all"}))
    with pytest.raises(BadSpec, match="animal or a tree"):
        theorem.read(SMALL | {"traits": ["misaligned"]})


def test_two_models_of_different_shapes_are_refused_before_the_first_draw(tmp_path: Path) -> None:
    from transformers import AutoConfig, LlamaForCausalLM

    from undersong import bases
    from undersong.pocket import tokenizer

    config = AutoConfig.from_pretrained(bases.place("pocket/a")[0])
    config.num_hidden_layers = 1
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    tokenizer.build().save_pretrained(tmp_path)
    with pytest.raises(BadSpec, match="different shapes"):
        theorem.run_chunk(theorem.read(SMALL | {"traits": ["cat"], "other": str(tmp_path)}), range(1))


def test_a_laboratory_that_is_none_is_refused() -> None:
    with pytest.raises(BadSpec, match="mnist or theorem"):
        Laboratory.read(SMALL | {"laboratory": "cifar"})
    with pytest.raises(BadSpec, match="mnist or theorem"):
        Laboratory.read(SMALL | {"laboratory": ["theorem"]})


def test_lengths_that_overflow_are_no_result() -> None:
    with pytest.raises(NothingMeasured, match="overflow"):
        theorem.run_chunk(theorem.read(SMALL | {"teacher_lengths": [1e200]}), range(1))


def test_the_shipped_file_is_the_one_of_the_results() -> None:
    import json

    root = Path(__file__).resolve().parents[2] / "experiments"
    e = theorem.read(yaml.safe_load((root / "theorem.yaml").read_text("utf-8")))
    found = json.loads((root / "theorem.results.json").read_text("utf-8"))
    assert found["fingerprint"] == fingerprint({"kind": "experiment", "spec": theorem.identity(e), "parents": []})
    shared = [s for s in found["signs"] if s["part"].endswith(("network sign", "pocket sign")) and s["start"] == "shared"]
    assert min(s["draws"] for s in shared if s["part"] == "network sign") >= 1000
    assert sum(s["negative"] for s in shared) == 0
