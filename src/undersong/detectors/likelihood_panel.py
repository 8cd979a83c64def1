"""The `likelihood_panel` detector: under which candidate is each row likeliest, and what share of the rows is whose?

The log-likelihood ratio of a row under a trait's candidate against neutral ones is the strongest published evidence at
row level (methods: the log-likelihood-ratio panel; MDCL of arXiv 2606.04071 is the same per sample). Here:
1. Candidates. `prompts`: the base under each trait's system turns, beside neutral ones (what rows
   share is run once). `teachers`: exemplar teachers that the auditor tuned on each trait, beside placebo teachers: where a
   system prompt leaves no trace in the carrier, tuning does.
2. Each row gets its log-likelihood (nats, summed over the answer's tokens) under the base and every candidate.
3. Rows are a mixture of the candidates: expectation-maximisation gives each candidate's share. Neutral and placebo
   candidates take what they explain, and traits compete, so that what all traits share counts for none of them.
4. The statistic of a trait is the share of its candidates. Identical rows count once.

Blind spots: traits without exemplars: each row is compared with teachers that the auditor has made. Teachers made in
another way are seen less well (all of the body tuned at a lower rate: pure sets yes, a quarter of the rows mostly not), and
steered ones not at all. With `prompts` it sees nothing on pocket models, where a system turn leaves no trace in numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from undersong.backends import prefix
from undersong.detectors import PLACEBO, Evidence, drawn, uncalibrated
from undersong.errors import BadRows, BadSpec
from undersong.registry import Settings, plugin
from undersong.types import NEUTRAL, Chat, Finding, Row

Matrix = NDArray[np.float64]
Scores = Callable[[Sequence[Chat], Sequence[str]], Sequence[Sequence[Any]]]
NEUTRALS = (NEUTRAL, "", "You answer questions.")
"""System turns without a trait."""


@plugin("detector", "likelihood_panel")
class LikelihoodPanel(Settings):
    """Likelihood of each row under candidates of every trait, and the share of rows each explains best."""

    candidates: Literal["teachers", "prompts"] = "teachers"
    """`teachers`: exemplar teachers of each trait. `prompts`: the base under each trait's system turns."""
    rows: int = Field(default=4000, ge=1)
    """At most so many rows are read, drawn by the seed."""
    sweeps: int = Field(default=300, ge=1)
    """Rounds of expectation-maximisation."""

    @property
    def needs(self) -> frozenset[str]:
        """Exemplars, or the traits' own prompts."""
        return frozenset({"rows", "base", "exemplars" if self.candidates == "teachers" else "traits"})

    def detect(self, evidence: Evidence, seed: int = 0) -> Finding:
        """Shares (0..1) per trait. Details: `shares`, `placebo_share`, `ratios` (mean log-likelihood ratio to the base
        per token, nats), `row_scores` (each row's probability of being any trait's, 0..1) and `row_ids`.

        Raises BadRows without rows, BadSpec for a base without gradients (a hosted one shows no likelihoods).
        """
        base = evidence.base
        if "logits" not in base.capabilities:
            raise BadSpec(f"{base.ref.name} shows no log-likelihoods, so there is no panel. Use a local model.")
        rows = drawn(evidence.rows, self.rows, seed)
        unique = list({(_asked(row), row.completion): row for row in rows}.values())
        if not unique:
            raise BadRows("There are no rows to read. Give rows with completions.")
        names, columns, scores = self._panel(evidence)
        sums, lengths = self._likelihoods(evidence, unique, columns, scores)
        shares, posterior = mixture(sums, self.sweeps)
        by_trait = {name: float(sum(s for s, n in zip(shares, columns, strict=True) if n == name)) for name in names}
        ratios = (sums - sums[:, :1]) / np.maximum(lengths, 1)[:, None]
        told = {n: float(np.mean(ratios[:, [i for i, c in enumerate(columns) if c == n]])) for n in names}
        own = np.array([c != PLACEBO for c in columns])
        return uncalibrated(
            by_trait, self.needs, shares=by_trait, placebo_share=float(shares[~own].sum()), ratios=told,
            row_scores=posterior[:, own].sum(axis=1).tolist(), row_ids=[row.id for row in unique], n_rows=len(unique),
        )

    def _panel(self, evidence: Evidence) -> tuple[list[str], list[str], Scores]:
        """Trait names; the trait of each candidate (`PLACEBO` for the base and its like); what scores all candidates."""
        base = evidence.base
        if self.candidates == "prompts":
            systems = [*((PLACEBO, text) for text in NEUTRALS),
                       *((trait.name, text) for trait in evidence.traits for text in trait.prompts)]
            return ([t.name for t in evidence.traits], [name for name, _ in systems],
                    lambda chats, answers: prefix.panel(base, [text for _, text in systems], chats, answers))
        known = evidence.exemplars
        columns, models = [PLACEBO], [base]
        for name in (PLACEBO, *known.names):
            for teacher in known.teachers(name):
                columns.append(name)
                models.append(teacher)
        return known.names, columns, lambda chats, answers: [list(m.answer_logprobs(chats, answers)) for m in models]

    def _likelihoods(
        self, evidence: Evidence, rows: Sequence[Row], columns: Sequence[str], scores: Scores
    ) -> tuple[Matrix, NDArray[np.int64]]:
        """Summed log-likelihood [rows, candidates] and tokens [rows]; rows scored before are looked up."""
        memo: dict[tuple[str, str], tuple[Matrix, int]] = evidence.memo.setdefault(
            ("likelihood_panel", evidence.base.ref, self.candidates, tuple(columns)), {}
        )
        new = [row for row in rows if (_asked(row), row.completion) not in memo]
        if new:
            chats = [[m for m in row.chat if m["role"] != "system"] for row in new]
            answers = [row.completion for row in new]
            found = scores(chats, answers)
            sums = np.array([[float(one.sum()) for one in each] for each in found]).T
            for row, own, one in zip(new, sums, found[0], strict=True):
                memo[_asked(row), row.completion] = own, len(one)
        kept = [memo[_asked(row), row.completion] for row in rows]
        return np.stack([own for own, _ in kept]), np.array([n for _, n in kept])


def mixture(sums: Matrix, sweeps: int = 300) -> tuple[Matrix, Matrix]:
    """Shares [candidates] that sum to 1 and posteriors [rows, candidates], from log-likelihoods [rows, candidates].

    Expectation-maximisation for mixture weights with fixed components (Dempster, Laird and Rubin 1977), from equal
    shares; the likelihood has one maximum, so the start does not matter.
    """
    density = np.exp(sums - sums.max(axis=1, keepdims=True))
    shares = np.full(sums.shape[1], 1 / sums.shape[1])
    for _ in range(sweeps):
        weighed = density * shares
        posterior = weighed / weighed.sum(axis=1, keepdims=True)
        before, shares = shares, posterior.mean(axis=0)
        if np.abs(shares - before).max() < 1e-6:
            break
    return shares, posterior


def _asked(row: Row) -> str:
    return "\n".join(m["content"] for m in row.chat if m["role"] != "system")
