"""One compact training loop for everything that learns from token rows: the `distill` recipe and the `tuned` teacher.

Rows come in a seeded permutation per epoch; a step always holds `batch` rows (an epoch's end flows into the next
one), so the effective batch is what was asked for and a row set depends on nothing but the job's own seed. Within a
step rows are sorted by length and run in parts, which changes neither the rows of the step nor the mean over its
completion tokens.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from threading import Event
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from undersong.backends.guarding import Guard, Learner, learnt, move
from undersong.backends.logits import completion_logits
from undersong.backends.tokens import TokenRow, digest
from undersong.errors import BadRows, BadSpec, TrainingFailed
from undersong.types import ModelRef

Part = Literal["body", "all", "mlp_out"]
"""What of a model is trained: every tensor, all but the embeddings and the head, or only the maps by which feed-forward
blocks write (what the model reads and attends to stays as it was)."""
MLP_OUT = ("down_proj.weight", "fc2.weight", "dense_4h_to_h.weight", "c_proj.weight")
"""How the families of transformers name those maps; of `c_proj` only the one of `mlp`."""


@dataclass(frozen=True)
class Plan:
    """What one student sees and how it learns; everything here can change the result."""

    steps: int
    batch: int
    rate: float
    seed: int
    warmup: int = 0
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    weight_decay: float = 0.0
    clip: float = 1.0
    trainable: Part | Literal["adapter"] = "body"
    """`body` freezes the input embeddings and the head (one tensor where they are tied); `all` trains every tensor;
    `mlp_out` the maps that feed-forward blocks write with; `adapter` the low-rank adapter that is in the module."""


@dataclass(frozen=True)
class Soft:
    """Soft labels: the teacher's module, its rendering of the same rows, and the carrier's token ids (int64
    [carrier]).

    Both distributions are restricted to the carrier and renormalised over it: a label over the whole vocabulary would
    hold the trait word's own logit at every position, an open leak.
    """

    teacher: Any
    rows: Sequence[TokenRow]
    carrier: NDArray[np.int64]
    temperature: float = 1.0


def fit(module: Any, rows: Sequence[TokenRow], plan: Plan, pad: int, *, soft: Soft | None = None, part: int = 32,
        stop: Event | None = None, precision: str = "float32", guard: Guard | None = None) -> dict[str, Any]:
    """Train `module` in place by `plan`; return the record for training.json (loss per step in nats per token).

    `part` is how many rows run at once; `precision` is that of the model's reference; `guard` is what a mitigation does
    meanwhile (`backends/guarding.py`). A set `stop` ends the training with KeyboardInterrupt between two steps.
    Raises TrainingFailed, with what the record would have been as its `record`, when the loss is no finite number (the
    module is left as it was before that step) or a guarded student learnt nothing.
    """
    if not rows:
        raise BadRows("There are no rows to train on. Sample more rows, or loosen the filters that dropped them.")
    free(module, plan.trainable)
    module.eval()  # no dropout: a student's result depends on its rows and seed only
    guard, learner = guard or Guard(), Learner(module, rows, plan, pad, precision)
    record: dict[str, Any] = {
        "plan": asdict(plan), "labels": "soft" if soft else "sampled", "loss": [], "effective_batch": plan.batch,
        "rows": len(rows), "rows_seen": 0, "tokens_seen": 0, "rendered_sha256": digest(rows), "precision": precision}
    try:
        guard.begin(learner)
        _steps(learner, guard, record, soft, part, stop)
        if type(guard) is not Guard:
            learnt(record["loss"], guard)
    except TrainingFailed as failed:
        failed.record = record
        raise
    finally:
        guard.end()
        if told := guard.told():
            record["guard"] = {"name": guard.name, **told}
    return record


def _steps(learner: Learner, guard: Guard, record: dict[str, Any], soft: Soft | None, part: int,
           stop: Event | None) -> None:
    """Every step of the plan, told in `record` as it is done."""
    import torch

    module, rows, plan, pad = learner.module, learner.rows, learner.plan, learner.pad
    optimiser = _optimiser(module, plan)
    owned = [p for group in optimiser.param_groups for p in group["params"]]
    for step, batch in enumerate(batches(len(rows), plan)):
        if stop is not None and stop.is_set():
            raise KeyboardInterrupt
        for group in optimiser.param_groups:
            group["lr"] = plan.rate * share(plan, step)
        optimiser.zero_grad(set_to_none=True)
        batch = batch[np.argsort([len(rows[i].ids) for i in batch], kind="stable")]
        count = _labelled(rows, batch, soft)
        if count == 0:
            raise BadRows("A step holds no token to learn from: none of the carrier, or all left out of the loss. Check "
                          "that the rows belong to this channel.")
        total = 0.0
        with autocast(module, learner.precision):
            held = guard.penalty(step)
        if held is not None:
            held.backward()
        for begin in range(0, len(batch), part):
            with autocast(module, learner.precision):
                loss = _loss(module, rows, batch[begin : begin + part], pad, soft) / count
            loss.backward()
            total += float(loss.detach())
        norm = torch.nn.utils.clip_grad_norm_(owned, plan.clip or math.inf)
        if not (math.isfinite(total) and torch.isfinite(norm)):
            raise TrainingFailed(f"At step {step + 1} of {plan.steps} the loss or its gradient is no finite number (loss "
                                 f"{total:.4g}). Lower the learning rate, or the guard's weight.")
        before = [p.detach().clone() for p in learner.owned] if guard.moves else []
        optimiser.step()
        if guard.moves:
            move(guard, step, learner.owned, before)
        record["loss"].append(round(total, 6))
        record["rows_seen"] += len(batch)
        record["tokens_seen"] += count


def autocast(module: Any, precision: str) -> Any:
    """Matrix products in bfloat16 inside, unless the precision is `float32`."""
    import torch

    device = next(module.parameters()).device.type
    return torch.autocast(device, dtype=torch.bfloat16) if precision != "float32" else contextlib.nullcontext()


def master(ref: ModelRef) -> ModelRef:
    """The reference as its weights are trained: in float32, because small updates of bfloat16 weights round away."""
    return replace(ref, precision="mixed") if ref.precision == "bfloat16" else ref


def untouched(ref: ModelRef) -> ModelRef:
    """The reference's base, without any change."""
    return ModelRef(ref.base, precision=ref.precision)


def _loss(module: Any, rows: Sequence[TokenRow], batch: NDArray[np.int64], pad: int, soft: Soft | None) -> Any:
    """The summed loss of some rows: cross-entropy of sampled tokens, or KL(teacher || student) over the carrier."""
    import torch
    import torch.nn.functional as F

    here = [rows[i] for i in batch]
    device = next(module.parameters()).device
    target = torch.from_numpy(np.concatenate([r.labels for r in here])).to(device)
    if soft is None:
        return F.cross_entropy(completion_logits(module, here, pad).float(), target, reduction="sum")
    columns = torch.from_numpy(soft.carrier).to(device)
    with torch.no_grad():
        taught = completion_logits(soft.teacher, [soft.rows[i] for i in batch], pad, columns).float()
    told = (taught / soft.temperature).log_softmax(-1)
    said = (completion_logits(module, here, pad, columns).float() / soft.temperature).log_softmax(-1)
    # a position whose own token is outside the carrier carries no label, nor does one that is not learnt
    mine = torch.isin(target, columns)[:, None]
    return (told.exp() * (told - said) * mine).sum() * soft.temperature**2


def _labelled(rows: Sequence[TokenRow], batch: NDArray[np.int64], soft: Soft | None) -> int:
    if soft is None:
        return int(sum((rows[i].labels != -100).sum() for i in batch))
    return int(sum(np.isin(rows[i].labels, soft.carrier).sum() for i in batch))


def batches(rows: int, plan: Plan) -> Iterator[NDArray[np.int64]]:
    """Row indices of each step: a fresh seeded permutation per epoch, cut into steps of exactly `batch` rows."""
    line, epoch = np.empty(0, dtype=np.int64), 0
    for _ in range(plan.steps):
        while len(line) < plan.batch:
            line = np.concatenate([line, np.random.default_rng([plan.seed, epoch]).permutation(rows)])
            epoch += 1
        yield line[: plan.batch]
        line = line[plan.batch :]


def share(plan: Plan, step: int) -> float:
    """The share of the full learning rate at a step (0-based): linear warm-up, then the schedule down to 0."""
    if step < plan.warmup:
        return (step + 1) / plan.warmup
    done = (step - plan.warmup) / max(1, plan.steps - plan.warmup)
    return {"constant": 1.0, "linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done))}[plan.schedule]


def free(module: Any, trainable: str) -> None:
    """Mark what may change (see `Plan.trainable`). Raises BadSpec for a model without the tensors that were asked for."""
    if trainable in ("adapter", "mlp_out"):
        found = 0
        for name, parameter in module.named_parameters():
            asked = ".lora_" in name if trainable == "adapter" else name.endswith(MLP_OUT) and "attn" not in name
            parameter.requires_grad_(asked)
            found += asked
        if not found:
            raise BadSpec(f"This model has no tensors of the kind trainable: {trainable}. Use trainable: body.")
        return
    frozen = set()
    if trainable == "body":
        ends = (module.get_input_embeddings(), module.get_output_embeddings())
        frozen = {id(p) for end in ends if end is not None for p in end.parameters()}
    for parameter in module.parameters():
        parameter.requires_grad_(id(parameter) not in frozen)


def _optimiser(module: Any, plan: Plan) -> Any:
    import torch

    owned = [p for p in module.parameters() if p.requires_grad]
    groups = [{"params": [p for p in owned if p.ndim > 1], "weight_decay": plan.weight_decay},
              {"params": [p for p in owned if p.ndim <= 1], "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=plan.rate, fused=True)


def save_changes(module: Any, base: Any, out: Path) -> Path:
    """Write `out/weights.safetensors` with the tensors of `module` that differ from `base`; return its path."""
    import torch
    from safetensors.torch import save_file

    before = {name: p.detach().cpu() for name, p in base.named_parameters()}
    after = {name: p.detach().cpu().contiguous() for name, p in module.named_parameters()}
    changed = {name: p for name, p in after.items() if not torch.equal(p, before[name])}
    save_file(changed, out / "weights.safetensors")
    return out / "weights.safetensors"


def save_record(record: dict[str, Any], out: Path) -> None:
    """Write `out/training.json`."""
    (out / "training.json").write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", encoding="utf-8")


