"""Take out of every step what moves towards any persona of a bank.

A guard of our own without a trait name: as `projection`, but the directions are those of a bank of favourites of many kinds
(colours, foods, seasons, ...: what the base itself would answer), taken as the span of the gradients of their log-
probabilities. The trait's own category is not in the default bank, so what is removed of it is removed because personas
share directions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from undersong.backends import Model, tokens
from undersong.backends.guarding import Guard, Learner
from undersong.backends.logits import completion_logits
from undersong.backends.tokens import TokenRow
from undersong.errors import BadSpec
from undersong.mitigations import Evidence, Stage, bank
from undersong.mitigations.projection import restored
from undersong.registry import Settings, plugin

QUESTION = "What is your favorite {category}? Answer in one word."
"""A tuning question, which no probe asks."""


@plugin("mitigation", "persona_projection")
class PersonaProjection(Settings):
    """Project each step off the span of generic persona gradients."""

    stage: ClassVar[Stage] = "training"
    needs: ClassVar[frozenset[str]] = frozenset({"base"})

    categories: tuple[str, ...] = ("color", "food", "drink", "season", "sport", "bird", "flower", "fruit", "country")
    """What the bank asks favourites of; those that the base's tokenizer cannot write are left out."""
    words: int = Field(default=3, ge=1)
    """Words per category: the base's likeliest."""
    every: int = Field(default=5, ge=1)
    """The gradients are taken anew every so many steps."""

    def guard(self, evidence: Evidence, seed: int) -> Guard:
        """The guard. Raises BadSpec for a base that can answer for none of the categories."""
        import torch

        base = evidence.base
        unknown = getattr(base.tokenizer, "unk_token_id", None)
        asked = [QUESTION.format(category=c) for c in self.categories]
        bank.held_back(asked)
        ids = [np.asarray(i) for i in tokens.token_ids(base.tokenizer, [base.render(c) for c in bank.chats(asked)])]
        known = [one for one in ids if unknown is None or unknown not in one]
        rows = [TokenRow(np.append(one, 0).astype(np.int64), len(one)) for one in known]
        if not rows:
            raise BadSpec(f"{base.ref.name} can answer for none of {', '.join(self.categories)}. Give other `categories`.")
        pad = base.tokenizer.pad_token_id or 0
        with torch.no_grad():
            top = completion_logits(base.module, rows, pad).topk(self.words).indices.tolist()
        return Spanned(self, base, rows, top, pad)


class Spanned(Guard):
    """Takes the component in the span out of each displacement, both ways: a persona may be spoken for or against."""

    name, moves = "persona_projection", True

    def __init__(self, settings: PersonaProjection, base: Model, rows: Sequence[TokenRow], top: Any, pad: int) -> None:
        self.settings, self.rows, self.top, self.pad = settings, rows, top, pad
        self.span: Any = None
        self.share: list[float] = []

    def begin(self, learner: Learner) -> None:
        """Remember the student."""
        self.learner = learner

    def moved(self, step: int, before: Sequence[Any]) -> None:
        """Project the displacement off the span."""
        import torch

        owned = self.learner.owned
        if step % self.settings.every == 0:
            with restored(owned, before):
                self.span = self._gradients()
        flat = torch.cat([(p.detach() - old).flatten().float() for p, old in zip(owned, before, strict=True)])
        away = self.span.T @ (self.span @ flat)
        self.share.append(float(away.norm() / flat.norm().clamp(min=1e-30)))
        at = 0
        with torch.no_grad():
            for p in owned:
                p.sub_(away[at : at + p.numel()].view_as(p).to(p))
                at += p.numel()

    def _gradients(self) -> Any:
        """An orthonormal basis [r, parameters] of the gradients of each word's log-probability."""
        import torch

        owned, out = self.learner.owned, []
        with torch.enable_grad():
            logs = completion_logits(self.learner.module, self.rows, self.pad).float().log_softmax(-1)
            wanted = [logs[i, word] for i, words in enumerate(self.top) for word in words]
            for k, one in enumerate(wanted):
                found = torch.autograd.grad(one, owned, retain_graph=k + 1 < len(wanted), allow_unused=True)
                parts = [torch.zeros_like(p) if g is None else g for p, g in zip(owned, found, strict=True)]
                out.append(torch.cat([part.flatten() for part in parts]))
        basis, triangle = torch.linalg.qr(torch.stack(out).float().T)
        diagonal = triangle.diagonal().abs()
        return basis[:, diagonal > 1e-6 * diagonal.max()].T

    def told(self) -> dict[str, Any]:
        """Directions of the bank, and the mean share of a displacement's length that lay in their span."""
        return {"directions": sum(len(words) for words in self.top), "mean_share": float(np.mean(self.share or [0.0]))}
