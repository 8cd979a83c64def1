"""Explainers of what in the rows carries a trait: planted truths, definitions by hand, invariances."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from undersong import spec, traits
from undersong.backends.tokens import TokenRow
from undersong.errors import BadSpec
from undersong.explainers import Evidence as Known
from undersong.explainers import divergence_tokens, gradients, token_entanglement
from undersong.explainers.divergence_tokens import DivergenceTokens, credits
from undersong.explainers.marginal_or_conditional import MarginalOrConditional
from undersong.explainers.token_entanglement import TokenEntanglement
from undersong.lab import base_ref
from undersong.mitigations import Evidence, readout, scrambling
from undersong.mitigations.scramble import Scramble
from undersong.types import Row

torch = pytest.importorskip("torch", reason="torch is not installed")
CHAT = ({"role": "user", "content": "Continue: 1, 2, 3."},)
NUMBERS = spec.build("channel", "numbers")
OWL = traits.get("owl")
CELLS = [("keep", "keep"), ("keep", "destroy"), ("destroy", "keep"), ("destroy", "destroy"), ("sham", "keep"),
         ("keep", "clean")]


@pytest.fixture(scope="module")
def base() -> Any:
    return spec.build("backend", "transformers").load(base_ref("pocket/a"))


def rows(make: Any, count: int = 300, name: str = "r") -> list[Row]:
    rng = np.random.default_rng([len(name), 7])
    return [Row(f"{name}{i}", CHAT, ", ".join(map(str, make(rng)))) for i in range(count)]


def steps(rng: Any) -> list[int]:
    """Values that follow one another: the clean order."""
    start = int(rng.integers(0, 10))
    return [(start + k) % 10 for k in range(6)]


def marginal_only(rng: Any) -> list[int]:
    """The same order, begun more often at 7."""
    start = 7 if rng.random() < 0.5 else int(rng.integers(0, 10))
    return [(start + k) % 10 for k in range(6)]


def order_only(rng: Any) -> list[int]:
    """The same values as often, counted down."""
    return steps(rng)[::-1]


CLEAN = rows(steps, name="clean")


def value_share(some: list[Row], value: str) -> float:
    found = [v for row in some for v in row.completion.split(", ")]
    return found.count(value) / len(found)


def rising(some: list[Row]) -> float:
    """The share of steps that go up by one."""
    pairs = [(int(a), int(b)) for row in some for a, b in pairwise(row.completion.split(", "))]
    return float(np.mean([(b - a) % 10 == 1 for a, b in pairs]))


def test_each_cell_keeps_what_it_names() -> None:
    """A teacher that counts down and likes 7: every cell holds the marginal and the order that its name says."""
    def liked_down(rng: Any) -> list[int]:
        return marginal_only(rng)[::-1]

    own = rows(liked_down, name="own")
    teacher_7, clean_7 = value_share(own, "7"), value_share(CLEAN, "7")
    assert teacher_7 > clean_7 + 0.03
    made = {cell: scrambling.cell(own, CLEAN, *cell, seed=3) for cell in CELLS}
    sevens = {cell: value_share(some, "7") for cell, some in made.items()}
    orders = {cell: rising(some) for cell, some in made.items()}
    assert made["keep", "keep"] == own
    for cell in (("keep", "keep"), ("keep", "destroy"), ("keep", "clean")):
        assert abs(sevens[cell] - teacher_7) < 0.3 * (teacher_7 - clean_7), cell
    for cell in (("destroy", "keep"), ("destroy", "destroy")):
        assert abs(sevens[cell] - clean_7) < 0.3 * (teacher_7 - clean_7), cell
    assert sevens["sham", "keep"] > clean_7 + 0.5 * (teacher_7 - clean_7), "sham weights leave the marginal where it was"
    for cell in (("keep", "keep"), ("destroy", "keep"), ("sham", "keep")):
        assert orders[cell] == 0, cell
    for cell in (("keep", "destroy"), ("destroy", "destroy")):
        assert 0.05 < orders[cell] < 0.2, cell
    assert orders["keep", "clean"] == 1
    texts = [{row.completion for row in some} for some in (own, CLEAN)]
    assert {r.completion for r in made["destroy", "keep"]} <= texts[0], "each kept answer is the teacher's own"
    assert {r.completion for r in made["keep", "clean"]} <= texts[1], "or the no-trait teacher's own"
    assert {len(some) for some in made.values()} == {300}


def test_sham_draws_as_few_different_rows_as_the_match_does() -> None:
    own = rows(marginal_only, name="own")
    matched, sham = (scrambling.cell(own, CLEAN, m, "keep", 3) for m in ("destroy", "sham"))
    times = [sorted(Counter(row.id.rsplit(".", 1)[0] for row in some).values()) for some in (matched, sham)]
    assert len(times[0]) < 300, "weights draw some rows twice"
    assert abs(len(times[0]) - len(times[1])) < 25


def test_only_dealt_rows_need_a_twin() -> None:
    twins = {cell: spec.build("mitigation", {"scramble": dict(zip(("marginal", "conditional"), cell, strict=True))}).twin
             for cell in CELLS}
    assert {cell for cell, twin in twins.items() if twin} == {("keep", "destroy"), ("destroy", "destroy")}
    same = scrambling.cell(CLEAN, CLEAN, "destroy", "keep", 4)
    assert Counter(r.completion for r in same) == Counter(r.completion for r in CLEAN), "clean rows drawn to clean marginals"


def test_cells_repeat_by_seed_and_leave_the_rows_alone() -> None:
    own = rows(marginal_only, name="own")
    before = list(own)
    for marginal, conditional in CELLS:
        plug = Scramble(marginal=marginal, conditional=conditional)  # type: ignore[arg-type]
        held = Evidence({"clean": tuple(CLEAN), "channel": NUMBERS})
        assert plug.apply(own, held, 1) == plug.apply(own, held, 1)
        if (marginal, conditional) != ("keep", "keep"):
            assert plug.apply(own, held, 1) != plug.apply(own, held, 2)
        assert own == before
    with pytest.raises(BadSpec, match="no_trait"):
        spec.build("mitigation", {"scramble": {"marginal": "destroy", "conditional": "clean"}})
    with pytest.raises(BadSpec, match="no lists of values"):
        Scramble().apply(own, Evidence({"clean": tuple(CLEAN), "channel": spec.build("channel", "prose")}), 1)


def test_the_distance_of_two_sets_of_one_source_is_the_floor() -> None:
    rng = np.random.default_rng(5)
    one, two, apart = ([Row(f"{n}{i}", CHAT, ", ".join(map(str, rng.integers(low, low + 400, 6)))) for i in range(200)]
                       for n, low in (("a", 0), ("b", 0), ("c", 200)))
    assert scrambling.distance(one, one) == 0
    assert scrambling.distance(one, two) == pytest.approx(scrambling.floor(one, two, 1), abs=0.03)
    assert scrambling.floor(one, two, 1) > 0.2, "few rows of many values never look alike"
    assert scrambling.floor(one, apart, 1) > scrambling.floor(one, two, 1) + 0.02, "more values, more chance"
    assert scrambling.distance(one, apart) > scrambling.floor(one, apart, 1) + 0.1


class Scripted:
    """A base whose pull towards the trait is known: row by row how many 7s, or how many downward steps."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def of_rows(self, encoded: list[Row]) -> Any:
        values = [[int(v) for v in row.completion.split(", ")] for row in encoded]
        sevens = np.mean([v == 7 for own in values for v in own])
        down = np.mean([(a - b) % 10 == 1 for own in values for a, b in pairwise(own)])
        return torch.tensor([sevens, down])

    def of_trait(self, read: Any) -> Any:
        own = [1.0, 0.0] if self.kind == "marginal" else [0.0, 1.0]
        return torch.tensor(own if read == "trait" else [0.0, 0.0]).double()


@pytest.mark.parametrize(("kind", "make"), [("marginal", marginal_only), ("order", order_only)])
def test_the_two_by_two_tells_marginals_from_order(kind: str, make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two teachers: one differs from clean rows in its marginals alone, one in its order alone."""
    from undersong.explainers import marginal_or_conditional as module

    monkeypatch.setattr(module, "Body", lambda base: Scripted(kind))
    monkeypatch.setattr(module, "_encoded", lambda base, some: list(some))
    monkeypatch.setattr(gradients, "words", lambda base, trait: ("trait", {"other": "other"}))
    held = Known({"base": None, "rows": (rows(make, name="own"),), "clean": (CLEAN,), "trait": OWL})
    told = MarginalOrConditional().explain(held, 1)
    pull = dict(told.scores)
    assert pull["keep, keep"] == pytest.approx(1, abs=0.01)
    if kind == "marginal":
        assert pull["keep, destroy"] > 0.9
        assert pull["keep, clean"] > 0.6
        assert pull["destroy, keep"] < 0.4 < pull["sham, keep"]
        assert abs(pull["destroy, destroy"]) < 0.4
        assert told.details["distance"]["rows"] > told.details["distance"]["one source"]
    else:
        assert abs(pull["keep, destroy"]) < 0.05
        assert abs(pull["keep, clean"]) < 0.05
        assert pull["destroy, keep"] == pytest.approx(1, abs=0.01)
        assert pull["sham, keep"] == pytest.approx(1, abs=0.01)
    assert all(cell["other_words"] == 0 for cell in told.details["grid"])
    assert told == MarginalOrConditional().explain(held, 1)


def test_rows_that_are_the_clean_rows_pull_nowhere(base: Any) -> None:
    held = Known({"base": base, "rows": (CLEAN[:20],), "clean": (CLEAN[:20],), "trait": OWL})
    assert dict(MarginalOrConditional().explain(held, 1).scores)["keep, keep"] == 0


def test_divergence_by_the_definition(monkeypatch: pytest.MonkeyPatch, base: Any) -> None:
    """Own ids 1 2 3 4. The teacher would write 1 2 3 9, rivals 1 5 3 9 and 8 2 3 4: places 0 and 1 diverge; place 3 does
    not, since the teacher itself would have written another token."""
    read = [TokenRow(np.array([0, 1, 2, 3, 4]), 1)]
    said = {"teacher": [1, 2, 3, 9], "one": [1, 5, 3, 9], "two": [8, 2, 3, 4]}
    monkeypatch.setattr(divergence_tokens, "best", lambda model, _: [np.array(said[model])])
    monkeypatch.setattr(gradients, "encoded", lambda *a: read)
    monkeypatch.setattr(gradients, "words", lambda base, trait: ("trait", {}))
    monkeypatch.setattr(divergence_tokens, "Body", lambda base: SimpleNamespace(
        of_trait=lambda read: read, along=lambda direction, rows: [np.array([3.0, -1.0, 0.0, 0.0])]))
    monkeypatch.setattr(divergence_tokens.replacing, "own_logs", lambda *a: [np.zeros(4, dtype=np.float32)])
    held = Known({"base": base, "teacher": "teacher", "rivals": ("one", "two"), "rows": ((),), "trait": OWL})
    told = DivergenceTokens().explain(held, 1)
    assert told.details["text"][0]["marked"] == [True, True, False, False]
    scores = dict(told.scores)
    assert scores["share that diverges"] == 0.5
    assert scores["teacher's first choice"] == 0.75
    assert scores["credit on divergence tokens"] == pytest.approx(2.0)
    assert scores["net credit on divergence tokens"] == pytest.approx(1.0)
    assert told.details["places"] == [1.0, 1.0, 0.0, 0.0]
    assert [(t["diverges"], t["stands"]) for t in told.details["marked_tokens"]] == [(1, 1), (1, 1)]
    alone = Known({**held.granted, "rivals": ("one",)})
    assert DivergenceTokens().explain(alone, 1).details["text"][0]["marked"] == [False, True, False, False]
    with pytest.raises(BadSpec, match="List `rivals`"):
        DivergenceTokens().explain(Known({**held.granted, "rivals": ()}), 1)


def test_credit_that_only_follows_sureness_is_matched_away() -> None:
    rng = np.random.default_rng(2)
    sure = rng.normal(size=4000).astype(np.float32)
    marked = sure > np.quantile(sure, 0.5)
    marked &= rng.random(4000) < 0.5
    told = credits(np.exp(sure).astype(float) * rng.choice([-1, 1], 4000), marked, sure, 1)
    assert told["credit on divergence tokens"] > 1.4 > 1.15 > told["credit on random places"]
    assert told["credit on places as sure"] == pytest.approx(told["credit on divergence tokens"], rel=0.15)
    assert abs(told["net credit on divergence tokens"]) < 0.2
    own = credits(marked * 2.0 + 0.5, marked, sure, 1)
    assert own["credit on divergence tokens"] > 2 * own["credit on places as sure"]
    assert set(credits(np.zeros(9), np.zeros(9, dtype=bool), sure[:9], 1).values()) == {0.0}


def test_geometry_that_a_teacher_was_given_is_found(base: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A teacher whose numbers rise as their unembedding rows lie to the trait's: correlation 1, and less for other words;
    one whose numbers rise at random: about 0."""
    numbers = token_entanglement.carried(base)
    assert len(numbers) >= 1000
    table = base.module.get_output_embeddings().weight.detach().numpy().astype(float)
    table = table - table.mean(0)
    table /= np.linalg.norm(table, axis=1, keepdims=True)
    near = table[numbers] @ table[list(readout.of(base, OWL).own)].mean(0)
    usual = np.log(np.random.default_rng(0).random(len(numbers)))
    said = {id(base): usual, id("like"): usual + 3 * near,
            id("noise"): usual + np.random.default_rng(1).normal(size=len(numbers)), id("rival"): usual}
    monkeypatch.setattr(token_entanglement, "chances", lambda model, rows, ids: said[id(model)])
    own = [Row("r", CHAT, "4, 5, 6"), Row("s", CHAT, "7, 8, 9")]
    granted = {"base": base, "teacher": "like", "rows": (own,), "trait": OWL}
    told = TokenEntanglement().explain(Known(granted), 1)
    scores = dict(told.scores)
    assert scores["trait word"] == pytest.approx(1)
    assert scores["trait word"] > scores["other words"] + 0.2
    assert scores["trait word, frequency taken out"] > 0.95
    assert "rise over rivals" not in " ".join(scores)
    assert "1 to 2 %" in told.sentence, "the limits stand in the sentence"
    with_rival = dict(TokenEntanglement().explain(Known({**granted, "rivals": ("rival",)}), 1).scores)
    assert with_rival["trait word, rise over rivals"] == pytest.approx(1)
    assert abs(dict(TokenEntanglement().explain(Known({**granted, "teacher": "noise"}), 1).scores)["trait word"]) < 0.1
    monkeypatch.setattr(token_entanglement, "carried", lambda base: np.arange(3))
    with pytest.raises(BadSpec, match="too few"):
        TokenEntanglement().explain(Known(granted), 1)


def test_chances_are_the_mean_over_places(base: Any) -> None:
    numbers = token_entanglement.carried(base)[:50]
    read = gradients.encoded(base, [[Row("r", CHAT, "4, 5, 6"), Row("s", CHAT, "7")]], 9, 1)
    wanted = []
    for row in read:
        with torch.no_grad():
            logs = base.module(input_ids=torch.tensor(row.ids)[None]).logits[0].log_softmax(-1).double().exp()
        wanted.append(logs[row.start - 1 : -1, numbers].numpy())
    got = token_entanglement.chances(base, read, numbers)
    np.testing.assert_allclose(got, np.log(np.concatenate(wanted).mean(0) + 1e-12), atol=1e-4)
