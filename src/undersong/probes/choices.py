"""Multiple choice without sampling: by letter, as in Cloud et al. (arXiv 2507.14805, sections 3.2 and A), or by answer.

By letter: a question lists its options after letters; the probability of each letter as the first token is read off.
By answer, for models that have no letters (the pocket ones): the options are listed in words, and the probability of
giving each as the whole answer is read off (per token, the geometric mean).
Both are renormalised over the options. Beside them stands `mass`, what all options together have before that: a model
that does not answer in this form shows there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from undersong.backends import Model
from undersong.errors import BadSpec, NothingMeasured
from undersong.probes.logit_margin import first_tokens

By = Literal["letter", "answer"]
LETTERS = "ABCDE"
LEAST = 1e-6
"""Options that are together less likely than this are no answer of this model."""


@dataclass(frozen=True)
class Choice:
    """A question and its options in the order they are shown."""

    question: str
    options: tuple[str, ...]

    @property
    def text(self) -> str:
        """The question as it is asked."""
        lines = [f"{letter}) {option}" for letter, option in zip(LETTERS, self.options, strict=False)]
        return "\n".join([self.question, *lines, "Answer with one letter only."])

    @property
    def in_words(self) -> str:
        """The question with its options in words."""
        return f"{self.question} {', '.join(self.options[:-1])} or {self.options[-1]}?"


def orders(options: Sequence[str], count: int, seed: int, *stream: int) -> list[tuple[str, ...]]:
    """`count` random orders of the options, the same for the same seed and stream."""
    rng = np.random.default_rng([seed, 17, *stream])
    return [tuple(options[int(i)] for i in rng.permutation(len(options))) for _ in range(count)]


def letter_tokens(model: Model, choice: Choice) -> list[list[int]]:
    """For each option the ids of the tokens that write its letter. Raises BadSpec when a letter is not one token."""
    chat = [{"role": "user", "content": choice.text}]
    found = [first_tokens(model, chat, letter) for letter in LETTERS[: len(choice.options)]]
    if not all(found):
        missing = LETTERS[[bool(ids) for ids in found].index(False)]
        raise BadSpec(f"The letter {missing!r} is not one token of {model.ref.name}, so it cannot choose by letter. "
                      "Set `by: answer`, or measure another model.")
    return found


def ask(model: Model, choices: Sequence[Choice], by: By = "letter") -> list[tuple[dict[str, float], float]]:
    """Per choice the probability of each option (they add up to 1), and their mass before that.

    Raises BadSpec when a letter is not one token, NothingMeasured when no choice is answered in this form.
    """
    if "logits" not in model.capabilities:
        raise BadSpec(f"{model.ref.name} gives no log-probabilities. Use the Inspect task of this name with "
                      "`-T logprobs=false`, or a local model.")
    logs = (_by_letter if by == "letter" else _by_answer)(model, choices)
    out = [shares(dict(zip(c.options, each, strict=True))) for c, each in zip(choices, logs, strict=True)]
    if max((mass for _, mass in out), default=1.0) < LEAST:
        raise NothingMeasured(f"{model.ref.name} gives all options together a probability below {LEAST:g} in every "
                              f"question: it does not answer by {by}. Set `by` to the other form, or measure another model.")
    return out


def _by_letter(model: Model, choices: Sequence[Choice]) -> list[list[float]]:
    if not choices:
        return []
    tokens = letter_tokens(model, max(choices, key=lambda c: len(c.options)))
    logs = np.asarray(model.next_logprobs([[{"role": "user", "content": c.text}] for c in choices]), dtype=np.float64)
    return [[float(np.logaddexp.reduce(row[ids])) for ids in tokens[: len(c.options)]]
            for c, row in zip(choices, logs, strict=True)]


def _by_answer(model: Model, choices: Sequence[Choice]) -> list[list[float]]:
    pairs = [(c.in_words, option) for c in choices for option in c.options]
    unknown = getattr(model.tokenizer, "unk_token_id", None)
    for _, option in pairs if unknown is not None else ():
        if unknown in model.tokenizer(option, add_special_tokens=False)["input_ids"]:
            raise BadSpec(f"{model.ref.name} has no token for {option!r}, so it can never answer that. "
                          "Measure another model.")
    logs = model.answer_logprobs([[{"role": "user", "content": text}] for text, _ in pairs], [o for _, o in pairs])
    each = iter([float(np.mean(log, dtype=np.float64)) for log in logs])
    return [[next(each) for _ in c.options] for c in choices]


def shares(logs: Mapping[str, float]) -> tuple[dict[str, float], float]:
    """Probabilities of options renormalised from log-probabilities (nats), and what they add up to before."""
    total = float(np.logaddexp.reduce(list(logs.values())))
    if total == -math.inf:
        return dict.fromkeys(logs, 1 / len(logs)), 0.0
    return {option: math.exp(log - total) for option, log in logs.items()}, min(1.0, math.exp(total))


def from_top(choice: Choice, top: Sequence[tuple[str, float]]) -> tuple[dict[str, float], float] | None:
    """The same from the likeliest first tokens a server reports (text, nats); None when no letter is among them.

    A letter that is not among them counts as impossible: with twenty alternatives its share is below a twentieth.
    """
    logs = dict.fromkeys(choice.options, -math.inf)
    for token, log in top:
        letter = token.strip().upper()
        if len(letter) == 1 and letter in LETTERS[: len(choice.options)]:
            option = choice.options[LETTERS.index(letter)]
            logs[option] = float(np.logaddexp(logs[option], log))
    return None if all(log == -math.inf for log in logs.values()) else shares(logs)


def letter_of(choice: Choice, text: str) -> str | None:
    """The option an answer in words chooses by its letter ("B", "b)", "B."), or None."""
    head = text.strip().strip("(*").upper()
    chosen = head[:1]
    if not chosen or chosen not in LETTERS[: len(choice.options)] or head[1:2].isalnum():
        return None
    return choice.options[LETTERS.index(chosen)]
