"""Many steps of a pocket language model on a teacher's soft labels over number tokens, followed step by step.

The teacher is the base after some steps up a trait's margin at tuning questions. A student, the base or a model of another
initialisation, copies the teacher's distribution over the carrier's tokens at number sequences that the base wrote; no
animal can be named with them. Read every few steps: the cosine of the copying step and of what would raise the trait,
coverage (the cosine of the way so far with the teacher's), linear CKA of the last hidden layer at the trait's questions, and
the trait's margin. float32; Adam, whose first step is the sign of the gradient.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from undersong.theorem.losses import cosine, imitation
from undersong.theorem.pocket import Pocket, Shelf, shelf
from undersong.theorem.steps import cka

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from undersong.theorem import TheoremExperiment

TEACHING, TEACHING_RATE = 25, 1e-4
STEPS, EVERY, RATE = 200, 20, 1e-4
POOL, BATCH, WATCHED = 512, 16, 64
"""Rows to copy, rows in a step, and rows beside them at which the copying gradient is read."""


def draw(experiment: TheoremExperiment, number: int) -> list[dict[str, Any]]:
    """The rows of one teacher and its two students."""
    import torch

    from undersong.theorem import line

    kept, trait = shelf(experiment.base, experiment.other, experiment.followed, "float"), experiment.followed[number]
    base, start = kept.models["shared"], kept.start["shared"]
    seed = experiment.seed * 1_000_099 + number
    pool, watched = kept.rows(seed, POOL), kept.rows(seed + 500_000, WATCHED)
    teacher = _trained(base, start, lambda step: -_margin(kept, "shared", trait), TEACHING, TEACHING_RATE)
    went, out = teacher - start, [line("teachers: margin", trait, "shared", 0, kept.margin("shared", trait))]
    wanted, told = _told(base, watched), [_told(base, [row]) for row in pool]
    own = _hidden(kept, "shared", trait)
    base.put(start)
    for where, pocket in kept.models.items():
        chosen = torch.Generator().manual_seed(seed)

        def copying(step: int, pocket: Pocket = pocket, chosen: Any = chosen) -> Tensor:
            rows = torch.randperm(POOL, generator=chosen)[:BATCH].tolist()
            said = pocket.at([pool[i] for i in rows])
            return imitation(said, torch.cat([told[i] for i in rows]), "subset_cross_entropy", kept.carrier)

        def watch(step: int, where: str = where, pocket: Pocket = pocket) -> None:
            pull = -pocket.flat(imitation(pocket.at(watched), wanted, "subset_cross_entropy", kept.carrier))
            way = pocket.weights() - kept.start[where]
            up = pocket.flat(_margin(kept, where, trait))
            read = {"gradients": cosine(pull, up), "pull": cosine(pull, went), "margin": kept.margin(where, trait),
                    "CKA": cka(_hidden(kept, where, trait), own)} | ({"coverage": cosine(way, went)} if step else {})
            out.extend(line(f"students: {name}", trait, where, step, value) for name, value in read.items())

        _trained(pocket, kept.start[where], copying, STEPS, RATE, watch)
        pocket.put(kept.start[where])
    return out


def _margin(kept: Shelf, where: str, trait: str) -> Tensor:
    found: Tensor = kept.reads[trait].margins(kept.models[where].body.model.module).mean()
    return found


def _told(pocket: Pocket, rows: Any) -> Tensor:
    import torch

    with torch.no_grad():
        return pocket.at(rows)


def _hidden(kept: Shelf, where: str, trait: str) -> Tensor:
    """Last hidden states [questions, width] where the trait would be named."""
    import torch

    from undersong.backends import llama

    with torch.no_grad():
        found: Tensor = llama.completion_hidden(kept.models[where].body.model.module, kept.reads[trait].rows)
    return found


def _trained(
    pocket: Pocket, start: Tensor, loss: Callable[[int], Tensor], steps: int, rate: float,
    watch: Callable[[int], None] | None = None,
) -> Tensor:
    """Adam on the body from a start; `watch` sees the model every few steps and at the end. Returns the weights."""
    import torch

    pocket.put(start)
    owned = [p for _, p in pocket.body.named]
    optimiser = torch.optim.Adam(owned, lr=rate)
    for step in range(steps):
        if watch is not None and (step % EVERY == 0 or step == 1):
            watch(step)
        optimiser.zero_grad()
        loss(step).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    optimiser.zero_grad()
    if watch is not None:
        watch(steps)
    return pocket.weights()
