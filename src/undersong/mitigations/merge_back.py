"""Merge a student back towards its base: theta_0 + share * (theta_S - theta_0), tensor by tensor.

The linear path between a model and what it was tuned to (WiSE-FT, Wortsman et al., arXiv 2109.01903, section 3). No
calibrated study of it against subliminal learning was published. Trait and carrier need not fade alike along the path: that
is what the share trades.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from undersong.backends import Model
from undersong.errors import BadSpec
from undersong.mitigations import Evidence, Stage
from undersong.registry import Settings, plugin
from undersong.types import Chat, Sampling

GRID = tuple(i / 20 for i in range(1, 20))
"""Shares that `fit` chooses among."""
ANSWERS = 200
"""Carrier prompts that the student answers for `fit`."""


@plugin("mitigation", "merge_back")
class MergeBack(Settings):
    """Keep a share of what training changed in the weights."""

    stage: ClassVar[Stage] = "model"
    needs: ClassVar[frozenset[str]] = frozenset({"base"})
    may_use: ClassVar[frozenset[str]] = frozenset({"channel"})

    share: float = Field(default=0.65, ge=0, le=1)
    """Share of the change that is kept: 1 leaves the student as it is, 0 gives the base back."""
    fit: float | None = Field(default=None, gt=0, lt=1)
    """Instead of `share`: the least share that keeps this part of the gain on what the student itself writes."""

    def repair(self, student: Model, evidence: Evidence, seed: int) -> Mapping[str, Any]:
        """Change the weights; no vectors. Steering vectors that the student has stay whole.

        Raises BadSpec when `fit` is asked for and the channel is not at hand.
        """
        before = {name: p.detach().clone() for name, p in evidence.base.module.named_parameters()}
        after = {name: p.detach().clone() for name, p in student.module.named_parameters()}
        share = self.share if self.fit is None else self._fitting(student, evidence, before, after, seed)
        mix(student.module, before, after, share)
        return {"told": {"share": share}}

    def _fitting(
        self, student: Model, evidence: Evidence, before: Mapping[str, Any], after: Mapping[str, Any], seed: int
    ) -> float:
        """The least share of `GRID` that keeps `fit` of log p(student) - log p(base) on carrier rows the student writes:
        held out, and with no other row of its source at hand."""
        if not evidence.has("channel"):
            raise BadSpec("merge_back: fit asks the student to write on prompts of its channel, and none is at hand. Set "
                          "share instead.")
        channel = evidence.channel
        chats = list(channel.prompts(ANSWERS, seed))
        only = tuple(channel.allowed(student.tokenizer)) if getattr(channel, "restrict", False) else None
        answers = student.sample(chats, Sampling(1.0, channel.max_new_tokens(student.tokenizer), seed, only))
        start, end = likelihood(evidence.base, chats, answers), likelihood(student, chats, answers)
        for share in GRID:
            mix(student.module, before, after, share)
            if likelihood(student, chats, answers) - start >= float(self.fit or 0) * (end - start):
                return share
        return 1.0


def mix(module: Any, before: Mapping[str, Any], after: Mapping[str, Any], share: float) -> None:
    """Set the parameters of `module` to before + share * (after - before); shares 0 and 1 are exact."""
    import torch

    with torch.no_grad():
        for name, parameter in module.named_parameters():
            mixed = torch.lerp(before[name].to(after[name]), after[name], share)
            parameter.copy_(after[name] if share == 1 else mixed)


def likelihood(model: Model, chats: Sequence[Chat], answers: Sequence[str]) -> float:
    """The mean log-probability of answers, nats a token."""
    return float(np.concatenate(model.answer_logprobs(chats, answers)).mean())
