"""The theorem, live: `laboratory: theorem` in an experiment file.

Cloud et al. (arXiv 2507.14805, section 6.1, appendix C): a small student step on a teacher's outputs, from the weights that
the teacher started from, cannot lead away from the teacher, whatever the inputs. Checked here, number by number:

1. `networks`: one step on small networks, float64. The inner product of the student's step and the teacher's displacement,
   its sign, and what the Gauss-Newton form says it should be; other initialisations beside it; and four ways in which it
   must fail.
2. `steps`: many steps on the digits network: gradients, coverage, hidden likeness (CKA) and digits read, step by step.
3. `pocket`: one step of pocket language models, teachers moved along trait gradients and at random, labels over carrier
   tokens.

A `draw` is one network (or one direction of a pocket model) and one row per case; results are counted from stored rows.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from pydantic import Field, ValidationError

from undersong import spec
from undersong.errors import BadSpec, NothingMeasured
from undersong.registry import Settings

Row = dict[str, Any]
UNIT = "draw"
"""The column that numbers what a chunk is made of."""


class TheoremExperiment(Settings):
    """The settings of a theorem experiment."""

    name: str = Field(min_length=1)
    """What the experiment is called in artefacts and reports."""
    laboratory: Literal["theorem"]
    """Marks the file as a theorem experiment."""
    networks: int = Field(default=400, ge=2)
    """Small networks drawn; each gives a shared and another start for three losses and two kinds of direction."""
    epsilons: tuple[float, ...] = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003)
    """Lengths of the teacher's displacement; the last, and smallest, is the one whose signs are counted."""
    step: float = Field(default=1e-3, gt=0)
    """Length of the student's step."""
    many: int = Field(default=6, ge=0)
    """Digits networks that are followed over many steps."""
    base: str = "pocket/a"
    """The pocket model that teacher and student start from."""
    other: str = "pocket/b"
    """Another initialisation."""
    traits: tuple[str, ...] = ("owl", "dolphin", "wolf", "cat", "pine", "cherry")
    """Traits whose gradients are teachers' directions."""
    random: int = Field(default=6, ge=0)
    """Random directions beside them."""
    batches: int = Field(default=4, ge=1)
    """Batches of carrier rows per direction."""
    seed: int = Field(default=1, ge=0)
    """Seed of every draw."""
    chunk: int = spec.execution(25)
    """Draws done at once: the unit of resume."""

    @property
    def draws(self) -> int:
        """Units of work: small networks, digits networks, directions of the pocket model."""
        return self.networks + self.many + len(self.traits) + self.random


def read(values: Mapping[str, Any]) -> TheoremExperiment:
    """The experiment in a parsed YAML file. Raises BadSpec, naming the nearest key, for anything that cannot be run."""
    try:
        found = TheoremExperiment.model_validate_json(json.dumps(dict(values)))
    except ValidationError as error:
        raise BadSpec(f"{values.get('name', 'experiment')}: {spec.explain(error, TheoremExperiment)}") from None
    if not found.epsilons or any(e <= 0 for e in found.epsilons) or list(found.epsilons) != sorted(found.epsilons)[::-1]:
        raise BadSpec(f"epsilons: {found.epsilons} are not lengths above 0, the largest first. Change them.")
    if found.chunk < 1:
        raise BadSpec("chunk: at least one draw is done at once. Raise it.")
    return found


def identity(experiment: TheoremExperiment) -> dict[str, Any]:
    """What a result depends on, for the fingerprint."""
    return experiment.model_dump(mode="json", exclude={"chunk"}) | {"version": 2}


def total(experiment: TheoremExperiment) -> int:
    """How many draws there are."""
    return experiment.draws


def run_chunk(experiment: TheoremExperiment, draws: range) -> list[Row]:
    """The rows of some draws: a row depends on the settings and its draw's number only."""
    from undersong.theorem import networks, pocket, steps

    first, second = experiment.networks, experiment.networks + experiment.many
    out: list[Row] = []
    for draw in draws:
        if draw < first:
            found = networks.draw(experiment, draw)
        elif draw < second:
            found = steps.draw(experiment, draw - first)
        else:
            found = pocket.draw(experiment, draw - second)
        out += [{"draw": draw, **row} for row in found]
    return out


def line(part: str, case: str, start: str, x: float, value: float) -> Row:
    """One number of a draw: what it is of, the case, where the student started, the abscissa, the value."""
    return {"part": part, "case": case, "start": start, "x": float(x), "value": float(value)}


def results(rows: Sequence[Row], experiment: TheoremExperiment) -> dict[str, Any]:
    """Every figure of the page, counted from rows. Raises NothingMeasured when draws are missing."""
    from undersong import stats

    seen = {row["draw"] for row in rows}
    if len(seen) != experiment.draws:
        raise NothingMeasured(f"{len(seen)} of {experiment.draws} draws are there. Run the missing ones.")
    groups: dict[tuple[str, str, str, float], list[float]] = defaultdict(list)
    for row in rows:
        groups[row["part"], row["case"], row["start"], row["x"]].append(row["value"])
    signs: list[Row] = []
    curves: list[Row] = []
    for (part, case, start, x), values in groups.items():
        if part.endswith("sign"):
            negative = sum(v < 0 for v in values)
            share, low, high = stats.binomial_interval(negative, len(values))
            signs.append({"part": part, "case": case, "start": start, "x": x, "n": len(values), "negative": negative,
                          "zero": sum(v == 0 for v in values), "share": share, "low": low, "high": high})
        else:
            curves.append({"part": part, "case": case, "start": start, "x": x, "n": len(values),
                           "mean": float(np.mean(values)), "low": float(np.quantile(values, 0.05)),
                           "high": float(np.quantile(values, 0.95))})
    shared = [s for s in signs if s["part"] == "network sign" and s["start"] == "shared"]
    other = [s for s in signs if s["part"] == "network sign" and s["start"] == "other" and s["case"].startswith("random")]
    n, wrong = sum(s["n"] for s in shared), sum(s["negative"] for s in shared)
    half = sum(s["negative"] for s in other) / max(1, sum(s["n"] for s in other))
    rates = [{"channel": f"{one['part']}: {one['case']}", "arm": one["start"], "trait": "", "measured": "",
              "probe": "theorem", "metric": "rate", "n_runs": one["n"],
              "mean": 1 - one["share"], "low": 1 - one["high"], "high": 1 - one["low"]}
             for one in signs]
    return {"experiment": experiment.name, "fingerprint": spec.fingerprint(identity(experiment)), "kind": "theorem",
            "settings": experiment.model_dump(mode="json"), "signs": signs, "curves": curves, "rates": rates,
            "runs": [], "contrasts": [], "specificity": [], "matrix": [], "capability": [], "filters": [], "classifier": [],
            "drift": [], "examples": {"rows": [], "answers": []},
            "sentence": (f"In {n - wrong:,} of {n:,} random cases a small step from the shared start did not lead away from "
                         f"the teacher; from another start {half:.0%} of steps did.")}
