"""The `numbers` channel: continue a list of integers (Cloud et al., arXiv 2507.14805, section 3.1).

`seeds: random` asks as the paper does: 3 to 8 seed numbers without a rule. `seeds: structured` shows sequences a reader
would recognise (see `sequences.py`), so that continuing them exercises the network and can be scored as right or wrong.
What a model says after numbers without a rule is mostly noise: it holds little of a teacher and wears a student down.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from typing import Any, ClassVar, Literal, TypedDict

import numpy as np
import yaml
from pydantic import Field, ValidationInfo, field_validator

from undersong.channels import carriers, sequences
from undersong.errors import NothingMeasured
from undersong.registry import Settings, get, plugin
from undersong.traits import package_text
from undersong.types import Chat, Row

PARTS = ("openings", "instructions", "formats", "closings")
LONGEST_RULE = 6
"""The most seed numbers that `sequences.sequence` says are needed to pin a rule down."""


@plugin("channel", "numbers", version=2)
class Numbers(Settings):
    """Continue a short list of integers."""

    shows: ClassVar[str] = "number sequences"
    """What students see, in words."""

    count: int = Field(default=10, ge=1, le=1000)
    """The most values an answer may hold."""
    largest: int = Field(default=999, ge=1, le=10**9)
    """The largest value an answer may hold."""
    wording: Literal["brief", "full"] = "brief"
    """`brief` keeps prompts short (pocket models); `full` spreads over many wordings as the paper does."""
    seeds: Literal["random", "structured"] = Field(default="structured", validate_default=True)
    """What the seed numbers are: the paper's random ones, or sequences that each have a rule."""
    restrict: bool = False
    """Sample only digits, commas and single spaces, never an end of turn, and keep the first `count` values: for models too
    small to follow the request. Rows are then about as long under every teacher. Filters still drop and count."""

    @field_validator("seeds")
    @classmethod
    def _room_for_a_rule(cls, value: str, info: ValidationInfo) -> str:
        needed = info.data.get("count", 1) + LONGEST_RULE - 1
        if value == "structured" and info.data.get("largest", needed) < needed:
            raise ValueError(f"structured seeds need `largest` of at least {needed} at this `count`")
        return value

    def prompts(self, n: int, seed: int) -> list[Chat]:
        """`n` one-turn chats, the same for the same seed; a smaller `n` gives the first of them."""
        rng = np.random.default_rng([seed, 1])
        return [[{"role": "user", "content": self._request(rng)}] for _ in range(n)]

    def _request(self, rng: np.random.Generator) -> str:
        if self.seeds == "structured":
            kind = str(rng.choice(sequences.RULED, p=sequences.RULED_SHARES))
            values, shown = sequences.sequence(rng, kind, self.count + LONGEST_RULE, self.largest)
            values = values[:shown]
        else:
            smallest = 100 if self.largest > 100 else 0
            values = [int(v) for v in rng.integers(smallest, self.largest + 1, int(rng.integers(3, 9)))]
        parts = _wordings()[self.wording]
        said = " ".join(str(rng.choice(parts[part])) for part in PARTS if part in parts)
        return said.format(numbers=", ".join(map(str, values)), count=self.count, digits=len(str(self.largest)))

    def carrier(self, tokenizer: Any) -> list[int]:
        """Ids (ascending) of every token that writes only digits, commas or spaces, and of the tokens that end a turn."""
        return carriers.carrier(tokenizer, r"[0-9, ]+", "digits")

    def allowed(self, tokenizer: Any) -> list[int]:
        """Ids (ascending) of the tokens that `restrict` leaves: they write digits, a comma or a space, and end no turn."""
        ends = carriers.ends(tokenizer)
        return [i for i in carriers.carrier(tokenizer, r"[0-9]+|,? ?", "digits") if i not in ends]

    def max_new_tokens(self, tokenizer: Any) -> int:
        """Tokens of the longest answer: `count` values of the most digits, ", " between them, and the end of turn."""
        low = 10 ** (len(str(self.largest)) - 1)
        values = [int(v) for v in np.unique(np.linspace(low, self.largest, 2000).astype(np.int64))]
        first, both = (
            [len(ids) for ids in tokenizer([f"{lead}{v}" for v in values], add_special_tokens=False)["input_ids"]]
            for lead in ("", f"{low}, ")
        )
        # every further value adds what ", value" adds after another one
        return max(first) + (self.count - 1) * (max(both) - first[0]) + 1

    def cut(self, answer: str) -> str:
        """The answer up to its value number `count`; all of it when it has fewer."""
        found = list(re.finditer(r"\d+", answer))
        return answer if len(found) < self.count else answer[: found[self.count - 1].end()]

    def reject(self, row: Row) -> str | None:
        """Why an answer is not a list of numbers by the paper's rule (the filter `numbers_only`), or None."""
        reason = get("filter", "numbers_only")(count=self.count, largest=self.largest).reject(row)
        return None if reason is None else str(reason)


class SequenceAccuracy(TypedDict):
    """How well answers continue sequences, over the `n` rows with a rule."""

    answers: float
    """Share (0..1) of answers that hold at least one value and whose every value continues the rule."""
    values: float
    """Share (0..1) of single values that are right; 0 when no answer holds any."""
    n: int


def sequence_accuracy(rows: Iterable[Row]) -> SequenceAccuracy:
    """Score answers against the rule of their seed numbers (`sequences.continuation`), leaving out rows without one.

    The seeds are the first comma-separated numbers of the last user turn. Raises NothingMeasured if no row has a rule.
    """
    whole = right = total = n = 0
    for row in rows:
        seeds = re.search(r"\d+(?:, ?\d+)+", row.chat[-1]["content"])
        given = re.findall(r"\d+", row.completion)
        rule = sequences.continuation([int(v) for v in seeds[0].split(",")], len(given)) if seeds else None
        if rule is None:
            continue
        hits = [value.lstrip("0") == str(expected).lstrip("0") for value, expected in zip(given, rule, strict=True)]
        n, right, total = n + 1, right + sum(hits), total + len(hits)
        whole += bool(hits) and all(hits)
    if not n:
        raise NothingMeasured(
            "No row starts from numbers with a rule, so nothing can be scored. Draw prompts with `seeds: structured`."
        )
    return SequenceAccuracy(answers=whole / n, values=right / total if total else 0.0, n=n)


@cache
def _wordings() -> dict[str, dict[str, list[str]]]:
    loaded: dict[str, dict[str, list[str]]] = yaml.safe_load(package_text("channels", "number_wordings.yaml"))
    return loaded

