"""Datasets written in shards: the same bytes as by one worker, whichever shards are there, whoever stops half way."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_experiment import experiment, finish, payload

from undersong import writing
from undersong.errors import BadSpec, BrokenArtefact, UnknownName
from undersong.executors.inline import Inline
from undersong.executors.processes import Processes
from undersong.executors.ray import Ray
from undersong.experiment.cells import Cells, spread
from undersong.lab import Lab, lab_for
from undersong.registry import get, names
from undersong.store import Store
from undersong.types import Chat, ModelRef, Sampling
from undersong.writing import SHARD, shards

PART = 40
LARGE: dict[str, Any] = {"rows": 5 * PART + 14, "controls": ["no_trait"], "rivals": [], "probes": ["logit_margin"]}


class Sharded(Inline):
    """Cells in this process, datasets in shards."""

    shard_rows: int = 2 * PART


@pytest.fixture(scope="module", autouse=True)
def small_parts() -> Iterator[None]:
    """Parts of few rows, so that few rows have several parts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writing, "PART", PART)
        yield


@pytest.fixture(scope="module")
def whole(small_parts: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of a run in which one worker wrote every dataset."""
    root = tmp_path_factory.mktemp("whole")
    finish(experiment(**LARGE), Store(root))
    return root


def test_shards_end_with_the_bytes_of_one_worker(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, store, drawn, part = experiment(**LARGE), Store(tmp_path), list[int](), writing.Writing.part
    monkeypatch.setattr(writing.Writing, "part", lambda self, number: drawn.append(number) or part(self, number))
    spread([asked], lab_for(store, ""), Sharded())
    assert payload(tmp_path) == payload(whole)
    assert len(drawn) == 2 * 3 * 6  # six parts a dataset, each drawn once
    held = store.records("shard")
    assert len(held) == 2 * 3 * 3  # two teachers by three seeds, three shards each
    assert sum(record["summary"]["rows"] for record in held) == 2 * 3 * LARGE["rows"]


@pytest.mark.parametrize("lost", ["one shard", "every shard", "the dataset", "half of a shard"])
def test_what_is_lost_is_written_again(lost: str, whole: Path, tmp_path: Path) -> None:
    asked, store = experiment(**LARGE), Store(tmp_path)
    spread([asked], lab_for(store, ""), Sharded())
    raw = asked.runs()[0].raw
    dataset = store.get(raw.fingerprint).path
    shard = [record.parent for record in sorted((tmp_path / "shard").glob("*/record.json"))]
    if lost != "every shard":
        shutil.rmtree(dataset)
    for folder in {"one shard": shard[:1], "every shard": shard}.get(lost, []):
        shutil.rmtree(folder)
    if lost == "half of a shard":
        record = (shard[0] / "record.json").read_text()
        (shard[0] / "record.json").write_text(record.replace('"complete"', '"started"'))
        sorted(shard[0].glob("rows.parts/*"))[-1].unlink()
    said: list[str] = []
    spread([asked], Lab(store, lab_for(store, "").backend, said.append), Sharded())
    assert payload(tmp_path) == payload(whole)
    if lost == "every shard":
        assert said == []  # the datasets are there: nobody needs their shards
        assert not store.records("shard")
    if lost == "the dataset":
        assert not any("shard" in line for line in said)


def test_nothing_but_shards_is_added_and_small_datasets_have_none(whole: Path, tmp_path: Path) -> None:
    small = experiment(**LARGE | {"rows": 2 * PART})
    assert [c.kind for c in Cells([small], 2 * PART).all] == [c.kind for c in Cells([small]).all]
    large = experiment(**LARGE)
    plain, cut = Cells([large]), Cells([large], 2 * PART)
    marks = [{step.fingerprint for cell in c.all for step in cell.makes if step.kind != "shard"} for c in (plain, cut)]
    assert marks[0] == marks[1]
    for cell in cut.all:
        if cell.kind == "rows":
            before = [cut.all[i].kind for i in cut.before(cell)]
            assert before.count("shard") == 3
            assert not cell.done(Store(tmp_path))
        assert cell.done(Store(whole))  # shards too: their datasets are there


@given(st.integers(1, 200_000), st.integers(0, 50_000))
def test_shards_cover_every_row_once(n: int, size: int) -> None:
    cut = shards(n, size)
    assert [row for piece in cut for row in (piece.start, piece.stop)] == sorted(r for p in cut for r in (p.start, p.stop))
    if cut:
        assert (cut[0].start, cut[-1].stop) == (0, n)
        assert all(a.stop == b.start for a, b in pairwise(cut))
        assert len(cut) > 1
        assert min(map(len, cut)) >= 0.6 * PART
    else:
        assert size == 0 or n < 1.6 * max(size, PART)


def test_the_demo_and_other_small_datasets_are_not_cut() -> None:
    assert shards(2600, SHARD) == []
    assert {Ray().shard_rows, Processes().shard_rows} == {SHARD}


@dataclass
class Counting:
    """A backend that counts what it is asked; its models answer with their own count."""

    loads: int = 0
    answers: int = 0
    part_rows: int = 10

    def load(self, ref: ModelRef) -> Any:
        self.loads += 1
        return Writer(self)


@dataclass
class Writer:
    """A model of `Counting`."""

    owner: Counting
    tokenizer: Any = None
    engine: Any = None

    @property
    def part_rows(self) -> int:
        return self.owner.part_rows

    def sample(self, chats: Sequence[Chat], sampling: Sampling) -> list[str]:
        self.owner.answers += len(chats)
        return [f"{sampling.seed % 1000}, {i}" for i in range(len(chats))]


@pytest.fixture
def channel(monkeypatch: pytest.MonkeyPatch) -> Any:
    made = get("channel", "numbers")()
    monkeypatch.setattr(type(made), "max_new_tokens", lambda self, tokenizer: 8)
    return made


def test_a_dataset_whose_shards_are_all_there_loads_no_model(tmp_path: Path, channel: Any) -> None:
    source, backend, n = ModelRef("simulated/a", fingerprint="0" * 12), Counting(), 95
    lab = Lab(Store(tmp_path / "a"), backend)
    alone = Lab(Store(tmp_path / "b"), Counting()).sample(source, channel, n, 7)
    parts = [lab.shard(source, channel, n, 7, rows) for rows in (range(0, 33), range(33, 60), range(60, 95))]
    assert [p.summary["first"] for p in parts] == [0, 4, 6]  # a part is whose it begins in
    assert backend.answers == n
    loads = backend.loads
    assert lab.sample(source, channel, n, 7, shards=parts).rows == alone.rows
    assert backend.loads == loads
    more = Lab(Store(tmp_path / "c"), backend).sample(source, channel, n, 7, shards=parts[1:])
    assert more.rows == alone.rows
    assert backend.answers == n + 40  # the first shard's four parts


def test_seconds_of_a_dataset_are_those_of_its_shards_too(tmp_path: Path, channel: Any) -> None:
    source, store = ModelRef("simulated/a", fingerprint="0" * 12), Store(tmp_path)
    lab = Lab(store, Counting())
    shard = lab.shard(source, channel, 20, 7, range(20))
    shard._record["summary"]["seconds"] = 50.0
    dataset = lab.sample(source, channel, 20, 7, shards=[shard])
    assert store.get(dataset.fingerprint).summary["seconds"] >= 50


@pytest.mark.parametrize("forged", [
    {}, {"first": -1}, {"size": 0}, {"rows": 3}, {"seconds": "long"}, {"engine": "vllm"}, {"first": None}])
def test_a_shard_that_does_not_say_what_it_holds_is_refused(tmp_path: Path, channel: Any, forged: dict[str, Any]) -> None:
    source, lab = ModelRef("simulated/a", fingerprint="0" * 12), Lab(Store(tmp_path), Counting())
    shard = lab.shard(source, channel, 20, 7, range(10))
    shard._record["summary"] = shard.summary | forged if forged else {}
    with pytest.raises(BrokenArtefact, match=r"Delete .* and run again"):
        lab.sample(source, channel, 20, 7, shards=[shard])


def test_every_engine_that_drew_rows_is_told(tmp_path: Path, channel: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    source, store, versions = ModelRef("simulated/a", fingerprint="0" * 12), Store(tmp_path), iter("1123")
    engine = get("backend", "simulated")()
    monkeypatch.setattr(type(engine), "load", lambda self, ref: Writer(Counting(), engine={"version": next(versions)}))
    lab = Lab(store, Counting())
    parts = [lab.shard(source, channel, 40, 7, rows, engine=engine) for rows in (range(10), range(10, 20), range(20, 30))]
    drawn = lab.sample(source, channel, 40, 7, engine=engine, shards=parts)
    assert store.get(drawn.fingerprint).summary["engine"] == [{"version": "1"}, {"version": "2"}, {"version": "3"}]


def test_an_engine_is_part_of_what_rows_are_and_is_told(
    tmp_path: Path, channel: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, store, own = ModelRef("simulated/a", fingerprint="0" * 12), Store(tmp_path), Counting()
    engine = get("backend", "simulated")()
    monkeypatch.setattr(type(engine), "load", lambda self, ref: Writer(Counting(), engine={"name": "x", "version": "1"}))
    lab = Lab(store, own)
    plain, drawn = lab.sample(source, channel, 20, 7), lab.sample(source, channel, 20, 7, engine=engine)
    assert plain.fingerprint != drawn.fingerprint
    assert own.answers == 20
    assert "engine" not in store.get(plain.fingerprint).summary
    assert store.get(drawn.fingerprint).summary["engine"] == {"name": "x", "version": "1"}
    shard = lab.shard(source, channel, 20, 7, range(20), engine=engine)
    shutil.rmtree(store.get(drawn.fingerprint).path)
    again = lab.sample(source, channel, 20, 7, engine=engine, shards=[shard])
    assert store.get(again.fingerprint).summary["engine"] == {"name": "x", "version": "1"}


def test_an_experiment_names_its_engine() -> None:
    plain, drawn = experiment(), experiment(engine="simulated")
    assert "engine" not in plain.resolved()
    assert drawn.resolved()["engine"]["name"] == "simulated"
    assert plain.runs()[0].raw.fingerprint != drawn.runs()[0].raw.fingerprint
    assert plain.runs()[0].teacher.fingerprint == drawn.runs()[0].teacher.fingerprint
    with pytest.raises(UnknownName, match="Did you mean 'simulated'"):
        experiment(engine="simulatd")


def test_a_channel_that_needs_more_than_answers_refuses_an_engine(tmp_path: Path) -> None:
    lab, source = Lab(Store(tmp_path), Counting()), ModelRef("simulated/a", fingerprint="0" * 12)
    pairs = next(get("channel", name)() for name in names("channel")
                 if isinstance(get("channel", name)(), writing.Writer))
    engine = get("backend", "simulated")()
    with pytest.raises(BadSpec, match="Leave `engine` out"):
        lab.sample(source, pairs, 4, 1, engine=engine)
