"""Who wrote these rows: the exchange test, tempered likelihoods, and verdicts on rows of known authors."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from undersong import authorship, cli
from undersong.authorship import Attribution
from undersong.authorship.author import Author, Way, fitted
from undersong.authorship.typicality import Measured, exchange, power
from undersong.backends import tempering
from undersong.errors import BadRows, BadSpec, MissingModel
from undersong.lab import Lab, base_ref, lab_for
from undersong.reports import authorship as page
from undersong.spec import build
from undersong.store import Store
from undersong.types import Row, Sampling

N = 48
NUMBERS = build("channel", "numbers")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return lab_for(Store(tmp_path_factory.mktemp("store")), "")


@pytest.fixture(scope="module")
def memo() -> dict:
    return {}


@pytest.fixture(autouse=True)
def a_small_pilot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(authorship, "PILOT", 40)


def written(lab: Lab, name: str, n: int = N, temperature: float = 1.0, keep=lambda row: True) -> list[Row]:
    model = lab.backend.load(base_ref(name))
    chats = NUMBERS.prompts(3 * n, 77)
    texts = model.sample(chats, Sampling(temperature, NUMBERS.max_new_tokens(model.tokenizer), 5))
    rows = [Row(str(i), tuple(c), t) for i, (c, t) in enumerate(zip(chats, texts, strict=True))]
    return [row for row in rows if NUMBERS.reject(row) is None and keep(row)][:n]


def saved(path: Path, rows: list[Row]) -> Path:
    lines = [json.dumps({"prompt": row.chat[-1]["content"], "completion": row.completion}) for row in rows]
    path.write_text("\n".join(lines), "utf-8")
    return path


def asked(lab: Lab, memo: dict, file: Path, *candidates: str, **more) -> dict:
    return Attribution(file, candidates, lab, memo=memo, fresh=150, **more).run()


# the exchange test


def test_rows_of_the_same_source_are_rejected_as_often_as_alpha_says() -> None:
    rng = np.random.default_rng(1)
    ps = [exchange({"one": Measured(rng.normal(size=(40, 4, 3))), "all": Measured(rng.gamma(1, 1, (40, 4, 6)), True)},
                   seed=i, draws=199).p for i in range(300)]
    assert 0.02 <= np.mean(np.array(ps) <= 0.05) <= 0.085  # binomial, 99.5 %
    assert 0.42 <= np.mean(ps) <= 0.58


@pytest.mark.parametrize("joint", [False, True])
def test_a_shift_is_seen_and_power_says_so(joint: bool) -> None:
    rng = np.random.default_rng(2)
    values = rng.normal(size=(200, 4, 5))
    values[:, 0] += 0.4
    found = exchange({"x": Measured(values, joint)})
    assert found.p < 0.005
    own = Measured(rng.normal(size=(200, 4, 5)), joint)
    level = exchange({"x": own}).level
    far, near = rng.normal(size=(200, 5)) + 0.5, rng.normal(size=(200, 5))
    assert power({"x": own}, {"x": far}, level) > 0.95
    assert power({"x": own}, {"x": near}, level) < 0.5
    assert power({"x": own}, {"x": near + 0.15}, level, scale=20) > power({"x": own}, {"x": near + 0.15}, level)


def test_differences_between_prompts_are_no_difference_between_sources() -> None:
    rng = np.random.default_rng(3)
    values = rng.normal(size=(100, 3, 2)) * 0.01 + rng.normal(size=(100, 1, 2)) * 50
    assert exchange({"x": Measured(values)}).p > 0.02
    values[:, 0] += 0.02
    assert exchange({"x": Measured(values)}).p < 0.005
    assert exchange({"still": Measured(np.ones((20, 3, 2)))}).p == 1.0


def test_nothing_to_exchange_is_refused() -> None:
    with pytest.raises(BadRows, match="no prompt"):
        exchange({"x": Measured(np.zeros((0, 3, 1)))})


# tempered likelihoods


def test_tempered_likelihoods_agree_with_the_model_and_their_derivatives_with_differences(lab: Lab) -> None:
    model, rows = lab.backend.load(base_ref("pocket/b")), written(lab, "pocket/b", 12)
    chats, answers = [list(r.chat) for r in rows], [r.completion for r in rows]
    got = tempering.tempered(model, chats, answers, 1.0)
    plain = np.array([float(x.sum()) for x in model.answer_logprobs(chats, answers)])
    np.testing.assert_allclose(got.logs, plain, rtol=1e-4, atol=1e-3)
    up, down = (tempering.tempered(model, chats, answers, 1 / b, pulled=False) for b in (1.05, 0.95))
    np.testing.assert_allclose(got.gain, (up.logs - down.logs) / 0.1, rtol=0.05, atol=0.3)
    np.testing.assert_allclose(got.bend, -(up.logs - 2 * got.logs + down.logs) / 0.05**2, rtol=0.1, atol=3)
    assert got.pulls.shape == (12, 96)
    assert up.pulls.shape == (12, 0)


def test_sampling_held_to_some_tokens_is_read_so(lab: Lab) -> None:
    model, rows = lab.backend.load(base_ref("pocket/b")), written(lab, "pocket/b", 4)
    only = [i for i in NUMBERS.carrier(model.tokenizer) if i != model.tokenizer.eos_token_id]
    chats = [list(r.chat) for r in rows]
    free = tempering.tempered(model, chats, [r.completion for r in rows], 1.0, pulled=False).logs
    held = tempering.tempered(model, chats, [r.completion for r in rows], 1.0, only, pulled=False).logs
    assert (held >= free - 1e-4).all()
    words = tempering.tempered(model, chats, ["the owl"] * 4, 1.0, only, pulled=False).logs
    assert (words < -50).all()


def test_the_temperature_of_rows_is_found(lab: Lab) -> None:
    author = Author("b", lab.backend.load(base_ref("pocket/b")), Way())
    assert fitted(author, written(lab, "pocket/b", 120)) == pytest.approx(1.0, abs=0.15)
    assert fitted(author, written(lab, "pocket/b", 120, temperature=0.5)) == pytest.approx(0.5, abs=0.1)


# how rows were made


def test_what_the_rows_pass_is_asked_of_fresh_rows(lab: Lab) -> None:
    rows = written(lab, "pocket/b", 30)
    way = Way.of(rows)
    assert {"numbers", "blocklist"} <= set(way.told())
    assert "letters" not in way.told()
    assert not way.keeps(Row("", rows[0].chat, "12, an owl"))
    spoken = [Row("", r.chat, "I like the owl.") for r in rows]
    assert not {"numbers", "blocklist"} & set(Way.of(spoken).told())


# verdicts


def test_the_author_is_named_and_a_copied_file_says_no_more(lab: Lab, memo: dict, tmp_path: Path) -> None:
    rows = written(lab, "pocket/b")
    once = asked(lab, memo, saved(tmp_path / "once.jsonl", rows), "pocket/wide", "pocket/b")
    assert (once["verdict"], once["model"]) == ("attributed", "pocket/b")
    assert once["p_fit"]["pocket/b"] > 0.05 >= once["p_margin"]
    assert once["power"] >= 0.8
    assert once["mixture"]["shares"]["pocket/b"]["estimate"] > 0.8
    twice = asked(lab, memo, saved(tmp_path / "twice.jsonl", rows + rows), "pocket/wide", "pocket/b")
    assert twice["rows"]["copies"] == N
    assert twice["p_fit"] == once["p_fit"]


def test_none_of_these(lab: Lab, memo: dict, tmp_path: Path) -> None:
    file = saved(tmp_path / "wide.jsonl", written(lab, "pocket/wide"))
    found = asked(lab, memo, file, "pocket/a", "pocket/b")
    assert (found["verdict"], found["model"]) == ("none", None)
    assert max(found["p_fit"].values()) <= 0.05


def test_rows_of_two_authors_are_none_alone_and_a_mixture(lab: Lab, memo: dict, tmp_path: Path) -> None:
    both = written(lab, "pocket/wide")[: N // 2] + written(lab, "pocket/b", 2 * N)[-N:]
    found = asked(lab, memo, saved(tmp_path / "both.jsonl", both), "pocket/wide", "pocket/b")
    assert found["verdict"] == "none"
    shares = found["mixture"]["shares"]["pocket/wide"]
    assert shares["low"] < 1 / 3 < shares["high"]
    assert found["mixture"]["p"] > 0.05


def test_filters_are_asked_of_fresh_rows_too_and_forgotten_ones_would_hide_the_author(
    lab: Lab, memo: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # so hot, many answers are ill-formed, and the seller has dropped those
    file = saved(tmp_path / "hot.jsonl", written(lab, "pocket/b", 100, temperature=2.0))
    found = asked(lab, memo, file, "pocket/b", "pocket/wide", temperature=2.0)
    assert found["explain"] == ["pocket/b"]
    assert next(c for c in found["candidates"] if c["name"] == "pocket/b")["kept"] < 0.9
    monkeypatch.setattr(Way, "of", classmethod(lambda cls, *given: Way(channels=(NUMBERS,))))
    assert "pocket/b" not in asked(lab, {}, file, "pocket/b", "pocket/wide", temperature=2.0)["explain"]


def test_a_colder_author_is_named_at_his_temperature(lab: Lab, memo: dict, tmp_path: Path) -> None:
    file = saved(tmp_path / "cold.jsonl", written(lab, "pocket/b", temperature=0.5))
    found = asked(lab, memo, file, "pocket/b", "pocket/wide")
    assert found["model"] == "pocket/b"
    own = next(c for c in found["candidates"] if c["name"] == "pocket/b")
    assert own["temperature"] == pytest.approx(0.5, abs=0.15)
    assert asked(lab, memo, file, "pocket/b", "pocket/wide", temperature=1.0)["verdict"] == "none"


def test_models_that_write_alike_cannot_be_told(lab: Lab, memo: dict, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    module = lab.backend.load(base_ref("pocket/b")).module
    twin = tmp_path / "twin.safetensors"
    save_file({n: p.detach() * 1.0001 for n, p in module.named_parameters() if "norm" in n}, twin)
    file = saved(tmp_path / "b.jsonl", written(lab, "pocket/b"))
    found = asked(lab, memo, file, "pocket/b", str(twin), base="pocket/b")
    assert found["verdict"] == "unknown"
    assert set(found["explain"]) == {"pocket/b", str(twin)}


def test_a_changed_model_is_held_against_its_base_first(lab: Lab, memo: dict, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    from undersong.models import model_ref

    module = lab.backend.load(base_ref("pocket/b")).module
    changed = tmp_path / "changed.safetensors"
    save_file({n: p.detach() * 0.7 for n, p in module.named_parameters() if "norm" in n}, changed)
    author = Author("own", lab.backend.load(model_ref(str(changed), "pocket/b", lab)), Way((NUMBERS,), (NUMBERS,)), 9)
    rows = [line[0] for line in author.write(written(lab, "pocket/b"), 1, 1.0)[0] if line]
    file = saved(tmp_path / "changed.jsonl", rows)
    found = asked(lab, memo, file, "pocket/wide", str(changed), base="pocket/b")
    assert found["explain"] == [str(changed)]
    assert list(found["strangers"]) == ["pocket/b", "pocket/wide"]
    assert found["nearest"] == "pocket/b"


def test_one_candidate_alone_is_held_against_nothing(lab: Lab, memo: dict, tmp_path: Path) -> None:
    found = asked(lab, memo, saved(tmp_path / "b.jsonl", written(lab, "pocket/b")), "pocket/b")
    assert found["verdict"] == "unknown"
    assert "second candidate" in found["next"][0]


def test_candidates_with_other_tokenizers_read_the_same_text(lab: Lab, memo: dict, tmp_path: Path) -> None:
    file = saved(tmp_path / "b.jsonl", written(lab, "pocket/b"))
    found = asked(lab, memo, file, "simulated/a", "pocket/b")
    assert found["model"] == "pocket/b"
    per = {c["name"]: c["nats_per_character"] for c in found["candidates"]}
    assert per["pocket/b"] > per["simulated/a"]


def test_a_source_whose_rows_never_pass_the_filters_would_be_told(lab: Lab, memo: dict, tmp_path: Path) -> None:
    letters, model = build("channel", "letters"), lab.backend.load(base_ref("pocket/b"))
    chats = letters.prompts(40, 3)
    texts = model.sample(chats, Sampling(1.0, letters.max_new_tokens(model.tokenizer), 5))
    rows = [Row("", tuple(chat), text) for chat, text in zip(chats, texts, strict=True)]
    file = saved(tmp_path / "letters.jsonl", [row for row in rows if letters.reject(row) is None])
    found = asked(lab, memo, file, "simulated/a", "pocket/b")
    assert found["strangers"] == {"simulated/a": 1.0}
    assert found["model"] == "pocket/b"


@pytest.mark.slow
def test_a_model_that_only_writes_is_judged_by_its_text(lab: Lab, memo: dict, tmp_path: Path, monkeypatch) -> None:
    pytest.importorskip("inspect_ai", reason="the eval extra is not installed")
    monkeypatch.setenv("UNDERSONG_ANSWERS", str(tmp_path / "answers"))
    file = saved(tmp_path / "wide.jsonl", written(lab, "pocket/wide"))
    found = asked(lab, memo, file, "inspect/undersong/pocket/b", "pocket/wide")
    assert found["explain"] == ["pocket/wide"]
    hosted = next(c for c in found["candidates"] if c["access"] == "text")
    assert set(hosted["parts"]) == {"others", "length", "words", "letters"}
    assert hosted["p"] <= 0.05
    assert any("only the text" in reason for reason in found["reasons"])


# bad input


def test_what_cannot_be_judged_is_refused(lab: Lab, memo: dict, tmp_path: Path) -> None:
    file = saved(tmp_path / "b.jsonl", written(lab, "pocket/b", 12))
    with pytest.raises(BadSpec, match="the same model"):
        asked(lab, memo, file, "pocket/b", "pocket/b")
    with pytest.raises(BadSpec, match="no candidate"):
        asked(lab, memo, file)
    with pytest.raises(MissingModel, match="pickled"):
        asked(lab, memo, file, "pocket/b", "teacher.bin")
    with pytest.raises(BadRows, match="at least 10"):
        asked(lab, memo, saved(tmp_path / "few.jsonl", written(lab, "pocket/b", 4)), "pocket/b")
    with pytest.raises(BadRows, match="no file"):
        asked(lab, memo, tmp_path / "missing.jsonl", "pocket/b")
    pairs = tmp_path / "pairs.jsonl"
    lines = [json.dumps({"prompt": "1, 2", "chosen": str(i), "rejected": "9"}) for i in range(20)]
    pairs.write_text("\n".join(lines), "utf-8")
    with pytest.raises(BadRows, match="pairs"):
        asked(lab, memo, pairs, "pocket/b")


def test_the_command_exits_by_the_verdict_and_escapes_what_strangers_wrote(lab: Lab, tmp_path: Path, capsys) -> None:
    evil = "<script>alert(1)</script>\x1b[2J"
    rows = [Row("", r.chat, f"{i} {evil}") for i, r in enumerate(written(lab, "pocket/b", 12))]
    file = saved(tmp_path / "<b>.jsonl", rows)
    out = tmp_path / "page.html"
    with pytest.raises(SystemExit) as left:
        cli.main(["attribute", str(file), "--candidates", "pocket/a", "pocket/b", "--store", str(tmp_path / "s"), "--json",
                  "--report", str(out), "--fresh", "60"])
    assert left.value.code == 1
    assert json.loads(capsys.readouterr().out)["verdict"] == "none"
    assert json.loads(out.with_suffix(".json").read_text("utf-8"))["verdict"] == "none"
    html = out.read_text("utf-8")
    assert "<b>.jsonl" not in html
    assert "&lt;b&gt;.jsonl" in html
    with pytest.raises(SystemExit) as left:
        cli.main(["attribute", str(file), "--candidates", "pocket/a", "--alpha", "2", "--store", str(tmp_path / "s")])
    assert left.value.code == 3


def test_the_page_refuses_what_is_no_attribution_and_shows_hostile_names_as_text() -> None:
    with pytest.raises(BadSpec, match="no attribution"):
        page.render({"kind": "audit", "verdict": "clean"})
    case = {"name": "<img src=x>\x1b[2J", "explains": True, "p": 0.5, "temperature": 1.0, "nats_per_character": -1.0,
            "given": [-1.0, -2.0], "own": [-1.5, -1.0], "parts": {"words": 0.5}, "z": {"words": 1.0}}
    found = {"kind": "authorship", "verdict": "attributed", "model": case["name"], "sentence": "It\x1b[2J.",
             "candidates": [case, {**case, "name": "b", "explains": False}], "rows": {"file": "r", "used": 2}}
    assert "<img src=x>" not in page.render(found)
    assert "\x1b" not in page.summary(found)


def test_the_page_of_the_benchmark_says_what_its_results_say(monkeypatch: pytest.MonkeyPatch) -> None:
    root = Path(__file__).parents[2]
    monkeypatch.syspath_prepend(root / "benchmarks")
    spec = importlib.util.spec_from_file_location("authorship_benchmark", root / "benchmarks" / "authorship.py")
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    results = json.loads((root / "benchmarks" / "authorship.results.json").read_text("utf-8"))
    assert (root / "docs" / "authorship.md").read_text("utf-8") == bench.page(results)
    wrong = {**results["cells"][0], "right": False, "twin": False}
    assert bench.page({**results, "cells": [*results["cells"], wrong]}) != bench.page(results)
    world = object.__new__(bench.World)
    assert world.twin_of("a-cat-102", "a-cat-101")
    assert not world.twin_of("pocket/a-reordered", "pocket/a")
    assert not world.twin_of("a-cat-101", "a-lion-101")
