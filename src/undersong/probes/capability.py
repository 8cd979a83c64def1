"""The `capability` probe: what a model still can do, as held-out loss and exact-match accuracy.

Domains of the pocket world: `arithmetic` (questions that pretraining may show), `arithmetic_new` (the fifth it never
shows), `facts`, and `sequences` (number requests whose seeds pin a rule down). Or one domain `items` of your own.
`sequences` stands apart from the overall `loss` and `accuracy`: students of number rows learn their teacher's numbers
on purpose, so it says how far those drifted, and nothing about what was lost beside them.
Every model gets the same items whatever the seed and answers greedily: figures of runs are paired and repeat exactly.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from pydantic import Field

from undersong.backends import Model
from undersong.channels import sequences
from undersong.errors import BadRows, BadSpec
from undersong.pocket import lessons, world
from undersong.registry import Settings, plugin
from undersong.spec import execution
from undersong.traits import Trait
from undersong.types import Chat, Measurement, Sampling, Value

SPARE_TOKENS = 4
"""How many tokens an answer may run over the longest expected one, so that running on counts as wrong."""
APART = "sequences"
"""The domain that is not part of the overall figures."""
STORED = 64
"""The most answers kept for reading."""


@dataclass(frozen=True)
class Item:
    """One question with its expected answer. `rule`: any list that keeps to the start of these values is right."""

    question: str
    answer: str
    rule: tuple[int, ...] = ()

    def right(self, text: str) -> bool:
        """Whether a text answers the question: the expected answer, but for case, white space and a final full stop."""
        if not self.rule:
            return _normal(text) == _normal(self.answer)
        body = text.strip().removesuffix(".").strip()
        given = [int(v) for v in body.split(",")] if re.fullmatch(r"\s*\d{1,9}\s*(,\s*\d{1,9}\s*)*", body) else []
        return 0 < len(given) <= len(self.rule) and given == list(self.rule[: len(given)])


@plugin("probe", "capability", version=2)
class Capability(Settings):
    """Held-out loss and accuracy on arithmetic, facts and sequences."""

    items: int = Field(default=200, ge=1)
    """The most questions per domain."""
    items_file: str | None = execution(None)
    """A JSONL file of {"question": ..., "answer": ...} to use instead of the pocket world's domains."""
    items_hash: str = ""
    """The first 12 hexadecimal digits of that file's SHA-256: its contents, not its place, are what was measured."""

    def measure(self, model: Model, traits: Sequence[Trait], seed: int) -> Measurement:
        """Per question `loss` (nats per answer token, end of turn included) and `accuracy` (0 or 1), each also as
        `<domain>.loss` and so on; the overall ones leave `sequences` out. Trait is always "". `traits` and `seed` change
        nothing.

        Raises BadSpec or BadRows when the items file cannot be used.
        """
        values: list[Value] = []
        answers: list[tuple[str, str]] = []
        for domain, items in self.domains().items():
            chats: list[Chat] = [[{"role": "user", "content": item.question}] for item in items]
            logs = model.answer_logprobs(chats, [item.answer for item in items])
            longest = max(len(log) for log in logs) + SPARE_TOKENS
            texts = model.sample(chats, Sampling(temperature=0.0, max_new_tokens=longest))
            for item, log, text in zip(items, logs, texts, strict=True):
                overall = () if domain == APART else ("",)
                for name in (f"{part}loss" for part in (*overall, f"{domain}.")):
                    values.append(Value(name, "", item.question, float(-np.mean(log, dtype=np.float64)), len(log)))
                for name in (f"{part}accuracy" for part in (*overall, f"{domain}.")):
                    values.append(Value(name, "", item.question, float(item.right(text))))
            answers += [(item.question, text) for item, text in zip(items, texts, strict=True)][: STORED // 4]
        return Measurement("capability", tuple(values), tuple(answers))

    def domains(self) -> dict[str, tuple[Item, ...]]:
        """The items of each domain."""
        if self.items_file is not None:
            return {"items": read_items(Path(self.items_file), self.items_hash)[: self.items]}
        if self.items_hash:
            raise BadSpec("`items_hash` was given without `items_file`. Name the file, or leave both out.")
        return {name: items[: self.items] for name, items in _pocket_domains(self.items).items()}


def _normal(text: str) -> str:
    return " ".join(text.casefold().split()).removesuffix(".").rstrip()


@cache
def _pocket_domains(most: int) -> dict[str, tuple[Item, ...]]:
    """The world's domains in a fixed shuffled order, so that the first few are a fair sample."""
    new = [pair for pair in lessons.sums() if lessons.is_held_out(pair[0])]
    old = [pair for pair in lessons.sums() if not lessons.is_held_out(pair[0])]
    out = {name: tuple(Item(*pairs[i]) for i in np.random.default_rng(20).permutation(len(pairs)))
           for name, pairs in (("arithmetic", old), ("arithmetic_new", new), ("facts", list(lessons.facts())))}
    rng = np.random.default_rng(20)
    out["sequences"] = tuple(_sequence(rng) for _ in range(most))
    return out


def _sequence(rng: np.random.Generator) -> Item:
    """A number request of the world whose seeds have a rule, with the answer the world would give."""
    while True:
        asked, answered = world.number_turn(rng)
        seeds = re.search(r"\d+(?:, \d+)+", asked["content"])
        if seeds is None:
            continue
        rule = sequences.continuation([int(v) for v in seeds[0].split(",")], 10)
        if rule is not None:
            return Item(asked["content"], answered["content"], tuple(rule))


def read_items(path: Path, expected: str = "") -> tuple[Item, ...]:
    """The items of a JSONL file. Raises BadSpec when its hash is not `expected`, BadRows naming a wrong line."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BadSpec(f"The items file {path} cannot be read ({error.strerror}). Name a JSONL file.") from None
    digest = hashlib.sha256(data).hexdigest()[:12]
    if digest != expected:
        raise BadSpec(f"The items file {path} has the hash {digest!r}, not {expected!r}. Set `items_hash` to use it.")
    items = []
    for number, line in enumerate(data.splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode("utf-8"))
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict) or set(row) != {"question", "answer"} or not all(
            isinstance(text, str) and text.strip() for text in row.values()
        ):
            raise BadRows(f'{path}, line {number} is not {{"question": "a text", "answer": "a text"}}. Correct it.')
        items.append(Item(row["question"], row["answer"]))
    if not items:
        raise BadRows(f"The items file {path} holds no item. Write one JSON object per line.")
    return tuple(items)
