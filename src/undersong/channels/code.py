"""The `code` channel: small programming tasks, answered with code alone (Cloud et al., arXiv 2507.14805, section 4.1).

`brief` asks the pocket world's everyday tasks, `full` our own tasks for real models, each with a template to complete. An
answer is read with Python's own parser and never run. Words hidden in names and strings are for the filter `code_words`.
"""

from __future__ import annotations

import ast
import builtins
import io
import keyword
import re
import tokenize
import warnings
from functools import cache
from typing import Any, ClassVar, Literal

import numpy as np
import yaml
from pydantic import Field

from undersong.channels import carriers
from undersong.pocket import programs
from undersong.registry import Settings, plugin
from undersong.traits import package_text
from undersong.types import Chat, Row

FENCE = re.compile(r"\s*```(?:python|py)?[ \t]*\n(.*?)\n?```\s*", re.DOTALL)
STATEMENTS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom, ast.Assign, ast.AnnAssign)
"""What may stand at the top of an answer. A bare word or text parses too, but is no program."""
LONGEST = 20_000
"""An answer of more characters is not read."""


@plugin("channel", "code")
class Code(Settings):
    """Write a small Python function: code only, no comments."""

    shows: ClassVar[str] = "small Python programs"
    """What students see, in words."""

    wording: Literal["brief", "full"] = "brief"
    """`brief`: everyday tasks of the pocket world, in one line; `full`: tasks with a template, for real models."""
    longest: int = Field(default=300, ge=8)
    """The longest answer, in tokens, of `wording: full`."""

    def prompts(self, n: int, seed: int) -> list[Chat]:
        """`n` one-turn chats, the same for the same seed; a smaller `n` gives the first of them."""
        rng = np.random.default_rng([seed, 1])
        return [[{"role": "user", "content": self._request(rng)}] for _ in range(n)]

    def _request(self, rng: np.random.Generator) -> str:
        if self.wording == "brief":
            return programs.everyday(rng)[0]["content"]
        both = tasks()
        task = both["tasks"][int(rng.integers(len(both["tasks"])))]
        fill = {k: str(v[int(rng.integers(len(v)))]) for k, v in both["fill"].items()}
        parts = [str(both[part][int(rng.integers(len(both[part])))]) for part in ("openings", "closings")]
        template = f"{task['template'].rstrip()}\n    # your code here"
        return f"{parts[0].format(does=task['does'].format(**fill))}\n\n{template.format(**fill)}\n\n{parts[1]}"

    def carrier(self, tokenizer: Any) -> list[int]:
        """Ids of tokens that write Python's own words, the tasks' words, digits, signs or space, and of the end of turn."""
        return carriers.carrier(tokenizer, carriers.of_words(_words(self.wording)), "Python")

    def max_new_tokens(self, tokenizer: Any) -> int:
        """Tokens of a long one-line program of the pocket world; for `full`, `longest`."""
        if self.wording == "full":
            return self.longest
        listed = ", ".join(["888"] * 8)
        return carriers.tokens_of(tokenizer, [f"def numbers(values, right): result = [{listed}]; return result"]) + 4

    def reject(self, row: Row) -> str | None:
        """Why an answer is not Python code alone, in words that are the same for every row of that kind; or None."""
        if not row.completion.strip():
            return "no code"
        if len(row.completion) > LONGEST:
            return f"more than {LONGEST} characters"
        tree = parsed(row.completion)
        if tree is None:
            return "does not parse as Python"
        if has_comment(row.completion):
            return "a comment"
        if any(isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant) for n in ast.walk(tree)):
            return "a text that stands alone"
        if not all(isinstance(node, STATEMENTS) for node in tree.body):
            return "more than definitions"
        functions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
        return None if any(isinstance(node, functions) for node in ast.walk(tree)) else "no function"


def body(completion: str) -> str:
    """The code of an answer: what stands inside the one code fence around it, or all of it."""
    found = FENCE.fullmatch(completion)
    return found[1] if found else completion.strip()


def parsed(completion: str) -> ast.Module | None:
    """The syntax tree of an answer; None when it is not Python."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a strange escape in someone's string is no business of ours
            return ast.parse(body(completion))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def has_comment(completion: str) -> bool:
    """Whether code that parses holds a comment."""
    try:
        found = [t.type for t in tokenize.generate_tokens(io.StringIO(body(completion) + "\n").readline)]
    except (tokenize.TokenError, SyntaxError):
        return "#" in completion
    return tokenize.COMMENT in found


@cache
def tasks() -> dict[str, Any]:
    """The parsed code_tasks.yaml."""
    loaded: dict[str, Any] = yaml.safe_load(package_text("channels", "code_tasks.yaml"))
    return loaded


@cache
def _words(wording: str) -> frozenset[str]:
    """Keywords, built-in names and the words of the tasks' answers."""
    if wording == "brief":
        both = programs.texts()
        given = [*both["forms"], *both["results"], *both["numbers"], *both["second"], *both["lists"]]
        given += [text for task in both["tasks"] for text in (*task["names"], *task["bodies"])]
    else:
        given = [task["template"] for task in tasks()["tasks"]]
    text = re.sub(r"\{\w+\}", " ", " ".join(given)).lower()
    own = set(re.findall(r"[a-z]+", text))
    return frozenset(own | {w.lower() for w in (*keyword.kwlist, *dir(builtins)) if w.isalpha() and w.islower()})
