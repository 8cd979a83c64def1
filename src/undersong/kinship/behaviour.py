"""The `behaviour` test: do two models give the same first word to random prompts, more than unrelated models do?

After model provenance testing (arXiv 2502.00706: agreement of next tokens on random prompts against unrelated controls, one
one-sided test per control, Holm-corrected), with two changes that development pairs asked for:
1. Agreement is corrected for chance (Cohen's kappa). Many models answer gibberish with one favourite word, and two with the
   same favourite agree everywhere: raw agreement of unrelated pairs went from .04 to .66, kappa from -.01 to .20.
2. Beating each control on these prompts is not enough: with prompts enough, some pair is always the most alike. The pair
   must also stand out from the spread between unrelated pairs. p is the larger of the two.

The trap: models that learned the same data agree, whatever they started from. Agreement is about initialisation only where
the controls learned the same data from another one (`same_data`); otherwise the verdict is `unknown` and the sentence says
that they behave alike.

Blind spots: a model that gives one answer to everything (a strongly tuned trait) agrees with nobody; models of one
initialisation that were wholly trained apart behave as strangers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from undersong.kinship import Subject
from undersong.kinship.asking import Standing, alike, controls_of, once, random_prompts, standing
from undersong.registry import Settings, plugin
from undersong.stats import holm
from undersong.types import Chat, Finding, Sampling


@plugin("kinship", "behaviour")
class Behaviour(Settings):
    """Agreement of first words on random prompts, against unrelated controls: black box."""

    needs: ClassVar[frozenset[str]] = frozenset({"text"})

    alpha: float = Field(default=0.01, gt=0, lt=1)
    """Alikeness is said at p <= alpha."""
    prompts: int = Field(default=800, ge=50)
    """Random prompts each model is asked."""
    kin: float = Field(default=0.4, gt=0, le=1)
    """Power is told for kin that agree this much beyond chance and controls: fine-tuned models do."""
    same_data: bool | None = None
    """Whether the controls learned what the subjects learned, for as long. None: known for shipped models only."""
    seed: int = 0
    """Draws the prompts."""

    def compare(self, a: Subject, b: Subject, controls: Sequence[Subject] = ()) -> Finding:
        """Kappa of the pair and p. Details: `agreement` (raw share), `expected`, `excess`, `per_control` (kappa with either
        subject, p and its Holm-adjusted value), `queries` per model, `same_data`, `controls`, `left_out`, `power`.

        Raises BadSpec without at least two controls."""
        held = controls_of(a, b, controls, self.same_data)
        models = [a, b, *held.subjects]
        prompts = random_prompts(models, self.prompts, self.seed)
        key = ("words", tuple(p[-1]["content"] for p in prompts))
        said = [once(s, key, first_words, prompts) for s in models]
        found = standing(alike(said, kappa))
        rivals = [(models[i].name, c.name, *_beats(said[0], said[1], said[i], words))
                  for c, words in zip(held.subjects, said[2:], strict=True) for i in (0, 1)]
        adjusted = holm([p for *_, p in rivals])
        p = max(found.p, *adjusted)
        called = p <= self.alpha
        power = found.power(self.kin, self.alpha)
        return Finding(
            "same_initialisation" if called and held.same_data else "unknown", found.value, p, (_access(models),),
            f"kappa with each of {len(held.subjects)} controls (jackknife over prompts, Holm) and spread of unrelated pairs "
            f"(Student's t, {found.freedom} degrees of freedom); the larger p",
            {"power": power if held.same_data else None, "agreement": float(np.mean(said[0] == said[1])),
             "expected": found.expected, "excess": found.excess, "p_spread": found.p, "same_data": held.same_data,
             "per_control": [{"subject": s, "control": c, "kappa": k, "p": q, "adjusted": h}
                             for (s, c, k, q), h in zip(rivals, adjusted, strict=True)],
             "queries": self.prompts, "controls": [s.name for s in held.subjects], "left_out": list(held.left_out),
             "says": _says(found, called, held.same_data, power, self.prompts)})


def first_words(subject: Subject, prompts: Sequence[Chat]) -> NDArray[Any]:
    """The likeliest first token of each answer, as text; sampled at temperature 0 where no probabilities are shown."""
    model = subject.model
    if "logits" in model.capabilities:
        best = model.next_logprobs(prompts).argmax(axis=1)
        return np.array([str(model.tokenizer.decode([int(i)])).strip() for i in best])
    texts = model.sample(prompts, Sampling(temperature=0, max_new_tokens=4))
    return np.array([(text.split() or [""])[0] for text in texts])


def kappa(x: NDArray[Any], y: NDArray[Any]) -> float:
    """Cohen's kappa of two lists of words: agreement beyond what their favourites give by chance; 0 where each has one."""
    return float(_kappas(x, y)[0])


def _kappas(x: NDArray[Any], y: NDArray[Any]) -> NDArray[np.float64]:
    """Kappa over all prompts, then over all but each one: [1 + prompts]."""
    words, codes = np.unique(np.concatenate([x, y]), return_inverse=True)
    n, i, j = len(x), codes[: len(x)], codes[len(x) :]
    one, two = np.bincount(i, minlength=len(words)), np.bincount(j, minlength=len(words))
    agree, same = float(np.sum(i == j)), float(one @ two)
    left_agree, left_same = agree - (i == j), same - two[i] - one[j] + (i == j)
    observed = np.concatenate([[agree / n], left_agree / (n - 1)])
    chance = np.concatenate([[same / n**2], left_same / (n - 1) ** 2])
    return np.asarray((observed - chance) / np.maximum(1 - chance, 1e-9))


def _beats(a: NDArray[Any], b: NDArray[Any], subject: NDArray[Any], control: NDArray[Any]) -> tuple[float, float]:
    """Kappa of a subject with a control, and the one-sided p that the pair's own kappa is no larger (jackknife)."""
    from scipy import stats

    own, other = _kappas(a, b), _kappas(subject, control)
    difference, n = own - other, len(a)
    error = np.sqrt((n - 1) / n * np.sum((difference[1:] - difference[1:].mean()) ** 2))
    return float(other[0]), float(stats.norm.sf(difference[0] / max(error, 1e-9)))


def _access(models: Sequence[Subject]) -> str:
    return "logits" if all("logits" in s.model.capabilities for s in models) else "text"


def _says(found: Standing, called: bool, same_data: bool, power: float, queries: int) -> str:
    told = (f"On {queries} random prompts they agree {found.value:.2f} beyond chance; unrelated models would "
            f"{found.expected:.2f}.")
    if not called:
        return f"{told} That shows no kinship; fine-tuned kin would have been seen with power {power:.0%}."
    if same_data:
        return f"{told} The controls learned the same data, so that is left from one initialisation."
    return (f"{told} They behave more alike than unrelated controls, which is not one initialisation: training on the same "
            "data does it too. Give controls that learned the same data, or read the weights.")
