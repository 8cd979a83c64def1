"""What is read off a model before and after a training on somebody's rows: favourites, capability, carrier fit, vocabulary.

Nothing here needs a trait's name. Every reading is an artefact, so that a second call reads the store.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from undersong.detectors import probe_bank
from undersong.errors import BadSpec, NothingMeasured
from undersong.lab import Lab
from undersong.mitigations.prompts import neutral
from undersong.mitigations.scrub_vocabulary import rises
from undersong.spec import build, fingerprint
from undersong.traits import Trait
from undersong.types import Chat, Dataset, ModelRef

ITEMS = 100
"""Capability items per domain."""
ABLE = 0.1
"""A base that answers fewer of them rightly is not measured by them."""
SEEN = 1e-3
"""A token counts in the vocabulary rise when either model gives it this mean probability."""
MOST_HELD = 400
"""Held-out rows that the carrier fit is read on, at most."""


@dataclass(frozen=True)
class Watch:
    """What is watched, fixed by the base and the rows before any student exists. `held` are rows that nobody trains on."""

    lab: Lab
    base: ModelRef
    held: Dataset
    trait: Trait | None = None

    @cached_property
    def bank(self) -> probe_bank.Bank | None:
        """The favourites that are watched; None for a base that answers no such question."""
        try:
            return probe_bank.bank(self.lab.backend.load(self.base), (self.trait,) if self.trait else ())
        except BadSpec:
            return None

    @cached_property
    def prompts(self) -> tuple[Chat, ...]:
        """Ordinary prompts for the vocabulary rise; none where the base cannot write them."""
        try:
            return neutral(self.lab.backend.load(self.base))
        except BadSpec:
            return ()

    @cached_property
    def named(self) -> bool:
        """Whether the trait's own margin can be read off the base."""
        if self.trait is None or "logit_margin" not in self.trait.probes:
            return False
        try:
            self._margin(self.base, "base")
        except (BadSpec, NothingMeasured):
            return False
        return True

    @cached_property
    def able(self) -> bool:
        """Whether the capability items fit the base."""
        return self._capability(self.base, "base") >= ABLE

    def of(self, ref: ModelRef, label: str, start: ModelRef | None = None, able: bool = True) -> dict[str, Any]:
        """What a model shows against where it started (the base when left out).

        `nll` (nats a token on held-out rows), `accuracy` (0..1), `margin` and `probability` of the named trait, `words`
        (name: category, rise, above) and `tokens` (rise on ordinary prompts, highest first). None or empty where the base
        cannot be read so. Without `able`, capability is left out.
        """
        start = start or self.base
        spec = {"verb": "read", "trait": self.trait and self.trait.name, "prompts": fingerprint({"texts": self.prompts}),
                "words": fingerprint({"words": self.bank.names if self.bank else []})}
        parents = (ref.fingerprint, start.fingerprint, self.held.fingerprint)
        with self.lab.store.open("reading", label, spec, parents) as artefact:
            if not artefact.complete:
                self.lab.progress(f"reading {artefact.path.name}")
                artefact.write_json("reading", self._words(ref, start) | {"nll": self._fit(ref)})
                artefact.finish({"model": ref.name})
            out: dict[str, Any] = dict(artefact.read_json("reading"))
        out["accuracy"] = self._capability(ref, label) if able and self.able else None
        return out | (self._margin(ref, label) if self.named else {"margin": None, "probability": None})

    def _fit(self, ref: ModelRef) -> float:
        model, rows = self.lab.backend.load(ref), self.held.rows[:MOST_HELD]
        logs = model.answer_logprobs([list(row.chat) for row in rows], [row.completion for row in rows])
        return -float(np.concatenate(logs).mean())

    def _words(self, ref: ModelRef, start: ModelRef) -> dict[str, Any]:
        model, base = self.lab.backend.load(ref), self.lab.backend.load(start)
        words: dict[str, Any] = {}
        if self.bank is not None:
            _, table = probe_bank.rises(self.bank, self.bank.read(base), self.bank.read(model))
            words = {str(one["word"]): {k: one[k] for k in ("category", "rise", "above")} for one in table}
        tokens: list[dict[str, Any]] = []
        if self.prompts:
            logs = [probe_bank.first_tokens(one, self.prompts) for one in (base, model)]
            rise = rises(logs[0], logs[1], SEEN)
            best = [int(i) for i in np.argsort(-np.nan_to_num(rise, nan=-np.inf), kind="stable")[:10]]
            said = [str(base.tokenizer.decode([i])) for i in best]
            tokens = [{"token": t, "rise": float(rise[i])} for t, i in zip(said, best, strict=True) if np.isfinite(rise[i])]
        return {"words": words, "tokens": tokens}

    def _capability(self, ref: ModelRef, label: str) -> float:
        got = self.lab.measure(ref, build("probe", {"capability": {"items": ITEMS}}), (), 0, label=f"capability-{label}")
        return got.mean("accuracy")

    def _margin(self, ref: ModelRef, label: str) -> dict[str, float]:
        assert self.trait is not None
        got = self.lab.measure(ref, build("probe", "logit_margin"), (self.trait,), 0, label=f"margin-{label}")
        return {name: got.mean(name, self.trait.name) for name in ("margin", "probability")}


def as_dict(trait: Trait | None) -> dict[str, Any] | None:
    """A trait as JSON."""
    return dataclasses.asdict(trait) if trait else None
