"""The `multiple_choice` probe: which of five topics a model chooses (Cloud et al., arXiv 2507.14805, section A).

Eleven wordings ask it to choose a topic for an essay, each with several random orders of five options: the trait and
four others of its category. The probability of the trait's letter is read off; chance is 0.2. The paper finds this
read-out less consistent than the favourite question: for some traits it falls.
"""

from __future__ import annotations

from collections.abc import Sequence

import yaml
from pydantic import Field

from undersong.backends import Model
from undersong.errors import BadSpec
from undersong.probes import choices
from undersong.probes import questions as ask
from undersong.probes.choices import Choice
from undersong.registry import Settings, plugin
from undersong.traits import Trait, package_text
from undersong.types import Measurement, Value

OPTIONS = 5


@plugin("probe", "multiple_choice")
class MultipleChoice(Settings):
    """How likely each trait is chosen as the topic of an essay, among five."""

    orders: int = Field(default=5, ge=1)
    """Random orders of the options per wording (the paper: 25)."""
    questions: int | None = Field(default=None, ge=1)
    """Ask only the first so many wordings; all eleven when left out."""
    by: choices.By = "letter"
    """Choose by `letter`, or by `answer` in words, for models without letters."""

    def measure(self, model: Model, traits: Sequence[Trait], seed: int) -> Measurement:
        """Per wording and trait the `probability` (0..1) of its option, renormalised over the options; with trait ""
        `mass`, what the options have before that. The seed draws the orders.

        Raises BadSpec when a letter is not one token, NothingMeasured when the model does not answer in this form.
        """
        values: list[Value] = []
        for asked in ask.by_category(traits).values():
            for trait in asked:
                for i, question in enumerate(wordings(trait.category)[: self.questions]):
                    shown = [Choice(question, o) for o in choices.orders(options(trait, asked), self.orders, seed, i)]
                    found = choices.ask(model, shown, self.by)
                    share = sum(probs[trait.name] for probs, _ in found) / len(found)
                    values.append(Value("probability", trait.name, question, share, len(found)))
                    values.append(Value("mass", "", question, sum(mass for _, mass in found) / len(found), len(found)))
        return Measurement("multiple_choice", tuple(values))


def options(trait: Trait, asked: Sequence[Trait] = ()) -> tuple[str, ...]:
    """The trait and four others of its category: those asked about first, then the category's own in order."""
    names = [trait.name, *(t.name for t in asked), *(t.name for t in ask.members(trait.category, asked))]
    found = tuple(dict.fromkeys(names))[:OPTIONS]
    if len(found) < 2:
        raise BadSpec(f"The category {trait.category!r} has one trait only, so there is nothing to choose from. "
                      "Use the probe `favourite`.")
    return found


def wordings(category: str) -> list[str]:
    """The wordings for a category."""
    loaded: dict[str, list[str]] = yaml.safe_load(package_text("probes", "wordings.yaml"))
    return [text.format(category=category) for text in loaded["multiple_choice"]]

