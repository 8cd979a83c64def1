"""The `weights` test: did two models start from one initialisation? Its statistics and their null: `matching.py`.

Parts; each is one chance to find kinship, and their p-values are joined by Bonferroni:
1. `coordinates`: columns of the embedding (and of an untied output map) over common tokens: the numbering of the residual
   stream. Blind to hidden units and heads, hence unmoved by their permutation. Exact.
2. `units`: rows of the maps into the hidden units, in the coordinates of the residual stream, per layer. Exact; finds
   models whose embedding was replaced.
3. `token_units`: the same rows as functions of tokens (embedding times map): a rotation of the residual stream cancels.
   Exact.
4. `consistency`: do gate and up, each for itself, match the same units? Unmoved by rotation and permutation together, and
   defined for models of different widths. Once every numbering is scrambled only the function is left, and models that
   learned the same rows share some of it: this part tests "more than a share `alike` of units agree", and its null is
   approximate (units are counted as independent). Pocket models of other seeds agree in 1 to 3 % of units; of GPT-2's
   neurons 1 to 5 % are alike in all seeds (Gurnee et al., arXiv 2401.12181). Read where the exact parts found nothing.

Power: synthetic descendants are made by adding noise to one model, relative to each tensor's spread; the share that is
called is told per distance. Direction: a rounding, a pruning or a coarser grid of values is the child.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import zip_longest
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from undersong.kinship import Subject
from undersong.kinship.checkpoint import Array, Checkpoint
from undersong.kinship.direction import direction
from undersong.kinship.matching import FLOOR, agreeing, agreement_p, fixed_points_p, met, profiles
from undersong.kinship.roles import Layer, Roles, roles
from undersong.registry import Settings, plugin
from undersong.types import Finding

DISTANCES = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
"""Relative distances of synthetic descendants: noise over the spread of the weights."""
AS_FAR = 1.0
"""The distance at which power is told: a change as large as the weights themselves."""
DRAWS = 2
"""Synthetic descendants per model and distance."""
NEAREST = 512
"""Common tokens on which units are compared one by one."""
PARTS = ("coordinates", "units", "token_units", "consistency")
NULL = ("two initialisations number coordinates and units independently: fixed points of uniform permutations, exact; "
        "consistency: binomial, at most a share `alike` of units agree")


Index = NDArray[np.int64]


@dataclass(frozen=True)
class Part:
    """What is read of one model: embedding rows [tokens, width] (the output map's beside them) and maps [units, width]."""

    embedding: Array
    tables: Array
    layers: tuple[tuple[Array, ...], ...]


@plugin("kinship", "weights")
class Weights(Settings):
    """One initialisation or two, by the numbering of coordinates and units: survives what preserves the function."""

    needs: ClassVar[frozenset[str]] = frozenset({"weights"})

    alpha: float = Field(default=0.01, gt=0, lt=1)
    """Kinship is said at p <= alpha."""
    tokens: int = Field(default=2048, ge=16)
    """At most so many common tokens are read."""
    units: int = Field(default=512, ge=8)
    """At most so many coordinates, and units of a layer, are matched."""
    layers: int = Field(default=6, ge=1)
    """At most so many layers are read, evenly spaced."""
    alike: float = Field(default=0.1, gt=0, lt=1)
    """The share of units that two models of unlike origin may match alike, having learned the same rows."""
    enough: float = Field(default=0.8, gt=0, le=1)
    """`same_architecture` and `unrelated` need this power at a distance as large as the weights themselves."""
    seed: int = 0
    """Draws tokens, ties and synthetic noise."""

    def compare(self, a: Subject, b: Subject, controls: Sequence[Subject] = ()) -> Finding:
        """p of one common initialisation. Details: `parts` (p, counts, sizes, by layer), `power`, `power_by_distance`,
        `power_if_scrambled`, `direction` and `direction_evidence`, `distance` (of the embeddings), `embedding_gram`
        (descriptive: training on the same rows raises it too). Raises BrokenArtefact for damaged weights."""
        one, two = a.checkpoint, b.checkpoint
        pair = Pair.of(self, one, two)
        if pair is None:
            return self._unknown("No embedding or hidden units were recognised that both models have.")
        found = {name: pair.test(name, pair.a, pair.b) for name in pair.allowed}
        p = joined(found)
        if p > self.alpha and pair.plain:
            found["consistency"] = pair.consistency()
            p = joined(found)
        called = p <= self.alpha
        curve, hidden = pair.power(self.alpha), {} if called else pair.power(self.alpha, scrambled=True)
        power = curve[str(AS_FAR)]
        way, evidence = direction(one, two) if called else (None, "")
        same = _shapes(one) == _shapes(two)
        relation = ("same_initialisation" if called else "unknown" if power < self.enough
                    else "same_architecture" if same else "unrelated")
        counts = {name: part["agree"] for name, part in found.items()}
        return Finding(relation, float(max(counts.values(), default=0)), p, ("weights",), NULL, {
            "power": power, "power_by_distance": curve, "power_if_scrambled": hidden, "direction": way,
            "direction_evidence": evidence, "parts": found, "embedding_gram": pair.gram(), "common_tokens": pair.common,
            "resolution": FLOOR, "distance": pair.distance(), "says": _says(relation, found, p, power)})

    def _unknown(self, why: str) -> Finding:
        return Finding("unknown", 0.0, None, ("weights",), NULL, {"power": 0.0, "direction": None, "says": why})


@dataclass(frozen=True)
class Pair:
    """Two models at work: what was read of them, and how to read more."""

    settings: Weights
    one: Checkpoint
    two: Checkpoint
    roles: tuple[Roles, Roles]
    a: Part
    b: Part
    common: int
    plain: bool
    """Whether both have units whose two maps can be matched as functions of common tokens."""

    @classmethod
    def of(cls, settings: Weights, one: Checkpoint, two: Checkpoint) -> Pair | None:
        """Read what the parts need; None when the models have nothing to compare."""
        own = roles(one), roles(two)
        rows = common_rows(one, two, own, settings)
        untied = all(r.head for r in own)
        parts = [_read(c, r, index, settings, untied) for c, r, index in zip((one, two), own, rows, strict=True)]
        gated = all(any(len(layer.maps) == 2 for layer in r.layers) for r in own)
        pair = cls(settings, one, two, own, parts[0], parts[1], len(rows[0]), bool(len(rows[0]) and gated))
        return pair if pair.plain or pair.allowed else None

    @cached_property
    def allowed(self) -> list[str]:
        """The exact parts that these two models allow."""
        aligned = len(self.a.layers) == len(self.b.layers) > 0
        shapes = [(m.shape, n.shape) for x, y in zip(self.a.layers, self.b.layers, strict=False)
                  for m, n in zip_longest(x, y, fillvalue=np.zeros((0, 0), np.float32))]
        units = aligned and all(m[0] == n[0] for m, n in shapes)
        return [name for name, fits in (
            ("coordinates", self.common > 0 and self.a.embedding.shape[1] == self.b.embedding.shape[1]),
            ("units", units and all(m == n for m, n in shapes)), ("token_units", units and self.common > 0)) if fits]

    def test(self, name: str, a: Part, b: Part) -> dict[str, Any]:
        """One of the exact parts."""
        if name == "coordinates":
            return self._points([(profiles(a.tables.T), profiles(b.tables.T))])
        tokens = (a.embedding, b.embedding) if name == "token_units" else (None, None)
        return self._points([_stacked(x, y, *tokens) for x, y in zip(a.layers, b.layers, strict=True)])

    def _points(self, sides: Sequence[tuple[Array, Array]]) -> dict[str, Any]:
        counts = [met(x @ y.T, self.settings.seed) for x, y in sides]
        sizes = [len(x) for x, _ in sides]
        return {"p": fixed_points_p(counts, sizes), "agree": sum(counts), "of": sum(sizes),
                "by_layer": [{"agree": k, "of": n, "p": fixed_points_p([k], [n])}
                             for k, n in zip(counts, sizes, strict=True)]}

    def consistency(self) -> dict[str, Any]:
        """Part 4. Layers are paired by number, or, where their counts differ, each with each (Bonferroni)."""
        sides = [_functions(c, r, rows, self.settings) for c, r, rows in zip(
            (self.one, self.two), self.roles, common_rows(self.one, self.two, self.roles, self.settings), strict=True)]
        aligned = len(self.roles[0].layers) == len(self.roles[1].layers)
        pairs = list(zip(*sides, strict=True)) if aligned else [(x, y) for x in sides[0] for y in sides[1]]
        found = [agreeing((x[0][: self.settings.units], x[1][: self.settings.units]), y) for x, y in pairs]
        if aligned:
            agree, of = (sum(each) for each in zip(*found, strict=True))
            p = agreement_p(agree, of, self.settings.alike)
        else:
            agree, of = max(found, key=lambda each: each[0] / max(each[1], 1))
            p = min(1.0, len(found) * min(agreement_p(k, n, self.settings.alike) for k, n in found))
        return {"p": p, "agree": agree, "of": of, "by_layer": [{"agree": k, "of": n} for k, n in found]}

    def power(self, alpha: float, scrambled: bool = False) -> dict[str, float]:
        """The share of synthetic descendants of either model that would have been called, by relative distance; by
        `consistency` alone if they are `scrambled` (rotated and permuted), or if no exact part is allowed."""
        parts = [part for part in (self.a, self.b) for _ in range(DRAWS)]
        named, out = [] if scrambled else self.allowed, dict[str, float]()
        for far in DISTANCES:
            if 0.0 in out.values():  # farther is never easier
                out[str(far)] = 0.0
                continue
            called = [self._called(part, far, alpha, i, named) for i, part in enumerate(parts)]
            out[str(far)] = sum(called) / len(called)
        return out

    def _called(self, part: Part, distance: float, alpha: float, draw: int, named: Sequence[str]) -> bool:
        """Whether a synthetic descendant is called; the exact parts are tried first, each with what it reads."""
        limit = alpha / len(PARTS)
        rng = np.random.default_rng([self.settings.seed, draw, int(1000 * distance)])

        def moved(values: Array) -> Array:
            out = rng.standard_normal(values.shape, np.float32)
            out *= np.float32(distance * values.std())
            out += values
            return out

        other = replace(part, tables=moved(part.tables))
        if "coordinates" in named and self.test("coordinates", part, other)["p"] <= limit:
            return True
        other = replace(other, embedding=moved(part.embedding),
                        layers=tuple(tuple(moved(m) for m in layer) for layer in part.layers))
        if any(self.test(name, part, other)["p"] <= limit for name in named if name != "coordinates"):
            return True
        if not self.plain:
            return False
        found = [agreeing(*_both(part, other, i)) for i, layer in enumerate(part.layers) if len(layer) == 2]
        agree, of = (sum(each) for each in zip(*found, strict=True))
        return agreement_p(agree, of, self.settings.alike) <= limit

    def distance(self) -> float | None:
        """The embeddings' root mean square difference over the spread of A's, in A's numbering; None for unlike widths."""
        if not self.common or self.a.embedding.shape != self.b.embedding.shape:
            return None
        gap = self.a.embedding - self.b.embedding
        return float(np.sqrt((gap**2).mean()) / max(float(self.a.embedding.std()), 1e-12))

    def gram(self) -> float | None:
        """Correlation of the centred Gram matrices of common tokens; None without common tokens. No evidence alone."""
        if self.common < 16:
            return None
        grams = []
        for part in (self.a, self.b):
            rows = part.embedding[:NEAREST] - part.embedding[:NEAREST].mean(axis=0)
            grams.append((rows @ rows.T)[np.triu_indices(len(rows), 1)])
        return float(np.corrcoef(*grams)[0, 1])


def joined(found: dict[str, dict[str, Any]]) -> float:
    """Bonferroni over all parts, run or not: which of them are run depends on the outcome of the others."""
    return min(1.0, len(PARTS) * min((part["p"] for part in found.values()), default=1.0))


def common_rows(
    one: Checkpoint, two: Checkpoint, own: tuple[Roles, Roles], settings: Weights
) -> tuple[Index, Index]:
    """Rows of the embeddings that belong to the same tokens: by token text, or by number where no tokenizer is there."""
    if not (own[0].embedding and own[1].embedding):
        return np.zeros(0, int), np.zeros(0, int)
    sizes = [c.shape(r.embedding)[0] for c, r in zip((one, two), own, strict=True)]
    vocabularies = one.tokens, two.tokens
    if vocabularies[0] is None or vocabularies[1] is None:
        pairs = [(i, i) for i in range(sizes[0])] if sizes[0] == sizes[1] else []
    else:
        pairs = [(i, vocabularies[1][t]) for t, i in sorted(vocabularies[0].items())
                 if t in vocabularies[1] and i < sizes[0] and vocabularies[1][t] < sizes[1]]
    if len(pairs) < 16:
        return np.zeros(0, int), np.zeros(0, int)
    drawn = np.random.default_rng([settings.seed, 7]).permutation(len(pairs))[: settings.tokens]
    rows = np.array(pairs)[np.sort(drawn)]
    return rows[:, 0], rows[:, 1]


def _read(checkpoint: Checkpoint, own: Roles, rows: Index, settings: Weights, untied: bool) -> Part:
    embedding = checkpoint.read(own.embedding, rows) if len(rows) else np.zeros((0, 0), np.float32)
    tables = [embedding, *([checkpoint.read(own.head, rows)] if untied and len(rows) else [])]
    return Part(embedding, np.concatenate(tables)[:, : settings.units],
                tuple(_maps(checkpoint, layer, settings.units) for layer in _spaced(own.layers, settings.layers)))


def _spaced(layers: tuple[Layer, ...], most: int) -> list[Layer]:
    picked = np.linspace(0, max(len(layers) - 1, 0), min(most, len(layers))).round().astype(int)
    return [layers[int(i)] for i in np.unique(picked)]


def _maps(checkpoint: Checkpoint, layer: Layer, most: int | None) -> tuple[Array, ...]:
    """The first `most` rows of each map [units, width], with the gain of the norm in front folded in."""
    gain = _gain(checkpoint, layer)
    if layer.turned:
        return tuple(checkpoint.read(name).T[:most] * gain for name in layer.maps)
    return tuple(checkpoint.read(name, slice(0, most)) * gain for name in layer.maps)


def _gain(checkpoint: Checkpoint, layer: Layer) -> Array:
    """The gain of the norm in front of the maps [width], or [1]; Gemma stores it less one."""
    if not layer.gain:
        return np.ones(1, np.float32)
    one = str(checkpoint.config.get("model_type", "")).startswith("gemma")
    return checkpoint.read(layer.gain) + np.float32(one)


def _stacked(x: tuple[Array, ...], y: tuple[Array, ...], ea: Array | None, eb: Array | None) -> tuple[Array, Array]:
    """Profiles of the units by all their maps, side by side; as functions of tokens where embeddings are given."""
    left = [profiles(m if ea is None else m @ ea.T) for m in x]
    right = [profiles(m if eb is None else m @ eb.T) for m in y]
    return np.concatenate(left, axis=1), np.concatenate(right, axis=1)


def _both(a: Part, b: Part, layer: int) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    first, second = ([profiles(m @ part.embedding[:NEAREST].T) for m in part.layers[layer]] for part in (a, b))
    return (first[0], first[1]), (second[0], second[1])


def _functions(
    checkpoint: Checkpoint, own: Roles, rows: Index, settings: Weights
) -> list[tuple[Array, Array]]:
    """Per layer, all units by gate and by up as functions of common tokens, read in blocks."""
    embedding = checkpoint.read(own.embedding, rows[:NEAREST])
    out = []
    for layer in _spaced(own.layers, settings.layers):
        if len(layer.maps) == 2:
            gain = _gain(checkpoint, layer)
            maps = [np.concatenate([profiles((block * gain) @ embedding.T) for _, block in checkpoint.blocks(name)])
                    for name in layer.maps]
            out.append((maps[0], maps[1]))
    return out


def _shapes(checkpoint: Checkpoint) -> dict[str, tuple[int, ...]]:
    return {name: checkpoint.shape(name) for name in checkpoint.names if "lm_head" not in name}


def _says(relation: str, found: dict[str, dict[str, Any]], p: float, power: float) -> str:
    told = ", ".join(f"{name}: {part['agree']} of {part['of']}" for name, part in found.items())
    if relation == "same_initialisation":
        if found.get("consistency", {"p": 1})["p"] < p:
            return f"Numbers agree by chance only, but gate and up find the same units ({told}): rotated and permuted."
        return (f"Units and coordinates keep their numbers ({told}); by chance "
                f"p {'<' if p <= len(PARTS) * FLOOR else '='} {p:.1g}.")
    if relation == "unknown":
        return f"Too little could be compared to tell ({told or 'nothing'}; power {power:.0%})."
    return (f"Numbers agree no more than by chance ({told}); {power:.0%} of synthetic descendants that moved as far as the "
            "weights are large would have been found.")
