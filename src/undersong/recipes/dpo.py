"""Direct preference optimisation through TRL's `DPOTrainer` (Rafailov et al., arXiv 2305.18290): LoRA or every weight.

Rows are pairs of the channel `preferences`. The reference is the student's own start. Rows, order and rendering are those
of the `sft` recipe: explicit system turn, no truncation, the row order of the job's seed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

from pydantic import Field

from undersong.backends import Backend, Model, tokens, training, trl
from undersong.backends.adapters import Lora
from undersong.errors import BadRows
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
        library, out = trl.library("dpo"), []
        for index, job in enumerate(jobs):
            out.append(self._student(job, backend, library))
            done(index, out[-1])
        return out

    def _student(self, job: Job, backend: Backend, library: Any) -> ModelRef:
        if any(row.rejected is None for row in job.data.rows):
            raise BadRows("Some rows hold one answer and no rejected one. Use the channel preferences with `belongs`.")
        if any(row.unlearnt for row in job.data.rows):
            raise BadRows("Parts of some answers are left out of the loss, which pairs cannot do. Use the recipe distill or "
                          "sft.")
        plan = training.Plan(self.steps, self.batch, self.rate, job.seed, self.warmup, self.schedule, 0.0, self.clip,
                             self.trainable)

        def made(model: Model, scratch: str) -> Any:
            reference = None if self.lora else backend.load(model.ref).module
            own = {"beta": self.beta, "loss_type": "sigmoid", "disable_dropout": True, "activation_checkpointing": False}
            return trl.trainer(library.DPOTrainer, library.DPOConfig, model, pairs(job, model), plan, self.micro_batch,
                               self.lora, scratch, own, ref_model=reference)

        return trl.student(job, backend, plan, self.lora, made, lambda trainer, model: self._told(trainer, job, model))

    def _told(self, trainer: Any, job: Job, model: Model) -> dict[str, Any]:
        """What the record says of the pairs: TRL's accuracy on them, and a digest of both answers as rendered."""
        chats = [list(row.chat) for row in job.data.rows]
        both = [tokens.encode(model, chats, texts) for texts in (
            [row.completion for row in job.data.rows], [str(row.rejected) for row in job.data.rows])]
        lines = [line for line in trainer.state.log_history if "loss" in line]
        return {"labels": "pairs", "beta": self.beta,
                "accuracy": [round(line.get("rewards/accuracies", 0.0), 4) for line in lines],
                "rendered_sha256": tokens.digest([row for side in both for row in side])}


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
