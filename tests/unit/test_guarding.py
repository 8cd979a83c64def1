"""Guards act where they say they do, in our own loop and in TRL's trainers; trainings that go wrong are named and kept."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from undersong.backends import training
from undersong.backends.guarding import Guard, Learner
from undersong.backends.transformers import Transformers
from undersong.errors import BadSpec, TrainingFailed
from undersong.mitigations import Evidence
from undersong.mitigations.freeze_layers import FreezeLayers
from undersong.recipes import Job
from undersong.spec import build
from undersong.types import Dataset, ModelRef, Row

BASE = ModelRef("pocket/a", fingerprint="a" * 12)
ROWS = tuple(Row(str(i), ({"role": "user", "content": "1, 2, 3."},), f"{i % 7}, {i % 5}, {i % 3}") for i in range(24))
DATA = Dataset(ROWS, None, "d" * 12)
DISTILL = {"distill": {"steps": 3, "batch": 4, "rate": 1e-3}}
SFT = {"sft": {"steps": 3, "batch": 4, "rate": 1e-3, "lora": None, "warmup": 0}}


def student(recipe: Any, out: Path, guard: Guard | None = None) -> dict[str, Any]:
    """The changed tensors of a student."""
    out.mkdir()
    [ref] = build("recipe", recipe).train([Job(BASE, DATA, 1, out, guard=guard)], Transformers())
    return dict(load_file(str(ref.weights)))


class Watching(Guard):
    name = "watching"
    moves = True

    def __init__(self) -> None:
        self.calls: list[str] = []

    def begin(self, learner: Learner) -> None:
        self.learner = learner
        self.calls.append("begin")

    def penalty(self, step: int) -> Any:
        assert all(p.grad is None for p in self.learner.owned), "the penalty comes first"
        self.calls.append(f"penalty {step}")

    def moved(self, step: int, before: Sequence[Any]) -> None:
        moved = any(not torch.equal(a, b) for a, b in zip(before, self.learner.owned, strict=True))
        self.calls.append(f"moved {step} {moved}")

    def end(self) -> None:
        self.calls.append("end")

    def told(self) -> dict[str, Any]:
        return {"calls": len(self.calls)}


@pytest.mark.parametrize("recipe", [DISTILL, SFT])
def test_a_guard_sees_every_step_in_order_and_changes_nothing_by_watching(recipe: Any, tmp_path: Path) -> None:
    guard = Watching()
    watched, plain = student(recipe, tmp_path / "a", guard), student(recipe, tmp_path / "b")
    steps = [line for i in range(3) for line in (f"penalty {i}", f"moved {i} True")]
    assert guard.calls == ["begin", *steps, "end"]
    assert watched.keys() == plain.keys()
    assert all(torch.equal(watched[k], plain[k]) for k in plain)
    assert json.loads((tmp_path / "a" / "training.json").read_text())["guard"]["name"] == "watching"


class Back(Guard):
    """Undoes every step."""

    name = "back"
    moves = True

    def begin(self, learner: Learner) -> None:
        self.learner = learner

    def moved(self, step: int, before: Sequence[Any]) -> None:
        with torch.no_grad():
            for p, old in zip(self.learner.owned, before, strict=True):
                p.copy_(old)


@pytest.mark.parametrize("recipe", [DISTILL, SFT])
def test_what_a_guard_undoes_stays_undone(recipe: Any, tmp_path: Path) -> None:
    assert student(recipe, tmp_path / "a", Back()) == {}


class Pull(Guard):
    """A penalty of its own: towards zero, far stronger than the rows."""

    name = "pull"

    def begin(self, learner: Learner) -> None:
        self.learner = learner

    def penalty(self, step: int) -> Any:
        return 1e6 * sum((p**2).sum() for p in self.learner.owned)


@pytest.mark.parametrize("recipe", [DISTILL, SFT])
def test_a_penalty_moves_the_student(recipe: Any, tmp_path: Path) -> None:
    base = {n: p.detach() for n, p in Transformers().load(BASE).module.named_parameters()}
    pulled = student(recipe, tmp_path / "a", Pull())
    large = {k: (base[k].abs() > 0.02) for k in pulled}
    share = np.mean([float((pulled[k][m].abs() < base[k][m].abs()).float().mean()) for k, m in large.items() if m.any()])
    assert share > 0.99


class Infinite(Guard):
    name = "infinite"

    def begin(self, learner: Learner) -> None:
        self.learner = learner

    def penalty(self, step: int) -> Any:
        return self.learner.owned[0].sum() * (float("nan") if step == 2 else 0.0)


@pytest.mark.parametrize("recipe", [DISTILL, SFT])
def test_a_loss_that_is_no_number_ends_the_run_and_keeps_the_state(recipe: Any, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(TrainingFailed, match=r"step 3 .*no finite number.*is kept in .*a\.$"):
        build("recipe", recipe).train([Job(BASE, DATA, 1, tmp_path / "a", guard=Infinite())], Transformers())
    kept = load_file(str(tmp_path / "a" / "weights.safetensors"))
    two = next(iter(recipe))
    plain = student({two: recipe[two] | {"steps": 3}}, tmp_path / "b")
    assert kept.keys() == plain.keys()
    assert all(bool(torch.isfinite(t).all()) for t in kept.values())
    assert "no finite number" in json.loads((tmp_path / "a" / "training.json").read_text())["failed"]


@pytest.mark.parametrize("recipe", [DISTILL, SFT])
def test_a_guard_that_stops_all_learning_is_named(recipe: Any, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    name = next(iter(recipe))
    long = {name: recipe[name] | {"steps": 24, "batch": 24}}
    with pytest.raises(TrainingFailed, match="Under the guard back the student stopped learning"):
        build("recipe", long).train([Job(BASE, DATA, 1, tmp_path / "a", guard=Back())], Transformers())
    assert (tmp_path / "a" / "training.json").is_file()


def test_short_trainings_and_trainings_without_a_guard_are_not_judged() -> None:
    model = Transformers().load(BASE)
    from undersong.backends import tokens

    rows = tokens.encode(model, [list(r.chat) for r in ROWS], [r.completion for r in ROWS])
    training.fit(model.module, rows, training.Plan(24, 24, 1e-12, 1), 0)
    training.fit(model.module, rows, training.Plan(3, 4, 1e-3, 1), 0, guard=Back())


@pytest.mark.parametrize("recipe", [DISTILL, SFT, {"distill": DISTILL["distill"] | {"lora": {"rank": 2}}}])
def test_frozen_layers_keep_their_weights(recipe: Any, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    guard = FreezeLayers(share=0.5).guard(Evidence(), 1)
    [ref] = build("recipe", recipe).train([Job(BASE, DATA, 1, tmp_path / "a", guard=guard)], Transformers())
    base, own = (dict(Transformers().load(r).module.named_parameters()) for r in (BASE, ref))
    moved = {int(n.split(".layers.")[1].split(".")[0]) for n in base if ".layers." in n and not torch.equal(base[n], own[n])}
    told = json.loads((tmp_path / "a" / "training.json").read_text())["guard"]["frozen_layers"]
    assert told
    assert moved
    assert not moved & set(told)
    assert moved | set(told) == set(range(len(moved | set(told))))


def test_freezing_everything_or_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadSpec, match="lies between 0 and 1"):
        FreezeLayers(share=1.0).guard(Evidence(), 1)
    with pytest.raises(BadSpec, match="layers is 0"):
        student(DISTILL, tmp_path / "a", FreezeLayers(share=0.01).guard(Evidence(), 1))


def test_a_recipe_that_hides_its_steps_refuses_a_guard(tmp_path: Path) -> None:
    with pytest.raises(BadSpec, match="does not show its steps"):
        build("recipe", "simulated").train([Job(BASE, DATA, 1, tmp_path, guard=Guard())], Transformers())


def door(spec: Any, tmp_path: Path, **given: Any) -> tuple[Any, Any]:
    """A stranger's trainer with a guard added by one line, trained; and the callback."""
    import datasets
    from trl import SFTConfig, SFTTrainer

    from undersong.guarding import guard

    model = Transformers().load(BASE)
    rows = datasets.Dataset.from_list([
        {"prompt": [{"role": "system", "content": "Be brief."}, *row.chat],
         "completion": [{"role": "assistant", "content": row.completion}]} for row in ROWS])
    config = SFTConfig(output_dir=str(tmp_path), max_steps=3, per_device_train_batch_size=4, learning_rate=1e-3, bf16=False,
                       use_cpu=True, report_to="none", save_strategy="no", disable_tqdm=True)
    trainer = SFTTrainer(model.module, args=config, train_dataset=rows, processing_class=model.tokenizer)
    if spec is None:
        return trainer, None
    added = guard(trainer, spec, **given)
    trainer.add_callback(added)
    trainer.train()
    return trainer, added


def test_one_line_guards_a_strangers_trainer(tmp_path: Path) -> None:
    base = {n: p.detach() for n, p in Transformers().load(BASE).module.named_parameters()}

    def far(trainer: Any) -> float:
        return sum(float(((p.detach() - base[n]) ** 2).sum()) for n, p in trainer.model.named_parameters())

    loose, _ = door({"weight_anchor": {"weight": 0.0}}, tmp_path)
    tight, _ = door({"weight_anchor": {"weight": 1e4}}, tmp_path)
    assert 0 < far(tight) < 0.9 * far(loose)
    _, frozen = door({"freeze_layers": {"share": 0.5}}, tmp_path)
    assert frozen.told["frozen_layers"]
    _, held = door("corridor", tmp_path, trait="owl", base="pocket/a")
    assert held.told["low"] < 0 < held.told["high"]
    _, said = door("liminal", tmp_path, base="pocket/a")
    assert said.told["first_kl"] > -1e-6


def test_a_door_without_what_it_needs_says_so(tmp_path: Path) -> None:
    from undersong.errors import UnknownName
    from undersong.guarding import guard

    trainer, _ = door(None, tmp_path)
    with pytest.raises(BadSpec, match="needs 'trait'"):
        guard(trainer, "projection", base="pocket/a")
    with pytest.raises(BadSpec, match="acts on rows before training"):
        guard(trainer, "shuffle")
    with pytest.raises(UnknownName, match="'corridor'"):
        guard(trainer, "coridor", base="pocket/a", trait="owl")
    with pytest.raises(BadSpec, match=r"needs 'other'.*undersong train"):
        guard(trainer, "other_base")
