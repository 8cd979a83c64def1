"""What survives the changes that keep a function, what two seeds do not share, and whether p is what it says."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import preserved
import pytest
from preserved import Tensors, independent, put, subject, tensors

from undersong import pocket
from undersong.errors import BrokenArtefact
from undersong.kinship.matching import FLOOR, agreement_p, fixed_points_p, met, profiles
from undersong.kinship.weights import Weights

KEPT = {
    "units in another order": preserved.permute_units,
    "heads in another order": preserved.permute_heads,
    "units scaled": preserved.scale_units,
    "gains folded": preserved.fold,
    "rotated": preserved.rotate,
    "rotated and permuted": lambda t: preserved.scale_units(preserved.permute_units(preserved.rotate(t))),
}
DESCENDED = KEPT | {
    "four bits": preserved.quantise,
    "30 % pruned": preserved.prune,
    "merged with a stranger": lambda t: preserved.merge(t, tensors("b")),
    "moved as far as the weights are large": lambda t: preserved.noise(t, 1.0),
    "rotated, permuted and in four bits": lambda t: preserved.permute_units(preserved.rotate(preserved.quantise(t))),
    "embedding replaced": lambda t: t | {"model.embed_tokens.weight": tensors("b")["model.embed_tokens.weight"]},
}


@pytest.fixture(scope="module")
def a() -> Tensors:
    return tensors("a")


def pocket_subject(name: str) -> preserved.Subject:
    return subject(pocket.folder(f"pocket/{name}"))


@pytest.mark.parametrize("change", KEPT)
def test_the_changes_of_these_tests_keep_the_function(change: str, a: Tensors, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    ids = torch.arange(4, 44)[None]
    out = [transformers.AutoModelForCausalLM.from_pretrained(put(tmp_path / n, t))(ids).logits.detach().numpy()
           for n, t in (("before", a), ("after", KEPT[change](a)))]
    assert np.abs(out[0] - out[1]).max() < 2e-3 * np.abs(out[0]).max()


@pytest.mark.parametrize("change", DESCENDED)
def test_descendants_are_found(change: str, a: Tensors, tmp_path: Path) -> None:
    found = Weights().compare(pocket_subject("a"), subject(put(tmp_path / "child", DESCENDED[change](a))))
    assert found.verdict == "same_initialisation"
    assert found.p is not None
    assert found.p < 1e-6


def test_one_initialisation_is_found_after_ten_thousand_updates_in_another_order() -> None:
    found = Weights().compare(pocket_subject("a"), pocket_subject("a-reordered"))
    assert (found.verdict, found.details["direction"]) == ("same_initialisation", None)
    assert found.p is not None
    assert found.p < 1e-10
    assert Weights().compare(pocket_subject("b"), pocket_subject("b-matched")).verdict == "same_initialisation"


@pytest.mark.parametrize(("one", "other"), [("a", "b"), ("a-reordered", "b"), ("a", "b-matched")])
def test_another_seed_is_no_kin_though_it_learned_the_same_rows_or_was_made_to_act_alike(one: str, other: str) -> None:
    found = Weights().compare(pocket_subject(one), pocket_subject(other))
    assert found.verdict == "same_architecture"
    assert found.details["power"] == 1.0
    assert found.details["embedding_gram"] > 0.8  # what makes a Gram correlation no evidence


def test_another_architecture_is_unrelated() -> None:
    found = Weights().compare(pocket_subject("a"), pocket_subject("wide"))
    assert found.verdict == "unrelated"
    assert set(found.details["parts"]) == {"consistency"}
    assert found.details["power"] >= 0.8


def test_an_unrelated_model_stays_unrelated_when_it_is_rotated_and_permuted(tmp_path: Path) -> None:
    moved = preserved.permute_units(preserved.rotate(tensors("b")))
    found = Weights().compare(pocket_subject("a"), subject(put(tmp_path / "b", moved)))
    assert found.verdict == "same_architecture"


def test_tokens_are_matched_by_their_text(a: Tensors, tmp_path: Path) -> None:
    folder = put(tmp_path / "renumbered", dict(a))
    rows = np.random.default_rng(0).permutation(1717)
    numbers = {old: new for new, old in enumerate(rows.tolist())}
    import json

    told = json.loads((folder / "tokenizer.json").read_text())
    told["model"]["vocab"] = {t: numbers[i] for t, i in told["model"]["vocab"].items()}
    for entry in told["added_tokens"]:
        entry["id"] = numbers[entry["id"]]
    put(folder, a | {"model.embed_tokens.weight": a["model.embed_tokens.weight"][rows]})
    (folder / "tokenizer.json").write_text(json.dumps(told))
    found = Weights().compare(pocket_subject("a"), subject(folder))
    assert found.details["parts"]["coordinates"]["agree"] == 96
    (folder / "tokenizer.json").unlink()
    assert Weights().compare(pocket_subject("a"), subject(folder)).details["parts"]["coordinates"]["agree"] < 10


def test_p_of_independent_pairs_is_not_smaller_than_it_says(tmp_path: Path) -> None:
    made = [subject(put(tmp_path / str(seed), independent(seed), tokenizer=False)) for seed in range(12)]
    settings = Weights()
    found = [settings.compare(x, y) for i, x in enumerate(made) for y in made[:i]]
    ps = np.array([f.p for f in found])
    assert min(f.details["embedding_gram"] for f in found) > 0.8  # they did learn the same
    assert len(ps) == 66
    assert all((ps <= level).mean() <= level + 3 * math.sqrt(level / len(ps)) for level in (0.01, 0.05, 0.2))
    parts = [f.details["parts"]["coordinates"]["agree"] for f in found]
    assert 0.6 < np.mean(parts) < 1.4  # fixed points of a uniform permutation: one on average
    child = subject(put(tmp_path / "child", preserved.noise(independent(0), 1.0), tokenizer=False))
    assert settings.compare(made[0], child).verdict == "same_initialisation"


def test_fixed_points_are_counted_exactly() -> None:
    assert fixed_points_p([4], [4]) == pytest.approx(1 / 24)
    assert fixed_points_p([3], [4]) == pytest.approx(1 / 24)  # three of four cannot be met alone
    assert fixed_points_p([1], [3]) == pytest.approx(4 / 6)
    assert fixed_points_p([2, 2], [2, 2]) == pytest.approx(1 / 4)
    assert fixed_points_p([0], [9]) == 1.0
    assert fixed_points_p([96], [96]) == pytest.approx(1 / math.factorial(96), rel=1e-9)
    assert fixed_points_p([500], [500]) == FLOOR
    drawn = [int((np.random.default_rng(i).permutation(20) == np.arange(20)).sum()) for i in range(4000)]
    assert np.mean(np.array(drawn) >= 3) == pytest.approx(fixed_points_p([3], [20]), abs=0.015)


def test_ties_favour_nobody() -> None:
    assert met(np.zeros((200, 200)), seed=0) < 10
    dead = profiles(np.zeros((5, 8)))
    assert not dead.any()
    assert agreement_p(0, 0, 0.1) == 1.0


def test_a_layer_that_was_pruned_away_is_no_evidence(tmp_path: Path) -> None:
    zeroed = [{n: np.zeros_like(w) if "mlp" in n else w for n, w in independent(seed).items()} for seed in (1, 2)]
    pair = [subject(put(tmp_path / str(i), t, tokenizer=False)) for i, t in enumerate(zeroed)]
    assert Weights().compare(*pair).verdict != "same_initialisation"


def test_without_known_roles_it_cannot_tell(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pair = [subject(put(tmp_path / n, {"classifier.weight": rng.standard_normal((10, 64)).astype(np.float32)},
                        tokenizer=False)) for n in "ab"]
    found = Weights().compare(*pair)
    assert (found.verdict, found.p) == ("unknown", None)


def test_the_child_is_named_only_where_the_other_way_is_excluded(a: Tensors, tmp_path: Path) -> None:
    def way(one: Tensors, other: Tensors) -> str | None:
        pair = [subject(put(tmp_path / n, t)) for n, t in (("one", one), ("other", other))]
        return str(Weights().compare(*pair).details["direction"])

    small = preserved.quantise(a)
    assert way(a, small) == "b_from_a"
    assert way(small, a) == "a_from_b"
    assert way(a, preserved.prune(a)) == "b_from_a"
    assert way({n: w.astype(np.float16) for n, w in a.items()}, a) == "a_from_b"
    assert way(small, preserved.noise(small, 0.02)) == "None"  # tuned from a quantised parent
    assert way(a, preserved.noise(a, 0.02)) == "None"


def test_a_damaged_tensor_is_refused(a: Tensors, tmp_path: Path) -> None:
    broken = a["model.embed_tokens.weight"].copy()
    broken[7, :3] = np.nan
    with pytest.raises(BrokenArtefact, match="holds 3 values that are not finite"):
        Weights().compare(pocket_subject("a"), subject(put(tmp_path / "x", a | {"model.embed_tokens.weight": broken})))
