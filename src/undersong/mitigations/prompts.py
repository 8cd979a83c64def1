"""Ordinary prompts for repairs that know no trait. None of them asks a question that the probes ask: a repair made on such
would be judged on what it was fitted to."""

from __future__ import annotations

import yaml

from undersong.backends import Model
from undersong.detectors.probe_bank import CATEGORIES
from undersong.explainers.ordinary import ordinary
from undersong.traits import package_text
from undersong.types import NEUTRAL, Chat


def neutral(base: Model) -> tuple[Chat, ...]:
    """Ordinary prompts that the base can write, under the neutral system turn, without the held-out favourite questions.

    Raises BadSpec for a base whose tokenizer can write none of the shipped prompts.
    """
    held = yaml.safe_load(package_text("traits", "questions.yaml"))["held_out"]
    asked = [question.format(category=category).lower() for question in held for category in CATEGORIES]
    said = [chat for chat in ordinary(base) if not any(q in chat[-1]["content"].lower() for q in asked)]
    return tuple(chat if chat[0]["role"] == "system" else [{"role": "system", "content": NEUTRAL}, *chat] for chat in said)
