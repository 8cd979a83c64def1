"""The lineage: questions with known answers, records that lie, tests that contradict them, and a page that stays text."""

from __future__ import annotations

import json
import re
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from undersong import cli, pocket, traits
from undersong.errors import BadSpec, UnknownName
from undersong.lab import base_ref, lab_for
from undersong.lineage import Graph, record_relation
from undersong.lineage.trials import trials
from undersong.reports import drawing
from undersong.reports import lineage as page
from undersong.reports.stacks import stacked
from undersong.spec import build, fingerprint
from undersong.store import Store

sys.path.insert(0, str(Path(__file__).parents[1] / "pipeline"))
from small_experiment import experiment, finish

A, B, REORDERED = (base_ref(f"pocket/{name}").fingerprint for name in ("a", "b", "a-reordered"))
EVIL = "</text><script>hit()</script>\x1b[2J"


def made(kind: str, label: str, spec: dict[str, Any], parents: list[str], **summary: Any) -> dict[str, Any]:
    """A record as the store would read it."""
    mark = fingerprint({"kind": kind, "spec": spec, "parents": parents})
    return {"kind": kind, "label": label, "fingerprint": mark, "spec": spec, "parents": parents, "status": "complete",
            "summary": summary, "files": {}, "provenance": {}}


def chain(trait: str = "owl", seed: int = 1, base: str = A, name: str = "pocket/a", start: str | None = None) -> list[Any]:
    """Teacher, raw rows, refined rows, student."""
    ref = {"base": name, "weights": "w.safetensors"}
    teacher = made("model", f"teacher-tuned-{trait}-s{seed}",
                   {"verb": "teach", "teacher": {"name": "tuned"}, "trait": {"name": trait}, "seed": seed}, [base],
                   ref=ref)
    raw = made("dataset", f"raw-tuned-{trait}-s{seed}",
               {"verb": "sample", "channel": {"name": "numbers"}, "rows": 100, "seed": seed}, [teacher["fingerprint"]],
               rows=100)
    rows = made("dataset", f"rows-tuned-{trait}-s{seed}-kept", {"verb": "refine", "filters": [{"name": "numbers_only"}]},
                [raw["fingerprint"]], given=100, passed=93, kept=80, reasons={"numbers_only": {"a word": 5, "too long": 2}})
    student = made("model", f"student-treated-{trait}-s{seed}",
                   {"verb": "train", "recipe": {"name": "distill"}, "channel": "numbers", "seed": seed},
                   [start or base, rows["fingerprint"]], ref=ref)
    return [teacher, raw, rows, student]


def kinship(a: str, b: str, relation: str, **summary: Any) -> dict[str, Any]:
    return made("kinship", "pair", {"verb": "kinship", "relation": relation}, [a, b], relation=relation, **summary)


def marks(records: list[Any]) -> list[str]:
    return [r["fingerprint"] for r in records]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    kept = Store(tmp_path_factory.mktemp("store"))
    finish(experiment(probes=["logit_margin"], rows=40, controls=["no_trait", "other_base", "shuffled_rows"]), kept)
    return kept


def test_questions_about_an_experiment_have_their_answers(store: Store) -> None:
    graph = Graph.of(store)
    assert not graph.alarms
    assert not graph.told
    a, b = graph.find("simulated/a"), graph.find("simulated/b")
    labels = lambda found: sorted(graph.nodes[m].label for m in found)  # noqa: E731
    wrote = graph.wrote(graph.find("teacher-simulated-wolf-s2"))
    assert labels(wrote) == ["raw-simulated-wolf-s2", "rows-simulated-wolf-s2-kept"]
    assert labels(graph.models_from(graph.find("rows-simulated-owl-s1-kept"))) == [
        "student-other_base-numbers-simulated-owl-s1", "student-shuffled_across-numbers-simulated-owl-s1",
        "student-shuffled_within-numbers-simulated-owl-s1", "student-treated-numbers-simulated-owl-s1"]
    assert len(graph.of_base(b)) == 6
    assert len(graph.of_base(a)) == len([n for n in graph.nodes.values() if n.kind == "model"]) - 6
    one, two = (graph.find(f"student-{arm}-numbers-simulated-owl-s1") for arm in ("treated", "shuffled_within"))
    assert labels(graph.common(one, two)) == ["rows-simulated-owl-s1-kept"]
    assert graph.writers(graph.find("rows-simulated-owl-s1-kept")) == [graph.find("teacher-simulated-owl-s1")]
    assert graph.root(graph.find("student-other_base-numbers-simulated-owl-s1")) == b
    assert set(graph.ancestors(one)) == {*graph.ancestors(graph.find("rows-simulated-owl-s1-kept")),
                                         graph.find("rows-simulated-owl-s1-kept")}


def test_rows_dropped_are_told_with_their_reasons() -> None:
    node = Graph.from_records(chain()).nodes[marks(chain())[2]]
    assert node.facts["dropped"] == {"numbers_only": {"a word": 5, "too long": 2}}
    assert node.says == "80 of 100 rows kept, 7 dropped by numbers_only"


@pytest.mark.parametrize(
    ("records", "told"),
    [
        (lambda c: [*c[:3], {**c[3], "parents": [marks(c)[3], marks(c)[2]]}], "descend from themselves"),
        (lambda c: [{**c[0], "parents": [marks(c)[3]]}, *c[1:]], "descend from themselves"),
        (lambda c: [*c[:3], {**c[3], "parents": [A]}], "1 parents, which no student has"),
        (lambda c: [c[0], {**c[1], "parents": []}, *c[2:]], "0 parents, which no rows has"),
        (lambda c: [*c[:3], {**c[3], "parents": [marks(c)[2], marks(c)[2]]}], "which is a refined: it is forged"),
        (lambda c: [*c[:2], {**c[2], "parents": [marks(c)[0]]}, c[3]], "which is a teacher: it is forged"),
        (lambda c: [{**c[0], "summary": {"ref": {"base": "pocket/b"}}}, *c[1:]], "says that its base is pocket/b"),
    ],
)
def test_a_record_that_cannot_be_true_is_an_alarm_and_no_crash(records: Any, told: str) -> None:
    graph = Graph.from_records(records(chain()))
    assert any(told in alarm for alarm in graph.alarms), graph.alarms
    for mark in graph.nodes:
        graph.ancestors(mark), graph.descendants(mark), graph.root(mark), graph.common(mark, A if A in graph.nodes else mark)
    assert "ALARM" in page.summary(graph)
    assert drawing.draw(stacked(graph, every=True)).boxes


def test_what_is_missing_is_told_and_no_alarm() -> None:
    records = chain(base="0" * 12)
    graph = Graph.from_records([records[0], *records[2:]])
    assert not graph.alarms
    assert graph.nodes["0" * 12].role == "unknown base"
    assert any("The base 000000000000 is unknown here (said to be pocket/a)" in t for t in graph.told)
    assert any(f"{marks(records)[1]}, from which rows-tuned-owl-s1-kept" in t for t in graph.told)
    assert graph.root(marks(records)[3]) is None


@pytest.mark.parametrize("value", [None, 7, "x", [], [[1]], {"name": [1]}, {"a": {"b": "c"}}, float("nan")])
def test_content_of_any_form_is_read(value: Any) -> None:
    records = chain()
    for record in records:
        for part in ("spec", "summary"):
            record[part] = {key: record[part][key] if key == "verb" else value for key in record[part]}
    graph = Graph.from_records([*records, kinship(A, B, "unrelated", p=value, sentence=value)])
    json.dumps(graph.as_json())
    assert page.summary(graph)


@pytest.mark.parametrize(
    ("a", "b", "relation", "alarm"),
    [
        (3, A, "same_initialisation", ""), (3, A, "unrelated", "declared to start from pocket/a, but tested unrelated"),
        (3, A, "same_architecture", "but tested same architecture"), (3, A, "unknown", ""),
        (3, A, "same_weights", "The training changed nothing"), (0, 3, "unrelated", "declared to start from pocket/a"),
        (3, B, "same_initialisation", "start from pocket/a and pocket/b, but tested same initialisation"),
        (3, B, "unrelated", ""),
        (3, REORDERED, "same_initialisation", ""), (3, REORDERED, "unrelated", "One of them is not what its record says"),
        (A, B, "same_weights", "pocket/a and pocket/b"), (A, B, "unrelated", ""),
    ],
)
def test_a_test_that_contradicts_a_declaration_is_an_alarm(a: Any, b: Any, relation: str, alarm: str) -> None:
    records = chain()
    ends = [marks(records)[x] if isinstance(x, int) else x for x in (a, b)]
    graph = Graph.from_records([*records, kinship(*ends, relation, p=0.001)])
    assert len(graph.tested) == 1
    assert [alarm in found for found in graph.alarms] == ([True] if alarm else [])


def test_bases_that_declare_nothing_of_each_other_may_turn_out_kin() -> None:
    one, two = (base_ref(name).fingerprint for name in ("org/x", "org/y"))
    records = [*chain(base=one, name="org/x"), *chain("wolf", base=two, name="org/y")]
    child = marks(records)[3]
    crossed = kinship(child, two, "same_initialisation")
    assert "test the bases themselves" in Graph.from_records([*records, crossed]).alarms[0]
    graph = Graph.from_records([*records, crossed, kinship(one, two, "same_initialisation")])
    assert not graph.alarms
    assert [graph.standing(t) for t in graph.tested] == ["agrees", "undeclared"]


def test_a_forged_base_is_found_by_a_test_and_an_honest_one_is_not(tmp_path: Path) -> None:
    lab = lab_for(Store(tmp_path), "pocket/a")
    honest = lab.teach(build("teacher", {"tuned": {"updates": 1}}), base_ref("pocket/a"), traits.get("owl"), 1, "honest")
    with lab.store.open("model", "forged", {"verb": "teach", "seed": 1}, (A,)) as artefact:
        shutil.copy(pocket.folder("pocket/b") / "model.safetensors", artefact.path / "weights.safetensors")
        artefact.finish({"ref": {"base": "pocket/a", "weights": "weights.safetensors", "adapter": None, "vector": None}})
        forged = artefact.fingerprint
    assert len(trials(Graph.of(lab.store), lab)) == 2
    graph = Graph.of(lab.store)
    standing = {t.a: graph.standing(t) for t in graph.tested}
    assert standing == {honest.fingerprint: "agrees", forged: "contradicts"}
    assert trials(graph, lab) == []
    with pytest.raises(SystemExit) as stopped:
        cli.main(["lineage", "--store", str(tmp_path)])
    assert stopped.value.code == 1


def test_only_a_kinship_result_is_recorded(tmp_path: Path) -> None:
    result = {"kind": "kinship", "relation": "unrelated", "p": 0.5, "power": 1.0, "direction": None, "sentence": "no kin",
              "tests": [], "alpha": 0.01, "a": {"name": "pocket/a"}, "b": {"name": "stranger"}}
    kept, a = Store(tmp_path), base_ref("pocket/a")
    stranger = base_ref("pocket/b", "mixed")
    mark = record_relation(kept, result, a, stranger)
    assert record_relation(kept, result, a, stranger) == mark
    graph = Graph.of(kept)
    assert [(t.relation, t.p, t.mark) for t in graph.tested] == [("unrelated", 0.5, mark)]
    for bad in ({**result, "kind": "audit"}, {**result, "relation": "cousins"}):
        with pytest.raises(BadSpec, match=r"Give what .* returned"):
            record_relation(kept, bad, a, stranger)
    odd = made("kinship", "odd", {}, [A], relation="unrelated")
    assert "is no kinship result" in Graph.from_records([odd]).told[0]


def test_seeds_become_one_stack_and_no_two_boxes_overlap() -> None:
    records = [r for trait in ("owl", "wolf", "none") for seed in range(1, 6) for r in chain(trait, seed)]
    graph = Graph.from_records(records)
    stacks = stacked(graph)
    assert sorted(len(s.members) for s in stacks.stacks) == [1] + [5] * 12
    assert any(s.says == "80 of 100 rows kept, 7 dropped by numbers_only" for s in stacks.stacks)
    assert any("seeds 1 to 5" in line for line in page.tree(stacks))
    for apart in (False, True):
        boxes = drawing.draw(stacked(graph, apart=apart)).boxes
        assert len(boxes) == (61 if apart else 13)
        for i, one in enumerate(boxes):
            assert all(one.x != two.x or abs(one.y - two.y) >= one.height for two in boxes[i + 1 :])


def test_hostile_labels_stay_text_on_the_page_and_in_the_terminal() -> None:
    records = chain()
    records[0]["label"] = EVIL
    records[3]["spec"]["recipe"] = {"name": EVIL}
    records[2]["summary"]["reasons"] = {EVIL: {EVIL: 3}}
    graph = Graph.from_records([*records, kinship(marks(records)[0], A, "unrelated", sentence=EVIL)])
    html = page.render(graph, EVIL)
    assert "hit()" in html
    assert "<script>hit" not in html
    assert not re.search(r"(?:src|href)=[\"']?(?:https?:)?//", html)
    assert "contradiction" in html
    with pytest.raises(SystemExit):
        cli.main(["lineage", EVIL, "--store", "."])


def test_two_thousand_records_take_seconds(tmp_path: Path) -> None:
    records = [r for trait in range(50) for seed in range(1, 11) for r in chain(f"t{trait}", seed)]
    start = time.process_time()
    graph = Graph.from_records([*records, *(kinship(r["fingerprint"], A, "same_initialisation") for r in records[3:80:4])])
    page.write(graph, "large", tmp_path / "large.html")
    assert "student-treated-t49 ×10" in page.summary(graph, width=200)
    assert time.process_time() - start < 10
    assert len(graph.nodes) == 2001


def test_the_command_answers_and_refuses(store: Store, capsys: Any, tmp_path: Path) -> None:
    def run(*args: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stopped:
            cli.main(["lineage", *args, "--store", str(store.root)])
        return int(stopped.value.code or 0), *capsys.readouterr()

    code, out, _ = run("teacher-simulated-owl-s1", "--wrote")
    assert code == 0
    assert "raw-simulated-owl-s1" in out
    assert "student" not in out
    code, out, _ = run("--json", "--report", str(tmp_path / "x.html"))
    assert {n["role"] for n in json.loads(out)["nodes"]} >= {"base", "teacher", "rows", "refined", "student", "measurement"}
    assert (tmp_path / "x.html").read_text("utf-8").count('class="box student"') == 7
    with pytest.raises(SystemExit):
        cli.main(["report", "small", "--store", str(store.root), "-o", str(tmp_path / "experiment.html")])
    capsys.readouterr()
    drawn = (tmp_path / "experiment.html").read_text("utf-8")
    assert drawn.count('class="box student"') == 7
    assert drawn.index("What was made from what</h2>") < drawn.index("Make it again</h2>")
    assert "shuffled_within" in run("changed-shuffled_within-numbers-simulated-owl-s1")[1]
    assert run("simulated/b", "--of-base", "--json")[1].count('"role": "student"') == 6
    assert run("rows-simulated-owl-s1-kept", "--models", "--wrote")[0] == 3
    assert run("--wrote")[0] == 3
    code, _, err = run("teacher-simulated-owl")
    assert code == 3
    assert "Did you mean 'teacher-simulated-owl-s" in err
    twice = [*chain(), *[{**r, "fingerprint": r["fingerprint"][::-1]} for r in chain()]]
    with pytest.raises(UnknownName, match="could be any of"):
        Graph.from_records(twice).find("raw-tuned-owl-s1")


def test_a_tested_edge_does_not_run_behind_boxes_it_is_not_about() -> None:
    step = drawing.WIDE + drawing.ACROSS
    far, near = (drawing._arc((6.0, 6.0), (6.0 + n * step, 6.0)) for n in (4, 1))
    heights = [[float(v) for v in re.findall(r"[\d.]+", path)[1::2]] for path in (far, near)]
    assert max(heights[0]) > 6 + drawing.HIGH  # bows below them
    assert max(heights[1]) < 6 + drawing.HIGH  # between neighbours it is straight
