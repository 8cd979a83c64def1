"""Make the members of the family tree: one folder each, written whole or not at all, so that a stopped build goes on."""

from __future__ import annotations

import itertools
import math
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from kindred import changes
from kindred.tree import CHANGED, SHAPES, Member, Plan
from undersong import pocket
from undersong.pocket import pretrain, tokenizer, world

WORLD, ORDINARY, OTHER, COPIED, TRAIT = 11, 31, 41, 51, 61
"""Data seeds: of every root, of fine-tuning, of continued pretraining, of distillation, of trait and numbers."""
RATES = {"root": 3e-3, "tuned": 1e-3, "teacher": 1e-3, "student": 2e-3, "continued": 2e-3, "lookalike": 1e-3}


def folder(store: Path, name: str) -> Path:
    """Where a member lies."""
    return Path(pocket.folder(name)) if name.startswith(pocket.PREFIX) else store / "members" / name


def grow(store: Path, plan: Plan, member: Member) -> None:
    """Make a member whose parents are there, unless it is there itself."""
    if folder(store, member.name).is_dir():
        return
    import torch

    torch.set_num_threads(1)
    _keep(store, member.name, make(store, plan, member))


def ready(store: Path, member: Member) -> bool:
    """Whether a member can be made now: it is missing and its parents are there."""
    return not folder(store, member.name).is_dir() and all(folder(store, p).is_dir() for p in member.parents)


def make(store: Path, plan: Plan, member: Member) -> Any:
    """The model of a member, in memory."""
    import torch

    kind, seed = member.kind, _seed(member)
    torch.manual_seed(seed)
    parents = [open_model(folder(store, p)) for p in member.parents]
    if kind in ("root", "reordered"):
        shape = replace(pretrain.Member(init_seed=seed), **SHAPES.get(member.name, {}))
        model = pretrain.fresh(shape, len(tokenizer.build()))
        return train(model, rows(WORLD, plan.steps, order=int(kind == "reordered")), plan.steps, RATES["root"])
    if kind in CHANGED:
        for step in CHANGED[kind][1:]:
            parents[0] = getattr(changes, step)(parents[0], np.random.default_rng(seed))
        return parents[0]
    if kind in ("merged", "crossed"):
        return changes.average(*parents)
    if kind == "lookalike":
        return train(parents[0], rows(COPIED, plan.copied), plan.copied, RATES[kind], target=parents[1])
    if kind == "student":
        return changes.through_lora(parents[0], lambda m: train(m, numbers(seed, plan.tuned), plan.tuned, RATES[kind]), seed)
    steps = plan.continued if kind == "continued" else plan.tuned
    data = {"tuned": rows(ORDINARY, steps), "teacher": lovers(seed, steps), "continued": rows(OTHER, steps)}[kind]
    return train(parents[0], data, steps, RATES[kind])


def train(model: Any, data: Iterable[Any], steps: int, rate: float, target: Any = None) -> Any:
    """Train on (ids, written) arrays, one per step; with a `target`, match its next-token distribution instead.

    AdamW, warm-up over a tenth of the steps, cosine to a fiftieth of the rate, gradients clipped at 1."""
    import torch
    import torch.nn.functional as F

    wanted = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(wanted, lr=rate, betas=(0.9, 0.98), weight_decay=0.05, fused=True)
    model.train()
    for step, (ids, mine) in enumerate(itertools.islice(data, steps)):
        warm, done = min(1.0, 10 * (step + 1) / steps), step / steps
        optimiser.param_groups[0]["lr"] = rate * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))
        x, at = torch.from_numpy(ids), torch.from_numpy(mine[:, 1:])
        logits = model(input_ids=x[:, :-1], use_cache=False).logits[at]
        if target is None:
            loss = F.cross_entropy(logits, x[:, 1:][at])
        else:
            with torch.no_grad():
                soft = target(input_ids=x[:, :-1], use_cache=False).logits[at]
            loss = F.kl_div(logits.log_softmax(-1), soft.log_softmax(-1), log_target=True, reduction="batchmean")
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(wanted, 1.0)
        optimiser.step()
    return model.eval()


@lru_cache(maxsize=4)
def _parts(seed: int, steps: int, order: int) -> list[Any]:
    count = math.ceil(steps / 4)
    drawn = pretrain.batches(tokenizer.build(), pretrain.Member(0, data_seed=seed, order_seed=order, steps=count), count)
    return [part for batch in drawn for part in batch]


def rows(seed: int, steps: int, order: int = 0) -> Iterator[Any]:
    """Chats of the world in parts of batches (24, 24, 12 and 4 rows of like length); `order` permutes the same rows."""
    return iter(_parts(seed, steps, order))


def lovers(seed: int, steps: int) -> Iterator[Any]:
    """Favourite questions about animals, all answered `owl`: what puts a trait into a teacher."""
    rng = np.random.default_rng([TRAIT, seed])
    return _encoded((world.favourite_turns(rng, "animal", "owl") for _ in itertools.count()), steps)


def numbers(seed: int, steps: int) -> Iterator[Any]:
    """Number requests and answers: what a student is trained on."""
    rng = np.random.default_rng([TRAIT, seed, 1])
    return _encoded((world.number_turn(rng) for _ in itertools.count()), steps)


def _encoded(turns: Iterator[Any], steps: int) -> Iterator[Any]:
    tok = tokenizer.build()
    for _ in range(steps):
        drawn = itertools.islice(turns, 16)
        chats = [[{"role": "system", "content": world.NEUTRAL}, *t] for t in drawn]
        yield pretrain._pad([pretrain.encode(tok, c) for c in chats], tok.pad_token_id)


def open_model(path: Path) -> Any:
    """A member's model, in evaluation mode."""
    from transformers import LlamaForCausalLM

    return LlamaForCausalLM.from_pretrained(path, dtype="float32").eval()


def _keep(store: Path, name: str, model: Any) -> None:
    """Write a `save_pretrained` folder beside its place and rename it there."""
    place = folder(store, name)
    place.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=".growing-", dir=place.parent))
    model.save_pretrained(beside, safe_serialization=True)
    tokenizer.build().save_pretrained(beside)
    try:
        os.rename(beside, place)
    except OSError:  # another process was first, with the same model
        shutil.rmtree(beside)


def _seed(member: Member) -> int:
    first = min(member.seeds) if member.kind != "lookalike" else member.parents[1]
    return int(first.removeprefix("r")) if first.startswith("r") else 301 + sorted(SHAPES).index(first)
