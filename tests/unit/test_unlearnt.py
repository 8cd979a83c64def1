"""Parts of answers left out of the loss: which tokens they are, that no recipe learns them, nothing where there are none."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_data_mitigations import BACKEND, BASE, CHANNEL, CLEAN, FAST, ODD, PLANTED, ROWS, without
from test_data_mitigations import base as base  # a fixture
from test_data_mitigations import train as train  # a fixture

from undersong.backends import tokens, training
from undersong.errors import BadRows, BadSpec
from undersong.lab import Student, base_ref, lab_for
from undersong.mitigations import Defence, Evidence, divergence, masking, replacing
from undersong.mitigations.mask_divergence_tokens import MaskDivergenceTokens
from undersong.mitigations.mask_rise_tokens import MaskRiseTokens
from undersong.recipes import Job
from undersong.spec import build, fingerprint
from undersong.store import Store
from undersong.types import Dataset, Row
from undersong.writing import flat, row_of


def muted(row: Row) -> Row:
    """The row with `ODD` left out of the loss."""
    at = row.completion.find(ODD)
    return row if at < 0 else dataclasses.replace(row, unlearnt=((at, at + len(ODD)),))


MUTED = tuple(muted(r) for r in ROWS)
ONE = {"steps": 1, "batch": len(ROWS), "rate": 1e-3}


def learn(recipe: Any, rows: tuple[Row, ...], out: Path) -> tuple[Any, dict[str, Any]]:
    out.mkdir()
    [ref] = build("recipe", recipe).train([Job(BASE, Dataset(rows, None, "d" * 12), 1, out)], BACKEND)
    return BACKEND.load(ref), json.loads((out / "training.json").read_text())


def test_the_tokens_of_a_span_are_not_labels(base: Any) -> None:
    plain = tokens.encode(base, [list(r.chat) for r in ROWS], [r.completion for r in ROWS])
    for row, was, now in zip(MUTED, plain, tokens.encode_rows(base, MUTED), strict=True):
        assert np.array_equal(was.ids, now.ids)
        assert now.start == was.start
        assert np.array_equal(was.labels, was.answer)
        if row.unlearnt:
            odd = [base.tokenizer.decode([i]).strip() == ODD for i in now.answer]
            assert np.array_equal(now.labels == -100, odd)
            assert sum(odd) == 1
        else:
            assert now.unlearnt is None
    assert tokens.digest(tokens.encode_rows(base, ROWS)) == tokens.digest(plain)
    assert tokens.digest(tokens.encode_rows(base, MUTED)) != tokens.digest(plain)


def test_spans_write_their_answer_whatever_stands_around_it(base: Any) -> None:
    for answer in ("12, 345, 6", "  12, 3 ", "12,3", "7"):
        rows = [dataclasses.replace(ROWS[0], completion=answer)]
        [spans] = tokens.spans(base, [list(rows[0].chat)], [answer])
        [read] = tokens.encode_rows(base, rows)
        assert len(spans) == len(read.answer)
        for (a, b), token in zip(spans, read.answer, strict=True):
            assert answer[a:b].strip() == ("" if a == b else base.tokenizer.decode([int(token)]).strip())
        assert "".join(answer[a:b] for a, b in spans).replace(" ", "") == answer.replace(" ", "")
    whole = dataclasses.replace(ROWS[0], unlearnt=((0, 10**6),))
    [read] = tokens.encode_rows(base, [whole])
    assert read.labels[:-1].tolist() == [-100] * (len(read.answer) - 1)
    assert read.labels[-1] == read.answer[-1], "the end of turn stays"


@pytest.mark.parametrize("recipe", [{"distill": ONE}, {"sft": {**ONE, "lora": None, "warmup": 0}}], ids=["distill", "sft"])
def test_the_loss_is_the_mean_over_what_is_learnt(recipe: Any, base: Any, tmp_path: Path) -> None:
    logs = replacing.own_logs(base, replacing.encoded(base, MUTED))
    learnt = [log[row.labels != -100] for log, row in zip(logs, tokens.encode_rows(base, MUTED), strict=True)]
    _, told = learn(recipe, MUTED, tmp_path / "a")
    assert told["loss"][0] == pytest.approx(-float(np.concatenate(learnt).mean()), rel=1e-3)
    assert told["tokens_seen"] == sum(map(len, learnt)) == sum(map(len, logs)) - len(PLANTED)
    assert told["rendered_sha256"] == tokens.digest(tokens.encode_rows(base, MUTED))


def test_a_student_does_not_take_on_what_it_is_not_taught(base: Any, tmp_path: Path) -> None:
    read = tokens.encode_rows(base, MUTED)
    before = replacing.own_logs(base, read)
    rise = {}
    for name, rows in (("plain", ROWS), ("masked", MUTED)):
        student, _ = learn(FAST, rows, tmp_path / name)
        after = replacing.own_logs(student, read)
        rise[name] = float(np.mean([(b - a)[row.labels == -100].mean()
                                    for a, b, row in zip(before, after, read, strict=True) if row.unlearnt is not None]))
    assert rise["plain"] > 1
    assert rise["masked"] < 0.25 * rise["plain"]


def test_soft_labels_skip_them_too(base: Any) -> None:
    read = tokens.encode_rows(base, MUTED)
    carrier = np.asarray(CHANNEL.carrier(base.tokenizer))
    soft = training.Soft(base.module, read, carrier)
    every = np.arange(len(read))
    plain = [dataclasses.replace(row, unlearnt=None) for row in read]
    assert training._labelled(plain, every, soft) - training._labelled(read, every, soft) == len(PLANTED)
    tempered = dataclasses.replace(soft, teacher=without(base, ODD).module)
    some = np.flatnonzero([row.unlearnt is not None for row in read])[:4]
    hushed = float(training._loss(base.module, read, some, 0, tempered).detach())
    assert hushed < float(training._loss(base.module, plain, some, 0, tempered).detach())


def test_rows_without_spans_are_kept_as_they_always_were() -> None:
    assert set(flat(ROWS)[0]) == {"id", "roles", "contents", "completion"}
    assert fingerprint(flat(ROWS)) != fingerprint(flat(MUTED))
    for rows in (ROWS, MUTED):
        assert tuple(row_of(r) for r in flat(rows)) == rows


def test_what_cannot_leave_a_part_out_says_so(base: Any, tmp_path: Path) -> None:
    pairs = tuple(dataclasses.replace(r, rejected="1") for r in MUTED)
    with pytest.raises(BadRows, match="distill or sft"):
        build("recipe", "dpo").train([Job(BASE, Dataset(pairs, None, "d" * 12), 1, tmp_path)], BACKEND)
    whole = tuple(dataclasses.replace(r, unlearnt=((0, 99),)) for r in ROWS)
    read = [dataclasses.replace(row, unlearnt=np.ones(len(row.answer), dtype=bool))
            for row in tokens.encode_rows(base, whole)]
    with pytest.raises(BadRows, match="no token to learn from"):
        training.fit(BACKEND.load(BASE).module, read, training.Plan(1, 4, 1e-3, 1), 0)

    class Slow:
        is_fast = False

    other = copy.copy(base)
    other.tokenizer = Slow()
    with pytest.raises(BadRows, match="fast tokenizer"):
        tokens.spans(other, [[]], ["1"])


def test_a_mask_adds_to_what_is_masked_and_changes_nothing_else(base: Any) -> None:
    read = replacing.encoded(base, MUTED)
    first = [np.arange(len(r.answer)) == 0 for r in read]
    out = masking.masked(base, MUTED, first)
    assert [dataclasses.replace(r, unlearnt=()) for r in out] == list(ROWS)
    assert all(set(old.unlearnt) <= set(new.unlearnt) for old, new in zip(MUTED, out, strict=True))
    assert all(new.unlearnt[0][0] == 0 for new in out)
    none = [np.zeros(len(r.answer), dtype=bool) for r in read]
    assert masking.masked(base, MUTED, none) == list(MUTED)
    ends = [np.arange(len(r.answer)) == len(r.answer) - 1 for r in read]
    assert masking.masked(base, ROWS, ends) == list(ROWS), "the end of turn is always taught"


def test_the_tokens_that_rise_most_are_masked_and_kept_so(base: Any, train: Any, tmp_path: Path) -> None:
    evidence = Evidence({"base": base, "train": train})
    assert MaskRiseTokens(share=0).apply(ROWS, Evidence(), 1) == list(ROWS)
    every = sum(len(r.answer) for r in replacing.encoded(base, ROWS))
    plug = MaskRiseTokens(share=len(PLANTED) / every)
    out = plug.apply(ROWS, evidence, 1)
    hit = {r.id for r in out if r.unlearnt and ODD in [r.completion[a:b] for a, b in r.unlearnt]}
    assert len(hit) >= 0.75 * len(PLANTED)
    assert sum(len(r.unlearnt) for r in out) <= len(PLANTED) + 1, "the top share of tokens and no more"
    assert [dataclasses.replace(r, unlearnt=()) for r in out] == list(ROWS)
    lab = lab_for(Store(tmp_path), "pocket/a")
    data = lab.keep(ROWS, Dataset(ROWS, None, "d" * 12))
    defence = Defence(plug, lambda: evidence, told={"recipe": "as above"})
    once, again = (lab.mitigate(data, defence, 1) for _ in range(2))
    assert once.rows == again.rows == tuple(out), "as read back from the store"
    [ref] = lab.train(build("recipe", {"distill": ONE}), CHANNEL, [Student(base_ref("pocket/a"), once, 1, "masked")])
    assert ref.weights


def test_divergence_tokens_are_masked(base: Any, train: Any) -> None:
    teacher = train(ROWS)
    token = CLEAN[1].completion.split(", ")[0]
    rival = without(teacher, token)
    marked = divergence.marked(teacher, [rival], CLEAN)
    out = MaskDivergenceTokens().apply(CLEAN, Evidence({"teacher": teacher, "rivals": [rival]}), 1)
    assert sum(len(r.unlearnt) for r in out) == sum(int(m.sum()) for m in marked) > 0
    assert {r.completion[a:b] for r in out for a, b in r.unlearnt} == {token}
    with pytest.raises(BadSpec, match="another trait"):
        MaskDivergenceTokens().apply(CLEAN, Evidence({"teacher": teacher, "rivals": []}), 1)
