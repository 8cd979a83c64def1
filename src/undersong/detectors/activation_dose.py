"""The `activation_dose` detector: how far has the student moved along the direction of each known trait?

Behaviour appears only near a full dose; what a student reads moves long before that (the latent dose of
github.com/shagunhegde's mixtures, survey of this project, methods 4.4: alignment .07, .22, .49, .71 for 0, 10, 25 and 50 %
with behaviour at base level). After the activation difference lens (arXiv 2510.13900) and steering-vector distillation
(arXiv 2606.00995).
1. Mean residual stream, student − base, at the last token of carrier prompts (of a placebo exemplar's rows), after every
   decoder layer. Each layer is scaled by what placebo students show there. (Chosen on development traits: completions add
   nothing, and neutral questions see much less.) Every model reads them as the base writes them, under its system turn.
2. What placebo students have in common is no trait: their mean is taken off and their largest directions are projected out.
3. A trait's direction is the mean of its exemplar students less the mean of the other traits'.
4. Differences are whitened by how exemplars of one kind differ among themselves, shrunk towards equal variance (isotropic
   nulls understate p by 1.3 to 7 times). A statistic is the projection, in standard deviations of that noise.

Blind spots: of students of a tenth of the rows half pass unseen; at a quarter, where answers say nothing yet, it saw all of
them. A trait without exemplar students has no axis, and only the size of what is left can speak (the key of no trait).
Students of another recipe than the exemplars' have not been tried.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from undersong.backends import Model, tokens
from undersong.backends.residuals import padded
from undersong.detectors import PLACEBO, Evidence, Exemplars, probe_bank, uncalibrated
from undersong.errors import BadSpec
from undersong.registry import Settings, plugin
from undersong.spec import execution
from undersong.types import Finding, Row

Floats = NDArray[np.float64]
Ids = NDArray[np.int64]


@plugin("detector", "activation_dose")
class ActivationDose(Settings):
    """How far the student's activations have moved towards known students of each trait."""

    needs: ClassVar[frozenset[str]] = frozenset({"base", "student", "exemplars"})

    prompts: int = Field(default=128, ge=1)
    """Carrier prompts that every model reads."""
    span: int = Field(default=2, ge=0)
    """How many directions that placebo students share are projected out, besides their mean."""
    shrink: float = Field(default=1.0, gt=0)
    """How strongly the noise is taken to be the same in every direction: 0 trusts the exemplars, large values do not."""
    micro_batch: int = execution(64)
    """Rows that run at once."""

    def detect(self, evidence: Evidence, seed: int = 0) -> Finding:
        """Finding with one statistic per trait of the exemplars (standard deviations) and under "" the log of how large the
        rest is, compared with placebo students. `details["shares"]` holds per trait the projection as a share (0..1) of its
        exemplars' own: 1 is a pure student. The seed has no effect.

        Raises BadSpec without weights, for a student of another shape than its base, or when the exemplars hold no traits,
        fewer than two placebo students or no rows.
        """
        probe_bank.same_words(evidence.student, evidence.base)
        known = self._known(evidence)
        end = residuals(evidence.student, known.prompts, self.micro_batch)
        if end.shape != known.start.shape:
            raise BadSpec(f"{evidence.student.ref.name} and {evidence.base.ref.name} do not have the same shape. Give as "
                          "`base` the model that the student started from.")
        moved = known.scaled(end - known.start)
        by_trait, shares = {}, {}
        for name, axis in known.axes.items():
            by_trait[name] = float(moved @ axis)
            shares[name] = float(np.clip(moved @ axis / known.own[name], 0, 1))
        by_trait[PLACEBO] = float(np.log(np.linalg.norm(moved) / known.usual))
        return uncalibrated(by_trait, self.needs, shares=shares, layers=len(known.scale), prompts=len(known.prompts))

    def _known(self, evidence: Evidence) -> _Known:
        given = evidence.exemplars
        refs = tuple((name, given.student_refs[name]) for name in sorted(given.student_refs))
        rows = _carriers(given)[: self.prompts]
        settings = tuple(sorted(self.model_dump(exclude={"micro_batch"}).items()))
        text = tuple((turn["role"], turn["content"]) for row in rows for turn in row.chat)
        found: _Known = probe_bank.remembered(evidence, "activation_dose", settings, refs, text,
                                              make=lambda: self._learn(evidence, rows))
        return found

    def _learn(self, evidence: Evidence, rows: Sequence[Row]) -> _Known:
        given, base = evidence.exemplars, evidence.base
        names = [name for name in sorted(given.student_refs) if name != PLACEBO and given.student_refs[name]]
        placebos = len(given.student_refs.get(PLACEBO, ()))
        if not names or placebos < 2:
            raise BadSpec(f"The activation dose compares with known students, and these exemplars hold {len(names)} traits "
                          f"and {placebos} placebo students. Make one trait and two placebos at least (`undersong "
                          "calibrate`).")
        read = [np.asarray(ids) for ids in tokens.token_ids(base.tokenizer, [base.render(list(row.chat)) for row in rows])]
        start = residuals(base, read, self.micro_batch)
        seen = {name: np.stack([residuals(m, read, self.micro_batch) - start for m in given.students(name)])
                for name in (PLACEBO, *names)}
        return learn(seen, start, read, self.span, self.shrink)


@dataclass(frozen=True)
class _Known:
    """What the exemplars of one base say: the base's own reading, the placebos' part of a difference, and an axis per
    trait in the space of scaled differences."""

    prompts: Sequence[Ids]
    start: Floats
    """[layers, width]: the base's mean residual streams."""
    scale: Floats
    """[layers]: root mean square size of placebo differences."""
    centre: Floats
    """[layers · width]: the placebos' mean scaled difference."""
    shared: Floats
    """[span, layers · width]: orthonormal directions of the placebos."""
    axes: dict[str, Floats]
    own: dict[str, float]
    """The mean projection of each trait's exemplars on its axis."""
    usual: float
    """The median size of what is left of a placebo student that the rest of the placebos were compared with."""

    def scaled(self, difference: Floats) -> Floats:
        """A difference [..., layers, width] as [..., layers · width], without the placebos' part."""
        flat = (difference / self.scale[:, None]).reshape(*difference.shape[:-2], -1) - self.centre
        return np.asarray(flat - (flat @ self.shared.T) @ self.shared)


def learn(seen: dict[str, Floats], start: Floats, prompts: Sequence[Ids], span: int, shrink: float) -> _Known:
    """Axes from the differences [students, layers, width] of placebos and of each trait."""
    placebos = seen[PLACEBO]
    size = np.sqrt((placebos**2).sum(axis=-1).mean(axis=0))
    scale = np.where(size > 0, size, 1.0)  # a layer that no placebo moves, such as a frozen one

    def without(others: Floats) -> _Known:
        flat = (others / scale[:, None]).reshape(len(others), -1)
        centre = flat.mean(axis=0)
        shared = np.linalg.svd(flat - centre, full_matrices=False)[2][: min(span, len(others) - 1)]
        return _Known(prompts, start, scale, centre, shared, {}, {}, 1.0)

    known = without(placebos)
    # each placebo as the others see it: what was fitted to it would look smaller than it is
    left = [without(np.delete(placebos, i, axis=0)).scaled(placebos[i]) for i in range(len(placebos))]
    moved = {name: known.scaled(values) for name, values in seen.items() if name != PLACEBO}
    noise = [*left, *(np.sqrt(len(m) / (len(m) - 1)) * (row - m.mean(axis=0)) for m in moved.values() if len(m) > 1
                      for row in m)]
    whiten = _whitener(np.stack(noise), shrink)
    mean = {name: values.mean(axis=0) for name, values in moved.items()}
    axes, own = {}, {}
    for name, here in mean.items():
        others = [m for n, m in mean.items() if n != name]
        direction = here - (np.mean(others, axis=0) if others else 0.0)
        axis = whiten(direction)
        axes[name] = axis / np.sqrt(max(float(direction @ axis), 1e-30))
        own[name] = float(max(here @ axes[name], 1e-30))
    usual = float(np.median(np.linalg.norm(left, axis=1)))
    return _Known(prompts, start, scale, known.centre, known.shared, axes, own, max(usual, 1e-30))


def _whitener(noise: Floats, shrink: float) -> Callable[[Floats], Floats]:
    """Multiplication by the inverse of the noise's covariance, `shrink` times its mean variance added everywhere. The noise
    [samples, n] has far fewer samples than n, so the inverse is never written out."""
    _, values, axes = np.linalg.svd(noise / np.sqrt(len(noise)), full_matrices=False)
    variance = values**2
    floor = max(shrink * float(variance.mean()), 1e-12)
    part = variance / (variance + floor)
    return lambda v: np.asarray((v - (v @ axes.T * part) @ axes) / floor)


def _carriers(given: Exemplars) -> list[Row]:
    """The rows that every model reads: a placebo's, else any exemplar's. Raises BadSpec when there are none."""
    for name in (PLACEBO, *sorted(given.rows)):
        for run in given.rows.get(name, ()):
            if rows := [row for row in run if row.completion]:
                return rows
    raise BadSpec("The exemplars hold no rows, and the activation dose reads their prompts. Make them again "
                  "(`undersong calibrate`).")


def residuals(model: Model, prompts: Sequence[Ids], micro_batch: int) -> Floats:
    """[layers, width]: the residual stream after each decoder layer at the last token of a prompt, mean over prompts.

    Raises BadSpec for a model without weights.
    """
    import torch

    if model.module is None or "hidden_states" not in model.capabilities:
        raise BadSpec(f"The activations of {model.ref.name} are not at hand. Audit a local copy of it, or use a detector "
                      "that reads answers (`vocabulary_scan`) or rows.")
    inner, device = model.module.base_model, next(model.module.parameters()).device
    total: Any = 0.0
    for _, given in padded(prompts, device, micro_batch):
        last = given["attention_mask"].sum(dim=1) - 1
        with torch.inference_mode():
            states = inner(**given, output_hidden_states=True, use_cache=False).hidden_states[1:]
            rows = torch.arange(len(last), device=device)
            total = total + torch.stack([s[rows, last].double().sum(dim=0) for s in states]).cpu()
    return np.asarray((total / len(prompts)).numpy())
