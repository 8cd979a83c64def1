"""What black-box kinship tests share: prompts of random tokens, controls, and what a pair is held against.

A black-box test never judges a pair by itself: two models that learned the same data agree a lot, whatever they started
from. The pair is held against what pairs of unrelated models show, so there must be such models (`controls`). One that is
related to a subject after all costs power: it raises what unrelated pairs are believed to show.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from undersong import bases, pocket
from undersong.errors import BadSpec, MissingModel
from undersong.kinship import Subject
from undersong.types import Chat, ModelRef

Floats = NDArray[np.float64]
FEWEST = 2
"""Controls without which there is no spread between unrelated pairs."""


@dataclass(frozen=True)
class Controls:
    """Models held to be unrelated to both subjects, what was left out and why, and whether they learned the same data."""

    subjects: tuple[Subject, ...]
    left_out: tuple[str, ...]
    same_data: bool
    """Whether it is known that subjects and controls learned the same data: only then is agreement about initialisation."""


@dataclass(frozen=True)
class Standing:
    """A pair against pairs of unrelated models, in the units of the statistic."""

    value: float
    expected: float
    """What the pair would show if it were unrelated."""
    error: float
    """Standard error of that prediction, the spread between pairs included."""
    freedom: int
    p: float
    """One-sided: an unrelated pair shows at least this much."""

    @property
    def excess(self) -> float:
        """The share of the way from unrelated (0) to equal (1)."""
        return (self.value - self.expected) / max(1 - self.expected, 1e-9)

    def power(self, excess: float, alpha: float) -> float:
        """The chance that a pair whose true excess is this would have been called at alpha (noncentral t)."""
        from scipy import stats

        shift = excess * (1 - self.expected) / self.error
        return float(stats.nct.sf(stats.t.isf(alpha, self.freedom), self.freedom, shift))


def controls_of(a: Subject, b: Subject, given: Sequence[Subject], same_data: bool | None) -> Controls:
    """The controls given, or for pocket subjects the shipped models of other initialisations; those that hold a subject's
    own weights are left out. `same_data` None: known for shipped models only.

    Raises BadSpec when fewer than two are left."""
    offered = list(given) or _shipped(a, b)
    kept, out = list[Subject](), list[str]()
    for control in offered:
        own = [s.name for s in (a, b) if once(control, ("bytes", s.ref), _same_bytes, s)]
        out += [f"{control.name}: holds weights of {own[0]}"] if own else []
        kept += [] if own else [control]
    if len(kept) < FEWEST:
        raise BadSpec(f"A black-box test holds the pair against unrelated models, and {len(kept)} of them are at hand. Give "
                      "at least two as --control, better five: other models of the same size that learned the same kind of "
                      "data from another initialisation.")
    known = all(s.ref.base.startswith(pocket.PREFIX) for s in (a, b, *kept))
    return Controls(tuple(kept), tuple(out), known if same_data is None else same_data)


def _shipped(a: Subject, b: Subject) -> list[Subject]:
    """One shipped pocket model per initialisation that is neither subject's, when both speak pocket's tokens."""
    if any(_vocabulary(s) != _vocabulary(Subject("", ModelRef("pocket/a"), a.backend)) for s in (a, b)):
        return []
    taken = {_beginning(s.ref.base) for s in (a, b)}
    out: dict[str, Subject] = {}
    for name in pocket.names():
        control = Subject(name, ModelRef(name), a.backend)
        if _beginning(name) not in taken and _beginning(name) not in out:
            out[_beginning(name)] = control
    return list(out.values())


def _vocabulary(subject: Subject) -> Any:
    """The vocabulary in the tokenizer file of a local base, without loading the model; None where there is none."""
    try:
        place, _ = bases.place(subject.ref.base)
        return json.loads((Path(place) / "tokenizer.json").read_text("utf-8"))["model"]["vocab"]
    except (MissingModel, OSError, ValueError, KeyError, TypeError):
        return None


def _beginning(base: str) -> str:
    """What a base was first: a shipped model's initialisation seed, else its own name."""
    if base not in pocket.names():
        return base
    made = pocket.origin(base)["member"]
    return _beginning(pocket.PREFIX + made["start"]) if made["start"] else f"{pocket.PREFIX}{made['init_seed']}"


def _same_bytes(control: Subject, subject: Subject) -> bool:
    """Whether a control is a subject or holds a tensor of it, bit for bit; no where weights cannot be seen."""
    from undersong import registry

    if control.ref == subject.ref:
        return True
    try:
        found = registry.get("kinship", "bytes")().compare(control, subject)
    except (BadSpec, MissingModel):
        return False
    return found.verdict in ("same_weights", "same_initialisation")


def once(subject: Subject, key: Any, read: Callable[..., Any], *given: Any) -> Any:
    """What `read(subject, *given)` gave, kept as long as the subject: a control serves many pairs and is asked once."""
    known = vars(subject).setdefault("_asked", {})
    if key not in known:
        known[key] = read(subject, *given)
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
    """Whether all subjects show their tokens, and number the same ones in the same way."""
    shown = [s.model.tokenizer.get_vocab() for s in subjects if hasattr(s.model.tokenizer, "get_vocab")]
    return len(shown) == len(subjects) and all(v == shown[0] for v in shown)


def alike(read: Sequence[Any], similarity: Callable[[Any, Any], float]) -> Floats:
    """The similarity of what was read of each pair of models, [models, models]; the diagonal is 1."""
    out = np.eye(len(read))
    for i, j in combinations(range(len(read)), 2):
        out[i, j] = out[j, i] = similarity(read[i], read[j])
    return out


def standing(table: Floats) -> Standing:
    """The first two models of a table of similarities against the mean and spread of all its other pairs.

    Pairs that share a model are no independent draws, so Student's t has as many degrees of freedom as there are controls,
    not pairs. (An effect for each model fits better and called 3 of 165 unrelated development pairs kin; this calls none.)
    """
    from scipy import stats

    n = len(table)
    values = np.array([table[i, j] for i, j in combinations(range(n), 2) if (i, j) != (0, 1)])
    expected = float(values.mean())
    error = max(float(values.std(ddof=1)) * np.sqrt(1 + 1 / len(values)), 1e-6)
    return Standing(float(table[0, 1]), expected, float(error), n - 2,
                    float(stats.t.sf((table[0, 1] - expected) / error, n - 2)))
