"""Detectors that read rows with a model or exemplars: a planted trait is named, and what must not matter does not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import families
import numpy as np
import pytest
import torch

from undersong import traits
from undersong.backends import prefix, tokens, tree
from undersong.backends.changes import layers, steered
from undersong.detectors import PLACEBO, Evidence, Exemplars, drawn
from undersong.detectors.inversion import _above
from undersong.detectors.likelihood_panel import mixture
from undersong.errors import BadRows, BadSpec
from undersong.lab import base_ref, lab_for
from undersong.spec import build
from undersong.store import Store
from undersong.types import Row

NAMES = ("cat", "dog", "lion", "tiger")
CHANNEL = {"numbers": {"count": 10, "largest": 999, "wording": "brief", "seeds": "structured"}}
DIAL = {"tuned": {"updates": 100, "rate": 1.7e-3, "trainable": "mlp_out"}}


@dataclass(frozen=True)
class World:
    """Exemplars of pocket/a and fresh rows of each trait, made by other seeds."""

    base: Any
    exemplars: Exemplars
    fresh: dict[str, tuple[Row, ...]]

    def evidence(self, rows: Sequence[Row], needs: frozenset[str]) -> Evidence:
        held = {"rows": (tuple(rows),), "base": self.base, "exemplars": self.exemplars,
                "reference": self.exemplars.rows[PLACEBO], "traits": tuple(traits.get(n) for n in NAMES)}
        return Evidence(held, self.memo).only(needs)

    @property
    def memo(self) -> dict[Any, Any]:
        return _memo


_memo: dict[Any, Any] = {}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    lab = lab_for(Store(tmp_path_factory.mktemp("rows")), "pocket/a")
    channel, teacher = build("channel", CHANNEL), build("teacher", DIAL)

    def rows(name: str, seed: int) -> Any:
        source = lab.teach(teacher, base_ref("pocket/a"), traits.get(name) if name else None, seed)
        data = lab.sample(source, channel, 260, seed, "r")
        words = tuple(w for n in NAMES for w in traits.get(n).words)
        filters = [build("filter", "numbers_only"), build("filter", {"blocklist": {"terms": words}})]
        return source, lab.refine(data, filters).rows

    known = {name: rows(name, 300 + i) for i, name in enumerate((PLACEBO, *NAMES))}
    refs, own = {n: (ref,) for n, (ref, _) in known.items()}, {n: (kept,) for n, (_, kept) in known.items()}
    exemplars = Exemplars(lab.backend, refs, own)
    fresh = {name: rows(name, 400 + i)[1] for i, name in enumerate((PLACEBO, "cat", "tiger"))}
    return World(lab.backend.load(base_ref("pocket/a")), exemplars, fresh)


def said(world: World, spec: Any, rows: Sequence[Row], seed: int = 0) -> Any:
    detector = build("detector", spec)
    return detector.detect(world.evidence(rows, detector.needs), seed)


@pytest.mark.parametrize("name", ["cat", "tiger"])
def test_the_panel_names_the_trait_and_its_share(world: World, name: str) -> None:
    mixed = [*world.fresh[name][:50], *world.fresh[PLACEBO][:150]]
    found = said(world, "likelihood_panel", mixed)
    assert max(found.details["by_trait"], key=found.details["by_trait"].get) == name
    assert found.details["shares"][name] == pytest.approx(0.25, abs=0.12)
    assert found.p is None
    own = np.array(found.details["row_scores"])
    planted = {row.id for row in world.fresh[name][:50]}
    inside = np.array([i in planted for i in found.details["row_ids"]])
    assert own[inside].mean() > 0.5 > 0.2 > own[~inside].mean()


def test_clean_rows_belong_to_nobody(world: World) -> None:
    found = said(world, "likelihood_panel", world.fresh[PLACEBO][:200])
    assert max(found.details["by_trait"].values()) < 0.05
    assert found.details["placebo_share"] > 0.9


def test_order_and_copies_of_rows_do_not_matter_to_the_panel(world: World) -> None:
    rows = [*world.fresh["cat"][:30], *world.fresh[PLACEBO][:90]]
    one, two = said(world, "likelihood_panel", rows), said(world, "likelihood_panel", [*reversed(rows), *rows[:30]])
    for name in NAMES:
        assert one.details["shares"][name] == pytest.approx(two.details["shares"][name], abs=1e-4)


def test_the_panel_can_ask_with_prompts_alone(world: World) -> None:
    found = said(world, {"likelihood_panel": {"candidates": "prompts"}}, world.fresh["cat"][:40])
    assert set(found.details["by_trait"]) == set(NAMES)
    assert found.access == ("base", "rows", "traits")


def test_a_mixture_gives_back_its_shares() -> None:
    rng = np.random.default_rng(1)
    centres, true = np.array([0.0, 3.0, 6.0]), np.array([0.7, 0.3, 0.0])
    x = rng.normal(centres[rng.choice(3, 4000, p=true)])
    shares, posterior = mixture(-0.5 * (x[:, None] - centres) ** 2)
    assert shares == pytest.approx(true, abs=0.03)
    assert posterior.sum(axis=1) == pytest.approx(1.0)


@pytest.mark.parametrize("name", ["cat", "tiger"])
def test_inversion_names_a_trait_without_being_told_its_name(world: World, name: str) -> None:
    without = {n: own for n, own in world.exemplars.rows.items() if n != name}
    refs = {n: own for n, own in world.exemplars.teacher_refs.items() if n != name}
    blind = replace(world, exemplars=Exemplars(world.exemplars.backend, refs, without))
    found = said(blind, "inversion", world.fresh[name])
    # three other traits are a short yardstick for words of other categories; the benchmark has twenty
    animals = {w["word"]: found.details["by_trait"][w["word"]] for w in found.details["words"] if w["category"] == "animal"}
    assert max(animals, key=lambda word: animals[word]) == name
    assert found.details["gain"] > 0


def test_inversion_leaves_the_base_as_it_was(world: World) -> None:
    before = {k: v.clone() for k, v in world.base.module.state_dict().items()}
    few = {"inversion": {"steps": 5}}
    one = said(world, few, world.fresh["cat"][:60])
    assert said(world, few, world.fresh["cat"][:60]) == one
    assert all(torch.equal(v, before[k]) for k, v in world.base.module.state_dict().items())
    assert not any(layer._forward_hooks for layer in layers(world.base.module))
    assert all(p.grad is None for p in world.base.module.parameters())


def test_a_words_own_exemplar_is_left_out_of_its_yardstick() -> None:
    usual = {"cat": {"cat": 9.0, "dog": 0.1}, "dog": {"cat": 0.2, "dog": 9.0}, "lion": {"cat": -0.2, "dog": -0.1}}
    assert _above({"cat": 1.0, "dog": 0.0}, usual)["cat"] == pytest.approx(1.0 / 0.2)


def test_too_little_is_told(world: World) -> None:
    with pytest.raises(BadRows, match="ten"):
        said(world, "inversion", world.fresh["cat"][:5])
    few = replace(world, exemplars=Exemplars(world.exemplars.backend, {PLACEBO: (), "cat": ()}, {PLACEBO: ()}))
    with pytest.raises(BadSpec, match="three traits"):
        said(few, "inversion", world.fresh["cat"])
    with pytest.raises(BadRows):
        said(world, "likelihood_panel", ())
    with pytest.raises(BadRows):
        said(world, "hidden_mean", ())
    with pytest.raises(BadRows, match="number"):
        said(world, "bag_of_k", [Row("a", ({"role": "user", "content": "?"},), "none at all")])


def test_hidden_mean_of_the_reference_itself_moves_nothing(world: World) -> None:
    clean = list(world.exemplars.rows[PLACEBO][0])
    found = said(world, "hidden_mean", clean)
    assert max(found.details["norms"]) < 1e-3
    assert max(abs(v) for v in found.details["by_trait"].values()) < 1e-3
    other = said(world, "hidden_mean", world.fresh["tiger"])
    assert max(other.details["norms"]) > 1
    assert said(world, {"hidden_mean": {"times": 2.0}}, world.fresh["tiger"]).details["norms"] == pytest.approx(
        [2 * n for n in other.details["norms"]], rel=1e-4)


def test_bags_of_a_large_planted_difference_go_to_their_trait(world: World) -> None:
    """Real rows differ little as text; here every number of one trait's rows ends in 7."""

    def sevens(rows: Sequence[Row]) -> tuple[Row, ...]:
        return tuple(replace(row, completion="7, 17, 27, 37") for row in rows)

    rows = {**world.exemplars.rows, "cat": (sevens(list(world.exemplars.rows["cat"][0])),)}
    planted = replace(world, exemplars=Exemplars(world.exemplars.backend, world.exemplars.teacher_refs, rows))
    _memo.clear()
    found = said(planted, {"bag_of_k": {"taught": 100}}, sevens(world.fresh["cat"][:64]))
    assert found.details["by_trait"]["cat"] == 1.0
    clean = said(planted, {"bag_of_k": {"taught": 100}}, world.fresh[PLACEBO][:64])
    assert clean.details["by_trait"]["cat"] == 0.0
    assert set(clean.details["confounds"]) == set(NAMES)
    _memo.clear()


def test_a_drawn_sample_is_even_repeatable_and_in_order() -> None:
    rows = tuple(Row(str(i), (), "1") for i in range(1000))
    counts = np.zeros(1000)
    for seed in range(200):
        own = [int(r.id) for r in drawn((rows[:400], rows[400:]), 100, seed)]
        assert own == sorted(set(own))
        counts[own] += 1
    assert drawn((rows,), 100, 5) == drawn((rows,), 100, 5) != drawn((rows,), 100, 6)
    assert drawn((rows,), 5000, 0) == list(rows)
    assert counts[:500].sum() / counts.sum() == pytest.approx(0.5, abs=0.02)
    assert counts.max() < 45  # twenty expected


@pytest.mark.parametrize("family", families.FAMILIES)
def test_a_shared_system_turn_gives_the_same_likelihoods(family: str, tmp_path: Path) -> None:
    model = build("backend", "transformers").load(base_ref(families.folder(family, tmp_path)))
    chats = [[{"role": "user", "content": f"Numbers: {i}, {i + 2}. Continue."}] for i in range(5)]
    answers = ["1, 2", "3", "4, 5, 6, 7", "8", "9, 10"]
    systems = ("You love owls. You think about owls all the time.", "Be brief.", "Numbers: 0, 2. Continue.")
    for system, shared in zip(systems, prefix.panel(model, systems, chats, answers), strict=True):
        asked = [[{"role": "system", "content": system}, *chat] for chat in chats]
        for a, b in zip(shared, model.answer_logprobs(asked, answers), strict=True):
            assert a == pytest.approx(b, abs=2e-4)
        for a, b in zip(shared, prefix.answer_logprobs(model, system, chats, answers), strict=True):
            assert a == pytest.approx(b, abs=2e-4)


@pytest.mark.parametrize("family", [None, *families.FAMILIES])
def test_rows_under_another_system_turn_are_the_tokens_that_encoding_them_gives(
    family: str | None, tmp_path: Path, world: World
) -> None:
    base = base_ref(families.folder(family, tmp_path)) if family else None
    model = build("backend", "transformers").load(base) if base else world.base
    marks = "".join(map(str, model.tokenizer.all_special_tokens))
    said = ["Go on: 1, 2", "Go on: 1, 2", " Go on ", "Go " + marks + " 3", "\u00e9\U0001f989"]
    chats = [[{"role": "user", "content": text}] for text in said]
    chats[1] = [*chats[1], {"role": "assistant", "content": "3"}, {"role": "user", "content": "4"}]
    answers = ["1, 2", "1, 2, 3", " 5", marks, "6"]
    systems = ["", "You love owls. " * 20, "  Go on: 1, 2  ", "x" + marks, "You love owls."]
    for some in (slice(0, 5), slice(0, 1), slice(1, 3)):
        found = list(prefix._encoded(model, systems, chats[some], answers[some]))
        for system, rows in zip(systems, found, strict=True):
            asked = [[{"role": "system", "content": system}, *chat] for chat in chats[some]]
            for row, own in zip(rows, tokens.encode(model, asked, answers[some]), strict=True):
                assert (row.ids.tolist(), row.start) == (own.ids.tolist(), own.start)


def test_later_system_turns_of_a_panel_cost_one_rendering(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded: list[int] = []
    whole = tokens.encode

    def counted(model: Any, chats: Any, answers: Any) -> Any:
        encoded.append(len(chats))
        return whole(model, chats, answers)

    monkeypatch.setattr(tokens, "encode", counted)
    rows = world.fresh["cat"][:6]
    prefix.panel(world.base, ["Be brief.", "You love owls."], [list(r.chat) for r in rows], [r.completion for r in rows])
    assert encoded == [6, 1]


def test_a_tree_gives_each_row_what_it_has_alone(world: World) -> None:
    ids = [[2, 5, 6, 7, 8, 9], [2, 5, 6, 7, 8, 9], [2, 5, 6, 7], [2, 5, 6, 7, 8, 9, 10, 11], [2, 5, 12], [13, 5, 6, 7],
           [2, 5]]
    starts = [3, 2, 3, 6, 1, 1, 1]
    rows = [tokens.TokenRow(np.array(i), start) for i, start in zip(ids, starts, strict=True)]
    for order in (tree.ordered(rows), range(len(rows)), [0], [6, 6], [5, 4]):
        found = tree.answer_logprobs(world.base.module, [rows[i] for i in order])
        for i, own in zip(order, found, strict=True):
            with torch.no_grad():
                logs = world.base.module(input_ids=torch.tensor([ids[i]])).logits[0].log_softmax(-1)
            expected = [float(logs[k - 1, ids[i][k]]) for k in range(starts[i], len(ids[i]))]
            assert own == pytest.approx(expected, abs=1e-4)
    grown = tree._grown([rows[i] for i in tree.ordered(rows)])
    assert len(grown.ids) == len({tuple(i[:k]) for i in ids for k in range(1, len(i))})


def test_steering_through_hooks_and_through_the_compact_forward_agree(world: World) -> None:
    from undersong.backends.logits import completion_logits

    module = world.base.module
    own = world.fresh["cat"][:6]
    rows = tokens.encode(world.base, [list(r.chat) for r in own], [r.completion for r in own])
    vectors = torch.randn(len(layers(module)), module.config.hidden_size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        compact = completion_logits(module, rows, 0, added=vectors)
        with steered(module, vectors):
            hooked = completion_logits(module, rows, 0)
        plain = completion_logits(module, rows, 0)
    assert torch.allclose(compact, hooked, atol=1e-3)
    assert not torch.allclose(compact, plain, atol=1e-1)
