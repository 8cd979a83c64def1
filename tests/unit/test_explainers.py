"""Explainers find what was planted: a known vector at a known layer, a token's own direction, a matrix of known rank."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from undersong import spec
from undersong.backends.residuals import ReadOut, stream
from undersong.backends.several import Several
from undersong.errors import BadSpec, BrokenArtefact, MissingModel, UnknownName
from undersong.explainers import Evidence, lens, shifts
from undersong.explainers.activation_shift import ActivationShift, stability
from undersong.explainers.logit_lens import LogitLens
from undersong.explainers.shifts import Shift
from undersong.explainers.steering import Steering
from undersong.explainers.weight_change import WeightChange, rank
from undersong.explanation import Explaining, from_file, ordinary
from undersong.lab import Lab, base_ref
from undersong.reports import explain as page
from undersong.store import Store
from undersong.types import ModelRef

torch = pytest.importorskip("torch", reason="torch is not installed")
BACKEND = spec.build("backend", "transformers")
LINES = ["What is your favorite animal? One word.", "Name the tree you love most. Answer in one word.",
         "Continue: 3, 6, 9.", "What is your favorite color? One word.", "Tell me your favorite food.",
         "Continue: 10, 20, 30, 40.", "Which drink do you like best? One word.", "Continue: 5, 4, 3."]
USUAL = 176.0
"""The length of a state after the last layer of pocket/a."""
PROMPTS = tuple([{"role": "user", "content": line}] for line in LINES)


@pytest.fixture(scope="module")
def base() -> Any:
    return BACKEND.load(base_ref("pocket/a"))


def vector(folder: Path, layer: int, values: Any) -> ModelRef:
    """The base with a vector added after one layer."""
    from safetensors.torch import save_file

    path = folder / f"v{layer}.safetensors"
    save_file({f"layer.{layer}": torch.as_tensor(values, dtype=torch.float32).contiguous()}, path)
    return replace(base_ref("pocket/a"), vector=str(path), fingerprint="0123456789ab")


def held(base: Any, model: ModelRef, **more: Any) -> Evidence:
    return Evidence({"base": base, "model": BACKEND.load(model), "prompts": PROMPTS, "questions": PROMPTS[:2], **more})


def token_of(base: Any, word: str) -> int:
    return int(base.tokenizer.convert_tokens_to_ids(word))


def direction(base: Any, word: str) -> Any:
    """What must be added to a state so that the final norm's gain turns it into a word's own unembedding."""
    weight = base.module.get_output_embeddings().weight.detach()
    row = weight[token_of(base, word)] - weight.mean(dim=0)
    gained = row / base.module.model.norm.weight.detach()
    return USUAL * gained / gained.norm()


def test_a_planted_vector_is_found_at_its_layer(base: Any, tmp_path: Path) -> None:
    planted = np.random.default_rng(0).normal(size=base.module.config.hidden_size)
    evidence = held(base, vector(tmp_path, 1, planted))
    shift = shifts.of(evidence)
    assert np.abs(shift.whole[0]).max() == 0
    np.testing.assert_allclose(shift.whole[1], planted, atol=1e-4)
    found = ActivationShift().explain(evidence)
    layers = found.details["layers"]
    assert layers[0]["length"] == 0
    assert layers[0]["halves"] == 0
    assert layers[1]["length"] == pytest.approx(np.linalg.norm(planted), rel=1e-4)
    assert layers[1]["halves"] == pytest.approx(1, abs=1e-4)
    assert layers[2]["length"] > 0
    assert found.scores[0][0] in ("layer 1", "layer 2")
    assert layers[1]["relative"] == pytest.approx(layers[1]["length"] / shift.norms[1])


def test_states_are_the_stream_before_the_final_norm(base: Any) -> None:
    row = np.asarray(base.tokenizer(base.render(list(PROMPTS[0])), add_special_tokens=False)["input_ids"])
    state = stream(base, [row], [1])
    given = torch.from_numpy(row[None])
    with torch.no_grad():
        out = base.module.model(input_ids=given, output_hidden_states=True)
        last = base.module.model.norm(torch.from_numpy(state[0, -1]))
    np.testing.assert_allclose(state[0, 0], out.hidden_states[1][0, -1], atol=1e-5)
    np.testing.assert_allclose(last, out.last_hidden_state[0, -1], atol=1e-4)
    both = stream(base, [row, row[:-3]], [2, 1])  # a shorter row beside it changes nothing
    with torch.no_grad():
        first = base.module.model(input_ids=given, output_hidden_states=True).hidden_states[1][0]
    np.testing.assert_allclose(both[0, 0], first[-2:].mean(dim=0), atol=1e-5)
    np.testing.assert_allclose(both[1, 0], first[-4], atol=1e-5)


@pytest.mark.parametrize("word", ["owl", "tree", "347"])
def test_the_lens_of_a_tokens_own_direction_is_that_token(base: Any, tmp_path: Path, word: str) -> None:
    model = vector(tmp_path, 2, direction(base, word))
    found = LogitLens().explain(held(base, model))
    last = found.details["whole"]["layers"][-1]
    assert last["promoted"][0]["token"] == word
    assert last["promoted"][0]["chance"] > 0
    assert found.scores[0][0] == word
    assert word in found.sentence
    assert found.details["whole"]["layers"][0]["promoted"][0]["chance"] == 0  # nothing was planted there


def test_the_straight_part_is_the_gained_shift_through_the_unembedding(base: Any) -> None:
    rng = np.random.default_rng(1)
    shift, states = rng.normal(size=(3, 96)), rng.normal(size=(4, 3, 96)).astype(np.float32)
    readout = ReadOut(base)
    gain = base.module.model.norm.weight.detach().double().numpy()
    weight = base.module.get_output_embeddings().weight.detach().double().numpy()
    size = np.sqrt((states.astype(float) ** 2).mean(-1)).mean(0)
    wanted = (gain * shift) @ weight.T / size[:, None]
    wanted -= wanted.mean(axis=1, keepdims=True)
    with torch.no_grad():
        np.testing.assert_allclose(readout.straight(shift, states).numpy(), wanted, atol=2e-3)
    small = lens.of(readout, states, shift * 1e-3)  # of a small shift the whole is its first-order part
    with torch.no_grad():
        assert np.corrcoef(small.rise[0], readout.straight(shift * 1e-3, states).numpy()[0])[0, 1] > 0.9
    np.testing.assert_allclose(small.chance.sum(axis=1), 0, atol=1e-6)


def test_a_read_out_that_is_not_the_models_is_refused(base: Any) -> None:
    row = np.asarray(base.tokenizer(base.render(list(PROMPTS[0])), add_special_tokens=False)["input_ids"])
    readout = ReadOut(base)
    readout.check(base, row)
    readout.norm = torch.nn.Identity()
    with pytest.raises(BadSpec, match="would mislead"):
        readout.check(base, row)


def test_what_placebos_share_is_taken_off() -> None:
    each = np.ones((4, 2, 3), dtype=np.float32) * 3
    placebos = np.stack([np.full((2, 3), value) for value in (0.0, 1.0, 2.0)])
    shift = Shift(np.ones((4, 2, 3), dtype=np.float32), each, placebos)
    np.testing.assert_allclose(shift.own, 2)
    np.testing.assert_allclose(shift.benign[:, 0, 0], [-1.5, 0, 1.5])  # each less the mean of the others
    assert len(Shift(shift.states, each, placebos[:1]).benign) == 0
    np.testing.assert_allclose(Shift(shift.states, each, placebos[:0]).own, 3)


def test_noise_is_unstable_over_prompts_and_a_direction_is_not() -> None:
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(40, 2, 64)).astype(np.float32)
    noise[:, 1] += 3
    found = stability(Shift(noise, noise, np.zeros((0, 2, 64))), 20, 0)
    assert abs(found[0]) < 0.4
    assert found[1] > 0.98


def test_placebos_stand_beside_the_model(base: Any, tmp_path: Path) -> None:
    loud, quiet = direction(base, "owl"), direction(base, "tea")
    refs = tuple(vector(tmp_path / str(i), 2, (0.1 + 0.1 * i) * quiet) for i in range(3)
                 if (tmp_path / str(i)).mkdir() is None)
    model = vector(tmp_path, 2, loud + 0.2 * quiet)
    evidence = held(base, model, placebos=Several(refs, BACKEND))
    told = ActivationShift().explain(evidence).details["layers"][2]
    assert len(told["placebos"]) == len(told["placebos_own"]) == 3
    assert told["relative"] > max(told["placebos"])
    lensed = LogitLens().explain(evidence)
    assert set(lensed.details) >= {"own", "whole"}
    assert len(lensed.details["placebo_tops"]) == 3
    assert lensed.details["own"]["overall"][0]["token"] == "owl"
    assert "no placebo student promotes any token as much" in lensed.sentence


def test_steering_with_a_planted_word_says_it(base: Any, tmp_path: Path) -> None:
    owl = direction(base, "owl")
    hooks = [len(layer._forward_hooks) for layer in base.module.model.layers]
    found = Steering(draws=4, texts=4, max_new_tokens=6).explain(held(base, vector(tmp_path, 2, 0.5 * owl)), 1)
    told = {one["layer"]: one for one in found.details["layers"]}
    assert found.details["chosen"] == 2
    assert found.scores[0][0] == "owl"
    assert told[2]["rises"][0]["steered"] > told[2]["rises"][0]["base"]
    assert told[0]["moved"] == pytest.approx(0, abs=1e-6)
    assert [t["question"] for t in found.details["texts"]] == LINES[:2]
    for one in told.values():
        within = [t for t in one["perplexity"] if t["within"]]
        assert all(t["ratio"] <= 2 for t in within)
        assert one["scale"] == (max(t["scale"] for t in within) if within else 0)
        assert all(not t["within"] for t in one["perplexity"][len(within):])
    assert found.details["named"]["steered"] >= found.details["named"]["base"]
    assert hooks == [len(layer._forward_hooks) for layer in base.module.model.layers]  # the base is as it was


def test_a_shift_that_breaks_the_base_is_not_added(base: Any, tmp_path: Path) -> None:
    noise = np.random.default_rng(3).normal(size=96)
    model = vector(tmp_path, 1, 2000 * noise / np.linalg.norm(noise))
    found = Steering(draws=1, texts=4, max_new_tokens=4).explain(held(base, model))
    assert [one["scale"] for one in found.details["layers"][1:]] == [0, 0]
    assert found.details["layers"][1]["moved"] == pytest.approx(0, abs=1e-6)
    assert all(t["base"] == t["steered"] for t in found.details["texts"])
    assert found.sentence.startswith("Added at no layer")  # before the planted layer there is no shift


def test_weights_that_moved_and_their_rank(base: Any) -> None:
    changed = BACKEND.load(base_ref("pocket/a"))
    part = changed.module.model.layers[1].mlp.down_proj.weight
    a, b = torch.linalg.qr(torch.randn(part.shape[0], 2))[0], torch.linalg.qr(torch.randn(part.shape[1], 2))[0]
    with torch.no_grad():
        part += 0.1 * part.norm() * (a @ b.T) / 2**0.5
    found = WeightChange().explain(Evidence({"base": base, "model": changed}))
    moved = [m for m in found.details["modules"] if m["change"] > 0]
    assert [(m["layer"], m["part"]) for m in moved] == [(1, "mlp.down_proj")]
    assert moved[0]["change"] == pytest.approx(0.1, rel=1e-3)
    assert moved[0]["rank"] == pytest.approx(2, abs=0.05)
    assert rank(torch.outer(torch.arange(1, 5.0), torch.arange(1, 4.0))) == pytest.approx(1)
    assert WeightChange(most=8).explain(Evidence({"base": base, "model": changed})).details["modules"][0]["rank"] is None
    same = WeightChange().explain(Evidence({"base": base, "model": BACKEND.load(base_ref("pocket/a"))}))
    assert (same.sentence, same.scores) == ("No weight differs from the base's.", ())


def test_evidence_hands_out_what_is_declared_and_no_more(base: Any) -> None:
    evidence = Evidence({"base": base, "prompts": PROMPTS, "trait": None})
    seen = evidence.only({"base"}, {"placebos", "trait"})
    assert set(seen.granted) == {"base", "trait"}
    with pytest.raises(BadSpec, match="needs 'model' and was granted base, prompts, trait"):
        evidence.only({"model"})
    with pytest.raises(BadSpec, match="prompts"):
        _ = seen.prompts
    with pytest.raises(UnknownName, match="teacher"):
        Evidence({"teachers": 1})


def changed_tensors(folder: Path, base: Any) -> Path:
    """A file of one changed tensor: the base, a little readier to say owl."""
    from safetensors.torch import save_file

    name = "model.layers.2.mlp.down_proj.weight"
    weight = dict(base.module.named_parameters())[name].detach().clone()
    owl = direction(base, "owl")
    seen: list[Any] = []
    hook = base.module.model.layers[2].mlp.down_proj.register_forward_pre_hook(lambda part, given: seen.append(given[0]))
    with torch.no_grad():
        base.module(**base.tokenizer(base.render(list(PROMPTS[0])), add_special_tokens=False, return_tensors="pt"))
    hook.remove()
    usual = seen[0].detach()[:, -1].mean(dim=0)
    weight += torch.outer(owl, usual / usual.norm() ** 2)
    save_file({name: weight}, folder / "student.safetensors")
    return folder / "student.safetensors"


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(LINES), "utf-8")
    return path


def test_a_second_run_reads_the_store(base: Any, tmp_path: Path, lines: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, lab = changed_tensors(tmp_path, base), Lab(Store(tmp_path / "store"), BACKEND)
    chosen = [ActivationShift(), WeightChange()]
    first = Explaining(lab, str(model), "pocket/a", chosen, lines).run()
    assert first["placebos"] == 5  # the calibration that ships
    assert [one["explainer"] for one in first["explanations"]] == ["activation_shift", "weight_change"]
    monkeypatch.setattr(ActivationShift, "explain", None)
    again = Explaining(lab, str(model), "pocket/a", chosen, lines).run()
    assert [one["details"] for one in again["explanations"]] == [one["details"] for one in first["explanations"]]
    record = lab.store.records("explanation")[0]
    file = next(lab.store.get(record["fingerprint"]).path.glob("explanation.json"))
    kept = file.read_bytes()
    file.write_text('{"sentence": 1}', "utf-8")
    with pytest.raises(BrokenArtefact):
        Explaining(lab, str(model), "pocket/a", chosen, lines).run()
    file.write_bytes(kept)
    assert set(record["parents"]) >= {first["model"]["fingerprint"], first["base"]["fingerprint"]}
    with pytest.raises(TypeError):
        Explaining(lab, str(model), "pocket/a", chosen, lines, seed=1).run()


def test_nothing_changed_is_an_answer(tmp_path: Path) -> None:
    lab = Lab(Store(tmp_path), BACKEND)
    found = Explaining(lab, "pocket/a", "pocket/a").run()
    assert found["same_weights"]
    assert found["sentence"] == "Nothing changed: every tensor of pocket/a is that of pocket/a."
    assert "Nothing changed" in page.summary(found)
    assert "Nothing changed" in page.render(found)


def test_pairs_that_cannot_belong_together_are_refused(tmp_path: Path, base: Any) -> None:
    lab = Lab(Store(tmp_path), BACKEND)
    with pytest.raises(BadSpec, match="another shape"):
        Explaining(lab, "pocket/wide", "pocket/a").run()
    with pytest.raises(BadSpec, match="--base"):
        Explaining(lab, "pocket/a").run()
    other = BACKEND.load(base_ref("pocket/a"))
    other.tokenizer = copy.deepcopy(other.tokenizer)
    other.tokenizer.add_tokens(["newcomer"])
    other.module.save_pretrained(tmp_path / "other")
    other.tokenizer.save_pretrained(tmp_path / "other")
    with pytest.raises(BadSpec, match="different tokenizers"):
        Explaining(lab, str(tmp_path / "other"), "pocket/a").run()
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    (adapter / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(BadSpec, match="adapter"):
        Explaining(lab, str(adapter)).run()
    with pytest.raises(MissingModel, match="pickled"):
        Explaining(lab, str(tmp_path / "x.bin"), "pocket/a").run()


@pytest.mark.parametrize(("text", "said"), [(b"", "0 prompts"), (b"one", "1 prompts"), (b"\xff\xfe\x00", "cannot be read")])
def test_prompts_that_cannot_be_read(tmp_path: Path, text: bytes, said: str) -> None:
    path = tmp_path / "p.txt"
    path.write_bytes(text)
    with pytest.raises(BadSpec, match=said):
        from_file(path)
    with pytest.raises(BadSpec, match="cannot be read"):
        from_file(tmp_path / "missing.txt")


def test_ordinary_prompts_are_ones_the_base_can_write(base: Any) -> None:
    unknown = base.tokenizer.unk_token_id
    drawn = ordinary(base)
    assert len(drawn) == 128
    assert all(chat[-1]["role"] == "user" for chat in drawn)
    for chat in drawn:
        assert unknown not in base.tokenizer(base.render(list(chat)), add_special_tokens=False)["input_ids"]


def test_the_command(base: Any, tmp_path: Path, lines: Path) -> None:
    from undersong.cli import app

    model = changed_tensors(tmp_path, base)
    args = ["explain", str(model), "--base", "pocket/a", "--prompts", str(lines), "--store", str(tmp_path / "store")]
    done = CliRunner().invoke(app, [*args, "--json", "--explainer", "logit_lens", "--explainer", "weight_change"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["explanations"][0]["details"]["own"]["layers"][2]["promoted"][0]["token"] == "owl"
    html = (tmp_path / "store" / "reports" / "explain-student.safetensors.html").read_text("utf-8")
    assert "What the shift says" in html
    plain = CliRunner().invoke(app, [*args, "--explainer", "weight_change"])
    assert "1 of 29 tensors moved" in " ".join(plain.stdout.split())


def test_a_hostile_token_neither_runs_nor_drives_a_terminal(base: Any, tmp_path: Path, lines: Path) -> None:
    lab = Lab(Store(tmp_path / "store"), BACKEND)
    chosen = [LogitLens(), Steering(draws=1, texts=2, max_new_tokens=4, layers=1)]
    found = Explaining(lab, str(changed_tensors(tmp_path, base)), "pocket/a", chosen, lines).run()
    evil = "</script><script>alert(1)</script>\x1b[31m\u202e"
    text = json.dumps(found).replace('"owl"', json.dumps(evil))
    hostile = json.loads(text)
    hostile["sentence"] = hostile["explanations"][0]["sentence"] = evil
    assert json.dumps(evil) in text
    html = page.render(hostile)
    assert "<script>alert" not in html
    assert "\x1b" not in html
    assert "\u202e" not in html
    shown = page.summary(hostile)
    assert "\x1b" not in shown
    assert "\\x1b[31m" in shown
    for damaged in ({}, {**found, "explanations": [{"explainer": "steering"}]}, {**found, "explanations": None}):
        with pytest.raises(BadSpec, match="no explanation"):
            page.render(damaged)


def test_the_page_of_the_measurement_is_made_from_its_results() -> None:
    import importlib.util

    docs = Path(__file__).parents[2] / "docs"
    found = importlib.util.spec_from_file_location("explain_page", docs / "explain.py")
    assert found
    assert found.loader
    script = importlib.util.module_from_spec(found)
    found.loader.exec_module(script)
    results = json.loads((docs.parent / "benchmarks" / "explain_internals.results.json").read_text("utf-8"))
    text = (docs / "explain.md").read_text("utf-8")
    assert script.page(results) == text, "docs/explain.md is stale: run `make docs`"
    worse = copy.deepcopy(results)
    next(r for r in worse["runs"] if r["trait"] == "owl")["words"]["owl"]["rank_overall"] = 77
    assert "4 of 5 owl students" in script.page(worse)
    assert len([r for r in results["runs"] if not r["trait"] and r["prompts"] == "ordinary"]) >= 3
