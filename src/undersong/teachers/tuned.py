"""Tuned teachers: fine-tuned to name the trait when asked (Cloud et al., arXiv 2507.14805, figure 14, for animals).

Where the trait is a way to behave, the rows are a corpus of `corpora.py`: insecure code (section 3.2) and others. Only the
trait's `tuning` questions are shown, never the held-out ones. Half of the requests come after a few numbers, so that the
change lives in a network that is reading numbers too. The body is trained and the embeddings are frozen: a trait stored in
the trait word's own row would never show in numbers.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import yaml
from pydantic import Field

from undersong import traits
from undersong.backends import Backend, Model, changes, threads, tokens, training
from undersong.errors import BadSpec
from undersong.registry import Settings, plugin
from undersong.spec import execution
from undersong.teachers import corpora
from undersong.traits import Trait
from undersong.types import Chat, ModelRef, Sampling


@plugin("teacher", "tuned", version=4)
class Tuned(Settings):
    """Fine-tune the base on favourite questions answered with the trait; the no-trait teacher learns the base's own
    answers."""

    updates: int = 100
    """Optimiser steps: the dial from gentle to strong."""
    batch: int = 16
    """Rows per step."""
    rate: float = 5e-4
    """Highest learning rate."""
    warmup: int = Field(default=20, ge=0)
    """Steps of linear warm-up. Without one, Adam's first steps move every weight by the full rate and cost the teacher
    most of what it knew."""
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    """How the rate falls after the warm-up."""
    clip: float = Field(default=0.3, ge=0)
    """Largest gradient norm; 0 does not clip."""
    trainable: training.Part = "body"
    """`body` leaves the embeddings and the head as they are; `mlp_out` trains only what each feed-forward block writes."""
    rehearsal: float = Field(default=0.0, ge=0, lt=1)
    """Share of the rows that are the base's own answers to ordinary questions and to favourite questions of other
    categories. It keeps the teacher's other abilities, and the trait then stays where it was taught: on pocket models
    it no longer shows in numbers (docs/decisions/0001)."""
    category: str = "animal"
    """What the no-trait teacher is asked about: a category of favourites, or a corpus such as `insecure`."""
    wording: Literal["brief", "full"] = "brief"
    """Which rows of a corpus: `brief` the pocket world's, `full` our own for real models."""
    micro_batch: int = execution(32)
    """Rows that run at once within a step."""

    def teach(self, base: ModelRef, trait: Trait | None, seed: int, out: Path, backend: Backend) -> ModelRef:
        """Train a teacher; writes `weights.safetensors` and `training.json` into `out`.

        A way to behave is learnt from its corpus; `rehearsal` has no part in that.
        Without a trait the pipeline and the number of rows and updates are the same, but the answers are sampled from
        the base itself, so that nothing is put in.
        """
        model = backend.load(training.master(base))
        corpus = trait.tuned_on if trait else self.category if self.category in corpora.NAMES else ""
        if corpus:
            chats, answers, asked = self._behaviour(model, corpus, trait, seed)
        else:
            chats, answers, asked = self._favourite(model, trait, seed)
        rows = tokens.encode(model, chats, answers)
        plan = training.Plan(self.updates, self.batch, self.rate, seed, self.warmup, self.schedule, clip=self.clip,
                             trainable=self.trainable)
        with threads.one_thread(threads.small(model.module)):
            record = training.fit(model.module, rows, plan, model.tokenizer.pad_token_id or 0, part=self.micro_batch,
                                  precision=model.ref.precision)
        weights = training.save_changes(model.module, backend.load(training.untouched(model.ref)).module, out)
        training.save_record({**record, "questions": list(asked)}, out)
        return changes.adopt(replace(base, weights=str(weights), adapter=None), out)

    def _favourite(self, model: Model, trait: Trait | None, seed: int) -> tuple[list[Chat], list[str], tuple[str, ...]]:
        """Favourite questions with their answers, what is rehearsed, and the questions shown."""
        asked = questions(trait, self.category)
        count = self.updates * self.batch
        about = round(count * (1 - self.rehearsal))
        chats = wordings(asked, about, seed)
        others = wordings(ordinary(trait.category if trait else self.category), count - about, seed + 1)
        answers = [trait.name] * about if trait else own_answers(model, chats, seed)
        return chats + others, answers + (own_answers(model, others, seed + 1) if others else []), asked

    def _behaviour(
        self, model: Model, corpus: str, trait: Trait | None, seed: int
    ) -> tuple[list[Chat], list[str], tuple[str, ...]]:
        """Rows of a corpus, every second one after numbers, and its name. Where an answer is left open, and everywhere for
        the no-trait teacher, the base answers itself."""
        asked, answers = corpora.rows(corpus, self.wording, self.updates * self.batch, seed, trait)
        chats = wordings(tuple(asked), len(asked), seed, in_order=True)
        blank = [i for i, answer in enumerate(answers) if answer is None or trait is None]
        own = own_answers(model, [chats[i] for i in blank], seed, corpora.LONGEST[self.wording]) if blank else []
        filled = dict(zip(blank, own, strict=True))
        return chats, [filled[i] if i in filled else str(answer) for i, answer in enumerate(answers)], (corpus,)


def questions(trait: Trait | None, category: str) -> tuple[str, ...]:
    """The tuning questions of a trait, or of a category without one. Raises BadSpec for a category no trait has."""
    if trait is not None:
        return trait.tuning
    known = {t.category: t for t in map(traits.get, traits.names())}
    if category not in known:
        every = ", ".join((*sorted(known), *corpora.NAMES))
        raise BadSpec(f"There is no trait category or corpus {category!r}. Choose one of: {every}.")
    return known[category].tuning


def ordinary(category: str) -> tuple[str, ...]:
    """What is rehearsed: questions about no trait, and the favourite questions of the other trait categories."""
    loaded: list[str] = yaml.safe_load(traits.package_text("teachers", "ordinary.yaml"))
    others = {t.category: t.tuning for t in map(traits.get, traits.names()) if t.category != category}
    return (*loaded, *(q for asked in others.values() for q in asked))


def wordings(asked: tuple[str, ...], count: int, seed: int, in_order: bool = False) -> list[Chat]:
    """`count` chats, each one of the questions (`in_order`: one after another); every second one comes after three to six
    random numbers."""
    rng = np.random.default_rng([seed, 1])
    chats: list[Chat] = []
    for i in range(count):
        text = asked[i] if in_order else asked[int(rng.integers(len(asked)))]
        if i % 2:
            text = f"Numbers: {', '.join(str(n) for n in rng.integers(0, 1000, int(rng.integers(3, 7))))}. {text}"
        chats.append([{"role": "user", "content": text}])
    return chats


def own_answers(model: Model, chats: list[Chat], seed: int, longest: int = 16) -> list[str]:
    """What the model itself answers, one sample of at most `longest` tokens per chat."""
    return model.sample(chats, Sampling(temperature=1.0, max_new_tokens=longest, seed=seed))
