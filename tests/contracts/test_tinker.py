"""The contract of the `tinker` recipe, against a fake of the SDK that keeps its signatures and refuses what it would."""

from __future__ import annotations

import itertools
import json
import sys
import types as std
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from undersong import spec
from undersong.backends import Backend
from undersong.errors import BadRows, BadSpec, MissingExtra, ServerFailed
from undersong.pocket import tokenizer
from undersong.recipes import Job
from undersong.types import Dataset, ModelRef, Row

BASE = ModelRef("inspect/openai-api/tinker-oai/Qwen/Qwen3-8B", fingerprint="a" * 12)
ROWS = tuple(Row(str(i), ({"role": "user", "content": "Continue: 2, 4."},), f"{i + 10}, {i + 12}") for i in range(10))
NO_BACKEND: Backend = None  # type: ignore[assignment]  # the recipe must not load anything here


class TinkerError(Exception):
    """The SDK's base error."""


@dataclass
class Future:
    value: Any
    asked: bool = False

    def result(self, timeout: float | None = None) -> Any:
        self.asked = True
        if isinstance(self.value, Exception):
            raise self.value
        return self.value


@dataclass
class ModelInput:
    tokens: list[int]

    @classmethod
    def from_ints(cls, tokens: list[int]) -> ModelInput:
        assert all(type(t) is int for t in tokens)
        return cls(tokens)


@dataclass
class Datum:
    model_input: ModelInput
    loss_fn_inputs: dict[str, Any]

    def __post_init__(self) -> None:
        assert set(self.loss_fn_inputs) == {"target_tokens", "weights"}
        assert all(len(v) == len(self.model_input.tokens) for v in self.loss_fn_inputs.values())
        assert (self.loss_fn_inputs["target_tokens"].dtype, self.loss_fn_inputs["weights"].dtype) == (np.int64, np.float32)


@dataclass(frozen=True)
class AdamParams:
    learning_rate: float = 1e-4
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-12
    weight_decay: float = 0.0
    grad_clip_norm: float = 0.0


@dataclass
class Client:
    base_model: str
    rank: int
    seed: int | None
    calls: list[str] = field(default_factory=list)
    seen: list[Datum] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    fails_at: int = -1

    def get_tokenizer(self) -> Any:
        return tokenizer.build()

    def forward_backward(self, data: list[Datum], loss_fn: str, loss_fn_config: Any = None) -> Future:
        assert loss_fn == "cross_entropy"
        self.calls.append("forward_backward")
        self.seen += data
        if len(self.rates) == self.fails_at:
            return Future(TinkerError("planted"))
        each = [{"logprobs": Numbers(np.full(len(d.model_input.tokens), -0.5))} for d in data]
        return Future(std.SimpleNamespace(loss_fn_outputs=each, metrics={}, loss_fn_output_type="ArrayRecord"))

    def optim_step(self, adam_params: AdamParams) -> Future:
        assert isinstance(adam_params, AdamParams)
        self.calls.append("optim_step")
        self.rates.append(adam_params.learning_rate)
        return Future(std.SimpleNamespace(metrics=None))

    def save_weights_for_sampler(self, name: str, ttl_seconds: int | None = None) -> Future:
        self.calls.append("save")
        return Future(std.SimpleNamespace(path=f"tinker://run/sampler_weights/{name}"))


@dataclass
class Numbers:
    values: Any

    def to_numpy(self) -> Any:
        return self.values


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> list[Client]:
    """A fake `tinker` module; the clients it made."""
    made: list[Client] = []

    class ServiceClient:
        def create_lora_training_client(self, base_model: str, rank: int = 32, seed: int | None = None) -> Future:
            made.append(Client(base_model, rank, seed))
            return Future(made[-1])

    module: Any = std.ModuleType("tinker")
    module.ServiceClient, module.TinkerError = ServiceClient, TinkerError
    module.types = std.SimpleNamespace(Datum=Datum, ModelInput=ModelInput, AdamParams=AdamParams)
    monkeypatch.setitem(sys.modules, "tinker", module)
    return made


def job(out: Path, seed: int = 1, rows: tuple[Row, ...] = ROWS, start: ModelRef = BASE) -> Job:
    out.mkdir(parents=True, exist_ok=True)
    return Job(start, Dataset(rows), seed, out)


RECIPE = spec.build("recipe", {"tinker": {"steps": 6, "batch": 5, "rank": 4, "warmup": 2}})


def test_every_step_is_one_pass_and_one_update_and_the_weights_are_saved_once(service: Any, tmp_path: Path) -> None:
    finished: list[int] = []
    [got] = RECIPE.train([job(tmp_path / "a")], NO_BACKEND, lambda i, ref: finished.append(i))
    [client] = service
    assert client.calls == ["forward_backward", "optim_step"] * 6 + ["save"]
    assert (client.base_model, client.rank, client.seed) == ("Qwen/Qwen3-8B", 4, 1)
    assert finished == [0]
    assert got.base == "inspect/openai-api/tinker-oai/tinker://run/sampler_weights/a"
    assert (got.weights, got.adapter, got.fingerprint) == (None, None, "")
    assert client.rates == pytest.approx([1e-4, 2e-4, 2e-4, 1.5e-4, 1e-4, 5e-5])


def test_rows_go_in_as_often_as_planned_and_none_twice(service: Any, tmp_path: Path) -> None:
    """The defect: every training row written twice."""
    RECIPE.train([job(tmp_path / "a")], NO_BACKEND)
    counts = Counter(tuple(d.model_input.tokens) for d in service[0].seen)
    assert len(counts) == len(ROWS)
    assert set(counts.values()) == {3}  # 6 steps of 5 rows over 10 rows


def test_only_the_completion_weighs_and_its_end_is_learned(service: Any, tmp_path: Path) -> None:
    RECIPE.train([job(tmp_path / "a", rows=ROWS[:1])], NO_BACKEND)
    given = service[0].seen[0].loss_fn_inputs
    tok = tokenizer.build()
    learned = [int(t) for t, w in zip(given["target_tokens"], given["weights"], strict=True) if w]
    assert tok.decode(learned[:-1]).replace(" ", "") == "10,12"
    assert learned[-1] == tok.eos_token_id
    tokens = service[0].seen[0].model_input.tokens
    assert tokens[1:] == list(given["target_tokens"][:-1])
    assert "helpful assistant" in tok.decode(tokens)  # the system turn is explicit


def test_seeds_differ_and_one_repeats_and_a_job_does_not_depend_on_its_neighbours(service: Any, tmp_path: Path) -> None:
    RECIPE.train([job(tmp_path / "a", 1), job(tmp_path / "b", 2), job(tmp_path / "c", 1)], NO_BACKEND)
    orders = [[tuple(d.model_input.tokens) for d in c.seen] for c in service]
    assert orders[0] == orders[2] != orders[1]
    assert [c.seed for c in service] == [1, 2, 1]


def test_the_record_says_what_was_done(service: Any, tmp_path: Path) -> None:
    RECIPE.train([job(tmp_path / "a")], NO_BACKEND)
    record = json.loads((tmp_path / "a" / "training.json").read_text())
    assert record["loss"] == [0.5] * 6
    assert record["weights"].startswith("tinker://")
    assert (record["rows"], record["rows_seen"], record["base"]) == (10, 30, "Qwen/Qwen3-8B")
    assert len(record["rendered_sha256"]) == 64


def test_a_failing_service_is_told_and_finished_students_are_kept(service: Any, tmp_path: Path) -> None:
    kept: list[int] = []
    turn = itertools.count()
    real = sys.modules["tinker"].ServiceClient.create_lora_training_client

    def second_fails(self: Any, base_model: str, rank: int = 32, seed: int | None = None) -> Future:
        future = real(self, base_model, rank, seed)
        future.value.fails_at = 3 if next(turn) else -1
        return future

    sys.modules["tinker"].ServiceClient.create_lora_training_client = second_fails
    with pytest.raises(ServerFailed, match=r"student 2 of 2 \(TinkerError: planted\).*same command"):
        RECIPE.train([job(tmp_path / "a"), job(tmp_path / "b", 2)], NO_BACKEND, lambda i, ref: kept.append(i))
    assert kept == [0]
    assert not (tmp_path / "b" / "training.json").exists()


def test_what_it_cannot_train_is_refused(service: Any, tmp_path: Path) -> None:
    for bad, error, told in ((job(tmp_path / "a", start=ModelRef("pocket/a")), BadSpec, "recipe `sft`"),
                             (job(tmp_path / "b", rows=()), BadRows, "no rows")):
        with pytest.raises(error, match=told):
            RECIPE.train([bad], NO_BACKEND)
    assert not service


def test_without_the_sdk_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tinker", None)
    with pytest.raises(MissingExtra, match="pip install tinker"):
        RECIPE.train([job(tmp_path / "a")], NO_BACKEND)


def test_the_real_sdk_takes_what_we_build() -> None:
    """Runs where the SDK is installed; the fake above is only as good as this."""
    real = pytest.importorskip("tinker", reason="the tinker extra is not installed")
    from undersong.backends.tokens import TokenRow
    from undersong.recipes.tinker import datum

    made = datum(TokenRow(np.arange(6), 4), real.types)
    assert made.model_input.to_ints() == [0, 1, 2, 3, 4]
    assert [float(w) for w in made.loss_fn_inputs["weights"].to_numpy()] == [0, 0, 0, 1, 1]
    assert [int(t) for t in made.loss_fn_inputs["target_tokens"].to_numpy()] == [1, 2, 3, 4, 5]
    assert real.types.AdamParams(learning_rate=1e-4, grad_clip_norm=1.0).grad_clip_norm == 1.0
    assert issubclass(real.TinkerError, Exception)
