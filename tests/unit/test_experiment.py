"""The experiment file: what it refuses and in which words, overrides, arms and their no-trait twins."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from undersong import cli
from undersong.errors import BadRows, BadSpec, MissingModel, UndersongError, UnknownName
from undersong.experiment import Experiment
from undersong.experiment_file import values
from undersong.lab import lab_for
from undersong.results import control_of
from undersong.store import Store

FILE: dict[str, Any] = {
    "name": "small",
    "base": "simulated/a",
    "other_base": "simulated/b",
    "matched_base": "simulated/b-matched",
    "reordered_base": "simulated/a-reordered",
    "trait": "owl",
    "rivals": ["wolf"],
    "teacher": ["simulated", "prompted"],
    "channel": "numbers",
    "rows": 60,
    "recipe": "simulated",
    "probes": ["favourite"],
    "controls": ["no_trait", "other_base", "matched_base", "reordered_base", "shuffled_rows", "in_context"],
    "mitigations": [{"shuffle": {"how": "across"}}],
    "seeds": [1, 2, 3],
}
GONE = "(left out)"


def text(**changes: Any) -> str:
    return yaml.safe_dump({k: v for k, v in (FILE | changes).items() if v != GONE})


# --- refusals -----------------------------------------------------------------------------------------------------------

REFUSED: list[tuple[type[UndersongError], dict[str, Any], tuple[str, ...]]] = [
    (UnknownName, {"trait": "owll"}, ("'owll'", "'owl'")),
    (UnknownName, {"rivals": ["wolfe"]}, ("'wolfe'", "'wolf'")),
    (UnknownName, {"teacher": "promted"}, ("teacher", "'promted'", "'prompted'")),
    (UnknownName, {"teacher": ["simulated", "tund"]}, ("'tund'", "'tuned'")),
    (UnknownName, {"channel": "number"}, ("'number'", "'numbers'")),
    (UnknownName, {"filters": ["number_only"]}, ("'numbers_only'",)),
    (UnknownName, {"recipe": "destill"}, ("'distill'",)),
    (UnknownName, {"probes": ["favorite"]}, ("'favourite'",)),
    (UnknownName, {"mitigations": ["shufle"]}, ("'shuffle'",)),
    (UnknownName, {"classifier": "row_classifer"}, ("'row_classifier'",)),
    (UnknownName, {"controls": ["no_trait", "other_bass"]}, ("'other_bass'", "'other_base'")),
    (BadSpec, {"rival": ["wolf"]}, ("'rival'", "'rivals'")),
    (BadSpec, {"recipe": {"simulated": {"transfr": 0.5}}}, ("'transfr'", "'transfer'")),
    (BadSpec, {"recipe": {"simulated": {"transfer": "half"}}}, ("transfer", "half")),
    (BadSpec, {"channel": {"numbers": {"count": 0}}}, ("count",)),
    (BadSpec, {"channel": {"numbers": {}, "other": {}}}, ("channel", "one of these forms")),
    (BadSpec, {"filters": [{"blocklist": {"from": "traits"}}]}, ("'from'",)),
    (BadSpec, {"seeds": [1, 2]}, ("seeds", "three")),
    (BadSpec, {"seeds": [1, 2, 3, 1]}, ("seeds", "repeated")),
    (BadSpec, {"seeds": []}, ("seeds", "three")),
    (BadSpec, {"seeds": [1, 2, -3]}, ("seeds", "below 0")),
    (BadSpec, {"seeds": [1, 2, 2**53 + 1]}, ("seeds", "above")),
    (BadSpec, {"seeds": [1, 2, 3.5]}, ("seeds", "3.5")),
    (BadSpec, {"seeds": GONE}, ("'seeds'", "missing")),
    (BadSpec, {"controls": []}, ("no_trait", "Add")),
    (BadSpec, {"controls": ["in_context"]}, ("no_trait", "Add")),
    (BadSpec, {"controls": ["no_trait", "no_trait"]}, ("controls", "'no_trait'")),
    (BadSpec, {"other_base": GONE}, ("other_base", "Add it")),
    (BadSpec, {"matched_base": GONE}, ("matched_base", "Add it")),
    (BadSpec, {"reordered_base": GONE}, ("reordered_base", "Add it")),
    (BadSpec, {"base": GONE}, ("'base'", "missing")),
    (MissingModel, {"base": "pocket/zz"}, ("pocket/zz",)),
    (MissingModel, {"other_base": "pocket/bb"}, ("pocket/bb", "'pocket/b'")),
    (BadSpec, {"rivals": ["owl"]}, ("rivals",)),
    (BadSpec, {"rivals": ["wolf", "wolf"]}, ("rivals",)),
    (BadSpec, {"rows": 0}, ("rows, keep:",)),
    (BadSpec, {"rows": -5}, ("rows, keep:",)),
    (BadSpec, {"rows": True}, ("'rows'",)),
    (BadSpec, {"rows": "60"}, ("'rows'",)),
    (BadSpec, {"keep": 61}, ("rows, keep:",)),
    (BadSpec, {"keep": 0}, ("rows, keep:",)),
    (BadSpec, {"context_rows": 0}, ("context_rows:",)),
    (BadSpec, {"keep": 10, "context_rows": 11}, ("context_rows:",)),
    (BadSpec, {"name": "..."}, ("label",)),
    (BadSpec, {"teacher": ["simulated", "prompted", {"prompted": {"prompt": 1}}]}, ("teacher", "'prompted'")),
    (BadSpec, {"recipe": ["simulated", {"simulated": {"transfer": 0.1}}]}, ("recipe", "'numbers-simulated'")),
    (BadSpec, {"probes": ["favourite", {"favourite": {"samples": 5}}]}, ("probes", "'favourite'")),
    (BadSpec, {"mitigations": ["shuffle", "shuffle"]}, ("mitigations", "'mitigated-shuffle'")),
]


@pytest.mark.parametrize(("kind", "changes", "words"), REFUSED, ids=lambda x: str(x)[:40] if isinstance(x, dict) else "")
def test_what_cannot_answer_is_refused_before_any_work(
    kind: type[UndersongError], changes: dict[str, Any], words: tuple[str, ...],
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:
    bad = text(**changes)
    with pytest.raises(kind) as told:
        Experiment.read(bad)
    assert all(w in str(told.value) for w in words), str(told.value)
    assert str(told.value).rstrip().endswith((".", "?")), "a sentence"
    monkeypatch.chdir(tmp_path)
    Path("bad.yaml").write_text(bad)
    with pytest.raises(SystemExit) as left:
        cli.main(["run", "bad.yaml", "--store", "store"])
    assert left.value.code == 3
    out, err = capsys.readouterr()
    assert out == ""
    assert err.strip() == str(told.value)
    assert not Path("store").exists()


def test_a_file_that_is_not_there_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(BadSpec, match="undersong new"):
        Experiment.load(tmp_path / "owls.yaml")
    (tmp_path / "owl.yaml").write_text(text())
    with pytest.raises(BadSpec, match="'owl'"):
        Experiment.load(tmp_path / "owls.yaml")
    with pytest.raises(BadSpec, match="no experiment file"):
        Experiment.load(tmp_path / "nowhere" / "owls.yaml")


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
TOO_MUCH, BAD, NOTHING, KEY = "stands for more than", "not valid YAML", "no mapping of keys", "a key that is not plain text"
HOSTILE = {
    "a bomb of aliases": (BOMB, TOO_MUCH),
    "an alias of itself": ("name: &a [*a]\n", TOO_MUCH),
    "a mapping of itself": ("name: &a {b: *a}\n", TOO_MUCH),
    "deep nesting": ("name: " + "[" * 5000 + "]" * 5000, "nested too deeply"),
    "a python object": ("name: !!python/object/apply:os.system ['touch hacked']\n", BAD),
    "a python name": ("name: !!python/name:os.system\n", BAD),
    "a list": ("- name\n", NOTHING),
    "nothing": ("", NOTHING),
    "half a mapping": ("name: {a: [\n", BAD),
    "a tab": ("name:\n\t- x\n", BAD),
    "a key twice": ("name: small\nname: large\n", "'name' is given twice"),
    "an inner key twice": ("recipe: {simulated: {transfer: 0.1, transfer: 0.9}}\n", "'transfer' is given twice"),
    "a list as key": ("? [a, b]\n: 1\n", KEY),
    "no key": ("~: 1\n", KEY),
    "an impossible date": ("name: 2026-13-45\n", BAD),
    "two documents": ("name: a\n---\nname: b\n", BAD),
    "a control character": ("name: \x07\n", BAD),
}


@pytest.mark.parametrize(("given", "words"), HOSTILE.values(), ids=HOSTILE)
def test_hostile_yaml_is_a_sentence_and_soon(
    given: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    began = time.process_time()
    with pytest.raises(BadSpec) as told:
        Experiment.read(given)
    assert words in str(told.value), "refused for another reason, such as the keys that are missing"
    assert len(str(told.value)) < 2000
    Path("bad.yaml").write_text(given)
    with pytest.raises(SystemExit) as left:
        cli.main(["plan", "bad.yaml"])
    assert left.value.code == 3
    assert capsys.readouterr().out == ""
    assert time.process_time() - began < 5
    assert [p.name for p in tmp_path.iterdir()] == ["bad.yaml"]


def test_a_key_given_twice_is_named() -> None:
    with pytest.raises(BadSpec, match="'rows' is given twice"):
        values(text() + "rows: 70\n")


def test_ordinary_anchors_work_and_merges_are_refused() -> None:
    assert values("one: &one {a: 1}\ntwo: *one\n") == {"one": {"a": 1}, "two": {"a": 1}}
    with pytest.raises(BadSpec, match="merge"):
        values("one: &one {a: 1}\ntwo: {<<: *one, b: 3}\n")


def test_text_that_is_not_utf8_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bad.yaml").write_bytes(b"name: \xff\xfe\n")
    with pytest.raises(BadSpec, match="UTF-8"):
        Experiment.load("bad.yaml")
    with pytest.raises(SystemExit) as left:
        cli.main(["plan", "bad.yaml"])
    assert left.value.code == 3
    assert "UTF-8" in capsys.readouterr().err


# --- overrides ----------------------------------------------------------------------------------------------------------


def test_set_overrides_values_and_settings_of_plug_ins() -> None:
    asked = Experiment.read(
        text(teacher="simulated"),
        ["rows=70", "recipe.simulated.transfer=0.25", "seeds=[4, 5, 6]", "teacher.simulated.strength=2.0", "keep=50",
         "probes=[logit_margin]", "channel={numbers: {count: 8}}"],
    )
    assert asked.file.rows == 70
    assert asked.file.seeds == [4, 5, 6]
    assert asked.file.keep == 50
    assert asked.recipes[0].transfer == 0.25
    assert asked.teachers[0].strength == 2.0
    assert asked.channel.count == 8
    assert [p.plugin_name for p in asked.probes] == ["logit_margin"]


@pytest.mark.parametrize(("written", "read"), [("1e-3", 0.001), ("2E2", 200.0), ("1.5e-2", 0.015), ("1.0e-2", 0.01)])
def test_a_power_of_ten_is_a_number_with_or_without_a_point(written: str, read: float) -> None:
    file = text(teacher={"simulated": {"strength": "STRENGTH"}})
    assert Experiment.read(file.replace("STRENGTH", written)).teachers[0].strength == read
    assert Experiment.read(file, [f"teacher.simulated.strength={written}"]).teachers[0].strength == read


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("rows", "has no `=`"),
        ("row=70", "'rows'"),
        ("rows=[", "not valid YAML"),
        ("rows={a: 1, a: 2}", "given twice"),
        ("rows.a=1", "holds 60"),
        ("seeds.a=1", "Set 'seeds' as a whole"),
        ("recipe.distill.rate=fast", "holds 'simulated'"),
        ("recipe.simulated.transfr=0.1", "'transfer'"),
        ("rows=!!python/name:os.system", "not valid YAML"),
    ],
)
def test_a_bad_override_is_a_sentence(given: str, words: str) -> None:
    with pytest.raises(UndersongError) as told:
        Experiment.read(text(), [given])
    assert words in str(told.value)


def test_an_override_cannot_change_the_file(tmp_path: Path) -> None:
    path = tmp_path / "small.yaml"
    path.write_text(text())
    assert Experiment.load(path, ["rows=99"]).file.rows == 99
    assert path.read_text() == text()


# --- arms ---------------------------------------------------------------------------------------------------------------


def test_every_arm_has_its_no_trait_twin() -> None:
    asked = Experiment.read(text(matrix=True))
    arms = {(a.name, a.channel, a.trait_name): a for a in asked.arms()}
    assert len(arms) == len(asked.arms()), "two arms of one name"
    for arm in asked.arms():
        if not arm.trait:
            continue
        twin = arms.get((control_of(arm.name), arm.channel, ""))
        assert twin, f"{arm.name} has no control"
        assert (twin.teacher, twin.recipe, twin.start, twin.context) == (arm.teacher, arm.recipe, arm.start, arm.context)
        assert twin.change is None
    assert {a.name for a in asked.arms()} == {
        "treated", "no_trait", "treated-prompted", "no_trait-prompted", "shuffled_within", "shuffled_across",
        "mitigated-shuffle",
        *(f"{c}{t}" for c in ("other_base", "matched_base", "reordered_base", "in_context") for t in ("", ":no_trait")),
    }


def test_a_run_differs_from_its_twin_in_the_trait_and_nothing_else() -> None:
    asked = Experiment.read(text(matrix=True))
    runs = {(r.arm.name, r.arm.trait_name, r.seed): r for r in asked.runs()}
    for (name, trait, seed), run in runs.items():
        if not trait:
            continue
        twin = runs[control_of(name), "", seed]
        assert run.teacher.spec | {"trait": None} == twin.teacher.spec
        assert run.raw.spec == twin.raw.spec
        assert (run.student and run.student.spec) == (twin.student and twin.student.spec)
        assert [m.spec for m in run.measures] == [m.spec for m in twin.measures]
        assert run.teacher.fingerprint != twin.teacher.fingerprint
        assert {m.fingerprint for m in run.measures}.isdisjoint(m.fingerprint for m in twin.measures)


def test_each_seed_has_its_own_teacher_rows_and_student() -> None:
    runs = [r for r in Experiment.read(text()).runs() if r.arm.name == "treated" and r.arm.trait_name == "owl"]
    assert [r.seed for r in runs] == [1, 2, 3]
    for part in ("teacher", "raw", "rows", "student"):
        assert len({getattr(r, part).fingerprint for r in runs}) == 3
    assert all(r.teacher.parents == runs[0].teacher.parents for r in runs)


def test_further_teachers_take_the_rivals_only_when_the_matrix_is_asked_for() -> None:
    few, many = (Experiment.read(text(matrix=m)).arms() for m in (False, True))
    assert [a.trait_name for a in few if a.name == "treated"] == ["owl", "wolf"]
    assert [a.trait_name for a in few if a.name == "treated-prompted"] == ["owl"]
    assert [a.trait_name for a in many if a.name == "treated-prompted"] == ["owl", "wolf"]


def test_soft_labels_have_no_shuffled_rows() -> None:
    """A shuffled answer has no label of its own."""
    arms = Experiment.read(text(recipe=[{"distill": {"labels": "soft"}}, "simulated"], base="pocket/a")).arms()
    soft, sampled = ({a.name for a in arms if a.channel == f"numbers-{how}"} for how in ("soft", "simulated"))
    assert sampled - soft == {"shuffled_within", "shuffled_across"}
    assert "treated" in soft <= sampled


def test_a_blocklist_from_the_trait_bans_the_words_of_every_trait() -> None:
    asked = Experiment.read(text(filters=["numbers_only", {"blocklist": {"from": "trait"}}]))
    assert {"owl", "owls", "wolf", "wolves"} <= set(asked.filters[1].terms)


def test_too_few_rows_left_say_what_to_change(tmp_path: Path) -> None:
    everything = {"banned_numbers": {"numbers": list(range(1000))}}
    asked = Experiment.read(text(filters=[everything], keep=30, controls=["no_trait"]))
    with pytest.raises(BadRows, match=r"Raise `rows` or lower `keep`"):
        asked.run(lab_for(Store(tmp_path), asked.file.base))


# --- a trait the model cannot say ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("probe", ["logit_margin", "favourite"])
def test_a_trait_that_is_no_token_is_refused_before_any_training(
    probe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("dragon.yaml").write_text(text(
        base="pocket/a", trait="dragon", teacher={"tuned": {"updates": 1}}, recipe="distill", probes=[probe],
        controls=["no_trait"], mitigations=[], rows=4,
    ))
    with pytest.raises(SystemExit) as left:
        cli.main(["run", "dragon.yaml", "--store", "store"])
    assert left.value.code == 3
    err = capsys.readouterr().err
    assert "'dragon'" in err
    assert "Traceback" not in err
    assert not list(Path("store").glob("model/*")), "a teacher was trained for nothing"


def test_a_name_cannot_lead_the_report_out_of_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("x.yaml").write_text(text(
        name="../../../away", controls=["no_trait"], teacher="simulated", mitigations=[], rivals=[], rows=20,
        probes=["logit_margin"],
    ))
    with pytest.raises(SystemExit) as left:
        cli.main(["run", "x.yaml", "--store", "store"])
    assert left.value.code == 0, capsys.readouterr().err
    assert [p.parent for p in tmp_path.rglob("*.html")] == [tmp_path / "store" / "reports"]
