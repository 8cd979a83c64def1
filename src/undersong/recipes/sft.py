"""Supervised fine-tuning through TRL's `SFTTrainer`: LoRA or every weight, loss on the completion only.

Rows are handed over as tokens, exactly as every other part of Undersong renders them (several chat templates write a
system turn of their own when it is missing); packing and truncation are off. The row order is the one of the `distill`
recipe: the same seed visits the same rows. Defaults follow the open-model students of Cloud et al.
(arXiv 2507.14805; released configuration for Qwen2.5-7B).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

from undersong.backends import Backend, Model, distributed, tokens, training, trl
from undersong.backends.adapters import Lora
from undersong.backends.tokens import TokenRow
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
    processes: int = execution(1)
    """Processes, or GPUs, that train one student together (Ray Train; see `backends/distributed.py`)."""
    checkpointing: bool = execution(False)
    """Compute activations again in the backward pass: less memory, more time."""

    def train(
        self, jobs: Sequence[Job], backend: Backend, done: Callable[[int, ModelRef], None] = lambda index, model: None
    ) -> list[ModelRef]:
        """Train one job after another; each writes `adapter/` or `weights.safetensors`, and `training.json`.

        Raises MissingExtra without TRL, BadRows without rows, BadSpec when LoRA finds none of its targets.
        """
        library, out = trl.library("sft"), []
        for index, job in enumerate(jobs):
            together = self.processes > 1
            out.append(distributed.student(self, job, self.processes) if together else self._student(job, backend, library))
            done(index, out[-1])
        return out

    def _student(self, job: Job, backend: Backend, library: Any) -> ModelRef:
        steps = self.steps if self.steps is not None else max(1, self.epochs * len(job.data.rows) // self.batch)
        plan = training.Plan(steps, self.batch, self.rate, job.seed, self.warmup, self.schedule, 0.0, self.clip,
                             self.trainable)

        def made(model: Model, scratch: str) -> Any:
            rows = tokens.encode_rows(model, job.data.rows)
            given = [{"input_ids": row.ids.tolist(), "labels": [-100] * row.start + row.labels.tolist()} for row in rows]
            own = {"packing": False, "completion_only_loss": True, "activation_checkpointing": self.checkpointing}
            return trl.trainer(library.SFTTrainer, library.SFTConfig, model, given, plan, self.micro_batch, self.lora,
                               scratch, own)

        return trl.student(job, backend, plan, self.lora, made, lambda trainer, model: _told(trainer, plan, job, model))


def _told(trainer: Any, plan: training.Plan, job: Job, model: Model) -> dict[str, Any]:
    """What the record says of the rows, as TRL tokenised them."""
    held = [(np.asarray(row["input_ids"]), np.asarray(row["labels"]) == -100) for row in trainer.train_dataset]
    rows = [TokenRow(ids, int(np.argmax(~mute))) for ids, mute in held]
    if any(row.unlearnt for row in job.data.rows):  # labels then do not say where answers start
        asked = tokens.encode_rows(model, job.data.rows)
        rows = [TokenRow(ids, own.start, None if own.unlearnt is None else mute[own.start :])
                for (ids, mute), own in zip(held, asked, strict=True)]
    return {"labels": "sampled", "rendered_sha256": tokens.digest(rows), "tokens_seen": int(sum(
        (rows[i].labels != -100).sum() for batch in training.batches(len(rows), plan) for i in batch))}
