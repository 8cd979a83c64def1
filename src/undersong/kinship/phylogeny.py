"""The `phylogeny` test: a distance between models from sampled text, and whether a pair is nearer than unrelated ones.

After PhyloLM (Yax, Oudeyer and Palminteri, arXiv 2404.04671): prompts are genes, the first letters of sampled answers are
alleles, and Nei's genetic distance compares how often each model gives each allele.
1. Genes are random prompts, not texts: on what they learned, models of one data set answer alike (similarity .85 to .92 of
   unrelated development pairs, .21 to .43 on random prompts).
2. Similarity counts what two models share on the same gene beyond what they share on different genes, so that a favourite
   answer to everything makes no kin. Estimates are unbiased: a model is compared with itself over different samples.
3. similarity S = J(a,b) / sqrt(J(a,a) J(b,b)), distance = -ln S; the pair is held against controls (`asking.standing`).

The trap of `behaviour` holds here too: only controls that learned the same data make nearness a matter of initialisation.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from undersong.kinship import Subject
from undersong.kinship.asking import Standing, alike, controls_of, once, random_prompts, standing
from undersong.registry import Settings, plugin
from undersong.types import Chat, Finding, Sampling

Alleles = NDArray[Any]
FARTHEST = 5.0
"""The distance told for models that share nothing."""


@plugin("kinship", "phylogeny")
class Phylogeny(Settings):
    """Nei's distance between the models' sampled answers to random prompts, beside controls: text is enough."""

    needs: ClassVar[frozenset[str]] = frozenset({"text"})

    alpha: float = Field(default=0.01, gt=0, lt=1)
    """Nearness is said at p <= alpha."""
    genes: int = Field(default=96, ge=16)
    """Random prompts."""
    samples: int = Field(default=16, ge=4)
    """Answers sampled to each, at temperature 1."""
    letters: int = Field(default=4, ge=1)
    """Letters of an answer that make an allele."""
    kin: float = Field(default=0.4, gt=0, le=1)
    """Power is told for kin this share of the way from unrelated to equal."""
    same_data: bool | None = None
    """Whether the controls learned what the subjects learned, for as long. None: known for shipped models only."""
    seed: int = 0
    """Draws prompts and answers."""

    def compare(self, a: Subject, b: Subject, controls: Sequence[Subject] = ()) -> Finding:
        """The distance and p that unrelated models are as near. Details: `similarity`, `expected`, `excess`, `distances`
        of all pairs, `queries` per model, `same_data`, `controls`, `left_out`, `power`.

        Raises BadSpec without at least two controls."""
        held = controls_of(a, b, controls, self.same_data)
        models = [a, b, *held.subjects]
        prompts = random_prompts(models, self.genes, self.seed)
        key = (self.samples, self.letters, self.seed, tuple(p[-1]["content"] for p in prompts))
        counts = Counts([once(s, key, self._alleles, prompts) for s in models])
        table = alike(range(len(models)), counts.similarity)
        found = standing(table)
        called = found.p <= self.alpha
        power = found.power(self.kin, self.alpha)
        return Finding(
            "same_initialisation" if called and held.same_data else "unknown", distance(found.value), found.p, ("text",),
            f"similarity of unrelated pairs of {len(held.subjects)} controls and the subjects, Student's t, "
            f"{found.freedom} degrees of freedom",
            {"power": power if held.same_data else None, "similarity": found.value, "expected": found.expected,
             "excess": found.excess, "same_data": held.same_data, "names": [s.name for s in models],
             "distances": [[distance(v) for v in row] for row in table.tolist()], "queries": self.genes * self.samples,
             "controls": [s.name for s in held.subjects], "left_out": list(held.left_out),
             "says": _says(found, called, held.same_data, power)})

    def _alleles(self, subject: Subject, prompts: Sequence[Chat]) -> Alleles:
        """The first letters of each answer, [genes, samples]. Models draw different luck, so that equal answers are shared
        habits."""
        luck = zlib.crc32(repr((subject.ref, self.seed)).encode())
        asked = [p for p in prompts for _ in range(self.samples)]
        texts = subject.model.sample(asked, Sampling(temperature=1.0, max_new_tokens=2, seed=luck))
        return np.array([t.strip()[: self.letters] for t in texts]).reshape(len(prompts), self.samples)


class Counts:
    """How often each model gives each allele to each gene."""

    def __init__(self, alleles: Sequence[Alleles]) -> None:
        words = np.unique(np.concatenate([a.ravel() for a in alleles]))
        self.samples = alleles[0].shape[1]
        self.shares = np.zeros((len(alleles), len(alleles[0]), len(words)))
        for shares, found in zip(self.shares, alleles, strict=True):
            genes = np.broadcast_to(np.arange(len(found))[:, None], found.shape)
            np.add.at(shares, (genes, np.searchsorted(words, found)), 1 / self.samples)

    def shared(self, x: int, y: int) -> float:
        """The chance of equal answers to one gene, less that to two different genes."""
        p, q, n = self.shares[x], self.shares[y], self.samples
        same = float(np.sum(p * q))
        genes = len(p)
        across = (float(p.sum(axis=0) @ q.sum(axis=0)) - same) / (genes * (genes - 1))
        if x == y:
            same = (n * same - genes) / (n - 1)
        return same / genes - across

    def similarity(self, x: int, y: int) -> float:
        """Nei's similarity beyond favourites, 0..1 but for noise; 0 where a model answers every gene alike."""
        own = self.shared(x, x) * self.shared(y, y)
        return float(np.clip(self.shared(x, y) / np.sqrt(own), -1, 1)) if own > 0 else 0.0


def distance(similarity: float) -> float:
    """Nei's distance of a similarity, at most `FARTHEST`."""
    return float(min(FARTHEST, -np.log(max(similarity, 1e-9)))) + 0.0


def _says(found: Standing, called: bool, same_data: bool, power: float) -> str:
    told = (f"Their distance is {distance(found.value):.2f}; between unrelated models it would be "
            f"{distance(found.expected):.2f}.")
    if not called:
        return f"{told} That shows no kinship; fine-tuned kin would have been seen with power {power:.0%}."
    if same_data:
        return f"{told} The controls learned the same data, so that is left from one initialisation."
    return (f"{told} They answer more alike than unrelated controls, which is not one initialisation: training on the same "
            "data does it too. Give controls that learned the same data, or read the weights.")
