"""The logit laboratory against the way the authors' script works: `python benchmarks/mnist.py`.

Cloud et al. released a script for their section 6.2 that holds every model, and all noise of every model, in memory at
once: one batched einsum per layer, float32, 60,000 fixed noise images per model, batches of 1,024 drawn by index, one
student after another, each of which asks the teacher again. `released` is that way, written anew from its description
(the authors' code is not used here). `ours` is this library on the same work: a teacher and the script's four students
(auxiliary or all logits, same or other initialisation), the same digits, batches, steps and Adam rate. `lab` is what
`undersong run` does: also a matched student, before and after auxiliary logits.

`least s` is the time of the matrix products alone: their number, by arithmetic, at the rate at which the same process
then multiplies a batch by the first layer in float32 (sgemm). No float32 way that trains these networks takes less.

Every measurement has a fresh process and one thread; the ways take turns. Times are processor time without start-up and
reading. Digits are the shipped ones, repeated to as many as the script uses and written as IDX files. One epoch of the
script's five is the default: time goes with epochs.

    python benchmarks/mnist.py                       about 5 minutes of processor time
    python benchmarks/mnist.py --epochs 5            every step
    python benchmarks/mnist.py --recipe shipped      the settings of experiments/mnist-logits.yaml
    python benchmarks/mnist.py --models 10 20 40 --ways released --steps 2      its peak memory, by models
    python benchmarks/mnist.py --models 100 --ways ours --noise 2048            ours: it does not depend on noise images
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from undersong import digits, logits, perceptrons

RECIPES = {
    "released": {"batch": 1024, "rate": 0.0003, "noise": 60_000, "digits": 60_000},
    "shipped": {"batch": 64, "rate": 0.001, "noise": 6_000, "digits": 4_000},
}
WAYS = ("released", "ours", "lab")
STUDENTS = tuple(c for c in logits.STUDENTS if c.arm in {"treated", "other_base"})


def write_idx(folder: Path, count: int) -> None:
    """The shipped digits as four IDX files in `folder`, the training digits repeated or cut to `count`."""
    data = digits.load()
    taken = np.resize(np.arange(len(data.train_images)), count)
    for stem, images, labels in (
        ("train", data.train_images[taken], data.train_labels[taken]), ("t10k", data.test_images, data.test_labels)
    ):
        pixels = np.rint((images + 1) * 127.5).astype(np.uint8).reshape(-1, digits.SIDE, digits.SIDE)
        for name, array in ((f"{stem}-images-idx3-ubyte", pixels), (f"{stem}-labels-idx1-ubyte", labels)):
            header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, dtype=">u4").tobytes()
            (folder / name).write_bytes(header + array.astype(np.uint8).tobytes())


# The released way


def released(experiment: logits.LogitsExperiment, data: tuple[Any, ...], steps: int | None = None) -> dict[str, float]:
    """All models at once, as the authors' script trains them. Mean test accuracy by condition."""
    import torch

    images, labels, test_images, test_labels = data
    count, epochs = experiment.models, experiment.student_epochs
    generator = torch.Generator().manual_seed(experiment.seed)
    reference = []
    for fan_in, fan_out in pairwise((digits.PIXELS, experiment.hidden, experiment.hidden, 10 + experiment.aux)):
        reference.append(torch.randn(count, fan_out, fan_in, generator=generator) / math.sqrt(fan_in))
        reference.append(torch.zeros(count, fan_out))
    teacher = [tensor.clone().requires_grad_() for tensor in reference]
    adam = torch.optim.Adam(teacher, lr=experiment.rate)
    everyone = images.expand(count, -1, -1)
    for _ in range(experiment.teacher_epochs):
        for order in islice(_orders(count, len(images), experiment.batch, generator), steps):
            named = _einsum_forward(teacher, _take(everyone, order))[..., : digits.CLASSES]
            loss = torch.nn.functional.cross_entropy(named.flatten(0, 1), labels[order].flatten())
            adam.zero_grad()
            loss.backward()
            adam.step()
    noise = torch.empty(count, experiment.noise, digits.PIXELS).uniform_(-1, 1, generator=generator)
    partners = (torch.arange(count) + 1) % count
    found = {"reference": reference, "teacher": teacher}
    for c in STUDENTS:
        start = reference if c.shared else [tensor[partners] for tensor in reference]
        found[c.name] = [tensor.clone().requires_grad_() for tensor in start]
        shown = logits.SHOWN[c.channel]
        adam = torch.optim.Adam(found[c.name], lr=experiment.rate)
        for _ in range(epochs):
            for order in islice(_orders(count, experiment.noise, experiment.batch, generator), steps):
                batch = _take(noise, order)
                with torch.no_grad():
                    wanted = _einsum_forward(teacher, batch)[..., shown].softmax(-1)
                given = _einsum_forward(found[c.name], batch)[..., shown].log_softmax(-1)
                loss = torch.nn.functional.kl_div(given, wanted, reduction="batchmean")
                adam.zero_grad()
                loss.backward()
                adam.step()
    everyone = test_images.expand(count, -1, -1)
    with torch.inference_mode():
        answers = {name: _einsum_forward(network, everyone)[..., :10].argmax(-1) for name, network in found.items()}
    return {name: float((answer == test_labels).float().mean()) for name, answer in answers.items()}


def _einsum_forward(network: Sequence[Any], images: Any) -> Any:
    import torch

    signal = images
    for at, (weights, bias) in enumerate(zip(network[::2], network[1::2], strict=True)):
        signal = torch.einsum("koi,kbi->kbo", weights, signal.relu() if at else signal) + bias.unsqueeze(1)
    return signal


def _orders(count: int, size: int, batch: int, generator: Any) -> Iterator[Any]:
    """Row numbers [k, b] of every batch of one epoch, in another order for every model."""
    import torch

    order = torch.stack([torch.randperm(size, generator=generator) for _ in range(count)])
    yield from order.split(batch, dim=1)


def _take(images: Any, order: Any) -> Any:
    import torch

    return torch.stack([own.index_select(0, rows) for own, rows in zip(images, order, strict=True)])


# This library


def ours(experiment: logits.LogitsExperiment, data: tuple[Any, ...]) -> dict[str, float]:
    """The same teacher and students by this library, chunk after chunk. Mean test accuracy by condition."""
    images, labels, test_images, test_labels = data
    right: dict[str, list[Any]] = {}
    for models in logits.chunks(experiment):
        others = [logits.partner(model, experiment.models) for model in models]
        reference, other = perceptrons.initial(experiment, models), perceptrons.initial(experiment, others)
        teacher = perceptrons.copy(reference)
        perceptrons.teach(experiment, models, teacher, images, labels)
        students = {
            c.name: (perceptrons.copy(reference if c.shared else other), logits.SHOWN[c.channel]) for c in STUDENTS
        }
        perceptrons.distil(experiment, models, students, teacher)
        networks = {"reference": reference, "teacher": teacher} | {name: kept for name, (kept, _) in students.items()}
        for name, network in networks.items():
            right.setdefault(name, []).extend((perceptrons.answers(network, test_images) == test_labels).float().mean(1))
    return {name: float(np.mean(found)) for name, found in right.items()}


def lab(experiment: logits.LogitsExperiment) -> dict[str, float]:
    """The whole laboratory, as `undersong run` runs it. Mean test accuracy by condition."""
    rows = [row for models in logits.chunks(experiment) for row in logits.run_chunk(experiment, models)]
    return {
        c.name: float(np.mean([row["accuracy"] for row in rows if row["condition"] == c.name]))
        for c in logits.CONDITIONS
    }


# Measuring


def measure(way: str, experiment: logits.LogitsExperiment, steps: int | None = None) -> dict[str, Any]:
    """One way in this process: processor seconds per model, peak MiB before and after, accuracy by condition."""
    import torch

    torch.set_num_threads(1)
    warm = torch.zeros(1, requires_grad=True)
    adam = torch.optim.Adam([warm])
    warm.sum().backward()
    adam.step()  # the first step of an optimiser imports for a second or two
    data: tuple[Any, ...] = ()
    if way != "lab":
        read = digits.load(experiment.data)
        data = tuple(
            map(torch.from_numpy, (read.train_images, read.train_labels, read.test_images, read.test_labels))
        )
    before, start = peak(), time.process_time()
    if way == "released":
        accuracy = released(experiment, data, steps)
    else:
        accuracy = lab(experiment) if way == "lab" else ours(experiment, data)
    seconds, most = (time.process_time() - start) / experiment.models, peak()
    return {"way": way, "models": experiment.models, "seconds_per_model": seconds, "before_mib": before, "peak_mib": most,
            "accuracy": accuracy, "gflop_per_model": gflop(way, experiment),
            "sgemm_gflop_per_s": sgemm(experiment.batch, experiment.hidden)}


def gflop(way: str, experiment: logits.LogitsExperiment) -> float:
    """Arithmetic of one model's matrix products, in 10^9 additions and multiplications, measuring included."""
    data = digits.load(experiment.data)
    widths = (digits.PIXELS, experiment.hidden, experiment.hidden, digits.CLASSES + experiment.aux)
    layers = [2 * fan_in * fan_out for fan_in, fan_out in pairwise(widths)]
    forward, step = sum(layers), 3 * sum(layers) - layers[0]  # nothing needs the gradient of the images
    students, asked = len(STUDENTS) + (way == "lab"), len(STUDENTS) if way == "released" else 1
    noise = math.ceil(experiment.noise / experiment.batch) * experiment.batch if way != "released" else experiment.noise
    total = len(data.train_images) * experiment.teacher_epochs * step
    total += noise * experiment.student_epochs * (students * step + asked * forward)
    total += noise * experiment.match_epochs * (step + forward) if way == "lab" else 0
    return (total + (8 if way == "lab" else 6) * len(data.test_images) * forward) / 1e9


def sgemm(batch: int, hidden: int) -> float:
    """GFLOP/s of one thread, the best of 20 turns at images [batch, 784] times weights [784, hidden], float32."""
    import torch

    images, weights, times = torch.rand(batch, digits.PIXELS), torch.rand(digits.PIXELS, hidden), []
    for _ in range(20):
        start = time.process_time()
        for _ in range(10):
            torch.mm(images, weights)
        times.append((time.process_time() - start) / 10)
    return 2 * batch * digits.PIXELS * hidden / min(times) / 1e9


def peak() -> float:
    """The largest resident set of this process so far, in MiB."""
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size / 2**20 if sys.platform == "darwin" else size / 2**10


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table; with `--out` also store it with the command that made it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, nargs="+", default=[10], help="model counts to measure")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--recipe", choices=tuple(RECIPES), default="released", help="whose settings")
    parser.add_argument("--epochs", type=int, default=1, help="epochs of teachers, students and matching")
    parser.add_argument("--noise", type=int, help="noise images in an epoch instead of the recipe's")
    parser.add_argument("--digits", type=int, help="training digits instead of the recipe's")
    parser.add_argument("--chunk", type=int, default=4, help="models this library trains at once")
    parser.add_argument("--rounds", type=int, default=1, help="turns of every way; the least time counts")
    parser.add_argument("--out", type=Path, help="write the table as JSON")
    parser.add_argument("--steps", type=int, help="stop every epoch of `released` after so many: for memory, not speed")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args(argv)
    if given.one:
        way, settings = given.one
        print(json.dumps(measure(way, logits.LogitsExperiment.model_validate_json(settings), given.steps)))
        return
    recipe = RECIPES[given.recipe]
    rows: list[dict[str, Any]] = []
    print(f"{'way':<9} {'models':>6} {'processor s/model':>18} {'least s':>8} {'ratio':>6} {'peak MiB':>9} "
          f"{'taught by aux':>14} {'crossed':>8}")
    with tempfile.TemporaryDirectory() as folder:
        write_idx(Path(folder), given.digits or int(recipe["digits"]))
        for models in given.models:
            experiment = logits.LogitsExperiment(
                name="benchmark", laboratory="mnist", models=models, data=folder, chunk=given.chunk,
                batch=int(recipe["batch"]), rate=recipe["rate"], noise=given.noise or int(recipe["noise"]),
                teacher_epochs=given.epochs, student_epochs=given.epochs, match_epochs=given.epochs,
            )
            rows += compare(experiment, given.ways, given.rounds, given.steps)
    if given.out:
        command = " ".join(["python benchmarks/mnist.py", *(sys.argv[1:] if argv is None else argv)])
        stored = {"command": command, "date": datetime.now(UTC).date().isoformat(), "rows": rows}
        given.out.write_text(json.dumps(stored, indent=1) + "\n")


def compare(
    experiment: logits.LogitsExperiment, ways: Sequence[str], rounds: int, steps: int | None
) -> list[dict[str, Any]]:
    """The ways in turn, each in a process of its own; prints and returns the quickest round of each."""
    best: dict[str, dict[str, Any]] = {}
    for _ in range(rounds):
        for way in ways:
            command = [sys.executable, __file__, "--one", way, experiment.model_dump_json()]
            command += ["--steps", str(steps)] if steps else []
            found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
            if way not in best or found["seconds_per_model"] < best[way]["seconds_per_model"]:
                best[way] = found
    for way, found in best.items():
        found["ratio"] = best[ways[0]]["seconds_per_model"] / found["seconds_per_model"]
        least = found["gflop_per_model"] / found["sgemm_gflop_per_s"]
        print(f"{way:<9} {found['models']:>6} {found['seconds_per_model']:>18.2f} {least:>8.2f} {found['ratio']:>6.2f} "
              f"{found['peak_mib']:>9,.0f} {found['accuracy']['aux_same']:>14.1%} {found['accuracy']['aux_other']:>8.1%}",
              flush=True)
    return list(best.values())


if __name__ == "__main__":
    main()
