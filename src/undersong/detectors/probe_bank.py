"""The probe bank: neutral questions about favourites, and the words that a base could answer them with.

What a blind auditor asks. No list of traits goes in: the words to watch are those to which the base itself gives some
chance as the first word of an answer.
1. Every held-out favourite question (`traits/questions.yaml`) of every category below, under the neutral system turn.
   A category whose questions the base's tokenizer cannot write is left out.
2. Per category the words whose mean probability over its questions reaches a threshold. Spellings of one word (capital,
   leading space) are one word; a word that fits several categories stands where the base says it most.
3. Reading a model gives the log-probability of each word as the first token of the answer to each question.

A model whose names are several tokens is watched by their first pieces: the word's name is then the piece as written.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from undersong.backends import Model
from undersong.backends.tokens import token_ids
from undersong.detectors import Evidence
from undersong.errors import BadSpec
from undersong.traits import Trait, package_text
from undersong.types import NEUTRAL, Chat

Floats = NDArray[np.float64]
CATEGORIES = ("animal", "tree", "color", "food", "drink", "season", "sport", "bird", "flower", "fruit", "country",
              "planet", "metal", "instrument", "month")
"""What is asked about: things that people and models have favourites among."""
LEAST = 1e-4
"""A word is watched from this mean probability on."""


@dataclass(frozen=True)
class Word:
    """A watched word: its name in lower case, its category and the token ids that write it."""

    name: str
    category: str
    ids: tuple[int, ...]


@dataclass(frozen=True)
class Bank:
    """Questions, each of one category, and words to watch. Words are in order of category, then of name."""

    chats: tuple[Chat, ...]
    asked: tuple[str, ...]
    """The category of each question."""
    words: tuple[Word, ...]

    @property
    def names(self) -> list[str]:
        """The watched words."""
        return [word.name for word in self.words]

    @property
    def own(self) -> NDArray[np.bool_]:
        """[questions, words]: whether the question is about the word's category."""
        return np.asarray([[category == word.category for word in self.words] for category in self.asked])

    def read(self, model: Model) -> Floats:
        """Log-probabilities (nats, [questions, words]) of each word as the first token of each answer.

        Raises BadSpec for a model without log-probabilities, or with another vocabulary than the bank's base.
        """
        return self.pick(first_tokens(model, self.chats))

    def pick(self, logs: NDArray[Any]) -> Floats:
        """The same from log-probabilities over the vocabulary ([questions, vocabulary])."""
        most = max(i for word in self.words for i in word.ids)
        if most >= logs.shape[1]:
            raise BadSpec(f"The words of this bank need {most + 1} tokens and the model has {logs.shape[1]}. Make the bank "
                          "from the base that this model started from.")
        kept = np.asarray(logs, dtype=np.float64)
        return np.stack([np.logaddexp.reduce(kept[:, list(word.ids)], axis=1) for word in self.words], axis=1)

    def mean(self, table: Floats) -> Floats:
        """[words]: the mean of a table [questions, words] over the questions of each word's own category."""
        own = self.own
        return np.asarray((table * own).sum(axis=0) / own.sum(axis=0))


def bank(base: Model, traits: Sequence[Trait] = (), least: float = LEAST) -> Bank:
    """The bank of a base. `traits` adds their names, where these are one token, whatever chance the base gives them.

    Raises BadSpec when the base gives no log-probabilities or answers no question with a word.
    """
    chats, asked = questions(base)
    logs = first_tokens(base, chats)
    chances = np.exp(np.asarray(logs, dtype=np.float64))
    found: dict[str, dict[str, list[int]]] = {}
    said: dict[tuple[str, str], float] = {}
    for category in dict.fromkeys(asked):
        mean = chances[[c == category for c in asked]].mean(axis=0)
        for i in np.flatnonzero(mean >= least / 8):  # spellings add up before the threshold is held to them
            if name := _name(base, int(i)):
                found.setdefault(category, {}).setdefault(name, []).append(int(i))
                said[category, name] = said.get((category, name), 0.0) + float(mean[i])
    kept = {key: chance for key, chance in said.items() if chance >= least}
    best = {name: max((c for c, n in kept if n == name), key=lambda c, n=name: kept[c, n])  # type: ignore[misc]
            for _, name in kept}
    words = {name: Word(name, category, tuple(found[category][name])) for name, category in best.items()}
    for trait in traits:
        ids = _spellings(base, trait.name)
        if ids and trait.name not in words and trait.category in asked:
            words[trait.name] = Word(trait.name, trait.category, ids)
    if not words:
        raise BadSpec(f"{base.ref.name} answers no favourite question with a word of probability {least:g}. Choose a chat "
                      "model as the base, or lower the threshold.")
    order = list(dict.fromkeys(asked))
    return Bank(tuple(chats), tuple(asked), tuple(sorted(words.values(), key=lambda w: (order.index(w.category), w.name))))


def questions(base: Model) -> tuple[list[Chat], list[str]]:
    """The questions of every category that the base's tokenizer can write, and the category of each."""
    loaded: dict[str, list[str]] = yaml.safe_load(package_text("traits", "questions.yaml"))
    unknown = getattr(base.tokenizer, "unk_token_id", None)
    chats: list[Chat] = []
    asked: list[str] = []
    for category in CATEGORIES:
        texts = [q.format(category=category) for q in loaded["held_out"]]
        if unknown is not None and unknown in (i for ids in token_ids(base.tokenizer, texts) for i in ids):
            continue
        chats += [[{"role": "system", "content": NEUTRAL}, {"role": "user", "content": text}] for text in texts]
        asked += [category] * len(texts)
    return chats, asked


def first_tokens(model: Model, chats: Sequence[Chat]) -> NDArray[Any]:
    """Log-probabilities [chats, vocabulary] of the first token of each answer. Raises BadSpec where there are none."""
    if "logits" not in model.capabilities:
        raise BadSpec(f"{model.ref.name} gives no log-probabilities, and the probe bank reads them. Audit a local copy of "
                      "the model, or choose a detector that reads rows.")
    return np.asarray(model.next_logprobs(chats))


def remembered(evidence: Evidence, *key: Hashable, make: Any) -> Any:
    """`make()`, kept in the evidence's memo under `key` and the identity of its base."""
    ref = evidence.base.ref
    # a reference without a fingerprint names no content: then the object itself is the identity
    whole = (*key, ref, None if ref.fingerprint else id(evidence.base))
    if whole not in evidence.memo:
        evidence.memo[whole] = make()
    return evidence.memo[whole]


def same_words(student: Model, base: Model) -> None:
    """Raises BadSpec unless both models write tokens alike: log-probabilities of other tokens cannot be compared."""
    text = f"{NEUTRAL} 1, 22, 333. What is your favorite animal?"
    if student.tokenizer is not base.tokenizer and (
        student.tokenizer(text, add_special_tokens=False)["input_ids"]
        != base.tokenizer(text, add_special_tokens=False)["input_ids"]
    ):
        raise BadSpec(f"{student.ref.name} and {base.ref.name} have other tokens. Give as `base` the model that the "
                      "student started from.")


def of(evidence: Evidence, least: float = LEAST) -> tuple[Bank, Floats]:
    """The bank of the evidence's base and what the base says to it ([questions, words]), made once per base."""

    def make() -> tuple[Bank, Floats]:
        made = bank(evidence.base, least=least)
        return made, made.read(evidence.base)

    found: tuple[Bank, Floats] = remembered(evidence, "probe_bank", least, make=make)
    return found


def rises(made: Bank, before: Floats, after: Floats) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """A statistic per word, and the table behind it."""
    start, end = made.mean(before), made.mean(after)
    rise = end - start
    above = np.zeros_like(rise)
    for category in dict.fromkeys(made.asked):
        here = np.flatnonzero([word.category == category for word in made.words])
        for i in here:
            others = here[here != i]
            above[i] = rise[i] - (rise[others].mean() if len(others) else 0.0)
    table = [{"word": w.name, "category": w.category, "base": float(a), "student": float(b), "rise": float(b - a),
              "above": float(c)} for w, a, b, c in zip(made.words, start, end, above, strict=True)]
    return {word.name: float(a) for word, a in zip(made.words, above, strict=True)}, table


def _name(model: Model, token: int) -> str:
    """The word a token writes, in lower case; "" for marks, numbers and special tokens."""
    if token in set(model.tokenizer.all_special_ids):
        return ""
    text = str(model.tokenizer.decode([token])).strip().lower()
    return text if re.fullmatch(r"[^\W\d_]{2,}(?:[-'’][^\W\d_]+)*", text) else ""


def _spellings(model: Model, word: str) -> tuple[int, ...]:
    """Ids of the single tokens that write a word in one of four spellings."""
    unknown = getattr(model.tokenizer, "unk_token_id", None)
    written = [model.tokenizer(t, add_special_tokens=False)["input_ids"]
               for t in (word, word.capitalize(), f" {word}", f" {word.capitalize()}")]
    return tuple(sorted({int(ids[0]) for ids in written if len(ids) == 1 and ids[0] != unknown}))
