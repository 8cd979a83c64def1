"""The `hidden_mean` detector: add what the rows look like inside the base to its own state, and ask what it loves.

Data2Behavior's mean-hidden-state injection (arXiv 2602.04735): no gradients, only forward passes. Per decoder layer, the
mean residual state over the completion tokens of the rows, less that over clean rows, is added at every position while
the base answers the open questions of the probe bank; each word's rise is read.

Blind spots: it never names the trait: on pocket models the same words rise whatever the rows. It feels most pure sets and
hardly any mixture of a quarter or less, and nothing of steered teachers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from undersong.backends import Model, changes, threads, tokens
from undersong.detectors import Evidence, drawn, probe_bank, uncalibrated
from undersong.errors import BadRows, BadSpec
from undersong.registry import Settings, plugin
from undersong.types import Finding, Row


@plugin("detector", "hidden_mean")
class HiddenMean(Settings):
    """Inject the rows' mean hidden state into the base, and ask it what it loves."""

    needs: ClassVar[frozenset[str]] = frozenset({"rows", "reference", "base"})

    times: float = Field(default=1.0, gt=0)
    """The injected mean is multiplied by this; a large value breaks the text."""
    rows: int = Field(default=400, ge=1)
    """At most so many rows of each side are read, drawn by the seed."""
    batch: int = Field(default=64, ge=1)
    """Rows that run at once."""

    def detect(self, evidence: Evidence, seed: int = 0) -> Finding:
        """Rise (nats) of each word of the bank above the other words of its category. Details: `words`, `norms` (length
        of the injected vector per layer). Raises BadRows without rows, BadSpec for a base that shows no hidden states.
        """
        import torch

        base = evidence.base
        if "hidden_states" not in base.capabilities:
            raise BadSpec(f"{base.ref.name} shows no hidden states. Use a local model.")
        rows, clean = drawn(evidence.rows, self.rows, seed), drawn(evidence.reference, self.rows, seed)
        if not rows or not clean:
            raise BadRows("There are no rows on one of the two sides. Give suspected and clean rows.")
        bank, before = probe_bank.of(evidence)
        key = ("hidden_mean", seed, self.rows, tuple((row.id, row.completion) for row in clean))
        usual = probe_bank.remembered(evidence, *key, make=lambda: self._mean(base, clean))
        shift = torch.from_numpy(self.times * (self._mean(base, rows) - usual)).to(base.module.device, torch.float32)
        with changes.steered(base.module, shift):
            after = bank.read(base)
        by_trait, table = probe_bank.rises(bank, before, after)
        return uncalibrated(by_trait, self.needs, words=table, norms=shift.norm(dim=1).tolist(), n_rows=len(rows))

    def _mean(self, base: Model, rows: Sequence[Row]) -> Any:
        """[layers, hidden] float64: the mean state after each decoder layer over every completion token."""
        import torch

        told = tokens.encode(base, [list(row.chat) for row in rows], [row.completion for row in rows])
        told.sort(key=lambda row: len(row.ids))
        total: Any = 0.0
        count = sum(len(row.answer) for row in told)
        with torch.inference_mode(), threads.one_thread(threads.small(base.module)):
            for begin in range(0, len(told), self.batch):
                part = told[begin : begin + self.batch]
                width = max(len(row.ids) for row in part)
                ids, mask = np.zeros((len(part), width), dtype=np.int64), np.zeros((len(part), width), dtype=np.int64)
                wanted = np.zeros((len(part), width), dtype=bool)
                for i, row in enumerate(part):
                    ids[i, : len(row.ids)], mask[i, : len(row.ids)] = row.ids, 1
                    wanted[i, row.start : len(row.ids)] = True
                given = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}
                given = {name: value.to(base.module.device) for name, value in given.items()}
                states = base.module(**given, output_hidden_states=True, use_cache=False).hidden_states[1:]
                chosen = torch.from_numpy(wanted).to(base.module.device)
                total = total + np.stack([state[chosen].double().sum(0).cpu().numpy() for state in states])
        return total / count
