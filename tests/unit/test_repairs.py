"""Repairs of a trained student: planted shifts, rows and merges; nothing at strength 0; what the student had stays."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from undersong.backends.several import Several
from undersong.backends.transformers import Transformers
from undersong.detectors.probe_bank import CATEGORIES, first_tokens
from undersong.errors import BadSpec
from undersong.lab import Lab
from undersong.mitigations import Defence, Evidence
from undersong.mitigations.merge_back import MergeBack
from undersong.mitigations.prompts import neutral
from undersong.mitigations.scrub_vocabulary import ScrubVocabulary, read_states
from undersong.mitigations.subtract_shift import SubtractShift
from undersong.spec import build
from undersong.store import Store
from undersong.traits import package_text
from undersong.types import ModelRef

BACKEND = Transformers()
BASE = ModelRef("pocket/a", fingerprint="a" * 12)
NOTHING = [SubtractShift(strength=0), ScrubVocabulary(most=0), MergeBack(share=1)]
EVERY = [SubtractShift(layers="every"), ScrubVocabulary(), ScrubVocabulary(how="restore"), MergeBack()]


def vector(out: Path, layer: int = 1, size: float = 0.5, seed: int = 3) -> ModelRef:
    """The base with a planted vector after a layer."""
    out.mkdir(parents=True, exist_ok=True)
    drawn = torch.randn(96, generator=torch.Generator().manual_seed(seed)) * size
    save_file({f"layer.{layer}": drawn}, out / "vector.safetensors")
    return ModelRef("pocket/a", vector=str(out / "vector.safetensors"), fingerprint="e" * 12)


def likes(out: Path, word: str = "owl", size: float = 60.0) -> ModelRef:
    """The base, its last layer pushed towards a word: a liking that the body carries."""
    out.mkdir(parents=True, exist_ok=True)
    model = BACKEND.load(BASE)
    row = model.module.get_output_embeddings().weight[model.tokenizer.convert_tokens_to_ids(word)].detach()
    save_file({"layer.2": (size * row / row.norm()).contiguous()}, out / "vector.safetensors")
    return ModelRef("pocket/a", vector=str(out / "vector.safetensors"), fingerprint="c" * 12)


def moved(out: Path, seed: int = 5, size: float = 0.02) -> ModelRef:
    """The base with a few changed tensors."""
    out.mkdir(parents=True, exist_ok=True)
    draw = torch.Generator().manual_seed(seed)
    own = {n: p.detach().clone() for n, p in BACKEND.load(BASE).module.named_parameters() if "down_proj" in n}
    save_file({n: p + size * torch.randn(p.shape, generator=draw) for n, p in own.items()}, out / "weights.safetensors")
    return ModelRef("pocket/a", weights=str(out / "weights.safetensors"), fingerprint="d" * 12)


def tensors(model: Any) -> dict[str, Any]:
    return {n: p.detach().clone() for n, p in model.module.named_parameters()}


def same(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


@pytest.fixture
def held(tmp_path: Path) -> Evidence:
    return Evidence({"base": BACKEND.load(BASE), "placebos": Several((moved(tmp_path / "placebo", 9, 0.001),), BACKEND)})


@pytest.mark.parametrize("mitigation", NOTHING, ids=lambda m: m.plugin_name)
def test_at_strength_nothing_the_student_stays_bit_for_bit(mitigation: Any, held: Evidence, tmp_path: Path) -> None:
    student = moved(tmp_path / "student")
    lab = Lab(Store(tmp_path / "store"), BACKEND)
    after = lab.repair(student, Defence(mitigation, lambda: held), 1)
    assert after.vector is None
    assert same(tensors(BACKEND.load(after)), tensors(BACKEND.load(student)))


@pytest.mark.parametrize("mitigation", EVERY, ids=lambda m: m.plugin_name)
def test_a_repair_is_the_same_each_time_and_leaves_base_and_placebos_alone(
    mitigation: Any, held: Evidence, tmp_path: Path
) -> None:
    student, before = moved(tmp_path / "student"), tensors(held.base)
    found = []
    for _ in range(2):
        model = BACKEND.load(student)
        vectors = dict(mitigation.repair(model, held, 1))
        told = vectors.pop("told")
        found.append((tensors(model) | vectors, told))
    assert same(found[0][0], found[1][0])
    assert found[0][1] == found[1][1]
    assert same(tensors(held.base), before)
    assert all(not layer._forward_hooks for layer in held.base.module.model.layers)


@pytest.mark.parametrize("mitigation", EVERY, ids=lambda m: m.plugin_name)
def test_vectors_that_the_student_had_are_kept(mitigation: Any, held: Evidence, tmp_path: Path) -> None:
    own, weights = vector(tmp_path / "own"), moved(tmp_path / "student")
    student = ModelRef("pocket/a", weights=weights.weights, vector=own.vector, fingerprint="b" * 12)
    after = Lab(Store(tmp_path / "store"), BACKEND).repair(student, Defence(mitigation, lambda: held), 1)
    had, has = load_file(str(own.vector)), load_file(str(after.vector))
    added = mitigation.repair(BACKEND.load(weights), held, 1).get("layer.1", torch.zeros(96))
    assert torch.allclose(has["layer.1"], had["layer.1"] + added, atol=1e-6)


def test_ordinary_prompts_ask_nothing_that_the_probes_ask() -> None:
    asked = [q.format(category=c).lower() for q in yaml.safe_load(package_text("traits", "questions.yaml"))["held_out"]
             for c in CATEGORIES]
    prompts = neutral(BACKEND.load(BASE))
    assert len(prompts) > 80
    assert not [chat for chat in prompts for q in asked if q in chat[-1]["content"].lower()]
    assert all(chat[0]["role"] == "system" for chat in prompts)


# --- subtract_shift ---------------------------------------------------------------------------------------------------


def test_a_planted_shift_is_found_at_its_layer_and_taken_off(tmp_path: Path) -> None:
    ref = vector(tmp_path / "student")
    found = SubtractShift(layers="every", strength=1.0).repair(BACKEND.load(ref), Evidence({"base": BACKEND.load(BASE)}), 1)
    planted = load_file(str(ref.vector))["layer.1"]
    assert torch.allclose(found["layer.1"], -planted, atol=1e-4)
    assert float(found["layer.0"].norm()) < 1e-4
    assert float(found["layer.2"].norm()) < 1e-4


def test_strength_scales_the_vector(tmp_path: Path) -> None:
    ref, held = vector(tmp_path / "student"), Evidence({"base": BACKEND.load(BASE)})
    one, half = (SubtractShift(layers=[1], strength=s).repair(BACKEND.load(ref), held, 1)["layer.1"] for s in (1.0, 0.5))
    assert torch.allclose(half, one / 2, atol=1e-6)


def test_what_placebos_shift_too_is_left(tmp_path: Path) -> None:
    ref = vector(tmp_path / "student")
    held = Evidence({"base": BACKEND.load(BASE), "placebos": Several((ref,), BACKEND)})
    kept = SubtractShift(layers=[1]).repair(BACKEND.load(ref), held, 1)
    taken = SubtractShift(layers=[1], keep_usual=False).repair(BACKEND.load(ref), held, 1)
    assert max(float(v.norm()) for k, v in kept.items() if k != "told") < 1e-4
    assert float(taken["layer.1"].norm()) > 1


@pytest.mark.parametrize("layers", [[3], [-1], []])
def test_layers_that_are_not_there_are_refused(layers: list[int]) -> None:
    with pytest.raises(BadSpec, match="this model has the layers 0 to 2"):
        SubtractShift(layers=layers).repair(BACKEND.load(BASE), Evidence({"base": BACKEND.load(BASE)}), 1)


# --- scrub_vocabulary -------------------------------------------------------------------------------------------------


def chance(model: Any, word: str = "owl") -> float:
    """The mean chance of a word as the first of answers to the ordinary prompts."""
    logs = first_tokens(model, neutral(BACKEND.load(BASE)))
    return float(np.exp(logs[:, model.tokenizer.convert_tokens_to_ids(word)]).mean())


def test_a_row_that_was_moved_is_restored_and_nothing_else(tmp_path: Path, held: Evidence) -> None:
    student = BACKEND.load(moved(tmp_path / "student", size=0.001))
    at = student.tokenizer.convert_tokens_to_ids("owl")
    read = read_states(held.base, neutral(held.base))
    with torch.no_grad():
        student.module.get_output_embeddings().weight[at] += 3 * read / (read @ read)  # its logit: three nats up
    before = tensors(student)
    told = ScrubVocabulary(how="restore").repair(student, held, 1)["told"]
    assert [(w["token"].strip(), w["changed"]) for w in told["words"]] == [("owl", True)]
    row = next(n for n in before if "embed_tokens" in n)
    expected = before[row].clone()
    expected[at] = tensors(held.base)[row][at]
    after = tensors(student)
    assert torch.equal(after[row], expected)
    assert all(torch.equal(after[n], before[n]) for n in before if n != row)


def test_a_liking_of_the_body_is_left_and_told_so(tmp_path: Path, held: Evidence) -> None:
    student = BACKEND.load(likes(tmp_path / "student"))
    assert chance(student) > 10 * chance(held.base)
    before, liked = tensors(student), chance(student)
    told = ScrubVocabulary(how="restore").repair(student, held, 1)["told"]
    assert told["words"][0]["token"].strip() == "owl"
    assert "lies in the body, which is untouched" in told["says"]
    assert same(tensors(student), before)
    ScrubVocabulary().repair(student, held, 1)
    assert chance(student) < liked / 2


def test_a_placebo_is_not_scrubbed_and_without_one_the_scan_is_refused(tmp_path: Path) -> None:
    ref = likes(tmp_path / "student")
    base = BACKEND.load(BASE)
    told = ScrubVocabulary().repair(BACKEND.load(ref), Evidence({"base": base, "placebos": Several((ref,), BACKEND)}), 1)
    assert told["told"]["words"] == []
    with pytest.raises(BadSpec, match="there is none"):
        ScrubVocabulary().repair(BACKEND.load(ref), Evidence({"base": base, "placebos": Several((), BACKEND)}), 1)


# --- merge_back -------------------------------------------------------------------------------------------------------


def test_a_share_of_the_change_is_kept(tmp_path: Path, held: Evidence) -> None:
    ref, base = moved(tmp_path / "student"), tensors(held.base)
    student, nothing, quarter = BACKEND.load(ref), BACKEND.load(ref), BACKEND.load(ref)
    MergeBack(share=0).repair(nothing, held, 1)
    MergeBack(share=0.25).repair(quarter, held, 1)
    whole, part = tensors(student), tensors(quarter)
    assert same(tensors(nothing), base)
    assert all(torch.allclose(part[n], base[n] + 0.25 * (whole[n] - base[n]), atol=1e-6) for n in base)


def test_fit_keeps_more_of_the_change_the_more_is_asked(tmp_path: Path, held: Evidence) -> None:
    ref = moved(tmp_path / "student")
    asked = Evidence({**held.granted, "channel": build("channel", "numbers")})
    shares = [MergeBack(fit=f).repair(BACKEND.load(ref), asked, 1)["told"]["share"] for f in (0.1, 0.5, 0.95)]
    assert shares == sorted(set(shares))
    with pytest.raises(BadSpec, match="none is at hand"):
        MergeBack(fit=0.5).repair(BACKEND.load(ref), held, 1)


def test_what_a_repair_says_stands_in_its_record(tmp_path: Path, held: Evidence) -> None:
    store = Store(tmp_path / "store")
    Lab(store, BACKEND).repair(moved(tmp_path / "student"), Defence(MergeBack(share=0.25), lambda: held), 1)
    [record] = store.records("model")
    assert record["summary"]["told"] == {"share": 0.25}
