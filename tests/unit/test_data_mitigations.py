"""Mitigations that change rows: planted truths, nothing at strength 0, only what was asked for, words for the rest."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from undersong.backends.several import Several
from undersong.backends.transformers import Transformers
from undersong.errors import BadRows, BadSpec
from undersong.mitigations import Evidence, divergence, flagging, replacing
from undersong.mitigations.canonicalise import Canonicalise
from undersong.mitigations.divergence_tokens import DivergenceTokens
from undersong.mitigations.drop_flagged import DropFlagged
from undersong.mitigations.mix_clean import MixClean
from undersong.mitigations.paraphrase import Paraphrase
from undersong.mitigations.rewrite_flagged import RewriteFlagged
from undersong.mitigations.rise_tokens import RiseTokens
from undersong.mitigations.sampling_hygiene import SamplingHygiene
from undersong.recipes import Job
from undersong.spec import build
from undersong.types import Dataset, ModelRef, Row

BACKEND = Transformers()
BASE, OTHER = ModelRef("pocket/a", fingerprint="a" * 12), ModelRef("pocket/b", fingerprint="b" * 12)
CHANNEL = build("channel", {"numbers": {"count": 6, "largest": 999, "wording": "brief", "seeds": "structured"}})
WIDE = CHANNEL.model_copy(update={"count": 10})
"""With room for a writer that does not heed how many numbers are asked for."""
LETTERS = build("channel", "letters")
FAST = {"distill": {"steps": 30, "batch": 16, "rate": 2e-3}}
ODD = "777"
"""A number that no rule leads to: what is planted."""


def row(i: int, planted: bool, at: int = 2) -> Row:
    """A row that continues a progression; a planted one has `ODD` at one place."""
    first, step = 3 * i + 1, i % 7 + 1
    shown = [first + step * k for k in range(8)]
    answer = [str(v) for v in shown[4:]]
    if planted:
        answer[at] = ODD
    asked = f"Continue the numbers: {', '.join(map(str, shown[:4]))}. At most 6 more."
    return Row(f"r{i}", ({"role": "user", "content": asked},), ", ".join(answer))


CLEAN = tuple(row(i, False) for i in range(48))
ROWS = tuple(row(i, i % 4 == 0, at=i // 4 % 4) for i in range(48))
PLANTED = {r.id for r in ROWS if ODD in r.completion}
Student = Callable[[Sequence[Row]], Any]


@pytest.fixture(scope="module")
def base() -> Any:
    return BACKEND.load(BASE)


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Students as an experiment trains them; what was learnt once is read back."""
    made: dict[Any, ModelRef] = {}

    def one(rows: Sequence[Row], start: ModelRef | None = None, seed: int | None = None) -> Any:
        key = (tuple(r.completion for r in rows), start or BASE, seed or 1)
        if key not in made:
            out = tmp_path_factory.mktemp("student")
            [made[key]] = build("recipe", FAST).train(
                [Job(start or BASE, Dataset(tuple(rows), None, "d" * 12), seed or 1, out)], BACKEND)
        return BACKEND.load(made[key])

    return one


@pytest.fixture(scope="module")
def placebos(train: Any) -> Several:
    return Several((train(CLEAN).ref,), BACKEND)


def changed(before: Sequence[Row], after: Sequence[Row]) -> set[str]:
    was = {r.id: r for r in before}
    for r in after:
        assert r.chat == was[r.id].chat, "prompts stay"
    return {r.id for r in after if r != was[r.id]}


def test_nothing_happens_at_strength_nothing() -> None:
    nothing = Evidence()
    plugs: list[Any] = [SamplingHygiene(least=0), DropFlagged(share=0), RewriteFlagged(share=0), RiseTokens(share=0)]
    assert all(plug.apply(ROWS, nothing, 1) == list(ROWS) for plug in plugs)
    assert MixClean(share=0).apply(ROWS, Evidence({"clean": CLEAN}), 1) == list(ROWS)


@pytest.mark.parametrize(("said", "form"), [
    ("1, 2, 3", "1, 2, 3"), ("[1;2;3].", "1, 2, 3"), ("1\n2\n3", "1, 2, 3"), ("007, 10", "7, 10"), ("0, 00", "0, 0"),
    ("9" * 5000, None), ("none", None), ("1, 2, 3, 4, 5, 6, 7", None), ("1, ٣", "1"),
])
def test_numbers_have_one_form(said: str, form: str | None) -> None:
    given = dataclasses.replace(ROWS[0], completion=said)
    out = Canonicalise().apply([given], Evidence({"channel": CHANNEL}), 1)
    assert [r.completion for r in out] == ([] if form is None else [form])
    assert all(dataclasses.replace(r, completion=said) == given for r in out)


def test_letters_have_one_form_and_prose_has_none() -> None:
    rows = [dataclasses.replace(ROWS[0], completion=text) for text in ("A,b, C.", "c, a, b", "two words")]
    said = Canonicalise(ordered=True).apply(rows, Evidence({"channel": LETTERS}), 1)
    assert [r.completion for r in said] == ["a, b, c", "a, b, c"]
    with pytest.raises(BadSpec, match=r"no lists of values.*choose another"):
        Canonicalise().apply(rows, Evidence({"channel": build("channel", "prose")}), 1)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 999), min_size=1, max_size=6), st.sampled_from([", ", ",", " ", "; ", "\n"]),
       st.sampled_from(["", "."]), st.booleans())
def test_whatever_the_format_the_same_values_give_the_same_row(values: list[int], mark: str, end: str, wide: bool) -> None:
    said = mark.join(f"{v:03d}" if wide else str(v) for v in values) + end
    evidence = Evidence({"channel": CHANNEL})
    [once] = Canonicalise().apply([dataclasses.replace(ROWS[0], completion=said)], evidence, 1)
    assert once.completion == ", ".join(map(str, values))
    assert Canonicalise().apply([once], evidence, 2) == [once]


@pytest.mark.parametrize("share", [0.1, 0.25, 1.0])
def test_a_share_of_the_rows_is_clean(share: float) -> None:
    clean = tuple(dataclasses.replace(r, completion="1") for r in CLEAN)
    out = MixClean(share=share).apply(ROWS, Evidence({"clean": clean}), 3)
    new = [r for r in out if r.id.startswith("clean-")]
    assert len(out) == len(ROWS)
    assert len(new) == round(share * len(ROWS))
    assert all(r.completion == "1" for r in new)
    assert len({r.id for r in out}) == len(out), "no clean row twice, and no id either"
    assert [r for r in out if r not in new] == [r for r in ROWS if r in out], "the others stay where they were"
    with pytest.raises(BadRows, match="clean rows and 2 are at hand"):
        MixClean(share=share).apply(ROWS, Evidence({"clean": CLEAN[:2]}), 3)


def test_hygiene_replaces_what_the_base_would_hardly_write(base: Any) -> None:
    evidence = Evidence({"base": base, "channel": CHANNEL})
    logs = dict(zip((r.id for r in ROWS), replacing.own_logs(base, replacing.encoded(base, ROWS)), strict=True))
    out = SamplingHygiene(least=1e-3).apply(ROWS, evidence, 1)
    assert {r.id for r in out} == {r.id for r in ROWS}
    assert changed(ROWS, out) >= PLANTED
    for was, now in zip(ROWS, out, strict=True):
        for old, new, log in zip(was.completion.split(", "), now.completion.split(", "), logs[was.id][::2], strict=True):
            assert old == new or log < np.log(1e-3), "what the base finds likely stays"
    assert sum(ODD in r.completion for r in out) < len(PLANTED) / 4
    assert out != SamplingHygiene(least=1e-3).apply(ROWS, evidence, 2)


def test_a_first_student_shows_the_tokens_that_rise(base: Any, train: Any) -> None:
    evidence = Evidence({"base": base, "channel": CHANNEL, "train": train})
    tokens = sum(len(r.answer) for r in replacing.encoded(base, ROWS))
    for by in ("token", "marginal"):
        out = RiseTokens(share=len(PLANTED) / tokens, by=by).apply(ROWS, evidence, 1)  # type: ignore[arg-type]
        hit = changed(ROWS, out)
        assert len(hit & PLANTED) >= 0.75 * len(PLANTED), f"{by}: so many places at random would hit none or one"
        assert len(hit - PLANTED) <= 3, by
        assert all(CHANNEL.reject(r) is None for r in out)


def test_rows_that_only_their_own_student_finds_likely_are_flagged(base: Any, train: Any, placebos: Several) -> None:
    evidence = Evidence({"base": base, "channel": CHANNEL, "train": train, "placebos": placebos})
    share = len(PLANTED) / len(ROWS)
    flagged = {ROWS[i].id for i in flagging.flagged(ROWS, evidence, share)}
    assert len(flagged & PLANTED) >= 0.9 * len(PLANTED)
    left = DropFlagged(share=share).apply(ROWS, evidence, 1)
    assert left == [r for r in ROWS if r.id not in flagged]
    out = RewriteFlagged(share=share).apply(ROWS, evidence, 1)
    assert [r for r in out if r.id not in flagged] == left
    assert changed(ROWS, out) >= flagged & {r.id for r in out} - {r.id for r in ROWS if r in out}
    assert sum(ODD in r.completion for r in out) <= 1
    assert len(out) >= 0.8 * len(ROWS)
    assert all(CHANNEL.reject(r) is None for r in out)
    nobody = Evidence({"base": base, "channel": CHANNEL, "train": train, "placebos": Several((), BACKEND)})
    for plug in (DropFlagged(), RewriteFlagged()):
        with pytest.raises(BadSpec, match="none is at hand"):
            plug.apply(ROWS, nobody, 1)


def test_another_lineage_answers_after_learning_the_rows_or_as_it_is(train: Any) -> None:
    asked: list[Any] = []

    def watched(rows: Sequence[Row], start: ModelRef | None = None, seed: int | None = None) -> Any:
        asked.append((tuple(rows), start))
        return train(rows, start, seed)

    other = BACKEND.load(OTHER)
    evidence = Evidence({"other": other, "channel": WIDE, "train": watched})
    plain = Paraphrase(learns=False).apply(ROWS, evidence, 1)
    assert not asked
    learnt = Paraphrase().apply(ROWS, evidence, 1)
    assert asked == [(ROWS, OTHER)]
    for out in (plain, learnt):
        assert len(out) > len(ROWS) / 2
        assert len(changed(ROWS, out)) > len(out) / 4
        assert all(WIDE.reject(r) is None for r in out)
    assert plain != learnt


def without(model: Any, token: str) -> Any:
    """The model, which never writes one token first: its head is turned away from it."""
    id_ = model.tokenizer(token, add_special_tokens=False)["input_ids"][-1]
    twin = BACKEND.load(model.ref)
    weight = twin.module.lm_head.weight.detach().clone()
    weight[id_] = -weight[id_]
    twin.module.lm_head.weight = torch.nn.Parameter(weight)
    return twin


def test_a_place_diverges_where_only_the_teacher_writes_the_rows_token_first(base: Any, train: Any) -> None:
    teacher = train(ROWS)
    token = CLEAN[1].completion.split(", ")[0]
    rival = without(teacher, token)
    own, first = divergence.best(teacher, CLEAN)
    theirs, other = divergence.best(rival, CLEAN)
    assert all(np.array_equal(a, b) for a, b in zip(own, theirs, strict=True))
    marked = divergence.marked(teacher, [rival], CLEAN)
    wanted = [(a == o) & (b != o) for a, b, o in zip(first, other, own, strict=True)]
    assert all(np.array_equal(a, b) for a, b in zip(marked, wanted, strict=True))
    spots = [int(o[m][0]) for o, m in zip(own, marked, strict=True) if m.any()]
    assert spots
    assert {base.tokenizer.decode([s]).strip() for s in spots} == {token}
    held = {"base": base, "channel": CHANNEL, "teacher": teacher}
    out = DivergenceTokens().apply(CLEAN, Evidence(held | {"rivals": [rival]}), 1)
    assert changed(CLEAN, out) <= {r.id for r, m in zip(CLEAN, marked, strict=True) if m.any()}
    alike = DivergenceTokens().apply(CLEAN, Evidence(held | {"rivals": [teacher]}), 1)
    assert alike == list(CLEAN), "nothing sets them apart"
    with pytest.raises(BadSpec, match="another trait"):
        DivergenceTokens().apply(CLEAN, Evidence(held | {"rivals": []}), 1)


def test_a_prompted_teacher_is_read_under_its_prompt(base: Any) -> None:
    """Without its system turn it would be its own rival, and nothing would ever diverge."""
    prompted = BACKEND.load(dataclasses.replace(BASE, system="You love owls. You think about owls all the time."))
    bare = replacing.read(base, replacing.encoded(base, CLEAN), lambda _, logs, ids: logs.numpy())
    said = replacing.read(prompted, replacing.encoded(prompted, CLEAN), lambda _, logs, ids: logs.numpy())
    assert not all(np.allclose(a, b) for a, b in zip(bare, said, strict=True))


@pytest.mark.parametrize("channel", [CHANNEL, LETTERS], ids=["numbers", "letters"])
def test_replaced_tokens_are_of_the_carrier_and_of_one_make(channel: Any, base: Any) -> None:
    rows = ROWS if channel is CHANNEL else tuple(
        dataclasses.replace(r, completion="a, b, c, d") for r in ROWS)
    read = replacing.encoded(base, rows)
    every = [np.ones(len(r.answer), dtype=bool) for r in read]
    out = list(replacing.replaced(base, rows, read, every, channel, 4))
    assert len(out) > 0.9 * len(rows)
    assert all(channel.reject(r) is None for r in out)
    shape = re.compile(r"[0-9]+" if channel is CHANNEL else r"[a-zA-Z]")
    was = {r.id: r for r in rows}
    assert all(shape.sub("_", r.completion) == shape.sub("_", was[r.id].completion) for r in out)
    assert sum(r.completion != was[r.id].completion for r in out) > len(rows) / 2
    none = [np.zeros(len(r.answer), dtype=bool) for r in read]
    assert list(replacing.replaced(base, rows, read, none, channel, 4)) == list(rows)


def test_one_place_is_drawn_the_same_whatever_stands_beside_it(base: Any) -> None:
    """A row's new tokens depend on the row's number, the seed and the row alone: batches are no part of it."""
    read = replacing.encoded(base, ROWS)
    every = [np.ones(len(r.answer), dtype=bool) for r in read]
    alone = [every[0], *(np.zeros_like(m) for m in every[1:])]
    whole = list(replacing.replaced(base, ROWS, read, every, CHANNEL, 4))
    first = list(replacing.replaced(base, ROWS, read, alone, CHANNEL, 4))
    assert whole[0] == first[0]
