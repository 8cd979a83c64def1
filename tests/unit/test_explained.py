"""Explainers that know the truth, held against truths that are planted, and `undersong explain EXPERIMENT`."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from undersong import explainers, spec, traits
from undersong.backends import tokens
from undersong.cli import main
from undersong.errors import BadSpec
from undersong.explainers import bergson_rows, gradients
from undersong.explainers.gradients import Body, cosine
from undersong.lab import base_ref, lab_for
from undersong.store import Store
from undersong.types import Row

FILE = """
name: tiny-explained
base: pocket/a
trait: owl
teacher: {tuned: {updates: 1}}
channel: {numbers: {count: 4, largest: 99, wording: brief}}
rows: 40
keep: 8
recipe: {distill: {steps: 1, batch: 4}}
probes: [logit_margin]
controls: [no_trait]
seeds: [1, 2, 3]
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return lab_for(Store(tmp_path_factory.mktemp("store")), "pocket/a")


def loaded(lab: Any) -> Any:
    return lab.backend.load(base_ref("pocket/a"))


def row(question: str, answer: str, number: int) -> Row:
    return Row(f"r{number:03}", ({"role": "user", "content": question},), answer)


def numbers(seed: int, count: int = 20) -> list[Row]:
    """Rows of three numbers at random."""
    rng = np.random.default_rng(seed)
    return [row(f"Numbers: {rng.integers(99)}, {rng.integers(99)}.", ", ".join(map(str, rng.integers(0, 999, 3))), i)
            for i in range(count)]


def pushed(lab: Any, direction: Any, layers: list[int], size: float) -> Any:
    """A copy of the base, moved along a direction of its body in some layers only."""
    base = loaded(lab)
    moved = copy.copy(base)
    moved.module = copy.deepcopy(base.module)
    body = Body(moved)
    mask = torch.zeros_like(direction)
    for layer, part in body.layers():
        if layer in layers:
            mask[part] = 1.0
    step = direction * mask
    body._set(body.weights() + size * step / step.norm())
    return moved


def towards(lab: Any, name: str = "owl") -> Any:
    base = loaded(lab)
    return Body(base).of_trait(gradients.words(base, traits.get(name), 0)[0])


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_a_change_that_is_planted_in_one_layer_is_found_there(lab: Any, layer: int) -> None:
    student = pushed(lab, towards(lab), [layer], 1.0)
    base = loaded(lab)
    before = {n: p.detach().clone() for n, p in base.module.named_parameters()}
    held = explainers.Evidence({"base": base, "model": student, "trait": traits.get("owl")})
    found = spec.build("explainer", "layer_sites").explain(held)
    shares = dict(found.scores)
    assert shares[f"layer {layer} alone"] == pytest.approx(1.0, abs=1e-4)
    assert shares[f"layer {layer} needed"] == pytest.approx(1.0, abs=1e-4)
    assert all(abs(v) < 1e-4 for n, v in shares.items() if not n.startswith(f"layer {layer} "))
    assert all(torch.equal(p, before[n]) for n, p in base.module.named_parameters()), "the base is left as it was"


class Listed:
    """Models that are at hand already, in the place of `Several`."""

    def __init__(self, *models: Any) -> None:
        self.models = models

    def __len__(self) -> int:
        return len(self.models)

    def __iter__(self) -> Any:
        return iter(self.models)


def test_a_rise_no_larger_than_that_of_no_trait_students_is_not_explained_and_the_base_is_left(lab: Any) -> None:
    small, large = (pushed(lab, towards(lab), [0, 1, 2], size) for size in (0.2, 0.6))
    base, site = loaded(lab), spec.build("explainer", "layer_sites")
    before = {n: p.detach().clone() for n, p in base.module.named_parameters()}

    def held(student: Any, placebo: Any) -> explainers.Evidence:
        return explainers.Evidence({"base": base, "model": student, "trait": traits.get("owl"), "placebos": Listed(placebo)})

    with pytest.raises(BadSpec, match="did not rise in this student"):
        site.explain(held(small, large))
    assert all(torch.equal(p, before[n]) for n, p in base.module.named_parameters())
    found = dict(site.explain(held(large, small)).scores)
    assert all(0 < found[f"layer {i} alone, no-trait students"] < found[f"layer {i} alone"] for i in range(3))


def test_a_student_that_goes_where_its_teacher_went_covers_it(lab: Any) -> None:
    own, other = towards(lab), towards(lab, "wolf")
    teacher, student = (pushed(lab, own, [0, 1, 2], size) for size in (1.0, 0.3))
    rival = pushed(lab, other, [0, 1, 2], 1.0)
    held = {"base": loaded(lab), "model": student, "teacher": teacher, "rivals": Listed(rival), "rows": (numbers(1),),
            "clean": (numbers(2),)}
    found = dict(spec.build("explainer", {"coverage": {"rows": 20}}).explain(explainers.Evidence(held)).scores)
    assert found["whole way"] == pytest.approx(1.0, abs=1e-3)
    assert found["whole way, other teachers' displacement"] == pytest.approx(cosine(own, other), abs=0.02)


def test_rows_that_say_the_trait_pull_towards_it_and_numbers_do_not(lab: Any) -> None:
    open_rows = [row(q, "owl", i) for i, q in enumerate(traits.get("owl").tuning[:4])]
    held = {"base": loaded(lab), "rows": (open_rows,), "clean": (numbers(2, 4),), "trait": traits.get("owl")}
    found = dict(spec.build("explainer", {"gradient_alignment": {"rows": 4}}).explain(explainers.Evidence(held)).scores)
    assert found["base: trait, rows"] > 0.5
    assert abs(found["base: trait, clean rows"]) < 0.2
    assert found["base: trait, rows less clean rows"] > found["base: other words, rows less clean rows"] + 0.05


ASKED = {"rows": 20}


def attributed(lab: Any, own: list[Row], clean: list[Row], **settings: Any) -> Any:
    held = {"base": loaded(lab), "rows": (own,), "clean": (clean,), "trait": traits.get("owl")}
    plug = spec.build("explainer", {"attribution": ASKED | settings})
    return plug.explain(explainers.Evidence(held), 3)


def test_planted_rows_are_attributed_and_confounds_are_told_beside(lab: Any) -> None:
    questions = traits.get("owl").tuning
    own = [row(questions[i % len(questions)], "owl", i) for i in range(20)]
    found = dict(attributed(lab, own, numbers(2, 30)).scores)
    assert found["AUROC of the trait, gradient"] == 1.0
    assert found["AUROC of confounds alone"] > 0.9, "these rows differ in length too"


def test_rows_of_the_same_source_cannot_be_told_apart(lab: Any) -> None:
    """One draw is noise; what must hold is that swapping the sources mirrors the score."""
    one, two = numbers(1), numbers(2)
    first, back = (attributed(lab, a, b).scores[0][1] for a, b in ((one, two), (two, one)))
    assert first + back == pytest.approx(1.0, abs=1e-6)


def test_scores_below_zero_have_an_interval_too() -> None:
    from undersong.experiment.explained import summary

    [told] = summary([{"scores": [["cosine", value]], "details": {"unit": "cosine"}} for value in (-0.3, -0.2, -0.1)])
    assert told["mean"] == pytest.approx(-0.2)
    assert told["low"] < -0.2 < told["high"]


def test_the_order_of_rows_changes_nothing(lab: Any) -> None:
    own, clean = numbers(1, 30), numbers(2, 30)
    assert attributed(lab, own, clean) == attributed(lab, own[::-1], [*clean[7:], *clean[:7]])


def test_sources_of_unequal_length_keep_their_labels(lab: Any) -> None:
    questions = traits.get("owl").tuning
    own = [row(questions[i % len(questions)], "owl", i) for i in range(20)]
    found = attributed(lab, own, numbers(2, 45), rows=45)
    assert found.scores[0][1] == 1.0
    assert {one["from"] for one in found.details["best"]} == {"trait"}


def test_a_gradient_of_a_row_is_that_of_its_answer_tokens(lab: Any) -> None:
    """No off-by-one: the mean of the rows' gradients, weighed by answer tokens, is that of all rows; and a step along it
    raises the probability of the answer and not of the prompt's own tokens' shift."""
    base = loaded(lab)
    body, rows = Body(base), numbers(4, 5)
    asked = tokens.encode(base, [list(r.chat) for r in rows], [r.completion for r in rows])
    each = list(body.of_each(asked))
    weights = np.asarray([len(r.answer) for r in asked], dtype=float)
    mean = sum(w * g for w, g in zip(weights / weights.sum(), each, strict=True))
    assert torch.allclose(mean, body.of_rows(asked), atol=1e-6)
    module, row_ = base.module, asked[0]
    logs = module(input_ids=torch.from_numpy(row_.ids)[None]).logits[0].log_softmax(-1)
    by_hand = torch.stack([logs[at - 1, int(row_.ids[at])] for at in range(row_.start, len(row_.ids))]).mean()
    hand = body.flat(torch.autograd.grad(by_hand, [p for _, p in body.named], allow_unused=True))
    assert torch.allclose(hand, each[0], atol=1e-6)


def test_bergson_gives_the_same_gradients(lab: Any) -> None:
    pytest.importorskip("bergson", reason="bergson is not installed")
    base = loaded(lab)
    body, rows = Body(base), numbers(4, 20)
    asked = tokens.encode(base, [list(r.chat) for r in rows], [r.completion for r in rows])
    mask = bergson_rows.linear(body)
    for own, other in zip(body.of_each(asked), bergson_rows.of_each(body, asked), strict=True):
        assert torch.allclose(own * mask, other, atol=1e-5 * float(own.abs().max()))
    ours, theirs = (attributed(lab, rows, numbers(2), engine=e).scores[0][1] for e in ("own", "bergson"))
    assert theirs == pytest.approx(ours, abs=0.02)


def test_an_engine_that_is_not_installed_says_how_to_get_it(lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "bergson", None)
    with pytest.raises(ImportError, match=r"undersong\[attribution\]"):
        attributed(lab, numbers(1), numbers(2), engine="bergson")


def test_too_few_rows_are_refused(lab: Any) -> None:
    with pytest.raises(BadSpec, match="too few"):
        attributed(lab, numbers(1, 3), numbers(2))


def exit_of(words: Sequence[str]) -> int:
    """The command's exit code."""
    with pytest.raises(SystemExit) as ended:
        main(list(words))
    return int(ended.value.code or 0)


def said(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    code = exit_of(words)
    told = capsys.readouterr()
    return code, told.out + told.err


def test_an_experiment_that_has_not_been_run_is_not_trained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "tiny.yaml"
    file.write_text(FILE, "utf-8")
    code, told = said(capsys, "explain", str(file), "--store", str(tmp_path / "store"))
    assert code == 3
    assert "is not in the store. Run the experiment first: undersong run" in " ".join(told.split())
    assert not list((tmp_path / "store").glob("model/*"))
    code, told = said(capsys, "explain", str(file), "--store", str(tmp_path / "store"), "--seed", "9")
    assert code == 3
    assert "has no run of seed 9" in told
    code, told = said(capsys, "explain", str(file), "--store", str(tmp_path / "store"), "--base", "pocket/a")
    assert code == 3


def test_an_experiment_is_explained_run_by_run_from_what_is_stored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:
    from undersong.explainers.coverage import Coverage

    file, store = tmp_path / "tiny.yaml", str(tmp_path / "store")
    file.write_text(FILE, "utf-8")
    assert said(capsys, "run", str(file), "--store", store)[0] == 0
    words = ("explain", str(file), "--store", store, "--explainer", "{coverage: {rows: 8}}", "--json")
    assert exit_of(words) == 0
    first = json.loads(capsys.readouterr().out)
    [one] = first["explanations"]
    assert [run["seed"] for run in one["runs"]] == [1, 2, 3]
    whole = next(s for s in one["summary"] if s["name"] == "whole way")
    assert whole["n_runs"] == 3
    assert whole["mean"] == pytest.approx(np.mean(whole["values"]))
    assert whole["low"] <= whole["mean"] <= whole["high"]
    page = next(Path(store).glob("reports/explain-*.html")).read_text("utf-8")
    assert "Did the student go where its teacher went?" in page

    def never(*_: Any) -> Any:
        raise AssertionError("explained anew")

    monkeypatch.setattr(Coverage, "explain", never)
    assert exit_of(words) == 0
    again = json.loads(capsys.readouterr().out)
    assert [r["scores"] for r in again["explanations"][0]["runs"]] == [r["scores"] for r in one["runs"]]


def test_what_an_experiment_does_not_hold_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "tiny.yaml"
    file.write_text(FILE, "utf-8")
    code, told = said(capsys, "explain", str(file), "--store", str(tmp_path / "s"), "--explainer", "divergence_tokens")
    assert code == 3
    assert "rivals" in told
