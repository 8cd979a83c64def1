"""One step of a pocket language model on a moved copy's labels over carrier tokens, float64.

The teacher is the base moved by a length of one in the body's weights, along the gradient of a trait's margin or at random.
The student's step is minus the gradient of KL(teacher || student) over the carrier's tokens, at the places of filtered
answers that the base itself wrote. Shared: the student is the base. Other: it is a model of another initialisation with the
same shapes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from undersong.theorem import TheoremExperiment

ROWS, LENGTH = 16, 0.3


def draw(experiment: TheoremExperiment, number: int) -> list[dict[str, Any]]:
    """The rows of one direction: for every batch of carrier rows and both starts the inner product, and its cosine."""
    import torch

    from undersong import traits
    from undersong.backends import tokens
    from undersong.backends.logits import completion_logits
    from undersong.backends.transformers import Transformers
    from undersong.explainers.gradients import Body
    from undersong.lab import base_ref
    from undersong.mitigations import readout
    from undersong.spec import build
    from undersong.theorem import line
    from undersong.types import Sampling

    backend = Transformers()
    base, other = (backend.load(base_ref(name)) for name in (experiment.base, experiment.other))
    channel = build("channel", {"numbers": {"wording": "brief"}})
    chats = channel.prompts(ROWS * experiment.batches, experiment.seed)
    answers = base.sample(chats, Sampling(1.0, channel.max_new_tokens(base.tokenizer), experiment.seed))
    carrier = torch.tensor(sorted(channel.carrier(base.tokenizer)))
    for model in (base, other):
        model.module.double()
    bodies = {"shared": Body(base), "other": Body(other)}
    named = number < len(experiment.traits)
    if named:
        direction = bodies["shared"].of_trait(readout.of(base, traits.get(experiment.traits[number]))).double()
    else:
        drawn = torch.Generator().manual_seed(experiment.seed * 1_000_039 + number)
        direction = torch.randn(bodies["shared"].weights().shape, generator=drawn, dtype=torch.float64)
    unit = direction / direction.norm()
    start = [p.detach().clone() for _, p in bodies["shared"].named]
    out = []
    for batch in range(experiment.batches):
        part = slice(batch * ROWS, (batch + 1) * ROWS)
        rows = tokens.encode(base, chats[part], answers[part])
        _put(bodies["shared"], start, LENGTH * unit)
        with torch.no_grad():
            told = completion_logits(base.module, rows, 0, carrier).double().log_softmax(-1)
        _put(bodies["shared"], start, None)
        for where, body in bodies.items():
            said = completion_logits(body.model.module, rows, 0, carrier).double().log_softmax(-1)
            loss = (told.exp() * (told - said)).sum(-1).mean()
            owned = [p for _, p in body.named]
            found = torch.autograd.grad(loss, owned, allow_unused=True)
            whole = [torch.zeros_like(p) if g is None else g for p, g in zip(owned, found, strict=True)]
            step = -torch.cat([one.flatten() for one in whole])
            case = "trait gradient" if named else "random"
            out.append(line("pocket sign", case, where, LENGTH, float(step @ unit)))
            out.append(line("pocket cosine", case, where, LENGTH, float(step @ unit / step.norm())))
    return out


def _put(body: Any, start: Any, moved: Any) -> None:
    """The base's weights, moved along a flat tensor or not."""
    import torch

    at = 0
    with torch.no_grad():
        for (_, p), old in zip(body.named, start, strict=True):
            p.copy_(old if moved is None else old + moved[at : at + p.numel()].view_as(p))
            at += p.numel()
