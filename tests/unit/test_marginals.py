"""A planted difference of values is found, a difference of form is not; duplicates and shared prompts raise no alarm."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import pytest

from undersong import spec
from undersong.backends import Backend
from undersong.detectors import PLACEBO, Evidence, Exemplars
from undersong.detectors.canonical import (
    CONFOUNDS,
    MARGINALS,
    confound_features,
    fresh_values,
    marginal_features,
    numbers_of,
    value_features,
)
from undersong.detectors.marginals import CAUTION, _Sketch
from undersong.errors import BadRows
from undersong.types import Row


def run(
    seed: int, n: int = 150, low: float = 0.0, prompts: int | None = None, separator: str = ", "
) -> tuple[Row, ...]:
    """Rows whose values lie about their prompt's; `low` of them are halved. Rows share `prompts` prompts, or none."""
    rng = np.random.default_rng(seed)
    out = []
    for i in range(n):
        asked = int(rng.integers(prompts)) if prompts else seed * 100_000 + i
        start = int(np.random.default_rng([7, asked]).integers(1000))
        values = (start + rng.integers(-50, 50, int(rng.integers(6, 11)))) % 1000
        values = np.where(rng.random(len(values)) < low, values // 2, values)
        chat = ({"role": "user", "content": f"Question {asked}: {start}"},)
        out.append(Row(str(i), chat, separator.join(map(str, values))))
    return tuple(out)


def detect(suspected: Sequence[Row], reference: Sequence[Row], seed: int = 0, **settings: Any) -> Any:
    evidence = Evidence({"rows": (suspected,), "reference": (reference,)})
    return spec.build("detector", {"marginals": {"draws": 199, **settings}}).detect(evidence, seed)


def written(*texts: str) -> list[Row]:
    return [Row(str(i), (), text) for i, text in enumerate(texts)]


def plain_features(text: str) -> tuple[list[float], list[float]]:
    """What `value_features` and `confound_features` should hold, number by number: the former code of row_classifier."""
    out = np.zeros(1030)
    texts = [t.lstrip("0")[:9] or "0" for t in re.findall(r"[0-9]+", text)]
    for t in texts:
        for column in ([int(t)] if len(t) <= 3 else []) + [1000 + int(t[0]), 1010 + int(t[-1])]:
            out[column] += 1 / len(texts)
    if texts:
        values = np.array([min(int(t), 10_000) for t in texts[:10]]) / 1000
        out[1020:] = values.mean()
        out[1020 : 1020 + len(values)] = values
    rest = re.sub(r"[0-9]+", "", text)
    counts = [sum(rest.count(c) for c in group) for group in (",", ";", " ", "\n", "()[]", ".")]
    return out.tolist(), [len(texts), len(rest), *counts, len(rest) - sum(counts)]


def test_features_of_a_batch_are_those_of_each_text_bit_for_bit() -> None:
    rng = random.Random(0)
    odd = ["000", "007", "9" * 30, "0" * 20 + "12", "1234567890123"]
    marks = [", ", ";", " ", "\n", "[", ")", ".", "é", "€", "\x00", "٣", "\ud800", "-"]
    texts = ["", "owl", "\x00"] + [
        "".join(rng.choice([*odd, *(str(rng.randrange(1000)) for _ in range(9))]) + rng.choice(marks)
                for _ in range(rng.randrange(14)))
        for _ in range(500)
    ]
    rows = written(*texts)
    assert value_features(rows).tolist() == [plain_features(text)[0] for text in texts]
    assert confound_features(rows).tolist() == [plain_features(text)[1] for text in texts]


def test_marginal_features_by_hand() -> None:
    named = dict(zip(MARGINALS, marginal_features(numbers_of(["7, 120; 120 1500"]))[0], strict=True))
    rows = marginal_features(numbers_of(["7, 120; 120 1500", "[007.120.0120\n1500]", ""]))
    assert (rows[0] == rows[1]).all()
    assert not rows[2].any()
    assert rows.shape == (3, len(MARGINALS))
    expected = {
        "values from 0 to 49": 0.25, "values from 100 to 149": 0.5, "values of 1000 and more": 0.25, "first digit 1": 0.75,
        "first digit 7": 0.25, "last digit 0": 0.75, "second digit 2": 0.5, "second digit 5": 0.25,
        "numbers of one digit": 0.25, "numbers of two digits": 0, "numbers of three digits": 0.5,
        "value at place 1": 0.007, "value at place 4": 1.5,
        "value at place 9": 1.747 / 4, "value of all places": 1.747 / 4, "step to the next value": 1.493 / 3,
        "size of the step to the next value": 1.493 / 3, "rising steps": 2 / 3, "values that repeat in a row": 0.25,
        "spread of values in a row": np.std([0.007, 0.12, 0.12, 1.5]),
    }
    assert {name: named[name] for name in expected} == pytest.approx(expected)


def test_fresh_values_are_those_that_the_prompt_does_not_hold() -> None:
    chat = ({"role": "user", "content": "Go on: 5, 007"},)
    found = fresh_values([Row("a", chat, "5, 8, 7, 9"), Row("b", (), "5 5")])
    assert found[0, [5, 7, 8, 9]].tolist() == [0, 0, 0.25, 0.25]
    assert found[1, 5] == 1


def test_planted_values_are_found_with_words_and_a_caution() -> None:
    found = detect(run(1, 200, low=0.5), run(2, 200))
    assert (found.verdict, found.p, found.access) == ("found", 1 / 200, ("reference", "rows"))
    details = found.details
    assert found.statistic == max(map(abs, details["z"].values())) == details["by_trait"][""] > details["z_alpha"]
    name, z, mine, theirs = details["largest"][0]
    assert abs(z) == found.statistic
    assert (z > 0) == (mine > theirs)
    assert details["z"]["value of all places"] < -2
    assert (details["n_suspected"], details["n_reference"], details["n_units"]) == (200, 200, [200, 200])
    assert name in details["sentence"]
    assert CAUTION in details["sentence"]
    assert details["confound_p"] > 0.05


def test_a_difference_of_form_shows_in_the_confounds_alone() -> None:
    plain, other = detect(run(1), run(2)), detect(run(1, separator=" ; "), run(2))
    for key in ("z", "largest", "z_alpha"):
        assert plain.details[key] == other.details[key]
    assert (plain.p, plain.verdict) == (other.p, "clean")
    assert other.details["confound_p"] == 1 / 200 < plain.details["confound_p"]
    assert other.details["confound_largest"][0][0] in CONFOUNDS
    assert "separators differ too" in other.details["sentence"]


def test_the_order_of_rows_and_their_division_into_runs_change_nothing() -> None:
    one, other = run(1, 5000, low=0.1), run(2, 300)
    backwards = detect(one[::-1], other[::-1])
    assert detect(one, other) == backwards
    evidence = Evidence({"rows": (one[:200], one[200:]), "reference": (other,)})
    assert spec.build("detector", {"marginals": {"draws": 199}}).detect(evidence, 0) == backwards


def test_the_seed_draws_and_the_draws_alone() -> None:
    one, again, other = (detect(run(1), run(2), seed) for seed in (0, 0, 1))
    assert one == again
    assert one.details["z"] == other.details["z"]
    assert one.details["z_alpha"] != other.details["z_alpha"]


def alarms(pairs: Sequence[tuple[Sequence[Row], Sequence[Row]]]) -> tuple[float, float]:
    """The share of pairs with p at or below 0.05, and that of their confounds."""
    found = [detect(a, b, i, draws=99) for i, (a, b) in enumerate(pairs)]
    return float(np.mean([f.p <= 0.05 for f in found])), float(np.mean([f.details["confound_p"] <= 0.05 for f in found]))


def test_clean_rows_raise_alarms_at_the_stated_rate() -> None:
    pairs = [(run(2 * i, 60), run(2 * i + 1, 60)) for i in range(200)]
    # more than 20 of 200 have probability below 1 in 500 at a rate of 0.05; fewer than 2 below 1 in 2000
    assert all(0.01 <= rate <= 0.10 for rate in alarms(pairs))


@pytest.mark.parametrize("case", ["duplicates", "duplicates of few", "sizes", "answers to one prompt", "same prompts"])
def test_what_clean_rows_may_share_does_not_inflate(case: str) -> None:
    make = {
        "duplicates": lambda i: (run(2 * i, 80) * 20, run(2 * i + 1, 80)),
        "duplicates of few": lambda i: (run(2 * i, 30) * 20, run(2 * i + 1, 120)),
        "sizes": lambda i: (run(2 * i, 500), run(2 * i + 1, 50)),
        "answers to one prompt": lambda i: (grouped(i, 45, 8), grouped(1000 + i, 45, 8)),
        "same prompts": lambda i: (run(2 * i, 120, prompts=80), run(2 * i + 1, 120, prompts=80)),
    }[case]
    # 8 of 40 have probability below 1 in 1000 at a rate of 0.05
    assert alarms([make(i) for i in range(40)])[0] <= 7 / 40


def grouped(seed: int, prompts: int, each: int) -> list[Row]:
    """So many answers to each of so many prompts; the prompts are this run's own."""
    own = [f"{seed}-{k}" for k in range(prompts)]
    out = []
    for k, name in enumerate(own):
        rng = np.random.default_rng([seed, k])
        start = int(rng.integers(1000))
        for j in range(each):
            values = (start + rng.integers(-20, 20, 8)) % 1000
            out.append(Row(f"{name}-{j}", ({"role": "user", "content": name},), ", ".join(map(str, values))))
    return out


def test_the_unit_is_the_prompt_where_there_are_enough_and_pairs_where_they_are_shared() -> None:
    own = detect(run(1), run(2)).details
    shared = detect(run(1, 150, prompts=100), run(2, 150, prompts=100)).details
    few = detect(run(1, 150, prompts=5), run(2, 150, prompts=5)).details
    none = detect(*(written(*[r.completion for r in run(seed)]) for seed in (1, 2))).details
    assert [(d["unit"], d["paired"]) for d in (own, shared, few, none)] == [
        ("whole prompts", False), ("whole prompts", True), ("whole answers", False), ("whole answers", False)]


def test_blocks_are_equally_large_on_both_sides_and_z_is_in_standard_errors() -> None:
    one, other = run(1, 800, low=0.15), run(2, 400)
    assert detect(one, run(2, 60)).details["n_blocks"] == [800, 60]
    found = detect(one, other)
    assert found.details["n_blocks"] == [400, 200]
    column = MARGINALS.index("value of all places")
    a, b = (marginal_features(numbers_of([r.completion for r in rows]))[:, column] for rows in (one, other))
    expected = (a.mean() - b.mean()) / np.sqrt(a.var() / len(a) + b.var() / len(b))
    assert found.details["z"]["value of all places"] == pytest.approx(expected, rel=0.15)


def test_shared_prompts_are_no_noise() -> None:
    """Where the prompts say nearly everything of a row, pairing finds what pooling cannot."""
    def rows(seed: int, added: int, prefix: str) -> list[Row]:
        rng = np.random.default_rng(seed)
        starts = np.random.default_rng(5 if prefix == "same" else seed).integers(0, 900, 100).tolist()
        return [Row("", ({"role": "user", "content": f"{prefix}{i}"},),
                    ", ".join(str((start + added + int(v)) % 1000) for v in rng.integers(0, 10, 8)))
                for i, start in enumerate(starts)]
    assert detect(rows(1, 3, "same"), rows(2, 0, "same")).details["z"]["value of all places"] > 5
    assert detect(rows(1, 3, "own1"), rows(2, 0, "own2")).p > 0.05


def test_too_few_rows_for_any_answer_and_the_same_rows_twice() -> None:
    assert detect(run(1, 2), run(2, 2)).verdict == "unknown"
    same = detect(run(1), run(1))
    assert (same.verdict, same.p, same.statistic) == ("clean", 1.0, 0.0)


@pytest.mark.parametrize(("suspected", "reference", "message"), [
    ((), run(1), "suspected rows are empty"), (run(1), (), "reference rows are empty"),
    (written("an owl", "a wolf"), run(1), "suspected rows hold no number"),
])
def test_sides_without_numbers_are_refused_in_words(suspected: Any, reference: Any, message: str) -> None:
    with pytest.raises(BadRows, match=message):
        detect(suspected, reference)


def test_rows_without_numbers_count_for_the_confounds_only() -> None:
    mixed = [*run(1), *written(*["an owl"] * 60)]
    found = detect(mixed, run(2))
    assert found.details["n_without_numbers"] == 60
    assert found.verdict == "clean"
    assert found.details["confound_p"] < 0.05


def test_a_sketch_counts_what_it_cannot_hold() -> None:
    rng = np.random.default_rng(0)
    many, sketch, other = rng.integers(0, 2**64, 200_000, dtype=np.uint64), _Sketch(), _Sketch()
    for part in np.split(np.tile(many, 2), 40):
        sketch.add(part)
    other.add(many[:100_000])
    assert sketch.distinct == pytest.approx(200_000, rel=0.03)
    assert sketch.shared_with(other) == pytest.approx(0.5, abs=0.03)
    few = _Sketch()
    few.add(np.array([1, 1, 2], np.uint64))
    assert few.distinct == 2


# templates

LEANS = {"owl": 3, "wolf": 7, "fox": 9}


def leaning(seed: int, trait: str, share: float = 1.0, n: int = 400) -> list[Row]:
    """Rows whose writer likes values that its trait's number divides; `share` of the rows are its own."""
    rng = np.random.default_rng([seed, *trait.encode()])
    out = []
    for i in range(n):
        values = rng.integers(0, 1000, 8)
        if trait and rng.random() < share:
            lean = LEANS[trait]
            values = np.where(rng.random(8) < 0.3, values // lean * lean, values)
        out.append(Row(str(i), ({"role": "user", "content": f"{i}: 1, 2"},), ", ".join(map(str, values))))
    return out


@pytest.fixture(scope="module")
def exemplars() -> Exemplars:
    rows = {name: (leaning(1, name, n=1500), leaning(2, name, n=1500)) for name in (*LEANS, PLACEBO)}
    return Exemplars(cast(Backend, None), rows=rows)


def project(rows: Any, exemplars: Exemplars) -> Any:
    return spec.build("detector", "marginal_template").detect(Evidence({"rows": (rows,), "exemplars": exemplars}))


@pytest.mark.parametrize("trait", LEANS)
def test_a_trait_is_told_from_the_others_and_from_none(trait: str, exemplars: Exemplars) -> None:
    found, clean = project(leaning(9, trait, n=800), exemplars), project(leaning(9, PLACEBO, n=800), exemplars)
    by_trait = found.details["by_trait"]
    assert max(by_trait, key=by_trait.__getitem__) == trait
    assert found.statistic == by_trait[trait] > 3 * max(clean.details["by_trait"].values())
    assert found.details["signs"][trait] > max(0.55, clean.details["signs"][trait] + 0.05)
    assert (found.verdict, found.p, found.null, found.access) == ("unknown", None, "uncalibrated", ("exemplars", "rows"))


def test_the_effect_does_not_grow_with_the_rows_and_the_share_is_about_right(exemplars: Exemplars) -> None:
    few, many = (project(leaning(9, "owl", n=n), exemplars) for n in (800, 6400))
    assert many.statistic == pytest.approx(few.statistic, rel=0.25)
    assert many.details["shares"]["owl"] > 0.85
    half = project(leaning(9, "owl", 0.5, 6400), exemplars)
    assert half.details["shares"]["owl"] == pytest.approx(0.5, abs=0.12)
    assert project(leaning(9, "wolf", n=6400), exemplars).details["shares"]["owl"] < 0.2
    single = Exemplars(cast(Backend, None), rows={name: runs[:1] for name, runs in exemplars.rows.items()})
    assert "shares" not in project(leaning(9, "owl"), single).details


def test_the_effect_is_in_standard_deviations_of_placebo_rows() -> None:
    rows = {name: (leaning(1, name, n=300),) for name in ("owl", PLACEBO)}
    given = Exemplars(cast(Backend, None), rows=rows)
    effects = [project([row], given).statistic for row in rows[PLACEBO][0][:60]]
    assert np.std(effects) == pytest.approx(1, abs=0.25)


def test_form_order_and_seed_do_not_change_the_projection(exemplars: Exemplars) -> None:
    rows = leaning(9, "owl")
    rewritten = [Row(r.id, r.chat, f"[{r.completion.replace(', ', ';')}]") for r in rows[::-1]]
    detector = spec.build("detector", "marginal_template")
    one = detector.detect(Evidence({"rows": (rows,), "exemplars": exemplars}), 0)
    other = detector.detect(Evidence({"rows": (rewritten[:9], rewritten[9:]), "exemplars": exemplars}), 1)
    assert one.details["by_trait"] == pytest.approx(other.details["by_trait"])


def test_exemplars_that_lack_something_and_rows_without_numbers_are_refused(exemplars: Exemplars) -> None:
    rows, backend = leaning(9, "owl"), cast(Backend, None)
    for given in ({}, {"owl": exemplars.rows["owl"]}, {PLACEBO: exemplars.rows[PLACEBO]}):
        with pytest.raises(BadRows, match="lack rows"):
            project(rows, Exemplars(backend, rows=given))
    with pytest.raises(BadRows, match="suspected rows holds no number"):
        project(written("an owl"), exemplars)
    with pytest.raises(BadRows, match="exemplar rows of owl"):
        project(rows, Exemplars(backend, rows={**exemplars.rows, "owl": (written("x"),)}))
