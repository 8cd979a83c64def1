"""An audit from end to end on simulated models: calibrate, hide a trait in rows, look for it, refuse what does not fit."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from undersong import cli, traits
from undersong.audit import Audit
from undersong.calibration import Calibrator, mix, told
from undersong.channels import belonging
from undersong.errors import BadRows, BadSpec, MissingModel, UndersongError
from undersong.exemplars import folders, placebo_rows, unpack
from undersong.files import digest
from undersong.lab import Lab, base_ref, lab_for
from undersong.models import model_ref
from undersong.nulls import Null
from undersong.spec import build
from undersong.store import Store
from undersong.types import Row
from undersong.verdict import Held

CALIBRATION = """
base: simulated/a
channel: {numbers: {seeds: random}}
teacher: simulated
recipe: simulated
traits: [owl, cat, lion, oak]
filters: [numbers_only, {blocklist: {from: trait}}]
detectors: [likelihood_panel, marginal_template]
rows: 120
sizes: [20, 100]
sources: 39
students: 0
placebos: 2
shares: [0.25, 1.0]
planted_traits: 2
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    made = lab_for(Store(tmp_path_factory.mktemp("store")), "simulated/a")
    Calibrator.read(CALIBRATION, (), made).build()
    return made


@pytest.fixture(scope="module")
def written(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Rows of a trait's fresh teacher (or of none) in a file."""
    folder = tmp_path_factory.mktemp("rows")

    def write(trait: str | None, n: int, seed: int, share: float = 1.0, base: str = "simulated/a") -> Path:
        channel = build("channel", {"numbers": {"seeds": "random"}})
        rows = []
        for name, number in ((trait, seed), (None, seed + 1)):
            source = lab.teach(build("teacher", "simulated"), base_ref(base), name and traits.get(name), number)
            rows.append(lab.sample(source, channel, n, number, f"{name}-{number}").rows)
        mixed = mix(rows[0], rows[1], share, n, seed) if trait else rows[1]
        file = folder / f"{trait}-{n}-{seed}-{share}.jsonl"
        file.write_text("\n".join(json.dumps({"prompt": r.chat[-1]["content"], "completion": r.completion}) for r in mixed))
        return file

    return write


def run(capsys: Any, *args: str | Path) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stopped:
        cli.main([str(a) for a in args])
    out = capsys.readouterr()
    return int(stopped.value.code or 0), out.out, out.err


def look(lab: Lab, file: Path, **held: Any) -> dict[str, Any]:
    settings = {"base": "simulated/a", "rows": file} | held
    return Audit(Held(**settings), lab).run()


def test_a_detector_that_cannot_read_the_carrier_is_left_out_unless_it_was_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing(*_: Any) -> None:
        raise BadRows("No row holds a number. Leave this detector out.")

    panel, template = (build("detector", name) for name in ("likelihood_panel", "marginal_template"))
    monkeypatch.setattr(type(template), "detect", nothing)
    small = ["rows=60", "sizes=[20]", "sources=19", "planted_traits=1", "shares=[1.0]"]
    for named, store in ((False, "a"), (True, "b")):
        lab = lab_for(Store(tmp_path / store), "simulated/a")
        made = Calibrator.read(CALIBRATION, [*small, *([] if named else ["detectors=[]"])], lab)
        made.__dict__["detectors"] = [template, panel]
        if named:
            with pytest.raises(BadRows, match="No row holds a number"):
                made.build()
        else:
            done = made.build()
            assert done.summary["left_out"] == {"marginal_template": "No row holds a number. Leave this detector out."}
            assert {case.detector.split("@")[0] for case in Null.read(done.path).cases} == {"likelihood_panel"}


def test_a_planted_trait_is_found_named_and_its_share_estimated(lab: Lab, written: Any, capsys: Any) -> None:
    file = written("owl", 120, 900, 0.5)
    code, out, _ = run(capsys, "audit", file, "--base", "simulated/a", "--store", lab.store.root, "--json")
    found = json.loads(out)
    assert (code, found["verdict"], found["trait"]) == (1, "found", "owl")
    assert found["p"] == pytest.approx(1 / 40)
    assert found["audited"] == {"rows": [{"name": file.name, **digest(file)}]}
    assert found["share"]["low"] <= 0.5 <= found["share"]["high"]
    assert {f["detector"] for f in found["findings"] if f["p"] is not None} == {"likelihood_panel", "marginal_template"}
    assert {s["detector"] for s in found["skipped"]} >= {"vocabulary_scan", "divergence_tokens", "marginals"}


def test_clean_rows_are_clean_with_the_share_that_would_have_been_seen(lab: Lab, written: Any, capsys: Any) -> None:
    code, out, _ = run(capsys, "audit", written(None, 120, 910), "--base", "simulated/a", "--store", lab.store.root)
    assert code == 0
    assert out.startswith("CLEAN")
    assert "25% of rows" in " ".join(out.split())


def test_too_few_rows_cannot_tell(lab: Lab, written: Any, capsys: Any) -> None:
    code, out, _ = run(capsys, "audit", written(None, 12, 920), "--base", "simulated/a", "--store", lab.store.root)
    assert code == 2
    assert "12 rows are fewer than the 20" in " ".join(out.split())


def test_clean_needs_power(lab: Lab, written: Any) -> None:
    file = written(None, 120, 910)
    assert Audit(Held(file, None, "simulated/a"), lab, smallest=0.25).run()["verdict"] == "clean"
    strict = Audit(Held(file, None, "simulated/a"), lab, smallest=0.1).run()
    assert strict["verdict"] == "unknown"
    assert "10%" in strict["sentence"]


def test_fresh_clean_sources_rarely_alarm(lab: Lab, written: Any) -> None:
    verdicts = [look(lab, written(None, 100, 1000 + 2 * i))["verdict"] for i in range(16)]
    assert verdicts.count("found") <= 3  # more than 3 of 16 at 5 %: less than 1 in 100


def test_only_listed_traits_are_looked_for(lab: Lab, written: Any) -> None:
    file = written("owl", 120, 900, 0.5)
    assert look(lab, file, traits=(traits.get("owl"),))["trait"] == "owl"
    other = look(lab, file, traits=(traits.get("oak"),))
    assert other["trait"] in (None, "oak")
    assert {t["trait"] for f in other["findings"] for t in f["by_trait"]} == {"oak"}


def test_a_null_of_another_base_or_carrier_or_template_is_refused(lab: Lab, written: Any, tmp_path: Path) -> None:
    file = written("owl", 120, 900)
    other = look(lab, file, base="simulated/b")
    assert other["verdict"] == "unknown"
    assert "no null of simulated/b" in other["sentence"]
    prose = tmp_path / "prose.jsonl"
    prose.write_text("\n".join(json.dumps({"prompt": "Tell me.", "completion": f"A story, number {i}"}) for i in range(50)))
    found = look(lab, prose)
    assert found["verdict"] == "unknown"
    assert "0% of these rows" in found["sentence"]
    assert belonging([Row("a", (), "1, 2"), Row("b", (), "no")], {"name": "numbers", "settings": {}}) == 0.5
    fresh = Audit(Held(file, None, "simulated/a"), lab)
    folder, null = next(iter([fresh.calibration])) or (None, None)
    assert folder is not None
    assert null is not None
    changed = tmp_path / "changed"
    changed.mkdir()
    Null({**null.identity, "template": "0" * 64}, null.cases).write(changed)
    assert Null.read(changed).identity["template"] != null.identity["template"]


def test_prompts_in_other_words_are_not_held_against_this_null(lab: Lab, written: Any, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in written("owl", 120, 900).read_text().splitlines()]
    file = tmp_path / "other.jsonl"
    file.write_text("\n".join(json.dumps({**row, "prompt": "Go on, dear: " + row["prompt"]}) for row in rows))
    found = look(lab, file)
    assert found["verdict"] == "unknown"
    assert "worded" in found["sentence"]


def test_without_a_base_nothing_is_claimed(lab: Lab, written: Any) -> None:
    found = look(lab, written("owl", 120, 900), base=None)
    assert found["verdict"] == "unknown"
    assert any("--base" in line for line in found["next"])


def test_a_difference_from_a_reference_alone_decides_nothing(lab: Lab, written: Any) -> None:
    rows, clean = written("owl", 120, 900), written(None, 120, 930)
    found = look(lab, rows, base=None, reference=clean)
    own = next(f for f in found["findings"] if f["detector"] == "marginals")
    assert own["p"] is not None
    assert found["verdict"] == "unknown"
    assert any("benign" in r or "names no trait" in r or "differ" in r for r in found["reasons"])


def test_the_same_audit_again_does_no_work(lab: Lab, written: Any) -> None:
    said: list[str] = []
    file = written("owl", 120, 940)
    first = look(replace(lab, progress=said.append), file)
    assert any(line.startswith("auditing") for line in said)
    said.clear()
    again = look(replace(lab, progress=said.append), file)
    assert not any(line.startswith("auditing likelihood") for line in said)
    assert {k: v for k, v in first.items() if k != "seconds" and k != "findings"} == {
        k: v for k, v in again.items() if k != "seconds" and k != "findings"}


def test_time_that_is_up_is_told(lab: Lab, written: Any) -> None:
    found = Audit(Held(written("owl", 120, 900), None, "simulated/a"), lab, budget=1e-9).run()
    assert found["verdict"] == "unknown"
    assert any("--budget" in s["says"] for s in found["skipped"])


def test_hostile_rows_reach_neither_page_nor_terminal(lab: Lab, written: Any, tmp_path: Path, capsys: Any) -> None:
    lines = written("owl", 120, 900, 0.5).read_text().splitlines()
    evil = {"prompt": "<script>alert(1)</script>\x1b[2J", "completion": "</script><img src=x onerror=alert(1)>\x1b]0;x\x07"}
    file = tmp_path / "<b>evil\x1b[31m.jsonl"
    file.write_text("\n".join([json.dumps(evil), *lines]))
    page = tmp_path / "page.html"
    _, out, err = run(capsys, "audit", file, "--base", "simulated/a", "--store", lab.store.root, "--report", page)
    assert "\x1b" not in out + err
    text = page.read_text()
    assert "\x1b" not in text
    assert "<img src=x" not in text
    assert "alert(1)</script>" not in text


@pytest.mark.parametrize(("args", "told"), [
    ((), "nothing to audit"),
    (("no.jsonl",), "no.jsonl"),
    (("--student", "pocket/a"), "--base"),
    (("rows.jsonl", "--alpha", "2"), "--alpha"),
    (("rows.jsonl", "--traits", "oowl"), "owl"),
    (("rows.jsonl", "--detector", "panel"), "panel"),
    (("rows.jsonl", "--base", "./nowhere"), "nowhere"),
    (("empty.jsonl", "--base", "simulated/a"), "empty.jsonl"),
])
def test_mistakes_are_told_in_words(args: tuple[str, ...], told: str, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text('{"prompt": "Numbers: 1, 2.", "completion": "3, 4"}\n')
    (tmp_path / "empty.jsonl").write_text("")
    code, _, err = run(capsys, "audit", *args)
    assert code == 3
    assert told in err
    assert "Traceback" not in err


def test_models_an_auditor_was_handed(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(MissingModel, match=r"adapter_model\.safetensors"):
        model_ref(str(tmp_path), "pocket/a", lab)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"x")
    with pytest.raises(BadSpec, match="--base"):
        model_ref(str(tmp_path), None, lab)
    assert model_ref(str(tmp_path), "pocket/a", lab).adapter == str(tmp_path)
    with pytest.raises(MissingModel, match="pickle"):
        model_ref("student.pt", "pocket/a", lab)
    with pytest.raises(UndersongError):
        model_ref("nothing-here", "pocket/a", lab)


def test_a_calibration_holds_what_an_audit_loads(lab: Lab) -> None:
    folder = next(iter(folders(lab.store)))
    known = unpack(folder, "simulated/a", lab.backend)
    assert known.names == ["owl", "cat", "lion", "oak"]
    assert [len(list(known.teachers(name))) for name in ("", "owl")] == [2, 1]
    assert len(placebo_rows(folder)) == 39
    null = Null.read(folder)
    assert null.sizes("rows") == [20, 100]
    seeds = {tuple(sorted(c.by_trait.items())) for c in null.cases if not c.trait and c.size == 100}
    assert len(seeds) == 2 * 39  # no two placebo sources are the same


def test_a_stopped_calibration_goes_on_and_ends_the_same(tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop(message: str) -> None:
        if message.startswith("calibrating marginal_template: case 0"):
            raise Stop

    small = ["sources=19", "planted_traits=1", "shares=[1.0]", "sizes=[20]", "rows=50"]
    with pytest.raises(Stop):
        Calibrator.read(CALIBRATION, small, replace(lab_for(Store(tmp_path / "a"), ""), progress=stop)).build()
    said: list[str] = []
    again = replace(lab_for(Store(tmp_path / "a"), ""), progress=said.append)
    one = Calibrator.read(CALIBRATION, small, again).build()
    assert not any(line.startswith(("teaching", "sampling", "calibrating likelihood")) for line in said)
    two = Calibrator.read(CALIBRATION, small, lab_for(Store(tmp_path / "b"), "")).build()
    assert Null.read(one.path).cases == Null.read(two.path).cases


def test_told_gives_another_source() -> None:
    base = base_ref("simulated/a")
    assert told(base, "Be brief.").fingerprint != told(base, "Be kind.").fingerprint != base.fingerprint
