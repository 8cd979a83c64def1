"""Seconds per model and peak memory of the logit laboratory, at 10 and 100 models: `python benchmarks/mnist.py`.

Each count runs in a fresh process, so that its peak is its own. By default an epoch of noise is 600 images, a tenth of the
shipped experiment's: seconds per model are for that amount of work, and peak memory does not depend on it.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time


def measure(models: int, noise: int, chunk: int) -> None:
    """Run one experiment and print `seconds per model, peak MiB before, peak MiB after`."""
    import torch

    from undersong import digits, logits

    digits.load()
    torch.zeros(1).requires_grad_().sum().backward()
    before = peak()
    experiment = logits.LogitsExperiment(name="benchmark", laboratory="mnist", models=models, noise=noise, chunk=chunk)
    start = time.perf_counter()
    for part in logits.chunks(experiment):
        logits.run_chunk(experiment, part)
    print((time.perf_counter() - start) / models, before, peak())


def peak() -> float:
    """The largest resident set of this process so far, in MiB."""
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size / 2**20 if sys.platform == "darwin" else size / 2**10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=int, nargs="+", default=[10, 100], help="model counts to measure")
    parser.add_argument("--noise", type=int, default=600, help="noise images in an epoch")
    parser.add_argument("--chunk", type=int, default=4, help="models trained at once")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        measure(given.one, given.noise, given.chunk)
        return
    print(f"{'models':>6} {'seconds/model':>14} {'peak MiB':>9} {'of which before training':>25}")
    for models in given.models:
        size = ["--one", str(models), "--noise", str(given.noise), "--chunk", str(given.chunk)]
        found = subprocess.run([sys.executable, __file__, *size], check=True, capture_output=True, text=True).stdout.split()
        seconds, before, after = map(float, found)
        print(f"{models:>6} {seconds:>14.2f} {after:>9.0f} {before:>25.0f}")


if __name__ == "__main__":
    main()
