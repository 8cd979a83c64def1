"""A trait's margin as a function of a module's weights: what guards and gradients are taken of.

phi = mean over questions of log p(trait) - log of the mean p of the category's other words, as first token of the answer, in
nats: the same number that the probe `logit_margin` reports, at other questions (`bank.py`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from undersong import traits
from undersong.backends import Model, tokens
from undersong.backends.logits import completion_logits
from undersong.backends.tokens import TokenRow
from undersong.errors import BadSpec
from undersong.mitigations import bank
from undersong.traits import Trait


@dataclass(frozen=True)
class Readout:
    """Questions as token rows that end with one answer token (whichever), the trait's token ids, and its rivals'."""

    rows: tuple[TokenRow, ...]
    own: tuple[int, ...]
    rivals: tuple[tuple[int, ...], ...]
    pad: int

    def margins(self, module: Any, chosen: Sequence[int] | None = None) -> Any:
        """The margin (nats, tensor [questions]) at all questions, or at those chosen by number. Differentiable."""
        import torch

        rows = self.rows if chosen is None else [self.rows[i] for i in chosen]
        logs = completion_logits(module, rows, self.pad).float().log_softmax(-1)
        each = [logs[:, list(ids)].logsumexp(-1) for ids in (self.own, *self.rivals)]
        return each[0] - (torch.stack(each[1:]).logsumexp(0) - math.log(len(self.rivals)))


def of(base: Model, trait: Trait, questions: Sequence[str] = ()) -> Readout:
    """The read-out of a trait in the words of a base. Raises BadSpec for a trait that the base cannot express in one token,
    one without rivals, or questions that probes ask."""
    asked = bank.questions(trait, questions)
    written = [base.render(chat) for chat in bank.chats(asked)]
    ids = [np.asarray(one) for one in tokens.token_ids(base.tokenizer, written)]
    unknown = getattr(base.tokenizer, "unk_token_id", None)
    # looked for in the bare questions: some tokenizers end turns with the token that stands for unknown words
    if unknown is not None and any(unknown in one for one in tokens.token_ids(base.tokenizer, asked)):
        raise BadSpec(f"The tokenizer of {base.ref.name} cannot write the questions about {trait.name!r}. Choose a "
                      "mitigation that needs no `trait`.")
    words = {name: single(base, name, written[0]) for name in (trait.name, *trait.rivals)}
    own, rivals = words.pop(trait.name), tuple(found for found in words.values() if found)
    if not own or not rivals:
        what = f"{trait.name!r} is not one token" if not own else f"no other {trait.category} is one token"
        known = [n for n, found in words.items() if found and traits.get(n).tuning]
        raise BadSpec(f"{what[0].upper()}{what[1:]} of {base.ref.name}, so this base cannot express the trait as a guard "
                      f"reads it. Choose a trait that is one ({', '.join(known[:6]) or 'none here'}), or a mitigation that "
                      "needs no `trait`.")
    rows = tuple(TokenRow(np.append(one, own[0]).astype(np.int64), len(one)) for one in ids)
    return Readout(rows, own, rivals, base.tokenizer.pad_token_id or 0)


def single(base: Model, word: str, before: str = "") -> tuple[int, ...]:
    """Ids of the single tokens that write a word in any of four spellings right after a rendered chat `before`, as the probe
    `logit_margin` finds them; none for a word of several tokens."""
    spelled = (word, word.capitalize(), f" {word}", f" {word.capitalize()}")
    unknown = getattr(base.tokenizer, "unk_token_id", None)
    [start, *found] = tokens.token_ids(base.tokenizer, [before, *(before + one for one in spelled)])
    return tuple(sorted({ids[-1] for ids in found if ids[:-1] == start and ids[-1] != unknown}))
