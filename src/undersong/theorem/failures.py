"""Where the theorem must fail: one assumption dropped at a time, on the small networks.

1. A shared start. The student starts a little beside the teacher's, then further away.
2. A teacher whose loss depends on something that the student's loss can see. Here the teacher trains only the weights of
   its class outputs, and the student copies the others: nothing can cross, and exactly nothing does.
3. Small steps: a teacher that is far away, and a student that steps far.
4. A loss with its lowest point at the teacher's output and a curvature that is positive semidefinite: outputs sharpened,
   replaced by the teacher's first choice, errors that count negatively in half of the outputs, in all of them.

Each breaks one sentence of Cloud et al., arXiv 2507.14805, appendix C.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from undersong.theorem.losses import cosine, downhill
from undersong.theorem.networks import CLASSES, WIDTHS, Scene

if TYPE_CHECKING:
    from torch import Tensor

    from undersong.theorem import TheoremExperiment

SHARPENED = 2.0
"""Times the teacher's logits: labels of temperature one half."""


def rows(experiment: TheoremExperiment, number: int, at: Scene) -> list[dict[str, Any]]:
    """The rows of one random case; a value below zero is a step that leads away, or a teacher's loss that rises."""
    from undersong.theorem import line

    small, unit, out = experiment.epsilons[-1], at.directions["random"], []
    for apart, value in _beside(experiment, number, at):
        out.append(line("failure apart sign", "start", "beside", apart, value))
    blind = _heads(at.directions["gradient"])
    step = at.step(at.first, at.told(at.first + small * blind), "subset_cross_entropy")
    out.append(line("failure unseen sign", "inner product", "shared", small, float(step @ blind)))
    fall = at.teacher_loss(at.first) - at.teacher_loss(at.first + experiment.step * step)
    out.append(line("failure unseen sign", "fall of the teacher's loss", "shared", experiment.step, float(fall)))
    for far in experiment.teacher_lengths:
        step = at.step(at.first, at.told(at.first + far * unit), "cross_entropy")
        out.append(line("failure far teacher sign", "cross_entropy", "shared", far, float(step @ unit)))
    step = at.step(at.first, at.told(at.first + small * at.directions["gradient"]), "cross_entropy")
    for far in experiment.student_lengths:
        fall = at.teacher_loss(at.first) - at.teacher_loss(at.first + far * step / step.norm())
        out.append(line("failure long step sign", "cross_entropy", "shared", far, float(fall)))
    for name, step in _losses(at, at.told(at.first + small * unit)).items():
        out.append(line("failure loss sign", name, "shared", small, float(step @ unit)))
        out.append(line("failure loss cosine", name, "shared", small, cosine(step, unit)))
    return out


def _beside(experiment: TheoremExperiment, number: int, at: Scene) -> list[tuple[float, float]]:
    """Distance of the student's start from the teacher's, in lengths of the teacher's displacement, and s . d."""
    import torch

    small, unit = experiment.epsilons[-1], at.directions["random"]
    random = torch.Generator().manual_seed(experiment.seed * 1_000_039 + number)
    way = torch.randn(at.first.shape, generator=random, dtype=torch.float64)
    way, told = way / way.norm(), at.told(at.first + small * unit)
    return [(apart, float(at.step(at.first + apart * small * way, told, "cross_entropy") @ unit))
            for apart in experiment.apart]


def _heads(direction: Tensor) -> Tensor:
    """The part of a direction in the weights and biases of the class outputs, at length one."""
    import torch

    out = torch.zeros_like(direction)
    fan_in, fan_out = WIDTHS[-2:]
    first = len(out) - fan_out - fan_in * fan_out
    for start, height in ((first, fan_in), (len(out) - fan_out, 1)):
        here = slice(start, start + height * fan_out)
        out[here].view(height, fan_out)[:, :CLASSES] = direction[here].view(height, fan_out)[:, :CLASSES]
    unit: Tensor = out / out.norm()
    return unit


def _losses(at: Scene, told: Tensor) -> dict[str, Tensor]:
    """The student's step under losses that break the conditions."""
    import torch

    choice = torch.nn.functional.one_hot(told.argmax(-1), WIDTHS[-1]).double()
    sides = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(WIDTHS[-1] // 2)

    def hard(weights: Tensor) -> Tensor:
        return -(choice * at.told(weights).log_softmax(-1)).sum(-1).mean()

    def signed(weights: Tensor) -> Tensor:
        return (sides * (at.told(weights) - told).square()).sum(-1).mean()

    return {"sharpened": at.step(at.first, SHARPENED * told, "cross_entropy"), "first choice": downhill(hard, at.first),
            "half negative": downhill(signed, at.first), "negative": -at.step(at.first, told, "cross_entropy")}
