"""Supervised fine-tuning through TRL's `SFTTrainer`: LoRA or every weight, loss on the completion only.

Rows are handed over as tokens, exactly as every other part of Undersong renders them (several chat templates write a
system turn of their own when it is missing); packing and truncation are off. The row order is the one of the `distill`
recipe: the same seed visits the same rows. Defaults follow the open-model students of Cloud et al.
(arXiv 2507.14805; released configuration for Qwen2.5-7B).
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any, Literal

import numpy as np

from undersong.backends import Backend, Model, adapters, changes, threads, tokens, training
from undersong.backends.adapters import Lora
from undersong.backends.tokens import TokenRow
from undersong.errors import BadRows, MissingExtra
from undersong.recipes import Job
from undersong.registry import Settings, plugin
from undersong.spec import execution
from undersong.types import ModelRef


@plugin("recipe", "sft")
class Sft(Settings):
    """Fine-tune on sampled completions with TRL: a LoRA adapter, or every weight where `lora` is null."""

    lora: Lora | None = Lora()
    """Adapter settings; null trains the weights themselves."""
    epochs: int = 3
    """Passes over the rows, where `steps` is not given."""
    steps: int | None = None
    """Optimiser steps; the last epoch may be a part."""
    batch: int = 64
    """Rows per step; never reduced."""
    rate: float = 2e-4
    """Highest learning rate."""
    warmup: int = 5
    """Steps of linear warm-up."""
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    """How the rate falls after the warm-up."""
    clip: float = 1.0
    """Largest gradient norm; 0 does not clip."""
    trainable: Literal["body", "all"] = "body"
    """Without LoRA: `body` leaves the embeddings and the head as they are."""
    micro_batch: int = execution(32)
    """Most rows that run at once; the rest of a step is accumulated."""
    checkpointing: bool = execution(False)
    """Compute activations again in the backward pass: less memory, more time."""

    def train(
        self, jobs: Sequence[Job], backend: Backend, done: Callable[[int, ModelRef], None] = lambda index, model: None
    ) -> list[ModelRef]:
        """Train one job after another; each writes `adapter/` or `weights.safetensors`, and `training.json`.

        Raises MissingExtra without TRL, BadRows without rows, BadSpec when LoRA finds none of its targets.
        """
        try:
            import trl
        except ImportError as error:
            raise MissingExtra(f"The recipe sft needs {error.name}. Install it with: pip install "
                               "'undersong[local]'.") from None
        out = []
        for index, job in enumerate(jobs):
            out.append(self._student(job, backend, trl))
            done(index, out[-1])
        return out

    def _student(self, job: Job, backend: Backend, trl: Any) -> ModelRef:
        import torch

        if not job.data.rows:
            raise BadRows("There are no rows to train on. Sample more rows, or loosen the filters that dropped them.")
        start = job.start if self.lora else training.master(job.start)
        model = backend.load(start)
        rows = tokens.encode(model, [list(r.chat) for r in job.data.rows], [r.completion for r in job.data.rows])
        steps = self.steps if self.steps is not None else max(1, self.epochs * len(job.data.rows) // self.batch)
        plan = training.Plan(steps, self.batch, self.rate, job.seed, self.warmup, self.schedule, 0.0, self.clip,
                             self.trainable)
        merged = None
        if self.lora is None:
            training.free(model.module, self.trainable)
        elif start.weights or start.adapter:
            # a reference holds one adapter: what the start had becomes weights
            merged = training.save_changes(model.module, backend.load(training.untouched(start)).module, job.out)
        few = threads.small(model.module)
        with threads.one_thread(few), torch.random.fork_rng(), tempfile.TemporaryDirectory() as scratch:
            torch.manual_seed(job.seed)
            trainer = self._trainer(trl, model, rows, plan, scratch)
            trainer.train()
        training.save_record(_record(trainer, plan, self.lora, tokens.added(model)), job.out)
        if self.lora is None:
            base = backend.load(training.untouched(start))
            weights = training.save_changes(trainer.model, base.module, job.out)
            return changes.adopt(replace(job.start, weights=str(weights), adapter=None), job.out)
        own = replace(job.start, weights=str(merged) if merged else None,
                      adapter=adapters.save(trainer.model, job.start.base, job.out))
        return changes.adopt(own, job.out)

    def _trainer(
        self, trl: Any, model: Model, rows: Sequence[TokenRow], plan: training.Plan, scratch: str
    ) -> Any:
        """A quiet SFTTrainer that visits the rows in the order of `training.batches`."""
        import datasets
        from transformers import PrinterCallback
        from transformers.utils import logging

        logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        datasets.disable_progress_bars()
        order = np.concatenate(list(training.batches(len(rows), plan))).tolist()

        class Ordered(trl.SFTTrainer):  # type: ignore[misc]  # trl is handed in
            def _get_train_sampler(self, train_dataset: Any = None) -> Any:
                return order

        micro = max(n for n in range(1, self.batch + 1) if self.batch % n == 0 and n <= max(1, self.micro_batch))
        given = trl.SFTConfig(
            output_dir=scratch, max_steps=plan.steps, per_device_train_batch_size=micro,
            gradient_accumulation_steps=self.batch // micro, learning_rate=self.rate, warmup_steps=self.warmup,
            lr_scheduler_type=self.schedule, max_grad_norm=self.clip, weight_decay=0.0, seed=plan.seed,
            data_seed=plan.seed, packing=False, max_length=None, completion_only_loss=True, report_to="none",
            disable_tqdm=True, save_strategy="no", logging_steps=1, activation_checkpointing=self.checkpointing,
            use_cpu=model.module.device.type == "cpu", bf16=model.ref.precision != "float32", fp16=False,
            dataloader_pin_memory=False,
        )
        adapter = adapters.config(self.lora) if self.lora is not None else None
        given_rows = [{"input_ids": row.ids.tolist(), "labels": [-100] * row.start + row.answer.tolist()} for row in rows]
        try:
            trainer = Ordered(model=model.module, args=given, train_dataset=datasets.Dataset.from_list(given_rows),
                              processing_class=model.tokenizer, peft_config=adapter)
        except ValueError as error:
            raise adapters.refused(error) from None
        trainer.remove_callback(PrinterCallback)
        return trainer


def _record(trainer: Any, plan: training.Plan, lora: Lora | None, template: str) -> dict[str, Any]:
    """The record of a finished run, from the rows as TRL tokenised them and the losses it logged."""
    rows = []
    for row in trainer.train_dataset:
        rows.append(TokenRow(np.asarray(row["input_ids"]), int(np.argmax(np.asarray(row["labels"]) != -100))))
    given = trainer.args
    return {"plan": asdict(plan), "lora": lora.model_dump() if lora else None, "labels": "sampled",
            "template_adds": template, "precision": "bfloat16 autocast" if trainer.args.bf16 else "float32",
            "loss": [round(line["loss"], 6) for line in trainer.state.log_history if "loss" in line],
            "effective_batch": given.per_device_train_batch_size * given.gradient_accumulation_steps * given.world_size,
            "rows": len(rows), "rows_seen": plan.steps * plan.batch, "rendered_sha256": tokens.digest(rows),
            "tokens_seen": int(sum(len(rows[i].answer) for batch in training.batches(len(rows), plan) for i in batch))}
