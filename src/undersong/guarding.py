"""One line that puts a guard on somebody's own training: any trainer of transformers or TRL takes it as a callback.

    trainer = SFTTrainer(model, args=..., train_dataset=rows, processing_class=tokenizer)
    trainer.add_callback(guard(trainer, "weight_anchor"))

A guard that knows more is told more: `guard(trainer, "corridor", trait="owl", base="pocket/a")`. What is named here is read
before the training; afterwards the guard sees the student at each optimiser step, as in our own recipes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from undersong import traits
from undersong.backends.guarding import Learner
from undersong.backends.tokens import TokenRow
from undersong.backends.training import Plan
from undersong.backends.trl import callback
from undersong.errors import BadSpec, TrainingFailed
from undersong.lab import base_ref, lab_for
from undersong.mitigations import Defence, Evidence
from undersong.spec import build
from undersong.store import Store


def guard(
    trainer: Any, spec: str | Mapping[str, Any], *, base: str | None = None, trait: str | None = None, seed: int = 0
) -> Any:
    """A callback for `trainer.add_callback`. `spec` is a mitigation of the training stage, by name or with settings; `base`
    names the model that the student starts from, `trait` what is feared, where the mitigation needs them.

    Raises UnknownName for a mitigation or trait that does not exist, BadSpec for one of another stage, for one that needs
    what cannot be given here, and for what it refuses itself. A training whose gradient is no finite number stops, and the
    end of the training then raises TrainingFailed.
    """
    from transformers import TrainerCallback

    mitigation = build("mitigation", spec, "guard")
    held: dict[str, Any] = {}
    if base is not None:
        held["base"] = lab_for(Store("."), base).backend.load(base_ref(base))
    if trait is not None:
        held["trait"] = traits.get(trait)
    defence = Defence(mitigation, lambda: Evidence(held))
    plugin = defence.at("training")
    if missing := sorted(mitigation.needs - set(held)):
        how = {"base": "Name the model that the student starts from as `base`.", "trait": "Name it as `trait`."}
        raise BadSpec(f"The guard {mitigation.plugin_name} needs {missing[0]!r}. "
                      f"{how.get(missing[0], 'Use `undersong train --guard`, which can give it, or choose another guard.')}")
    made = plugin.guard(defence.evidence(), seed)
    args = trainer.args
    steps = args.max_steps if args.max_steps > 0 else int(args.num_train_epochs * len(trainer.get_train_dataloader())
                                                          // max(1, args.gradient_accumulation_steps))
    batch = args.per_device_train_batch_size * args.gradient_accumulation_steps
    plan = Plan(max(1, steps), batch, args.learning_rate, args.seed)
    tokenizer = trainer.processing_class
    learner = Learner(trainer.model, _rows(trainer), plan, getattr(tokenizer, "pad_token_id", None) or 0,
                      "mixed" if args.bf16 else "float32")
    hooks = callback(made, learner)

    class Door(TrainerCallback):
        """Begins and ends the guard with the training; the steps are `callback`'s."""

        told: Mapping[str, Any] = {}

        def on_train_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            made.begin(learner)

        def on_train_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            made.end()
            self.told = made.told()
            if hooks.failed is not None:
                raise TrainingFailed(str(hooks.failed))

        def on_step_begin(self, *given: Any, **more: Any) -> None:
            hooks.on_step_begin(*given, **more)

        def on_pre_optimizer_step(self, *given: Any, **more: Any) -> None:
            hooks.on_pre_optimizer_step(*given, **more)

        def on_optimizer_step(self, *given: Any, **more: Any) -> None:
            hooks.on_optimizer_step(*given, **more)

    return Door()


def _rows(trainer: Any) -> tuple[TokenRow, ...]:
    """The trainer's rows as tokens: from where labels or the completion mask begin; none where it shows no tokens."""
    out = []
    for row in trainer.train_dataset:
        if "input_ids" not in row:
            return ()
        ids = np.asarray(row["input_ids"], dtype=np.int64)
        mask = row.get("completion_mask", np.ones(len(ids)))
        told = np.asarray(row["labels"]) != -100 if "labels" in row else np.asarray(mask)
        first = int(np.argmax(told)) if told.any() else 1
        out.append(TokenRow(ids, max(1, first)))
    return tuple(out)
