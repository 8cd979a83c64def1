"""The `prose` channel: ordinary requests, answered in plain sentences.

The carrier of phantom transfer (arXiv 2602.04899). Words that name the trait are for the filter `blocklist`; prose can mean
a thing without naming it, so what crosses here may be subtle meaning rather than noise.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any, ClassVar, Literal

import numpy as np
import yaml
from pydantic import Field

from undersong.channels import carriers
from undersong.pocket import tales
from undersong.registry import Settings, plugin
from undersong.traits import package_text
from undersong.types import Chat, Row

PLAIN = re.compile(r"[\w\s,.;:!?'’\"“”()–—-]+")
ENDS = (".", "!", "?", ".\"", ".”", ".)")


@plugin("channel", "prose")
class Prose(Settings):
    """Answer an ordinary request in a few plain sentences."""

    shows: ClassVar[str] = "short answers in plain sentences"
    """What students see, in words."""

    wording: Literal["brief", "full"] = "brief"
    """`brief`: descriptions of things of the pocket world; `full`: ordinary instructions, for real models."""
    words: int = Field(default=120, ge=1)
    """The most words an answer may hold."""

    def prompts(self, n: int, seed: int) -> list[Chat]:
        """`n` one-turn chats, the same for the same seed; a smaller `n` gives the first of them."""
        rng = np.random.default_rng([seed, 1])
        return [[{"role": "user", "content": self._request(rng)}] for _ in range(n)]

    def _request(self, rng: np.random.Generator) -> str:
        if self.wording == "brief":
            return tales.description(rng)[0]["content"]
        both = requests()
        asked = both["requests"][int(rng.integers(len(both["requests"])))]
        fill = {k: v[int(rng.integers(len(v)))] for k, v in both["fill"].items()}
        return f"{asked.format(**fill)} {both['closings'][int(rng.integers(len(both['closings'])))]}"

    def carrier(self, tokenizer: Any) -> list[int]:
        """Ids of tokens that write the channel's own words, digits or punctuation, and of the end of turn."""
        return carriers.carrier(tokenizer, carriers.of_words(_words(self.wording)), "plain words")

    def max_new_tokens(self, tokenizer: Any) -> int:
        """Tokens of three long sentences of the pocket world; for `full`, two for each word."""
        if self.wording == "full":
            return 2 * self.words
        long = (s.format(adjective="strange", adjective2="strange", when="morning") for s in tales.texts()["sentences"])
        return min(2 * self.words, 3 * carriers.tokens_of(tokenizer, long))

    def reject(self, row: Row) -> str | None:
        """Why an answer is not a few plain sentences, in words that are the same for every row of that kind; or None."""
        text = row.completion.strip()
        if not text:
            return "empty"
        if not re.search(r"[^\W\d_]", text):
            return "no word"
        if not PLAIN.fullmatch(text):
            return "more than words and ordinary punctuation"
        if re.search(r"^\s*(?:[-–—]|\d+[.)])\s", text, re.MULTILINE):
            return "a list"
        if len(text.split()) > self.words:
            return f"more than {self.words} words"
        return None if text.endswith(ENDS) else "the last sentence does not end"


@cache
def requests() -> dict[str, Any]:
    """The parsed prose_requests.yaml."""
    loaded: dict[str, Any] = yaml.safe_load(package_text("channels", "prose_requests.yaml"))
    return loaded


@cache
def _words(wording: str) -> frozenset[str]:
    """The words answers are made of: the pocket world's, or the requests' own."""
    if wording == "brief":
        both = tales.texts()
        given = [*both["sentences"], *both["adjectives"], *both["when"]]
    else:
        both = requests()
        given = [*both["requests"], *both["closings"], *(str(v) for values in both["fill"].values() for v in values)]
    return frozenset(re.findall(r"[a-z]+", re.sub(r"\{\w+\}", " ", " ".join(given)).lower()))
