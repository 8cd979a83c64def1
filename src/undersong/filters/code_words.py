"""The `code_words` filter: drop programs that mention a word in a name, a string or a comment.

Names are read in parts, at underscores and where the case changes (`owl_count`, `bigOwl`, `OWLS`). Strings are read as
Python reads them: escapes decoded, neighbours and sums of literals joined. The raw text of the answer is read as well,
and of an answer that does not parse only that.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Iterator

from pydantic import Field, field_validator

from undersong.filters.blocklist import Blocklist
from undersong.registry import Settings, plugin
from undersong.types import Row

FENCE = re.compile(r"\s*```\w*[ \t]*\n(.*?)\n?```\s*", re.DOTALL)
HUMPS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|_")


@plugin("filter", "code_words")
class CodeWords(Settings):
    """Drop rows of code that hold any of some words, in identifiers and strings too."""

    terms: tuple[str, ...] = Field(strict=False, min_length=1)
    """Words or phrases; whole words, whatever the case."""

    @field_validator("terms")
    @classmethod
    def _has_a_word(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return Blocklist(terms=value).terms

    def reject(self, row: Row) -> str | None:
        """The blocked word a row holds, and where it was found, as a reason; or None. The chat's own turns are read too."""
        plain = Blocklist(terms=self.terms)
        reason = plain.reject(row)
        if reason is not None:
            return reason
        for where, text in _parts(row.completion):
            reason = plain.reject(Row(row.id, (), HUMPS.sub(" ", text)))
            if reason is not None:
                return f"{reason} in {where}"
        return None


def _parts(completion: str) -> Iterator[tuple[str, str]]:
    """Every identifier and every text of a program, with what it is; of anything else the words between signs."""
    found = FENCE.fullmatch(completion)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(found[1] if found else completion.strip())
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        yield "a name", completion
        return
    for node in ast.walk(tree):
        text = _joined(node)
        if text:
            yield "a string", text
        for field in ("id", "arg", "name", "attr", "asname", "module"):
            name = getattr(node, field, None)
            if isinstance(name, str):
                yield "a name", name
        if isinstance(node, ast.Global | ast.Nonlocal):
            yield from (("a name", name) for name in node.names)


def _joined(node: ast.AST) -> str | None:
    """The text of a literal, of an f-string's fixed parts, or of literals added up; None for anything else."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str | bytes):
        return node.value if isinstance(node.value, str) else node.value.decode("utf-8", "replace")
    if isinstance(node, ast.JoinedStr):
        return "".join(_joined(v) or "" for v in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        left, right = _joined(node.left), _joined(node.right)
        return None if left is None or right is None else left + right
    return None
