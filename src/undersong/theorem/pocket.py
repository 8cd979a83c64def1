"""One step of a pocket language model on a moved copy's outputs, at number sequences that the base wrote; float64.

The teacher is the base moved in the weights of its body, along the gradient of a trait's margin or at random. The student
takes d_S: minus the gradient of imitating it at the places of the answers. Losses: squared error and cross-entropy over the
whole vocabulary, and cross-entropy over the carrier's tokens alone, which can write numbers and no animal. Shared: the
student is the base. Other: it is a model of another initialisation with the same shapes.

Every direction has rows of its own, so directions are independent of one another, but for the one other model.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from undersong.errors import BadSpec
from undersong.theorem.losses import LOSSES, Loss, cosine, form, imitation

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from undersong.backends.tokens import TokenRow
    from undersong.explainers.gradients import Body
    from undersong.mitigations.readout import Readout
    from undersong.theorem import TheoremExperiment

CHANNEL = {"numbers": {"wording": "brief"}}
ROWS = 16


@dataclass(frozen=True)
class Pocket:
    """A model's body as one flat tensor, and what it says at the places of answers."""

    body: Body

    def at(self, rows: Sequence[TokenRow]) -> Tensor:
        """Outputs [answer tokens, vocabulary], differentiable in the body."""
        from undersong.backends.logits import completion_logits

        found: Tensor = completion_logits(self.body.model.module, rows, 0)
        return found

    def flat(self, outcome: Tensor, keep: bool = False) -> Tensor:
        """The gradient of a number, as one flat tensor of its own precision."""
        import torch

        owned = [p for _, p in self.body.named]
        parts = torch.autograd.grad(outcome, owned, retain_graph=keep, allow_unused=True)
        return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for p, g in zip(owned, parts, strict=True)])

    def weights(self) -> Tensor:
        """The body, in its own precision."""
        import torch

        return torch.cat([p.detach().flatten() for _, p in self.body.named])

    def put(self, weights: Tensor) -> None:
        """Write the body."""
        import torch

        with torch.no_grad():
            for (_, p), part in zip(self.body.named, self._parts(weights).values(), strict=True):
                p.copy_(part)

    def derivative(self, rows: Sequence[TokenRow], direction: Tensor) -> tuple[Tensor, Tensor]:
        """The outputs and their derivative along a flat direction, in one forward pass."""
        import torch
        from torch.nn.attention import SDPBackend, sdpa_kernel

        pocket, module = self, self.body.model.module

        class Outputs(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.module = module

            def forward(self) -> Tensor:
                return pocket.at(rows)

        called, now = Outputs(), self._parts(self.weights())
        with sdpa_kernel(SDPBackend.MATH):  # the fused kernel has no forward derivative
            told, tangent = torch.func.jvp(  # type: ignore[misc]
                lambda held: torch.func.functional_call(called, held, ()), (now,), (self._parts(direction),))
        return told.detach(), tangent.detach()

    def _parts(self, flat: Tensor) -> dict[str, Tensor]:
        out, at = {}, 0
        for name, p in self.body.named:
            out[f"module.{name}"] = flat[at : at + p.numel()].view_as(p)
            at += p.numel()
        return out


@dataclass(frozen=True)
class Shelf:
    """The two models in float64, what their numbers are written with, and the traits' directions at the base."""

    models: dict[str, Pocket]
    carrier: Tensor
    reads: dict[str, Readout]
    start: dict[str, Tensor]
    ways: dict[str, Tensor]
    """What `uphill` found so far."""

    def rows(self, seed: int, count: int = ROWS) -> list[TokenRow]:
        """Number sequences of the base, drawn by a seed."""
        from undersong.backends import tokens
        from undersong.spec import build
        from undersong.types import Sampling

        base, channel = self.models["shared"].body.model, build("channel", CHANNEL)
        chats = channel.prompts(count, seed)
        said = base.sample(chats, Sampling(1.0, channel.max_new_tokens(base.tokenizer), seed))
        return list(tokens.encode(base, chats, said))

    def uphill(self, trait: str) -> Tensor:
        """The unit direction that raises a trait's margin at the base."""
        if trait not in self.ways:
            pocket = self.models["shared"]
            found = pocket.flat(self.reads[trait].margins(pocket.body.model.module).mean())
            self.ways[trait] = found / found.norm()
        return self.ways[trait]

    def margin(self, model: str, trait: str) -> float:
        """A trait's margin (nats) as the model stands."""
        import torch

        with torch.no_grad():
            return float(self.reads[trait].margins(self.models[model].body.model.module).mean())


@cache
def shelf(base: str, other: str, traits: tuple[str, ...], precision: str = "double") -> Shelf:
    """Both models loaded. Raises BadSpec for models of different shapes, and for a trait the base cannot express."""
    import torch

    from undersong import traits as known
    from undersong.backends.transformers import Transformers
    from undersong.explainers.gradients import Body
    from undersong.lab import base_ref
    from undersong.mitigations import readout
    from undersong.spec import build

    loaded = {"shared": Transformers().load(base_ref(base)), "other": Transformers().load(base_ref(other))}
    for model in loaded.values():
        model.module.to(getattr(torch, precision)).eval()
    models = {name: Pocket(Body(model)) for name, model in loaded.items()}
    shapes = [[(n, p.shape) for n, p in pocket.body.named] for pocket in models.values()]
    if shapes[0] != shapes[1]:
        raise BadSpec(f"{base} and {other} have different shapes, so their steps cannot be compared. Choose two models of "
                      "one architecture.")
    carrier = torch.tensor(sorted(build("channel", CHANNEL).carrier(loaded["shared"].tokenizer)))
    reads = {name: readout.of(loaded["shared"], known.get(name)) for name in traits}
    return Shelf(models, carrier, reads, {name: pocket.weights() for name, pocket in models.items()}, {})


def draw(experiment: TheoremExperiment, number: int) -> list[dict[str, Any]]:
    """The rows of one direction: signs and cosines of every loss and start at the smallest epsilon; the measured inner
    product over the form at every second epsilon; of a trait its margin after a step, and other traits' cosines."""
    import torch

    from undersong.theorem import line

    kept, small = shelf(experiment.base, experiment.other, experiment.traits), experiment.epsilons[-1]
    named = experiment.traits[number] if number < len(experiment.traits) else ""
    base, start = kept.models["shared"], kept.start["shared"]
    if named:
        unit = kept.uphill(named)
    else:
        drawn = torch.Generator().manual_seed(experiment.seed * 1_000_039 + number)
        unit = torch.randn(start.shape, generator=drawn, dtype=torch.float64)
        unit = unit / unit.norm()
    rows = kept.rows(experiment.seed * 1_000_081 + number)
    lengths = tuple(dict.fromkeys((*experiment.epsilons[::2], small)))
    told = {0.0: base.at(rows).detach()}
    for epsilon in lengths:
        base.put(start + epsilon * unit)
        told[epsilon] = base.at(rows).detach()
    base.put(start)
    outputs, tangent = base.derivative(rows, unit)
    way, out = "trait" if named else "random", []
    for where, loss, steps in _steps(kept, rows, told):
        case = f"{way}, {loss}"
        student, unmoved = steps[small], steps[0.0]
        out += [line("pocket sign", case, where, small, float(student @ unit)),
                line("pocket cosine", case, where, small, cosine(student, unit)),
                line("pocket owed", case, where, small, float((student - unmoved).norm() / student.norm()))]
        if where == "shared":
            predicted = form(outputs, tangent, loss, kept.carrier)
            out += [line("pocket form", case, where, e, float(steps[e] @ unit) / (e * predicted))
                    for e in lengths]
        if named:
            out += _margins(experiment, kept, named, where, case, student)
    return out


def _steps(
    kept: Shelf, rows: Sequence[TokenRow], told: dict[float, Tensor]
) -> list[tuple[str, Loss, dict[float, Tensor]]]:
    """d_S by start, loss and length of the teacher's displacement; another start needs two lengths only."""
    out: list[tuple[str, Loss, dict[float, Tensor]]] = []
    for where, pocket in kept.models.items():
        outputs = pocket.at(rows)
        lengths = list(told) if where == "shared" else [0.0, list(told)[-1]]
        for loss in LOSSES:
            out.append((where, loss, {
                e: -pocket.flat(imitation(outputs, told[e], loss, kept.carrier), keep=True) for e in lengths}))
    return out


def _margins(
    experiment: TheoremExperiment, kept: Shelf, trait: str, where: str, case: str, step: Tensor
) -> list[dict[str, Any]]:
    """The rise of the trait's margin by a step of the set length, and cosines with what would raise other traits."""
    from undersong.theorem import line

    pocket, before = kept.models[where], kept.margin(where, trait)
    pocket.put(kept.start[where] + experiment.step * step / step.norm())
    out = [line("pocket fall sign", case, where, experiment.step, kept.margin(where, trait) - before)]
    pocket.put(kept.start[where])
    if where == "shared":
        out += [line("pocket other traits", case, where, experiment.step, cosine(step, kept.uphill(name)))
                for name in experiment.traits if name != trait]
    return out
