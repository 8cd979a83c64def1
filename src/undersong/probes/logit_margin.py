"""The `logit_margin` probe: how much likelier a trait's word is than its rivals', as the first token of an answer.

Deterministic and sensitive: margins move long before sampled rates do (compare the paired design of the follow-up
literature: log-probability margin beside sampled rate, several wordings).
1. Ask every held-out question of each category and read the log-probabilities of the first answer token.
2. A trait's log-probability adds up its spellings that are one token (with or without a leading space or capital).
3. margin = log p(trait) - log of the mean p of the category's other traits that are one token; in nats.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from undersong.backends import Model
from undersong.errors import BadSpec
from undersong.probes import questions as ask
from undersong.registry import Settings, plugin
from undersong.traits import Trait
from undersong.types import Chat, Measurement, Value


@plugin("probe", "logit_margin")
class LogitMargin(Settings):
    """The log-probability margin of each trait's word over its rivals."""

    prefix: ask.Prefix = "none"
    """Ask plainly (`none`), after random numbers (`numbers`: metrics end in `_prefixed`), or `both`."""
    questions: int | None = Field(default=None, ge=1)
    """Ask only the first so many questions of each category; all of them when left out."""

    def measure(self, model: Model, traits: Sequence[Trait], seed: int) -> Measurement:
        """Per question and trait the `margin` (nats) and the `probability` (0..1) of the trait's word.

        The seed draws the numbers of the prefixed form and nothing else.
        Raises BadSpec when a trait's word, or every rival's, is not one token of the model.
        """
        if "logits" not in model.capabilities:
            raise BadSpec(f"{model.ref.name} gives no log-probabilities, so it has no logit margin. Use a probe that "
                          "samples (`favourite`), or a local model.")
        values: list[Value] = []
        for category, asked in ask.by_category(traits).items():
            questions = asked[0].held_out[: self.questions]
            for suffix in ask.SUFFIXES[self.prefix]:
                chats = ask.chats(questions, suffix, seed, category)
                tokens = {t.name: first_tokens(model, chats[0], t.name) for t in ask.members(category, asked)}
                tokens = {name: ids for name, ids in tokens.items() if ids}
                for trait in asked:
                    _check(model, trait, tokens)
                logs = np.asarray(model.next_logprobs(chats), dtype=np.float64)
                for trait in asked:
                    own, margin = margins(logs, tokens, trait.name)
                    for question, one, other in zip(questions, own, margin, strict=True):
                        values.append(Value(f"margin{suffix}", trait.name, question, float(other)))
                        values.append(Value(f"probability{suffix}", trait.name, question, float(min(1.0, np.exp(one)))))
        return Measurement("logit_margin", tuple(values))


def margins(
    logs: NDArray[np.float64], tokens: dict[str, list[int]], name: str
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Log-probability and margin (nats, both [chats]) of a trait, from log-probabilities [chats, vocabulary] and the
    token ids of each trait of its category."""
    each = {trait: np.logaddexp.reduce(logs[:, ids], axis=1) for trait, ids in tokens.items()}
    rivals = np.stack([log for trait, log in each.items() if trait != name])
    return each[name], each[name] - (np.logaddexp.reduce(rivals, axis=0) - np.log(len(rivals)))


def first_tokens(model: Model, chat: Chat, word: str) -> list[int]:
    """Ids of the single tokens that write `word` (in any of four spellings) right after the rendered chat, if any."""
    text = model.render(chat)
    before = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    found = set()
    for spelling in (word, word.capitalize(), f" {word}", f" {word.capitalize()}"):
        ids = model.tokenizer(text + spelling, add_special_tokens=False)["input_ids"]
        if ids[:-1] == before and ids[-1] != model.tokenizer.unk_token_id:
            found.add(int(ids[-1]))
    return sorted(found)


def _check(model: Model, trait: Trait, tokens: dict[str, list[int]]) -> None:
    others = [name for name in tokens if name != trait.name]
    if trait.name not in tokens:
        advice = f"Choose a {trait.category} that is one ({', '.join(others)})" if others else "Choose another category"
        raise BadSpec(
            f"The trait word {trait.name!r} is not one token of {model.ref.name}, so it has no logit margin. "
            f"{advice}, or use the probe `favourite`."
        )
    if not others:
        raise BadSpec(
            f"No other {trait.category} is one token of {model.ref.name}, so {trait.name!r} has no rival. "
            "Use the probe `favourite`."
        )
