"""Reading checkpoints from anywhere: shards, adapters, dtypes; and files that must be refused in a sentence."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from preserved import independent, put, subject, tensors
from safetensors.numpy import save_file

from undersong import pocket
from undersong.errors import BrokenArtefact, MissingModel, UndersongError
from undersong.kinship.bytes import Bytes
from undersong.kinship.checkpoint import INDEX, Checkpoint, decoded, header
from undersong.kinship.roles import roles
from undersong.types import ModelRef

A = str(pocket.folder("pocket/a"))


def of(folder: Path | str, **changes: str) -> Checkpoint:
    return Checkpoint.of(ModelRef(str(folder), **changes))  # type: ignore[arg-type]


def sharded(folder: Path) -> Path:
    """pocket/a in two files."""
    given = tensors("a")
    folder.mkdir()
    names = sorted(given)
    where = {n: f"model-{i % 2}.safetensors" for i, n in enumerate(names)}
    for file in set(where.values()):
        save_file({n: given[n] for n in names if where[n] == file}, folder / file)
    (folder / INDEX).write_text(json.dumps({"weight_map": where}))
    return folder


def adapter(folder: Path, seed: int = 0, layers: int = 3, **settings: object) -> Path:
    """A LoRA adapter of rank 2 on the query maps of pocket/a."""
    folder.mkdir()
    rng, out = np.random.default_rng(seed), {}
    for i in range(layers):
        name = f"base_model.model.model.layers.{i}.self_attn.q_proj"
        out[f"{name}.lora_A.weight"] = rng.standard_normal((2, 96)).astype(np.float32)
        out[f"{name}.lora_B.weight"] = rng.standard_normal((96, 2)).astype(np.float32)
    save_file(out, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 8, "base_model_name_or_path": A, **settings}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def test_shards_read_as_one_and_rows_as_the_whole(tmp_path: Path) -> None:
    whole, parts = of("pocket/a"), of(sharded(tmp_path / "s"))
    assert whole.names == parts.names
    name = "model.embed_tokens.weight"
    picked = np.array([1700, 3, 4, 5, 900])
    assert np.array_equal(parts.read(name, picked), tensors("a")[name][picked])
    assert np.array_equal(parts.read(name, slice(10, 13)), tensors("a")[name][10:13])
    assert np.array_equal(np.concatenate([b for _, b in parts.blocks(name)]), tensors("a")[name])
    assert [parts.sha256(n) for n in parts.names] == [whole.sha256(n) for n in whole.names]
    assert len(roles(parts).layers) == 3


def test_every_float_of_eight_and_sixteen_bits_is_read_as_torch_reads_it() -> None:
    torch = pytest.importorskip("torch")
    bits = torch.arange(256, dtype=torch.uint8)
    for ours, theirs in (("F8_E4M3", torch.float8_e4m3fn), ("F8_E5M2", torch.float8_e5m2)):
        assert np.array_equal(decoded(bits.numpy(), ours), bits.view(theirs).float().numpy(), equal_nan=True)
    many = torch.arange(-(2**15), 2**15, dtype=torch.int16)
    assert np.array_equal(decoded(many.numpy().view(np.uint16), "BF16"), many.view(torch.bfloat16).float().numpy(),
                          equal_nan=True)


@pytest.mark.parametrize("settings", [{}, {"use_rslora": True}])
def test_an_adapter_reads_as_peft_merges_it(settings: dict[str, bool], tmp_path: Path) -> None:
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    folder = adapter(tmp_path / "x", target_modules=["q_proj"], task_type="CAUSAL_LM", **settings)
    merged = peft.PeftModel.from_pretrained(transformers.AutoModelForCausalLM.from_pretrained(A), str(folder))
    state = merged.merge_and_unload().state_dict()
    ours = of("pocket/a", adapter=str(folder))
    for name in ours.names:
        assert np.allclose(ours.read(name), state[name].numpy(), atol=1e-5)
    name = "model.layers.1.self_attn.q_proj.weight"
    assert np.allclose(ours.read(name, np.array([5, 2])), state[name].numpy()[[5, 2]], atol=1e-5)


def test_an_adapter_beside_its_base_shares_all_else_and_is_the_child(tmp_path: Path) -> None:
    base, child = subject("pocket/a"), subject("pocket/a", adapter=str(adapter(tmp_path / "x")))
    found = Bytes().compare(base, child)
    assert (found.verdict, found.p, found.details["direction"]) == ("same_initialisation", None, "b_from_a")
    assert found.details["changed"] == [f"model.layers.{i}.self_attn.q_proj.weight" for i in range(3)]
    assert Bytes().compare(child, base).details["direction"] == "a_from_b"
    other = subject("pocket/a", adapter=str(adapter(tmp_path / "y", seed=1)))
    assert Bytes().compare(child, other).details["direction"] is None


def test_a_copy_has_the_same_weights_however_it_is_sharded_and_a_vector_changes_none(tmp_path: Path) -> None:
    found = Bytes().compare(subject("pocket/a"), subject(sharded(tmp_path / "s")))
    assert (found.verdict, found.statistic) == ("same_weights", pytest.approx(1.0, abs=0.01))
    steered = subject("pocket/a", vector=str(tmp_path / "v.safetensors"))
    told = Bytes().compare(subject("pocket/a"), steered)
    assert told.verdict == "same_weights"
    assert "steering vectors" in told.details["says"]


def test_what_is_equal_in_strangers_is_no_evidence(tmp_path: Path) -> None:
    rows = np.outer(np.arange(64), np.linspace(0.1, 1, 48)).astype(np.float32)
    pair = [subject(put(tmp_path / str(s), independent(s) | {"model.rotary_emb.table": rows, "lm_head.weight": np.zeros(
        (400, 48), np.float32)}, tokenizer=False)) for s in (1, 2)]
    found = Bytes().compare(*pair)
    assert found.verdict == "unknown"
    assert set(found.details["trivial"]) == {"model.norm.weight", "model.rotary_emb.table", "lm_head.weight"}


def test_one_flipped_bit_is_a_change(tmp_path: Path) -> None:
    given = tensors("a")
    name = "model.layers.2.mlp.down_proj.weight"
    given[name] = given[name].copy()
    given[name].view(np.uint8)[-1, -1] ^= 1
    found = Bytes().compare(subject("pocket/a"), subject(put(tmp_path / "x", given)))
    assert (found.verdict, found.details["changed"]) == ("same_initialisation", [name])


def hostile(kind: str, at: Path) -> Path:
    """A folder that must be refused."""
    folder = sharded(at / "s")
    index = json.loads((folder / INDEX).read_text())
    shard = folder / "model-0.safetensors"
    name = next(n for n, f in index["weight_map"].items() if f == shard.name)
    if kind == "a name that leads out":
        (at / "out.safetensors").write_bytes(shard.read_bytes())
        index["weight_map"][name] = "../out.safetensors"
    if kind == "a link that leads out":
        os.replace(shard, at / "out.safetensors")
        shard.symlink_to(at / "out.safetensors")
    if kind == "a tensor that is not there":
        index["weight_map"]["model.ghost.weight"] = shard.name
    if kind == "a truncated file":
        shard.write_bytes(shard.read_bytes()[:-100])
    if kind == "an absurd header":
        shard.write_bytes((2**62).to_bytes(8, "little") + b"{}")
    if kind == "a header that is no JSON":
        shard.write_bytes((4).to_bytes(8, "little") + b"\x80\x04N.")
    if kind == "a missing shard":
        shard.unlink()
    if kind == "an index of numbers":
        index = {"weight_map": {name: 3}}
    if kind == "no index":
        (folder / INDEX).unlink()
        return folder
    (folder / INDEX).write_text(json.dumps(index) if kind != "an index that is no JSON" else "{")
    return folder


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("a name that leads out", "no weights file of this folder"), ("a link that leads out", "leads out of its folder"),
        ("a tensor that is not there", "not in its file"), ("a truncated file", "no whole safetensors file"),
        ("an absurd header", "no whole safetensors file"), ("a header that is no JSON", "no whole safetensors file"),
        ("a missing shard", "is not there"), ("an index of numbers", "lists no weights"), ("no index", "2 weights files"),
        ("an index that is no JSON", "cannot be read"),
    ],
)
def test_hostile_folders_are_refused(kind: str, says: str, tmp_path: Path) -> None:
    with pytest.raises((BrokenArtefact, MissingModel), match=says) as error:
        of(hostile(kind, tmp_path))
    assert str(error.value).endswith(".")


def test_pickled_weights_are_refused_unopened(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04cos\nsystem\n")
    with pytest.raises(MissingModel, match="pickled"):
        of(tmp_path)
    with pytest.raises(MissingModel, match="pickled"):
        header(tmp_path / "pytorch_model.bin")


@pytest.mark.parametrize("base", ["inspect/openai/gpt", "simulated/a"])
def test_a_model_elsewhere_has_no_checkpoint(base: str) -> None:
    with pytest.raises(MissingModel, match="no weights on this machine"):
        of(base)


@pytest.mark.parametrize(
    ("settings", "says"),
    [({"use_dora": True}, "no plain LoRA"), ({"peft_type": "IA3"}, "no plain LoRA"),
     ({"lora_alpha": "many"}, "cannot be read"), ({"rank_pattern": {"q": 1}}, "no plain LoRA")],
)
def test_other_adapters_are_refused(settings: dict[str, object], says: str, tmp_path: Path) -> None:
    with pytest.raises(BrokenArtefact, match=says):
        of("pocket/a", adapter=str(adapter(tmp_path / "x", **settings)))


def test_an_adapter_of_another_base_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BrokenArtefact, match="its base does not have"):
        of("pocket/wide", adapter=str(adapter(tmp_path / "x")))


def test_a_dtype_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file as save

    save({"model.embed_tokens.weight": torch.zeros(4, 4, dtype=torch.complex64)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UndersongError, match="C64, which cannot be read"):
        of(tmp_path).read("model.embed_tokens.weight")
