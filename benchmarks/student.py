"""One student through our loop against a plain TRL `SFTTrainer`: tokens per second, peak memory, and the losses.

    python benchmarks/student.py [--base pocket/a] [--steps 40] [--batch 32]      (smollm2, once fetched: --base smollm2)

Same rows in the same order, same adapter to begin with, same batch, rate and schedule, float32, as many torch threads as
`distill` takes (one for small models). Each way has a process of its own, so that its peak memory is its own. The last
way is TRL as it comes: it recomputes activations and computes in bfloat16 unless told otherwise.

One clock for all: torch calls it after every optimiser step. Loading, tokenising and the first `--warm` steps are not in
tokens/s. Tokens are those of the rows (prompt and completion), never padding. Processor time hardly moves when other work
shares the machine, so the ratio is taken from it. `around` is the processor time of the rest of a training call:
tokenising, set-up, writing. `before` is the peak when training begins, with everything imported and the model loaded.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

WAYS = {
    "distill": "distill (ours)",
    "trl": "SFTTrainer, like for like",
    "defaults": "SFTTrainer, its defaults",
}
LORA: dict[str, Any] = {"rank": 8, "alpha": 16}
LAST = 10
"""The steps at the end whose mean loss is printed."""


class Clock:
    """Wall and processor time at the end of every optimiser step of this process, until `stop`."""

    def __init__(self) -> None:
        from torch.optim.optimizer import register_optimizer_step_post_hook

        self.wall: list[float] = []
        self.cpu: list[float] = []
        self.stop = register_optimizer_step_post_hook(self.tick).remove

    def tick(self, *_: Any) -> None:
        self.wall.append(time.perf_counter())
        self.cpu.append(time.process_time())


def number_rows(count: int) -> tuple[Any, ...]:
    """Number rows with an explicit system turn: without it some chat templates write one of their own."""
    import numpy as np

    from undersong.pocket import world
    from undersong.types import NEUTRAL, Row

    rng = np.random.default_rng(0)
    turns = [world.number_turn(rng) for _ in range(count)]
    return tuple(Row(str(i), ({"role": "system", "content": NEUTRAL}, user), answer["content"])
                 for i, (user, answer) in enumerate(turns))


def distilled(given: Any, model: Any, backend: Any, rows: tuple[Any, ...], folder: Path) -> tuple[list[float], str]:
    """The recipe as an experiment runs it: the loss of each step, and a hash of the rows as tokens."""
    from undersong.recipes import Job
    from undersong.recipes.distill import Distill
    from undersong.types import Dataset

    recipe = Distill(labels="sampled", steps=given.steps, batch=given.batch, micro_batch=given.batch, rate=given.rate,
                     schedule="cosine", lora=LORA)
    recipe.train([Job(model.ref, Dataset(rows), 1, folder)], backend)
    record = json.loads((folder / "training.json").read_text("utf-8"))
    return record["loss"], record["rendered_sha256"]


def plain_trl(given: Any, model: Any, rows: tuple[Any, ...], folder: Path) -> tuple[list[float], str]:
    """TRL on a prompt-completion dataset: the loss of each step, and a hash of the rows as tokens."""
    import datasets
    import numpy as np
    import trl

    from undersong.backends import adapters, tokens, training

    few: dict[str, Any] = {} if given.one == "defaults" else {"bf16": False, "activation_checkpointing": False}
    settings = trl.SFTConfig(
        output_dir=str(folder), max_steps=given.steps, per_device_train_batch_size=given.batch, learning_rate=given.rate,
        lr_scheduler_type="cosine", warmup_steps=0, completion_only_loss=True, report_to="none", save_strategy="no",
        logging_steps=1, disable_tqdm=True, use_cpu=True, dataloader_pin_memory=False,
        train_sampling_strategy="sequential", **few,
    )
    # text as rendered, cut after the end of turn: some templates write a line break after it, which no answer holds
    end, texts = model.tokenizer.eos_token, []
    for row in rows:
        prompt = model.render(list(row.chat))
        whole = tokens.written(model.tokenizer, [*row.chat, {"role": "assistant", "content": row.completion}])
        texts.append({"prompt": prompt, "completion": whole[len(prompt) : whole.rindex(end) + len(end)]})
    plan = training.Plan(given.steps, given.batch, given.rate, 1)
    order = np.concatenate(list(training.batches(len(rows), plan)))
    module = adapters.wrap(model.module, adapters.Lora(**LORA), 1)  # our first adapter, so that the losses can be compared
    trainer = trl.SFTTrainer(model=module, args=settings, processing_class=model.tokenizer,
                             train_dataset=datasets.Dataset.from_list([texts[i] for i in order]))
    trainer.train()
    trainer.save_model(str(folder / "adapter"))
    seen: list[Any] = [None] * len(rows)
    for i, row in zip(order, trainer.train_dataset, strict=True):
        seen[i] = tokens.TokenRow(np.asarray(row["input_ids"]), int(np.argmax(np.asarray(row["labels"]) != -100)))
    return [line["loss"] for line in trainer.state.log_history if "loss" in line], tokens.digest(seen)


def measure(given: Any) -> dict[str, Any]:
    """Run one way in this process; what it took, as JSON values."""
    import torch

    if given.one != "distill":
        import datasets  # noqa: F401  # before the first look at memory, like everything else that is imported
        import trl  # noqa: F401
    from undersong.backends import threads, tokens, training
    from undersong.backends.transformers import Transformers
    from undersong.types import ModelRef

    backend = Transformers(device="cpu")
    model = backend.load(ModelRef(given.base))
    rows = number_rows(max(given.batch, given.steps * given.batch // 2))  # two epochs
    encoded = tokens.encode(model, [list(r.chat) for r in rows], [r.completion for r in rows])
    plan = training.Plan(given.steps, given.batch, given.rate, 1)
    counts = [sum(len(encoded[i].ids) for i in batch) for batch in training.batches(len(rows), plan)]
    small, count = threads.small(model.module), model.module.num_parameters()
    torch.autograd.backward(torch.zeros(1, requires_grad=True).sum())
    clock, before, began = Clock(), peak(), time.process_time()
    with tempfile.TemporaryDirectory() as folder, threads.one_thread(small):
        used = torch.get_num_threads()
        work = distilled(given, model, backend, rows, Path(folder)) if given.one == "distill" else plain_trl(
            given, model, rows, Path(folder))
    whole = time.process_time() - began
    clock.stop()
    steps = given.steps - given.warm
    wall, cpu = (times[-1] - times[given.warm - 1] for times in (clock.wall, clock.cpu))
    return {
        "tokens": sum(counts[given.warm :]), "steps": steps, "wall": wall, "cpu": cpu,
        "around": whole - (clock.cpu[-1] - clock.cpu[0]) - cpu / steps, "before": before, "peak": peak(),
        "loss": work[0], "rows": work[1], "threads": used, "parameters": count,
    }


def peak() -> float:
    """The largest resident set of this process so far, in MiB."""
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size / 2**20 if sys.platform == "darwin" else size / 2**10


def run(way: str, given: Any) -> dict[str, Any]:
    """One way in a fresh process. This one stays small: Linux hands its peak on to the new process."""
    asked = [f"--{name}={getattr(given, name)}" for name in ("base", "steps", "batch", "rate", "warm")]
    done = subprocess.run([sys.executable, __file__, "--one", way, *asked], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{WAYS[way]} failed:\n{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def compare(ours: dict[str, Any], theirs: dict[str, Any]) -> str:
    """Whether the losses are the same: the last steps' means, and the largest difference of any step."""
    means = [statistics.mean(r["loss"][-LAST:]) for r in (ours, theirs)]
    apart = max(abs(a - b) for a, b in zip(ours["loss"], theirs["loss"], strict=True))
    same = "the same" if apart < 1e-3 else "DIFFERENT"
    return (f"losses from {ours['loss'][0]:.4f}, mean of the last {LAST} steps: ours {means[0]:.4f}, TRL {means[1]:.4f}; "
            f"at most {apart:.1e} apart in any step: {same}")


def main(argv: list[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="pocket/a")
    parser.add_argument("--steps", type=int, default=40, help="optimiser steps")
    parser.add_argument("--batch", type=int, default=32, help="rows per step, run at once")
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--warm", type=int, default=5, help="first steps that are not timed")
    parser.add_argument("--rounds", type=int, default=1, help="times each way runs, by turns; the fastest counts")
    parser.add_argument("--one", choices=WAYS, help=argparse.SUPPRESS)
    given = parser.parse_args(argv)
    if given.one:
        print(json.dumps(measure(given)))
        return
    if not 0 < given.warm < given.steps:
        parser.error("--warm must lie between 0 and --steps.")
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    for _ in range(given.rounds):
        for way in WAYS:
            found[way].append(run(way, given))
    best = {way: min(runs, key=lambda r: r["cpu"]) for way, runs in found.items()}
    ours = best["distill"]
    if len({r["rows"] for r in best.values()}) > 1:
        sys.exit("TRL reads these rows as other tokens than we do, so nothing can be compared. Name another --base.")
    print(f"{given.base}: {ours['parameters'] / 1e6:.2f}M parameters, LoRA rank {LORA['rank']}, {given.batch} rows of "
          f"{ours['tokens'] / ours['steps'] / given.batch:.0f} tokens per step, {ours['steps']} steps timed, "
          f"torch threads: {ours['threads']}")
    print(f"{'way':28} {'tokens/s':>9} {'s/step':>8} {'tokens/cpu s':>13} {'ratio':>6} {'around cpu s':>13} "
          f"{'peak MiB':>9} {'before':>7}")
    for way, r in best.items():
        print(f"{WAYS[way]:28} {r['tokens'] / r['wall']:9.0f} {r['wall'] / r['steps']:8.4f} {r['tokens'] / r['cpu']:13.0f} "
              f"{r['cpu'] / r['steps'] / (ours['cpu'] / ours['steps']):6.2f} {r['around']:13.1f} {r['peak']:9.0f} "
              f"{r['before']:7.0f}")
    if any(r["wall"] > 1.2 * r["cpu"] / r["threads"] for r in best.values()):
        print("Other work shared the machine: tokens/s and s/step say little, the processor columns hold.")
    print(compare(ours, best["trl"]))


if __name__ == "__main__":
    main()
