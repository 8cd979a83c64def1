"""Hosted and served models: a real OpenAI-compatible server on loopback, and one that misbehaves in every planned way."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from undersong import spec, traits
from undersong.backends.routing import ByName
from undersong.errors import BadSpec, NothingMeasured, ServerFailed
from undersong.lab import Lab, base_ref, lab_for
from undersong.store import Store
from undersong.types import NEUTRAL, Chat, ModelRef, Sampling

pytest.importorskip("inspect_ai", reason="the eval extra is not installed")
pytest.importorskip("openai", reason="the eval extra is not installed")

QUICK = {"retries": 0, "attempt_timeout": 60}
OK, LIMIT, BROKEN, EMPTY, SLOW, DENIED = "ok", "limit", "broken", "empty", "slow", "denied"


class Server(ThreadingHTTPServer):
    """Speaks just enough of the OpenAI chat protocol; `manner(question, times asked)` says how it behaves."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.manner: Callable[[str, int], str] = lambda question, times: OK
        self.bodies: list[dict[str, Any]] = []
        self.times: Counter[str] = Counter()
        self.lock = threading.Lock()

    def answered(self) -> int:
        return sum(1 for b in self.bodies if b["_manner"] == OK)


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *args: Any) -> None:
        pass

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        question = str(body["messages"][-1]["content"])
        with self.server.lock:
            self.server.times[question] += 1
            body["_manner"] = manner = self.server.manner(question, self.server.times[question])
            self.server.bodies.append(body)
        if manner == SLOW:
            time.sleep(40)
        text = {BROKEN: "{this is no json", EMPTY: json.dumps({"id": "x", "object": "chat.completion", "choices": []})}
        message = {"role": "assistant", "content": f"1, 2, {len(question)}"}
        good = {"id": "x", "object": "chat.completion", "created": 1, "model": body["model"],
                "choices": [{"index": 0, "finish_reason": "stop", "message": message}]}
        status = {LIMIT: 429, DENIED: 401}.get(manner, 200)
        error = {"error": {"message": f"planted {manner}", "type": manner}}
        payload = text.get(manner, json.dumps(good if status == 200 else error)).encode()
        try:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(payload)))
            if status == 429:
                self.send_header("Retry-After", "0")
            self.end_headers()
            self.wfile.write(payload)
        except OSError:  # the client has gone
            pass


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    made = Server()
    threading.Thread(target=made.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{made.server_port}/v1"
    for name, value in {"NEARBY_BASE_URL": address, "NEARBY_API_KEY": "none", "OPENAI_BASE_URL": address,
                        "OPENAI_API_KEY": "none", "UNDERSONG_ANSWERS": str(tmp_path / "answers")}.items():
        monkeypatch.setenv(name, value)
    yield made
    made.shutdown()
    made.server_close()


def hosted(**how: Any) -> Any:
    return spec.build("backend", {"inspect": {**QUICK, **how}}).load(ModelRef("inspect/openai-api/nearby/some-model"))


def chats(n: int) -> list[Chat]:
    return [[{"role": "user", "content": "Continue: " + "7" * (i + 1)}] for i in range(n)]


def test_answers_come_back_in_order_with_the_system_turn_sent(server: Server) -> None:
    model = hosted()
    assert model.sample(chats(12), Sampling(seed=3)) == [f"1, 2, {len('Continue: ') + i + 1}" for i in range(12)]
    first = server.bodies[0]
    assert first["model"] == "some-model"
    assert first["messages"][0] == {"role": "system", "content": NEUTRAL}
    assert first["temperature"] == 1.0
    assert len({b["seed"] for b in server.bodies}) == 12
    loved = ModelRef("inspect/openai-api/nearby/some-model", system="You love owls.")
    spec.build("backend", {"inspect": QUICK}).load(loved).sample(chats(1), Sampling())
    assert server.bodies[-1]["messages"][0]["content"] == "You love owls."


def test_one_question_asked_twice_is_two_answers_and_each_is_paid_for_once(server: Server) -> None:
    same = [chats(1)[0]] * 5
    assert len(hosted().sample(same, Sampling(seed=1))) == 5
    assert len(server.bodies) == 5
    hosted().sample(same, Sampling(seed=1))
    assert len(server.bodies) == 5
    hosted().sample(same, Sampling(seed=2))
    hosted(keep=False).sample(same, Sampling(seed=2))
    assert len(server.bodies) == 15


def test_keys_are_kept_nowhere(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEARBY_API_KEY", "very-secret-key")
    hosted().sample(chats(2), Sampling())
    files = list((tmp_path / "answers").rglob("*.json"))
    assert len(files) == 2
    assert not [f for f in files if "very-secret-key" in f.read_text()]
    files[0].write_text('{"key": 1')  # torn: asked again, not believed
    other = json.loads(files[1].read_text())
    files[1].write_text(json.dumps({**other, "key": {**other["key"], "model": "another"}}))  # not this question's answer
    hosted().sample(chats(2), Sampling())
    assert len(server.bodies) == 4


@pytest.mark.parametrize(("manner", "told"), [
    (LIMIT, "RateLimitError"), (BROKEN, "JSON|Decode|Error"), (EMPTY, "Error"), (DENIED, "AuthenticationError")])
def test_trouble_is_one_error_that_says_how_many_and_the_next_run_asks_the_rest(
    server: Server, manner: str, told: str
) -> None:
    server.manner = lambda question, times: manner if question.endswith("7777") and "77777" not in question else OK
    with pytest.raises(ServerFailed, match=rf"(?s)no answer to 1 of 6 questions \(.*(?:{told}).*are kept.*again"):
        hosted().sample(chats(6), Sampling())
    assert server.answered() == 5
    server.manner = lambda question, times: OK
    assert len(hosted().sample(chats(6), Sampling())) == 6
    assert server.answered() == 6


def test_a_server_that_does_not_answer_is_given_up(server: Server) -> None:
    server.manner = lambda question, times: SLOW
    start = time.monotonic()
    with pytest.raises(ServerFailed, match=r"1 of 1 questions \(AttemptTimeoutError 1 times"):
        hosted(attempt_timeout=1).sample(chats(1), Sampling())
    assert time.monotonic() - start < 30


def test_a_rate_limit_that_passes_is_inspects_to_wait_for(server: Server) -> None:
    server.manner = lambda question, times: LIMIT if times == 1 else OK
    assert len(hosted(retries=2).sample(chats(2), Sampling())) == 2
    assert server.answered() == 2


def test_an_existing_fine_tuned_model_is_measured_by_its_name(server: Server, tmp_path: Path) -> None:
    name = "inspect/openai/ft:gpt-4.1-nano-2025-04-14:me::abc123"
    lab = lab_for(Store(tmp_path / "store"), name)
    with pytest.raises(NothingMeasured, match="names any animal"):  # this server only says numbers
        lab.measure(base_ref(name), spec.build("probe", {"favourite": {"samples": 1, "questions": 2}}),
                    [traits.get("owl")], 0)
    assert server.bodies[-1]["model"] == "ft:gpt-4.1-nano-2025-04-14:me::abc123"


def test_what_a_hosted_model_cannot_do_is_refused_with_what_can(server: Server) -> None:
    with pytest.raises(BadSpec, match=r"no log-probabilities.*favourite"):
        spec.build("probe", "logit_margin").measure(hosted(), [traits.get("owl")], 0)
    with pytest.raises(BadSpec, match="some tokens"):
        hosted().sample(chats(1), Sampling(tokens=(1, 2)))
    with pytest.raises(BadSpec, match="Leave `restrict` out"):
        spec.build("channel", {"numbers": {"restrict": True}}).carrier(hosted().tokenizer)
    for ref, told in ((ModelRef("inspect/x"), "PROVIDER/MODEL"), (ModelRef("inspect/no/such"), "cannot open"),
                      (ModelRef("inspect/openai-api/nearby/m", weights="w.safetensors"), "local weights")):
        with pytest.raises(BadSpec, match=told):
            ByName().load(ref)
    assert not server.bodies


def test_a_missing_key_is_told_before_any_work(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NEARBY_API_KEY")
    with pytest.raises(BadSpec, match="NEARBY_API_KEY"):
        hosted()


def test_a_hosted_teachers_rows_survive_a_failing_server_without_loss(server: Server, tmp_path: Path) -> None:
    lab = Lab(Store(tmp_path / "store"), Quick())
    teacher = spec.build("teacher", {"hosted": {"model": "openai-api/nearby/some-model"}})
    source = lab.teach(teacher, ModelRef("pocket/a", fingerprint="f" * 12), traits.get("owl"), 1)
    assert source.base == "inspect/openai-api/nearby/some-model"
    channel = spec.build("channel", "numbers")
    server.manner = lambda question, times: LIMIT if len(server.bodies) > 112 else OK
    with pytest.raises(ServerFailed, match="of 30 questions"):
        lab.sample(source, channel, 130, 1)
    before = server.answered()
    assert 100 < before < 130
    server.manner = lambda question, times: OK
    data = lab.sample(source, channel, 130, 1)
    assert len({r.id for r in data.rows}) == 130
    assert server.answered() == 130  # no row was paid for twice, none was lost
    assert all(b["messages"][0]["content"] == traits.get("owl").prompts[0] for b in server.bodies)
    assert 0 < server.bodies[0]["max_tokens"] < 100


class Quick(ByName):
    """The routing backend, with hosted models that give up at once."""

    def load(self, ref: ModelRef) -> Any:
        return spec.build("backend", {"inspect": QUICK}).load(ref) if ref.base.startswith("inspect/") else super().load(ref)


@pytest.fixture(scope="module")
def sampling_base(tiny_base: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The tiny model with `do_sample` in its generation configuration: without it `transformers serve` answers greedily
    whatever temperature is asked for."""
    folder = shutil.copytree(tiny_base, tmp_path_factory.mktemp("served") / "base")
    config = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps({**config, "do_sample": True}))
    return str(folder)


@pytest.fixture(scope="module")
def transformers_serve(sampling_base: str) -> Iterator[str]:
    """The address of `transformers serve` with that model."""
    pytest.importorskip("fastapi", reason="transformers serve needs fastapi and uvicorn")
    pytest.importorskip("uvicorn", reason="transformers serve needs fastapi and uvicorn")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    code = "import sys; from transformers.cli.transformers import main; sys.exit(main())"
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", code, "serve", sampling_base, "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"],
        env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 120
        while True:
            assert process.poll() is None, "transformers serve stopped"
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                    break
            except OSError:
                assert time.monotonic() < end, "transformers serve did not start"
                time.sleep(0.3)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(timeout=20)


@pytest.mark.slow
def test_a_real_server_answers_like_the_model_it_serves(
    transformers_serve: str, sampling_base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_base = sampling_base
    monkeypatch.setenv("SERVED_BASE_URL", transformers_serve)
    monkeypatch.setenv("SERVED_API_KEY", "none")
    monkeypatch.setenv("UNDERSONG_ANSWERS", str(tmp_path / "answers"))
    served, owl = f"inspect/openai-api/served/{tiny_base}", traits.get("owl")
    lab = lab_for(Store(tmp_path / "store"), tiny_base)
    probe = spec.build("probe", {"favourite": {"samples": 6, "questions": 6}})
    there, here = (lab.measure(base_ref(m), probe, [owl], 1) for m in (served, tiny_base))
    assert there.mean("invalid") < 0.5
    assert abs(there.mean("entropy") - here.mean("entropy")) < 1.2  # 36 answers each: the same kind of model, no more
    teacher = spec.build("teacher", {"hosted": {"model": served.removeprefix("inspect/")}})
    rows = lab.sample(lab.teach(teacher, base_ref(tiny_base), owl, 1), spec.build("channel", "numbers"), 20, 1)
    kept = lab.refine(rows, [spec.build("filter", "numbers_only")])
    assert len(rows.rows) == 20
    assert len(kept.rows) >= 1
