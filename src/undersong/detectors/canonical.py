"""Rows of numbers in canonical form, shared by detectors: what the values are, apart from how they are written.

`numbers_of` reads a whole batch of texts at once, as bytes: a number is a run of the digits 0..9, leading zeros are
dropped and the first nine digits kept, so that no text can make a value without end. Everything else is counted from
what it returns. A feature belongs to one of two kinds that never mix: values (`value_features`, `marginal_features`)
and confounds (`confound_features`: how many numbers, how long a text, which separators).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from undersong.types import Row

Matrix = NDArray[np.float64]
Whole = NDArray[np.int64]
PLACES = 10
"""The first so many places of a row have a feature of their own."""
CAP = 10_000
"""Means of values take a larger value as this, so that one huge number does not outweigh a set."""
BIN = 50
"""Width of the bins of values up to 999."""
_KEPT_DIGITS = 9
_GROUPS = (",", ";", " ", "\n", "()[]", ".")
CONFOUNDS = ("how many numbers", "characters that are no digits", "commas", "semicolons", "spaces", "line ends", "brackets",
             "full stops", "other characters")
MARGINALS = (
    *(f"values from {low} to {low + BIN - 1}" for low in range(0, 1000, BIN)), "values of 1000 and more",
    *(f"first digit {d}" for d in range(10)), *(f"last digit {d}" for d in range(10)),
    *(f"second digit {d}" for d in range(10)), "numbers of one digit", "numbers of two digits", "numbers of three digits",
    *(f"value at place {i + 1}" for i in range(PLACES)), "value of all places", "spread of values in a row",
    "step to the next value", "size of the step to the next value", "rising steps", "values that repeat in a row",
)
"""What each column of `marginal_features` is, in words."""


@dataclass(frozen=True)
class Numbers:
    """The numbers of a batch of texts, in reading order."""

    rows: int
    """How many texts."""
    row: Whole
    """[numbers]: the text each number stands in."""
    place: Whole
    """[numbers]: its place in that text, from 0."""
    value: Whole
    """[numbers]: its value (the first nine digits of it)."""
    digits: Whole
    """[numbers]: how many digits that value has."""
    count: Whole
    """[rows]: how many numbers each text holds."""
    others: Whole
    """[rows, 7]: commas, semicolons, spaces, line ends, brackets, full stops and other characters that are no digits."""

    @property
    def leading(self) -> Whole:
        """[numbers]: the first digit of each; 0 only for the value 0."""
        first: Whole = self.value // _TENS[self.digits - 1]
        return first


_TENS: Whole = 10 ** np.arange(_KEPT_DIGITS + 1, dtype=np.int64)
_DIGIT, _OTHER, _INSIDE = 7, 6, 8
_KIND = np.full(256, _OTHER, np.int64)
_KIND[0x80:0xC0] = _INSIDE  # a byte inside a character of UTF-8: the character was counted at its first byte
_KIND[ord("0") : ord("9") + 1] = _DIGIT
for _k, _group in enumerate(_GROUPS):
    _KIND[[ord(c) for c in _group]] = _k


def numbers_of(texts: Sequence[str]) -> Numbers:
    """The numbers of each text, and what stands between them. Any text will do, lone surrogates too."""
    parts = [text.encode("utf-8", "surrogatepass") for text in texts]
    # one byte that is no digit after each text, so that no number crosses from one text to the next
    data = np.frombuffer(b"\0".join([*parts, b""]), np.uint8)
    sizes = np.fromiter(map(len, parts), np.int64, len(parts)) + 1
    row_of = np.repeat(np.arange(len(parts)), sizes)
    kinds = np.bincount(row_of * 9 + _KIND[data], minlength=9 * len(parts)).reshape(len(parts), 9)
    others = kinds[:, :7].copy()
    others[:, _OTHER] -= 1  # the byte between texts
    digit = (data >= ord("0")) & (data <= ord("9"))
    edges = np.flatnonzero(np.diff(digit, prepend=False, append=False))
    start, end = edges[::2], edges[1::2]
    solid = np.where(data != ord("0"), np.arange(len(data)), len(data))
    solid = np.minimum.accumulate(solid[::-1])[::-1]
    start, row = np.minimum(solid[start], end - 1), row_of[start]
    digits = np.minimum(end - start, _KEPT_DIGITS)
    value = np.zeros(len(start), np.int64)
    for k in range(int(digits.max(initial=0))):
        here = digits > k
        value[here] = value[here] * 10 + (data[start[here] + k] - np.uint8(ord("0")))
    count = np.bincount(row, minlength=len(parts))
    place = np.arange(len(row)) - np.repeat(np.cumsum(count) - count, count)
    return Numbers(len(parts), row, place, value, digits, count, others)


def value_features(rows: Sequence[Row]) -> Matrix:
    """[rows, 1000 + 10 + 10 + 10]: shares of each value up to 999, of first and of last digits; values at the first
    places, in thousands (a place past the row's end holds the row's mean, so that the row's length does not show)."""
    found = numbers_of([row.completion for row in rows])
    small = found.digits <= 3
    shares = [_shares(found, found.value, 1000, small), _shares(found, found.leading, 10),
              _shares(found, found.value % 10, 10)]
    return np.concatenate([*shares, _places(found)], axis=1)


def fresh_values(rows: Sequence[Row]) -> Matrix:
    """[rows, 1000]: the share of a row's numbers that are each value up to 999 and do not stand in its prompt (the last
    user's turn). Most of a row continues its prompt; what it adds of its own shows its writer better."""
    found = numbers_of([row.completion for row in rows])
    asked = numbers_of([row.chat[-1]["content"] if row.chat else "" for row in rows])
    wide = int(_TENS[_KEPT_DIGITS])
    fresh = ~np.isin(found.row * wide + found.value, asked.row * wide + asked.value)
    return _shares(found, found.value, 1000, fresh & (found.digits <= 3))


def marginal_features(found: Numbers) -> Matrix:
    """[rows, len(MARGINALS)]: a row's shares and means, as `MARGINALS` names them; a row without numbers holds zeros."""
    value, n = found.value, np.maximum(found.count, 1)
    bins = np.minimum(value // BIN, 1000 // BIN)
    second = (value // _TENS[np.maximum(found.digits - 2, 0)]) % 10
    capped = np.minimum(value, CAP) / 1000
    mean = _sums(found, capped) / n
    spread = np.sqrt(np.maximum(_sums(found, capped**2) / n - mean**2, 0))
    later = np.flatnonzero(found.place > 0)
    step = capped[later] - capped[later - 1]
    steps = np.maximum(found.count - 1, 1)
    walk = [np.bincount(found.row[later], w, found.rows) / steps for w in (step, abs(step), step > 0)]
    return np.column_stack([
        _shares(found, bins, 1000 // BIN + 1), _shares(found, found.leading, 10), _shares(found, value % 10, 10),
        _shares(found, second, 10, found.digits > 1), _shares(found, found.digits - 1, 3, found.digits <= 3),
        _places(found), mean, spread, *walk, _repeats(found) / n,
    ])


def confound_features(rows: Sequence[Row]) -> Matrix:
    """[rows, 9]: how many numbers; characters that are no digits; how many commas, semicolons, spaces, newlines,
    brackets, full stops; other characters. Digits are not counted: how long a number is belongs to its value."""
    return confounds_of(numbers_of([row.completion for row in rows]))


def confounds_of(found: Numbers) -> Matrix:
    """`confound_features` of numbers that have been read, as `CONFOUNDS` names them."""
    return np.column_stack([found.count, found.others.sum(axis=1), found.others]).astype(np.float64)


def _shares(found: Numbers, column: Whole, columns: int, use: NDArray[np.bool_] | None = None) -> Matrix:
    """[rows, columns]: the share of a row's numbers that belong to each column; of those in `use` where it is given."""
    place, weight = found.row * columns + column, 1 / found.count[found.row]
    if use is not None:
        place, weight = place[use], weight[use]
    return np.bincount(place, weight, found.rows * columns).astype(np.float64).reshape(found.rows, columns)


def _places(found: Numbers) -> Matrix:
    """[rows, PLACES]: values at the first places, in thousands; the mean of those where the row has ended."""
    out = np.zeros((found.rows, PLACES))
    first = found.place < PLACES
    out[found.row[first], found.place[first]] = np.minimum(found.value[first], CAP) / 1000
    # row by row of one length: numpy adds them in the order in which it would add a single row
    for length in range(1, PLACES):
        here = found.count == length
        out[here, length:] = out[here, :length].mean(axis=1, keepdims=True)
    return out


def _sums(found: Numbers, weight: Matrix) -> Matrix:
    return np.bincount(found.row, weight, found.rows).astype(np.float64)


def _repeats(found: Numbers) -> Matrix:
    """[rows]: how many numbers of a row stood in it before."""
    each = np.sort(found.row * int(_TENS[_KEPT_DIGITS]) + found.value)
    again = each[1:][each[1:] == each[:-1]] // int(_TENS[_KEPT_DIGITS])
    return np.bincount(again, minlength=found.rows).astype(np.float64)
