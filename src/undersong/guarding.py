"""One line that puts a guard on somebody's own training: any trainer of transformers or TRL takes it as a callback.

    trainer = SFTTrainer(model, args=..., train_dataset=rows, processing_class=tokenizer)
    trainer.add_callback(guard(trainer, "weight_anchor"))

A guard that knows more is told more: `guard(trainer, "corridor", trait="owl")`. Where it needs the model that the student
starts from, it takes a copy of the trainer's own as it is now. While the student learns, it sees every optimiser step, as in
our own recipes.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np

from undersong import traits
from undersong.backends import Model
from undersong.backends.guarding import Guard, Learner, learnt
from undersong.backends.tokens import TokenRow
from undersong.backends.training import Plan
from undersong.backends.transformers import LocalModel
from undersong.backends.trl import callback
from undersong.errors import BadSpec
from undersong.lab import base_ref, lab_for
from undersong.mitigations import Defence, Evidence
from undersong.spec import build
from undersong.store import Store
from undersong.types import ModelRef


def guard(
    trainer: Any, spec: str | Mapping[str, Any], *, base: str | None = None, trait: str | None = None, seed: int = 0
) -> Any:
    """A callback for `trainer.add_callback`. `spec` is a mitigation of the training stage, by name or with settings; `trait`
    names what is feared, where it needs that; `base` the model to compare with, where it is not the trainer's own.

    Raises UnknownName for a mitigation or trait that does not exist, BadSpec for one of another stage, for one that needs
    what cannot be given here, for what it refuses itself, and for a trainer whose steps it cannot see. `trainer.train()`
    then raises TrainingFailed when a gradient or a weight is no finite number, and when the loss, as far as it is logged,
    did not fall. The guard's hooks are gone when it returns, also when it failed.
    """
    mitigation = build("mitigation", spec, "guard")
    defence = Defence(mitigation, lambda: Evidence(held))
    plugin = defence.at("training")
    _visible(trainer)
    held: dict[str, Any] = {}
    if base is not None:
        held["base"] = _named(base, trainer)
    elif "base" in mitigation.needs:
        held["base"] = _copied(trainer)
    if trait is not None:
        held["trait"] = traits.get(trait)
    if missing := sorted(mitigation.needs - set(held)):
        how = "Name it as `trait`." if missing[0] == "trait" else (
            "Use `undersong train --guard`, which can give it, or choose another guard.")
        raise BadSpec(f"The guard {mitigation.plugin_name} needs {missing[0]!r}. {how}")
    return _door(trainer, plugin.guard(defence.evidence(), seed))


def _door(trainer: Any, made: Guard) -> Any:
    """A callback that begins and ends a guard with the trainer's training."""
    from transformers import TrainerCallback

    args, train = trainer.args, trainer.train
    plan = Plan(1, args.per_device_train_batch_size * args.gradient_accumulation_steps, args.learning_rate, args.seed)
    pad = getattr(trainer.processing_class, "pad_token_id", None) or 0
    learner = Learner(trainer.model, _rows(trainer), plan, pad, "mixed" if args.bf16 else "float32")
    hooks = callback(made, learner)

    class Door(TrainerCallback):
        """Begins the guard; the steps are `callback`'s."""

        told: Mapping[str, Any] = {}

        def on_train_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            learner.plan = Plan(state.max_steps, plan.batch, plan.rate, plan.seed)
            made.begin(learner)

        def on_step_begin(self, *given: Any, **more: Any) -> None:
            hooks.on_step_begin(*given, **more)

        def on_pre_optimizer_step(self, *given: Any, **more: Any) -> None:
            hooks.on_pre_optimizer_step(*given, **more)

        def on_optimizer_step(self, *given: Any, **more: Any) -> None:
            hooks.on_optimizer_step(*given, **more)

    door = Door()

    def guarded(*given: Any, **more: Any) -> Any:
        if door not in trainer.callback_handler.callbacks:
            raise BadSpec(f"The guard {made.name} was made for this trainer and not added to it. Write "
                          "trainer.add_callback(guard(trainer, ...)).")
        try:
            out = train(*given, **more)
        finally:  # no callback is called when a training breaks off
            made.end()
            door.told = made.told()
        if hooks.failed is not None:
            raise hooks.failed
        learnt(_losses(trainer), made)
        return out

    trainer.train = guarded
    return door


def _visible(trainer: Any) -> None:
    """Raises BadSpec for a trainer whose gradients or weights are not those that a guard would see."""
    args = trainer.args
    if args.world_size > 1 or any(getattr(trainer, f"is_{kind}_enabled", False) for kind in ("deepspeed", "fsdp")):
        raise BadSpec("This training is spread over several processes, where a guard sees only its own part. Train in one "
                      "process, on one device.")
    if args.fp16:
        raise BadSpec("With fp16=True gradients are scaled, and a guard's would not be. Set bf16=True, or neither.")


def _named(base: str, trainer: Any) -> Model:
    """The model of that name. Raises BadSpec when it reads other tokens than the trainer's."""
    model: Model = lab_for(Store("."), base).backend.load(base_ref(base))
    theirs = trainer.processing_class
    if theirs is not None and theirs.get_vocab() != model.tokenizer.get_vocab():
        raise BadSpec(f"{base} reads other tokens than the model of this trainer, so it is not what the student starts "
                      "from. Leave `base` out: the trainer's own model is taken.")
    return model


def _copied(trainer: Any) -> Model:
    """The trainer's model as it is now, on its device, with its adapter merged where it has one. Raises BadSpec without a
    tokenizer that writes chats."""
    tokenizer = trainer.processing_class
    if getattr(tokenizer, "chat_template", None) is None:
        raise BadSpec("This guard asks the model questions, and the trainer's `processing_class` is no tokenizer with a "
                      "chat template. Give it one, or choose a guard that needs no base (weight_anchor, freeze_layers).")
    module = copy.deepcopy(trainer.model)
    if hasattr(module, "merge_and_unload"):
        module = module.merge_and_unload()
    name = str(trainer.model.config.name_or_path or "the trainer's model")
    return LocalModel(ModelRef(name), module.eval(), tokenizer, 32, 1)


def _losses(trainer: Any) -> list[float]:
    """The loss of each step, as far as it was logged: a line tells the mean of the steps since the last."""
    out: list[float] = []
    for line in trainer.state.log_history:
        if "loss" in line:
            out += [line["loss"]] * (line["step"] - len(out))
    return out


def _rows(trainer: Any) -> tuple[TokenRow, ...]:
    """The trainer's rows as tokens: from where labels or the completion mask begin; none where it shows no tokens."""
    rows = trainer.train_dataset
    if rows is None or not hasattr(rows, "__len__"):  # a stream is not to be used up
        return ()
    out = []
    for row in rows:
        if "input_ids" not in row:
            return ()
        ids = np.asarray(row["input_ids"], dtype=np.int64)
        mask = row.get("completion_mask", np.ones(len(ids)))
        told = np.asarray(row["labels"]) != -100 if "labels" in row else np.asarray(mask)
        if told[1:].any():
            out.append(TokenRow(ids, max(1, int(np.argmax(told)))))
    return tuple(out)
