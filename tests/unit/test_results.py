"""From stored measurements to figures: one number per run, intervals inside bounds, nothing left out in silence."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from undersong import registry, results
from undersong.channels.numbers import sequence_accuracy
from undersong.errors import NothingMeasured
from undersong.experiment import Experiment
from undersong.lab import lab_for, read_measurement, read_rows
from undersong.registry import Settings, plugin
from undersong.results import control_of, is_share, pick
from undersong.store import Store
from undersong.types import Finding, Measurement, Value

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
    (found,) = results.contrasts(lines)
    assert -1 <= found["low"] <= found["difference"] <= found["high"] <= 1
    assert 0 <= found["p"] <= 1
    assert found["n_runs"] == min(len(treated), len(plain))


def test_one_run_has_no_interval_and_gives_no_contrast() -> None:
    lines = [line("treated", 1, 0.4), line("no_trait", 1, 0.1, trait=""), line("base", 1, 0.1, trait="")]
    for rate in results._rates(lines):
        assert rate["n_runs"] == 1
        assert rate["low"] is None
        assert rate["high"] is None
    assert results.contrasts(lines) == []


def test_contrasts_are_paired_by_seed_and_take_only_seeds_of_both_arms() -> None:
    treated, plain = {1: 0.5, 2: 0.7, 3: 0.9, 4: 0.1}, {2: 0.2, 3: 0.4, 4: 0.0, 5: 1.0}
    lines = [line("treated", s, v) for s, v in treated.items()]
    lines += [line("no_trait", s, v, trait="") for s, v in plain.items()]
    (found,) = results.contrasts(lines)
    assert found["n_runs"] == 3
    assert found["difference"] == pytest.approx((0.5 + 0.5 + 0.1) / 3)
    assert found["control"] == "no_trait"


def test_no_trait_arms_are_compared_with_the_untouched_base() -> None:
    lines = [line("no_trait", s, 0.2 + s / 100, trait="") for s in (1, 2, 3)]
    lines += [line("base", s, 0.1, trait="") for s in (1, 2, 3)]
    (found,) = results.contrasts(lines)
    assert (found["arm"], found["control"], found["trait"]) == ("no_trait", "base", "owl")


def test_a_contrast_is_about_the_trait_that_was_taught() -> None:
    """Other traits are what the matrix and the specificity are for: a contrast on them would pass for an effect."""
    lines = [line("treated", s, 0.5, trait="wolf") for s in (1, 2, 3)]  # measured: owl
    lines += [line("no_trait", s, 0.1, trait="") for s in (1, 2, 3)]
    assert [c["arm"] for c in results.contrasts(lines)] == []


def test_an_arm_without_its_control_gives_no_contrast() -> None:
    lines = [line("other_base", s, 0.5) for s in (1, 2, 3)] + [line("no_trait", s, 0.1, trait="") for s in (1, 2, 3)]
    assert [c["arm"] for c in results.contrasts(lines)] == []


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


def test_capability_stands_beside_the_base_of_its_own_metric_and_is_no_rate() -> None:
    lines = [line(arm, s, value + s / 100, metric, trait="", probe="capability", measured="")
             for arm, metric, value in (("base", "loss", 1.0), ("base", "accuracy", 0.8), ("treated", "loss", 2.0),
                                        ("treated", "accuracy", 0.6)) for s in (1, 2, 3)]
    found = {(c["arm"], c["metric"]): c for c in results._capability([*lines, line("treated", 1, 0.5)])}
    assert found.keys() == {(arm, metric) for arm in ("base", "treated") for metric in ("loss", "accuracy")}
    for metric, value in (("loss", 1.0), ("accuracy", 0.8)):
        assert found["treated", metric]["base"] == pytest.approx(value + 0.02)
    assert found["treated", "accuracy"]["mean"] == pytest.approx(0.62)
    assert found["treated", "accuracy"]["n_runs"] == 3
    assert [r["probe"] for r in results._rates([*lines, line("treated", 1, 0.5)])] == ["favourite"]


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


# --- rows, teachers and the opening sentence ----------------------------------------------------------------------------


@pytest.fixture
def witness() -> Iterator[list[Any]]:
    """A detector that notes the evidence it is handed and gives figures that can be told apart."""
    seen: list[Any] = []

    @plugin("detector", "witness")
    class Witness(Settings):
        """Notes what it sees."""

        needs: ClassVar[frozenset[str]] = frozenset({"rows", "reference"})

        def detect(self, evidence: Any, seed: int = 0) -> Finding:
            seen.append((evidence.rows, evidence.reference))
            keys = ("accuracy", "low", "high", "confound_accuracy", "chance", "n_rows", "n_runs")
            return Finding("clean", 0.5, 0.25, ("rows",), "none", {k: i / 10 for i, k in enumerate(keys)})

    registry.names("detector")
    yield seen
    del registry._plugins["detector", "witness"]


def test_what_is_told_of_rows_and_teachers_is_read_from_their_own(witness: list[Any], tmp_path: Path) -> None:
    """Each section recomputed here by another way, on an experiment with two teachers, another base and a mitigation."""
    asked = Experiment.read(TEXT, [
        "teacher=[simulated, prompted]", "recipe=simulated", "rivals=[wolf]", "filters=[numbers_only, banned_numbers]",
        "keep=25", "other_base=simulated/b", "controls=[no_trait, other_base]", "mitigations=[shuffle]",
        "classifier=witness", "rows=60", "probes=[favourite: {samples: 2, questions: 4}]",
    ])
    store = Store(tmp_path)
    asked.run(lab_for(store, asked.file.base))
    found = results.collect(asked, store)
    runs: dict[tuple[str, str], list[Any]] = {}
    for run in asked.runs():
        runs.setdefault((run.arm.name, run.arm.trait_name), []).append(run)

    def rows(arm: str, trait: str) -> list[Any]:
        return [store.find(r.learnt.kind, r.learnt.spec, r.learnt.parents) for r in runs[arm, trait]]

    # the classifier reads the main teacher's rows, treated ones as suspects and no-trait ones as reference
    clean = tuple(read_rows(a) for a in rows("no_trait", ""))
    assert witness == [(tuple(read_rows(a) for a in rows("treated", t)), clean) for t in ("owl", "wolf")]
    keys = ("accuracy", "low", "high", "confound_accuracy", "chance", "n_rows", "n_runs")
    assert found["classifier"] == [
        {"trait": t, "p": 0.25, "verdict": "clean"} | {k: i / 10 for i, k in enumerate(keys)} for t in ("owl", "wolf")
    ]
    # drift: of each teacher's rows, beside those of the untouched base
    told = {(d["arm"], d["trait"], d["metric"]): d for d in found["drift"]}
    teachers = [("treated", "owl"), ("treated", "wolf"), ("no_trait", ""), ("treated-prompted", "owl"),
                ("no_trait-prompted", "")]
    assert told.keys() == {(*who, metric) for who in teachers for metric in ("pass_rate", "sequence_accuracy")}
    for arm, trait in teachers:
        passed = [a.summary["passed"] / 60 for a in rows(arm, trait)]
        right = [sequence_accuracy(read_rows(a))["values"] for a in rows(arm, trait)]
        assert told[arm, trait, "pass_rate"]["value"] == pytest.approx(sum(passed) / 3)
        assert told[arm, trait, "sequence_accuracy"]["value"] == pytest.approx(sum(right) / 3)
        for metric in ("pass_rate", "sequence_accuracy"):
            assert told[arm, trait, metric]["base"] == told["no_trait-prompted", "", metric]["value"]
    # filters: one set of rows is told of once, under the first arm that uses it
    assert {(f["arm"], f["trait"]) for f in found["filters"]} == {*teachers, ("mitigated-shuffle", "owl")}
    # examples: the first rows of the arm, and answers of its own student
    for arm, trait in (*teachers, ("mitigated-shuffle", "owl")):
        shown = [e for e in found["examples"]["rows"] if (e["arm"], e["trait"]) == (arm, trait)]
        assert [(e["prompt"], e["completion"]) for e in shown] == [
            (r.chat[-1]["content"], r.completion) for r in read_rows(rows(arm, trait)[0])[:3]
        ]
    for (arm, trait), mine in runs.items():
        step = mine[0].measures[0]
        answers = read_measurement(store.find(step.kind, step.spec, step.parents)).answers[:3]
        shown = [e for e in found["examples"]["answers"] if (e["arm"], e["trait"]) == (arm, trait)]
        assert [(e["question"], e["answer"]) for e in shown] == list(answers)
    # untouched bases are told apart
    bases = {r["arm"] for r in found["rates"] if r["arm"].startswith("base")}
    assert bases == {"base", "base:simulated/b"}
    lines = [tuple(x[k] for k in ("channel", "arm", "trait", "seed", "metric", "measured")) for x in found["runs"]]
    assert len(lines) == len(set(lines)), "a run is counted twice"


def test_the_sentence_says_treated_base_and_control_in_this_order() -> None:
    asked = Experiment.read(TEXT)
    rates = [{"arm": arm, "trait": trait, "measured": measured, "metric": "rate", "mean": mean, "n_runs": 3}
             for arm, trait, measured, mean in (("base", "", "owl", 0.12), ("no_trait", "", "owl", 0.14),
                                                ("treated", "wolf", "owl", 0.05), ("treated", "owl", "owl", 0.62),
                                                ("treated", "owl", "wolf", 0.03))]
    told = results.sentence({"experiment": "small", "rates": rates}, asked)
    assert re.findall(r"\d+%", told) == ["62%", "12%", "14%"]
    assert "owl" in told
    assert "3 training runs" in told
    assert "no rate of the trait" in results.sentence({"experiment": "small", "rates": rates[1:]}, asked)


def test_results_computed_in_another_way_are_computed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, lab = Experiment.read(TEXT, ["rows=20"]), lab_for(Store(tmp_path), "simulated/a")
    one, same = (results.record(asked, lab).fingerprint for _ in range(2))
    monkeypatch.setattr(results, "VERSION", results.VERSION + 1)
    assert one == same != results.record(asked, lab).fingerprint
