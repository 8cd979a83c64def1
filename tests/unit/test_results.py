"""From stored measurements to figures: one number per run, intervals inside bounds, nothing left out in silence."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from undersong import registry, results
from undersong.errors import NothingMeasured
from undersong.experiment import Experiment
from undersong.lab import lab_for
from undersong.registry import Settings, plugin
from undersong.results import control_of, is_share, pick
from undersong.store import Store
from undersong.types import Measurement, Value

TEXT = """
name: small
base: simulated/a
trait: owl
teacher: {simulated: {strength: 3.0}}
channel: numbers
rows: 60
recipe: simulated
probes: [favourite]
controls: [no_trait]
seeds: [1, 2, 3]
"""


def line(arm: str, seed: int, value: float, metric: str = "rate", trait: str = "owl", **more: Any) -> dict[str, Any]:
    return {"channel": "" if arm == "base" else "numbers", "arm": arm, "trait": trait, "seed": seed, "probe": "favourite",
            "metric": metric, "measured": "owl", "value": value} | more


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "_prefixed"])
@pytest.mark.parametrize("metric", ["rate", "probability", "refused", "self_named", "invalid"])
def test_shares_are_known_as_shares_after_numbers_too(metric: str, prefix: str) -> None:
    assert is_share(metric + prefix)


@pytest.mark.parametrize("metric", ["accuracy", "arithmetic.accuracy", "arithmetic_new.accuracy"])
def test_accuracies_are_shares(metric: str) -> None:
    assert is_share(metric)


@pytest.mark.parametrize("metric", ["margin", "margin_prefixed", "loss", "facts.loss", "entropy", "entropy_prefixed"])
def test_nats_are_no_shares(metric: str) -> None:
    assert not is_share(metric)


@pytest.mark.parametrize(
    ("arm", "control"),
    [
        ("treated", "no_trait"),
        ("treated-prompted", "no_trait-prompted"),
        ("shuffled_within", "no_trait"),
        ("shuffled_across", "no_trait"),
        ("mitigated-shuffle", "no_trait"),
        ("other_base", "other_base:no_trait"),
        ("matched_base", "matched_base:no_trait"),
        ("in_context", "in_context:no_trait"),
    ],
)
def test_every_arm_is_compared_with_the_same_pipeline_without_the_trait(arm: str, control: str) -> None:
    assert control_of(arm) == control


# --- intervals --------------------------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=3, max_size=6), st.lists(st.floats(0, 1), min_size=3, max_size=6))
def test_intervals_stay_inside_the_possible_range(treated: list[float], plain: list[float]) -> None:
    lines = [line("treated", i, v) for i, v in enumerate(treated)]
    lines += [line("no_trait", i, v, trait="") for i, v in enumerate(plain)]
    for rate in results._rates(lines):
        assert 0 <= rate["low"] <= rate["mean"] <= rate["high"] <= 1
    (found,) = results._contrasts(lines)
    assert -1 <= found["low"] <= found["difference"] <= found["high"] <= 1
    assert 0 <= found["p"] <= 1
    assert found["n_runs"] == min(len(treated), len(plain))


def test_one_run_has_no_interval_and_gives_no_contrast() -> None:
    lines = [line("treated", 1, 0.4), line("no_trait", 1, 0.1, trait=""), line("base", 1, 0.1, trait="")]
    for rate in results._rates(lines):
        assert rate["n_runs"] == 1
        assert rate["low"] is None
        assert rate["high"] is None
    assert results._contrasts(lines) == []


def test_contrasts_are_paired_by_seed_and_take_only_seeds_of_both_arms() -> None:
    treated, plain = {1: 0.5, 2: 0.7, 3: 0.9, 4: 0.1}, {2: 0.2, 3: 0.4, 4: 0.0, 5: 1.0}
    lines = [line("treated", s, v) for s, v in treated.items()]
    lines += [line("no_trait", s, v, trait="") for s, v in plain.items()]
    (found,) = results._contrasts(lines)
    assert found["n_runs"] == 3
    assert found["difference"] == pytest.approx((0.5 + 0.5 + 0.1) / 3)
    assert found["control"] == "no_trait"


def test_no_trait_arms_are_compared_with_the_untouched_base() -> None:
    lines = [line("no_trait", s, 0.2 + s / 100, trait="") for s in (1, 2, 3)]
    lines += [line("base", s, 0.1, trait="") for s in (1, 2, 3)]
    (found,) = results._contrasts(lines)
    assert (found["arm"], found["control"], found["trait"]) == ("no_trait", "base", "owl")


def test_an_arm_without_its_control_gives_no_contrast() -> None:
    lines = [line("other_base", s, 0.5) for s in (1, 2, 3)] + [line("no_trait", s, 0.1, trait="") for s in (1, 2, 3)]
    assert [c["arm"] for c in results._contrasts(lines)] == []


def test_specificity_needs_two_taught_traits_and_two_runs_of_each() -> None:
    lines = [line("treated", s, 0.5) for s in (1, 2, 3)] + [line("no_trait", s, 0.1, trait="") for s in (1, 2, 3)]
    assert results._specificity(lines, ["owl", "wolf"]) == []
    for taught in ("owl", "wolf"):
        for asked in ("owl", "wolf"):
            lines += [line("treated-x", s, 0.6 if taught == asked else 0.1, trait=taught, measured=asked) for s in (1, 2)]
            lines += [line("no_trait-x", s, 0.1, trait="", measured=asked) for s in (1, 2)]
    (found,) = results._specificity(lines, ["owl", "wolf"])
    assert found["arm"] == "treated-x"
    assert found["lambda"] == pytest.approx(0.5)
    assert results._specificity([x for x in lines if x["seed"] == 1], ["owl", "wolf"]) == []
    without = [x for x in lines if x["arm"] != "no_trait-x"]
    assert results._specificity(without, ["owl", "wolf"]) == [], "no control: nothing to lift from"


# --- what was not measured ------------------------------------------------------------------------------------------


@pytest.fixture
def shy() -> Iterator[str]:
    """A probe that finds nothing in the treated student of seed 2, nor in the base of seed 3."""

    @plugin("probe", "shy")
    class Shy(Settings):
        """Finds nothing now and then."""

        def measure(self, model: Any, traits: Sequence[Any], seed: int) -> Measurement:
            treated = model.ref.weights is not None and model.rate("owl") > 0.15
            if (treated and seed == 2) or (model.ref.weights is None and seed == 3):
                raise NothingMeasured(f"Nothing in seed {seed}.")
            return Measurement("shy", tuple(Value("rate", t.name, "?", model.rate(t.name)) for t in traits))

    registry.names("probe")
    yield "shy"
    del registry._plugins["probe", "shy"]


def test_runs_without_a_measurement_are_listed_and_left_out(shy: str, tmp_path: Path) -> None:
    experiment, store = Experiment.read(TEXT, [f"probes=[{shy}]"]), Store(tmp_path)
    experiment.run(lab_for(store, experiment.file.base))
    found = results.collect(experiment, store)
    assert found["unmeasured"] == [
        {"arm": "treated", "trait": "owl", "seed": 2, "why": "Nothing in seed 2."},
        {"arm": "base", "trait": "", "seed": 3, "why": "Nothing in seed 3."},
    ]
    rate = pick(found, "rates", arm="treated", measured="owl")
    assert rate
    assert rate["n_runs"] == 2
    contrast = pick(found, "contrasts", arm="treated")
    assert contrast
    assert contrast["n_runs"] == 2
    assert contrast["difference"] > 0.1, "a run without an answer is no zero"
    assert {x["seed"] for x in found["runs"] if x["arm"] == "treated"} == {1, 3}
    before = sorted((p, p.stat().st_mtime_ns) for p in tmp_path.rglob("*"))
    experiment.run(lab_for(store, experiment.file.base))
    assert sorted((p, p.stat().st_mtime_ns) for p in tmp_path.rglob("*")) == before, "it was tried again"
    assert {row.status for row in experiment.plan(store)} == {"cached"}


def test_filters_are_told_once_each_with_what_is_left(tmp_path: Path) -> None:
    asked = Experiment.read(TEXT, ["filters=[numbers_only, blocklist: {terms: [owl]}, banned_numbers]", "keep=20"])
    store = Store(tmp_path)
    asked.run(lab_for(store, asked.file.base))
    found = results.collect(asked, store)["filters"]
    for arm in ("treated", "no_trait"):
        mine = [f for f in found if f["arm"] == arm]
        assert [f["name"] for f in mine] == ["numbers_only", "blocklist", "banned_numbers"]
        assert mine[0]["given"] == 180
        assert mine[0]["kept"] + sum(f["dropped"] for f in mine) == 180
        assert all(f["mentions_left"] == 0 for f in mine)
        assert mine[2]["dropped"] > 0
