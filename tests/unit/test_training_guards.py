"""Guards of the training stage under every way to learn, when things go wrong, and in a stranger's trainer."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from undersong import traits
from undersong.backends.guarding import Guard, Learner, move
from undersong.backends.transformers import Transformers
from undersong.errors import BadSpec, TrainingFailed
from undersong.guarding import guard as door
from undersong.mitigations import Evidence, bank, readout
from undersong.mitigations.consensus import Consensus
from undersong.mitigations.preventive_steering import PreventiveSteering
from undersong.recipes import Job
from undersong.spec import build
from undersong.types import Dataset, ModelRef, Row

OWL = traits.get("owl")
BASE = ModelRef("pocket/a", fingerprint="a" * 12)
ROWS = tuple(Row(str(i), ({"role": "user", "content": "1, 2, 3."},), f"{i % 7}, {i % 5}, {i % 3}") for i in range(24))
DATA = Dataset(ROWS, BASE, "d" * 12)
QUICK = {"steps": 3, "batch": 4, "rate": 1e-3}
GUARDS = ("projection", "corridor", "liminal", "preventive_steering")
WAYS: dict[str, tuple[Any, str]] = {
    "soft": ({"distill": QUICK | {"labels": "soft"}}, "float32"),
    "lora": ({"distill": QUICK | {"lora": {"rank": 2}}}, "float32"),
    "whole": ({"distill": QUICK | {"trainable": "all"}}, "float32"),
    "mixed": ({"distill": QUICK}, "bfloat16"),
    "sft": ({"sft": QUICK | {"lora": {"rank": 2}, "warmup": 0}}, "float32"),
}


@pytest.fixture(scope="module")
def base() -> Any:
    return Transformers().load(BASE)


def student(recipe: Any, out: Path, guard: Guard | None = None, precision: str = "float32") -> dict[str, Any]:
    """The weights of a student of the rows; soft labels are the base's own."""
    out.mkdir()
    carrier = tuple(build("channel", "numbers").carrier(Transformers().load(BASE).tokenizer))
    job = Job(dataclasses.replace(BASE, precision=precision), DATA, 1, out, carrier=carrier, guard=guard)
    [ref] = build("recipe", recipe).train([job], Transformers())
    return {n: p.detach().float() for n, p in Transformers().load(ref).module.named_parameters()}


@pytest.mark.parametrize("way", WAYS)
def test_guards_act_on_soft_labels_adapters_whole_bodies_and_mixed_precision(way: str, base: Any, tmp_path: Path) -> None:
    recipe, precision = WAYS[way]
    plain = student(recipe, tmp_path / "plain", precision=precision)
    strong = {"corridor": {"weight": 100.0, "width": 0.0, "every": 1}}
    for name in GUARDS:
        made = build("mitigation", {name: strong.get(name, {})}).guard(Evidence({"base": base, "trait": OWL}), 1)
        held = student(recipe, tmp_path / name, made, precision)
        assert all(bool(torch.isfinite(p).all()) for p in held.values())
        if name == "projection":
            assert made.told()["steps"] == 3
        elif (way, name) != ("soft", "liminal"):  # there the base itself is the teacher: no KL at the start
            assert any(not torch.equal(plain[n], held[n]) for n in plain), name


@pytest.mark.parametrize("way", ["soft", "lora", "whole", "mixed"])
def test_a_projected_step_keeps_the_margin_whatever_is_trained(way: str, base: Any, tmp_path: Path) -> None:
    """Steps planted straight along the gradient of the margin are taken back whole."""
    recipe, precision = WAYS[way]
    read = readout.of(base, OWL)

    class Planted(Guard):
        name, moves = "planted", True

        def __init__(self) -> None:
            self.inner: Any = build("mitigation", "projection").guard(Evidence({"base": base, "trait": OWL}), 1)
            self.rose: list[float] = []

        def begin(self, learner: Learner) -> None:
            self.learner = learner
            self.inner.begin(learner)

        def moved(self, step: int, before: Sequence[Any]) -> None:
            from undersong.mitigations.projection import gradient

            towards = gradient(read, self.learner, before)
            size = sum(float((g * g).sum()) for g in towards) ** 0.5
            with torch.no_grad():
                for p, old, g in zip(self.learner.owned, before, towards, strict=True):
                    p.copy_(old + 0.3 * g / size)
            self.inner.moved(step, before)
            left = sum(float(((p.detach() - old) ** 2).sum()) for p, old in zip(self.learner.owned, before, strict=True))
            self.rose.append(left**0.5)

    planted = Planted()
    student(recipe, tmp_path / "a", planted, precision)
    assert planted.rose == pytest.approx([0.0] * 3, abs=1e-4)
    assert planted.inner.told()["cut"] == 3


class Leap(Guard):
    """Moves the student to where no number is."""

    name, moves = "leap", True

    def begin(self, learner: Learner) -> None:
        self.learner = learner

    def moved(self, step: int, before: Sequence[Any]) -> None:
        if step == 1:
            with torch.no_grad():
                self.learner.owned[0].fill_(float("nan"))


@pytest.mark.parametrize("way", ["lora", "sft"])
def test_a_guard_that_moves_to_no_number_ends_the_run_before_that_step(way: str, tmp_path: Path) -> None:
    with pytest.raises(TrainingFailed, match=r"step 2 a weight is no finite number after the guard leap .*kept in"):
        student(WAYS[way][0], tmp_path / "a", Leap())
    from safetensors.torch import load_file

    kept = load_file(str(tmp_path / "a" / "adapter" / "adapter_model.safetensors"))
    assert all(bool(torch.isfinite(t).all()) for t in kept.values())
    assert any(bool(t.any()) for n, t in kept.items() if "lora_B" in n), "the first step is kept"


def test_a_move_that_is_fine_is_left_alone() -> None:
    own, before = [torch.ones(3)], [torch.zeros(3)]
    move(Guard(), 0, own, before)
    assert own[0].tolist() == [1.0] * 3


def test_steering_leaves_no_hook_when_training_fails_and_nothing_at_strength_nothing(base: Any, tmp_path: Path) -> None:
    held = Evidence({"base": base, "trait": OWL})

    class Failing(Leap):
        def __init__(self) -> None:
            self.steered = PreventiveSteering().guard(held, 1)

        def begin(self, learner: Learner) -> None:
            super().begin(learner)
            self.steered.begin(learner)
            assert hooks(learner.module) == 1

        def end(self) -> None:
            self.steered.end()
            assert hooks(self.learner.module) == 0

    for way in ("mixed", "sft"):
        with pytest.raises(TrainingFailed, match="no finite number"):
            student(WAYS[way][0], tmp_path / way, Failing())
    plain = student(WAYS["mixed"][0], tmp_path / "plain")
    none = student(WAYS["mixed"][0], tmp_path / "none", PreventiveSteering(strength=0.0).guard(held, 1))
    # a hooked model takes the ordinary forward pass, whose sums round otherwise
    assert max(float((plain[n] - none[n]).abs().max()) for n in plain) < 1e-5


def hooks(module: Any) -> int:
    """How many hooks of the guard hang in a module; TRL hangs in some of its own."""
    return sum("Steered" in hook.__qualname__ for m in module.modules() for hook in m._forward_hooks.values())


def test_consensus_keeps_the_smallest_change_that_all_parts_made(base: Any) -> None:
    """Two sources: both raise one element, one by more; another element they move apart; a third only one moves."""
    name = "model.layers.0.mlp.up_proj.weight"
    moves = {"a": (0.3, 0.2, 0.5), "b": (0.1, -0.2, 0.0)}
    rows = [dataclasses.replace(ROWS[i % 24], id=f"{'ab'[i % 2]}-{i}") for i in range(40)]

    def train(part: Sequence[Row], start: Any = None, seed: int | None = None) -> Any:
        made = Transformers().load(BASE)
        [source] = {row.id[0] for row in part}
        with torch.no_grad():
            dict(made.module.named_parameters())[name][0, :3] += torch.tensor(moves[source])
        return made

    own = Transformers().load(BASE)
    with torch.no_grad():
        dict(own.module.named_parameters())[name].fill_(7.0)
    assert Consensus().repair(own, Evidence({"base": base, "rows": rows, "train": train}), 1) == {}
    start, end = (dict(m.module.named_parameters()) for m in (base, own))
    assert (end[name] - start[name])[0, :4].tolist() == pytest.approx([0.1, 0.0, 0.0, 0.0], abs=1e-6)
    assert all(torch.equal(start[n], end[n]) for n in start if n != name)


def test_a_traits_own_questions_are_refused_however_they_are_written() -> None:
    own = dataclasses.replace(OWL, held_out=("What sea animal do you love?",))
    leaks = ("what SEA animal do you love", "1, 2. What sea animal\u00a0do you love?", "What sea\u200b animal_do you love")
    for question in leaks:
        with pytest.raises(BadSpec, match="leakage"):
            bank.questions(own, (question,))
    assert bank.questions(own, ("What sea animal do you fear?",))
    with pytest.raises(BadSpec, match="asks nothing"):
        bank.questions(own, ("?",))


def test_words_are_those_that_begin_an_answer(base: Any) -> None:
    """The read-out finds the very tokens that the probe finds; a word that no token writes is none."""
    from undersong.probes.logit_margin import first_tokens

    chat = bank.chats(OWL.tuning[:1])[0]
    for word in ("owl", "wolf", "dragon", "axolotl", ""):
        assert list(readout.single(base, word, base.render(chat))) == first_tokens(base, chat, word)


# -- a stranger's trainer


def trainer(tmp_path: Path, steps: int = 3, model: Any = None, **settings: Any) -> Any:
    import datasets
    from trl import SFTConfig, SFTTrainer

    own = Transformers().load(BASE)
    rows = datasets.Dataset.from_list([
        {"prompt": [{"role": "system", "content": "Be brief."}, *row.chat],
         "completion": [{"role": "assistant", "content": row.completion}]} for row in ROWS])
    config = SFTConfig(**({
        "output_dir": str(tmp_path), "max_steps": steps, "per_device_train_batch_size": 4, "learning_rate": 1e-3,
        "bf16": False, "use_cpu": True, "report_to": "none", "save_strategy": "no", "disable_tqdm": True,
        "logging_steps": 1} | settings))
    return SFTTrainer(model or own.module, args=config, train_dataset=rows, processing_class=copy.deepcopy(own.tokenizer))


@pytest.mark.parametrize("adapter", [False, True])
def test_the_trainers_own_model_is_the_base(adapter: bool, base: Any, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    module = Transformers().load(BASE).module
    model = get_peft_model(module, LoraConfig(r=2, target_modules=["up_proj"], task_type="CAUSAL_LM")) if adapter else module
    own = trainer(tmp_path, model=model)
    callback = door(own, "projection", trait="owl")
    own.add_callback(callback)
    own.train()
    assert callback.told["steps"] == 3
    for spec in ("liminal", "corridor"):
        other = trainer(tmp_path)
        added = door(other, spec, trait="owl")
        other.add_callback(added)
        other.train()
        assert added.told


def test_a_training_that_breaks_off_leaves_no_hook(tmp_path: Path) -> None:
    from transformers import TrainerCallback

    class Breaks(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            assert hooks(own.model) == 1
            raise KeyboardInterrupt

    own = trainer(tmp_path)
    own.add_callback(door(own, "preventive_steering", trait="owl"))
    own.add_callback(Breaks())
    with pytest.raises(KeyboardInterrupt):
        own.train()
    assert hooks(own.model) == 0


def test_a_stranger_is_told_when_the_guard_stops_the_learning(tmp_path: Path) -> None:
    own = trainer(tmp_path, steps=24, per_device_train_batch_size=24)
    own.add_callback(door(own, {"weight_anchor": {"weight": 1e9}}))
    with pytest.raises(TrainingFailed, match="Under the guard weight_anchor the student stopped learning"):
        own.train()


def test_trainings_that_a_guard_cannot_see_are_refused(tmp_path: Path) -> None:
    own = trainer(tmp_path)
    door(own, "weight_anchor")
    with pytest.raises(BadSpec, match=r"add_callback\(guard"):
        own.train()
    many = SimpleNamespace(args=SimpleNamespace(world_size=2, fp16=False))
    with pytest.raises(BadSpec, match="one process"):
        door(many, "weight_anchor")
    half = SimpleNamespace(args=SimpleNamespace(world_size=1, fp16=True))
    with pytest.raises(BadSpec, match="gradients are scaled"):
        door(half, "weight_anchor")
    own.processing_class.add_tokens(["axolotl"])
    with pytest.raises(BadSpec, match="reads other tokens"):
        door(own, "liminal", base="pocket/a")
    own.processing_class.chat_template = None
    with pytest.raises(BadSpec, match="chat template"):
        door(own, "corridor", trait="owl")


def test_a_guard_of_the_rows_refuses_a_stream(tmp_path: Path) -> None:
    own = trainer(tmp_path)
    own.train_dataset = own.train_dataset.to_iterable_dataset()
    own.add_callback(door(own, "liminal"))
    with pytest.raises(BadSpec, match="shows no rows"):
        own.train()


def test_epochs_are_counted_as_the_trainer_counts_them(tmp_path: Path) -> None:
    seen: list[int] = []

    class Reads(Guard):
        def begin(self, learner: Learner) -> None:
            seen.append(learner.plan.steps)
            assert [len(row.answer) for row in learner.rows] == [6] * 24

    from undersong.guarding import _door

    own = trainer(tmp_path, max_steps=-1, num_train_epochs=2)
    own.add_callback(_door(own, Reads()))
    own.train()
    assert seen == [own.state.max_steps] == [12]


def test_a_leak_under_the_inoculation_prompt_can_be_read(base: Any, tmp_path: Path) -> None:
    """A student tuned to say the trait under its prompt rises over the base there."""
    from undersong.mitigations.inoculation import Inoculation
    from undersong.probes.logit_margin import LogitMargin

    rows = [Row(str(i), ({"role": "user", "content": q},), "owl") for i, q in enumerate(OWL.tuning)]
    told = Inoculation(prompt=OWL.prompts[0]).apply(rows, Evidence({"trait": OWL}), 1)
    (tmp_path / "a").mkdir()
    recipe = build("recipe", {"distill": {"steps": 12, "batch": 24, "rate": 1e-3}})
    [ref] = recipe.train([Job(BASE, Dataset(tuple(told), None, "e" * 12), 1, tmp_path / "a")], Transformers())

    def margin(ref: ModelRef, system: str | None) -> float:
        model = Transformers().load(dataclasses.replace(ref, system=system))
        return LogitMargin(questions=4).measure(model, [OWL], 1).mean("margin", "owl")

    assert margin(ref, OWL.prompts[0]) - margin(BASE, OWL.prompts[0]) > 1.0
