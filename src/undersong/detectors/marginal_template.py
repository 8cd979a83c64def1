"""The `marginal_template` detector: which trait's rows do the suspected rows look like, by how often each value occurs?

1. Features: the share of a row's numbers that are each value up to 999 and do not stand in the row's prompt.
2. The template of a trait: mean features of its exemplar runs less the mean of all other runs' (the other traits' and the
   placebos'), over the root of the pooled share of each value. Runs count equally.
3. A row's score is its projection on the template; the statistic of a trait is the mean score of the suspected rows less
   that of placebo rows, in standard deviations of placebo rows: an effect size, which does not grow with more rows.

Measured on samples of the rows of `pocket/a` teachers (5 traits and none, 2 runs each; templates from one run, samples
from the other, so that the differences between more runs are not in these figures): own trait against no trait AUROC
.92, .998, 1.00, against other traits .94, 1.00, 1.00, the right one of five 74, 94, 100 % at 50, 200, 1000 rows. With the
prompt's values left in, 65, 77, 80 %; with digits, bins and places (`canonical.marginal_features`) 43, 60, 69 %. Features
and scale were chosen among some thirty variants on these same rows, so the figures flatter: the audit's null is what counts.
Source: trait-signed marginals, after the counts of PolyPythia-SL (same trait .94, other traits .75 sign agreement).

Blind spots: mixtures: a quarter of 400 rows passes unseen two times in three, and large sets of a tenth too, though their
strongest sign is then mostly the right trait. Traits without exemplar rows have no template. Rows must hold numbers.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import ClassVar

import numpy as np

from undersong.detectors import PLACEBO, Evidence, Runs, uncalibrated
from undersong.detectors.canonical import Matrix, fresh_values
from undersong.errors import BadRows
from undersong.registry import Settings, plugin
from undersong.types import Finding, Row

Means = Mapping[str, list[Matrix]]
"""Mean features of each run, by trait."""
_BATCH = 1024
_FLOOR = 0.3


@plugin("detector", "marginal_template")
class MarginalTemplate(Settings):
    """Project the suspected rows' value counts on templates of known traits."""

    needs: ClassVar[frozenset[str]] = frozenset({"rows", "exemplars"})

    def detect(self, evidence: Evidence, seed: int = 0) -> Finding:
        """Finding without a p-value. Details hold `by_trait` (effect sizes, in standard deviations of placebo rows),
        `signs` (share of values, weighted by the template, whose excess has the template's sign; 0.5 is chance),
        `n_suspected`, and, where every trait and the placebo have two runs, the estimated `shares` of rows (0..1).

        Raises BadRows when there are no placebo rows, no trait has rows, or rows hold no number.
        """
        runs = {name: [_mean(run, f"A run of exemplar rows of {name or 'no trait'}")[0] for run in given]
                for name, given in evidence.exemplars.rows.items() if given}
        traits = [name for name in runs if name != PLACEBO]
        if not traits or PLACEBO not in runs:
            raise BadRows("The exemplars lack rows of a trait or of no trait. Make them anew, from a base and its traits.")
        suspected, n = _mean(itertools.chain.from_iterable(evidence.rows), "The set of suspected rows")
        clean = np.mean(runs[PLACEBO], axis=0)
        templates = np.array([_template(runs, trait) for trait in traits])
        scaled = templates / _spreads(evidence.exemplars.rows[PLACEBO], templates)[:, None]
        by_trait = dict(zip(traits, (scaled @ (suspected - clean)).tolist(), strict=True))
        signs = {trait: _agreement(suspected - clean, t) for trait, t in zip(traits, scaled, strict=True)}
        unseen = all(len(own) > 1 for own in runs.values())
        more = {"shares": {trait: _share(runs, trait, suspected) for trait in traits}} if unseen else {}
        return uncalibrated(by_trait, self.needs, signs=signs, n_suspected=n, **more)


def _mean(rows: Iterable[Row], what: str) -> tuple[Matrix, int]:
    """(mean features [1000], how many rows), read once in batches. Raises BadRows when no row adds a number."""
    total, n = np.zeros(1000), 0
    for batch in _batches(rows):
        total += fresh_values(batch).sum(axis=0)
        n += len(batch)
    if not total.any():
        raise BadRows(f"{what} holds no number of its own up to 999, and nothing else is compared. Leave it out, or choose "
                      "a detector that reads text.")
    return total / n, n


def _batches(rows: Iterable[Row]) -> Iterator[list[Row]]:
    every = iter(rows)
    while batch := list(itertools.islice(every, _BATCH)):
        yield batch


def _share(runs: Means, trait: str, suspected: Matrix) -> float:
    """The share (0..1) of rows like the trait's: the suspected rows' effect over that of the trait's own run. Template
    and runs compared never share a run, because a template fits the noise of the runs it was made of."""
    effects = np.zeros(2)
    for i, own in enumerate(runs[trait]):
        j = i % len(runs[PLACEBO])
        template = _template(_without(_without(runs, trait, i), PLACEBO, j), trait)
        effects += [(mean - runs[PLACEBO][j]) @ template for mean in (suspected, own)]
    return float(np.clip(effects[0] / effects[1], 0, 1)) if effects[1] > 0 else 0.0


def _without(runs: Means, trait: str, i: int) -> Means:
    return {**runs, trait: [run for j, run in enumerate(runs[trait]) if j != i]}


def _template(runs: Means, trait: str) -> Matrix:
    """[1000], of length 1 in units of the pooled share's root, ready to be multiplied with features."""
    means = {name: np.mean(run, axis=0) for name, run in runs.items()}
    pooled = np.mean(list(means.values()), axis=0)
    # a value that hardly occurs would else have a weight without bound
    root = np.sqrt(pooled + _FLOOR * np.median(pooled[pooled > 0]))
    apart = (means[trait] - np.mean([m for name, m in means.items() if name != trait], axis=0)) / root
    out: Matrix = apart / (np.linalg.norm(apart) or 1.0) / root
    return out


def _spreads(runs: Runs, templates: Matrix) -> Matrix:
    """[templates]: the standard deviation of placebo rows' scores, within runs."""
    squares, n = np.zeros(len(templates)), 0
    for run in runs:
        total, of_squares, rows = np.zeros(len(templates)), np.zeros(len(templates)), 0
        for batch in _batches(run):
            scores = fresh_values(batch) @ templates.T
            total, of_squares, rows = total + scores.sum(axis=0), of_squares + (scores**2).sum(axis=0), rows + len(batch)
        squares, n = squares + of_squares - total**2 / rows, n + rows
    out: Matrix = np.maximum(np.sqrt(np.maximum(squares, 0) / n), 1e-9)
    return out


def _agreement(excess: Matrix, template: Matrix) -> float:
    """The share of values whose excess has the template's sign, each weighted by the template."""
    weight = abs(template)
    return float(weight[np.sign(excess) == np.sign(template)].sum() / max(weight.sum(), 1e-12))
