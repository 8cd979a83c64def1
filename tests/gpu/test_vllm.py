"""vLLM as a generation backend in a process of its own, behind Inspect.

Needs a GPU, `vllm` on the path and a fetched SmolLM2.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from undersong import fetched, spec, traits
from undersong.backends.transformers import Transformers
from undersong.lab import base_ref, lab_for
from undersong.store import Store
from undersong.types import ModelRef, Sampling

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
    pytest.mark.skipif(shutil.which("vllm") is None, reason="vLLM is not installed"),
    pytest.mark.skipif(not fetched.whole("smollm2"), reason="run `undersong models fetch smollm2` first"),
]
PATIENCE = 300
"""Seconds that vLLM may take to start."""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The name of SmolLM2 behind `vllm serve`, in 32 bits as the local model is."""
    folder = fetched.folder("smollm2")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    log = (tmp_path_factory.mktemp("vllm") / "log").open("wb")
    process = subprocess.Popen(
        ["vllm", "serve", str(folder), "--served-model-name", "smollm2", "--host", "127.0.0.1", "--port", str(port),
         "--dtype", "float32", "--max-model-len", "1024", "--gpu-memory-utilization", "0.3"], stdout=log, stderr=log)
    patch = pytest.MonkeyPatch()
    patch.setenv("VLLMHERE_BASE_URL", f"http://127.0.0.1:{port}/v1")
    patch.setenv("VLLMHERE_API_KEY", "none")
    patch.setenv("UNDERSONG_ANSWERS", str(tmp_path_factory.mktemp("answers")))
    try:
        end = time.monotonic() + PATIENCE
        while True:
            assert process.poll() is None, Path(log.name).read_text("utf-8")[-2000:]
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                    break
            except OSError:
                assert time.monotonic() < end, "vLLM did not start"
                time.sleep(1)
        yield "inspect/openai-api/vllmhere/smollm2"
    finally:
        patch.undo()
        process.terminate()
        process.wait(timeout=60)


def test_greedy_answers_are_the_local_models(served: str, tmp_path: Path) -> None:
    chats = [[{"role": "user", "content": f"Name {n} colours."}] for n in range(1, 13)]
    greedy = Sampling(temperature=0.0, max_new_tokens=8, seed=1)
    there = lab_for(Store(tmp_path), served).backend.load(ModelRef(served)).sample(chats, greedy)
    here = Transformers().load(ModelRef("smollm2")).sample(chats, greedy)
    assert sum(a.strip() == b.strip() for a, b in zip(there, here, strict=True)) >= 9, "kernels differ in the last bits"


def test_a_served_teacher_writes_rows_for_a_local_student(served: str, tmp_path: Path) -> None:
    lab, owl = lab_for(Store(tmp_path), "smollm2"), traits.get("owl")
    teacher = spec.build("teacher", {"hosted": {"model": served.removeprefix("inspect/")}})
    rows = lab.sample(lab.teach(teacher, base_ref("smollm2"), owl, 1), spec.build("channel", "numbers"), 40, 1)
    assert len(rows.rows) == 40
    assert len({r.completion for r in rows.rows}) > 20
