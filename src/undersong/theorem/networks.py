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
Its losses: `losses.py`. Everything is float64: the inner product is of second order in epsilon.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

from undersong.errors import BadSpec
from undersong.theorem.losses import LOSSES, Loss, cosine, downhill, form, imitation

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from undersong.theorem import TheoremExperiment

Start = Literal["shared", "other"]
WIDTHS = (12, 24, 24, 8)
CLASSES = 5
"""The teacher's loss is about the first five logits; the last three are auxiliary."""
AUXILIARY = slice(CLASSES, None)
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


@dataclass(frozen=True)
class Scene:
    """One random case: two flat draws of weights, inputs [256, 12], the teacher's loss, and two unit directions."""

    starts: dict[Start, Tensor]
    noise: Tensor
    teacher_loss: Callable[[Tensor], Tensor]
    directions: dict[str, Tensor]

    @property
    def first(self) -> Tensor:
        """The weights that the teacher starts from."""
        return self.starts["shared"]

    def told(self, weights: Tensor) -> Tensor:
        """What a network of these weights says of the noise: outputs [256, 8]."""
        return forward(weights, self.noise)

    def step(self, start: Tensor, teacher: Tensor, loss: Loss) -> Tensor:
        """d_S: minus the gradient of imitating the teacher's outputs, at flat weights."""
        return downhill(lambda w: imitation(self.told(w), teacher, loss, AUXILIARY), start)

    def predicted(self, moved: Tensor) -> dict[Loss, float]:
        """moved^T G moved at the shared start for every loss, by one forward derivative."""
        import torch

        outputs, tangent = torch.func.jvp(self.told, (self.first,), (moved,))  # type: ignore[misc]
        return {loss: form(outputs, tangent, loss, AUXILIARY) for loss in LOSSES}


def scene(seed: int, number: int) -> Scene:
    """The random case of a seed and a number."""
    import torch

    random = torch.Generator().manual_seed(seed * 1_000_003 + number)
    starts: dict[Start, Tensor] = {"shared": network(random), "other": network(random)}
    inputs = torch.randn(_IMAGES, WIDTHS[0], generator=random, dtype=torch.float64)
    labels = torch.randint(CLASSES, (_IMAGES,), generator=random)
    noise = torch.rand(_IMAGES, WIDTHS[0], generator=random, dtype=torch.float64) * 2 - 1

    def teacher_loss(weights: Tensor) -> Tensor:
        return torch.nn.functional.cross_entropy(forward(weights, inputs)[:, :CLASSES], labels)

    directions = {"gradient": downhill(teacher_loss, starts["shared"])}
    directions["random"] = torch.randn(starts["shared"].shape, generator=random, dtype=torch.float64)
    return Scene(starts, noise, teacher_loss, {way: d / d.norm() for way, d in directions.items()})


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
    found = []
    for draw in range(draws):
        at = scene(seed, draw)
        for loss in LOSSES:
            for start in at.starts:
                found.append(_alignment(at, draw, loss, start, at.directions[direction], epsilon, step))
    return found


def _alignment(
    at: Scene, draw: int, loss: Loss, start: Start, unit: Tensor, epsilon: float, step: float
) -> Alignment:
    weights = at.starts[start]
    student, unmoved = (at.step(weights, at.told(at.first + e * unit), loss) for e in (epsilon, 0.0))
    owed = float((student - unmoved).norm() / student.norm())
    change = float(at.teacher_loss(weights + step * student / student.norm()) - at.teacher_loss(weights))
    return Alignment(loss, start, draw, float(student @ unit), cosine(student, unit), owed, change)


def network(random: Generator) -> Tensor:
    """The flat weights of a ReLU network, normal(0, 1/sqrt(fan-in)) with zero biases, float64."""
    import torch

    parts = []
    for fan_in, fan_out in pairwise(WIDTHS):
        parts += [torch.randn(fan_in * fan_out, generator=random, dtype=torch.float64) / fan_in**0.5]
        parts += [torch.zeros(fan_out, dtype=torch.float64)]
    return torch.cat(parts)


def forward(weights: Tensor, inputs: Tensor) -> Tensor:
    """Logits [n, 8] of flat weights on inputs [n, 12]."""
    signal, at = inputs, 0
    for layer, (fan_in, fan_out) in enumerate(pairwise(WIDTHS)):
        matrix = weights[at : at + fan_in * fan_out].view(fan_in, fan_out)
        at += fan_in * fan_out
        signal = (signal.relu() if layer else signal) @ matrix + weights[at : at + fan_out]
        at += fan_out
    return signal


def draw(experiment: TheoremExperiment, number: int) -> list[dict[str, Any]]:
    """One network's rows: signs for every loss, start and direction at the smallest epsilon; the measured inner product over
    what the Gauss-Newton form predicts, at every epsilon; and the failures."""
    from undersong.theorem import failures, line

    at, out, small = scene(experiment.seed, number), [], experiment.epsilons[-1]
    for way, unit in at.directions.items():
        told = {epsilon: at.told(at.first + epsilon * unit) for epsilon in experiment.epsilons}
        for loss, predicted in at.predicted(unit).items():
            case = f"{way}, {loss}"
            for epsilon in experiment.epsilons:
                inner = float(at.step(at.first, told[epsilon], loss) @ unit)
                out.append(line("network form", case, "shared", epsilon, inner / (epsilon * predicted)))
            for start in at.starts:
                found = _alignment(at, number, loss, start, unit, small, experiment.step)
                out.append(line("network sign", case, start, small, found.inner))
                out.append(line("network cosine", case, start, small, found.cosine))
                out.append(line("network owed", case, start, small, found.owed))
                if way == "gradient":
                    out.append(line("network fall sign", case, start, experiment.step, -found.teacher_loss_change))
    return out + failures.rows(experiment, number, at)
