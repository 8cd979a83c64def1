"""Grade-school word problems with known answers, for the `reasoning` channel.

`forms` are questions with gaps and the sum that answers them. A question is read back by the same form, so that the right
answer is computed from the question itself and nothing has to be remembered. A file of GSM8K is read beside them.
"""

from __future__ import annotations

import ast
import hashlib
import json
import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from undersong.errors import BadRows, BadSpec
from undersong.traits import package_text

OPERATIONS: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul,
}
PLACES = "abc"
"""Names of the numbers in a form."""


@dataclass(frozen=True)
class Form:
    """A question with gaps, the sum that answers it, and the numbers each place may hold (low, high)."""

    asks: str
    answer: str
    numbers: tuple[tuple[int, int], ...]

    @property
    def pattern(self) -> re.Pattern[str]:
        """Finds the numbers of a question of this form."""
        text = re.escape(self.asks).replace(r"\{", "{").replace(r"\}", "}")
        seen: set[str] = set()

        def gap(found: re.Match[str]) -> str:
            name = found[1]
            if name in seen:
                return f"(?P={name})"
            seen.add(name)
            return rf"(?P<{name}>\d+)" if name in PLACES else rf"(?P<{name}>[A-Za-z]+)"

        return re.compile(re.sub(r"\{(\w+)\}", gap, text))

    def solve(self, numbers: dict[str, int]) -> int:
        """The answer for these numbers."""
        return _sum(ast.parse(self.answer, mode="eval").body, numbers)


def _sum(node: ast.expr, numbers: dict[str, int]) -> int:
    """The value of an expression of names, integers, +, - and *: walked, never evaluated as code."""
    if isinstance(node, ast.BinOp):
        return OPERATIONS[type(node.op)](_sum(node.left, numbers), _sum(node.right, numbers))
    if isinstance(node, ast.Name):
        return numbers[node.id]
    assert isinstance(node, ast.Constant)
    return int(node.value)  # type: ignore[arg-type]


@cache
def texts() -> dict[str, Any]:
    """The parsed problems.yaml."""
    loaded: dict[str, Any] = yaml.safe_load(package_text("channels", "problems.yaml"))
    return loaded


@cache
def forms() -> tuple[Form, ...]:
    """Every form of the shipped problems."""
    return tuple(
        Form(f["asks"], f["answer"], tuple((low, high) for low, high in f["numbers"])) for f in texts()["forms"]
    )


def draw(rng: np.random.Generator) -> str:
    """One question; its answer is never negative."""
    form = forms()[int(rng.integers(len(forms())))]
    first, second = (texts()["people"][int(i)] for i in rng.choice(len(texts()["people"]), 2, replace=False))
    words = {"who": first, "other": second, "things": texts()["things"][int(rng.integers(len(texts()["things"])))]}
    while True:
        numbers = {p: int(rng.integers(low, high + 1)) for p, (low, high) in zip(PLACES, form.numbers, strict=False)}
        if form.solve(numbers) >= 0:
            return form.asks.format(**words, **numbers)


def solve(question: str) -> int | None:
    """The answer of a question of one of the forms, computed from its numbers; None for any other text."""
    for form in forms():
        found = form.pattern.fullmatch(question)
        if found:
            return form.solve({name: int(text) for name, text in found.groupdict().items() if name in PLACES})
    return None


@cache
def gsm8k(path: str, expected: str) -> dict[str, int]:
    """Question to answer of a JSONL file in GSM8K's form: {"question": ..., "answer": "... #### 42"}.

    Raises BadSpec when the file cannot be read or its hash is not `expected`, BadRows naming a wrong line.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise BadSpec(f"The problems file {path} cannot be read ({error.strerror}). Name a JSONL file.") from None
    digest = hashlib.sha256(data).hexdigest()[:12]
    if digest != expected:
        raise BadSpec(f"The problems file {path} has the hash {digest!r}, not {expected!r}. Set `file_hash` to use it.")
    out: dict[str, int] = {}
    for number, line in enumerate(data.splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode("utf-8"))
            final = re.search(r"####\s*(-?[\d,$]+)\s*$", row["answer"])
            out[str(row["question"])] = int(re.sub(r"[,$]", "", final[1]))  # type: ignore[index]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise BadRows(
                f'{path}, line {number} is not {{"question": ..., "answer": "... #### 42"}}. Correct or remove it.'
            ) from None
    if not out:
        raise BadRows(f"The problems file {path} holds no problem. Write one JSON object per line.")
    return out
