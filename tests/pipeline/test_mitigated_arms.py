"""Mitigations as arms: what is planned is done, every stage acts where it says, each is granted work of its own seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import yaml

from undersong import registry
from undersong.errors import BadSpec
from undersong.experiment import Experiment
from undersong.lab import lab_for
from undersong.mitigations import Evidence, Stage
from undersong.registry import Settings
from undersong.results import collect
from undersong.store import Store
from undersong.types import Row

FILE: dict[str, Any] = {
    "name": "arms", "base": "pocket/a", "other_base": "pocket/b", "trait": "owl", "rivals": ["wolf"],
    "teacher": {"tuned": {"updates": 2, "rate": 1e-3}},
    "channel": {"numbers": {"count": 3, "largest": 99, "wording": "brief"}},
    "rows": 24, "keep": 8, "filters": ["numbers_only"],
    "recipe": {"distill": {"steps": 2, "batch": 4, "rate": 1e-3}},
    "probes": ["logit_margin"], "controls": ["no_trait"], "seeds": [1, 2, 3],
}
SEEN: list[Any] = []


class Half(Settings):
    """Model stage: half of every change, and one vector."""

    plugin_kind: ClassVar[str] = "mitigation"
    plugin_name: ClassVar[str] = "half"
    plugin_version: ClassVar[int] = 1
    stage: ClassVar[Stage] = "model"
    needs: ClassVar[frozenset[str]] = frozenset({"base", "placebos"})

    def repair(self, student: Any, evidence: Evidence, seed: int) -> Mapping[str, Any]:
        SEEN.append(("half", seed, sorted(evidence.granted), [r.fingerprint for r in evidence.placebos.refs]))
        base = dict(evidence.base.module.named_parameters())
        with torch.no_grad():
            for name, p in student.module.named_parameters():
                p.copy_((p + base[name]) / 2)
        return {"layer.0": torch.ones(student.module.config.hidden_size) * 0.01}


class Own(Settings):
    """Data stage: looks at everything an experiment can hold, trains a further student, keeps half of the rows."""

    plugin_kind: ClassVar[str] = "mitigation"
    plugin_name: ClassVar[str] = "own"
    plugin_version: ClassVar[int] = 1
    stage: ClassVar[Stage] = "data"
    needs: ClassVar[frozenset[str]] = frozenset({"train", "clean", "teacher", "trait", "rivals"})
    may_use: ClassVar[frozenset[str]] = frozenset({"other"})
    keep: int = 4

    def apply(self, rows: Sequence[Row], evidence: Evidence, seed: int) -> list[Row]:
        plain, part = evidence.train(rows), evidence.train(rows[:4])
        SEEN.append(("own", seed, len(evidence.clean), evidence.trait.name, len(evidence.rivals), evidence.has("other"),
                     plain.ref.fingerprint, part.ref.fingerprint, evidence.teacher.ref.fingerprint))
        return list(rows[: self.keep])


class Elsewhere(Settings):
    """Training stage: starts from the other base."""

    plugin_kind: ClassVar[str] = "mitigation"
    plugin_name: ClassVar[str] = "elsewhere"
    plugin_version: ClassVar[int] = 1
    stage: ClassVar[Stage] = "training"
    needs: ClassVar[frozenset[str]] = frozenset({"other"})
    elsewhere: ClassVar[bool] = True

    def guard(self, evidence: Evidence, seed: int) -> Any:
        from undersong.backends.guarding import Guard

        return Guard()


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    SEEN.clear()
    registry.names("mitigation")
    for cls in (Half, Own, Elsewhere):
        monkeypatch.setitem(registry._plugins, ("mitigation", cls.plugin_name), cls)


def experiment(**changes: Any) -> Experiment:
    return Experiment.read(yaml.safe_dump(FILE | changes))


def test_what_is_planned_is_done_at_every_stage(tmp_path: Path) -> None:
    asked = experiment(mitigations=["freeze_layers", {"own": {"keep": 4}}, {"own": {"keep": 3}}, "half", "elsewhere"])
    names = {a.name for a in asked.arms()}
    assert names == {"treated", "no_trait", "mitigated-freeze_layers", "mitigated-own-keep-4", "mitigated-own-keep-3",
                     "mitigated-half", "mitigated-elsewhere", "mitigated-elsewhere:no_trait"}
    lab = lab_for(Store(tmp_path), "pocket/a")
    assert {row.status for row in asked.plan(lab.store)} == {"missing"}
    models = asked.run(lab)
    assert {row.status for row in asked.plan(lab.store)} == {"cached"}
    seen = len(SEEN)
    asked.run(lab)
    assert len(SEEN) == seen, "nothing is done twice"

    runs = {(r.arm.name, r.arm.trait_name, r.seed): r for r in asked.runs()}
    for seed in (1, 2, 3):
        treated, none = runs["treated", "owl", seed], runs["no_trait", "", seed]
        assert treated.student
        assert none.student
        own = [line for line in SEEN if line[:2] == ("own", seed)]
        assert len(own) == 2
        assert all(line[2:6] == (8, "owl", 1, True) for line in own)
        assert {line[6] for line in own} == {treated.student.fingerprint}, "the whole is the treated student, read back"
        assert all(line[7] != line[6] for line in own)
        assert all(line[8] == treated.teacher.fingerprint for line in own)
        assert ("half", seed, ["base", "placebos"], [none.student.fingerprint]) in SEEN
        half = runs["mitigated-half", "owl", seed]
        assert half.student == treated.student
        assert half.repaired
        refs = (models[half.student.fingerprint], models[half.repaired.fingerprint], asked.base("pocket/a"))
        a, b, base = (dict(lab.backend.load(ref).module.named_parameters()) for ref in refs)
        assert all(torch.allclose(b[n], (a[n] + base[n]) / 2) for n in base)
        assert models[half.repaired.fingerprint].vector
        other = runs["mitigated-elsewhere", "owl", seed]
        assert other.student
        assert models[other.student.fingerprint].base == "pocket/b"
        changed = runs["mitigated-own-keep-3", "owl", seed].changed
        assert changed
        assert len(lab.store.find(changed.kind, changed.spec, changed.parents).read_parquet("rows")) == 3
    found = collect(asked, lab.store)
    pairs = {(c["arm"], c["control"]) for c in found["contrasts"] if c["arm"].startswith("mitigated")}
    assert {("mitigated-half", "no_trait"), ("mitigated-half", "treated"),
            ("mitigated-elsewhere", "mitigated-elsewhere:no_trait")} <= pairs
    assert {f["arm"] for f in found["filters"]} >= {"mitigated-own-keep-4", "mitigated-own-keep-3"}


def test_what_the_experiment_does_not_hold_is_refused_before_any_work() -> None:
    with pytest.raises(BadSpec, match="`other_base`"):
        experiment(mitigations=["elsewhere"], other_base=None)
    with pytest.raises(BadSpec, match=r"own needs 'rivals'.*List `rivals`"):
        experiment(mitigations=["own"], rivals=[])


def test_a_guard_and_its_evidence_are_part_of_a_students_identity() -> None:
    one, two = (experiment(mitigations=[{"freeze_layers": {"share": share}}]) for share in (0.5, 0.25))
    marks = [{r.student.fingerprint for r in e.runs() if r.student and r.arm.change} for e in (one, two)]
    assert not marks[0] & marks[1]
    plain = {r.student.fingerprint for r in one.runs() if r.student and not r.arm.change}
    assert not plain & (marks[0] | marks[1])
    halves = [experiment(mitigations=["half"], rows=n).runs() for n in (24, 30)]
    twice = [{r.repaired.fingerprint for r in runs if r.repaired} for runs in halves]
    assert not twice[0] & twice[1]
