"""The transfer-risk statement: every line of the rule, every number with its source, and real models end to end."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from undersong import cli, pocket, ruling
from undersong.errors import BadSpec
from undersong.lab import Student, base_ref, lab_for, unpack
from undersong.reports import risk as page
from undersong.risk import Risk, channels, heard, steps
from undersong.ruling import Audited, Known, kinship_of
from undersong.spec import build
from undersong.store import Store

ROOT = Path(__file__).parents[2]
PRIOR = yaml.safe_load((ROOT / "src" / "undersong" / "prior.yaml").read_text("utf-8"))
EXAMPLES = ROOT / "examples" / "audit"
EVIL = "</p><script>hit()</script>\x1b[2J"
CLEAN, LARGE = Audited("clean", 0.25), Audited("unknown", 0.75)
BLIND, FOUND = Audited("unknown"), Audited("found", 0.25, "owl")


def known(kinship: str, rows: Audited, student: Audited | None = None, **more: Any) -> Known:
    return Known(kinship, rows, student, teacher="T", **more)


@pytest.mark.parametrize(
    ("case", "light", "line"),
    [
        *[(known(k, FOUND), "red", 1) for k in ("checkpoint", "initialisation", "apart", "unknown")],
        (known("apart", CLEAN, FOUND), "red", 1),
        (known("apart", FOUND, alarms=("forged",)), "red", 1),
        (known("apart", CLEAN, alarms=("forged",)), "amber", 2),
        (known("checkpoint", BLIND, alarms=("forged",)), "amber", 2),
        (known("checkpoint", BLIND), "red", 3),
        (known("initialisation", BLIND), "red", 3),
        (known("checkpoint", BLIND, BLIND), "red", 3),
        (known("checkpoint", BLIND, CLEAN), "amber", 7),
        (known("checkpoint", CLEAN, BLIND), "amber", 4),
        (known("apart", CLEAN, LARGE), "amber", 4),
        *[(known(k, CLEAN), "green", 5) for k in ("checkpoint", "initialisation", "apart", "unknown")],
        (known("checkpoint", CLEAN, CLEAN), "green", 5),
        (known("apart", LARGE), "green", 6),
        (known("checkpoint", LARGE), "amber", 7),
        (known("initialisation", LARGE), "amber", 7),
        (known("unknown", LARGE), "amber", 7),
        (known("unknown", BLIND), "amber", 7),
        (known("apart", BLIND), "amber", 7),
        (known("checkpoint", CLEAN, smallest=0.1), "amber", 7),
        (known("apart", Audited("clean", 0.5), smallest=0.1), "green", 6),
    ],
)
def test_the_rule(case: Known, light: str, line: int) -> None:
    got = ruling.ruling(case)
    assert got[:2] == (light, line)
    assert all(reason.endswith(".") or reason == "forged" for reason in got[2])


def test_green_by_kinship_says_what_it_rests_on() -> None:
    assert any("rests on the word that T wrote these rows" in r for r in ruling.ruling(known("apart", LARGE))[2])
    assert any("another model may have written" in r for r in ruling.ruling(known("apart", FOUND))[2])


def test_the_rule_is_written_once() -> None:
    lines = re.findall(r"^\| (\d) \| (.+?) \| (\w+) \|$", str(ruling.__doc__), re.MULTILINE)
    assert [(n, light) for n, _, light in lines] == [(n, light) for n, _, light in page.RULE]
    said = [when.replace("`smallest`", "--smallest").split(":")[0] for _, when, _ in lines]
    assert said == [when for _, when, _ in page.RULE]
    howto = (ROOT / "docs" / "howto" / "risk.md").read_text("utf-8")
    for number, when, light in page.RULE:
        assert f"| {number} | {when} | {light} |" in howto


@pytest.mark.parametrize(
    ("result", "declared", "kind"),
    [
        (None, True, "unknown"), ({"relation": "unknown"}, True, "unknown"),
        ({"relation": "same_weights"}, False, "checkpoint"),
        ({"relation": "same_initialisation", "direction": "a_from_b"}, False, "checkpoint"),
        ({"relation": "same_initialisation", "direction": None}, True, "checkpoint"),
        ({"relation": "same_initialisation", "direction": "b_from_a"}, False, "initialisation"),
        ({"relation": "same_initialisation", "direction": None}, False, "initialisation"),
        ({"relation": "unrelated", "power": 1.0, "contradictions": []}, True, "apart"),
        ({"relation": "same_architecture", "power": 0.9}, False, "apart"),
        ({"relation": "unrelated", "power": 0.5}, False, "unknown"),
        ({"relation": "unrelated", "power": None}, False, "unknown"),
        ({"relation": "unrelated", "power": 1.0, "contradictions": ["behaviour: same_initialisation"]}, False, "unknown"),
    ],
)
def test_kinship_counts_only_as_far_as_it_was_tested(result: Any, declared: bool, kind: str) -> None:
    assert kinship_of(result, declared) == kind


def test_every_number_has_its_source_and_ours_are_in_the_committed_results() -> None:
    checked = 0
    for channel in PRIOR["channels"].values():
        for entry in channel["evidence"]:
            assert entry["source"]
            if "at" not in entry:
                assert re.search(r"arXiv \d{4}\.\d{5}|repository \w+/\w+", entry["source"])
                continue
            results = json.loads((ROOT / entry["source"]).read_text("utf-8"))
            found, = [c for c in results["contrasts"] if all(c[k] == v for k, v in entry["at"].items())]
            ours = [round(found[k], 3) for k in ("difference", "low", "high")]
            assert ours == [entry[k] for k in ("value", "low", "high")]
            assert found["n_runs"] == entry["n"]
            checked += 1
    assert checked == 5
    table = (ROOT / "docs" / "benchmark.md").read_text("utf-8")
    last = {n: float(s) for n, s in re.findall(r"^\| `(\w+)`.*\| ([\d.]+) \|$", table, re.MULTILINE)}
    costs = PRIOR["costs"]
    assert costs["divergence_tokens"]["seconds"] == last["divergence_tokens"]
    own = sum(last[d] for d in ("activation_dose", "amplify", "vocabulary_scan"))
    assert costs["student_audit"]["seconds"] == pytest.approx(own)
    rate = re.search(r"`distill`\) \|.*\| ([\d.]+) \|$", (ROOT / "docs" / "performance.md").read_text("utf-8"), re.MULTILINE)
    assert rate
    assert costs["student"]["seconds"] == round(60 / float(rate[1]), 1)


@pytest.mark.parametrize("kind", ["checkpoint", "initialisation", "apart", "unknown"])
def test_a_channel_has_a_prior_only_where_one_was_measured(kind: str) -> None:
    by = {c["channel"]: c for c in channels(known(kind, BLIND), PRIOR)}
    assert (by["body"]["prior"] is None) == (kind == "unknown")
    assert kind == "unknown" or "Pythia-160M only" in by["body"]["prior"]["source"]
    assert all(by[name]["prior"] is None and by[name]["note"] for name in ("vocabulary", "selection", "semantics"))
    assert by["selection"]["could"] == by["semantics"]["could"] == "yes"
    kept = {e.get("kinship") for e in by["body"]["evidence"]}
    assert kept == ({"checkpoint", "initialisation", "apart"} if kind == "unknown" else {"checkpoint", kind})


def test_what_to_do_next_depends_on_what_is_missing() -> None:
    def told(case: Known) -> str:
        return " ".join(s["do"] for s in steps(case, PRIOR, {"rows": 30.0, "kinship": 1.5}, "rows.jsonl"))

    assert "--teacher" in told(Known("unknown", BLIND))
    assert "Get the weights of T" in told(known("unknown", LARGE))
    assert "calibrate" in told(known("checkpoint", BLIND))
    assert "Give more rows" in told(known("checkpoint", LARGE))
    assert "Do not train" in told(known("apart", FOUND))
    for one in steps(known("unknown", LARGE), PRIOR, {"rows": 30.0}, "rows.jsonl"):
        assert one["cost"] in ("not measured", "nothing") or one["source"]


def run(capsys: Any, *args: str | Path) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["risk", *[str(a) for a in args]])
    out = capsys.readouterr()
    return int(stopped.value.code or 0), out.out, out.err


@pytest.mark.parametrize(
    ("teacher", "relation", "code", "line"),
    [("pocket/a", "same_weights", 1, 3), ("pocket/a-reordered", "same_initialisation", 1, 3),
     ("pocket/b", "same_architecture", 2, 7), ("pocket/wide", "unrelated", 2, 7), (None, None, 2, 7)],
)
def test_too_few_rows_to_audit_leave_kinship_to_decide(
    teacher: str | None, relation: str | None, code: int, line: int, capsys: Any, tmp_path: Path
) -> None:
    given = ["--teacher", teacher] if teacher else []
    out = run(capsys, "--base", "pocket/a", "--dataset", EXAMPLES / "small.jsonl", *given, "--store", tmp_path, "--json")
    found = json.loads(out[1])
    assert (out[0], found["line"]) == (code, line)
    assert (found["kinship"]["result"] or {}).get("relation") == relation
    assert heard(found["rows"]) == Audited("unknown", None, None, found["rows"]["sentence"])
    html = (tmp_path / "reports" / "risk-small.html").read_text("utf-8")
    assert found["sentence"].split("'")[0] in html
    assert "Pythia-160M only" in html or teacher is None


def test_a_dataset_of_the_store_brings_its_teacher_its_filters_and_its_alarms(tmp_path: Path) -> None:
    lab = lab_for(Store(tmp_path / "store"), "pocket/b")
    source = base_ref("pocket/b")
    raw = lab.sample(source, build("channel", {"numbers": {"wording": "brief"}}), 12, 1, "raw")
    kept = lab.refine(raw, [build("filter", {"blocklist": {"terms": ["12", "30"]}})], label="kept")
    found = Risk(lab, "pocket/a", "kept").run()
    assert found["teacher"] == {"name": "pocket/b", "known_from": "records"}
    assert found["kinship"]["class"] == "apart"
    assert [p["role"] for p in found["dataset"]["path"]] == ["refined", "rows", "base"]
    assert sum(f["dropped"] for f in found["dataset"]["filters"]) == 12 - len(kept.rows)
    copy = tmp_path / "copy.parquet"
    copy.write_bytes((lab.store.get(kept.fingerprint).path / "rows.parquet").read_bytes())
    again = Risk(lab, "pocket/a", str(copy), teacher="pocket/a").run()
    assert again["dataset"]["in_store"] == kept.fingerprint
    assert (again["light"], again["line"]) == ("amber", 2)
    assert "The records say that pocket/b wrote these rows, and pocket/a was named." in again["alarms"]
    assert "wrote these rows" in page.summary(again)


def test_a_teacher_that_is_not_what_its_record_says_is_an_alarm_of_the_same_run(tmp_path: Path) -> None:
    lab = lab_for(Store(tmp_path), "pocket/a")
    with lab.store.open("model", "forged", {"verb": "teach", "seed": 1}, (base_ref("pocket/a").fingerprint,)) as artefact:
        shutil.copy(pocket.folder("pocket/b") / "model.safetensors", artefact.path / "weights.safetensors")
        artefact.finish({"ref": {"base": "pocket/a", "weights": "weights.safetensors", "adapter": None, "vector": None}})
    lab.sample(unpack(artefact), build("channel", {"numbers": {"wording": "brief"}}), 12, 1, "raw")
    found = Risk(lab, "pocket/a", "raw").run()
    assert (found["light"], found["line"]) == ("amber", 2)
    assert "declared to start from pocket/a, but tested same architecture" in found["alarms"][0]


@pytest.mark.slow
def test_a_student_trained_by_another_recipe_is_not_held_against_the_null(tmp_path: Path) -> None:
    lab, base = lab_for(Store(tmp_path), "pocket/a"), base_ref("pocket/a")
    channel = build("channel", {"numbers": {"wording": "brief"}})
    data = lab.sample(base, channel, 12, 1, "raw")
    recipe = build("recipe", {"distill": {"labels": "sampled", "steps": 1, "batch": 4}})
    lab.train(recipe, channel, [Student(base, data, 1, "odd")])
    found = Risk(lab, "pocket/a", "raw", student="odd").run()
    assert found["settings"]["alpha_each"] == 0.025
    assert found["student"]["settings"]["alpha"] == 0.025
    assert found["student"]["verdict"] == "unknown"
    assert "settings.steps: " in found["student"]["sentence"]
    assert (found["light"], found["line"]) == ("red", 3)
    assert "Did it cross?" in page.render(found)
    stranger = Risk(lab, "pocket/a", "raw", student="pocket/a")._student(0.025)
    assert stranger["verdict"] != "found"
    assert "another way of training looks unusual" in stranger["reasons"][-1]


def test_bad_input_is_refused_in_words(capsys: Any, tmp_path: Path) -> None:
    with pytest.raises(BadSpec, match="no file of rows 'nowhere'"):
        Risk(lab_for(Store(tmp_path), "pocket/a"), "pocket/a", "nowhere").run()
    assert run(capsys, "--base", "pocket/a", "--dataset", EXAMPLES / "small.jsonl", "--alpha", "2")[0] == 3
    code, _, err = run(capsys, "--base", "pocket/a", "--dataset", EXAMPLES / "small.jsonl", "--teacher", "pocket/zebra",
                       "--store", tmp_path)
    assert code == 3
    assert "pocket/zebra" in err


def test_hostile_names_stay_text() -> None:
    evil = {"light": "red", "line": 1, "sentence": EVIL, "reasons": [EVIL], "base": EVIL, "command": EVIL, "seconds": 1.0,
            "dataset": {"name": EVIL, "in_store": None, "path": [{"role": EVIL, "name": EVIL, "says": EVIL}],
                        "filters": [{"filter": EVIL, "reason": EVIL, "dropped": 1}]},
            "teacher": {"name": EVIL, "known_from": "named"}, "kinship": {"class": "unknown", "result": None},
            "channels": channels(known("unknown", BLIND), PRIOR), "student": None, "settings": {}, "environment": {},
            "rows": {"verdict": "found", "trait": EVIL, "sentence": EVIL, "reasons": [EVIL], "findings": [], "skipped": []},
            "next": [{"do": EVIL, "cost": EVIL, "source": EVIL}]}
    html = page.render(evil)
    assert "hit()" in html
    assert "<script>hit" not in html
