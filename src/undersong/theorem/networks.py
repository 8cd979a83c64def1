"""The theorem behind subliminal learning, checked number by number on small networks.

1. Draw a network theta_0 and move it by epsilon along d_T: minus the gradient of a teacher's loss, or any direction.
2. Let a student start at theta_0 (shared) or at a draw of its own (other), and take d_S: minus the gradient of
   imitating the moved network on inputs that have nothing to do with the teacher's.
3. Shared: d_S . d_T >= 0, and a small step along d_S lowers the teacher's loss.
4. Other: the step is, to leading order, imitation of the unmoved teacher; next to nothing of it is owed to d_T.

Mind what 4 does not say. Under `direction="gradient"` the cosine of another start is small but not zero on average,
and the teacher's loss often falls too: imitating an unrelated network shrinks overconfident logits, whatever the
teacher learned. That is no transmission: the mean cosine is zero under `direction="random"`, and `owed` is near zero
in either case.

Source: Cloud et al., arXiv 2507.14805, section 6.1 and appendix C (Lemma 1: any direction; Theorem 1: the gradient).
Its losses: squared error, softmax cross-entropy, and cross-entropy over a fixed subset of the logits (as in the digits
experiment). Everything is float64: the inner product is of second order in epsilon.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

from undersong.errors import BadSpec

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from undersong.theorem import TheoremExperiment

Loss = Literal["squared_error", "cross_entropy", "subset_cross_entropy"]
Start = Literal["shared", "other"]
LOSSES: tuple[Loss, ...] = ("squared_error", "cross_entropy", "subset_cross_entropy")
_WIDTHS = (12, 24, 24, 8)
_CLASSES = 5
"""The teacher's loss is about the first five logits; the last three are auxiliary."""
_IMAGES = 256


@dataclass(frozen=True)
class Alignment:
    """One draw. `inner` is d_S . d_T and `cosine` the same over both lengths."""

    loss: Loss
    start: Start
    draw: int
    inner: float
    cosine: float
    owed: float
    """Share of d_S owed to the displacement: |d_S - d_S of an unmoved teacher| / |d_S|. 1 when shared."""
    teacher_loss_change: float
    """Change of the teacher's loss (nats) at the student's start, by one step of length `step` along d_S."""


def theorem_check(
    draws: int = 20,
    *,
    direction: Literal["gradient", "random"] = "gradient",
    epsilon: float = 1e-3,
    step: float = 1e-4,
    seed: int = 0,
) -> list[Alignment]:
    """Alignment of student steps with the teacher's displacement: every loss, both starts, `draws` networks.

    `epsilon` is the length of the teacher's displacement and `step` of the student's (Euclidean, float64). With
    `direction="random"` the teacher's loss is not what moved it (Lemma 1): read `inner`, not `teacher_loss_change`.
    Raises BadSpec for a length or count that is not positive.
    """
    if draws < 1 or not (epsilon > 0 and step > 0):
        raise BadSpec(
            f"theorem_check needs draws, epsilon and step above 0, given {draws}, {epsilon}, {step}. Raise them."
        )
    return [found for draw in range(draws) for found in _draw(draw, direction, epsilon, step, seed)]


def _draw(draw: int, direction: str, epsilon: float, step: float, seed: int) -> list[Alignment]:
    import torch

    random = torch.Generator().manual_seed(seed * 1_000_003 + draw)
    starts: dict[Start, Tensor] = {"shared": _network(random), "other": _network(random)}
    inputs = torch.randn(_IMAGES, _WIDTHS[0], generator=random, dtype=torch.float64)
    labels = torch.randint(_CLASSES, (_IMAGES,), generator=random)
    noise = torch.rand(_IMAGES, _WIDTHS[0], generator=random, dtype=torch.float64) * 2 - 1

    def teacher_loss(weights: Tensor) -> Tensor:
        return torch.nn.functional.cross_entropy(_forward(weights, inputs)[:, :_CLASSES], labels)

    first = starts["shared"]
    moved = _downhill(teacher_loss, first)
    if direction == "random":
        moved = torch.randn(moved.shape, generator=random, dtype=torch.float64)
    moved = moved / moved.norm()
    targets = _forward(first + epsilon * moved, noise), _forward(first, noise)
    found = []
    for loss in LOSSES:
        for start, weights in starts.items():
            student, unmoved = (_imitate(weights, noise, target, loss) for target in targets)
            inner = float(student @ moved)
            unit = student / student.norm()
            owed = float((student - unmoved).norm() / student.norm())
            change = float(teacher_loss(weights + step * unit) - teacher_loss(weights))
            found.append(Alignment(loss, start, draw, inner, float(unit @ moved), owed, change))
    return found


def _imitate(weights: Tensor, noise: Tensor, target: Tensor, loss: Loss) -> Tensor:
    """d_S: minus the gradient of imitating `target` on `noise`, at flat weights."""
    return _downhill(lambda w: _imitation(_forward(w, noise), target, loss), weights)


def _imitation(student: Tensor, teacher: Tensor, loss: Loss) -> Tensor:
    """The student's loss over logits [n, 8], averaged over inputs."""
    if loss == "squared_error":
        return (student - teacher).square().sum(-1).mean()
    shown = slice(_CLASSES, None) if loss == "subset_cross_entropy" else slice(None)
    return -(teacher[:, shown].softmax(-1) * student[:, shown].log_softmax(-1)).sum(-1).mean()


def _network(random: Generator) -> Tensor:
    """The flat weights of a ReLU network, normal(0, 1/sqrt(fan-in)) with zero biases, float64."""
    import torch

    parts = []
    for fan_in, fan_out in pairwise(_WIDTHS):
        parts += [torch.randn(fan_in * fan_out, generator=random, dtype=torch.float64) / fan_in**0.5]
        parts += [torch.zeros(fan_out, dtype=torch.float64)]
    return torch.cat(parts)


def _forward(weights: Tensor, inputs: Tensor) -> Tensor:
    """Logits [n, 8] of flat weights on inputs [n, 12]."""
    signal, at = inputs, 0
    for layer, (fan_in, fan_out) in enumerate(pairwise(_WIDTHS)):
        matrix = weights[at : at + fan_in * fan_out].view(fan_in, fan_out)
        at += fan_in * fan_out
        signal = (signal.relu() if layer else signal) @ matrix + weights[at : at + fan_out]
        at += fan_out
    return signal


def _downhill(loss: Callable[[Tensor], Tensor], weights: Tensor) -> Tensor:
    """Minus the gradient of a loss at flat weights."""
    import torch

    at = weights.detach().requires_grad_()
    return -torch.autograd.grad(loss(at), at)[0]


def draw(experiment: TheoremExperiment, number: int) -> list[dict[str, Any]]:
    """One network's rows: signs for every loss, start and direction at the smallest epsilon; the measured inner product over
    what the Gauss-Newton form predicts, at every epsilon; and the four failures."""
    import torch

    from undersong.theorem import line

    random = torch.Generator().manual_seed(experiment.seed * 1_000_003 + number)
    starts: dict[Start, Tensor] = {"shared": _network(random), "other": _network(random)}
    inputs = torch.randn(_IMAGES, _WIDTHS[0], generator=random, dtype=torch.float64)
    labels = torch.randint(_CLASSES, (_IMAGES,), generator=random)
    noise = torch.rand(_IMAGES, _WIDTHS[0], generator=random, dtype=torch.float64) * 2 - 1

    def teacher_loss(weights: Tensor) -> Tensor:
        return torch.nn.functional.cross_entropy(_forward(weights, inputs)[:, :_CLASSES], labels)

    first, out = starts["shared"], []
    directions = {"gradient": _downhill(teacher_loss, first),
                  "random": torch.randn(first.shape, generator=random, dtype=torch.float64)}
    small = experiment.epsilons[-1]
    for way, direction in directions.items():
        unit = direction / direction.norm()
        for loss in LOSSES:
            case = f"{way}, {loss}"
            for epsilon in experiment.epsilons:
                target = _forward(first + epsilon * unit, noise)
                student = _imitate(first, noise, target, loss)
                inner = float(student @ unit) * epsilon
                out.append(line("gauss-newton", case, "shared", epsilon, inner / _form(first, epsilon * unit, noise, loss)))
            target, unmoved = _forward(first + small * unit, noise), _forward(first, noise)
            for start, weights in starts.items():
                student = _imitate(weights, noise, target, loss)
                out.append(line("network sign", case, start, small, float(student @ unit)))
                out.append(line("cosine", case, start, small, float(student @ unit / student.norm())))
                owed = (student - _imitate(weights, noise, unmoved, loss)).norm() / student.norm()
                out.append(line("owed", case, start, small, float(owed)))
                if way == "gradient":
                    moved = weights + experiment.step * student / student.norm()
                    out.append(line("loss fall sign", case, start, experiment.step,
                                    float(teacher_loss(weights) - teacher_loss(moved))))
    return out + _failures(experiment, first, directions["random"], directions["gradient"], noise, teacher_loss)


def _form(weights: Tensor, moved: Tensor, noise: Tensor, loss: Loss) -> float:
    """moved^T G moved, G = E[J^T M J]: J by one forward derivative, M the curvature of the loss at the teacher's output."""
    import torch

    logits, tangent = torch.func.jvp(lambda w: _forward(w, noise), (weights,), (moved,))  # type: ignore[misc]
    if loss == "squared_error":
        return float(2 * tangent.square().sum(-1).mean())
    shown = slice(_CLASSES, None) if loss == "subset_cross_entropy" else slice(None)
    p, t = logits[:, shown].softmax(-1), tangent[:, shown]
    return float(((p * t * t).sum(-1) - (p * t).sum(-1) ** 2).mean())


def _failures(experiment: TheoremExperiment, first: Tensor, direction: Tensor, gradient: Tensor, noise: Tensor,
              teacher_loss: Callable[[Tensor], Tensor]) -> list[dict[str, Any]]:
    """What happens when an assumption is dropped: rows of `failure sign` (the fourth, another start, is among the signs)."""
    from undersong.theorem import line

    unit, small, out = direction / direction.norm(), experiment.epsilons[-1], []
    # 1. the teacher moves only what the student's loss does not see: the columns of the class logits
    blind = unit.clone().zero_()
    at = len(unit) - _WIDTHS[-1] - _WIDTHS[-2] * _WIDTHS[-1]
    last = blind[at : at + _WIDTHS[-2] * _WIDTHS[-1]].view(_WIDTHS[-2], _WIDTHS[-1])
    last[:, :_CLASSES] = unit[at : at + _WIDTHS[-2] * _WIDTHS[-1]].view(_WIDTHS[-2], _WIDTHS[-1])[:, :_CLASSES]
    blind = blind / blind.norm()
    step = _imitate(first, noise, _forward(first + small * blind, noise), "subset_cross_entropy")
    out.append(line("failure sign", "the loss does not see what moved", "shared", small, float(step @ blind)))
    # 2. labels that do not have their minimum at the teacher's output: its logits doubled
    step = _imitate(first, noise, 2 * _forward(first + small * unit, noise), "cross_entropy")
    out.append(line("failure sign", "labels sharpened", "shared", small, float(step @ unit)))
    # 3. a teacher that is far away, and a student that steps far
    down = gradient / gradient.norm()
    for far in (1.0, 3.0, 10.0, 30.0):
        step = _imitate(first, noise, _forward(first + far * unit, noise), "cross_entropy")
        out.append(line("far teacher sign", "cross_entropy", "shared", far, float(step @ unit)))
    step = _imitate(first, noise, _forward(first + small * down, noise), "cross_entropy")
    for far in (0.001, 0.1, 1.0, 3.0, 10.0):
        fall = teacher_loss(first) - teacher_loss(first + far * step / step.norm())
        out.append(line("far student sign", "cross_entropy", "shared", far, float(fall)))
    return out
