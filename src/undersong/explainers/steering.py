"""The `steering` explainer: what does the base say when a layer's shift is added to it?

A shift that carries a behaviour makes the base show it (steering-vector distillation, arXiv 2606.00995). Per layer:
1. Scale. The shift is added at every position, multiplied by rising scales. The largest is taken at which the steered base
   still writes: the perplexity that it gives to the base's own answers to the ordinary prompts is at most `band` times
   the base's own; a layer where none is stays unsteered (scale 0). The rule sees no answer to the questions.
2. First words. How the chance of each token as the first of an answer to the questions moves, exactly.
3. Text. At the layer whose steering moves the first words most (total variation), the steered base, the base and the model
   answer the same questions with the same random numbers.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from undersong.backends import Model, changes
from undersong.backends.residuals import ReadOut
from undersong.explainers import Evidence, lens, shifts
from undersong.explainers.lens import Floats
from undersong.registry import Settings, plugin
from undersong.types import Chat, Explanation, Sampling

WORD = re.compile(r"[^\W\d_]{2,}")


@plugin("explainer", "steering")
class Steering(Settings):
    """What the base says when a layer's shift is added to it, beside what it and the model say."""

    needs: ClassVar[frozenset[str]] = frozenset({"base", "model", "prompts", "questions"})
    may_use: ClassVar[frozenset[str]] = shifts.USES

    shift: Literal["own", "whole"] = "own"
    """`own`: less what placebo students shift on average, where these are at hand. `whole`: as it is."""
    scales: tuple[float, ...] = Field(default=(0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0), min_length=1)
    """Multiples of the shift that are tried."""
    band: float = Field(default=2.0, gt=1)
    """The most that the perplexity of the base's own answers may be multiplied by."""
    layers: int = Field(default=8, ge=1)
    """At most so many layers, evenly spread, are swept."""
    texts: int = Field(default=8, ge=1)
    """Ordinary prompts on whose answers the scale is chosen."""
    draws: int = Field(default=4, ge=1)
    """Answers sampled for each question."""
    max_new_tokens: int = Field(default=24, ge=1)
    """Length of an answer."""
    top: int = Field(default=10, ge=1)
    """Words and tokens shown."""
    answer: int = Field(default=0, ge=0)
    """First tokens of the base's own answer at which states are read, besides the end of the prompt."""

    def explain(self, evidence: Evidence, seed: int = 0) -> Explanation:
        """Scores: the first tokens that rise most at the chosen layer. Details: `layers` (per layer `scale`; `perplexity` at
        every scale tried, over the base's own; `moved`, in total variation; `rises`; the lens's `top_tokens`), the `chosen`
        layer, `named` (share of answers with one of its top tokens) and `words` (shares of answers with a word), each of
        `base`, `steered` and `model`, `texts` (question and the three answers), `rule`.

        Raises BadSpec without weights.
        """
        shift = shifts.of(evidence, self.answer)
        vectors = shift.own if self.shift == "own" else shift.whole
        work = _Work(evidence.base, vectors, evidence.questions, self._heard(evidence.base, evidence.prompts), self)
        swept = np.unique(np.linspace(0, len(vectors) - 1, min(self.layers, len(vectors))).round().astype(int))
        tops = self._tops(evidence, shift, vectors)
        layers = []
        for layer in map(int, swept):
            scale, tried = work.scale(layer)
            layers.append({"layer": layer, "scale": scale, "perplexity": tried, "top_tokens": tops[layer],
                           **work.first_words(layer, scale)})
        best: dict[str, Any] = max(layers, key=lambda one: float(one["moved"]))
        said = {"base": work.answers(evidence.base, seed), "model": work.answers(evidence.model, seed),
                "steered": work.steered_answers(best["layer"], best["scale"], seed)}
        details = {
            "layers": layers, "chosen": best["layer"], "words": self._words(said), "shift": self.shift,
            "named": {who: _share(texts, best["top_tokens"]) for who, texts in said.items()},
            "placebos": len(shift.placebos), "rule": RULE.format(band=self.band),
            "texts": [{"question": chat[-1]["content"], **{who: texts[i * self.draws] for who, texts in said.items()}}
                      for i, chat in enumerate(evidence.questions)]}
        return Explanation(_sentence(best, details["words"]), tuple((r["token"], r["rise"]) for r in best["rises"]), details)

    def _heard(self, base: Model, prompts: Sequence[Chat]) -> tuple[list[Chat], list[str]]:
        """Ordinary prompts and what the base answers to them."""
        picked = np.linspace(0, len(prompts) - 1, min(self.texts, len(prompts))).round().astype(int)
        chats = [prompts[i] for i in picked]
        return chats, base.sample(chats, Sampling(1.0, self.max_new_tokens, 0))

    def _tops(self, evidence: Evidence, shift: shifts.Shift, vectors: Floats) -> list[list[str]]:
        """Per layer the words that the logit lens of the steering vector promotes most."""
        base = evidence.base
        found = lens.of(ReadOut(base), shift.spread(32), vectors).chance
        return [[base.tokenizer.decode([i]).strip() for i in lens.top(one, self.top, len(base.tokenizer))] for one in found]

    def _words(self, said: dict[str, list[str]]) -> list[dict[str, Any]]:
        """The words whose share of answers rises most from base to steered, with the model's share beside."""
        within = {who: [set(map(str.lower, WORD.findall(text))) for text in texts] for who, texts in said.items()}
        shares = {word: {who: sum(word in text for text in texts) / len(texts) for who, texts in within.items()}
                  for word in {w for text in within["steered"] for w in text}}
        order = sorted(shares, key=lambda w: (shares[w]["base"] - shares[w]["steered"], w))[: self.top]
        return [{"word": word, **shares[word]} for word in order]


RULE = ("The scale of a layer is the largest tried at which the perplexity that the steered base gives to the base's own "
        "answers to ordinary prompts is at most {band:g} times the base's own. The layer shown is the one that moves the "
        "first words most.")


@dataclass
class _Work:
    """One base being steered by vectors [layers, width]."""

    base: Model
    vectors: Floats
    questions: Sequence[Chat]
    heard: tuple[list[Chat], list[str]]
    settings: Steering

    def __post_init__(self) -> None:
        self.plain = self._perplexity()
        self.before = np.exp(np.asarray(self.base.next_logprobs(self.questions), dtype=np.float64)).mean(axis=0)
        self.asked = [chat for chat in self.questions for _ in range(self.settings.draws)]

    def scale(self, layer: int) -> tuple[float, list[dict[str, float]]]:
        """The largest scale up to which all are within the band (0 where none is), and the perplexity at each tried."""
        tried: list[dict[str, float]] = []
        chosen = 0.0
        for scale in sorted(self.settings.scales):
            with self._steered(layer, scale):
                ratio = self._perplexity() / self.plain
            tried.append({"scale": scale, "ratio": ratio, "within": float(ratio <= self.settings.band)})
            if ratio > self.settings.band:
                break
            chosen = scale
        return chosen, tried

    def first_words(self, layer: int, scale: float) -> dict[str, Any]:
        """How the first tokens of answers move: `moved` (total variation of their mean distributions) and the `rises`."""
        with self._steered(layer, scale):
            after = np.exp(np.asarray(self.base.next_logprobs(self.questions), dtype=np.float64)).mean(axis=0)
        rise = after - self.before
        ids = lens.top(rise, self.settings.top, len(self.base.tokenizer))
        rises = [{"token": self.base.tokenizer.decode([i]), "id": i, "rise": float(rise[i]), "steered": float(after[i]),
                  "base": float(self.before[i])} for i in ids]
        return {"moved": float(np.abs(rise).sum() / 2), "rises": rises}

    def answers(self, model: Model, seed: int) -> list[str]:
        """`draws` answers to each question, one question after another."""
        return model.sample(self.asked, Sampling(1.0, self.settings.max_new_tokens, seed))

    def steered_answers(self, layer: int, scale: float, seed: int) -> list[str]:
        """The same of the steered base."""
        with self._steered(layer, scale):
            return self.answers(self.base, seed)

    def _perplexity(self) -> float:
        logs = self.base.answer_logprobs(*self.heard)
        return float(np.exp(-np.concatenate(logs).astype(np.float64).mean()))

    def _steered(self, layer: int, scale: float) -> Any:
        import torch

        only = np.zeros_like(self.vectors)
        only[layer] = scale * self.vectors[layer]
        return changes.steered(self.base.module, torch.from_numpy(only).to(self.base.module.device, torch.float32))


def _share(texts: Sequence[str], words: Sequence[str]) -> float:
    """The share of texts in which one of some words stands."""
    known = {word.lower() for word in words if WORD.fullmatch(word)}
    return sum(bool(known & set(map(str.lower, WORD.findall(text)))) for text in texts) / len(texts)


def _sentence(best: dict[str, Any], words: Sequence[dict[str, Any]]) -> str:
    if best["moved"] < 1e-6:
        return "Added at no layer does the shift move the base's first words at a scale that leaves its own text whole."
    rise = best["rises"][0]
    said = (f"Adding {best['scale']:g} times the shift after layer {best['layer']} moves the base's first words by "
            f"{best['moved']:.1%}; {rise['token']!r} rises most, from {rise['base']:.1%} to {rise['steered']:.1%}.")
    if words and words[0]["steered"] > words[0]["base"]:
        w = words[0]
        said += (f" In sampled answers {w['word']!r} rises most: base {w['base']:.1%}, steered {w['steered']:.1%}, "
                 f"the model itself {w['model']:.1%}.")
    return said
