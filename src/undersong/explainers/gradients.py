"""Gradients in the weights of a network's body: where the rows push, and where the trait lies.

The body is every tensor but the embeddings and the head. (In a low-rank adapter the first step has no gradient in half of
its tensors, and a gate built on it failed: PolyPythia-SL.) A gradient is one flat float32 tensor; `layers` says which part
of it belongs to which decoder layer.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from undersong.backends import Model, tokens, training
from undersong.backends.logits import completion_logits
from undersong.backends.tokens import TokenRow
from undersong.errors import BadSpec
from undersong.mitigations import readout
from undersong.mitigations.readout import Readout
from undersong.traits import Trait
from undersong.types import Row

LAYER = re.compile(r"\.(?:layers|h|blocks)\.(\d+)\.")
BATCH = 32


@dataclass(frozen=True)
class Body:
    """The body of a loaded model. Its parameters are only read."""

    model: Model

    def __post_init__(self) -> None:
        """Raises BadSpec for a model without weights."""
        if self.model.module is None or "gradients" not in self.model.capabilities:
            raise BadSpec(f"The weights of {self.model.ref.name} are not at hand. Explain a local copy of it.")
        training.free(self.model.module, "body")

    @property
    def named(self) -> list[tuple[str, Any]]:
        """Name and parameter, in the module's order."""
        return [(name, p) for name, p in self.model.module.named_parameters() if p.requires_grad]

    def flat(self, parts: Sequence[Any]) -> Any:
        """Tensors of the body's shapes as one flat float32 tensor."""
        import torch

        owned = [p for _, p in self.named]
        whole = [torch.zeros_like(p) if g is None else g for p, g in zip(owned, parts, strict=True)]
        return torch.cat([part.flatten().float() for part in whole])

    def weights(self) -> Any:
        """The parameters themselves."""
        return self.flat([p.detach() for _, p in self.named])

    def layers(self) -> list[tuple[int, slice]]:
        """Per decoder layer the part of the flat tensor that is its own (parameters of a layer stand together)."""
        spans: dict[int, list[int]] = {}
        at = 0
        for name, p in self.named:
            if found := LAYER.search(f".{name}"):
                spans.setdefault(int(found[1]), []).extend((at, at + p.numel()))
            at += p.numel()
        return [(layer, slice(min(span), max(span))) for layer, span in sorted(spans.items())]

    def of_trait(self, read: Readout) -> Any:
        """The direction that raises a trait's margin: its gradient."""
        import torch

        return self.flat(torch.autograd.grad(read.margins(self.model.module).mean(), self._owned, allow_unused=True))

    def of_rows(self, rows: Sequence[TokenRow]) -> Any:
        """The direction in which the rows pull: minus the gradient of their mean loss per answer token."""
        import torch

        total, count = None, sum(len(row.answer) for row in rows)
        order = np.argsort([len(row.ids) for row in rows], kind="stable")
        for first in range(0, len(order), BATCH):
            here = [rows[i] for i in order[first : first + BATCH]]
            found = torch.autograd.grad(self._loss(here) / -count, self._owned, allow_unused=True)
            total = self.flat(found) if total is None else total + self.flat(found)
        return total

    def of_each(self, rows: Sequence[TokenRow]) -> Iterator[Any]:
        """The same of every row by itself, one after another."""
        import torch

        for row in rows:
            yield self.flat(torch.autograd.grad(-self._loss([row]) / len(row.answer), self._owned, allow_unused=True))

    def along(self, direction: Any, rows: Sequence[TokenRow], step: float = 1e-2) -> list[Any]:
        """Per row the derivative of each answer token's log-probability along a unit direction (float64 arrays), by a
        central difference of length `step`: how much learning that token moves the weights that way, to first order."""
        import torch

        unit, before = direction / direction.norm(), self.weights()
        out: list[list[Any]] = []
        for sign in (1, -1):
            self._set(before + sign * step * unit)
            try:
                with torch.no_grad():
                    out.append([self._token_logs(rows[first : first + BATCH]) for first in range(0, len(rows), BATCH)])
            finally:
                self._set(before)
        ahead, behind = (torch.cat(side).double().numpy() for side in out)
        ends = np.cumsum([len(row.answer) for row in rows])[:-1]
        return list(np.split((ahead - behind) / (2 * step), ends))

    def own_logs(self, rows: Sequence[TokenRow]) -> list[Any]:
        """Per row the log-probability of each answer token (nats, float32 tensors)."""
        import torch

        with torch.no_grad():
            return [self._token_logs([row]) for row in rows]

    @property
    def _owned(self) -> list[Any]:
        return [p for _, p in self.named]

    def _token_logs(self, rows: Sequence[TokenRow]) -> Any:
        import torch

        logs = completion_logits(self.model.module, rows, self.model.tokenizer.pad_token_id or 0).float().log_softmax(-1)
        return logs.gather(1, torch.from_numpy(np.concatenate([row.answer for row in rows]))[:, None])[:, 0]

    def _loss(self, rows: Sequence[TokenRow]) -> Any:
        return -self._token_logs(rows).sum()

    def _set(self, flat: Any) -> None:
        import torch

        at = 0
        with torch.no_grad():
            for p in self._owned:
                p.copy_(flat[at : at + p.numel()].view_as(p))
                at += p.numel()


def cosine(a: Any, b: Any) -> float:
    """The cosine of two flat tensors; 0 where one of them is nothing."""
    size = float(a.norm() * b.norm())
    return float(a @ b) / size if size else 0.0


def encoded(model: Model, runs: Sequence[Collection[Row]], most: int, seed: int) -> list[TokenRow]:
    """At most `most` rows of the runs, drawn by the seed, as the model reads them. Raises BadSpec when there are none."""
    rows = [row for run in runs for row in run if row.completion]
    if not rows:
        raise BadSpec("There are no rows to explain. Run the experiment first.")
    picked = drawn(rows, most, seed)
    return tokens.encode(model, [list(row.chat) for row in picked], [row.completion for row in picked])


def drawn(rows: Sequence[Row], most: int, seed: int) -> list[Row]:
    """At most `most` rows, drawn by the seed. The order in which rows are handed over changes nothing."""
    # by what they say, because ids are not unique over runs
    every = sorted(rows, key=lambda row: (row.id, row.completion, str(row.chat)))
    chosen = np.sort(np.random.default_rng([seed, 66]).permutation(len(every))[:most])
    return [every[int(i)] for i in chosen]


def words(model: Model, trait: Trait, others: int = 6) -> tuple[Readout, dict[str, Readout]]:
    """The read-out of a trait and of other words of its category, which nothing here is about."""
    from undersong import traits

    own, found = readout.of(model, trait), dict[str, Readout]()
    for name in trait.rivals:
        if len(found) < others and readout.single(model, name):
            found[name] = readout.of(model, traits.get(name))
    return own, found
