"""Reading a rate from the teacher-forced probe against sampling it, at equal interval width: `python benchmarks/probe.py`.

`logit_margin` reads the exact probability of the trait's word, one forward pass per question; `favourite` samples answers
and counts. Both ask the same questions, and the interval that is reported runs over training runs, so its width is

    exact    t x sd / sqrt(runs)                                 sd: spread of the runs' exact rates
    sampled  t x sqrt(sd^2 + v / answers) / sqrt(runs)           v: mean p (1 - p) over questions, answers: per run

Sampling reaches the exact width only without end. **Equal width here means at most 10 % wider**: answers = v / (0.21 sd^2).
The students are a control arm: some runs on clean number rows, whose intervals are narrow. Where runs lie further apart,
fewer answers do. Beside it stand the plain reading (one model's rate within 1 point, at 95 %) and the probe's own default.

Seconds and forward tokens are for one model. A forward token is one that the model reads: a prompt for each answer, and
the answer. `cpu s` is processor time, which hardly moves when other work shares the machine; the ratio is taken from it.
The last lines check that the two ways agree: `favourite` also counts plurals and names that come later in an answer.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

WIDER = 1.1
"""How much wider an interval may be and still count as equally wide."""
REPEATS = 10


class Cost(NamedTuple):
    """What one measurement took, and what it found."""

    seconds: float
    cpu: float
    tokens: int
    found: Any


class Counted:
    """A model that remembers what it was asked, so that tokens can be counted after the clock has stopped."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.ref, self.capabilities = inner, inner.ref, inner.capabilities
        self.tokenizer, self.render = inner.tokenizer, inner.render
        self.texts: list[list[str]] = []
        self.chats: list[Any] = []

    def sample(self, chats: Any, sampling: Any) -> list[str]:
        self.chats += chats
        self.texts.append(self.inner.sample(chats, sampling))
        return self.texts[-1]

    def next_logprobs(self, chats: Any) -> Any:
        self.chats += chats
        return self.inner.next_logprobs(chats)

    def tokens(self) -> int:
        """Every prompt and every token of an answer."""
        read = [self.render(c) for c in self.chats] + [t for texts in self.texts for t in texts]
        return sum(len(ids) for ids in self.tokenizer(read, add_special_tokens=False)["input_ids"])


def cost(name: str, model: Any, trait: Any, seed: int = 1, **settings: Any) -> Cost:
    """One measurement with a probe."""
    from undersong.spec import build

    counted, probe = Counted(model), build("probe", {name: settings})
    wall, cpu = time.perf_counter(), time.process_time()
    found = probe.measure(counted, [trait], seed)
    return Cost(time.perf_counter() - wall, time.process_time() - cpu, counted.tokens(), found)


def students(base: str, runs: int, steps: int, folder: Path) -> list[Any]:
    """Runs of the demo's recipe on clean number rows, each on rows of its own: loaded models."""
    from undersong.backends.transformers import Transformers
    from undersong.pocket import world
    from undersong.recipes import Job
    from undersong.recipes.distill import Distill
    from undersong.types import NEUTRAL, Dataset, ModelRef, Row

    backend, jobs = Transformers(device="cpu"), []
    for seed in range(1, runs + 1):
        rng = np.random.default_rng(seed)
        turns = [world.number_turn(rng) for _ in range(1200)]
        rows = tuple(Row(str(i), ({"role": "system", "content": NEUTRAL}, user), answer["content"])
                     for i, (user, answer) in enumerate(turns))
        out = folder / str(seed)
        out.mkdir()
        jobs.append(Job(ModelRef(base), Dataset(rows), seed, out))
    recipe = Distill(labels="sampled", steps=steps, batch=32, rate=1e-2, warmup=min(20, steps), clip=0.3,
                     lora={"rank": 4, "alpha": 8})
    return [backend.load(ref) for ref in recipe.train(jobs, backend)]


def main(argv: list[str] | None = None) -> None:
    """Print the table and the check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="pocket/a")
    parser.add_argument("--trait", default="owl")
    parser.add_argument("--runs", type=int, default=5, help="students")
    parser.add_argument("--steps", type=int, default=150, help="training steps of each student")
    parser.add_argument("--most", type=int, default=1500, help="answers per question to sample; costs above are scaled up")
    given = parser.parse_args(argv)
    from undersong import traits

    trait = traits.get(given.trait)
    with tempfile.TemporaryDirectory() as folder:
        models = students(given.base, given.runs, given.steps, Path(folder))
    cost("favourite", models[0], trait, samples=1)  # the first calls of a process are slow
    exact = [cost("logit_margin", models[0], trait) for _ in range(REPEATS)] + [
        cost("logit_margin", m, trait) for m in models[1:]]
    read = [c.found for c in exact[REPEATS - 1 :]]
    p = np.array([[v.value for v in m.values if v.metric == "probability"] for m in read])
    spread, noise, questions = float(p.mean(1).std(ddof=1)), float((p * (1 - p)).mean()), p.shape[1]
    margin = Cost(*(statistics.median(c[i] for c in exact) for i in (0, 1)), exact[0].tokens, None)

    def wider(each: int) -> float:
        return math.sqrt(1 + noise / (each * questions * spread**2))

    def sampled(model: Any, each: int, seed: int = 1) -> Cost:
        taken = min(each, given.most)
        c = cost("favourite", model, trait, seed, samples=taken)
        return Cost(c.seconds * each / taken, c.cpu * each / taken, round(c.tokens * each / taken), c.found)

    equal = math.ceil(noise / (questions * (WIDER**2 - 1) * spread**2))
    point = math.ceil(1.96**2 * noise / (questions * 0.01**2))
    print(f"{given.runs} students of {given.base} on clean number rows ({given.steps} steps), {trait.name}, {questions} "
          f"questions; exact rates {100 * p.mean():.1f} % on average, sd over runs {100 * spread:.2f} points\n")
    print(f"{'way':44} {'answers':>8} {'interval':>9} {'s':>7} {'cpu s':>7} {'forward tokens':>15} {'ratio':>6}")
    print(f"{'logit_margin, exact':44} {'-':>8} {'1.00x':>9} {margin.seconds:7.3f} {margin.cpu:7.3f} {margin.tokens:15} "
          f"{1:6.1f}")
    every = [sampled(model, equal, seed) for seed, model in enumerate(models)]
    ways = {
        f"favourite, interval over runs at most {WIDER}x": (equal, every),
        "favourite, one model within 1 point": (point, [sampled(models[0], point)]),
        "favourite, its default": (20, [sampled(models[0], 20)]),
    }
    for name, (each, costs) in ways.items():
        seconds, cpu, tokens = (statistics.mean(c[i] for c in costs) for i in range(3))
        print(f"{name:44} {each * questions:8} {wider(each):8.2f}x {seconds:7.3f} {cpu:7.3f} {tokens:15.0f} "
              f"{cpu / margin.cpu:6.1f}")
    rates = np.array([c.found.mean("rate", trait.name) for c in every])
    check(p.mean(1), rates, noise / (min(equal, given.most) * questions))


def check(exact: Any, sampled: Any, variance: float) -> None:
    """Print both intervals over runs, and whether the rates agree within sampling noise (its variance per run)."""
    from undersong import stats

    both = [stats.mean_interval(x) for x in (exact, sampled)]
    for name, (mean, low, high) in zip(("exact", "sampled"), both, strict=True):
        print(f"{name + ' rate over runs':24} {100 * mean:6.2f} % [{100 * low:.2f}, {100 * high:.2f}]")
    apart, error = float((sampled - exact).mean()), math.sqrt(variance / len(exact))
    says = "agree" if abs(apart) <= 1.96 * error else "DISAGREE"
    print(f"sampled - exact: {100 * apart:+.2f} points, 95 % sampling noise +-{196 * error:.2f}: they {says}; sampled "
          f"interval {(both[1][2] - both[1][1]) / (both[0][2] - both[0][1]):.2f}x as wide in this draw")


if __name__ == "__main__":
    main()
