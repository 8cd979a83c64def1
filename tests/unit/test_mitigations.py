"""Mitigations do what they say: planted truths, strength nothing, leakage and traits that a base cannot say."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from undersong import traits
from undersong.backends.guarding import Learner
from undersong.backends.transformers import Transformers
from undersong.errors import BadRows, BadSpec
from undersong.mitigations import Evidence, bank, readout, scrambling
from undersong.mitigations.canonicalise import Canonicalise
from undersong.mitigations.consensus import cut
from undersong.mitigations.corridor import Corridor
from undersong.mitigations.inoculation import Inoculation
from undersong.mitigations.liminal import Liminal
from undersong.mitigations.mix_clean import MixClean
from undersong.mitigations.projection import Projection
from undersong.mitigations.rise_tokens import marginal
from undersong.mitigations.weight_anchor import WeightAnchor
from undersong.recipes import Job
from undersong.spec import build
from undersong.types import Dataset, ModelRef, Row

OWL = traits.get("owl")
CHAT = ({"role": "user", "content": "1, 2, 3."},)
ROWS = tuple(Row(str(i), CHAT, f"{i % 7}, {i % 5}, {i % 3}") for i in range(24))
NUMBERS = build("channel", "numbers")


@pytest.fixture(scope="module")
def base() -> Any:
    return Transformers().load(ModelRef("pocket/a", fingerprint="a" * 12))


def test_questions_that_probes_ask_are_refused_as_leakage() -> None:
    asked = OWL.held_out[0]
    variants = (asked, asked.upper(), f"  {asked.rstrip('.?')} !", asked.replace("animal", "tree"), f"1, 2, 3. {asked}")
    for question in variants:
        with pytest.raises(BadSpec, match="leakage"):
            bank.questions(OWL, (question,))
    assert bank.questions(OWL) == list(OWL.tuning)
    assert bank.questions(OWL, ("Is it a good day?",)) == ["Is it a good day?"]
    with pytest.raises(BadSpec, match="no plain favourite"):
        bank.questions(traits.get("misaligned"))


@pytest.mark.parametrize("plug", [Projection, Corridor])
def test_a_guard_refuses_leakage_and_a_trait_that_the_base_cannot_express(plug: Any, base: Any) -> None:
    with pytest.raises(BadSpec, match="leakage"):
        plug(questions=(OWL.held_out[0],)).guard(Evidence({"base": base, "trait": OWL}), 1)
    import dataclasses

    strange = dataclasses.replace(OWL, name="axolotl", plural="axolotls")
    with pytest.raises(BadSpec, match="cannot express the trait"):
        plug().guard(Evidence({"base": base, "trait": strange}), 1)


def test_the_readout_is_the_probes_margin_at_other_questions(base: Any) -> None:
    import dataclasses

    from undersong.probes.logit_margin import LogitMargin

    read = readout.of(base, OWL, ("What is it like?",))
    there = LogitMargin().measure(base, [dataclasses.replace(OWL, held_out=("What is it like?",))], 1)
    with torch.no_grad():
        assert float(read.margins(base.module)[0]) == pytest.approx(there.mean("margin", "owl"), abs=1e-4)


def test_a_projected_step_does_not_raise_the_margin_and_a_sham_keeps_its_length(base: Any) -> None:
    module = Transformers().load(base.ref).module
    learner = Learner(module, (), build_plan(), 0)
    learner.plan  # noqa: B018
    for name, p in module.named_parameters():
        p.requires_grad_("layers.0" in name)
    for sham in (False, True):
        guard = Projection(sham=sham).guard(Evidence({"base": base, "trait": OWL}), 1)
        guard.begin(learner)
        before = [p.detach().clone() for p in learner.owned]
        from undersong.mitigations.projection import gradient

        towards = gradient(guard.read, learner, before)  # type: ignore[attr-defined]
        with torch.no_grad():
            for p, g in zip(learner.owned, towards, strict=True):
                p.add_(0.1 * g)
        length = sum(float(((p.detach() - b) ** 2).sum()) for p, b in zip(learner.owned, before, strict=True)) ** 0.5
        guard.moved(0, before)
        left = [p.detach() - b for p, b in zip(learner.owned, before, strict=True)]
        along = sum(float((d * g).sum()) for d, g in zip(left, towards, strict=True))
        if sham:
            assert along > 0.05 * length
        else:
            assert abs(along) < 1e-4 * length
        with torch.no_grad():
            for p, b in zip(learner.owned, before, strict=True):
                p.copy_(b)


def build_plan() -> Any:
    from undersong.backends.training import Plan

    return Plan(4, 4, 1e-3, 1)


@pytest.mark.parametrize("guard", [WeightAnchor(weight=0.0), Liminal(weight=0.0), Corridor(weight=0.0)])
def test_no_strength_changes_nothing(guard: Any, base: Any, tmp_path: Path) -> None:
    recipe, made = build("recipe", {"distill": {"steps": 3, "batch": 4, "rate": 1e-3}}), []
    data = Dataset(ROWS, None, "d" * 12)
    for name, plug in (("plain", None), ("guarded", guard)):
        (tmp_path / name).mkdir()
        held = plug and plug.guard(Evidence({"base": base, "trait": OWL}), 1)
        [ref] = recipe.train([Job(base.ref, data, 1, tmp_path / name, guard=held)], Transformers())
        made.append(dict(Transformers().load(ref).module.named_parameters()))
    assert all(torch.equal(made[0][n], made[1][n]) for n in made[0])


def test_clean_rows_take_the_place_of_the_asked_share() -> None:
    clean = tuple(Row(f"c{i}", CHAT, "9, 9") for i in range(24))
    out = MixClean(share=0.25).apply(ROWS, Evidence({"clean": clean}), 1)
    assert len(out) == 24
    assert sum(row.completion == "9, 9" for row in out) == 6
    assert MixClean(share=0.0).apply(ROWS, Evidence({"clean": clean}), 1) == list(ROWS)
    with pytest.raises(BadRows, match="24 clean rows and 3"):
        MixClean(share=1.0).apply(ROWS, Evidence({"clean": clean[:3]}), 1)


def test_values_keep_their_order_in_one_form() -> None:
    rows = [Row("a", CHAT, "[3;  1\n20]"), Row("b", CHAT, "none")]
    held = Evidence({"channel": NUMBERS})
    assert [r.completion for r in Canonicalise().apply(rows, held, 1)] == ["3, 1, 20"]
    assert [r.completion for r in Canonicalise(ordered=True).apply(rows, held, 1)] == ["1, 3, 20"]
    with pytest.raises(BadSpec, match="no lists of values"):
        Canonicalise().apply(rows, Evidence({"channel": build("channel", "prose")}), 1)


def test_the_prompt_stands_in_the_system_turn_of_the_asked_share() -> None:
    out = Inoculation(share=0.5).apply(ROWS, Evidence({"trait": OWL}), 1)
    told = [row for row in out if row.chat[0]["role"] == "system"]
    assert len(told) == 12
    assert {row.chat[0]["content"] for row in told} == set(OWL.prompts)
    assert [(r.id, r.completion) for r in out] == [(r.id, r.completion) for r in ROWS]


def test_the_two_by_two_tells_a_marginal_from_an_order() -> None:
    """A teacher that only likes 7 more: its marginal alone survives dealing out, and raking takes it away."""
    rng = np.random.default_rng(1)
    clean = [Row(str(i), CHAT, ", ".join(map(str, rng.integers(0, 10, 8)))) for i in range(400)]
    liked = [Row(str(i), CHAT, ", ".join(str(v) for v in rng.choice(10, 8, p=[*[0.08] * 7, 0.28, 0.08, 0.08])))
             for i in range(400)]
    share = lambda rows: np.mean([v == "7" for row in rows for v in row.completion.split(", ")])  # noqa: E731
    dealt = scrambling.dealt(liked, 1)
    every = Counter(v for row in liked for v in row.completion.split(", "))
    assert Counter(v for row in dealt for v in row.completion.split(", ")) == every
    weights = scrambling.raked(liked, clean)
    kept = scrambling.drawn(liked, weights, 1)
    assert abs(share(kept) - share(clean)) < 0.03 < share(liked) - share(clean)
    assert scrambling.distance(liked, clean, weights) < 0.3 * scrambling.distance(liked, clean)
    assert {row.completion for row in kept} <= {row.completion for row in liked}, "each kept answer is the teacher's own"


def test_a_marginal_rise_is_the_mean_of_its_kind() -> None:
    from undersong.backends.tokens import TokenRow

    rows = [TokenRow(np.array([9, 1, 2]), 1), TokenRow(np.array([9, 2, 2]), 1)]
    got = marginal(rows, [np.array([1.0, 2.0], dtype=np.float32), np.array([4.0, 6.0], dtype=np.float32)])
    assert [one.tolist() for one in got] == [[1.0, 4.0], [4.0, 4.0]]


def test_parts_are_sources_where_ids_name_them() -> None:
    named = [Row(f"{'ab'[i % 2]}-{i}", CHAT, "1") for i in range(40)]
    assert [{row.id[0] for row in part} for part in cut(named, 3, 1)] == [{"a"}, {"b"}]
    parts = cut([Row(f"1-{i}", CHAT, "1") for i in range(40)], 3, 1)
    assert sorted(len(part) for part in parts) == [13, 13, 14]
    assert len({row.id for part in parts for row in part}) == 40
