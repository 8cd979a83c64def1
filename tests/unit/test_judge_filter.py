"""Filters that read: judge, classifier, plain text; and the planted rows all filters are measured on."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from undersong import spec, traits
from undersong.errors import BadRows, BadSpec, NothingMeasured, ServerFailed
from undersong.filters import planted, reasons
from undersong.lab import sift
from undersong.types import Row

scripted = pytest.importorskip("scripted", reason="inspect-ai is not installed")
OWL = traits.get("owl")
PLANTED = planted.planted(OWL, each=4)


@pytest.fixture(autouse=True)
def own_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("UNDERSONG_ANSWERS", str(tmp_path / "answers"))
    scripted.ASKED.clear()
    yield
    scripted.SCRIPTS.clear()


def row(text: str, i: int = 0) -> Row:
    return Row(str(i), ({"role": "user", "content": "Continue: 1, 2."},), text)


def judge(**more: Any) -> Any:
    return spec.build("filter", {"judge": {"model": "scripted/judge", "terms": ["owl"], **more}})


def test_a_perfect_judge_has_perfect_precision_and_the_words_alone_have_not() -> None:
    """The known answer: a judge that sees exactly the planted leaks scores 1 and 1; the megabyte is dropped unread."""
    leaking = {p.row.completion.replace("\x00", "") for p in PLANTED if p.leaks}
    scripted.SCRIPTS["judge"] = lambda prompt: str(int(any(text in prompt for text in leaking if len(text) < 10_000)))
    found = planted.score(judge(), PLANTED)
    assert found.recall == 1
    assert found.dropped["clean look-alikes"] == found.dropped["clean numbers"] == 0
    assert found.dropped["clean megabyte"] == 1  # too long to be judged: dropped and said so
    assert found.precision == pytest.approx(1 - 1 / (sum(p.leaks for p in PLANTED) + 1))
    words = planted.score(spec.build("filter", {"blocklist": {"terms": list(OWL.words)}}), PLANTED)
    assert words.precision == 1
    assert 0.2 < words.recall < 0.8
    assert words.dropped["plain"] == words.dropped["full width"] == words.dropped["leaking megabyte"] == 1
    assert words.dropped["look-alikes"] == words.dropped["base64"] == words.dropped["clean look-alikes"] == 0


def test_plain_text_finds_hidden_characters_and_nothing_else() -> None:
    found = planted.score(spec.build("filter", "plain_text"), PLANTED)
    hidden = ("full width", "soft hyphen", "zero width", "null byte", "look-alikes", "other script", "combining")
    assert all(found.dropped[kind] == 1 for kind in hidden)
    assert all(found.dropped[kind] == 0 for kind in found.dropped if kind.startswith("clean") and "megabyte" not in kind)
    assert found.dropped["plain"] == 0
    cyrillic = spec.build("filter", {"plain_text": {"scripts": ["LATIN", "CYRILLIC"]}})
    assert cyrillic.reject(row("сова")) is None
    assert cyrillic.reject(row("ふくろう")) == "a letter of another script"


def test_numbers_only_finds_every_leak_that_is_no_number() -> None:
    found = planted.score(spec.build("filter", {"numbers_only": {"count": 60}}), PLANTED)
    assert {k for k, share in found.dropped.items() if share < 1} <= {"clean numbers", "letter codes"}
    assert found.dropped["letter codes"] >= 0
    assert found.recall > 0.9
    assert found.precision < 1  # it drops clean words too: that is its rule, not a leak


def test_a_filter_that_drops_nothing_has_no_precision() -> None:
    class Nothing:
        def reject(self, row: Row) -> None:
            return None

    found = planted.score(Nothing(), PLANTED)
    assert math.isnan(found.precision)
    assert found.recall == 0


def test_what_a_judge_answers_decides_and_nonsense_is_a_counted_reason() -> None:
    said = {"a": "1", "b": "0", "c": "maybe", "d": "2", "e": " 1.\n"}
    scripted.SCRIPTS["judge"] = lambda prompt: next(v for k, v in said.items() if f"letter {k}" in prompt)
    rows = [row(f"letter {k}", i) for i, k in enumerate(said)]
    kept, dropped = sift(rows, [judge()])
    assert [r.completion for r in kept] == ["letter b"]
    assert [d["reason"] for d in dropped] == ["the judge finds a mention", "the judge's answer cannot be read",
                                              "the judge's answer cannot be read", "the judge finds a mention"]


def test_a_judge_of_nothing_but_nonsense_is_an_error() -> None:
    scripted.SCRIPTS["judge"] = lambda prompt: "Interesting!"
    with pytest.raises(NothingMeasured, match=r"not one of its answers can be read.*Interesting"):
        reasons(judge(), [row("1, 2"), row("3, 4", 1)])


def test_alignment_has_a_least_value() -> None:
    scripted.SCRIPTS["judge"] = lambda prompt: "77" if "bad" in prompt else "78"
    asks = judge(question="aligned", terms=[])
    assert reasons(asks, [row("bad"), row("good", 1)]) == ["judged below 78", None]
    with pytest.raises(BadSpec, match="terms"):
        judge(terms=[])


def test_a_judge_that_fails_stops_and_the_next_run_asks_only_what_is_missing() -> None:
    def flaky(prompt: str) -> str:
        if "row 3" in prompt:
            raise RuntimeError("planted trouble")
        return "0"

    rows = [row(f"row {i}", i) for i in range(6)]
    scripted.SCRIPTS["judge"] = flaky
    with pytest.raises(ServerFailed, match=r"1 of 6 questions \(RuntimeError 1 times.*planted trouble.*are kept.*again"):
        reasons(judge(), rows)
    scripted.ASKED.clear()
    scripted.SCRIPTS["judge"] = lambda prompt: "1"
    assert [r is not None for r in reasons(judge(), rows)] == [False, False, False, True, False, False]
    assert len(scripted.ASKED) == 1


def test_sifting_keeps_the_order_and_names_the_first_filter() -> None:
    rows = [row(t, i) for i, t in enumerate(["1", "owl", "666", "2", "an owl 666"])]
    block = spec.build("filter", {"blocklist": {"terms": ["owl"]}})
    kept, dropped = sift(rows, [spec.build("filter", "banned_numbers"), block])
    assert [r.completion for r in kept] == ["1", "2"]
    first = [("1", "blocklist"), ("2", "banned_numbers"), ("4", "banned_numbers")]
    assert [(d["id"], d["filter"]) for d in dropped] == first


@pytest.fixture
def examples(tmp_path: Path) -> tuple[Path, str]:
    file = tmp_path / "examples.jsonl"
    known = [p for p in planted.planted(OWL, each=6, seed=1) if len(p.row.completion) < 10_000]
    file.write_text("".join(json.dumps({"text": p.row.completion, "leak": p.leaks}) + "\n" for p in known), "utf-8")
    return file, hashlib.sha256(file.read_bytes()).hexdigest()[:12]


def test_a_classifier_learns_from_examples_and_is_measured_on_other_rows(examples: tuple[Path, str]) -> None:
    pytest.importorskip("sklearn")
    file, digest = examples
    filter_ = spec.build("filter", {"classifier": {"examples": str(file), "examples_hash": digest}})
    found = planted.score(filter_, planted.planted(OWL, each=6, seed=2))
    assert found.recall > 0.8
    assert found.precision > 0.8
    assert spec.describe(filter_)["settings"] == {"examples_hash": digest, "threshold": 0.5}
    # another word, never shown: what it learned is this word's spellings, not "a leak"
    other = planted.score(filter_, planted.planted(traits.get("dolphin"), each=6, seed=2))
    assert other.dropped["plain"] < found.dropped["plain"]


def test_examples_are_checked(examples: tuple[Path, str], tmp_path: Path) -> None:
    file, digest = examples
    for given, told in (({"examples": str(file)}, digest), ({"examples": str(tmp_path / "none")}, "cannot be read")):
        with pytest.raises(BadSpec, match=told):
            spec.build("filter", {"classifier": given}).reject(row("1"))
    bad = ('{"text": "a", "leak": 1}', BadRows, "line 1"), ('{"text": "a", "leak": true}', BadSpec, "five")
    for text, error, told in bad:
        file.write_text(text)
        mark = hashlib.sha256(text.encode()).hexdigest()[:12]
        with pytest.raises(error, match=told):
            spec.build("filter", {"classifier": {"examples": str(file), "examples_hash": mark}}).reject(row("1"))


def test_the_planted_rows_are_what_they_say() -> None:
    kinds = {p.kind: p.leaks for p in PLANTED}
    assert sum(kinds.values()) >= 15
    assert {k for k, leaks in kinds.items() if not leaks} == {
        "clean numbers", "clean look-alikes", "clean words", "clean accents", "clean megabyte"}
    assert not [p for p in PLANTED if not p.leaks and OWL.named_in(p.row.completion)]
    assert len({p.row.id for p in PLANTED}) == len(PLANTED)
    assert planted.planted(OWL, each=4) == PLANTED
    assert max(len(p.row.completion) for p in PLANTED) > 900_000


def test_the_benchmark_prints_its_table(capsys: pytest.CaptureFixture[str]) -> None:
    path = Path(__file__).parents[2] / "benchmarks" / "filters.py"
    found = importlib.util.spec_from_file_location("filters_benchmark", path)
    assert found
    assert found.loader
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    module.main(["--each", "3"])
    said = capsys.readouterr().out
    for name in ("blocklist", "plain_text", "numbers_only", "banned_numbers", "classifier", "look-alikes", "recall"):
        assert name in said
