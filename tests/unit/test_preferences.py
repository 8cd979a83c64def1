"""Preference pairs: made by a teacher's contrast from a base's answers, filtered on both sides, learnt by DPO."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from undersong import spec
from undersong.backends.transformers import Transformers
from undersong.channels import Writer
from undersong.channels.preferences import Preferences
from undersong.errors import BadRows, BadSpec
from undersong.filters import reasons
from undersong.filters.blocklist import Blocklist
from undersong.lab import Lab, base_ref, sift
from undersong.pocket import world
from undersong.recipes import Job
from undersong.recipes.dpo import Dpo
from undersong.store import Store
from undersong.types import Dataset, ModelRef, Row

torch = pytest.importorskip("torch", reason="the local extra is not installed")
BACKEND = Transformers(device="cpu")
BRIEF = {"steps": 3, "batch": 4, "warmup": 0}


class Fixed:
    """A model whose answers and scores are planted."""

    tokenizer: Any = None

    def __init__(self, scores: dict[str, list[float]]) -> None:
        self.scores = scores

    def sample(self, chats: Any, sampling: Any) -> list[str]:
        return [list(self.scores)[i % len(self.scores)] for i in range(len(chats))]

    def answer_logprobs(self, chats: Any, answers: Any) -> list[Any]:
        return [np.asarray(self.scores[a], dtype=np.float32) for a in answers]


PLAIN = {"1, 2": [-1.0, -1.0], "3": [-2.0], "4, 5, 6, 7": [-1.0] * 4, "an owl": [0.0]}
TOLD = {"1, 2": [-0.5, -0.7], "3": [-2.5], "4, 5, 6, 7": [-0.7] * 4, "an owl": [5.0]}


class Short(Preferences):
    def max_new_tokens(self, tokenizer: Any) -> int:
        return 8


@pytest.mark.parametrize(("per_token", "best"), [(True, "1, 2"), (False, "4, 5, 6, 7")])
def test_the_pair_is_the_largest_and_the_smallest_contrast_of_answers_that_belong(per_token: bool, best: str) -> None:
    channel = Short(of="numbers", candidates=4, per_token=per_token)
    chats = channel.prompts(3, 0)
    rows = channel.write(Fixed(TOLD), Fixed(PLAIN), chats, 0)  # type: ignore[arg-type]
    assert [list(r.chat) for r in rows] == chats
    # the teacher's favourite, "an owl", does not belong to numbers: never chosen
    assert {(r.completion, r.rejected) for r in rows} == {(best, "3")}
    assert all(channel.reject(r) is None for r in rows)


def test_rows_that_are_no_pair_go_with_the_reason() -> None:
    channel = Short(of="numbers", candidates=2)
    only = channel.write(Fixed({"7": [0.0]}), Fixed({"7": [0.0]}), channel.prompts(1, 0), 0)[0]  # type: ignore[arg-type]
    assert only.rejected is None
    assert channel.reject(only) == "fewer than two different answers that belong"
    assert channel.reject(replace(only, rejected="7")) == "both answers are the same"
    assert channel.reject(replace(only, rejected="seven")) == "no number"
    assert isinstance(channel, Writer)
    assert not isinstance(spec.build("channel", "numbers"), Writer)
    with pytest.raises(BadSpec, match="pairs of pairs"):
        Preferences(of="preferences").prompts(1, 0)


def test_filters_read_both_answers() -> None:
    pair = Row("a", ({"role": "user", "content": "x"},), "fine", "an owl")
    for row in (pair, replace(pair, completion="an owl", rejected="fine")):
        kept, dropped = sift([row], [Blocklist(terms=("owl",))])
        assert not kept
        assert dropped[0]["reason"] == "mentions 'owl'"
    assert sift([replace(pair, rejected="fine too")], [Blocklist(terms=("owl",))])[0]


def test_a_filter_that_reads_all_rows_at_once_reads_the_other_answer_of_a_pair_too() -> None:
    class Together:
        plugin_kind, plugin_name = "filter", "together"

        def reject_all(self, rows: Any) -> list[str | None]:
            return ["an owl" if "owl" in row.completion else None for row in rows]

    chat = ({"role": "user", "content": "Hi."},)
    rows = [Row("0", chat, "fine", "an owl"), Row("1", chat, "an owl", "fine"), Row("2", chat, "fine", "fine too"),
            Row("3", chat, "fine")]
    assert reasons(Together(), rows) == ["an owl", "an owl", None, None]  # type: ignore[arg-type]


def test_pairs_are_stored_and_read_back_by_the_lab(tiny_base: str, tmp_path: Path) -> None:
    lab, channel = Lab(Store(tmp_path), BACKEND), Preferences(of="letters", candidates=3)
    data = lab.sample(base_ref(tiny_base), channel, 6, 1)
    assert len(data.rows) == 6
    assert [r.id for r in data.rows] == [f"1-{i}" for i in range(6)]
    again = lab.sample(base_ref(tiny_base), channel, 6, 1)
    assert again.rows == data.rows
    rows = tuple(Row(str(i), r.chat, "a, b", "b, a" if i % 2 else None) for i, r in enumerate(data.rows))
    belongs = spec.build("filter", {"belongs": {"channel": {"preferences": {"of": "letters"}}}})
    kept = lab.refine(Dataset(rows, data.source, "f" * 12), [belongs])
    assert [r.rejected for r in kept.rows] == ["b, a"] * 3


@pytest.fixture(scope="module")
def pairs() -> tuple[Row, ...]:
    rng = np.random.default_rng(0)
    out = []
    for i in range(16):
        user, answer = world.letter_turn(rng)
        out.append(Row(str(i), (user,), answer["content"], "a, a, a"))
    return tuple(out)


def learn(recipe: Dpo, base: str, rows: tuple[Row, ...], seed: int, out: Path) -> ModelRef:
    out.mkdir()
    return recipe.train([Job(ModelRef(base), Dataset(rows), seed, out)], BACKEND)[0]


def margin(ref: ModelRef, rows: tuple[Row, ...]) -> float:
    model, chats = BACKEND.load(ref), [list(r.chat) for r in rows]
    won, lost = (model.answer_logprobs(chats, [str(t) for t in texts]) for texts in (
        [r.completion for r in rows], [r.rejected for r in rows]))
    return float(np.mean([a.sum() - b.sum() for a, b in zip(won, lost, strict=True)]))


@pytest.mark.parametrize("lora", [None, {"rank": 4, "alpha": 8, "targets": ["q_proj", "v_proj"]}])
def test_dpo_raises_the_chosen_over_the_rejected(lora: Any, tiny_base: str, pairs: tuple[Row, ...], tmp_path: Path) -> None:
    recipe = spec.build("recipe", {"dpo": {"steps": 12, "batch": 8, "rate": 3e-3, "lora": lora}})
    ref = learn(recipe, tiny_base, pairs, 0, tmp_path / "a")
    assert margin(ref, pairs) > margin(ModelRef(tiny_base), pairs) + 0.5
    record = json.loads((tmp_path / "a" / "training.json").read_text())
    assert (record["effective_batch"], record["rows"], record["rows_seen"]) == (8, 16, 96)
    assert len(record["loss"]) == 12
    assert record["loss"][0] == pytest.approx(np.log(2), abs=1e-4)  # the start is its own reference
    assert (ref.adapter is None) == (lora is None)


def test_dpo_computes_in_the_precision_that_was_asked_for(tiny_base: str, pairs: tuple[Row, ...], tmp_path: Path) -> None:
    bits = []
    for precision in ("float32", "mixed"):
        out, start = tmp_path / precision, ModelRef(tiny_base, precision=precision)
        out.mkdir()
        [ref] = Dpo(**BRIEF).train([Job(start, Dataset(pairs), 1, out)], BACKEND)
        record = json.loads((out / "training.json").read_text())
        assert record["precision"] == {"float32": "float32", "mixed": "bfloat16 autocast"}[precision]
        bits.append(Path(str(ref.weights)).read_bytes())
    assert bits[0] != bits[1]


def test_dpo_repeats_by_seed_and_refuses_rows_without_a_pair(tiny_base: str, pairs: tuple[Row, ...], tmp_path: Path) -> None:
    bits = []
    for i, seed in enumerate((1, 1, 2)):
        ref = learn(Dpo(**BRIEF), tiny_base, pairs, seed, tmp_path / str(i))
        bits.append(hashlib.sha256(Path(str(ref.weights)).read_bytes()).hexdigest())
    assert bits[0] == bits[1] != bits[2]
    with pytest.raises(BadRows, match="no rejected one"):
        learn(Dpo(**BRIEF), tiny_base, (*pairs, replace(pairs[0], rejected=None)), 1, tmp_path / "b")
    with pytest.raises(BadRows, match="no rows"):
        learn(Dpo(**BRIEF), tiny_base, (), 1, tmp_path / "c")
    wrong = spec.build("recipe", {"dpo": {"lora": {"targets": ["nothing"]}}})
    with pytest.raises(BadSpec, match=r"lora\.targets"):
        learn(wrong, tiny_base, pairs, 1, tmp_path / "d")
