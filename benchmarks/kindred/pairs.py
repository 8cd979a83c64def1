"""Which pairs are judged, what is true of each, and what every test says of them: a file per pair, so that it goes on."""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from pathlib import Path
from typing import Any

from kindred import growing
from kindred.tree import CHANGED, TRAINED, Member, Plan, members, neighbour, root, shipped
from undersong import registry
from undersong.backends.transformers import Transformers
from undersong.files import put
from undersong.kinship import Subject
from undersong.relation import conclude, relate
from undersong.stats import holm
from undersong.types import ModelRef

ALPHA = 0.01
CONTROLS = 5
CHILDREN = (*TRAINED, *CHANGED, "merged", "crossed")
SAMPLED = ("root", "tuned", "continued", "student", "teacher", "quantised", "lookalike", "reordered")
"""Kinds whose members are sampled for `phylogeny`, the slowest test."""
WEIGHTS, BLACK, TEXT = ("bytes", "weights"), ("seed_print", "behaviour", "phylogeny"), ("behaviour", "phylogeny")
JOINED = {"relate": (*WEIGHTS, *BLACK), "relate, weights": WEIGHTS, "relate, logits": BLACK, "relate, text": TEXT}
"""What `relate` says with all tests, and with those of one kind of access."""


@dataclass(frozen=True)
class Pair:
    """Two members, how they come to be compared, and whether one initialisation lives on in both."""

    a: Member
    b: Member
    kind: str

    @property
    def kin(self) -> bool:
        """The truth."""
        return bool(self.a.seeds & self.b.seeds)

    @property
    def truth(self) -> str:
        """The truth in the words of a verdict."""
        same = self.a.architecture == self.b.architecture
        return "same_initialisation" if self.kin else "same_architecture" if same else "unrelated"

    @property
    def held_out(self) -> bool:
        """Whether error rates may be reported on it."""
        return self.a.held_out and self.b.held_out

    @property
    def name(self) -> str:
        """A file name."""
        return f"{self.a.name}~{self.b.name}".replace("/", "-")


def pairs(plan: Plan) -> list[Pair]:
    """Every judged pair; none crosses development and held-out roots."""
    known = {m.name: m for m in (*members(plan), *shipped())}
    out = [Pair(known[root(i)], known[root(j)], "other seed")
           for part in (plan.development, plan.held_out) for i, j in combinations(part, 2)]
    for s in plan.families:
        own, other = root(s), root(neighbour(plan, s, plan.families))
        out += [Pair(known[own], known[f"{own}-{kind}"], kind) for kind in CHILDREN]
        out += [Pair(known[f"{own}-{x}"], known[f"{own}-{y}"], "siblings")
                for x, y in (("tuned", "continued"), ("teacher", "student"))]
        out += [Pair(known[f"{own}-{x}"], known[f"{other}-{y}"], "other seed, both changed")
                for x, y in (("tuned", "tuned"), ("continued", "teacher"))]
    out += [Pair(known[root(s)], known[f"{root(s)}-reordered"], "reordered") for s in plan.reordered]
    for s in plan.distilled:
        copy, start = known[f"{root(s)}-lookalike"], known[root(neighbour(plan, s, plan.roots))]
        out += [Pair(known[root(s)], copy, "look-alike"), Pair(start, copy, "distilled")]
    shapes = [m for m in known.values() if m.architecture not in ("pocket", "wide")]
    out += [Pair(known[root(s)], shape, "other architecture") for s in plan.held_out[:4] for shape in shapes]
    a, again, b, matched, wide = shipped()
    out += [Pair(a, again, "reordered"), Pair(b, matched, "distilled"), Pair(a, matched, "look-alike")]
    out += [Pair(x, b, "other seed") for x in (a, again)] + [Pair(x, wide, "other architecture") for x in (a, b)]
    return out


def judge(store: Path, plan: Plan, chosen: Sequence[Pair], end: float) -> Iterator[Pair]:
    """Run every test on the chosen pairs whose members are there, and yield those that were new, until the clock shows
    `end`."""
    for pair in chosen:
        place = store / "pairs" / f"{pair.name}.json"
        if place.is_file() or not all(growing.folder(store, m.name).is_dir() for m in (pair.a, pair.b)):
            continue
        if time.monotonic() > end:
            return
        place.parent.mkdir(parents=True, exist_ok=True)
        gc.freeze()  # statsmodels collects garbage at every Holm correction: models that stay need no visit
        put(place, json.dumps(said(store, plan, pair)).encode())
        yield pair


def said(store: Path, plan: Plan, pair: Pair) -> dict[str, Any]:
    """Verdict, p, power, statistic and seconds of every test and of `relate` by access."""
    a, b = subject(store, pair.a.name), subject(store, pair.b.name)
    unrelated = [root(s) for s in plan.development if root(s) not in pair.a.seeds | pair.b.seeds][:CONTROLS]
    found = relate(a, b, tests_of(pair), [subject(store, name) for name in unrelated], ALPHA)
    if found["skipped"]:
        raise RuntimeError(f"{pair.name}: {found['skipped']}")
    rows = [{"test": t["test"], **figures(t)} for t in found["tests"]]
    for name, group in JOINED.items():
        ran = [dict(t) for t in found["tests"] if t["test"] in group]
        ps = [t for t in ran if t["p"] is not None]
        for each, adjusted in zip(ps, holm([t["p"] for t in ps]), strict=True):
            each["adjusted"] = adjusted
        rows.append({"test": name, **figures(conclude(ran, ALPHA) | {"seconds": sum(t["seconds"] for t in ran)})})
    return {"a": pair.a.name, "b": pair.b.name, "controls": unrelated, "rows": rows}


def figures(told: dict[str, Any]) -> dict[str, Any]:
    """What is kept of a test's or relate's answer."""
    excess = told.get("details", {}).get("excess")
    return {"verdict": told["relation"], "p": told["p"], "power": told["power"], "statistic": told.get("statistic"),
            "excess": excess, "direction": told["direction"], "seconds": told["seconds"]}


def tests_of(pair: Pair) -> Sequence[Any]:
    """The tests of a pair. All controls learned the rows that the subjects learned; those of the shipped family not for as
    long."""
    make = {name: registry.get("kinship", name) for name in (*WEIGHTS, *BLACK)}
    sampled = all(m.kind in SAMPLED for m in (pair.a, pair.b))
    known = {"same_data": pair.a not in shipped()}
    return [cls(**known if name in BLACK else {}) for name, cls in make.items() if name != "phylogeny" or sampled]


@lru_cache(maxsize=96)
def subject(store: Path, name: str) -> Subject:
    """A member as a subject; the last ones stay loaded."""
    place = name if name.startswith("pocket/") else str(growing.folder(store, name))
    return Subject(name, ModelRef(place), Transformers(workers=1))
