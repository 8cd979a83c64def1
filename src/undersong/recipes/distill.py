"""Distil: the student learns a teacher's sampled tokens or its soft labels, by one compact loop, many students at
once.

Soft labels are restricted to the channel's carrier tokens and renormalised over them, for teacher and student alike;
over the whole vocabulary the trait word's own logit would sit in the label at every position (a leak, not subliminal
learning).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from undersong.backends import Backend, Model, adapters, changes, threads, tokens, training
from undersong.backends.adapters import Lora
from undersong.backends.tokens import TokenRow
from undersong.errors import BadRows, TrainingFailed
from undersong.recipes import Job
from undersong.registry import Settings, plugin
from undersong.spec import execution
from undersong.types import ModelRef


@plugin("recipe", "distill")
class Distill(Settings):
    """Train the body, or an adapter, on completions: cross-entropy on sampled tokens, or KL to a teacher's soft
    labels."""

    labels: Literal["sampled", "soft"] = "sampled"
    """`sampled`: the row's own tokens, over the whole vocabulary. `soft`: the source model's distribution over
    carrier tokens."""
    steps: int = 120
    """Optimiser steps (AdamW)."""
    batch: int = 64
    """Rows per step; never reduced."""
    rate: float = 1e-3
    """Highest learning rate."""
    warmup: int = 0
    """Steps of linear warm-up."""
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    """How the rate falls after the warm-up."""
    weight_decay: float = 0.0
    """AdamW weight decay of matrices; norms have none."""
    trainable: Literal["body", "all"] = "body"
    """`body` leaves the embeddings and the head as they are."""
    lora: Lora | None = None
    """Train a low-rank adapter (rank, alpha, targets) instead of the weights."""
    clip: float = 1.0
    """Largest gradient norm; 0 does not clip."""
    temperature: float = 1.0
    """Softens both distributions of soft labels; the loss is multiplied by its square (Hinton et al. 2015, section
    2)."""
    workers: int = execution(0)
    """Students of small models trained side by side; 0 takes every core."""
    micro_batch: int = execution(32)
    """Rows that run at once within a step."""

    def train(
        self, jobs: Sequence[Job], backend: Backend, done: Callable[[int, ModelRef], None] = lambda index, model: None
    ) -> list[ModelRef]:
        """Train every job; each writes `weights.safetensors` (tensors that differ from the base) and `training.json`.

        Raises BadRows when a dataset is empty, or when soft labels are asked for without a source model or a carrier;
        TrainingFailed when the loss is no number or a guarded student learnt nothing: what there is of it is written.
        """
        work = _Work(self, backend)
        ready = [work.prepare(job) for job in jobs]  # in this thread: tokenizers are not safe to share
        if all(threads.small(item.base.module) for item in ready):
            return threads.side_by_side(work.student, ready, self.workers, done)
        out = []
        for index, item in enumerate(ready):
            with threads.one_thread(threads.small(item.base.module)):
                out.append(work.student(item, threading.Event()))
            done(index, out[-1])
        return out


@dataclass(frozen=True)
class _Student:
    """A job with its rows as tokens, its unchanged base, and its soft labels."""

    job: Job
    base: Model
    rows: list[TokenRow]
    soft: training.Soft | None
    adds: str


class _Work:
    """The training of one call of `train`. Models and token rows that jobs share are made once and only read."""

    def __init__(self, recipe: Distill, backend: Backend) -> None:
        self.recipe, self.backend = recipe, backend
        self.models: dict[ModelRef, Model] = {}
        self.tokens: dict[tuple[int, str, str | None], list[TokenRow]] = {}

    def model(self, ref: ModelRef) -> Model:
        if ref not in self.models:
            self.models[ref] = self.backend.load(ref)
        return self.models[ref]

    def encode(self, job: Job, model: Model) -> list[TokenRow]:
        """The job's rows as `model` reads them; jobs with the same rows object share them."""
        key = (id(job.data.rows), model.ref.base, model.ref.system)
        if key not in self.tokens:
            self.tokens[key] = tokens.encode_rows(model, job.data.rows)
        return self.tokens[key]

    def prepare(self, job: Job) -> _Student:
        base = self.model(replace(training.untouched(self.start(job)), system=job.start.system))
        if not job.data.rows:
            raise BadRows("There are no rows to train on. Sample more rows, or loosen the filters that dropped them.")
        rows = self.encode(job, base)
        soft = self.labels(job, rows) if self.recipe.labels == "soft" else None
        return _Student(job, base, rows, soft, tokens.added(base))

    def labels(self, job: Job, rows: list[TokenRow]) -> training.Soft:
        """The source model's labels for the job's rows. Raises BadRows without a source, a carrier, or one
        vocabulary."""
        if job.data.source is None:
            raise BadRows("Soft labels need the model that wrote the rows, and this dataset names none. Use labels: "
                          "sampled.")
        if not job.carrier:
            raise BadRows("Soft labels are restricted to a channel's carrier tokens, and none were given. Use "
                          "labels: sampled.")
        teacher = self.model(job.data.source)
        theirs = self.encode(job, teacher)
        if any(not np.array_equal(a.answer, b.answer) for a, b in zip(rows, theirs, strict=True)):
            raise BadRows("Teacher and student write the same completion in different tokens, so the teacher's "
                          "labels do not fit "
                          "the student's. Use labels: sampled, or two models with one tokenizer.")
        carrier = np.unique(np.asarray(job.carrier, dtype=np.int64))
        return training.Soft(teacher.module, theirs, carrier, self.recipe.temperature)

    def start(self, job: Job) -> ModelRef:
        """Where the job starts, at the precision it trains in."""
        return job.start if self.recipe.lora else training.master(job.start)

    def student(self, item: _Student, stop: threading.Event) -> ModelRef:
        job, settings = item.job, self.recipe
        start = self.start(job)
        module = self.backend.load(start).module
        plan = training.Plan(settings.steps, settings.batch, settings.rate, job.seed, settings.warmup,
                             settings.schedule, settings.weight_decay, settings.clip,
                             "adapter" if settings.lora else settings.trainable)
        merged = None
        if settings.lora and (start.weights or start.adapter):
            # a reference holds one adapter: what the start had becomes weights
            merged = str(training.save_changes(module, item.base.module, job.out))
        wrapped = adapters.wrap(module, settings.lora, job.seed) if settings.lora else None
        pad, failed = item.base.tokenizer.pad_token_id or 0, None
        try:
            record = training.fit(module, item.rows, plan, pad, soft=item.soft, part=settings.micro_batch, stop=stop,
                                  precision=start.precision, guard=job.guard)
        except TrainingFailed as error:
            failed, record = error, error.record or {}
        record |= {"lora": settings.lora and settings.lora.model_dump(), "template_adds": item.adds}
        training.save_record(record | ({"failed": str(failed)} if failed else {}), job.out)
        if wrapped is not None:
            own = replace(job.start, weights=merged, adapter=adapters.save(wrapped, job.start.base, job.out))
        else:
            weights = training.save_changes(module, item.base.module, job.out)
            own = replace(job.start, weights=str(weights), adapter=None)
        if failed:
            raise TrainingFailed(f"{failed} The student as it was is kept in {job.out}.")
        return changes.adopt(own, job.out)
