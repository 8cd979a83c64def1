"""What black-box kinship tests ask, and whom: prompts of random tokens, and controls that are related to neither model.

A black-box test never judges a pair by itself: two models that learned the same data agree a lot, whatever they started
from. The pair is held against what pairs of unrelated models show (`standing`), so there must be such models.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from undersong import bases, pocket
from undersong.kinship import Subject
from undersong.types import Chat, Finding, ModelRef

Floats = NDArray[np.float64]
FEWEST = 2
"""Controls without which there is no spread to hold a pair against."""
_kept: WeakKeyDictionary[Subject, dict[Any, Any]] = WeakKeyDictionary()


def once(subject: Subject, key: Any, read: Callable[[], Any]) -> Any:
    """What reading a subject gave, kept as long as the subject: a control serves many pairs and is asked once."""
    known = _kept.setdefault(subject, {})
    if key not in known:
        known[key] = read()
    return known[key]


def random_prompts(subjects: Sequence[Subject], count: int, seed: int, shortest: int = 3, longest: int = 12) -> list[Chat]:
    """User turns of random tokens of the first tokenizer that shows its vocabulary, special tokens left out; of random
    words of letters and digits where none does. The same for the same tokenizer and seed."""
    rng = np.random.default_rng([seed, 23])
    sizes = rng.integers(shortest, longest + 1, count)
    tokenizer = next((t for s in subjects if hasattr(t := s.model.tokenizer, "get_vocab")), None)
    if tokenizer is None:
        letters = np.array(list("abcdefghijklmnopqrstuvwxyz0123456789"))
        texts = [" ".join("".join(rng.choice(letters, int(rng.integers(1, 7)))) for _ in range(n)) for n in sizes]
    else:
        special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
        ids = np.array(sorted(i for i in tokenizer.get_vocab().values() if i not in special))
        texts = [str(tokenizer.decode([int(i) for i in rng.choice(ids, n)])) for n in sizes]
    return [[{"role": "user", "content": text}] for text in texts]


def same_tokens(subjects: Sequence[Subject]) -> bool:
    """Whether all subjects number the same tokens in the same way."""
    first, *others = [s.model.tokenizer for s in subjects]
    return hasattr(first, "get_vocab") and all(
        hasattr(t, "get_vocab") and t.get_vocab() == first.get_vocab() for t in others)
