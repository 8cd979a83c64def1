"""What a student's loss is, and the quadratic form that the theorem makes of it.

The paper allows every loss of an output z and a label y whose lowest point is at z = y, and whose M, minus the mixed second
derivative there, is symmetric and positive semidefinite with a null space that stays put (Cloud et al., arXiv 2507.14805,
appendix C). Squared error, softmax cross-entropy, and cross-entropy over a fixed subset of the outputs are such losses.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import Tensor

Loss = Literal["squared_error", "cross_entropy", "subset_cross_entropy"]
LOSSES: tuple[Loss, ...] = ("squared_error", "cross_entropy", "subset_cross_entropy")


def imitation(student: Tensor, teacher: Tensor, loss: Loss, subset: Any) -> Tensor:
    """The student's loss over outputs [n, c] and the teacher's, averaged over n: a squared length, or nats. `subset` picks
    the columns that `subset_cross_entropy` is about."""
    if loss == "squared_error":
        return (student - teacher).square().sum(-1).mean()
    shown = subset if loss == "subset_cross_entropy" else slice(None)
    return -(teacher[:, shown].softmax(-1) * student[:, shown].log_softmax(-1)).sum(-1).mean()


def form(outputs: Tensor, tangent: Tensor, loss: Loss, subset: Any) -> float:
    """v^T G v with G = E[J^T M J]: from outputs [n, c] and their derivative J v along v, without ever building G."""
    if loss == "squared_error":
        return float(2 * tangent.square().sum(-1).mean())
    shown = subset if loss == "subset_cross_entropy" else slice(None)
    p, t = outputs[:, shown].softmax(-1), tangent[:, shown]
    return float((p * (t - (p * t).sum(-1, keepdim=True)).square()).sum(-1).mean())


def downhill(loss: Callable[[Tensor], Tensor], weights: Tensor) -> Tensor:
    """Minus the gradient of a loss at flat weights."""
    import torch

    at = weights.detach().requires_grad_()
    return -torch.autograd.grad(loss(at), at)[0]


def cosine(a: Tensor, b: Tensor) -> float:
    """The cosine of two flat tensors; 0 where one of them is nothing."""
    size = float(a.norm() * b.norm())
    return float(a @ b) / size if size else 0.0
