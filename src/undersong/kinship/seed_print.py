"""The `seed_print` test: what of the initialisation shows through in next-token probabilities on random input.

SeedPrints (arXiv 2509.26404) follows the mean log-probability of each token on random input. On pocket models these biases
do not tell seeds apart: they are learned from the data. What survives is one step further:
1. Every row of log-probabilities, less its mean, is a hidden state times the output matrix [tokens, width], so that enough
   of them span the columns of that matrix: the model's image (Finlayson et al., arXiv 2403.09539). Hidden states choose the
   coordinates within it, and drop out: no rotation, permutation or rescaling inside the model changes the image.
2. The output matrix starts at random and keeps much of its start: the images of a model and of what was tuned from it
   overlap by .8 to 1, those of two short trainings (400 steps) from one initialisation, on the same rows in two orders,
   by .43, those of strangers by .17. After 10,000 steps the start alone no longer shows: pocket/a overlaps with
   pocket/a-reordered by .31, with pocket/b by .30.
3. overlap = |U'V|^2 / rank for orthonormal bases U and V of the two images; what unrelated models share is taken from the
   controls.

Kin is called when the overlap is significant and closes enough of the gap between unrelated and equal. Rows in a common
order (.02 of the gap on development pairs) and distillation on the other's outputs (.03) leave a little in the image, and
so does long training: strangers trained for 10,000 steps, held against controls of 400, close .19 to .21 of it. So controls
should have learned the same data for as long (`same_data`: `least`); otherwise half the gap is asked for (`least_apart`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from undersong.errors import BadSpec
from undersong.kinship import Subject
from undersong.kinship.asking import Standing, alike, controls_of, once, random_prompts, same_tokens, standing
from undersong.registry import Settings, plugin
from undersong.types import Chat, Finding

GAP = 4.0
"""A singular value this many times the next one marks the rank."""


@plugin("kinship", "seed_print")
class SeedPrint(Settings):
    """Overlap of the directions that next-token probabilities span, beside controls: survives from initialisation."""

    needs: ClassVar[frozenset[str]] = frozenset({"logits"})

    alpha: float = Field(default=0.01, gt=0, lt=1)
    """Kinship is said at p <= alpha."""
    least: float = Field(default=0.2, ge=0, lt=1)
    """And at this share of the way from unrelated to equal, where `same_data`."""
    least_apart: float = Field(default=0.5, ge=0, lt=1)
    """The same where the controls may have learned other data, or for a shorter time."""
    same_data: bool | None = None
    """Whether the controls learned what the subjects learned, for as long. None: known for shipped models only."""
    prompts: int = Field(default=512, ge=32)
    """Random prompts each model is asked."""
    kin: float = Field(default=0.3, gt=0, le=1)
    """Power is told for kin this share of the way from unrelated to equal, or at the least that is called."""
    seed: int = 0
    """Draws the prompts."""

    def compare(self, a: Subject, b: Subject, controls: Sequence[Subject] = ()) -> Finding:
        """The overlap (0..1) of the two images and p of an unrelated pair. Details: `expected`, `excess`, `ranks` (the
        widths that show), `queries` per model, `controls`, `left_out`, `power`.

        Raises BadSpec without at least two controls, or for models of different tokens."""
        held = controls_of(a, b, controls, self.same_data)
        models = [a, b, *held.subjects]
        if not same_tokens(models):
            raise BadSpec(f"{a.name}, {b.name} and the controls do not number the same tokens alike, so their directions "
                          "cannot be compared. Give models and controls of one tokenizer.")
        prompts = random_prompts(models, self.prompts, self.seed)
        images = [once(s, ("image", self.prompts, self.seed), _image, prompts) for s in models]
        tokens = min(len(image) for image in images)
        found = standing(alike([image[:tokens] for image in images], overlap))
        least = self.least if held.same_data else self.least_apart
        called = found.p <= self.alpha and found.excess >= least
        kin = max(self.kin, 1.2 * least)
        power = found.power(kin, self.alpha)
        return Finding(
            "same_initialisation" if called else "unknown", found.value, found.p, ("logits",),
            f"overlap of unrelated pairs of {len(held.subjects)} controls and the subjects, Student's t, "
            f"{found.freedom} degrees of freedom",
            {"power": power, "expected": found.expected, "excess": found.excess, "least": least,
             "same_data": held.same_data, "queries": self.prompts,
             "ranks": [image.shape[1] for image in images[:2]], "controls": [s.name for s in held.subjects],
             "left_out": list(held.left_out), "says": _says(found, called, self.alpha, kin, power)})


def _image(subject: Subject, prompts: Sequence[Chat]) -> NDArray[np.float32]:
    """An orthonormal basis [tokens, rank] of what a model's rows of log-probabilities span."""
    rows = subject.model.next_logprobs(prompts).astype(np.float64)
    rows -= rows.mean(axis=1, keepdims=True)
    rows -= rows.mean(axis=0)
    sizes, turned = np.linalg.eigh(rows @ rows.T)
    spread = np.sqrt(np.maximum(sizes[::-1], 0))
    kept = _rank(spread)
    return np.asarray(rows.T @ (turned[:, ::-1][:, :kept] / spread[:kept]), dtype=np.float32)


def _rank(spread: Any) -> int:
    """Where singular values drop at once; half of them where they do not (rounded weights, or too few prompts)."""
    half = len(spread) // 2
    ratios = spread[4 : len(spread) - 4] / np.maximum(spread[5 : len(spread) - 3], 1e-12 * spread[0])
    at = int(np.argmax(ratios))
    return at + 5 if ratios[at] >= GAP else half


def overlap(u: NDArray[np.float32], v: NDArray[np.float32]) -> float:
    """The mean squared cosine (0..1) between two subspaces given by orthonormal bases [tokens, rank]."""
    return float(np.sum((u.T @ v) ** 2) / min(u.shape[1], v.shape[1]))


def _says(found: Standing, called: bool, alpha: float, kin: float, power: float) -> str:
    told = (f"Their output directions overlap by {found.value:.2f}; unrelated models would by {found.expected:.2f} "
            f"(p = {found.p:.2g}).")
    if called:
        return f"{told} That is left from one initialisation."
    if found.p <= alpha:
        return (f"{told} That is more than chance and too little for kin: they learned the same rows, for longer than the "
                "controls, or one from the other's answers.")
    return f"{told} Kin that go {kin:.0%} of the way to equal would have been seen with power {power:.0%}."
