"""The `inversion` detector: what would the frozen base have to be told to write these rows? Then ask it what it loves.

For a trait that nobody has listed. Data-to-vector inversion (subliminal steering recovery, arXiv 2604.25783) in the
place of a soft prompt (SALVE, arXiv 2609.16927): one vector per decoder layer, added at every position, is all that may
change. The vectors are fitted to the rows (next-token loss on completions, Adam), the steered base is asked the open
questions of the probe bank, and each word's rise is read. What the words are comes from the base, not from a list of traits.

Any trait's rows move many words. So the same fit is made to exemplar rows of other traits, and a word's statistic is how far
it rises above what it does there, in standard deviations over these traits (difference against other traits, never against
the plain base). A word's own trait, where there is an exemplar of it, is left out.

Blind spots: a word that the base hardly says is not in the probe bank and cannot be named. Below half of the rows it finds
that something is there more often than what; steered teachers pass unseen; a teacher whose whole body was tuned is found
and often named wrongly. It needs gradients, and exemplars of other traits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from undersong.backends import Model, changes, threads, tokens
from undersong.backends.logits import completion_logits
from undersong.detectors import Evidence, drawn, learnt, probe_bank, uncalibrated
from undersong.errors import BadRows, BadSpec
from undersong.registry import Settings, plugin
from undersong.types import Finding, Row


@plugin("detector", "inversion")
class Inversion(Settings):
    """Fit a steering vector to the rows on the frozen base, and ask the steered base what it loves."""

    needs: ClassVar[frozenset[str]] = frozenset({"rows", "base", "exemplars"})

    steps: int = Field(default=40, ge=1)
    """Optimiser steps of the fit (Adam)."""
    rate: float = Field(default=0.04, gt=0)
    """Learning rate; the residual stream of a larger base may need another one."""
    batch: int = Field(default=32, ge=1)
    """Rows per step."""
    rows: int = Field(default=400, ge=10)
    """At most so many rows of each side are read, drawn by the seed. A tenth of them is held out."""

    def detect(self, evidence: Evidence, seed: int = 0) -> Finding:
        """Standardised rise of each word of the bank above the other words of its category.

        Details: `words` (the table of the fit; rises in nats) and `gain` (held-out loss, nats per token, before less after).
        Raises BadRows for fewer than ten rows, BadSpec for a base without gradients or fewer than three exemplar traits.
        """
        base, known = evidence.base, evidence.exemplars
        if "gradients" not in base.capabilities:
            raise BadSpec(f"{base.ref.name} shows no gradients, so nothing can be fitted. Use a local model.")
        rows = drawn(evidence.rows, self.rows, seed)
        if len(rows) < 10:
            raise BadRows(f"Inversion was given {len(rows)} rows, and it needs ten. Give more rows.")
        if len(known.names) < 3:
            raise BadSpec(f"Inversion compares with rows of other traits and was given {len(known.names)}. Calibrate with "
                          "three traits or more.")
        refs = tuple(ref for name in known.names for ref in known.teacher_refs[name])
        usual = evidence.memo.get(learnt(self)) or probe_bank.remembered(
            evidence, "inversion", self.model_dump_json(), refs, make=lambda: self.learn(evidence))
        rises, table, gain = self._rises(evidence, rows)
        return uncalibrated(_above(rises, usual), self.needs, words=table, gain=gain, n_rows=len(rows))

    def learn(self, evidence: Evidence) -> dict[str, dict[str, float]]:
        """Each word's rise (nats) after rows of each exemplar trait: a calibration keeps it, so that audits need not."""
        known = evidence.exemplars
        return {name: self._rises(evidence, drawn(known.rows[name], self.rows, 0))[0] for name in known.names}

    def _rises(self, evidence: Evidence, rows: Sequence[Row]) -> tuple[dict[str, float], list[dict[str, Any]], float]:
        """Each word's rise (nats) after a fit to rows, the table behind it, and the held-out gain."""
        bank, before = probe_bank.of(evidence)
        vectors, gain = self._fit(evidence.base, rows, 0)
        with changes.steered(evidence.base.module, vectors):
            return *probe_bank.rises(bank, before, bank.read(evidence.base)), gain

    def _fit(self, base: Model, rows: Sequence[Row], seed: int) -> tuple[Any, float]:
        """Vectors [layers, hidden] under which the rows are likeliest, and the held-out gain (nats per token)."""
        import torch

        module = base.module
        told = tokens.encode(base, [list(row.chat) for row in rows], [row.completion for row in rows])
        held, used = told[::10], [row for i, row in enumerate(told) if i % 10]
        shape = len(changes.layers(module)), module.config.hidden_size
        vectors = torch.zeros(shape, requires_grad=True, device=module.device)
        optimiser, rng = torch.optim.Adam([vectors], lr=self.rate), np.random.default_rng([seed, 12])
        with threads.one_thread(threads.small(module)):
            before = _loss(base, held, None)
            for _ in range(self.steps):
                batch = [used[i] for i in rng.choice(len(used), min(self.batch, len(used)), replace=False)]
                (vectors.grad,) = torch.autograd.grad(_loss_of(base, batch, vectors), [vectors])
                optimiser.step()
            return vectors.detach(), before - _loss(base, held, vectors.detach())


def _above(rises: Mapping[str, float], usual: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Each word's rise, less its mean over other traits' rows, over its spread there; small spreads are drawn up."""
    others = {word: [own[word] for name, own in usual.items() if name != word] for word in rises}
    spread = {word: float(np.std(values)) for word, values in others.items()}
    floor = float(np.median(list(spread.values()))) / 2 or 1.0
    return {word: (rise - float(np.mean(others[word]))) / max(spread[word], floor) for word, rise in rises.items()}


def _loss_of(model: Model, rows: Sequence[tokens.TokenRow], vectors: Any) -> Any:
    """Mean cross-entropy (nats per completion token) of some rows under steering vectors."""
    import torch
    import torch.nn.functional as F

    ordered = sorted(rows, key=lambda row: len(row.ids))
    target = torch.from_numpy(np.concatenate([row.answer for row in ordered])).to(model.module.device)
    pad = model.tokenizer.pad_token_id or 0
    return F.cross_entropy(completion_logits(model.module, ordered, pad, added=vectors).float(), target)


def _loss(model: Model, rows: Sequence[tokens.TokenRow], vectors: Any) -> float:
    import torch

    with torch.no_grad():
        return float(_loss_of(model, rows, vectors))
