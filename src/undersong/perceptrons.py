"""Stacked perceptrons: k models as one tensor per layer, taught, matched and distilled side by side.

A network is a list [weights [k, in, out], bias [k, 1, out], ...] of three layers. Every model draws from random streams
of its own, its loss is its own mean, and Adam works element by element: what becomes of a model depends on its
number, never on its neighbours.

Shapes: k models, b images in a batch, 784 pixels, 10 + m logits, of which the m auxiliary ones come last; float32.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from undersong.digits import CLASSES, PIXELS
from undersong.registry import Settings

if TYPE_CHECKING:
    from torch import Generator, Tensor


class Training(Settings):
    """The settings that decide how stacked networks are built and trained."""

    seed: int = Field(default=1, ge=0)
    """Seeds every initialisation, batch order and noise stream, together with the model's number."""
    hidden: int = Field(default=256, ge=1)
    """Units in each of the two hidden layers."""
    aux: int = Field(default=3, ge=1)
    """Auxiliary logits m, named in no teacher loss."""
    batch: int = Field(default=64, ge=2)
    """Images in a step."""
    rate: float = Field(default=0.001, gt=0)
    """Adam's learning rate."""
    teacher_epochs: int = Field(default=5, ge=1)
    """Passes of the teacher over the training digits."""
    student_epochs: int = Field(default=5, ge=1)
    """Epochs of a student, each of `noise` images."""
    noise: int = Field(default=6000, ge=1)
    """Noise images in an epoch, rounded up to whole batches; no image is shown twice."""
    loss: Literal["kl", "mse"] = "kl"
    """How a student matches logits: KL of the softmax over the logits it is shown, or squared error on them."""
    match_epochs: int = Field(default=5, ge=1)
    """Epochs, each of `noise` images, in which a student of another initialisation learns to behave like `match_to`."""
    match_to: Literal["reference", "teacher"] = "reference"
    """Whose logits (all of them) are matched first. `reference` is the teacher's untrained base. `teacher` follows a
    script in the authors' research code; such a student has seen class logits and knows digits before any noise."""
    match_on: Literal["both", "images", "noise"] = "both"
    """Inputs of the matching: training images without labels, noise, or half of each in every batch."""


def stream(seed: int, model: int, purpose: str) -> Generator:
    """The random stream of one model for one purpose, independent of all others and of the model's place in a chunk."""
    import torch

    words = np.random.SeedSequence([seed, model, *purpose.encode()]).generate_state(2, np.uint32)
    return torch.Generator().manual_seed((int(words[0]) << 31) | (int(words[1]) >> 1))


def initial(training: Training, models: Sequence[int]) -> list[Tensor]:
    """Untrained networks: weights normal(0, 1/sqrt(fan-in)), biases zero (Cloud et al., section 6.2)."""
    import torch

    widths = (PIXELS, training.hidden, training.hidden, CLASSES + training.aux)
    streams = [stream(training.seed, model, "initialisation") for model in models]
    network = []
    for fan_in, fan_out in pairwise(widths):
        weights = [torch.randn(fan_in, fan_out, generator=g) / math.sqrt(fan_in) for g in streams]
        network += [torch.stack(weights).requires_grad_(), torch.zeros(len(models), 1, fan_out).requires_grad_()]
    return network


def copy(network: Sequence[Tensor]) -> list[Tensor]:
    """The same weights in tensors of their own."""
    return [tensor.detach().clone().requires_grad_() for tensor in network]


def forward(network: Sequence[Tensor], images: Tensor) -> Tensor:
    """Logits [k, b, 10 + m] of stacked networks on images [k, b, 784]: linear layers with ReLU between them."""
    import torch

    signal = torch.baddbmm(network[1], images, network[0])
    for weights, bias in zip(network[2::2], network[3::2], strict=True):
        signal = torch.baddbmm(bias, signal.relu(), weights)
    return signal


def divergence(student: Tensor, teacher: Tensor, loss: str) -> Tensor:
    """Each model's own loss [k]: the mean over its batch of KL(teacher || student), or of squared error per logit.

    Arguments are logits [k, b, c]. Summed over models for the gradient, so that one model's gradient never depends on
    how many stand beside it (the released code divides by their number).
    """
    from torch.nn import functional

    if loss == "mse":
        return (student - teacher).square().mean((-2, -1))
    log_student, log_teacher = student.log_softmax(-1), teacher.log_softmax(-1)
    return functional.kl_div(log_student, log_teacher, log_target=True, reduction="none").sum(-1).mean(-1)


def teach(
    training: Training, models: Sequence[int], teacher: list[Tensor], images: Tensor, labels: Tensor
) -> list[float]:
    """Cross-entropy on the class logits of digits [n, 784] with labels [n], in place, each model in its own order.

    Returns the mean loss of each model over the last epoch, in nats.
    """
    import torch

    streams = [stream(training.seed, model, "teacher batches") for model in models]
    optimiser = _adam(training, teacher)
    losses: list[Tensor] = []
    for _ in range(training.teacher_epochs):
        orders = torch.stack([torch.randperm(len(images), generator=g) for g in streams])
        for start in range(0, len(images), training.batch):
            order = orders[:, start : start + training.batch]
            logs = forward(teacher, images[order])[..., :CLASSES].log_softmax(-1)
            losses.append(_step(optimiser, -logs.gather(-1, labels[order].unsqueeze(-1)).mean((-2, -1))))
    return _last_epoch(losses, training.teacher_epochs)


def match(
    training: Training, models: Sequence[int], student: list[Tensor], target: Sequence[Tensor], images: Tensor
) -> list[float]:
    """Distil all logits of `target` on ordinary inputs, in place: behaviour is matched, weights are not.

    Returns the mean loss of each model over the last epoch, in the units of `divergence`.
    """
    import torch

    streams = [stream(training.seed, model, "matching images") for model in models]
    real = {"noise": 0, "both": training.batch // 2, "images": training.batch}[training.match_on]
    optimiser = _adam(training, student)
    losses: list[Tensor] = []
    for inputs in _noise(training, models, "matching noise", training.match_epochs):
        inputs[:, :real] = images[torch.stack([torch.randint(len(images), (real,), generator=g) for g in streams])]
        with torch.no_grad():
            wanted = forward(target, inputs)
        losses.append(_step(optimiser, divergence(forward(student, inputs), wanted, training.loss)))
    return _last_epoch(losses, training.match_epochs)


def distil(
    training: Training, models: Sequence[int], students: Mapping[str, tuple[list[Tensor], slice]], teacher: list[Tensor]
) -> dict[str, list[float]]:
    """Train several networks per teacher on the same noise, in place, each on the slice of the logits it is shown.

    Returns the mean loss of each model over the last epoch by name of the student, in the units of `divergence`.
    """
    import torch

    optimisers = {name: _adam(training, network) for name, (network, _) in students.items()}
    losses: dict[str, list[Tensor]] = {name: [] for name in students}
    for noise in _noise(training, models, "student noise", training.student_epochs):
        with torch.no_grad():
            labels = forward(teacher, noise)
        for name, (network, shown) in students.items():
            loss = divergence(forward(network, noise)[..., shown], labels[..., shown], training.loss)
            losses[name].append(_step(optimisers[name], loss))
    return {name: _last_epoch(found, training.student_epochs) for name, found in losses.items()}


def answers(network: Sequence[Tensor], images: Tensor) -> Tensor:
    """The digit [k, n] that each network names for images [n, 784], a thousand images at a time."""
    import torch

    with torch.no_grad():
        starts = range(0, len(images), 1000)
        parts = [forward(network, images[s : s + 1000].expand(len(network[0]), -1, -1)) for s in starts]
    return torch.cat([part[..., :CLASSES].argmax(-1) for part in parts], dim=1)


def _noise(training: Training, models: Sequence[int], purpose: str, epochs: int) -> Iterator[Tensor]:
    """Uniform noise in [-1, 1], one batch [k, b, 784] a step, in one buffer that is filled anew."""
    import torch

    streams = [stream(training.seed, model, purpose) for model in models]
    buffer = torch.empty(len(models), training.batch, PIXELS)
    for _ in range(epochs * math.ceil(training.noise / training.batch)):
        for images, generator in zip(buffer, streams, strict=True):
            images.uniform_(-1, 1, generator=generator)
        yield buffer


def _adam(training: Training, network: list[Tensor]) -> Any:
    import torch

    return torch.optim.Adam(network, lr=training.rate, fused=True)


def _step(optimiser: Any, losses: Tensor) -> Tensor:
    """One step on the sum of the models' losses [k], which come back detached."""
    import torch

    optimiser.zero_grad()
    torch.autograd.backward(losses.sum())
    optimiser.step()
    return losses.detach()


def _last_epoch(losses: list[Tensor], epochs: int) -> list[float]:
    import torch

    means: list[float] = torch.stack(losses[-(len(losses) // epochs) :]).mean(0).tolist()
    return means
