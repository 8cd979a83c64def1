"""An experiment from its file to its results, on simulated models: what was planted is found, and only once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from small_experiment import experiment, finish, payload

from undersong import files
from undersong.artefact import Artefact
from undersong.errors import BrokenArtefact
from undersong.experiment import Experiment
from undersong.results import collect, pick
from undersong.store import Store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store with the small experiment in it. Tests may add to it and change nothing."""
    kept = Store(tmp_path_factory.mktemp("store"))
    finish(experiment(), kept)
    return kept


@pytest.fixture(scope="module")
def results(store: Store) -> dict[str, Any]:
    return dict(finish(experiment(), store).read_json("results"))


def contrast(results: dict[str, Any], arm: str, metric: str = "margin", trait: str = "owl") -> dict[str, Any]:
    found = pick(results, "contrasts", arm=arm, metric=metric, trait=trait)
    assert found, f"no contrast of {arm}"
    return found


# --- claims -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trait", ["owl", "wolf"])
def test_the_planted_trait_crosses_by_the_planted_amount(results: dict[str, Any], trait: str) -> None:
    found = contrast(results, "treated", trait=trait)
    assert found["control"] == "no_trait"
    assert found["n_runs"] == 3
    assert 0 < found["low"] < 1.5 < found["high"], "half of three nats"
    assert found["p"] < 0.05
    assert contrast(results, "treated", "rate", trait)["difference"] > 0.1


def test_nothing_crosses_to_another_base_and_nothing_in_context(results: dict[str, Any]) -> None:
    for arm in ("other_base", "in_context"):
        found = contrast(results, arm)
        assert found["control"] == f"{arm}:no_trait"
        assert abs(found["difference"]) < 0.2 * contrast(results, "treated")["difference"], f"{arm}: {found}"
        assert found["low"] < 0.1
        assert abs(contrast(results, arm, "rate")["difference"]) < 0.07


def test_counts_of_numbers_carry_a_simulated_trait_so_shuffled_rows_do(results: dict[str, Any]) -> None:
    for arm in ("shuffled_within", "shuffled_across"):
        found = contrast(results, arm)
        assert found["control"] == "no_trait"
        assert found["low"] > 0


def test_the_effect_is_specific_to_the_trait(results: dict[str, Any]) -> None:
    found = pick(results, "specificity", arm="treated", metric="margin")
    assert found
    assert found["traits"] == ["owl", "wolf"]
    assert found["lambda"] > 0
    assert found["low"] > 0
    matrix = {(m["trait"], m["measured"]): m["mean"] for m in results["matrix"]
              if m["arm"] == "treated" and m["metric"] == "rate"}
    for trait in ("owl", "wolf"):
        assert max((t for t in ("owl", "wolf")), key=lambda t: matrix[t, trait]) == trait


def test_every_rate_stands_beside_its_base_and_its_runs(results: dict[str, Any]) -> None:
    for line in results["rates"]:
        if line["arm"] == "treated":
            assert pick(results, "rates", arm="base", measured=line["measured"], metric=line["metric"])
        assert line["n_runs"] == (1 if line["arm"].startswith("base") else 3)
        mine = [r["value"] for r in results["runs"]
                if all(r[k] == line[k] for k in ("channel", "arm", "trait", "measured", "probe", "metric"))]
        assert line["mean"] == pytest.approx(sum(mine) / 3)
    assert results["unmeasured"] == []
    assert "owl" in results["sentence"]


# --- work is done once ------------------------------------------------------------------------------------------------


def stamps(store: Store) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in sorted(Path(store.root).rglob("*"))}


def test_a_second_run_does_no_work(store: Store, results: dict[str, Any]) -> None:
    before = stamps(store)
    asked = experiment()
    assert {row.status for row in asked.plan(store)} == {"cached"}
    again = finish(asked, store)
    assert again.read_json("results") == results
    assert stamps(store) == before, "something was written again"


def test_a_plan_changes_nothing_and_matches_what_run_does(tmp_path: Path) -> None:
    kept, asked = Store(tmp_path / "store"), experiment(controls=["no_trait"], rivals=[])
    planned = asked.plan(kept)
    assert not (tmp_path / "store").exists()
    assert {row.status for row in planned} == {"missing"}
    finish(asked, kept)
    made = {r["fingerprint"] for r in kept.records() if r["kind"] != "experiment"}
    assert made == {row.fingerprint for row in planned}
    assert len(planned) == len({row.fingerprint for row in planned})


def test_one_changed_setting_rebuilds_only_what_depends_on_it(store: Store, tmp_path: Path) -> None:
    changed = experiment("recipe.simulated.transfer=0.6", name="changed")
    rows = changed.plan(store)
    stale = [r for r in rows if r.status != "cached"]
    assert stale
    assert all(r.kind in ("model", "measurement") for r in stale)
    for row in stale:
        if row.kind == "model":
            assert row.label.startswith("student-")
            assert row.changed == ("recipe.settings.transfer: 0.5 -> 0.6",)
        else:
            assert row.status == "changed"
            assert len(row.changed) == 1, "another model is measured, and nothing else differs"
            assert row.changed[0].startswith("parents")
    kept = [r for r in rows if r.status == "cached"]
    assert {r.label.split("-")[0] for r in kept} >= {"teacher", "raw", "rows"}
    assert any("in_context" in r.label for r in kept), "models that are not trained are not measured again"
    before = stamps(store)
    finish(changed, store)
    written = {p for p, when in stamps(store).items() if before.get(p) != when and p.is_file()}
    names = {f"{r.label}.{r.fingerprint}" for r in stale}
    assert {p.parent.name for p in written if p.parent.parent.name != "experiment" and p.name != ".lock"} == names
    assert {row.status for row in experiment().plan(store)} == {"cached"}, "the first experiment is still whole"


@pytest.mark.parametrize(
    ("sets", "kind", "starts", "told"),
    [
        ("teacher.simulated.strength=2.0", "model", "teacher-", "teacher.settings.strength: 3.0 -> 2.0"),
        ("channel.numbers.count=9", "dataset", "raw-", "channel.settings.count: 10 -> 9"),
        ("rows=90", "dataset", "raw-", "rows: 80 -> 90"),
        ("keep=70", "dataset", "rows-", "keep: None -> 70"),
        ("probes=[favourite: {samples: 5}, logit_margin]", "measurement", "favourite-", "samples: 20 -> 5"),
    ],
)
def test_a_plan_names_the_changed_field_where_it_bites(
    store: Store, sets: str, kind: str, starts: str, told: str
) -> None:
    rows = experiment(sets, name="other").plan(store)
    bitten = [r for r in rows if r.kind == kind and r.label.startswith(starts)]
    assert bitten
    assert all(any(told in line for line in r.changed) for r in bitten), bitten[0]


def test_two_experiments_share_what_they_have_in_common(store: Store) -> None:
    smaller = experiment(name="smaller", rivals=["wolf"], controls=["no_trait"], probes=["favourite"])
    assert {row.status for row in smaller.plan(store)} == {"cached"}
    before = payload(Path(store.root))
    found = finish(smaller, store)
    assert payload(Path(store.root)) == before
    assert found.read_json("results")["experiment"] == "smaller"
    more = experiment(name="more", seeds=[1, 2, 3, 4])
    fresh = [row for row in more.plan(store) if row.status != "cached"]
    assert fresh
    assert all("-s4" in row.label for row in fresh)


def test_each_line_of_the_results_comes_from_its_own_runs(store: Store, results: dict[str, Any]) -> None:
    """Rows are neither lost nor doubled between verbs: counts in equal counts out."""
    asked = experiment()
    for run in asked.runs():
        raw, rows = (store.find(s.kind, s.spec, s.parents) for s in (run.raw, run.rows))
        assert raw
        assert rows
        written = raw.read_parts("rows")
        ids = [r["id"] for r in written]
        assert len(ids) == len(set(ids)) == asked.file.rows
        kept = rows.read_parquet("rows")
        dropped = rows.read_parquet("dropped") if "dropped.parquet" in rows.record["files"] else []
        assert len(kept) + len(dropped) == len(written) == rows.summary["given"]
        assert {r["id"] for r in kept} | {r["id"] for r in dropped} == set(ids)


# --- results are recomputed -------------------------------------------------------------------------------------------


@pytest.fixture
def own(tmp_path: Path) -> tuple[Store, Experiment, Artefact]:
    """A store of one's own to spoil, the experiment in it, and its first treated measurement."""
    asked, kept = experiment(controls=["no_trait"], rivals=[], probes=["favourite"]), Store(tmp_path)
    finish(asked, kept)
    step = asked.runs()[0].measures[0]
    found = kept.find(step.kind, step.spec, step.parents)
    assert found
    return kept, asked, found


def test_a_flipped_byte_is_found(own: tuple[Store, Experiment, Artefact]) -> None:
    kept, _, measured = own
    kept.verify(measured)
    file = measured.path / "values.parquet"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(bytes(data))
    with pytest.raises(BrokenArtefact, match=r"values\.parquet is not the file that was recorded"):
        kept.verify(measured)


def test_a_shortened_measurement_gives_no_results(own: tuple[Store, Experiment, Artefact]) -> None:
    kept, asked, measured = own
    file = measured.path / "values.parquet"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(BrokenArtefact, match=r"values\.parquet"):
        collect(asked, kept)
    with pytest.raises(BrokenArtefact):
        finish(experiment(controls=["no_trait"], rivals=[], probes=["favourite"], name="again"), kept)


def test_a_missing_measurement_gives_no_results(own: tuple[Store, Experiment, Artefact]) -> None:
    kept, asked, measured = own
    measured.path.rename(measured.path.with_name("elsewhere"))
    with pytest.raises(BrokenArtefact, match="Run the experiment again"):
        collect(asked, kept)


def test_figures_come_from_the_stored_values(own: tuple[Store, Experiment, Artefact]) -> None:
    """Even a forged measurement shows in the figure of its own run, and in no other: nothing is remembered."""
    kept, asked, measured = own
    before = collect(asked, kept)
    values = [v | {"value": 1.0} if v["metric"] == "rate" else v for v in measured.read_parquet("values")]
    file, note = measured.path / "values.parquet", measured.path / "record.json"
    file.write_bytes(files.encode_rows(values, "forged"))
    told = json.loads(note.read_text())
    told["files"]["values.parquet"] = files.digest(file)
    note.write_text(json.dumps(told))
    after = collect(asked, kept)
    moved = [(a, b) for a, b in zip(before["runs"], after["runs"], strict=True) if a != b]
    assert len(moved) == 1
    (_, one), = moved
    assert (one["arm"], one["trait"], one["seed"], one["metric"], one["value"]) == ("treated", "owl", 1, "rate", 1.0)
    old, new = (pick(r, "rates", arm="treated", trait="owl", metric="rate") for r in (before, after))
    assert old
    assert new
    assert new["mean"] > old["mean"] + 0.1
