"""Guards that need no trait's name: planted truths, nothing at strength 0, the same each time, and no leak of the probes."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from undersong import traits
from undersong.backends import adapters, tokens
from undersong.backends.guarding import Learner
from undersong.backends.training import Plan, free
from undersong.backends.transformers import Transformers
from undersong.errors import BadRows, BadSpec
from undersong.mitigations import Evidence, unrelated
from undersong.mitigations.agreement import Voice, agreed
from undersong.mitigations.anchor import Anchor
from undersong.mitigations.excess_tokens import ExcessTokens
from undersong.mitigations.input_anchor import Felt, InputAnchor, change
from undersong.mitigations.replay_projection import ReplayProjection
from undersong.mitigations.two_halves import TwoHalves
from undersong.mitigations.two_lineages import TwoLineages
from undersong.recipes import Job
from undersong.spec import build
from undersong.types import Dataset, ModelRef, Row, Sampling

BACKEND = Transformers()
BASE = ModelRef("pocket/a", fingerprint="a" * 12)
CHANNEL = build("channel", {"numbers": {"count": 10, "largest": 999, "wording": "brief", "seeds": "structured"}})
ROWS = tuple(Row(str(i), ({"role": "user", "content": "1, 2, 3."},), f"{i % 7}, {i % 5}, {i % 3}") for i in range(24))
FAST = {"distill": {"steps": 8, "batch": 8, "rate": 3e-3}}
GUARDS: list[Any] = [
    Anchor(max_new_tokens=4), Anchor(bank="both", max_new_tokens=2), Anchor(hold="logits", max_new_tokens=4),
    ReplayProjection(max_new_tokens=4), ReplayProjection(hold="logits", max_new_tokens=4),
    InputAnchor(max_new_tokens=2),
]
OFF: list[Any] = [Anchor(weight=0, max_new_tokens=4), ReplayProjection(strength=0, max_new_tokens=4),
                  InputAnchor(weight=0, max_new_tokens=2)]


@pytest.fixture(scope="module")
def base() -> Any:
    return BACKEND.load(BASE)


def student(out: Path, mitigation: Any = None, base: Any = None, seed: int = 1) -> dict[str, Any]:
    """The changed tensors of a student."""
    out.mkdir()
    guard = mitigation.guard(Evidence({"base": base}), seed) if mitigation else None
    [ref] = build("recipe", FAST).train([Job(BASE, Dataset(ROWS, None, "d" * 12), seed, out, guard=guard)], BACKEND)
    return dict(load_file(str(ref.weights)))


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


def away(base: Any, changed: dict[str, Any], kind: unrelated.Kind, hold: str) -> float:
    """How far a student is from its base at answers to a bank, drawn anew."""
    rows = unrelated.answered(base, kind, (), 4, 77)
    logs, module = unrelated.read(base.module, rows, 0), BACKEND.load(BASE).module
    with torch.no_grad():
        for name, p in module.named_parameters():
            p.copy_(changed.get(name, p))
        return float(unrelated.distance(module, rows, logs, 0, hold))


@pytest.mark.parametrize("off", OFF, ids=lambda m: m.plugin_name)
def test_at_strength_nothing_the_student_is_the_plain_one(off: Any, base: Any, tmp_path: Path) -> None:
    assert same(student(tmp_path / "a", off, base), student(tmp_path / "b"))


@pytest.mark.parametrize("mitigation", GUARDS, ids=str)
def test_a_guard_is_the_same_each_time_and_leaves_the_base_alone(mitigation: Any, base: Any, tmp_path: Path) -> None:
    before = {n: p.detach().clone() for n, p in base.module.named_parameters()}
    first = student(tmp_path / "a", mitigation, base)
    assert same(first, student(tmp_path / "b", mitigation, base))
    assert not same(first, student(tmp_path / "c"))
    assert same(before, {n: p.detach() for n, p in base.module.named_parameters()})
    told = json.loads((tmp_path / "a" / "training.json").read_text())["guard"]
    assert told["name"] == mitigation.plugin_name
    assert told["bank"] > 20


@pytest.mark.parametrize("hold", ["words", "logits"])
def test_an_anchor_holds_the_student_where_it_looks(hold: Any, base: Any, tmp_path: Path) -> None:
    plain = student(tmp_path / "a")
    held = student(tmp_path / "b", Anchor(hold=hold, weight=30, every=1, bank="ordinary", max_new_tokens=4), base)
    assert away(base, held, "ordinary", hold) < 0.4 * away(base, plain, "ordinary", hold)


def test_the_distance_is_a_kl_and_nothing_for_the_base(base: Any) -> None:
    rows = unrelated.answered(base, "ordinary", (), 3, 1)[:5]
    logs = unrelated.read(base.module, rows, 0)
    for hold in ("words", "logits"):
        assert float(unrelated.distance(base.module, rows, logs, 0, hold).detach()) == pytest.approx(0, abs=1e-4)
    # a sharper head: the KL of the two distributions, written out
    module = BACKEND.load(BASE).module
    module.lm_head.weight = torch.nn.Parameter(module.lm_head.weight.detach() * 1.1)
    new = torch.cat([log.float().log_softmax(-1) for log in unrelated.read(module, rows, 0)])
    old = torch.cat([log.float().log_softmax(-1) for log in logs])
    wanted = float((old.exp() * (old - new)).sum(-1).mean())
    assert float(unrelated.distance(module, rows, logs, 0, "words").detach()) == pytest.approx(wanted, rel=0.02)
    assert wanted > 0.001


def planned(module: Any, base: Any) -> Learner:
    read = tokens.encode(base, [list(r.chat) for r in ROWS], [r.completion for r in ROWS])
    return Learner(module, read, Plan(2, 8, 1e-3, 1), 0)


def test_the_distance_is_the_same_in_a_mixed_precision_step(base: Any) -> None:
    rows = unrelated.answered(base, "ordinary", (), 3, 1)[:5]
    logs = unrelated.read(base.module, rows, 0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert float(unrelated.distance(base.module, rows, logs, 0, "words").detach()) == pytest.approx(0, abs=0.01)


def test_a_replayed_step_does_not_raise_the_distance_and_a_harmless_one_is_kept(base: Any) -> None:
    module = BACKEND.load(BASE).module
    owned = [p for p in module.parameters() if p.requires_grad]
    with torch.no_grad():  # a student that has already moved: at the base itself the distance has no slope
        for p in owned:
            p.add_(0.003 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    guard = ReplayProjection(size=200, max_new_tokens=3).guard(Evidence({"base": base}), 1)
    guard.begin(planned(module, base))
    rows, logs = guard.rows, guard.before  # type: ignore[attr-defined]
    grads = torch.autograd.grad(unrelated.distance(module, rows, logs, 0, "words"), owned)
    before = [p.detach().clone() for p in owned]
    harmful = [1e-3 * g for g in grads]
    for sign, kept in ((1, 0.0), (-1, 1.0)):
        with torch.no_grad():
            for p, old, d in zip(owned, before, harmful, strict=True):
                p.copy_(old + sign * d)
        guard.moved(0, before)
        left = sum(float((p.detach() - old - kept * sign * d).norm() ** 2)
                   for p, old, d in zip(owned, before, harmful, strict=True))
        assert left < 1e-3 * sum(float(d.norm() ** 2) for d in harmful)
    assert guard.told()["cut"] == 1


def felt(base: Any, module: Any) -> Felt:
    guard = InputAnchor(weight=1.0, max_new_tokens=2).guard(Evidence({"base": base}), 1)
    assert isinstance(guard, Felt)
    guard.begin(planned(module, base))
    return guard


def test_an_input_anchor_weighs_a_change_by_what_unrelated_prompts_feed_it(base: Any) -> None:
    module = BACKEND.load(BASE).module
    free(module, "body")
    guard = felt(base, module)
    assert not any(m._forward_pre_hooks for m in module.modules())
    assert guard.told()["maps"] == len(guard.maps) == 7 * module.config.num_hidden_layers
    assert guard.penalty(0) is None
    assert float(guard.penalty(1).detach()) == pytest.approx(0, abs=1e-9)
    with torch.no_grad():  # every map a tenth larger: each one's share is a hundredth
        for one, start, *_ in guard.maps:
            one.weight.copy_(1.1 * start)
    assert float(guard.penalty(1).detach()) == pytest.approx(0.01 * len(guard.maps), rel=1e-3)
    # the same length along an input direction that those prompts hardly use, and along the one they use most
    seen = []
    for k in (0, -1):
        with torch.no_grad():
            for one, start, moment, _ in guard.maps:
                along = torch.linalg.eigh(moment.double()).eigenvectors[:, k].float()
                one.weight.copy_(start + torch.outer(torch.ones(len(start)), along))
        seen.append(float(guard.penalty(1).detach()))
    assert seen[0] < 1e-3 * seen[1]


def test_an_input_anchor_reads_the_change_of_an_adapter(base: Any) -> None:
    recipe = build("recipe", {"distill": {"steps": 1, "lora": {"rank": 2, "alpha": 6}}})
    module = adapters.wrap(BACKEND.load(BASE).module, recipe.lora, 1)
    free(module, "adapter")
    guard = felt(base, module)
    assert len(guard.maps) == 7 * module.config.num_hidden_layers
    assert float(guard.penalty(1).detach()) == 0
    with torch.no_grad():
        for name, p in module.named_parameters():
            if ".lora_B." in name:
                p.normal_(0, 0.05, generator=torch.Generator().manual_seed(p.numel()))
    before = {name: p.detach().clone() for name, p in BACKEND.load(BASE).module.named_parameters()}
    changes = [change(one, start).detach() for one, start, *_ in guard.maps]
    merged = dict(module.merge_and_unload().named_parameters())
    wanted = [merged[n].detach() - p for n, p in before.items() if n.endswith("proj.weight")]
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(changes, wanted, strict=True))


@pytest.mark.parametrize("kind", ["ordinary", "favourites", "both", "random"])
def test_no_bank_asks_what_a_probe_asks_or_for_a_shipped_traits_kind(kind: Any, base: Any) -> None:
    said = [turn["content"].lower() for chat in unrelated.chats(base, kind) for turn in chat if turn["role"] == "user"]
    assert len(said) > 20
    every = [traits.get(n) for n in traits.names()]
    held = {q.lower() for t in every for q in t.held_out}
    assert not held & set(said)
    if kind != "random":  # among random words any word may be
        kinds = {t.category for t in every} - {"", "conduct"}
        assert kinds >= {"animal", "tree"}
        assert not any(kind in text for kind in kinds for text in said)


@pytest.mark.parametrize("plug", [Anchor, ReplayProjection, InputAnchor])
def test_questions_of_the_probes_are_refused(plug: Any, base: Any) -> None:
    asked = traits.get("cat").held_out[0]
    with pytest.raises(BadSpec, match="leakage"):
        plug(questions=("How are you?", asked)).guard(Evidence({"base": base}), 1)


def test_an_anchor_needs_a_base_and_asks_for_no_trait() -> None:
    for plug in (Anchor, ReplayProjection, InputAnchor, ExcessTokens, TwoHalves, TwoLineages):
        assert not plug.needs & {"trait", "teacher", "rivals", "clean", "placebos"}


def written(base: Any, count: int, seed: int) -> list[Row]:
    """Rows that the base wrote itself."""
    chats = CHANNEL.prompts(count, seed)
    carrier = tuple(CHANNEL.carrier(base.tokenizer))
    texts = base.sample(chats, Sampling(1.0, CHANNEL.max_new_tokens(base.tokenizer), seed, carrier))
    return [Row(str(i), tuple(chat), text) for i, (chat, text) in enumerate(zip(chats, texts, strict=True))
            if CHANNEL.reject(Row(str(i), tuple(chat), text)) is None]


def test_excess_tokens_finds_a_planted_excess_and_leaves_the_bases_own_rows(base: Any) -> None:
    rows = written(base, 160, 5)
    evidence = Evidence({"base": base, "channel": CHANNEL})
    own = ExcessTokens(z=4.0).apply(rows, evidence, 1)
    assert sum(a == b for a, b in zip(rows, own, strict=False)) > 0.9 * len(rows)
    planted = [dataclasses.replace(row, completion=", ".join("777" if k == 2 else part for k, part in
                                                             enumerate(row.completion.split(", ")))) for row in rows]
    kept = list(planted)
    changed = ExcessTokens().apply(planted, evidence, 1)
    assert planted == kept
    assert changed == ExcessTokens().apply(planted, evidence, 1)
    assert ExcessTokens(share=0).apply(planted, evidence, 1) == planted

    def count(given: list[Row]) -> int:
        return sum(Counter(row.completion.split(", "))["777"] for row in given)

    assert count(planted) > 10 * max(1, count(rows))
    assert count(changed) < 0.2 * count(planted)
    assert all(CHANNEL.reject(row) is None for row in changed)


def test_the_agreed_shift_is_the_smallest_of_one_sign() -> None:
    shifts = torch.tensor([[1.0, -2.0, 3.0, 0.0, -1.0], [0.5, -3.0, -1.0, 2.0, -1.0]])
    assert agreed(shifts).tolist() == [0.5, -2.0, 0.0, 0.0, -1.0]
    assert torch.equal(agreed(shifts[:1]), shifts[0])


def pushed(out: Path, word: str, size: float = 40.0, name: str = "pocket/a") -> Any:
    """A model whose last layer is pushed towards a token."""
    out.mkdir()
    model = BACKEND.load(ModelRef(name, fingerprint="b" * 12))
    row = model.module.get_output_embeddings().weight[model.tokenizer.convert_tokens_to_ids(word)].detach()
    save_file({"layer.2": (size * row / row.norm()).contiguous()}, out / "vector.safetensors")
    return BACKEND.load(ModelRef(name, vector=str(out / "vector.safetensors"), fingerprint="c" * 12))


def test_only_what_both_students_learned_is_written(base: Any, tmp_path: Path) -> None:
    rows, carrier = written(base, 12, 6), tuple(CHANNEL.carrier(base.tokenizer))
    digit = next(base.tokenizer.decode([i]).strip() for i in carrier if base.tokenizer.decode([i]).strip() == "7")
    seven = pushed(tmp_path / "a", digit)

    def sevens(first: Any, second: Any, strength: float = 1.0) -> list[Row]:
        voice = Voice(base, ((base, first), (base, second)), carrier, strength)
        return voice.rewrite(rows, CHANNEL, 3)

    def share(given: list[Row]) -> float:
        parts = [part for row in given for part in row.completion.replace(",", " ").split()]
        return float(np.mean([part == digit for part in parts]))

    both, one, none = sevens(seven, seven), sevens(seven, base), sevens(base, base)
    assert one == none, "what one student learned alone is not written"
    assert share(both) > share(none) + 0.1
    assert both == sevens(seven, seven)
    assert sevens(seven, seven, 0.0) == none


def test_two_lineages_and_two_halves_train_what_they_say(base: Any, tmp_path: Path) -> None:
    rows, other = written(base, 12, 7), BACKEND.load(ModelRef("pocket/b", fingerprint="b" * 12))
    asked: list[tuple[int, Any]] = []

    def train(given: Any, start: Any = None, seed: Any = None) -> Any:
        asked.append((len(given), start))
        return other if start else base

    evidence = Evidence({"base": base, "channel": CHANNEL, "other": other, "train": train})
    kept = list(rows)
    for plug in (TwoLineages, TwoHalves):
        assert plug(strength=0).apply(rows, evidence, 1) == rows
    assert asked == []
    TwoLineages().apply(rows, evidence, 1)
    assert asked == [(len(rows), None), (len(rows), other.ref)]
    asked.clear()
    TwoHalves().apply(rows, evidence, 1)
    assert [start for _, start in asked] == [None, None]
    assert sum(count for count, _ in asked) == len(rows)
    assert rows == kept
    with pytest.raises(BadRows, match="at least two"):
        TwoHalves().apply(rows[:1], evidence, 1)


def test_another_tokenizer_is_refused(base: Any) -> None:
    class Other:
        ref = ModelRef("some/other")

        class tokenizer:
            @staticmethod
            def get_vocab() -> dict[str, int]:
                return {"a": 0}

    with pytest.raises(BadSpec, match="another tokenizer"):
        Voice(base, ((Other(), Other()),), (1, 2))  # type: ignore[arg-type]


def test_a_base_that_can_write_no_prompt_of_the_bank_is_told(base: Any) -> None:
    with pytest.raises(BadSpec, match="Give some as `questions`"):
        unrelated.chats(base, "nothing")  # type: ignore[arg-type]
