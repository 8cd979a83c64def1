"""The `divergence_tokens` detector: where do only the suspected teacher's own best tokens stand in the rows?

After Schrodi et al. (arXiv 2509.23886): a token of a row is a divergence token when the biased teacher's likeliest token
is this token and that of at least one counterfactual teacher, given the same beginning, is another. They found 5 to 18 % of
tokens to be so, and that training on these alone keeps most of what crosses.
1. The suspected teacher, the base and the placebo teachers among the exemplars read the same rows; each reads them under
   its own system turn where the row has none.
2. The statistic is the share of completion tokens that are divergence tokens. A teacher that differs from its base in
   something benign has some too, hence the null.

A teacher with a trait has somewhat more of them on any rows, also on those that it did not write. `won` tells the two
apart: of the tokens on which the teacher and some counterfactual disagree and one of them is right, the share on which the
teacher is (near a third on other models' rows, above a half on its own; pocket, development traits).

Blind spots: it says whether a given model wrote the rows, not whether it has a trait, and needs its weights. A few of its
rows among many of others pass unseen, and so does a teacher that picks the same best tokens as its base.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from undersong.backends import Model, tokens
from undersong.backends.logits import completion_logits
from undersong.detectors import PLACEBO, Evidence, Runs, uncalibrated
from undersong.errors import BadRows, BadSpec
from undersong.registry import Settings, plugin
from undersong.spec import execution
from undersong.types import Finding, Row

Ids = NDArray[np.int64]


@plugin("detector", "divergence_tokens")
class DivergenceTokens(Settings):
    """How many tokens of the rows are the suspected teacher's first choice and not everyone's."""

    needs: ClassVar[frozenset[str]] = frozenset({"rows", "base", "teacher", "exemplars"})

    rows: int = Field(default=400, ge=1)
    """At most so many rows are read, the same number of each run, drawn by the seed."""
    teachers: int = Field(default=3, ge=0)
    """At most so many placebo teachers stand beside the base as counterfactuals."""
    micro_batch: int = execution(64)
    """Rows that run at once."""

    def detect(self, evidence: Evidence, seed: int = 0) -> Finding:
        """Finding with the share (0..1) under the key "". Details: `rows` (id and share of each row), `tokens` read,
        `followed` (share of tokens that are the teacher's first choice), `won` (0..1, see above), `counterfactuals`.

        Raises BadRows without rows or when the models write a completion in different tokens, BadSpec without weights.
        """
        rows = drawn(evidence.rows, self.rows, seed)
        own = self._choices(evidence.teacher, rows)
        right = own.best == own.token
        differs, met = np.zeros((2, len(own.token)), dtype=bool)
        names = []
        for model in self._counterfactuals(evidence):  # one at a time: they may be large
            other = self._choices(model, rows)
            if not np.array_equal(other.token, own.token):
                raise BadRows(f"{evidence.teacher.ref.name} and {model.ref.name} write the same completion in different "
                              "tokens, so they cannot be compared token by token. Give a teacher made from this base.")
            differs |= other.best != own.token
            met |= other.best == own.token
            names.append(model.ref.name)
        found = right & differs
        lost = ~right & met
        parts = np.split(found, np.cumsum(own.lengths)[:-1])
        return uncalibrated(
            {"": float(found.mean())}, self.needs, tokens=len(found), followed=float(right.mean()), counterfactuals=names,
            won=float(found.sum() / max(1, found.sum() + lost.sum())),
            rows=[(row.id, float(part.mean())) for row, part in zip(rows, parts, strict=True)],
        )

    def _counterfactuals(self, evidence: Evidence) -> Iterator[Model]:
        yield evidence.base
        yield from itertools.islice(evidence.exemplars.teachers(PLACEBO), self.teachers)

    def _choices(self, model: Model, rows: Sequence[Row]) -> _Choices:
        import torch

        if model.module is None:
            raise BadSpec(f"The weights of {model.ref.name} are not at hand, so its first choices cannot be read. Give a "
                          "local copy of it, or leave the teacher out of this audit.")
        encoded = tokens.encode(model, [list(row.chat) for row in rows], [row.completion for row in rows])
        pad = model.tokenizer.pad_token_id or 0
        best = []
        with torch.inference_mode():
            for i in range(0, len(encoded), self.micro_batch):
                logits = completion_logits(model.module, encoded[i : i + self.micro_batch], pad)
                best.append(logits.argmax(-1).cpu().numpy())
        return _Choices(np.concatenate(best), np.concatenate([row.answer for row in encoded]),
                        [len(row.answer) for row in encoded])


@dataclass(frozen=True)
class _Choices:
    """At each completion token of all rows: a model's likeliest token and the token that stands there; and how many each
    row has."""

    best: Ids
    token: Ids
    lengths: list[int]


def drawn(runs: Runs, most: int, seed: int) -> list[Row]:
    """At most `most` rows with a completion, as many of each run as of any other, in their order. Raises BadRows when
    there are none."""
    out: list[Row] = []
    for i, run in enumerate(runs):
        written = [row for row in run if row.completion]
        keep = np.sort(np.random.default_rng([seed, i]).permutation(len(written))[: max(1, most // len(runs))])
        out += [written[j] for j in keep]
    if not out:
        raise BadRows("There is no row with a completion to read. Give the rows that the teacher wrote.")
    return out[:most]
