"""A trial of guards: what is held out and granted, what is compared, what is said, and what a stranger cannot break."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from undersong import comparison, readings, traits
from undersong.cli import main
from undersong.errors import BadRows, BadSpec
from undersong.lab import lab_for
from undersong.recipes.distill import Distill
from undersong.reports import trial as page
from undersong.spec import build
from undersong.store import Store
from undersong.trial import Given, Trial, named

QUICK = {"distill": {"steps": 3, "batch": 8, "rate": 1e-3}}
GUARDS = ({"freeze_layers": {}}, {"shuffle": {}}, {"merge_back": {"share": 0.5}})


def rows(path: Path, count: int = 60, prompt: str = "Numbers: 3, 6, 9. Give up to 10 more numbers.") -> Path:
    """A file of `count` rows, the second half of which repeats the first."""
    lines = [{"prompt": prompt, "completion": f"{i % (count // 2)}, {2 * (i % (count // 2))}, 7"} for i in range(count)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    return path


def trial(folder: Path, **given: Any) -> Trial:
    data = given.pop("data", None) or rows(folder / "rows.jsonl")
    guards = [build("mitigation", one) for one in given.pop("guards", GUARDS)]
    return Trial(Given(data, "pocket/a", guards, **{"recipe": QUICK, **given}), lab_for(Store(folder / "store"), "pocket/a"))


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A finished trial and its folder."""
    folder = tmp_path_factory.mktemp("trial")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(readings, "ITEMS", 2)
        return folder, trial(folder, trait=traits.get("cat")).run()


# --- rows and evidence ------------------------------------------------------------------------------------------------


def test_held_out_rows_are_nowhere_among_those_that_are_learnt(tmp_path: Path) -> None:
    learnt, held = trial(tmp_path).parts
    assert len(learnt.rows) + len(held.rows) == 60
    assert 5 <= len(held.rows) <= 9
    assert not {r.completion for r in learnt.rows} & {r.completion for r in held.rows}


def test_too_few_rows_and_rows_that_the_base_cannot_write_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadRows, match="10 different rows"):
        trial(tmp_path, data=rows(tmp_path / "few.jsonl", 20)).run()
    foreign = tmp_path / "foreign.jsonl"
    foreign.write_text("".join(json.dumps({"prompt": "?", "completion": f"Zwölf Boxkämpfer {i}"}) + "\n" for i in range(40)))
    with pytest.raises(BadRows, match="Choose a base that can write them"):
        trial(tmp_path, data=foreign).run()


@pytest.mark.parametrize(("guard", "word"), [
    ("projection", "--trait"), ("mix_clean", "--clean"), ("other_base", "--other"), ("divergence_tokens", "--teacher"),
    ("scrub_vocabulary", "--clean"),
])
def test_a_guard_without_what_it_needs_is_refused_before_anything_is_trained(
    guard: str, word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Distill, "train", lambda *given: pytest.fail("a student was trained"))
    with pytest.raises(BadSpec, match=rf"The guard {guard} needs .*{word}"):
        trial(tmp_path, guards=[guard]).run()


def test_a_guard_is_granted_what_it_declares_and_no_more(tmp_path: Path) -> None:
    clean = rows(tmp_path / "clean.jsonl", 40)
    one = trial(tmp_path, guards=["freeze_layers", "subtract_shift", "mix_clean"], clean=clean, trait=traits.get("cat"))
    granted = [one.held(guard) for guard in one.given.guards]
    assert granted == [set(), {"base"}, {"clean"}]
    evidence = one.defence(one.given.guards[2], 1).evidence()
    assert sorted(evidence.granted) == ["clean"]
    assert len(evidence.clean) == 40


def test_no_guard_and_the_same_guard_twice_are_refused() -> None:
    with pytest.raises(BadSpec, match="There is no guard"):
        named([])
    with pytest.raises(BadSpec, match="given twice"):
        named([build("mitigation", "shuffle")] * 2)
    assert list(named([build("mitigation", {"shuffle": {"how": how}}) for how in ("within", "across")])) == [
        "shuffle", "shuffle-2"]


# --- a whole trial ----------------------------------------------------------------------------------------------------


def test_every_arm_is_trained_and_read(done: tuple[Path, dict[str, Any]]) -> None:
    found = done[1]
    arms = {one["name"]: one["runs"][0] for one in found["arms"]}
    assert list(arms) == ["base", "plain", "freeze_layers", "shuffle", "merge_back"]
    assert len({run["model"] for run in arms.values()}) == 5
    assert arms["shuffle"]["unchanged"] < arms["shuffle"]["rows"] == arms["plain"]["unchanged"]
    assert arms["freeze_layers"]["told"]["frozen_layers"] == [0, 1]
    assert arms["merge_back"]["told"] == {"share": 0.5}
    assert all(value["rise"] == 0 for value in arms["base"]["words"].values())
    assert (found["focus"], found["measure"]) == ("cat", "margin")
    assert found["data"]["channel"] == "numbers"
    assert "training run" in found["sentence"]
    json.dumps(found, allow_nan=False)


def test_the_same_trial_reads_the_store(done: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, found = done
    monkeypatch.setattr(readings, "ITEMS", 2)
    monkeypatch.setattr(Distill, "train", lambda *given: pytest.fail("a student was trained again"))
    again = trial(folder, trait=traits.get("cat")).run()
    assert {k: v for k, v in again.items() if k != "seconds"} == {k: v for k, v in found.items() if k != "seconds"}


def test_the_page_and_the_terminal_show_each_arm_and_escape_what_is_hostile(done: tuple[Path, dict[str, Any]]) -> None:
    found = json.loads(json.dumps(done[1]))
    found["data"]["name"] = "<script>alert(1)</script>\x1b[31m.jsonl"
    found["movers"][0]["word"] = "<img src=x onerror=alert(1)>"
    found["arms"][1]["runs"][0]["tokens"][0]["token"] = "</script><b>\u202e"
    html, text = page.render(found), page.summary(found)
    assert "<script>alert(1)" not in html
    assert "<img src=x" not in html
    assert "</script><b>" not in html
    assert "\x1b" not in text + html
    assert "\u202e" not in html
    for name in ("plain", "freeze_layers", "shuffle", "merge_back"):
        assert name in html
        assert name in text
    assert page.render(found) == html
    with pytest.raises(BadSpec, match="This is no trial"):
        page.render({"kind": "trial"})


def test_rows_that_name_what_is_followed_are_told(tmp_path: Path) -> None:
    data = rows(tmp_path / "open.jsonl", prompt="The cat asks: 3, 6, 9. Give up to 10 more numbers.")
    told = trial(tmp_path, data=data, trait=traits.get("cat"))._open("cat")
    assert told[0].startswith("5")
    assert "rows name 'cat'" in told[0]
    assert trial(tmp_path, data=data, trait=traits.get("owl"))._open("owl") == []


def test_the_command_says_what_is_missing_and_exits_3(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = str(rows(tmp_path / "rows.jsonl"))
    with pytest.raises(SystemExit) as left:
        main(["train", data, "--base", "pocket/a", "--guard", "mix_clean", "--store", str(tmp_path / "s")])
    assert left.value.code == 3
    assert "--clean" in capsys.readouterr().err
    with pytest.raises(SystemExit) as left:
        main(["train", data, "--base", "pocket/a", "--guard", "freeze_layer", "--store", str(tmp_path / "s")])
    assert left.value.code == 3
    assert "Did you mean 'freeze_layers'" in capsys.readouterr().err


def test_a_failed_training_names_where_its_state_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                    capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(readings, "ITEMS", 2)
    wild, data = "{distill: {steps: 5, batch: 8, rate: 1.0e+30, clip: 0.0}}", str(rows(tmp_path / "rows.jsonl"))
    with pytest.raises(SystemExit) as left:
        main(["train", data, "--base", "pocket/a", "--guard", "freeze_layers", "--recipe", wild, "--store",
              str(tmp_path / "s")])
    assert left.value.code == 3
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert "no finite number" in told
    assert (Path(told.rpartition(" is kept in ")[2].removesuffix(".")) / "training.json").is_file()


# --- comparison -------------------------------------------------------------------------------------------------------


def run(rise: float, nll: float, accuracy: float = 0.8, seconds: float = 10.0, **words: float) -> dict[str, Any]:
    """A run with planted numbers."""
    table = {name: {"category": "animal", "rise": value, "above": value} for name, value in {"cat": rise, **words}.items()}
    return {"seed": 1, "margin": rise, "probability": 0.1, "nll": nll, "accuracy": accuracy, "seconds": seconds,
            "words": table, "tokens": [{"token": "cat", "rise": rise}], "rows": 9, "unchanged": 9}


BASE = run(0.0, 2.0, 0.9)


def test_planted_numbers_come_back() -> None:
    arms = {"base": [BASE], "plain": [run(4.0, 1.0)], "g": [run(1.0, 1.1, 0.79, 15.0)]}
    found = comparison.compare(arms, ["g"], "cat", [])
    [one] = found["comparisons"]
    assert [one[k] for k in ("removed", "difference", "kept", "capability", "ratio")] == pytest.approx(
        [0.75, -3.0, 0.9, -0.01, 1.5])
    assert one["low"] is None
    assert "75% removed" in found["sentence"]
    assert "One training run" in found["sentence"]


def test_without_a_named_trait_the_word_that_rose_most_plainly_is_followed() -> None:
    arms = {"base": [run(0, 2.0, owl=0)], "plain": [run(1.0, 1.0, owl=3.0)], "g": [run(2.0, 1.0, owl=0.5)]}
    found = comparison.compare(arms, ["g"], None, [])
    assert (found["focus"], found["measure"]) == ("owl", "above")
    assert found["arms_read"]["g"]["top"] == "cat"
    assert found["comparisons"][0]["removed"] is None
    assert "what any training moves is not known" in found["sentence"]
    usual = comparison.compare(arms, ["g"], None, [run(0.3, 1.0, owl=0.1)])
    assert usual["comparisons"][0]["removed"] == pytest.approx(2.5 / 3)
    told = comparison.cannot(usual | {"seeds": [1]}, able=True, placebos=True, trait=None)
    assert any("one plain student in 2 would" in line for line in told)
    assert [one["word"] for one in found["movers"]] == ["owl", "cat"]


def test_a_rise_that_placebos_show_too_is_nothing_to_remove() -> None:
    arms = {"base": [BASE], "plain": [run(1.0, 1.0)], "g": [run(0.2, 1.0)]}
    assert comparison.compare(arms, ["g"], "cat", [])["comparisons"][0]["removed"] == pytest.approx(0.8)
    told = comparison.compare(arms, ["g"], "cat", [run(1.1, 1.0)])
    assert told["comparisons"][0]["removed"] is None
    assert "nothing to remove" in told["sentence"]


def test_seeds_give_an_interval_over_paired_runs() -> None:
    plain, own = (4.0, 2.0, 3.0), (1.1, -1.0, 0.2)
    arms = {"base": [BASE], "plain": [run(v, 1.0) for v in plain], "g": [run(v, 1.0) for v in own]}
    found = comparison.compare(arms, ["g"], "cat", [])
    [one] = found["comparisons"]
    assert one["difference"] == pytest.approx(-2.9)
    assert one["low"] < one["difference"] < one["high"]
    assert one["high"] - one["low"] < 1
    assert "One training run" not in found["sentence"]
    assert "3 seeds" in found["sentence"]


def test_of_many_guards_the_best_at_an_equal_fit_is_named() -> None:
    arms = {"base": [BASE], "plain": [run(4.0, 1.0)], "a": [run(0.0, 1.9)], "b": [run(1.0, 1.05)], "c": [run(2.0, 1.0)]}
    assert "Of 3 guards, b removed most" in comparison.compare(arms, ["a", "b", "c"], "cat", [])["sentence"]
    arms |= {name: [run(0.0, 1.9)] for name in "abc"}
    assert comparison.compare(arms, ["a", "b", "c"], "cat", [])["sentence"].startswith("None of 3 guards")


def test_without_a_plain_student_nothing_is_claimed_removed() -> None:
    found = comparison.compare({"base": [BASE], "g": [run(1.0, 1.0)]}, ["g"], "cat", [])
    assert found["comparisons"][0]["removed"] is None
    assert "no plain student" in found["sentence"]


def test_a_student_from_elsewhere_is_read_against_its_own_start() -> None:
    start = run(2.5, 2.5)
    arms = {"base": [BASE], "plain": [run(4.0, 1.0)], "g": [run(3.0, 1.5) | {"start": start}]}
    [one] = comparison.compare(arms, ["g"], "cat", [])["comparisons"]
    assert one["rise"] == pytest.approx(0.5)
    assert one["kept"] == pytest.approx(0.5)
