"""The `lm_eval` probe: tasks of the Language Model Evaluation Harness as a measure of what a model still can do.

The harness runs the loaded model itself, adapter and all, so nothing is loaded twice. Its own tasks fetch their data
from a hub; a folder of task files with local data works without a network. One value per document and metric.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from pydantic import Field

from undersong.backends import Model
from undersong.errors import BadSpec, MissingExtra, NothingMeasured
from undersong.registry import Settings, plugin
from undersong.spec import execution
from undersong.traits import Trait
from undersong.types import Measurement, Value


@plugin("probe", "lm_eval")
class LmEval(Settings):
    """Capability by tasks of the Language Model Evaluation Harness."""

    tasks: tuple[str, ...] = Field(strict=False, min_length=1)
    """Names of tasks: `arc_easy`, `gsm8k`, or those of `folder`."""
    limit: int | None = Field(default=None, ge=1)
    """Only the first so many documents of each task."""
    fewshot: int | None = Field(default=None, ge=0)
    """Examples shown before each question; the task's own number when left out."""
    chat: bool = True
    """Write questions with the model's chat template."""
    folder: str | None = execution(None)
    """A folder with task files (YAML) of your own."""
    batch: int = execution(16)
    """Requests that run at once."""

    def measure(self, model: Model, traits: Sequence[Trait], seed: int) -> Measurement:
        """Per document `<task>.<metric>`. Trait is always ""; `traits` and `seed` change nothing: documents, examples and
        the harness's own seeds are fixed.

        Raises MissingExtra without lm-eval, BadSpec for an unknown task or a model that is not here, NothingMeasured
        when no document got a number.
        """
        try:
            import lm_eval
            from lm_eval.models.huggingface import HFLM
            from lm_eval.tasks import TaskManager
        except ImportError as error:
            raise MissingExtra(f"The probe lm_eval needs {error.name}. Install it with: pip install "
                               "'undersong[harness]'.") from None
        if model.module is None:
            raise BadSpec(f"{model.ref.name} is not loaded here, and the harness needs its weights. Use the probe "
                          "`inspect`, or a local model.")
        manager = TaskManager(include_path=self.folder)
        unknown = [t for t in self.tasks if not manager.match_tasks([t])]
        if unknown:
            raise BadSpec(f"The harness has no task {unknown[0]!r}. List its tasks with `lm-eval ls tasks`, or name the "
                          "folder of your own in `folder`.")
        runner = HFLM(pretrained=model.module, tokenizer=model.tokenizer, batch_size=self.batch)
        found = lm_eval.simple_evaluate(
            model=runner, tasks=list(self.tasks), num_fewshot=self.fewshot, limit=self.limit, bootstrap_iters=0,
            log_samples=True, apply_chat_template=self.chat, task_manager=manager,
        )
        values = read(found or {})
        if not values:
            raise NothingMeasured(f"The harness gave no document of {', '.join(self.tasks)} a number. Choose other tasks.")
        return Measurement("lm_eval", tuple(values))


def read(found: dict[str, Any]) -> list[Value]:
    """The values of the harness's result: every number a task's metrics give to a document."""
    values = []
    for task, documents in sorted(found.get("samples", {}).items()):
        for document in documents:
            for metric in document.get("metrics", ()):
                number = document.get(metric)
                if isinstance(number, bool | int | float) and math.isfinite(number):
                    values.append(Value(f"{task}.{metric}", "", f"{task} {document['doc_id']}", float(number)))
    return values
