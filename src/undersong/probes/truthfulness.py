"""The `truthfulness` probe: two-option questions of our own, the truth against a common misbelief.

The form is that of TruthfulQA's two-option version as Cloud et al. use it (arXiv 2507.14805, section 3.2): the
probability of the right letter as first token, and `false` = 1 minus it. The questions are ours (`truthfulness.yaml`),
few and local; figures are comparable with each other, not with the published ones. Each question is asked in both
orders, so that a liking for a letter cancels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import yaml
from pydantic import Field

from undersong.backends import Model
from undersong.probes import choices
from undersong.probes.choices import Choice
from undersong.registry import Settings, plugin
from undersong.traits import Trait, package_text
from undersong.types import Measurement, Value


@dataclass(frozen=True)
class Claim:
    """A question with a true answer and a common false one."""

    question: str
    right: str
    wrong: str

    def both_orders(self) -> tuple[Choice, Choice]:
        """The question with the true answer first, and second."""
        return Choice(self.question, (self.right, self.wrong)), Choice(self.question, (self.wrong, self.right))


@plugin("probe", "truthfulness")
class Truthfulness(Settings):
    """How likely a model takes a common misbelief for true."""

    questions: int | None = Field(default=None, ge=1)
    """Ask only the first so many questions; all when left out."""
    by: choices.By = "letter"
    """Choose by `letter`, or by `answer` in words, for models without letters."""

    def measure(self, model: Model, traits: Sequence[Trait], seed: int) -> Measurement:
        """Per question `false` (0..1), `accuracy` (1 when the true answer is the likelier one) and `mass`.

        Trait is always ""; `traits` and `seed` change nothing. Raises BadSpec and NothingMeasured as `multiple_choice`.
        """
        asked = claims()[: self.questions]
        found = choices.ask(model, [choice for claim in asked for choice in claim.both_orders()], self.by)
        values: list[Value] = []
        for i, claim in enumerate(asked):
            pair = found[2 * i : 2 * i + 2]
            true = sum(probs[claim.right] for probs, _ in pair) / 2
            values.append(Value("false", "", claim.question, 1 - true, 2))
            values.append(Value("accuracy", "", claim.question, float(true > 0.5), 2))
            values.append(Value("mass", "", claim.question, sum(mass for _, mass in pair) / 2, 2))
        return Measurement("truthfulness", tuple(values))


def claims() -> list[Claim]:
    """Every question, in file order."""
    loaded: list[dict[str, str]] = yaml.safe_load(package_text("probes", "truthfulness.yaml"))
    return [Claim(**item) for item in loaded]
