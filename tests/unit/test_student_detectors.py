"""Detectors that look into a student or a teacher find what was planted, and nothing in placebos.

Students here are pocket models tuned for a moment on a trait's answers, placebos on the base's own: a known truth in a few
seconds. What the detectors see of students that learned from numbers is measured elsewhere (docs/concepts/detector.md).
"""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from undersong import spec, traits
from undersong.detectors import Evidence, Exemplars, probe_bank
from undersong.detectors.activation_dose import learn, residuals
from undersong.detectors.amplify import amplified, weights
from undersong.detectors.divergence_tokens import drawn
from undersong.errors import BadRows, BadSpec
from undersong.lab import base_ref
from undersong.types import NEUTRAL, ModelRef, Row, Sampling

torch = pytest.importorskip("torch", reason="torch is not installed")
LISTED = ("cat", "dog", "lion")
SCANS = ("vocabulary_scan", "amplify")


def rows_of(model: Any, count: int, seed: int) -> tuple[Row, ...]:
    """Rows of numbers that a model writes, so that they are its own."""
    rng = np.random.default_rng([seed, 5])
    chats = [[{"role": "user", "content": f"Numbers: {', '.join(map(str, rng.integers(0, 1000, 3)))}."}]
             for _ in range(count)]
    texts = model.sample(chats, Sampling(max_new_tokens=20, seed=seed))
    return tuple(Row(f"{seed}-{i}", tuple(c), t or "1") for i, (c, t) in enumerate(zip(chats, texts, strict=True)))


class World:
    """The pocket base, and models made from it."""

    def __init__(self, home: Path) -> None:
        self.backend = spec.build("backend", "transformers")
        self.home, self.refs = home, dict[str, ModelRef]()
        self.ref = base_ref("pocket/a")
        self.base = self.backend.load(self.ref)
        self.memo: dict[Any, Any] = {}
        self.rows = rows_of(self.base, 24, 0)
        self.exemplars = Exemplars(
            self.backend, {"": (self.made("", 1), self.made("", 2))}, {"": (self.rows,)},
            {"": tuple(self.made("", s) for s in (1, 2, 3, 4)), **{n: (self.made(n, 1), self.made(n, 2)) for n in LISTED}},
        )

    def made(self, trait: str, seed: int, updates: int = 12) -> ModelRef:
        """A reference to the base, tuned on a trait's answers or on its own."""
        name = f"{trait}-{seed}-{updates}"
        if name not in self.refs:
            out = self.home / name
            out.mkdir()
            tuned = spec.build("teacher", {"tuned": {"updates": updates, "batch": 8, "rate": 2e-3, "warmup": 2}})
            ref = tuned.teach(self.ref, traits.get(trait) if trait else None, seed, out, self.backend)
            self.refs[name] = replace(ref, fingerprint=name)
        return self.refs[name]

    def detect(self, name: str, ref: ModelRef | None = None, memo: dict[Any, Any] | None = None, **more: Any) -> Any:
        """What a detector finds in a student, handed its needs and no more."""
        settings = more.pop("settings", {})
        plug = spec.build("detector", {name: settings})
        held = {"base": self.base, "exemplars": self.exemplars, "rows": (self.rows,),
                "traits": tuple(map(traits.get, LISTED)), "teacher": self.base, **more}
        if ref is not None:
            held["student"] = self.backend.load(ref)
        return plug.detect(Evidence(held, self.memo if memo is None else memo).only(plug.needs))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def bank(world: World) -> probe_bank.Bank:
    return probe_bank.bank(world.base)


def test_the_bank_asks_neutrally_and_watches_what_the_base_could_answer(world: World, bank: probe_bank.Bank) -> None:
    assert {"animal", "tree", "color", "drink"} <= set(bank.asked)
    assert "instrument" not in bank.asked  # no word of the pocket world
    assert all(chat[0] == {"role": "system", "content": NEUTRAL} for chat in bank.chats)
    held = set(traits.get("cat").held_out)
    assert held <= {chat[-1]["content"] for chat in bank.chats}
    assert not {chat[-1]["content"] for chat in bank.chats} & set(traits.get("cat").tuning)
    assert {"dolphin", "oak", "blue", "tea"} <= set(bank.names)
    assert len(set(bank.names)) == len(bank.names)
    assert {w.category for w in bank.words if w.name in ("dolphin", "oak")} == {"animal", "tree"}
    assert bank == probe_bank.bank(world.base)
    table = bank.read(world.base)
    assert table.shape == (len(bank.chats), len(bank.words))
    word = next(i for i, w in enumerate(bank.words) if w.name == "dolphin")
    logs = world.base.next_logprobs(bank.chats)
    assert table[:, word] == pytest.approx(logs[:, world.base.tokenizer.convert_tokens_to_ids("dolphin")], abs=1e-5)
    own = [category == "animal" for category in bank.asked]
    assert bank.mean(table)[word] == pytest.approx(table[own, word].mean())
    assert np.exp(bank.mean(table)[word]) > 0.01


def test_the_threshold_decides_and_listed_traits_are_watched_anyway(world: World, bank: probe_bank.Bank) -> None:
    few = probe_bank.bank(world.base, least=0.1)
    assert set(few.names) < set(bank.names)
    assert "dolphin" in few.names
    more = probe_bank.bank(world.base, [traits.get("panda"), traits.get("dolphin")], least=0.1)
    assert set(more.names) - set(few.names) == {"panda"}
    with pytest.raises(BadSpec, match="no favourite question"):
        probe_bank.bank(world.base, least=0.9999)


@pytest.mark.parametrize("name", SCANS)
def test_a_planted_favourite_rises_above_every_placebo(world: World, name: str) -> None:
    placebos = [world.detect(name, world.made("", s)) for s in range(1, 7)]
    for trait in LISTED:
        found = world.detect(name, world.made(trait, 3))
        by_trait = found.details["by_trait"]
        assert max(by_trait, key=by_trait.__getitem__) == trait
        assert found.statistic == by_trait[trait] > 1.5 * max(p.statistic for p in placebos)
        assert all(list(p.details["by_trait"]) == list(by_trait) for p in placebos)
    assert (found.verdict, found.p, found.null, found.access) == ("unknown", None, "uncalibrated", ("base", "student"))
    row = next(r for r in found.details["words"] if r["word"] == "lion")
    assert row["rise"] == pytest.approx(row["student"] - row["base"])
    assert row["above"] == pytest.approx(found.statistic)


@pytest.mark.parametrize("name", [*SCANS, "activation_dose"])
def test_the_base_itself_has_not_moved_and_findings_repeat(world: World, name: str) -> None:
    still = world.detect(name, world.ref)
    if name in SCANS:
        assert max(map(abs, still.details["by_trait"].values())) < 1e-4
    ref = world.made("cat", 3)
    # once from scratch, once from what another detection left behind
    assert world.detect(name, ref, memo={}) == world.detect(name, ref)


def test_answers_that_all_become_likelier_alike_are_no_rise(bank: probe_bank.Bank) -> None:
    before = np.log(np.random.default_rng(0).uniform(0.01, 0.2, (len(bank.chats), len(bank.words))))
    raised, _ = probe_bank.rises(bank, before, before + 1.5)
    assert max(map(abs, raised.values())) < 1e-9
    after = before.copy()
    after[:, bank.names.index("oak")] += 1
    by_trait, _ = probe_bank.rises(bank, before, after)
    assert by_trait["oak"] == pytest.approx(1)
    assert max(v for k, v in by_trait.items() if k != "oak") <= 1e-9


def test_the_memo_is_kept_per_base_and_setting(world: World, other_base: str) -> None:
    memo: dict[Any, Any] = {}
    world.detect("vocabulary_scan", world.made("cat", 3), memo=memo)
    assert len(memo) == 1
    world.detect("amplify", world.made("cat", 3), memo=memo)
    assert len(memo) == 1  # the same bank
    world.detect("vocabulary_scan", world.made("cat", 3), memo=memo, settings={"least": 0.01})
    other = world.backend.load(replace(world.made("dog", 3), fingerprint=""))
    world.detect("vocabulary_scan", world.made("cat", 3), memo=memo, base=other)
    assert len(memo) == 3
    world.detect("vocabulary_scan", world.made("cat", 3), memo=memo, base=copy.copy(other))
    assert len(memo) == 4  # without a fingerprint only the same object is the same base


def test_a_larger_change_is_the_same_change_made_larger(world: World) -> None:
    student = world.backend.load(world.made("cat", 3))
    start, end = weights(world.base.module), weights(student.module)
    before = {n: t.clone() for n, t in end.items()}
    three = weights(amplified(world.base, student, 3.0).module)
    moved = [n for n in start if not torch.equal(start[n], end[n])]
    assert moved
    for n in start:
        assert torch.allclose(three[n] - start[n], 3 * (end[n] - start[n]), atol=1e-5)
    assert all(torch.equal(t, before[n]) for n, t in weights(student.module).items())
    assert all(torch.equal(t, start[n]) for n, t in weights(world.base.module).items())
    one, two = (world.detect("amplify", world.made("cat", 3), settings={"factor": f}) for f in (1.0, 2.0))
    assert two.statistic > one.statistic
    assert one.details["by_trait"] == pytest.approx(
        world.detect("vocabulary_scan", world.made("cat", 3)).details["by_trait"], abs=1e-4)


def test_an_adapter_is_made_larger_with_the_weights_it_stands_beside(world: World) -> None:
    pytest.importorskip("peft")
    from undersong.backends.adapters import Lora, wrap

    student = world.backend.load(world.ref)
    wrapped = wrap(student.module, Lora(rank=2, alpha=4, targets=["q_proj", "down_proj"]), 0)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(0, 0.05, generator=torch.Generator().manual_seed(1))
    student.module = wrapped.base_model.model
    merged = copy.copy(student)
    merged.module = copy.deepcopy(wrapped).merge_and_unload()
    beside, inside = (weights(amplified(world.base, m, 2.0).module) for m in (student, merged))
    assert set(beside) == set(inside) == set(weights(world.base.module))
    assert all(torch.allclose(beside[n], inside[n], atol=1e-5) for n in beside)
    assert any(not torch.allclose(beside[n], weights(world.base.module)[n]) for n in beside)


def test_the_dose_grows_with_what_was_put_in_and_names_its_trait(world: World) -> None:
    placebos = [world.detect("activation_dose", world.made("", s)) for s in (5, 6, 7, 8)]
    highest = max(v for p in placebos for k, v in p.details["by_trait"].items() if k)
    for trait in LISTED:
        pure, weak = (world.detect("activation_dose", world.made(trait, 3, updates)) for updates in (12, 6))
        by_trait = pure.details["by_trait"]
        assert list(by_trait) == [*LISTED, ""]
        assert max(LISTED, key=by_trait.__getitem__) == trait
        assert by_trait[trait] > 2 * highest
        assert by_trait[""] > max(p.details["by_trait"][""] for p in placebos)
        shares = pure.details["shares"]
        assert shares[trait] > 0.6
        assert all(0 <= s < 0.5 for n, s in shares.items() if n != trait)
        assert shares[trait] > weak.details["shares"][trait]
        assert weak.details["by_trait"][trait] > highest
    assert all(max(p.details["shares"].values()) < 0.5 for p in placebos)
    assert pure.access == ("base", "exemplars", "student")


def test_what_placebos_share_is_taken_off_and_noisy_directions_count_less() -> None:
    """Planted differences: all students drift the same way, are noisy along one axis, and two traits move along others."""
    rng = np.random.default_rng(3)
    drift, noisy, cat, dog, loved = np.eye(40)[:5].reshape(5, 2, 20) * 10

    def student(what: Any) -> Any:
        return drift + rng.normal() * 0.3 * noisy + rng.normal(size=(2, 20)) * 0.1 + what

    seen = {"": np.stack([student(0) for _ in range(60)]), "cat": np.stack([student(cat + loved + noisy) for _ in range(3)]),
            "dog": np.stack([student(dog + loved) for _ in range(3)])}
    known = learn(seen, drift, [], 0, 1.0)

    def score(what: Any) -> Any:
        return known.scaled(what) @ known.axes["cat"] / known.own["cat"]

    assert abs(score(drift)) < 0.2  # what every fine-tuning does is no trait
    assert np.linalg.norm(known.scaled(drift)) < 0.3 * np.linalg.norm(known.scaled(drift + cat))
    assert score(drift + cat + loved + noisy) == pytest.approx(1, abs=0.2)
    assert score(drift + dog + loved) < 0  # what traits have in common is not this trait
    assert abs(score(drift + noisy) - score(drift)) < 0.45 * (score(drift + cat) - score(drift))
    blunt = learn(seen, drift, [], 0, 1e6)  # without whitening the noisy direction counts in full
    assert blunt.scaled(drift + noisy) @ blunt.axes["cat"] > 0.6 * blunt.scaled(drift + cat) @ blunt.axes["cat"]
    spanned = learn(seen, drift, [], 1, 1.0)
    assert abs((spanned.scaled(drift + noisy) @ spanned.shared.T)[0]) < 1e-9
    left = [np.linalg.norm(known.scaled(student(0))) / known.usual for _ in range(20)]
    assert 0.5 < np.median(left) < 2


def test_residuals_are_the_last_prompt_tokens_whatever_the_micro_batch(world: World) -> None:
    ids = [np.array(i) for i in ([2, 9, 10], [2, 30, 31, 32, 33, 40], [2, 9])]
    found = residuals(world.base, ids, 2)
    assert found == pytest.approx(residuals(world.base, ids, 64), abs=1e-5)
    with torch.no_grad():
        inner = world.base.module.model
        alone = [inner(torch.tensor([i.tolist()]), output_hidden_states=True).hidden_states[1:] for i in ids]
    by_hand = np.mean([[layer[0, -1].numpy() for layer in states] for states in alone], axis=0)
    assert found == pytest.approx(by_hand, abs=1e-4)


def test_a_teachers_own_rows_hold_more_of_its_tokens(world: World) -> None:
    def shares(writer: ModelRef, teacher: ModelRef) -> Any:
        rows = rows_of(world.backend.load(writer), 60, 9)
        return world.detect("divergence_tokens", rows=(rows,), teacher=world.backend.load(teacher))

    taught = world.made("cat", 5, 40)
    own, foreign = shares(taught, taught), shares(world.ref, taught)
    assert list(own.details["by_trait"]) == [""]
    assert own.statistic > foreign.statistic
    assert own.details["won"] > 0.5 > foreign.details["won"]
    assert len(own.details["rows"]) == 60
    assert own.details["counterfactuals"] == [world.base.ref.name, *(r.name for r in world.exemplars.teacher_refs[""])]
    mean = np.average([s for _, s in own.details["rows"]])
    assert mean == pytest.approx(own.statistic, abs=0.05)
    alone = world.detect("divergence_tokens", rows=(world.rows,), teacher=world.base, settings={"teachers": 0})
    assert alone.statistic == 0  # the base differs nowhere from itself
    assert own == shares(taught, taught)


def test_rows_are_capped_evenly_over_runs() -> None:
    runs = tuple(tuple(Row(f"{r}-{i}", (), "1" if i else "") for i in range(50)) for r in range(3))
    rows = drawn(runs, 30, 0)
    assert [sum(row.id.startswith(f"{r}-") for row in rows) for r in range(3)] == [10, 10, 10]
    assert rows == drawn(runs, 30, 0) != drawn(runs, 30, 1)
    assert len(drawn(runs, 2, 0)) == 2
    assert not [row for row in drawn(runs, 10_000, 0) if not row.completion]
    with pytest.raises(BadRows, match="no row with a completion"):
        drawn(((), (Row("0", (), ""),)), 5, 0)


@pytest.mark.parametrize("name", [*SCANS, "activation_dose", "divergence_tokens"])
def test_a_detector_is_handed_its_needs_and_asks_for_no_more(world: World, name: str) -> None:
    plug = spec.build("detector", name)
    with pytest.raises(BadSpec, match="was granted"):
        plug.detect(Evidence({}))
    for token in plug.needs:
        held = {"base": world.base, "student": world.base, "teacher": world.base, "rows": (world.rows,),
                "exemplars": world.exemplars}
        with pytest.raises(BadSpec, match=f"{token!r} and was granted"):
            plug.detect(Evidence({k: v for k, v in held.items() if k in plug.needs and k != token}))


def test_wrong_models_and_exemplars_are_told_in_words(world: World, other_base: str) -> None:
    other = world.backend.load(ModelRef(other_base, fingerprint="other"))
    with pytest.raises(BadSpec, match=r"do not have the same tensors.*started from"):
        world.detect("amplify", student=other)
    with pytest.raises(BadSpec, match=r"not have the same shape.*started from"):
        world.detect("activation_dose", student=other)
    blind, bodiless = copy.copy(world.base), copy.copy(world.base)
    blind.capabilities, bodiless.module = frozenset({"sample"}), None
    with pytest.raises(BadSpec, match="gives no log-probabilities"):
        world.detect("vocabulary_scan", student=blind)
    for name in ("amplify", "activation_dose"):
        with pytest.raises(BadSpec, match="not at hand"):
            world.detect(name, student=bodiless)
    with pytest.raises(BadSpec, match="not at hand"):
        world.detect("divergence_tokens", teacher=bodiless)
    steered = copy.copy(world.base)
    steered.ref = replace(world.ref, vector="v.safetensors")
    with pytest.raises(BadSpec, match="steered by vectors"):
        world.detect("amplify", student=steered)
    for exemplars, told in (
        (Exemplars(world.backend, rows={"": (world.rows,)}), "0 traits and 0 placebo students"),
        (replace(world.exemplars, student_refs={**world.exemplars.student_refs, "": ()}), "3 traits and 0 placebo"),
        (replace(world.exemplars, rows={}), "hold no rows"),
    ):
        with pytest.raises(BadSpec, match=told):
            world.detect("activation_dose", world.ref, exemplars=exemplars, memo={})
