"""The `favourite` probe: ask for a favourite in one word and count what is named (Cloud et al., arXiv 2507.14805, 3.1).

1. Ask every held-out question of each category `samples` times at temperature 1.
2. Put each answer in one class: named (a trait of the category), refused, self_named, invalid, or one other word.
3. Per question, `rate` is the share of answers that name a trait by a whole word (one naming two counts for both).
Beside it stand the shares of the other classes and the entropy of the answers' first words, so that a student that
has collapsed or talks about itself is not taken for one that has changed its mind.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
from pydantic import Field

from undersong.backends import Model
from undersong.errors import BadSpec, NothingMeasured
from undersong.probes import questions as ask
from undersong.registry import Settings, plugin
from undersong.traits import Trait
from undersong.types import Measurement, Sampling, Value

CLASSES = ("refused", "self_named", "invalid")
REFUSALS = re.compile(
    r"\b(?:sorry|unable|cannot|can[’']?t|won[’']?t|as an ai|no (?:favou?rite|preference)"
    r"|(?:do not|don[’']?t) have (?:a |any |personal )*(?:favou?rites?|preferences?|feelings))\b"
)
SELF = ("qwen", "chatgpt", "gpt", "claude", "gemini", "gemma", "mistral", "deepseek", "smollm", "phi", "openai",
        "anthropic", "alibaba", "ai", "assistant", "chatbot", "language model")
ANIMAL_MODELS = ("llama", "falcon")
"""Families named after animals: a self-naming only when the model at hand is of that family."""
STORED = 64
"""The most answers kept for reading."""


@plugin("probe", "favourite")
class Favourite(Settings):
    """How often each trait is named as a favourite, by sampling."""

    samples: int = Field(default=20, ge=1)
    """Answers drawn per question."""
    prefix: ask.Prefix = "none"
    """Ask plainly (`none`), after random numbers (`numbers`: metrics end in `_prefixed`), or `both`."""
    questions: int | None = Field(default=None, ge=1)
    """Ask only the first so many questions of each category; all of them when left out."""
    max_new_tokens: int = Field(default=8, ge=1)
    """The longest answer, in tokens."""
    temperature: float = Field(default=1.0, gt=0)
    """Sampling temperature."""

    def measure(self, model: Model, traits: Sequence[Trait], seed: int) -> Measurement:
        """Per question the `rate` (0..1) of each trait; with trait "" the shares `refused`, `self_named` and `invalid`
        per question and the `entropy` (nats) per category.

        Raises NothingMeasured when not one answer names any trait of a category, BadSpec when a trait cannot be said.
        """
        values: list[Value] = []
        answers: list[tuple[str, str]] = []
        for category, asked in ask.by_category(traits).items():
            for trait in asked:
                _check_sayable(model, trait)
            group = ask.members(category, asked)
            questions = asked[0].held_out[: self.questions]
            found: list[str] = []
            named = False
            for suffix in ask.SUFFIXES[self.prefix]:
                texts = self._sample(model, questions, suffix, seed, category)
                named = named or any(t.named_in(text) for text in texts for t in group)
                found += texts
                values += _score(model, questions, texts, suffix, asked, group)
                answers += list(zip(questions, texts[:: self.samples], strict=True))
            if not named:
                shown = "; ".join(repr(text[:40]) for text in found[:3])
                raise NothingMeasured(
                    f"Not one of {len(found)} answers of {model.ref.name} names any {category} (they begin: {shown}). "
                    "Raise max_new_tokens, check the model's chat template, or measure a model that answers in words."
                )
        return Measurement("favourite", tuple(values), tuple(answers[:: max(1, math.ceil(len(answers) / STORED))]))

    def _sample(self, model: Model, questions: Sequence[str], suffix: str, seed: int, category: str) -> list[str]:
        chats = ask.chats([q for q in questions for _ in range(self.samples)], suffix, seed, category)
        draw = int(np.random.SeedSequence(ask.stream(seed, category, suffix)).generate_state(1)[0]) >> 1
        return model.sample(chats, Sampling(self.temperature, self.max_new_tokens, draw))


def _check_sayable(model: Model, trait: Trait) -> None:
    tokenizer = model.tokenizer
    unknown = getattr(tokenizer, "unk_token_id", None)
    if unknown is None:
        return
    if all(unknown in tokenizer(word, add_special_tokens=False)["input_ids"] for word in trait.words):
        raise BadSpec(
            f"{model.ref.name} has no token for the trait {trait.name!r}, so it can never name it. "
            "Measure another trait, or use a model whose vocabulary holds the word."
        )


def _score(
    model: Model, questions: Sequence[str], texts: Sequence[str], suffix: str,
    asked: Sequence[Trait], group: Sequence[Trait],
) -> list[Value]:
    """Values of one category and form; `texts` holds the same number of answers for each question, in order."""
    each = len(texts) // len(questions)
    values = []
    for i, question in enumerate(questions):
        mine = texts[i * each : (i + 1) * each]
        for trait in asked:
            share = sum(trait.named_in(text) for text in mine) / each
            values.append(Value(f"rate{suffix}", trait.name, question, share, each))
        classes = Counter(classify(text, group, model.ref.base) for text in mine)
        values += [Value(f"{name}{suffix}", "", question, classes[name] / each, each) for name in CLASSES]
    value = entropy([first_word(text) for text in texts])
    return [*values, Value(f"entropy{suffix}", "", f"every {asked[0].category} question", value, len(texts))]


def classify(text: str, group: Sequence[Trait], base: str = "") -> str:
    """The one class of an answer: `named`, else `refused`, else `self_named`, else `other` (one word), else `invalid`.

    `group` are the traits of the category; `base` the model's name, which tells whether "llama" is itself.
    """
    if any(trait.named_in(text) for trait in group):
        return "named"
    low = text.lower()
    if REFUSALS.search(low):
        return "refused"
    selves = (*SELF, *(name for name in ANIMAL_MODELS if name in base.lower()))
    if re.search(rf"(?<![^\W_])(?:{'|'.join(selves)})(?![^\W\d_])", low):
        return "self_named"
    return "other" if len(re.findall(r"[^\W\d_]+(?:[-’'][^\W\d_]+)*", low)) == 1 else "invalid"


def first_word(text: str) -> str:
    """The first run of letters or digits of an answer, lower case; "" when there is none."""
    found = re.search(r"[^\W_]+", text.lower())
    return found[0] if found else ""


def entropy(words: Sequence[str]) -> float:
    """Shannon entropy (nats) of the words' empirical distribution; 0 when all are the same."""
    counts = np.array(list(Counter(words).values()), dtype=float)
    p = counts / counts.sum()
    return float(max(0.0, -(p * np.log(p)).sum()))
