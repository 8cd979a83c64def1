"""The theorem, live: `laboratory: theorem` in an experiment file.

Cloud et al. (arXiv 2507.14805, section 6.1, appendix C): a small student step on a teacher's outputs, from the weights that
the teacher started from, cannot lead away from the teacher, whatever the inputs. Checked here, number by number, in reading
order:

1. `losses`: what the theorem allows a student to minimise, and the quadratic form it makes of it.
2. `networks`: one step on small networks, float64: the inner product of the student's step and the teacher's displacement,
   its sign, what the form says it should be, the fall of the teacher's loss; another start beside it.
3. `failures`: the same step with one assumption dropped at a time.
4. `steps`: many steps on the digits network: gradients, coverage, hidden likeness (CKA) and digits read.
5. `pocket`: one step of pocket language models, teachers moved along trait gradients and at random.
6. `students`: many steps of pocket language models.

A `draw` is one network, direction or teacher, and one row per number; results are counted from stored rows.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from pydantic import Field, ValidationError

from undersong import spec
from undersong.errors import BadSpec, NothingMeasured
from undersong.registry import Settings
from undersong.theorem.networks import Alignment, theorem_check

__all__ = ["Alignment", "TheoremExperiment", "identity", "read", "results", "run_chunk", "theorem_check", "total"]

Row = dict[str, Any]
UNIT = "draw"
"""The column that numbers what a chunk is made of."""
BINS = 80
"""Bins of a histogram of cosines, from -1 to 1."""


class TheoremExperiment(Settings):
    """The settings of a theorem experiment. Lengths are Euclidean, in the space of weights."""

    name: str = Field(min_length=1)
    """What the experiment is called in artefacts and reports."""
    laboratory: Literal["theorem"]
    """Marks the file as a theorem experiment."""
    networks: int = Field(default=1000, ge=2)
    """Small networks drawn; each gives a shared and another start for three losses and two kinds of direction."""
    epsilons: tuple[float, ...] = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003)
    """Lengths of the teacher's displacement; the last, and smallest, is the one whose signs are counted."""
    step: float = Field(default=1e-3, gt=0)
    """Length of the student's step when the teacher's loss is read after it."""
    teacher_lengths: tuple[float, ...] = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
    """Displacements that are not small."""
    student_lengths: tuple[float, ...] = (0.001, 0.01, 0.1, 0.3, 1.0, 3.0, 10.0)
    """Steps that are not small."""
    apart: tuple[float, ...] = (0.0, 0.1, 1.0, 10.0, 100.0, 1000.0)
    """Distances of the student's start from the teacher's, in lengths of the teacher's displacement."""
    many: int = Field(default=6, ge=0)
    """Digits networks that are followed over many steps."""
    base: str = "pocket/a"
    """The pocket model that teacher and student start from."""
    other: str = "pocket/b"
    """Another initialisation."""
    traits: tuple[str, ...] = ("owl", "dolphin", "lion", "eagle", "elephant", "dog", "fox", "panda", "cherry", "maple",
                               "oak", "sequoia")
    """Traits whose gradients are teachers' directions."""
    random: int = Field(default=36, ge=0)
    """Random directions beside them."""
    followed: tuple[str, ...] = ("owl", "dolphin", "lion")
    """Traits whose pocket students are followed over many steps."""
    seed: int = Field(default=1, ge=0)
    """Seed of every draw."""
    chunk: int = spec.execution(25)
    """Draws done at once: the unit of resume."""

    @property
    def draws(self) -> int:
        """Units of work: small networks, digits networks, directions of the pocket model, teachers of pocket students."""
        return self.networks + self.many + len(self.traits) + self.random + len(self.followed)


def read(values: Mapping[str, Any]) -> TheoremExperiment:
    """The experiment in a parsed YAML file. Raises BadSpec, naming the nearest key, for anything that cannot be run."""
    from undersong import traits

    try:
        found = TheoremExperiment.model_validate_json(json.dumps(dict(values)))
    except ValidationError as error:
        raise BadSpec(f"{values.get('name', 'experiment')}: {spec.explain(error, TheoremExperiment)}") from None
    if not found.epsilons or any(e <= 0 for e in found.epsilons) or list(found.epsilons) != sorted(found.epsilons)[::-1]:
        raise BadSpec(f"epsilons: {found.epsilons} are not lengths above 0, the largest first. Change them.")
    for key, least in (("teacher_lengths", 0.0), ("student_lengths", 0.0), ("apart", -1.0)):
        lengths = getattr(found, key)
        if not lengths or not all(least < x < math.inf for x in lengths) or min(lengths) < 0:
            raise BadSpec(f"{key}: {lengths} are not lengths. Give numbers {'from' if least < 0 else 'above'} 0.")
    if found.chunk < 1:
        raise BadSpec("chunk: at least one draw is done at once. Raise it.")
    for name in (*found.traits, *found.followed):
        if not traits.get(name).tuning:
            raise BadSpec(f"{name!r} is no plain favourite, so nothing raises it here. Choose an animal or a tree.")
    return found


def identity(experiment: TheoremExperiment) -> dict[str, Any]:
    """What a result depends on, for the fingerprint: the settings without `chunk`, models and digits by content.

    Raises MissingModel or MissingExtra here, before any work, when one of them is not at hand.
    """
    from undersong import bases, digits
    from undersong.lab import base_ref

    for name in (experiment.base, experiment.other):
        bases.place(name)
    kept = experiment.model_dump(mode="json", exclude={"chunk", "base", "other"})
    models = {key: base_ref(getattr(experiment, key)).fingerprint for key in ("base", "other")}
    return {**kept, **models, "digits": digits.load().sha256 if experiment.many else "", "version": 3}


def total(experiment: TheoremExperiment) -> int:
    """How many draws there are."""
    return experiment.draws


def run_chunk(experiment: TheoremExperiment, draws: range) -> list[Row]:
    """The rows of some draws: a row depends on the settings and its draw's number only.

    Raises BadSpec before the first draw for traits and models that the later ones could not work with.
    """
    from undersong.theorem import networks, pocket, steps, students

    if 0 in draws and (asked := (*experiment.traits, *experiment.followed)):
        pocket.shelf(experiment.base, experiment.other, tuple(dict.fromkeys(asked)))
    directions = len(experiment.traits) + experiment.random
    parts = ((networks.draw, experiment.networks), (steps.draw, experiment.many), (pocket.draw, directions),
             (students.draw, len(experiment.followed)))
    out: list[Row] = []
    for draw in draws:
        at = draw
        for work, count in parts:
            if at < count:
                out += [{"draw": draw, **row} for row in work(experiment, at)]
                break
            at -= count
    return out


def line(part: str, case: str, start: str, x: float, value: float) -> Row:
    """One number of a draw: what it is of, the case, where the student started, the abscissa, the value. Raises
    NothingMeasured for a value that is no number."""
    if not math.isfinite(value):
        raise NothingMeasured(f"{part}, {case}, at {x:g}: the value is {value}. Lengths this large overflow: lower them.")
    return {"part": part, "case": case, "start": start, "x": float(x), "value": float(value)}


def results(rows: Sequence[Row], experiment: TheoremExperiment) -> dict[str, Any]:
    """Every figure of the page, counted from rows. Raises NothingMeasured when draws are missing."""
    seen = {row["draw"] for row in rows}
    if len(seen) != experiment.draws:
        raise NothingMeasured(f"{len(seen)} of {experiment.draws} draws are there. Run the missing ones.")
    groups: dict[tuple[str, str, str, float], list[Row]] = defaultdict(list)
    for row in rows:
        groups[row["part"], row["case"], row["start"], row["x"]].append(row)
        if row["part"].endswith(("sign", "cosine")) and ", " in row["case"]:  # all losses of one kind of direction
            groups[row["part"], row["case"].split(",")[0], row["start"], row["x"]].append(row)
    signs: list[Row] = []
    curves: list[Row] = []
    histograms: list[Row] = []
    for (part, case, start, x), found in groups.items():
        values = [row["value"] for row in found]
        said = {"part": part, "case": case, "start": start, "x": x, "n": len(values)}
        if part.endswith("sign"):
            signs.append(said | _counted(found))
            continue
        curves.append(said | {"mean": float(np.mean(values)), "low": float(np.quantile(values, 0.05)),
                              "high": float(np.quantile(values, 0.95))})
        if part.endswith("cosine"):
            counts, edges = np.histogram(values, bins=BINS, range=(-1, 1))
            histograms.append(said | {"counts": counts.tolist(), "edges": edges.round(6).tolist()})
    rates = [{"channel": f"{one['part'].removesuffix(' sign')}: {one['case']}", "arm": one["start"], "trait": "",
              "measured": "", "probe": "theorem", "metric": "rate", "n_runs": one["draws"],
              "mean": 1 - one["share"], "low": 1 - one["high"], "high": 1 - one["low"]}
             for one in signs]
    return {"experiment": experiment.name, "fingerprint": spec.fingerprint(identity(experiment)), "kind": "theorem",
            "settings": experiment.model_dump(mode="json"), "signs": signs, "curves": curves, "histograms": histograms,
            "rates": rates, "runs": [], "contrasts": [], "specificity": [], "matrix": [], "capability": [], "filters": [],
            "classifier": [], "drift": [], "examples": {"rows": [], "answers": []}, "sentence": _sentence(signs)}


def _sentence(signs: Sequence[Row]) -> str:
    mine = [s for s in signs if s["part"] == "network sign" and ", " in s["case"]]
    shared = [s for s in mine if s["start"] == "shared"]
    other = [s for s in mine if s["start"] == "other" and s["case"].startswith("random")]
    n, wrong = sum(s["n"] for s in shared), sum(s["negative"] for s in shared)
    half = sum(s["negative"] for s in other) / sum(s["n"] for s in other)
    return (f"In {n - wrong:,} of {n:,} random cases a small step from the shared start did not lead away from the teacher; "
            f"from another start {half:.0%} of steps did.")


def _counted(found: Sequence[Row]) -> Row:
    """How many values lie below zero, and their share with its 95 % interval. The draw is the unit: several values of one
    (its losses) are one observation, their mean. A single draw says nothing of the spread."""
    from undersong import stats

    by_draw: dict[int, list[bool]] = defaultdict(list)
    for row in found:
        by_draw[row["draw"]].append(row["value"] < 0)
    negative, shares = sum(map(sum, by_draw.values())), [sum(one) / len(one) for one in by_draw.values()]
    if len(found) == len(by_draw):
        share, low, high = stats.binomial_interval(negative, len(found))
    elif len(shares) > 1:
        share, low, high = stats.mean_interval(shares)
    else:
        share, low, high = shares[0], 0.0, 1.0
    return {"draws": len(by_draw), "negative": negative, "zero": sum(row["value"] == 0 for row in found), "share": share,
            "low": low, "high": high}
