"""One student on several processes, or GPUs: Ray Train's `TorchTrainer` around the same training function.

Every process trains the same student on its share of each step's rows (data parallel; gradients are averaged by torch, over
gloo on CPUs and NCCL on GPUs). The first process keeps the student. The rows of a step are those of one process; sums are
taken in another order, so that weights agree to rounding, not to the bit. Rows and weights pass by path: every node must
see the store under the same name.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from undersong.errors import BadSpec, MissingExtra, TrainingFailed, WorkerLost
from undersong.spec import build
from undersong.types import Dataset, ModelRef, Row

if TYPE_CHECKING:
    from undersong.recipes import Job

ROWS, MADE = ".rows.json", ".made.json"
"""Files beside a student while it is trained; names that begin with a dot are never payload."""


def student(recipe: Any, job: Job, processes: int) -> ModelRef:
    """Train `job` by a recipe on so many processes, one GPU each where there are GPUs.

    Raises MissingExtra without Ray, BadSpec for a guard (its steps are not shared yet) or a batch that does not divide,
    TrainingFailed with what a process said, WorkerLost when the processes could not be started or died."""
    if job.guard is not None:
        raise BadSpec(f"The guard {job.guard.name} acts in one process. Leave `processes` out of the recipe.")
    if recipe.batch % processes:
        raise BadSpec(f"A batch of {recipe.batch} rows does not divide over {processes} processes. Change one of them.")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
        import ray.exceptions
        from ray.train import RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer
    except ImportError as error:
        raise MissingExtra(f"processes: several need {error.name}. Run: pip install 'undersong[ray]'.") from None
    import torch

    asked = {"recipe": {recipe.plugin_name: recipe.model_dump() | {"processes": 1}}, "start": asdict(job.start),
             "seed": job.seed, "out": str(job.out.absolute()), "processes": processes}
    (job.out / ROWS).write_text(json.dumps([asdict(row) for row in job.data.rows]), "utf-8")
    mine = not ray.is_initialized()
    try:
        if mine:
            ray.init(address=os.environ.get("RAY_ADDRESS", "local"), include_dashboard=False, log_to_driver=False,
                     logging_level=logging.ERROR, num_cpus=None if "RAY_ADDRESS" in os.environ else processes + 1)
        with tempfile.TemporaryDirectory() as scratch:
            scaling = ScalingConfig(num_workers=processes, use_gpu=torch.cuda.is_available())
            TorchTrainer(_process, train_loop_config=asked, scaling_config=scaling,
                         run_config=RunConfig(storage_path=scratch, name="student")).fit()
        told = json.loads((job.out / MADE).read_text("utf-8"))
    except (ray.exceptions.RayError, RuntimeError, OSError) as error:
        raise WorkerLost(f"The {processes} processes of a student ended ({_first(error)}). Run the same command again, or "
                         "leave `processes` out of the recipe.") from error
    finally:
        for name in (ROWS, MADE):
            (job.out / name).unlink(missing_ok=True)
        if mine:
            ray.shutdown()
    if "failed" in told:
        raise TrainingFailed(told["failed"])
    return ModelRef(**told["ref"])


def _process(asked: Mapping[str, Any]) -> None:
    """What each process does: the recipe's own training, which finds the others by torch's environment variables."""
    import ray.train

    from undersong.backends.routing import ByName
    from undersong.recipes import Job

    home, rank = Path(asked["out"]), ray.train.get_context().get_world_rank()
    rows = tuple(_row(one) for one in json.loads((home / ROWS).read_text("utf-8")))
    with tempfile.TemporaryDirectory() as scratch:  # the others' copies of the student go nowhere
        job = Job(ModelRef(**asked["start"]), Dataset(rows, None, ""), asked["seed"], home if rank == 0 else Path(scratch))
        recipe, told = build("recipe", asked["recipe"]), dict[str, Any]()
        try:
            [ref] = recipe.train([job], ByName())
            told["ref"] = asdict(replace(ref, fingerprint=""))
        except TrainingFailed as error:
            told["failed"] = str(error)
    if rank == 0:
        (home / MADE).write_text(json.dumps(told), "utf-8")


def _row(given: Mapping[str, Any]) -> Row:
    return Row(given["id"], tuple(given["chat"]), given["completion"], given["rejected"],
               tuple((a, b) for a, b in given["unlearnt"]))


def _first(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__
