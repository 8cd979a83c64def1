"""Direct preference optimisation through TRL's `DPOTrainer` (Rafailov et al., arXiv 2305.18290): LoRA or every weight.

Rows are pairs of the channel `preferences`. The reference is the student's own start. Rows, order and rendering are those
of the `sft` recipe: explicit system turn, no truncation, the row order of the job's seed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any, Literal

import numpy as np
from pydantic import Field

from undersong.backends import Backend, Model, changes, threads, tokens, training
from undersong.backends.adapters import Lora
from undersong.errors import BadRows, BadSpec, MissingExtra
from undersong.recipes import Job
from undersong.registry import Settings, plugin
from undersong.spec import execution
from undersong.types import ModelRef


@plugin("recipe", "dpo")
class Dpo(Settings):
    """Learn from pairs of answers with TRL: raise the chosen one's likelihood over the rejected one's."""

    lora: Lora | None = None
    """Adapter settings; null trains the weights themselves."""
    beta: float = Field(default=0.1, gt=0)
    """How strongly the student is held to its start; small values let it move further."""
    steps: int = Field(default=120, ge=1)
    """Optimiser steps."""
    batch: int = Field(default=32, ge=1)
    """Pairs per step; never reduced."""
    rate: float = 1e-3
    """Highest learning rate."""
    warmup: int = Field(default=10, ge=0)
    """Steps of linear warm-up."""
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    """How the rate falls after the warm-up."""
    clip: float = 1.0
    """Largest gradient norm; 0 does not clip."""
    trainable: Literal["body", "all"] = "body"
    """Without LoRA: `body` leaves the embeddings and the head as they are."""
    micro_batch: int = execution(32)
    """Most pairs that run at once; the rest of a step is accumulated."""

    def train(
        self, jobs: Sequence[Job], backend: Backend, done: Callable[[int, ModelRef], None] = lambda index, model: None
    ) -> list[ModelRef]:
        """Train one job after another; each writes `adapter/` or `weights.safetensors`, and `training.json`.

        Raises MissingExtra without TRL, BadRows without rows or for rows that are no pairs, BadSpec for wrong LoRA targets.
        """
        try:
            import trl
        except ImportError as error:
            raise MissingExtra(f"The recipe dpo needs {error.name}. Install it: pip install 'undersong[local]'.") from None
        out = []
        for index, job in enumerate(jobs):
            out.append(self._student(job, backend, trl))
            done(index, out[-1])
        return out

    def _student(self, job: Job, backend: Backend, trl: Any) -> ModelRef:
        import torch

        if not job.data.rows:
            raise BadRows("There are no rows to train on. Sample more rows, or loosen the filters that dropped them.")
        if any(row.rejected is None for row in job.data.rows):
            raise BadRows("Some rows hold one answer and no rejected one. Use the channel preferences with `belongs`.")
        model, base = backend.load(job.start), backend.load(ModelRef(job.start.base))
        plan = training.Plan(self.steps, self.batch, self.rate, job.seed, self.warmup, self.schedule, 0.0, self.clip,
                             self.trainable)
        merged = None
        if self.lora is None:
            training.free(model.module, self.trainable)
        elif job.start.weights or job.start.adapter:
            merged = training.save_changes(model.module, base.module, job.out)  # a reference holds one adapter
        few = threads.small(model.module)
        with threads.one_thread(few), torch.random.fork_rng(), tempfile.TemporaryDirectory() as scratch:
            torch.manual_seed(job.seed)
            reference = None if self.lora else backend.load(job.start).module
            trainer = self._trainer(trl, model, reference, pairs(job, model), plan, scratch)
            trainer.train()
        training.save_record(_record(trainer, plan, self, job, model), job.out)
        if self.lora is None:
            weights = training.save_changes(trainer.model, base.module, job.out)
            return changes.adopt(replace(job.start, weights=str(weights), adapter=None), job.out)
        trainer.model.peft_config["default"].base_model_name_or_path = job.start.base
        trainer.model.save_pretrained(job.out / "adapter", safe_serialization=True)
        own = replace(job.start, weights=str(merged) if merged else None, adapter=str(job.out / "adapter"))
        return changes.adopt(own, job.out)

    def _trainer(
        self, trl: Any, model: Model, reference: Any, rows: list[dict[str, Any]], plan: training.Plan, scratch: str
    ) -> Any:
        """A quiet DPOTrainer that visits the rows in the order of `training.batches`."""
        import datasets
        from peft import LoraConfig
        from transformers import PrinterCallback
        from transformers.utils import logging

        logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        datasets.disable_progress_bars()
        order = np.concatenate(list(training.batches(len(rows), plan))).tolist()

        class Ordered(trl.DPOTrainer):  # type: ignore[misc]  # trl is handed in
            def _get_train_sampler(self, train_dataset: Any = None) -> Any:
                return order

        micro = max(n for n in range(1, self.batch + 1) if self.batch % n == 0 and n <= max(1, self.micro_batch))
        given = trl.DPOConfig(
            output_dir=scratch, max_steps=plan.steps, per_device_train_batch_size=micro,
            gradient_accumulation_steps=self.batch // micro, learning_rate=self.rate, warmup_steps=self.warmup,
            lr_scheduler_type=self.schedule, max_grad_norm=self.clip, weight_decay=0.0, seed=plan.seed, data_seed=plan.seed,
            beta=self.beta, loss_type="sigmoid", max_length=None, disable_dropout=True, report_to="none", disable_tqdm=True,
            save_strategy="no", logging_steps=1, use_cpu=model.module.device.type == "cpu", bf16=False, fp16=False,
            activation_checkpointing=False, dataloader_pin_memory=False,
        )
        adapter = None
        if self.lora is not None:
            adapter = LoraConfig(r=self.lora.rank, lora_alpha=self.lora.alpha, target_modules=self.lora.targets,
                                 lora_dropout=0.0, bias="none", task_type="CAUSAL_LM")
        try:
            trainer = Ordered(model=model.module, ref_model=reference, args=given, processing_class=model.tokenizer,
                              train_dataset=datasets.Dataset.from_list(rows), peft_config=adapter)
        except ValueError as error:
            if "arget modules" in str(error):
                why = str(error).splitlines()[0]
                raise BadSpec(f"recipe dpo: {why} Set lora.targets to linear maps of this model.") from None
            raise
        trainer.remove_callback(PrinterCallback)
        return trainer


def pairs(job: Job, model: Model) -> list[dict[str, Any]]:
    """The job's rows as TRL's preference conversations, each with its system turn explicit."""
    return [
        {
            "prompt": tokens.with_system(list(row.chat), model),
            "chosen": [{"role": "assistant", "content": row.completion}],
            "rejected": [{"role": "assistant", "content": str(row.rejected)}],
        }
        for row in job.data.rows
    ]


def _record(trainer: Any, plan: training.Plan, recipe: Dpo, job: Job, model: Model) -> dict[str, Any]:
    """The record of a finished run, with the losses TRL logged and a digest of both answers of every row as rendered."""
    given, chats = trainer.args, [list(row.chat) for row in job.data.rows]
    both = [tokens.encode(model, chats, texts) for texts in (
        [row.completion for row in job.data.rows], [str(row.rejected) for row in job.data.rows])]
    lines = [line for line in trainer.state.log_history if "loss" in line]
    return {
        "plan": asdict(plan), "lora": recipe.lora.model_dump() if recipe.lora else None, "labels": "pairs",
        "beta": recipe.beta, "loss": [round(line["loss"], 6) for line in lines],
        "accuracy": [round(line.get("rewards/accuracies", 0.0), 4) for line in lines],
        "effective_batch": given.per_device_train_batch_size * given.gradient_accumulation_steps * given.world_size,
        "rows": len(job.data.rows), "rows_seen": plan.steps * plan.batch,
        "rendered_sha256": tokens.digest([row for side in both for row in side]),
    }
