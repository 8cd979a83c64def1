"""One compact training loop for everything that learns from token rows: the `distill` recipe and the `tuned` teacher.

Rows come in a seeded permutation per epoch; a step always holds `batch` rows (an epoch's end flows into the next one), so the
effective batch is what was asked for and a row set depends on nothing but the job's own seed. Within a step rows are sorted
by length and run in parts, which changes neither the rows of the step nor the mean over its completion tokens.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Event
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from undersong.backends import Model, llama
from undersong.backends.llama import TokenRow
from undersong.errors import BadRows
from undersong.types import Chat

SMALL = 20_000_000
"""Models below this many parameters run on one thread each, several side by side; larger ones take every thread."""
T = TypeVar("T")
R = TypeVar("R")


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
    trainable: Literal["body", "all"] = "body"
    """`body` freezes the input embeddings and the head (one tensor where they are tied); `all` trains every tensor."""


@dataclass(frozen=True)
class Soft:
    """Soft labels: the teacher's module, its rendering of the same rows, and the carrier's token ids (int64 [carrier]).

    Both distributions are restricted to the carrier and renormalised over it: a label over the whole vocabulary would hold the
    trait word's own logit at every position, an open leak.
    """

    teacher: Any
    rows: Sequence[TokenRow]
    carrier: NDArray[np.int64]
    temperature: float = 1.0


def encode(model: Model, chats: Sequence[Chat], answers: Sequence[str]) -> list[TokenRow]:
    """Chats and answers as token rows: the model's own rendering, the completion ending with the end of turn.

    Raises BadRows when the chat template does not continue a prompt with its answer.
    """
    tokenizer, prompts, texts = model.tokenizer, [], []
    for chat, answer in zip(chats, answers, strict=True):
        prompt = model.render(chat)
        turns = [*with_system(chat, model), {"role": "assistant", "content": answer}]
        text = str(tokenizer.apply_chat_template(turns, tokenize=False))
        if not text.startswith(prompt):
            raise BadRows(f"The chat template of {model.ref.name} writes a finished chat otherwise than a prompt and its answer, "
                          "so the completion cannot be told from the prompt. Use a model whose template only appends turns.")
        prompts.append(prompt)
        texts.append(text)
    starts = [len(ids) for ids in token_ids(tokenizer, prompts)]
    ends = set(end_ids(model))
    return [TokenRow(_cut(ids, start, ends), start) for ids, start in zip(token_ids(tokenizer, texts), starts, strict=True)]


def with_system(chat: Chat, model: Model) -> Chat:
    """The chat with its system turn explicit: its own, else the model's, else the neutral one."""
    from undersong.types import NEUTRAL

    if chat and chat[0]["role"] == "system":
        return list(chat)
    system = NEUTRAL if model.ref.system is None else model.ref.system
    return [{"role": "system", "content": system}, *chat]


def token_ids(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of rendered texts; the template has written every special token already."""
    if not texts:
        return []
    ids: list[list[int]] = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    return ids


def end_ids(model: Model) -> list[int]:
    """The ids that end an assistant's turn: the tokenizer's and the generation configuration's."""
    given = getattr(getattr(model.module, "generation_config", None), "eos_token_id", None)
    found = {model.tokenizer.eos_token_id, *(given if isinstance(given, list) else [given])} - {None}
    return sorted(int(i) for i in found)


def _cut(ids: list[int], start: int, ends: set[int]) -> NDArray[np.int64]:
    """Ids up to the completion's end of turn: what a template writes after it (a line break) is never sampled."""
    stop = next((i + 1 for i in range(start, len(ids)) if ids[i] in ends), len(ids))
    return np.asarray(ids[:stop], dtype=np.int64)


def completion_logits(module: Any, rows: Sequence[TokenRow], pad: int, columns: Any = None) -> Any:
    """Logits [completion tokens of all rows, vocabulary or columns] that predict each completion token, row after row."""
    import torch
    import torch.nn.functional as F

    if llama.supports(module):
        hidden, head = llama.completion_hidden(module, rows), module.lm_head.weight
        return F.linear(hidden, head if columns is None else head.index_select(0, columns))
    device = next(module.parameters()).device
    width, most = max(len(r.ids) for r in rows) - 1, max(len(r.answer) for r in rows)
    ids, mask = np.full((len(rows), width), pad), np.zeros((len(rows), width), dtype=np.int64)
    wanted = np.zeros((len(rows), most), dtype=bool)
    for i, row in enumerate(rows):
        ids[i, width - len(row.ids) + 1 :], mask[i, width - len(row.ids) + 1 :] = row.ids[:-1], 1
        wanted[i, most - len(row.answer) :] = True
    seen = torch.from_numpy(mask).to(device)
    logits = module(input_ids=torch.from_numpy(ids).to(device), attention_mask=seen, use_cache=False, logits_to_keep=most,
                    position_ids=(seen.cumsum(1) - 1).clamp(min=0)).logits
    logits = logits[torch.from_numpy(wanted).to(device)].float()
    return logits if columns is None else logits.index_select(1, columns)


def fit(module: Any, rows: Sequence[TokenRow], plan: Plan, pad: int, *, soft: Soft | None = None, part: int = 32,
        stop: Event | None = None) -> dict[str, Any]:
    """Train `module` in place by `plan`; return the record for training.json (loss per step in nats per token).

    `part` is how many rows run at once. A set `stop` ends the training with KeyboardInterrupt between two steps.
    """
    import torch

    if not rows:
        raise BadRows("There are no rows to train on. Sample more rows, or loosen the filters that dropped them.")
    free(module, plan.trainable)
    module.eval()  # no dropout: a student's result depends on its rows and seed only
    optimiser = _optimiser(module, plan)
    owned = [p for group in optimiser.param_groups for p in group["params"]]
    losses, seen = [], 0
    for step, batch in enumerate(batches(len(rows), plan)):
        if stop is not None and stop.is_set():
            raise KeyboardInterrupt
        for group in optimiser.param_groups:
            group["lr"] = plan.rate * share(plan, step)
        optimiser.zero_grad(set_to_none=True)
        batch = batch[np.argsort([len(rows[i].ids) for i in batch], kind="stable")]
        count = _labelled(rows, batch, soft)
        if count == 0:
            raise BadRows("A step holds no token of the carrier. Check that the rows belong to this channel.")
        total = 0.0
        for begin in range(0, len(batch), part):
            loss = _loss(module, rows, batch[begin : begin + part], pad, soft) / count
            loss.backward()
            total += float(loss.detach())
        if plan.clip:
            torch.nn.utils.clip_grad_norm_(owned, plan.clip)
        optimiser.step()
        losses.append(round(total, 6))
        seen += count
    return {"plan": asdict(plan), "labels": "soft" if soft else "sampled", "loss": losses, "effective_batch": plan.batch,
            "rows": len(rows), "rows_seen": plan.steps * plan.batch, "tokens_seen": seen, "rendered_sha256": digest(rows)}


def _loss(module: Any, rows: Sequence[TokenRow], batch: NDArray[np.int64], pad: int, soft: Soft | None) -> Any:
    """The summed loss of some rows: cross-entropy of sampled tokens, or KL(teacher || student) over the carrier."""
    import torch
    import torch.nn.functional as F

    here = [rows[i] for i in batch]
    device = next(module.parameters()).device
    target = torch.from_numpy(np.concatenate([r.answer for r in here])).to(device)
    if soft is None:
        return F.cross_entropy(completion_logits(module, here, pad), target, reduction="sum")
    columns = torch.from_numpy(soft.carrier).to(device)
    with torch.no_grad():
        taught = completion_logits(soft.teacher, [soft.rows[i] for i in batch], pad, columns)
    told = (taught / soft.temperature).log_softmax(-1)
    said = (completion_logits(module, here, pad, columns) / soft.temperature).log_softmax(-1)
    # a position whose own token is outside the carrier carries no label
    mine = torch.isin(target, columns)[:, None]
    return (told.exp() * (told - said) * mine).sum() * soft.temperature**2


def _labelled(rows: Sequence[TokenRow], batch: NDArray[np.int64], soft: Soft | None) -> int:
    if soft is None:
        return sum(len(rows[i].answer) for i in batch)
    return int(sum(np.isin(rows[i].answer, soft.carrier).sum() for i in batch))


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
    """Mark what may change: every tensor, or all but the input embeddings and the head."""
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


def digest(rows: Sequence[TokenRow]) -> str:
    """SHA-256 of every row exactly as rendered: token ids, and where the completion starts."""
    whole = hashlib.sha256()
    for row in rows:
        whole.update(np.array([len(row.ids), row.start], dtype="<i8").tobytes() + row.ids.astype("<i8").tobytes())
    return whole.hexdigest()


def save_changes(module: Any, base: Any, out: Path) -> Path:
    """Write `out/weights.safetensors` with the tensors of `module` that differ from `base`; return its path."""
    import torch
    from safetensors.torch import save_file

    before = dict(base.named_parameters())
    changed = {n: p.detach().cpu().contiguous() for n, p in module.named_parameters() if not torch.equal(p.cpu(), before[n].cpu())}
    save_file(changed, out / "weights.safetensors")
    return out / "weights.safetensors"


def save_record(record: dict[str, Any], out: Path) -> None:
    """Write `out/training.json`."""
    (out / "training.json").write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def side_by_side(work: Callable[[T, Event], R], items: Sequence[T], workers: int, done: Callable[[int, R], None]) -> list[R]:
    """Run `work(item, stop)` over items on threads of one torch thread each; `done(index, result)` is called here, in the caller.

    torch lets go of Python's lock inside its kernels, so threads train small models almost as fast as processes do, without
    their start-up. Each item runs on one torch thread whatever `workers` is: its bits do not depend on its neighbours.
    An error or Ctrl-C sets `stop`, cancels what has not begun, and is raised again.
    """
    from concurrent.futures import ThreadPoolExecutor, as_completed

    stop = Event()
    with one_thread(), ThreadPoolExecutor(min(workers or os.cpu_count() or 1, max(1, len(items)))) as pool:
        futures = {pool.submit(_alone, work, item, stop): i for i, item in enumerate(items)}
        try:
            for future in as_completed(futures):
                done(futures[future], future.result())
        except BaseException:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise
        return [future.result() for future in futures]


def _alone(work: Callable[[T, Event], R], item: T, stop: Event) -> R:
    import torch

    torch.set_num_threads(1)
    return work(item, stop)


@contextlib.contextmanager
def one_thread(wanted: bool = True) -> Iterator[None]:
    """One torch thread inside (where `wanted`), the former number afterwards."""
    import torch

    before = torch.get_num_threads()
    if wanted:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
