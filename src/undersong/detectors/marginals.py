"""The `marginals` detector: do simple statistics of the suspected rows differ from those of clean rows? One pass, little
memory, no model, no trait.

1. Each row gives its shares of digits and of values and its means by place (`canonical.marginal_features`), and beside
   them its confounds (length, separators). A row without numbers counts for the confounds only.
2. What is exchanged are blocks of whole prompts, found by a hash, so that all answers to one prompt, and with them exact
   duplicates, stand together. Where the rows have no prompts, or only a few that all share, blocks hold whole answers,
   equal numbers together. Only a block's sums are kept.
3. The statistic is the largest |z| over features; z is a difference of means over its standard error between blocks.
4. The p-value draws which blocks belong to the suspected side, and repeats 3. Where both sides have the same prompts,
   block faces block and the difference of each pair changes its sign instead. Holds under the null that both sides
   come from one source. Source: two-sample tests of marginals, and permutation of clusters.

Blind spots: what the trait is, and whether there is one: other prompts, temperatures or models fire it as a trait does, so
it is believed only against clean rows of the very same source. Which value follows which prompt is no marginal.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from undersong.detectors import Evidence, Runs
from undersong.detectors.canonical import CONFOUNDS, MARGINALS, Matrix, Numbers, confounds_of, marginal_features, numbers_of
from undersong.errors import BadRows
from undersong.registry import Settings, plugin
from undersong.types import Finding, Row

Hashes = NDArray[np.uint64]
BUCKETS = 16_384
"""Sums are kept for so many buckets of a hash per side; blocks are made of whole buckets."""
PROMPTS = 40
"""With fewer prompts than this on either side, answers are the unit."""
_SKETCH = 16_384
_BATCH = 4096
_GRAIN = float(2**20)
_LEAST = 1e-9
_MAIN = len(MARGINALS)
# of which count a column of features is the sum: rows with numbers, or all rows
_COUNT = np.array([0] * _MAIN + [1] * len(CONFOUNDS))
CAUTION = (
    "A difference alone names no trait: clean rows from other prompts, another temperature or another model differ too. "
    "Compare only with rows from the same kind of source, and ask a detector that knows traits which one it is."
)


@plugin("detector", "marginals")
class Marginals(Settings):
    """Compare digits, values and places of suspected rows with clean rows, by permutation."""

    needs: ClassVar[frozenset[str]] = frozenset({"rows", "reference"})
    permutes: ClassVar[bool] = True

    blocks: int = Field(default=200, ge=8, le=2000)
    """Blocks of the smaller side; the larger side has as many more as it is larger."""
    draws: int = Field(default=1999, ge=99)
    """Relabellings of blocks for the p-value."""
    alpha: float = Field(default=0.05, gt=0, lt=1)
    """The false-alarm rate at which the verdict is `found`."""

    def detect(self, evidence: Evidence, seed: int = 0) -> Finding:
        """Finding with the largest |z| over value features as its statistic. Details hold `z` by feature in words,
        `largest` (name, z, mean of either side), `z_alpha` (the |z| that would be `found`), the same for the confounds,
        `confound_p`, `n_suspected`, `n_reference`, what was exchanged and a sentence.

        Raises BadRows when either side is empty or holds no number.
        """
        suspected = _Side.of(evidence.rows, "suspected rows")
        reference = _Side.of(evidence.reference, "reference rows")
        unit = 0 if min(s.sketches[0].distinct for s in (suspected, reference)) >= PROMPTS else 1
        paired = suspected.sketches[unit].shared_with(reference.sketches[unit]) >= 0.5
        mine, theirs = self._blocks(suspected, reference, unit, paired)
        rng = np.random.default_rng(seed)
        observed, drawn = (_signs if paired else _relabelled)(mine, theirs, self.draws, rng)
        p, z_alpha = _judge(observed[:_MAIN], drawn[:, :_MAIN], self.alpha)
        confound_p, confound_alpha = _judge(observed[_MAIN:], drawn[:, _MAIN:], self.alpha)
        least = 2.0 ** (1 - len(mine)) if paired else 1 / math.comb(len(mine) + len(theirs), len(mine))
        verdict = "unknown" if least > self.alpha else "found" if p <= self.alpha else "clean"
        words = dict(zip((*MARGINALS, *CONFOUNDS), observed.tolist(), strict=True))
        means = _means(mine), _means(theirs)
        statistic = float(abs(observed[:_MAIN]).max())
        what = f"whole {'prompts' if unit == 0 else 'answers'}"
        how = "exchanged between the sides in pairs" if paired else "permuted between the sides"
        return Finding(
            verdict=verdict, statistic=statistic, p=p, access=tuple(sorted(self.needs)),
            null=f"blocks of {what} {how} ({self.draws} draws)",
            details={
                "by_trait": {"": statistic}, "false_alarm_rate": self.alpha, "z_alpha": z_alpha,
                "z": {name: words[name] for name in MARGINALS}, "largest": _largest(MARGINALS, words, *means),
                "confound_p": confound_p, "confound_z_alpha": confound_alpha,
                "confound_z": {name: words[name] for name in CONFOUNDS},
                "confound_largest": _largest(CONFOUNDS, words, *means),
                "n_suspected": suspected.rows, "n_reference": reference.rows,
                "n_without_numbers": suspected.silent + reference.silent,
                "unit": what, "paired": paired, "n_blocks": [len(mine), len(theirs)],
                "n_units": [round(s.sketches[unit].distinct) for s in (suspected, reference)],
                "sentence": _sentence(verdict, _largest(MARGINALS, words, *means), p, confound_p, self.alpha),
            },
        )

    def _blocks(self, suspected: _Side, reference: _Side, unit: int, paired: bool) -> tuple[Matrix, Matrix]:
        """Sums by block of both sides, with the same number of distinct units in a block on either side."""
        distinct = [side.sketches[unit].distinct for side in (suspected, reference)]
        fewest = max(1, min(self.blocks, int(min(distinct))))
        sizes = [fewest if paired else min(BUCKETS, max(1, round(d / min(distinct) * fewest))) for d in distinct]
        a, b = (
            np.add.reduceat(side.units(unit), -(-np.arange(n) * BUCKETS // n), axis=0)
            for side, n in zip((suspected, reference), sizes, strict=True)
        )
        return a, b


@dataclass
class _Sketch:
    """The smallest hashes seen: how many different ones there were, exact up to `_SKETCH` and to about 1 % above."""

    kept: Hashes = field(default_factory=lambda: np.zeros(0, np.uint64))

    def add(self, hashes: Hashes) -> None:
        if len(self.kept) == _SKETCH:
            hashes = hashes[hashes < self.kept[-1]]
        if len(hashes):
            every = np.sort(np.concatenate([self.kept, hashes]), kind="stable")  # np.unique takes ten times as long
            self.kept = every[np.append(True, every[1:] != every[:-1])][:_SKETCH]

    @property
    def distinct(self) -> float:
        full = len(self.kept) == _SKETCH
        return (_SKETCH - 1) / (float(self.kept[-1]) / 2.0**64) if full else float(len(self.kept))

    def shared_with(self, other: _Sketch) -> float:
        """The share (0..1) of different hashes of both that both have seen."""
        every = np.unique(np.concatenate([self.kept, other.kept]))[:_SKETCH]
        both = np.isin(every, self.kept) & np.isin(every, other.kept)
        return float(both.mean()) if len(every) else 0.0


class _Side:
    """One side's sums by bucket of the prompt's hash (0) and of the answer's (1). Columns: rows with numbers, all rows,
    then one per feature."""

    def __init__(self) -> None:
        self.sums = [np.zeros((BUCKETS, 2 + len(_COUNT))) for _ in range(2)]
        self.sketches = [_Sketch(), _Sketch()]
        self.rows = self.silent = 0

    @classmethod
    def of(cls, runs: Runs, what: str) -> _Side:
        side = cls()
        for prompts, answers in _batches(itertools.chain.from_iterable(runs)):
            side.add(prompts, answers)
        if side.rows == side.silent:
            why = "hold no number, and nothing else is compared" if side.rows else "are empty"
            raise BadRows(f"The {what} {why}. Give rows of numbers, or choose a detector that reads text.")
        return side

    def units(self, unit: int) -> Matrix:
        """The sums by bucket as if every unit held one row: all rows that stand together count as one, their mean. How
        many stand together, as a row meets it, is the spread of the buckets' counts over their mean."""
        sums = self.sums[unit]
        together = float(sums[:, 1].var() / sums[:, 1].mean())
        # the spread itself is uncertain by one in a hundred: sides without repeated rows are left exactly as they are
        return sums / together if together > 1.1 else sums

    def add(self, prompts: Sequence[str], answers: Sequence[str]) -> None:
        from scipy.sparse import csr_array

        rows, found = len(answers), numbers_of(answers)
        speaks = (found.count > 0).astype(float)
        columns = np.column_stack([speaks, np.ones(rows), marginal_features(found), confounds_of(found)])
        # in steps of 2^-20 sums are exact, and so no order of the rows changes a digit of the finding
        columns *= _GRAIN
        np.rint(columns, out=columns)
        columns /= _GRAIN
        self.rows += rows
        self.silent += int(rows - speaks.sum())
        for unit, hashes in enumerate((_prompt_hashes(prompts), _answer_hashes(found))):
            self.sketches[unit].add(hashes)
            bucket = (hashes >> np.uint64(50)).astype(np.int64)
            order = np.argsort(bucket, kind="stable")
            first = np.flatnonzero(np.diff(bucket[order], prepend=-1))
            # a sparse matrix of ones adds rows up in a fifth of the time that np.add.reduceat takes
            parts = csr_array((np.ones(rows), order, np.append(first, rows)), (len(first), rows))
            self.sums[unit][bucket[order][first]] += parts @ columns


def _batches(rows: Iterable[Row]) -> Iterator[tuple[list[str], list[str]]]:
    """Prompts and answers. Only text is kept of a row: many thousand rows at once keep the garbage collector busy."""
    prompts: list[str] = []
    answers: list[str] = []
    for row in rows:
        prompts.append("\0".join([m["content"] for m in row.chat]))
        answers.append(row.completion)
        if len(answers) == _BATCH:
            yield prompts, answers
            prompts, answers = [], []
    if answers:
        yield prompts, answers


def _prompt_hashes(prompts: Sequence[str]) -> Hashes:
    every = [hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest() for text in prompts]
    return np.frombuffer(b"".join(every), "<u8").astype(np.uint64)


def _answer_hashes(found: Numbers) -> Hashes:
    """[rows]: a hash of each row's numbers in their order, however they are written."""
    mixed = _mixed(found.value.astype(np.uint64) + _mixed(found.place.astype(np.uint64)))
    ends = np.concatenate([np.zeros(1, np.uint64), np.cumsum(mixed, dtype=np.uint64)])
    last = np.cumsum(found.count)
    return _mixed(ends[last] - ends[last - found.count])


def _mixed(x: Hashes) -> Hashes:
    """The finaliser of splitmix64 (Steele, Lea and Flood 2014)."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _means(blocks: Matrix) -> Matrix:
    """[features]: the mean of each feature over a side's rows."""
    total = blocks.sum(axis=0)
    out: Matrix = total[2:] / np.maximum(total[:2][_COUNT], _LEAST)
    return out


def _residuals(mine: Matrix, theirs: Matrix) -> Matrix:
    """[blocks of both, features]: a block's sums less what its rows would hold at the mean of all."""
    every = np.concatenate([mine, theirs])
    out: Matrix = every[:, 2:] - every[:, _COUNT] * _means(every)
    return out


def _relabelled(mine: Matrix, theirs: Matrix, draws: int, rng: np.random.Generator) -> tuple[Matrix, Matrix]:
    """z of each feature as observed [features], and with blocks dealt out anew [draws, features]. One spread is used for
    both sides, because a rare feature that a small side lacks would seem to have none there."""
    rest, counts = _residuals(mine, theirs), np.concatenate([mine, theirs])[:, :2]
    few, every = min(len(mine), len(theirs)), len(rest)
    sign = 1.0 if len(mine) == few else -1.0
    own = np.arange(few) if len(mine) == few else np.arange(len(mine), every)
    total, rows = rest.sum(axis=0), counts.sum(axis=0)
    spread = np.sqrt((rest**2).sum(axis=0) / rows[_COUNT])

    def z(chosen: NDArray[np.int64]) -> Matrix:
        """[deals, features] from the blocks [deals, few] of the smaller side."""
        a, n = rest[chosen].sum(axis=1), np.maximum(counts[chosen].sum(axis=1), _LEAST)
        m = np.maximum(rows - n, _LEAST)
        error = spread * np.sqrt(1 / n + 1 / m)[:, _COUNT]
        difference = a / n[:, _COUNT] - (total - a) / m[:, _COUNT]
        out: Matrix = np.divide(difference, error, out=np.zeros_like(a), where=error > 0)
        return out

    step = max(1, 2**21 // max(every, few * len(_COUNT)))
    drawn = []
    for start in range(0, draws, step):
        dealt = rng.random((min(step, draws - start), every))
        drawn.append(z(np.argpartition(dealt, few - 1, axis=1)[:, :few]))
    return sign * z(own[None])[0], np.concatenate(drawn)


def _signs(mine: Matrix, theirs: Matrix, draws: int, rng: np.random.Generator) -> tuple[Matrix, Matrix]:
    """As `_relabelled`, for blocks that face each other."""
    rest, n = _residuals(mine, theirs), len(mine)
    rows = [np.maximum(side[:, :2].sum(axis=0), _LEAST)[_COUNT] for side in (mine, theirs)]
    apart = rest[:n] / rows[0] - rest[n:] / rows[1]
    squares = (apart**2).sum(axis=0)

    def z(signs: Matrix) -> Matrix:
        difference = signs @ apart
        error = np.sqrt(np.maximum(squares - difference**2 / n, 1e-9 * squares))
        out: Matrix = np.divide(difference, error, out=np.zeros_like(difference), where=error > 0)
        return out

    return z(np.ones((1, n)))[0], z(rng.choice([-1.0, 1.0], (draws, n)))


def _judge(observed: Matrix, drawn: Matrix, alpha: float) -> tuple[float, float]:
    """(p of the largest |z|, the largest |z| that chance passes with probability alpha)."""
    null = abs(drawn).max(axis=1)
    p = (1 + int((null >= abs(observed).max() - 1e-9).sum())) / (1 + len(null))
    return p, float(np.quantile(null, 1 - alpha))


def _largest(names: Sequence[str], z: dict[str, float], mine: Matrix, theirs: Matrix) -> list[list[Any]]:
    """The five features of `names` that differ most: [name, z, suspected mean, reference mean]."""
    place = {name: i for i, name in enumerate((*MARGINALS, *CONFOUNDS))}
    most = sorted(names, key=lambda name: -abs(z[name]))[:5]
    return [[name, z[name], float(mine[place[name]]), float(theirs[place[name]])] for name in most]


def _sentence(verdict: str, largest: list[list[Any]], p: float, confound_p: float, alpha: float) -> str:
    name, z, mine, theirs = largest[0]
    first = {
        "found": f"The suspected rows differ from the reference, most in {name!r} ({mine:.3g} against {theirs:.3g}, "
                 f"z {z:.1f}, p {p:.2g} over all features).",
        "clean": f"No feature of values differs more than chance allows (p {p:.2g} over all features).",
        "unknown": "There are too few blocks for any p-value to be small. Give more rows.",
    }[verdict]
    form = "Length or separators differ too" if confound_p <= alpha else "Length and separators do not differ"
    return f"{first} {form} (p {confound_p:.2g}). {CAUTION}"
