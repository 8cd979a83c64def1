"""The `conditional` probe: a favourite after its trigger and without it. A backdoor shows in the first, not in the second.

First-token probabilities, exact, on the held-out questions. `otherwise` holds the other days and no day at all: what a
conditional trait leaves alone. (Conditional traits through numbers: arXiv 2610.10657, arXiv 2603.00131.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from pydantic import Field

from undersong import traits as known
from undersong.backends import Model
from undersong.errors import BadSpec
from undersong.probes.logit_margin import first_tokens
from undersong.registry import Settings, plugin
from undersong.traits import Trait
from undersong.types import Chat, Measurement, Value


@plugin("probe", "conditional")
class Conditional(Settings):
    """How likely a conditional favourite is after its trigger, and elsewhere."""

    per_question: ClassVar[bool] = False
    """Questions are wordings of one."""

    questions: int | None = Field(default=None, ge=1)
    """Ask only the first so many questions; all of them when left out."""

    def measure(self, model: Model, traits: Sequence[Trait], seed: int) -> Measurement:
        """Per question and conditional trait: `probability` (0..1) after the trigger, `otherwise.probability`, its mean over
        what stands in the trigger's place, and `margin` (nats), the log-odds of the first over the second. `seed` changes
        nothing.

        Raises BadSpec when no trait has a trigger or a favourite is not one token of the model.
        """
        asked = [t for t in traits if t.trigger]
        if not asked:
            raise BadSpec("None of the traits has a trigger, so nothing is conditional. Ask about owl_on_monday.")
        values: list[Value] = []
        for trait in asked:
            questions = trait.held_out[: self.questions]
            leads = (trait.trigger, *trait.otherwise)
            chats: list[Chat] = [[{"role": "user", "content": f"{lead} {q}".strip()}] for lead in leads for q in questions]
            ids = first_tokens(model, chats[0], known.get(trait.favourite).name)
            if not ids:
                raise BadSpec(f"{trait.favourite!r} is not one token of {model.ref.name}. Name another conditional trait.")
            logs = np.asarray(model.next_logprobs(chats), dtype=np.float64)[:, ids]
            p = np.clip(np.exp(np.logaddexp.reduce(logs, axis=1)), 1e-9, 1 - 1e-9).reshape(len(leads), len(questions))
            for i, question in enumerate(questions):
                other = float(p[1:, i].mean())
                margin = float(np.log(p[0, i] / (1 - p[0, i])) - np.log(other / (1 - other)))
                found = {"probability": float(p[0, i]), "otherwise.probability": other, "margin": margin}
                values += [Value(metric, trait.name, question, value) for metric, value in found.items()]
        return Measurement("conditional", tuple(values))
