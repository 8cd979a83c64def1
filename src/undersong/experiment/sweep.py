"""A grid of experiments: `sweep: {recipe.distill.rate: [1e-3, 1e-2], trait: [owl, cat]}` in an experiment file.

Every combination of the values is an experiment of its own, the file with these keys set, named after it and a number.
What two of them share (teachers, rows, whole students) has one fingerprint and is made once; two that would be the same
experiment are refused. All of their cells can be done at once, anywhere (`cells.py`).
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from undersong.errors import BadSpec
from undersong.experiment import Experiment
from undersong.experiment.steps import PlanRow, Step
from undersong.experiment_file import File, set_key, text_of, values
from undersong.spec import explain
from undersong.store import Store, clean_label

MOST = 20_000
"""The most experiments of a sweep."""


@dataclass(frozen=True)
class Sweep:
    """A checked sweep: `keys` are the dotted keys, `grid` their values for each experiment."""

    name: str
    keys: tuple[str, ...]
    grid: tuple[tuple[Any, ...], ...]
    experiments: tuple[Experiment, ...]

    @classmethod
    def load(cls, path: Path | str, sets: Sequence[str] = ()) -> Sweep:
        """Read a file with the key `sweep`. Raises BadSpec or UnknownName, saying which key, value and experiment."""
        return cls.of(values(text_of(Path(path)), sets))

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Sweep:
        """The sweep that the values of a file describe."""
        keys, lists = _grid(given.get("sweep"))
        name = str(given.get("name", ""))
        clean_label(name)
        fixed = {key: value for key, value in given.items() if key != "sweep"}
        grid = tuple(itertools.product(*lists))
        digits, made = len(str(len(grid))), list[Experiment]()
        for number, chosen in enumerate(grid, 1):
            data = copy.deepcopy(fixed) | {"name": f"{name}-{number:0{digits}d}"}
            for key, value in zip(keys, chosen, strict=True):
                set_key(data, key.split("."), copy.deepcopy(value), f"sweep: {key}")
            made.append(_experiment(data, shown(keys, chosen)))
        sweep = cls(name, keys, grid, tuple(made))
        sweep._refuse_twins()
        return sweep

    def _refuse_twins(self) -> None:
        seen: dict[frozenset[str], int] = {}
        for i, experiment in enumerate(self.experiments):
            marks = frozenset(step.fingerprint for run in experiment.runs() for step in run.measures)
            j = seen.setdefault(marks, i)
            if i != j:
                one, two = (shown(self.keys, self.grid[k]) for k in (j, i))
                raise BadSpec(f"sweep: {one} and {two} are the same experiment: every cell would be done for both, once. "
                              "Leave one of them out.")

    @cached_property
    def steps(self) -> list[Step]:
        """Every piece of work once."""
        out = {step.fingerprint: step for experiment in self.experiments for step in experiment.steps()}
        return list(out.values())

    def plan(self, store: Store) -> list[PlanRow]:
        """What is cached and what is missing; pieces that experiments share are listed once."""
        return [
            PlanRow(s.kind, s.label, s.fingerprint,
                    "missing" if store.find(s.kind, s.spec, s.parents, like=s.label) is None else "cached")
            for s in self.steps
        ]


def shown(keys: Sequence[str], chosen: Sequence[Any]) -> str:
    """The values of one experiment as text."""
    return ", ".join(f"{key}={value}" for key, value in zip(keys, chosen, strict=True))


def _grid(given: Any) -> tuple[tuple[str, ...], list[list[Any]]]:
    """The keys and their lists of values. Raises BadSpec for what is no grid."""
    if not isinstance(given, Mapping) or not given:
        raise BadSpec("sweep: give a mapping of keys to lists of values, such as {recipe.distill.rate: [1e-3, 1e-2]}.")
    for key, listed in given.items():
        if not isinstance(listed, list) or not listed:
            raise BadSpec(f"sweep: {key} needs a list of values, and has {listed!r}. Write it as [a, b].")
        if key in ("name", "sweep"):
            raise BadSpec(f"sweep: {key} cannot be swept. Leave it out: experiments are numbered.")
        if any(listed.count(value) > 1 for value in listed):
            raise BadSpec(f"sweep: {key} lists a value twice. Every value once.")
    if (total := math.prod(len(listed) for listed in given.values())) > MOST:
        raise BadSpec(f"sweep: {total:,} experiments are more than {MOST:,}. Split the sweep.")
    return tuple(map(str, given)), list(given.values())


def _experiment(data: dict[str, Any], where: str) -> Experiment:
    try:
        experiment = Experiment(File(**data))
    except ValidationError as error:
        raise BadSpec(f"sweep, {where}: {explain(error, File)}") from None
    try:
        experiment.check()
    except (BadSpec, LookupError) as error:
        raise type(error)(f"sweep, {where}: {error}") from None
    return experiment
