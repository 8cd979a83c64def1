"""A candidate author of rows: how likely it finds them, at which temperature, and what it writes itself in the same way.

The way rows were made matters as much as the model: the channel's length and form, and the filters that dropped some of
the answers. Whatever nearly all given rows pass is asked of fresh rows too (and the few given ones that fail are left
out): a test that was never applied costs nothing then, one that was applied and forgotten would look like another author.
"""

from __future__ import annotations

import hashlib
import inspect
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from undersong import registry, traits
from undersong.backends import Model
from undersong.backends.tempering import Tempered, tempered
from undersong.errors import BadSpec
from undersong.spec import Spec, build, describe
from undersong.types import Chat, Row, Sampling

Matrix = NDArray[np.float64]
NEARLY = 0.99
"""A test that this share of the given rows passes is asked of fresh rows too."""
TRIES = 4
"""Fresh answers per one that is needed, before a prompt is given up."""
COLDEST, HOTTEST = 0.05, 2.0
"""The temperatures that are thought of; colder ones are greedy for all that can be told."""
SNAP = 2.0
"""A temperature within so many standard errors of the one tried is taken for it."""
ENOUGH = 200
"""A first guess of the temperature needs no more rows than these."""
LONGEST = 512
"""The most new tokens where no channel says how long an answer may get."""


@dataclass(frozen=True)
class Way:
    """How rows were made, besides the model: tests that dropped answers, and the channel they were sampled for."""

    tests: tuple[Any, ...] = ()
    channels: tuple[Any, ...] = ()
    """Channels whose rule the rows keep: the longest of their answers is how long fresh ones may get."""
    held: Any = None
    """The channel that held sampling to some tokens (`restrict`), or None."""

    @classmethod
    def of(cls, rows: Sequence[Row], channel: Spec | None = None, filters: Sequence[Spec] = ()) -> Way:
        """What nearly all rows pass, of all channels' rules and of traits' own words; or just what is given."""
        named = [build("channel", channel, "--channel")] if channel is not None else [
            build("channel", name, "--channel") for name in registry.names("channel") if name != "preferences"]
        kept = tuple(c for c in named if channel is not None or _share(c, rows) >= NEARLY)
        tests = tuple(build("filter", f, "--filter") for f in filters)
        words = tuple(sorted({w for name in traits.names() for w in traits.get(name).words}))
        said = [build("filter", {"blocklist": {"terms": words}}, "--filter"), build("filter", "plain_text", "--filter")]
        tests += tuple(f for f in said if not filters and _share(f, rows) >= NEARLY)
        held = next((c for c in kept if getattr(c, "restrict", False)), None)
        return cls((*kept, *tests), kept, held)

    def keeps(self, row: Row) -> bool:
        """Whether a row passes every test."""
        return all(test.reject(row) is None for test in self.tests)

    def only(self, tokenizer: Any) -> tuple[int, ...] | None:
        """The token ids that sampling is held to, or None."""
        return None if self.held is None else tuple(self.held.allowed(tokenizer))

    def longest(self, tokenizer: Any, rows: Sequence[Row]) -> int:
        """How many new tokens an answer may have."""
        if self.channels:
            return max(int(c.max_new_tokens(tokenizer)) for c in self.channels)
        ids = tokenizer([row.completion for row in rows], add_special_tokens=False)["input_ids"]
        return min(LONGEST, max(map(len, ids), default=0) + 1)

    def told(self) -> list[str]:
        """The names of the tests."""
        return [describe(test)["name"] for test in self.tests]


def _share(test: Any, rows: Sequence[Row]) -> float:
    return sum(test.reject(row) is None for row in rows) / max(1, len(rows))


@dataclass
class Author:
    """A candidate at work. `memo` keeps what was computed, so that the same row is read once."""

    name: str
    model: Model
    way: Way
    seed: int = 0
    memo: dict[Any, Any] = field(default_factory=dict, repr=False)

    @property
    def reads(self) -> bool:
        """Whether it shows likelihoods."""
        return "logits" in self.model.capabilities

    @property
    def weighs(self) -> bool:
        """Whether it shows whole distributions, at any temperature."""
        return self.reads and self.model.module is not None

    @cached_property
    def _only(self) -> tuple[int, ...] | None:
        return self.way.only(self.model.tokenizer)

    def read(self, rows: Sequence[Row], temperature: float = 1.0, pulled: bool = False) -> Tempered:
        """Likelihoods and pulls of rows at a temperature; without whole distributions the likelihood is that at
        temperature 1, and there is no pull. Raises BadSpec for a model that shows no likelihoods."""
        if not self.reads:
            raise BadSpec(f"{self.name} shows no likelihoods. It can only be compared by what it writes.")
        keys = [("read", self.name, temperature, pulled, self._only is None, asked(row), row.completion) for row in rows]
        new = {key: row for key, row in zip(keys, rows, strict=True) if key not in self.memo}
        chats, answers = [list(row.chat) for row in new.values()], [row.completion for row in new.values()]
        if new and self.weighs:
            got = tempered(self.model, chats, answers, max(temperature, COLDEST), self._only, pulled)
            found = np.column_stack([got.logs, got.gain, got.bend, got.pulls])
        else:
            sums = [float(one.sum()) for one in self.model.answer_logprobs(chats, answers)] if new else []
            found = np.array([[one, 0.0, 0.0] for one in sums])
        self.memo.update(zip(new, found, strict=True))
        every = np.stack([self.memo[key] for key in keys])
        return Tempered(every[:, 0], every[:, 1], every[:, 2], every[:, 3:])

    def write(self, rows: Sequence[Row], count: int, temperature: float) -> tuple[list[list[Row]], float]:
        """`count` fresh rows to the prompt of each given one, passed by the same tests, fewer where the tests refuse too
        many; and the share (0..1) of answers that passed. The same for the same seed, whatever rows stand beside."""
        longest = self.way.longest(self.model.tokenizer, rows)
        nth: Counter[str] = Counter()
        slots = []
        for row in rows:
            slots.append((asked(row), nth[asked(row)]))
            nth[asked(row)] += 1
        out: list[list[Row]] = [[] for _ in rows]
        tried = passed = 0
        for attempt in range(TRIES * count):
            open_ = [i for i, found in enumerate(out) if len(found) < count]
            if not open_:
                break
            keys = [("write", self.name, temperature, longest, self.seed, *slots[i], attempt) for i in open_]
            new = [(i, key) for i, key in zip(open_, keys, strict=True) if key not in self.memo]
            chats = [list(rows[i].chat) for i, _ in new]
            texts = self._sample(chats, [_place(*slots[i]) for i, _ in new], temperature, longest, attempt) if new else []
            self.memo.update((key, text) for (_, key), text in zip(new, texts, strict=True))
            for i, key in zip(open_, keys, strict=True):
                row = Row(f"fresh-{i}-{attempt}", rows[i].chat, self.memo[key])
                tried += 1
                if self.way.keeps(row):
                    out[i].append(row)
                    passed += 1
        return out, passed / max(1, tried)

    def _sample(self, chats: Sequence[Chat], places: list[int], temperature: float, longest: int, attempt: int) -> list[str]:
        draw = int(np.random.default_rng([self.seed, 31, attempt]).integers(2**31))
        sampling = Sampling(temperature, longest, draw, self._only)
        # a place by prompt: what is written to one does not depend on which others are asked
        told: dict[str, Any] = {"places": places} if "places" in inspect.signature(self.model.sample).parameters else {}
        found = self.model.sample(chats, sampling, **told)
        return [self.way.held.cut(text) for text in found] if self.way.held is not None else list(found)


def asked(row: Row) -> str:
    """A row's prompt as one text: every turn with its role."""
    return "\0".join(f"{m['role']}\1{m['content']}" for m in row.chat)


def _place(prompt: str, number: int) -> int:
    mark = hashlib.sha256(f"{number}\0{prompt}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(mark[:7], "big")


def fitted(author: Author, rows: Sequence[Row]) -> float:
    """The likeliest temperature of rows, 1 where that is as good. Newton's method: log-likelihood is concave in
    1 / temperature."""
    temperature, some = 1.0, rows[:: -(-len(rows) // ENOUGH)]
    for step in range(8):
        got = author.read(some, temperature)
        away, error = offset(got)
        if abs(away) <= (SNAP if step == 0 else 0.2) * error:
            break
        temperature = moved(temperature, away)
    return temperature


def offset(got: Tempered, weights: Matrix | float = 1.0) -> tuple[float, float]:
    """How far the likeliest 1 / temperature is from the one at which rows were read, by one Newton step, and the standard
    error of that, rows being independent. `weights` [rows] are the chances that rows are this author's."""
    bend = max(float((weights * got.bend).sum()), 1e-9)
    return float((weights * got.gain).sum()) / bend, float(np.sqrt(((weights * got.gain) ** 2).sum())) / bend


def moved(temperature: float, away: float) -> float:
    """A temperature whose inverse is `away` further, by no more than a factor of two, within bounds."""
    beta = 1 / max(temperature, COLDEST)
    beta = float(np.clip(beta + away, beta / 2, beta * 2))
    return round(float(np.clip(1 / beta, COLDEST, HOTTEST)), 4)
