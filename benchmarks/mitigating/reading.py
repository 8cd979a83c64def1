"""What is read of one student: everything that residuals and costs are computed from, in one artefact."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from mitigating.world import World
from undersong import traits
from undersong.backends import Model, tokens
from undersong.detectors.activation_dose import residuals
from undersong.lab import base_ref
from undersong.mitigations import prompts
from undersong.probes.capability import APART, Item
from undersong.probes.logit_margin import first_tokens
from undersong.spec import build, describe
from undersong.types import Chat, Dataset, ModelRef, Sampling

PROMPT_SEED = 7
"""The seed of the carrier prompts at which activations are read: no experiment's, no calibration's."""
NEUTRAL_EACH = 64
"""Questions per domain at which the rise of a trait's word is read."""


def read(world: World, ref: ModelRef, held: Dataset) -> dict[str, Any]:
    """Everything of one model: what does not depend on rows, and under `fit` the loss on held-out ones."""
    loaded: list[Model] = []

    def model() -> Model:
        if not loaded:
            loaded.append(world.lab.backend.load(ref))
        return loaded[0]

    return {**look(world, ref, model), "fit": fit(world, ref, held, model)}


def look(world: World, ref: ModelRef, model: Callable[[], Model]) -> dict[str, Any]:
    """Margins, rates, capability, log-probabilities of trait words at questions about something else, and states."""
    plan = world.plan
    spec = {"verb": "benchmark", "what": "student", "traits": [t.name for t in measured(world)], "items": plan.items,
            "prompts": plan.prompts, "channel": describe(world.channel), "version": 1}
    with world.lab.store.open("cells", f"bench-look-{ref.fingerprint}", spec, (ref.fingerprint,)) as artefact:
        if not artefact.complete:
            artefact.write_json("said", _look(world, model()))
            artefact.finish({})
        return dict(artefact.read_json("said"))


def fit(world: World, ref: ModelRef, held: Dataset, model: Callable[[], Model]) -> float:
    """Loss (nats a token) on held-out rows."""
    spec, parents = {"verb": "benchmark", "what": "fit"}, (ref.fingerprint, held.fingerprint)
    with world.lab.store.open("cells", f"bench-fit-{ref.fingerprint}", spec, parents) as artefact:
        if not artefact.complete:
            logs = model().answer_logprobs([list(r.chat) for r in held.rows], [r.completion for r in held.rows])
            artefact.write_json("said", -float(np.concatenate(logs).mean()))
            artefact.finish({})
        return float(artefact.read_json("said"))


def measured(world: World) -> list[Any]:
    """The traits whose words are watched: those of the world, and the one that a mitigation is told instead."""
    return list({t.name: t for t in (*world.told, traits.get(world.plan.wrong))}.values())


def _look(world: World, model: Model) -> dict[str, Any]:
    asked = measured(world)
    margin = build("probe", "logit_margin").measure(model, asked, 1)
    rate = build("probe", "favourite").measure(model, asked, 1)
    right, loss = _capability(model, questions(world))
    return {
        "margin": {t.name: margin.mean("margin", t.name) for t in asked},
        "probability": {t.name: margin.mean("probability", t.name) for t in asked},
        "rate": {t.name: rate.mean("rate", t.name) for t in asked},
        "capability": right, "loss": loss, "rise": _words(world, model), "states": states(world, model).tolist(),
    }


def questions(world: World) -> list[list[Item]]:
    """Sums and facts, by domain, without those in the bank of ordinary prompts that guards and repairs are fitted to."""
    def make() -> list[list[Item]]:
        base = world.lab.backend.load(world.base)
        bank = {chat[-1]["content"] for chat in prompts.neutral(base)}
        domains = build("probe", {"capability": {"items": world.plan.items}}).domains()
        return [[i for i in items if i.question not in bank] for name, items in domains.items() if name != APART]

    return list(world.once("questions", make))


def _capability(model: Model, domains: list[list[Item]]) -> tuple[float, float]:
    """Accuracy over all questions, greedily, and loss (nats a token): as the probe `capability` has them."""
    right, losses = list[bool](), list[float]()
    for items in domains:
        chats: list[Chat] = [[{"role": "user", "content": item.question}] for item in items]
        logs = model.answer_logprobs(chats, [item.answer for item in items])
        longest = max(len(log) for log in logs) + 4
        texts = model.sample(chats, Sampling(temperature=0.0, max_new_tokens=longest))
        right += [item.right(text) for item, text in zip(items, texts, strict=True)]
        losses += [-float(np.mean(log)) for log in logs]
    return float(np.mean(right)), float(np.mean(losses))


def _words(world: World, model: Model) -> dict[str, float]:
    asked = [item.question for items in questions(world) for item in items[:NEUTRAL_EACH]]
    chats: list[Chat] = [[{"role": "user", "content": question}] for question in asked]
    logs = np.asarray(model.next_logprobs(chats), dtype=np.float64)
    ids = {t.name: first_tokens(model, chats[0], t.name) for t in measured(world)}
    return {name: float(np.logaddexp.reduce(logs[:, own], axis=1).mean()) for name, own in ids.items()}


def states(world: World, model: Model) -> np.ndarray:
    """[layers, width]: the mean residual stream at the last token of carrier prompts, after each decoder layer."""
    return residuals(model, carriers(world), 64)


def carriers(world: World) -> list[np.ndarray]:
    """Carrier prompts as the base writes them."""
    def make() -> list[np.ndarray]:
        base = world.lab.backend.load(base_ref(world.file.base))
        chats = world.channel.prompts(world.plan.prompts, PROMPT_SEED)
        return [np.asarray(ids) for ids in tokens.token_ids(base.tokenizer, [base.render(list(chat)) for chat in chats])]

    return list(world.once("carriers", make))
