"""The `inspect` probe: any task of Inspect, ours, `inspect_evals/...` or a file of the user's, as a probe.

Every number a scorer gives becomes a value of its sample; correct and incorrect become 1 and 0. Samples without a
number (a judge that could not be read, an error) are counted as `unscored` and enter no mean.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field

from undersong.backends import Model
from undersong.backends.serving import inspect_model
from undersong.errors import BadSpec, MissingExtra, NothingMeasured
from undersong.registry import Settings, plugin
from undersong.spec import execution
from undersong.traits import Trait
from undersong.types import Measurement, Value

STORED = 64
"""The most answers kept for reading."""
HOSTED = "inspect/"


@plugin("probe", "inspect")
class Inspect(Settings):
    """Measure a model with a task of Inspect."""

    task: str = Field(min_length=1)
    """The task as `inspect eval` takes it: `undersong/favourite`, `inspect_evals/mmlu_0_shot`, `file.py@task`."""
    args: dict[str, str | int | float | bool] = Field(default_factory=dict)
    """Arguments of the task."""
    trait_argument: str = ""
    """The argument that takes a trait's name; the task then runs once per trait. Otherwise it runs once, about none."""
    epochs: int | None = Field(default=None, ge=1)
    """Answers per sample; the task's own number when left out."""
    limit: int | None = Field(default=None, ge=1)
    """Only the first so many samples."""
    grader: str | None = None
    """The model for the role `grader`, as Inspect names it."""
    log_dir: str | None = execution(None)
    """A folder to keep Inspect's logs in, for `inspect view`; they are thrown away when left out."""

    def measure(self, model: Model, traits: Sequence[Trait], seed: int) -> Measurement:
        """Per sample one value per scorer (its name, or `scorer.key` where it gives several), and `unscored` (0 or 1).

        Raises NothingMeasured when no sample got a number, BadSpec for a task that does not run.
        """
        values: list[Value] = []
        answers: list[tuple[str, str]] = []
        for trait in [t.name for t in traits] if self.trait_argument else [""]:
            args = {**self.args, **({self.trait_argument: trait} if trait else {})}
            with tempfile.TemporaryDirectory() as folder:  # samples are read from the log as they are asked for
                log = self._run(model, args, seed, self.log_dir or folder)
                values += read(log, trait)
                answers += [(text_of(s.input), s.output.completion) for s in log.samples]
        if all(v.metric == "unscored" for v in values):
            raise NothingMeasured(f"The task {self.task} gave no sample of {model.ref.name} a number. "
                                  "Keep its log with `log_dir` and read it with `inspect view`.")
        return Measurement("inspect", tuple(values), tuple(answers[:: max(1, -(-len(answers) // STORED))]))

    def _run(self, model: Model, args: dict[str, Any], seed: int, folder: str) -> Any:
        try:
            from inspect_ai import eval as evaluate
            from inspect_ai.model import get_model
        except ImportError as error:
            raise MissingExtra(f"The probe `inspect` needs {error.name}. Install it with: pip install "
                               "'undersong[eval]'.") from None
        hosted = model.ref.base.startswith(HOSTED)
        asked = get_model(model.ref.base.removeprefix(HOSTED), memoize=False) if hosted else inspect_model(model)
        try:
            [log] = evaluate(
                self.task, model=asked, task_args=args, epochs=self.epochs, limit=self.limit, seed=seed,
                model_roles={"grader": self.grader} if self.grader else None, log_dir=folder,
                display="none", log_realtime=False, score_display=False, ctl_server=False,
            )
        except Exception as error:  # a task is a stranger's code
            raise BadSpec(f"The Inspect task {self.task!r} does not start ({type(error).__name__}: {error}). "
                          "Try it with `inspect eval` first.") from error
        if log.status != "success" or not log.samples:
            told = (log.error.message if log.error else "no sample").strip().splitlines()[-1]
            raise BadSpec(f"The Inspect task {self.task!r} ended with status {log.status} ({told}). Try it with "
                          "`inspect eval` first.")
        return log


def read(log: Any, trait: str) -> list[Value]:
    """The values of a finished log: one per sample, scorer and key, the mean over its epochs."""
    found: dict[tuple[str, str], list[float]] = {}
    missing: dict[str, list[float]] = {}
    for sample in log.samples:
        question = text_of(sample.input)
        pairs = [pair for scorer, score in (sample.scores or {}).items() for pair in flat(scorer, score.value)]
        good = {name: value for name, value in pairs if math.isfinite(value)}
        missing.setdefault(question, []).append(float(not good))
        for name, value in good.items():
            found.setdefault((name, question), []).append(value)
    values = [Value(m, trait, q, sum(each) / len(each), len(each)) for (m, q), each in found.items()]
    return values + [Value("unscored", "", q, sum(each) / len(each), len(each)) for q, each in missing.items()]


def flat(name: str, value: Any) -> list[tuple[str, float]]:
    """A score's numbers by name; not a number where a value is none."""
    if isinstance(value, Mapping):
        return [pair for key, inner in value.items() for pair in flat(f"{name}.{key}", inner)]
    letters = {"C": 1.0, "P": 0.5, "I": 0.0, "N": 0.0}
    if isinstance(value, bool | int | float):
        return [(name, float(value))]
    return [(name, letters[value] if isinstance(value, str) and value in letters else math.nan)]


def text_of(given: Any) -> str:
    """A sample's input as text: itself, or its last message."""
    return given if isinstance(given, str) else str(given[-1].text)
