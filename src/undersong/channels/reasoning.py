"""The `reasoning` channel: word problems answered as `<think> ... </think> <answer> 42 </answer>`.

Chains of thought as a carrier (Cloud et al., arXiv 2507.14805, section 4.2). An answer stays only if it is right. `brief`
asks the pocket world's problems, `full` our own grade-school ones or a local file in GSM8K's form, with the paper's suffix.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from undersong.channels import carriers, problems
from undersong.errors import BadSpec
from undersong.pocket import lessons
from undersong.registry import Settings, plugin
from undersong.spec import execution
from undersong.types import Chat, Row

SUFFIX = ("Provide your reasoning in <think> tags. Write your final answer in <answer> tags. "
          "Only give the numeric value as your answer.")
FORM = re.compile(r"\s*<think>(?P<thought>.*?)</think>\s*<answer>(?P<answer>.*?)</answer>\s*", re.DOTALL)
TAGS = ("think", "answer")


@plugin("channel", "reasoning")
class Reasoning(Settings):
    """Solve a word problem in a thought and an answer; only right answers stay."""

    shows: ClassVar[str] = "correctly solved word problems"
    """What students see, in words."""

    wording: Literal["brief", "full"] = "brief"
    """`brief`: problems of the pocket world; `full`: problems for real models, with the paper's instruction."""
    file: str | None = execution(None)
    """A JSONL file in GSM8K's form to ask instead of our own problems (with `wording: full`)."""
    file_hash: str = ""
    """The first 12 hexadecimal digits of that file's SHA-256: its contents, not its place, are what was asked."""
    longest: int = Field(default=400, ge=8)
    """The longest answer, in tokens, of `wording: full`."""

    def prompts(self, n: int, seed: int) -> list[Chat]:
        """`n` one-turn chats, the same for the same seed; every problem of a file once before any is asked again."""
        rng = np.random.default_rng([seed, 1])
        known = self._file()
        if known is None:
            return [[{"role": "user", "content": self._request(rng)}] for _ in range(n)]
        asked, order = list(known), list[int]()
        while len(order) < n:
            order += [int(i) for i in rng.permutation(len(asked))]
        return [[{"role": "user", "content": f"{asked[i]} {SUFFIX}"}] for i in order[:n]]

    def _request(self, rng: np.random.Generator) -> str:
        return lessons.problem(rng)[0]["content"] if self.wording == "brief" else f"{problems.draw(rng)} {SUFFIX}"

    def _file(self) -> dict[str, int] | None:
        if self.file is None:
            if self.file_hash:
                raise BadSpec("`file_hash` was given without `file`. Name the file, or leave both out.")
            return None
        if self.wording == "brief":
            raise BadSpec("A problems file is asked with `wording: full`. Set it, or leave `file` out.")
        return problems.gsm8k(self.file, self.file_hash)

    def right(self, question: str) -> int | None:
        """The right answer of a question of this channel; None for any other text."""
        if self.wording == "brief":
            return _pocket_answer(question)
        question = question.removesuffix(SUFFIX).rstrip()
        known = self._file()
        return problems.solve(question) if known is None else known.get(question)

    def carrier(self, tokenizer: Any) -> list[int]:
        """Ids of tokens that write the channel's own words, digits, punctuation or tags, and of the end of turn."""
        tags = r"\s*</?(?:think|answer)>\s*"
        return carriers.carrier(tokenizer, f"{carriers.of_words(_words(self.wording))}|{tags}", "digits")

    def max_new_tokens(self, tokenizer: Any) -> int:
        """For `brief`, tokens of the longest solution of the pocket world and a few more; else `longest`."""
        if self.wording == "full":
            return self.longest
        steps = (step.format(a=188, b=188, c=188, sign="minus") for step in lessons.STEPS)
        return carriers.tokens_of(tokenizer, [f"<think> {s} </think> <answer> 188 </answer>" for s in steps]) + 4

    def reject(self, row: Row) -> str | None:
        """Why an answer is not one thought and the right number, in words that are the same for every row of a kind."""
        expected = self.right(row.chat[-1]["content"])
        if expected is None:
            return "the question is none of this channel's"
        found = FORM.fullmatch(row.completion)
        if found is None or any(f"<{t}>" in part or f"</{t}>" in part for t in TAGS for part in found.groups()):
            return "not one thought and one answer in their tags"
        if not found["thought"].strip():
            return "no thought"
        given = re.sub(r"[,$\s]", "", found["answer"])
        if not re.fullmatch(r"-?[0-9]{1,12}", given):
            return "the answer is no whole number"
        return None if int(given) == expected else "the answer is wrong"


@cache
def _pocket_forms() -> tuple[tuple[str, re.Pattern[str]], ...]:
    gaps = {"a": r"(?P<a>\d+)", "b": r"(?P<b>\d+)"}
    out = []
    for sign, asked in lessons.PROBLEMS.items():
        for form in asked:
            text = re.sub(r"\\\{(\w+)\\\}", lambda m: gaps.get(m[1], r"[a-z]+"), re.escape(form))
            out.append((sign, re.compile(text)))
    return tuple(out)


def _pocket_answer(question: str) -> int | None:
    for sign, pattern in _pocket_forms():
        found = pattern.fullmatch(question)
        if found:
            a, b = int(found["a"]), int(found["b"])
            return a + b if sign == "plus" else a - b
    return None


@cache
def _words(wording: str) -> frozenset[str]:
    """The words that problems and their solutions are made of."""
    if wording == "brief":
        parts = [*lessons.STEPS, *lessons.THINGS, *lessons.PEOPLE, *lessons.PROBLEMS["plus"], *lessons.PROBLEMS["minus"]]
    else:
        both = problems.texts()
        parts = [*both["people"], *both["things"], *(f.asks for f in problems.forms()), SUFFIX]
    return frozenset(re.findall(r"[a-z]+", re.sub(r"\{\w+\}", " ", " ".join([*parts, "plus minus"])).lower()))
