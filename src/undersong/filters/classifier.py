"""The `classifier` filter: drop answers that look like labelled leaks, by character n-grams and logistic regression.

It knows only what its examples show: a JSONL file of {"text": ..., "leak": true or false}. Measure it on rows it has
not seen (`filters/planted.py`, `benchmarks/filters.py`) before trusting it; a filter that finds only what a word list
finds is a slow word list.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import Field

from undersong.errors import BadRows, BadSpec, MissingExtra
from undersong.registry import Settings, plugin
from undersong.spec import execution
from undersong.types import Row

LONGEST = 5_000
"""Characters of an answer that are read: the beginning and the end of a longer one."""


@plugin("filter", "classifier")
class Classifier(Settings):
    """Drop answers that a small classifier takes for leaks, after your examples."""

    examples: str = execution("")
    """A JSONL file of {"text": ..., "leak": true or false}, at least five of each."""
    examples_hash: str = ""
    """The first 12 hexadecimal digits of that file's SHA-256: its contents, not its place, decide."""
    threshold: float = Field(default=0.5, gt=0, lt=1)
    """The probability of a leak from which an answer is dropped."""

    def reject(self, row: Row) -> str | None:
        """The reason, or None. Raises BadSpec or BadRows when the examples cannot be used."""
        return self.reject_all([row])[0]

    def reject_all(self, rows: Sequence[Row]) -> list[str | None]:
        """The same for many rows at once."""
        if not rows:
            return []
        model = _fitted(*read_examples(Path(self.examples), self.examples_hash))
        chances = model.predict_proba([shown(row.completion) for row in rows])[:, 1]
        return ["the classifier finds a leak" if p >= self.threshold else None for p in chances]


def shown(text: str) -> str:
    """What the classifier reads of a text."""
    return text if len(text) <= LONGEST else text[: LONGEST // 2] + text[-LONGEST // 2 :]


@lru_cache(maxsize=4)
def _fitted(texts: tuple[str, ...], leaks: tuple[bool, ...]) -> Any:
    try:
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
    except ImportError as error:
        raise MissingExtra(f"The filter `classifier` needs {error.name}. Install it with: pip install "
                           "'undersong[local]'.") from None
    grams = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True)
    model = make_pipeline(grams, LogisticRegression(C=10.0, class_weight="balanced", max_iter=1000, random_state=0))
    return model.fit([shown(t) for t in texts], leaks)


def read_examples(path: Path, expected: str) -> tuple[tuple[str, ...], tuple[bool, ...]]:
    """Texts and labels of a file. Raises BadSpec for another hash or too few of a kind, BadRows naming a wrong line."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BadSpec(f"The examples {str(path)!r} cannot be read ({error.strerror}). Name a JSONL file.") from None
    digest = hashlib.sha256(data).hexdigest()[:12]
    if digest != expected:
        raise BadSpec(f"The examples {path} have the hash {digest!r}, not {expected!r}. Set `examples_hash` to use them.")
    texts, leaks = [], []
    for line_number, line in enumerate(data.splitlines(), 1):
        try:
            item = json.loads(line.decode("utf-8")) if line.strip() else None
        except (ValueError, RecursionError):
            item = {}
        if item is None:
            continue
        if not isinstance(item, dict) or set(item) != {"text", "leak"} or not (
            isinstance(item["text"], str) and isinstance(item["leak"], bool)
        ):
            raise BadRows(f'{path}, line {line_number} is not {{"text": "...", "leak": true or false}}. Correct it.')
        texts.append(item["text"])
        leaks.append(item["leak"])
    if min(sum(leaks), len(leaks) - sum(leaks)) < 5:
        raise BadSpec(f"{path} holds {sum(leaks)} leaks and {len(leaks) - sum(leaks)} clean texts. Give at least five "
                      "of each.")
    return tuple(texts), tuple(leaks)
