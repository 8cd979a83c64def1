"""Every mitigation and explainer keeps its contract on real pocket models; a new one is covered by being registered."""

from __future__ import annotations

import contextlib
import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from undersong import explainers, mitigations, registry, spec, traits
from undersong.backends.guarding import Guard
from undersong.backends.several import Several
from undersong.errors import BadSpec, UnknownName
from undersong.explainers.ordinary import ordinary
from undersong.lab import Student, base_ref, lab_for
from undersong.store import Store
from undersong.types import Chat, Row

MITIGATIONS, EXPLAINERS = registry.names("mitigation"), registry.names("explainer")
QUICK: dict[str, dict[str, Any]] = {
    "anchor": {"max_new_tokens": 3, "size": 2}, "attribution": {"rows": 20}, "gradient_alignment": {"rows": 8},
    "coverage": {"rows": 8}, "divergence_tokens": {"rows": 8}, "marginal_or_conditional": {"rows": 20},
    "replay_projection": {}, "token_entanglement": {"rows": 8},
}
"""Settings that make a plug-in quick; names that both kinds have are tried for the explainer only."""
MAY_REFUSE = {"layer_sites"}
"""Explainers that refuse where nothing crossed: three steps move a trait by luck only."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Teachers, rows and students of pocket/a, as small as they can be."""
    lab = lab_for(Store(tmp_path_factory.mktemp("store")), "pocket/a")
    numbers = {"numbers": {"count": 4, "largest": 99, "wording": "brief"}}
    base, channel = base_ref("pocket/a"), spec.build("channel", numbers)
    recipe = spec.build("recipe", {"distill": {"steps": 3, "batch": 4, "rate": 1e-3}})
    teacher = spec.build("teacher", {"tuned": {"updates": 3, "rate": 1e-3}})
    keep = [spec.build("filter", {"belongs": {"channel": numbers}})]

    def source(name: str) -> tuple[Any, Any]:
        made = lab.teach(teacher, base, traits.get(name) if name else None, 1, f"teacher-{name or 'none'}")
        raw = lab.sample(made, channel, 80, 1, f"raw-{name or 'none'}")
        return made, lab.refine(raw, keep, keep=24, label=f"kept-{name}")

    (owl, rows), (wolf, _), (_, clean) = source("owl"), source("wolf"), source("")

    def train(some: Any, start: Any = None, seed: int | None = None) -> Any:
        data = rows if tuple(some) == rows.rows else lab.keep(some, rows)
        [ref] = lab.train(recipe, channel, [Student(start or base, data, seed or 1, "helper")])
        return lab.backend.load(ref)

    [student] = lab.train(recipe, channel, [Student(base, rows, 1, "student")])
    placebos = lab.train(recipe, channel, [Student(base, clean, seed, f"placebo-{seed}") for seed in (1, 2)])
    load = lab.backend.load
    return {"lab": lab, "recipe": recipe, "channel": channel, "base": base, "data": rows, "student": student, "held": {
        "base": lambda: load(base), "channel": lambda: channel, "rows": lambda: rows.rows,
        "trait": lambda: traits.get("owl"), "clean": lambda: clean.rows, "teacher": lambda: load(owl),
        "rivals": lambda: Several((wolf,), lab.backend),
        "other": lambda: load(base_ref("pocket/b")), "placebos": lambda: Several(tuple(placebos), lab.backend),
        "train": lambda: train}}


def built(kind: str, name: str) -> Any:
    both = name in MITIGATIONS and name in EXPLAINERS
    quick = {} if kind == "mitigation" and both else QUICK.get(name, {})
    return spec.build(kind, {name: quick})


def granted(world: dict[str, Any], plug: Any) -> mitigations.Evidence:
    uses = {*plug.needs, *getattr(plug, "may_use", ())}
    return mitigations.Evidence({token: make() for token, make in world["held"].items() if token in uses})


ALL = [*(("mitigation", n) for n in MITIGATIONS), *(("explainer", n) for n in EXPLAINERS)]


@pytest.mark.parametrize(("kind", "name"), ALL)
def test_settings_and_declarations(kind: str, name: str) -> None:
    plug = built(kind, name)
    again = spec.build(kind, {name: spec.describe(plug)["settings"]})
    assert spec.fingerprint(spec.describe(again)) == spec.fingerprint(spec.describe(plug))
    known = mitigations.ACCESS if kind == "mitigation" else explainers.ACCESS
    assert plug.needs | getattr(plug, "may_use", frozenset()) <= set(known)
    with pytest.raises(BadSpec, match="is not a setting"):
        spec.build(kind, {name: {"no_such_key": 1}})
    with pytest.raises(UnknownName, match=name):
        spec.build(kind, f"{name}z")
    if kind == "mitigation":
        assert plug.stage in mitigations.STAGES
        assert callable(getattr(plug, {"data": "apply", "training": "guard", "model": "repair"}[plug.stage]))


@pytest.mark.parametrize("name", [n for n in MITIGATIONS if registry.get("mitigation", n).stage == "data"])
def test_changed_rows_belong_repeat_and_leave_the_input_alone(name: str, world: dict[str, Any]) -> None:
    plug, rows = built("mitigation", name), list(world["data"].rows)
    before = copy.deepcopy(rows)
    one, two = (plug.apply(rows, granted(world, plug), 5) for _ in range(2))
    assert rows == before
    assert one == two, "the same seed gives the same rows"
    assert one
    assert all(isinstance(row, Row) for row in one)
    assert all(world["channel"].reject(row) is None for row in one), "what comes out belongs to the channel"
    asked = {row.chat[-1]["content"] for row in (*rows, *world["held"]["clean"]())}
    assert {row.chat[-1]["content"] for row in one} <= asked, "prompts stay as they were"


@pytest.mark.parametrize("name", [n for n in MITIGATIONS if registry.get("mitigation", n).stage == "training"])
def test_guarded_students_repeat_and_no_hook_stays(name: str, world: dict[str, Any], tmp_path: Path) -> None:
    from undersong.recipes import Job

    plug, made = built("mitigation", name), []
    for turn in ("a", "b"):
        (tmp_path / turn).mkdir()
        guard = plug.guard(granted(world, plug), 5)
        assert isinstance(guard, Guard)
        assert guard.name == name
        start = base_ref("pocket/b") if getattr(plug, "elsewhere", False) else world["base"]
        [ref] = world["recipe"].train([Job(start, world["data"], 1, tmp_path / turn, guard=guard)], world["lab"].backend)
        made.append(world["lab"].backend.load(ref))
        json.dumps(guard.told(), allow_nan=False)
    one, two = (dict(m.module.named_parameters()) for m in made)
    assert all(torch.equal(one[n], two[n]) for n in one)
    assert all(bool(torch.isfinite(p).all()) for p in one.values())
    base = world["held"]["base"]()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in (*base.module.modules(), *made[0].module.modules()))


@pytest.mark.parametrize("name", [n for n in MITIGATIONS if registry.get("mitigation", n).stage == "model"])
def test_repaired_students_repeat(name: str, world: dict[str, Any]) -> None:
    plug, out = built("mitigation", name), []
    for _ in range(2):
        student = world["lab"].backend.load(world["student"])
        vectors = plug.repair(student, granted(world, plug), 5)
        out.append((dict(student.module.named_parameters()), {k: v for k, v in vectors.items() if k != "told"}))
    (one, va), (two, vb) = out
    assert all(torch.equal(one[n], two[n]) and bool(torch.isfinite(one[n]).all()) for n in one)
    assert va.keys() == vb.keys()
    assert all(np.array_equal(np.asarray(va[k]), np.asarray(vb[k])) for k in va)


@pytest.mark.parametrize("name", EXPLAINERS)
def test_explanations_repeat_and_are_plain_json(name: str, world: dict[str, Any]) -> None:
    plug = built("explainer", name)
    base = world["held"]["base"]()
    chats: tuple[Chat, ...] = ordinary(base)[:6]
    uses = {*plug.needs, *getattr(plug, "may_use", ())}
    held = world["held"] | {
        "base": lambda: base, "model": lambda: world["lab"].backend.load(world["student"]), "prompts": lambda: chats,
        "questions": lambda: chats[:2], "rows": lambda: (world["data"].rows,), "clean": lambda: (world["held"]["clean"](),)}
    state = {n: p.detach().clone() for n, p in base.module.named_parameters()}
    evidence = [explainers.Evidence({token: make() for token, make in held.items() if token in uses}) for _ in range(2)]
    if name in MAY_REFUSE:
        with contextlib.suppress(BadSpec):
            plug.explain(evidence[0], 3)
        return
    one, two = (plug.explain(held, 3) for held in evidence)
    assert one == two
    assert one.sentence.endswith(".")
    assert one.scores
    assert all(np.isfinite(value) for _, value in one.scores)
    json.dumps(one.details, allow_nan=False)
    assert all(torch.equal(p, state[n]) for n, p in base.module.named_parameters()), "the models are left as they were"
