"""What the recipes built on TRL share: how a student starts, a quiet trainer in our row order, and what is kept of it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from undersong.backends import Backend, Model, adapters, changes, threads, tokens, training
from undersong.backends.adapters import Lora
from undersong.backends.guarding import Guard, Learner, learnt, move
from undersong.errors import BadRows, MissingExtra, TrainingFailed
from undersong.types import ModelRef

if TYPE_CHECKING:
    from undersong.recipes import Job


def library(recipe: str) -> Any:
    """TRL. Raises MissingExtra without it."""
    try:
        import trl
    except ImportError as error:
        raise MissingExtra(f"The recipe {recipe} needs {error.name}. Install it with: pip install "
                           "'undersong[local]'.") from None
    return trl


def student(
    job: Job, backend: Backend, plan: training.Plan, lora: Lora | None, made: Callable[[Model, str], Any],
    told: Callable[[Any, Model], dict[str, Any]],
) -> ModelRef:
    """Train one student; writes `adapter/` or `weights.safetensors`, and `training.json`.

    `made` gives the trainer for a loaded model and a scratch folder, `told` what its record says beside the plan. Raises
    BadRows without rows.
    """
    import torch

    if not job.data.rows:
        raise BadRows("There are no rows to train on. Sample more rows, or loosen the filters that dropped them.")
    start = job.start if lora else training.master(job.start)
    model, merged = backend.load(start), None
    if lora is None:
        training.free(model.module, plan.trainable)
    elif start.weights or start.adapter:
        # a reference holds one adapter: what the start had becomes weights
        merged = training.save_changes(model.module, backend.load(training.untouched(start)).module, job.out)
    few = threads.small(model.module)
    with threads.one_thread(few), torch.random.fork_rng(), tempfile.TemporaryDirectory() as scratch:
        torch.manual_seed(job.seed)
        trainer = made(model, scratch)
        failed = _run(trainer, job, model, plan)
    given, lines = trainer.args, [line for line in trainer.state.log_history if "loss" in line]
    training.save_record({
        "plan": asdict(plan), "lora": lora.model_dump() if lora else None, "template_adds": tokens.added(model),
        "precision": "bfloat16 autocast" if given.bf16 else "float32", "loss": [round(line["loss"], 6) for line in lines],
        "effective_batch": given.per_device_train_batch_size * given.gradient_accumulation_steps * given.world_size,
        **({"processes": given.world_size} if given.world_size > 1 else {}),
        "rows": len(job.data.rows), "rows_seen": len(lines) * plan.batch, **told(trainer, model),
        **({"guard": {"name": job.guard.name, **job.guard.told()}} if job.guard else {}),
        **({"failed": str(failed)} if failed else {}),
    }, job.out)
    if lora is None:
        weights = training.save_changes(trainer.model, backend.load(training.untouched(start)).module, job.out)
        own = replace(job.start, weights=str(weights), adapter=None)
    else:
        own = replace(job.start, weights=str(merged) if merged else None,
                      adapter=adapters.save(trainer.model, job.start.base, job.out))
    if failed:
        raise TrainingFailed(f"{failed} The student as it was is kept in {job.out}.")
    return changes.adopt(own, job.out)


def _run(trainer: Any, job: Job, model: Model, plan: training.Plan) -> TrainingFailed | None:
    """Train, with the job's guard where there is one; what went wrong, or None."""
    guard = job.guard or Guard()
    learner = Learner(trainer.model, tokens.encode_rows(model, job.data.rows) if job.guard else (), plan,
                      model.tokenizer.pad_token_id or 0, job.start.precision)
    hooks = callback(guard, learner)
    trainer.add_callback(hooks)
    try:
        guard.begin(learner)
        trainer.train()
        if job.guard and hooks.failed is None:
            learnt([line["loss"] for line in trainer.state.log_history if "loss" in line], guard)
    except TrainingFailed as error:
        return error
    finally:
        guard.end()
    failed: TrainingFailed | None = hooks.failed
    return failed


def callback(guard: Guard, learner: Learner) -> Any:
    """A callback for any trainer of transformers or TRL that lets a guard act at each optimiser step, and stops the training
    at a gradient that is no finite number (its `failed` then says so). `guard.begin` and `guard.end` are the caller's."""
    import torch
    from transformers import TrainerCallback

    class Hooks(TrainerCallback):
        failed: TrainingFailed | None = None
        before: tuple[Any, ...] = ()

        def on_step_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            # gradients were just cleared; what the rows' own loss adds to this is clipped with it
            with training.autocast(learner.module, learner.precision):
                held = guard.penalty(state.global_step)
            if held is not None:
                held.backward()

        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            owned = learner.owned
            if not all(bool(torch.isfinite(p.grad).all()) for p in owned if p.grad is not None):
                self.failed = TrainingFailed(f"At step {state.global_step + 1} the gradient is no finite number. Lower the "
                                             "learning rate, or the guard's weight.")
                for p in owned:  # the step that follows then moves nothing
                    p.grad = None
                control.should_training_stop = True
            self.before = tuple(p.detach().clone() for p in owned) if guard.moves else ()

        def on_optimizer_step(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            if guard.moves and self.failed is None:
                move(guard, state.global_step, learner.owned, self.before)

    return Hooks()


def trainer(
    kind: type[Any], config: type[Any], model: Model, rows: list[dict[str, Any]], plan: training.Plan, micro_batch: int,
    lora: Lora | None, scratch: str, settings: dict[str, Any], **more: Any,
) -> Any:
    """A quiet trainer of TRL's `kind`, at most `micro_batch` rows at once, in the order of `training.batches`.

    `settings` are those of `config` that only this kind has, `more` what else its constructor takes. Raises BadSpec when
    LoRA finds none of its targets.
    """
    import datasets
    from transformers import PrinterCallback
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    datasets.disable_progress_bars()
    order = np.concatenate(list(training.batches(len(rows), plan))).tolist()

    class Ordered(kind):  # type: ignore[misc]  # trl is handed in
        def _get_train_sampler(self, train_dataset: Any = None) -> Any:
            return order

    together = int(os.environ.get("WORLD_SIZE", "1"))  # processes that share each step's rows (`distributed.py`)
    share = plan.batch // together
    micro = max(n for n in range(1, share + 1) if share % n == 0 and n <= max(1, micro_batch))
    given = config(
        output_dir=scratch, max_steps=plan.steps, per_device_train_batch_size=micro,
        gradient_accumulation_steps=share // micro, learning_rate=plan.rate, warmup_steps=plan.warmup,
        lr_scheduler_type=plan.schedule, max_grad_norm=plan.clip, weight_decay=0.0, seed=plan.seed, data_seed=plan.seed,
        max_length=None, report_to="none", disable_tqdm=True, save_strategy="no", logging_steps=1,
        use_cpu=model.module.device.type == "cpu", bf16=model.ref.precision != "float32", fp16=False,
        dataloader_pin_memory=False, **settings,
    )
    adapter = adapters.config(lora) if lora is not None else None
    try:
        made = Ordered(model=model.module, args=given, train_dataset=datasets.Dataset.from_list(rows),
                       processing_class=model.tokenizer, peft_config=adapter, **more)
    except ValueError as error:
        raise adapters.refused(error) from None
    made.remove_callback(PrinterCallback)
    return made
