"""The `tinker` recipe: LoRA students of hosted open models, through the `tinker` SDK or a server that speaks its protocol.

The base is named as the server offers it for sampling, `inspect/openai-api/tinker-oai/Qwen/Qwen3-8B`: teacher, base and
students are then sampled the same way (TINKER_OAI_BASE_URL and TINKER_OAI_API_KEY name the OpenAI-compatible side,
TINKER_API_KEY is the SDK's). Rows, their order, the rate and the loss on completions only are those of `sft`. What
stands behind a name at the service cannot be verified here: treat its lineage as declared, not tested.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any, Literal

import numpy as np

from undersong.backends import Backend, tokens, training
from undersong.backends.tokens import TokenRow
from undersong.errors import BadRows, BadSpec, MissingExtra, ServerFailed
from undersong.recipes import Job, unguarded
from undersong.registry import Settings, plugin
from undersong.types import Chat, ModelRef


@plugin("recipe", "tinker")
class Tinker(Settings):
    """Fine-tune a hosted open model on sampled completions with a LoRA adapter; the weights stay at the service."""

    rank: int = 8
    """Rank of the adapter."""
    epochs: int = 3
    """Passes over the rows, where `steps` is not given."""
    steps: int | None = None
    """Optimiser steps; the last epoch may be a part."""
    batch: int = 64
    """Rows per step."""
    rate: float = 2e-4
    """Highest learning rate."""
    warmup: int = 5
    """Steps of linear warm-up."""
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    """How the rate falls after the warm-up."""
    clip: float = 1.0
    """Largest gradient norm; 0 does not clip."""
    provider: str = "openai-api/tinker-oai"
    """The provider of Inspect through which the service's models are sampled."""

    def train(
        self, jobs: Sequence[Job], backend: Backend, done: Callable[[int, ModelRef], None] = lambda index, model: None
    ) -> list[ModelRef]:
        """Train one job after another; each writes `training.json` with the path of its weights at the service.

        Raises MissingExtra without the SDK, BadSpec for a base that is not at the service, ServerFailed when a call
        fails there: the students before it are kept, the same command trains the rest.
        """
        unguarded("tinker", jobs)
        try:
            import tinker
        except ImportError as error:
            raise MissingExtra(f"The recipe tinker needs {error.name}. Install it with: pip install tinker.") from None
        prefix, out = f"inspect/{self.provider}/", []
        for index, job in enumerate(jobs):
            if not job.start.base.startswith(prefix) or job.start.weights or job.start.adapter:
                raise BadSpec(f"The recipe tinker trains bases called {prefix}..., not {job.start.base!r}. Change `base`, "
                              "or use the recipe `sft` for a local model.")
            if not job.data.rows:
                raise BadRows("There are no rows to train on. Sample more rows, or loosen the filters that dropped them.")
            try:
                path = self._student(job, job.start.base.removeprefix(prefix), tinker)
            except tinker.TinkerError as error:
                raise ServerFailed(f"The service failed while training student {index + 1} of {len(jobs)} "
                                   f"({type(error).__name__}: {error}). Run the same command again.") from error
            out.append(replace(job.start, base=f"{prefix}{path}", fingerprint=""))
            done(index, out[-1])
        return out

    def _student(self, job: Job, name: str, tinker: Any) -> str:
        """Train one student; the path of its weights at the service."""
        service = tinker.ServiceClient()
        client = service.create_lora_training_client(base_model=name, rank=self.rank, seed=job.seed).result()
        model: Any = Remote(job.start, client.get_tokenizer())
        rows = tokens.encode_rows(model, job.data.rows)
        steps = self.steps if self.steps is not None else max(1, self.epochs * len(rows) // self.batch)
        plan = training.Plan(steps, self.batch, self.rate, job.seed, self.warmup, self.schedule, 0.0, self.clip)
        data, losses = [datum(row, tinker.types) for row in rows], []
        for step, batch in enumerate(training.batches(len(rows), plan)):
            adam = tinker.types.AdamParams(learning_rate=self.rate * training.share(plan, step), grad_clip_norm=self.clip)
            # both are queued before either is waited for: the service then spends one round on the step, not two
            forward = client.forward_backward([data[i] for i in batch], "cross_entropy")
            update = client.optim_step(adam)
            losses.append(loss(forward.result(), [rows[i] for i in batch]))
            update.result()
        path = str(client.save_weights_for_sampler(name=job.out.name).result().path)
        training.save_record({"plan": asdict(plan), "rank": self.rank, "base": name, "weights": path, "loss": losses,
                              "rows": len(rows), "rows_seen": plan.steps * plan.batch,
                              "rendered_sha256": tokens.digest(rows)}, job.out)
        return path


class Remote:
    """A model whose tokenizer is here and whose weights are not: enough to write rows as tokens."""

    capabilities: frozenset[str] = frozenset()
    module = None

    def __init__(self, ref: ModelRef, tokenizer: Any) -> None:
        self.ref, self.tokenizer = ref, tokenizer

    def render(self, chat: Chat) -> str:
        """The chat as the tokenizer's own template writes it, the system turn explicit, ending where the answer begins.

        Raises BadRows for a template that leaves the system turn out: that slot is the treatment here.
        """
        model: Any = self
        turns = tokens.with_system(chat, model)
        text = str(self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
        if turns[0]["content"].strip() not in text:
            raise BadRows(f"The chat template of {self.ref.base} leaves the system turn out. Use a model whose template "
                          "writes it.")
        return text


def datum(row: TokenRow, types: Any) -> Any:
    """A row as the SDK takes it: each token predicts the next, and only the completion's tokens weigh."""
    weights = np.zeros(len(row.ids) - 1, dtype=np.float32)
    weights[row.start - 1 :] = row.labels != -100
    inputs = {"target_tokens": row.ids[1:].astype(np.int64), "weights": weights}
    return types.Datum(model_input=types.ModelInput.from_ints([int(i) for i in row.ids[:-1]]), loss_fn_inputs=inputs)


def loss(output: Any, rows: Sequence[TokenRow]) -> float:
    """The mean loss (nats per learnt completion token) of a step, from the log-probabilities the service gives back."""
    total = 0.0
    for row, given in zip(rows, output.loss_fn_outputs, strict=True):
        learnt = row.labels != -100
        total -= float(np.asarray(given["logprobs"].to_numpy(), dtype=np.float64)[row.start - 1 :][learnt].sum())
    return round(total / max(1, sum(int((row.labels != -100).sum()) for row in rows)), 6)
