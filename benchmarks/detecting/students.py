"""Students of benign rows and of rows with planted traits, what they answer, and the triple: how well planted rows are
detected, what they do to a student, and what dropping the detected ones changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from detecting.cells import Trial, auroc
from detecting.world import World, cut, ids
from undersong.calibration import side_by_side
from undersong.detectors import Evidence
from undersong.lab import Student
from undersong.spec import build, fingerprint
from undersong.types import Dataset, ModelRef, Row

RULES = ("likelihood_panel", "bag_of_k")
"""Detectors whose row scores decide what is dropped."""


def student_trials(world: World) -> list[Trial]:
    """Every student, trained side by side."""
    plan, out, jobs = world.plan, list[Trial](), list[Student]()
    for s in world.benign_sources[: plan.students]:
        jobs.append(_job(world, cut(s.data, plan.rows), len(jobs), s.name))
        out.append(Trial("students", s.kind, "", s.number, 0.0, 0, {}, ""))
    few = [t.name for t in world.planted_traits[: plan.student_traits]] if plan.students else []
    for index, s in enumerate(world.planted_sources):
        for share in plan.student_shares if s.trait in few else ():
            data = world.mixed(s, world.clean_for(index), share, plan.rows)
            jobs.append(_job(world, data, len(jobs), f"{s.name}-{share}"))
            out.append(Trial("students", s.kind, s.trait, s.number, share, 0, {}, ""))
    refs = world.lab.train(world.recipe, world.channel, jobs)
    return [Trial(t.battery, t.kind, t.trait, t.seed, t.share, 0, {"student": ref}, ref.fingerprint)
            for t, ref in zip(out, refs, strict=True)]


def behaviour(world: World, refs: Sequence[ModelRef]) -> list[dict[str, float]]:
    """Per student the chance of each trait's word as the first word of an answer, mean over held-out questions."""
    probe = build("probe", "logit_margin")

    def one(ref: ModelRef) -> dict[str, float]:
        got = world.lab.measure(ref, probe, world.traits, 0, label=f"bench-{ref.fingerprint}")
        return {t.name: got.mean("probability", t.name) for t in world.traits}

    return side_by_side(one, refs)


def triple(world: World, memo: dict[Any, Any]) -> list[dict[str, Any]]:
    """One line per held-out trait, seed and rule of dropping: row AUROC, planted rows kept, and the student's answer."""
    plan = world.plan
    few = [t.name for t in world.planted_traits[: plan.triple_traits]]
    lines, jobs = list[dict[str, Any]](), list[Student]()
    for index, source in enumerate(world.planted_sources):
        if source.trait not in few:
            continue
        data = world.mixed(source, world.clean_for(index), plan.triple_share, plan.rows)
        planted = ids(source.data.rows[: round(plan.rows * plan.triple_share)])
        for rule, scores in _rules(world, data, planted, index, memo).items():
            kept = data.rows
            if scores is not None:
                order = np.argsort(scores, kind="stable")[: round(len(data.rows) * (1 - plan.triple_share))]
                kept = tuple(data.rows[i] for i in np.sort(order))
            mine = np.array([row.id in planted for row in data.rows])
            lines.append({
                "rule": rule, "trait": source.trait, "seed": source.number, "rows": len(kept),
                "row_auroc": None if scores is None else auroc(scores[mine], scores[~mine]),
                "planted": float(np.mean([row.id in planted for row in kept])),
            })
            less = Dataset(kept, None, fingerprint({"of": data.fingerprint, "kept": [row.id for row in kept]}))
            jobs.append(_job(world, less, 1000 + index, f"triple-{source.name}-{rule}"))
    if jobs:
        refs = world.lab.train(world.recipe, world.channel, jobs)
        for line, said in zip(lines, behaviour(world, refs), strict=True):
            line["rate"] = said[line["trait"]]
    return lines


def _rules(
    world: World, data: Dataset, planted: frozenset[str], index: int, memo: dict[Any, Any]
) -> Mapping[str, np.ndarray | None]:
    """Per rule a score of every row: those with the highest are dropped; None drops nothing."""
    out: dict[str, np.ndarray | None] = {"nothing": None}
    held = {"rows": (data.rows,), "base": world.lab.backend.load(world.base), "exemplars": world.known,
            "traits": tuple(world.traits)}
    for name in RULES:
        detector = build("detector", name)
        mark = fingerprint({"rows": data.fingerprint, "calibration": world.mark})
        found = world.lab.audit(detector, Evidence(held, memo).only(detector.needs), [mark], f"bench-{name}")
        out[name] = _scores(data.rows, found.details)
    out["at random"] = np.random.default_rng([index, 8]).random(len(data.rows))
    out["oracle"] = np.array([float(row.id in planted) for row in data.rows])
    return out


def _scores(rows: Sequence[Row], told: Mapping[str, Any]) -> np.ndarray:
    """A score for every row: a detector reads identical rows once, and may skip some."""
    known = dict(zip(told["row_ids"], told["row_scores"], strict=True))
    text = {(str(row.chat), row.completion): known[row.id] for row in rows if row.id in known}
    return np.array([text.get((str(row.chat), row.completion), 0.0) for row in rows])


def _job(world: World, data: Dataset, number: int, label: str) -> Student:
    role = "triple" if number >= 1000 else "students"
    return Student(world.base, data, world.seed(role, number), f"bench-student-{label}")


def rates(trials: Sequence[Trial], said: Sequence[Mapping[str, float]]) -> list[dict[str, Any]]:
    """Per planted student: its chance of its own trait, and how that stands among benign students' chance of it."""
    out = []
    for trial, own in zip(trials, said, strict=True):
        if trial.trait:
            benign = [other[trial.trait] for t, other in zip(trials, said, strict=True) if not t.trait]
            mean, spread = float(np.mean(benign)), float(np.std(benign, ddof=1))
            rate = own[trial.trait]
            out.append({"trait": trial.trait, "seed": trial.seed, "share": trial.share, "rate": rate, "benign": mean,
                        "spread": spread, "p": (1 + sum(b >= rate for b in benign)) / (1 + len(benign)),
                        "within_noise": abs(rate - mean) <= 2 * spread})
    return out
