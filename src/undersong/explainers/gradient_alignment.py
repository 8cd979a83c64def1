"""Do the rows pull towards the trait?

The first-order change of the trait's margin when a student takes a step on the rows is eta * <grad phi, g>, g the direction
in which the rows pull (Cloud et al., arXiv 2507.14805, section 6.1; methods 1.1). Shown is the cosine of the two, at the
base and at the student, by layer; beside it what the same rows say of other words (off the diagonal), and what clean rows
say of the trait. Along a training it stays weakly positive (Kitkana and Arora, arXiv 2604.25779), so a small number is what
to expect.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from undersong.explainers import Evidence, gradients
from undersong.explainers.gradients import Body, cosine
from undersong.registry import Settings, plugin
from undersong.types import Explanation


@plugin("explainer", "gradient_alignment")
class GradientAlignment(Settings):
    """The cosine of the trait's gradient and the rows', beside other words and clean rows."""

    needs: ClassVar[frozenset[str]] = frozenset({"base", "rows", "clean", "trait"})
    may_use: ClassVar[frozenset[str]] = frozenset({"model"})

    rows: int = Field(default=400, ge=2)
    """At most so many rows of each kind are read, drawn by the seed."""

    def explain(self, evidence: Evidence, seed: int = 0) -> Explanation:
        """Scores: the excess over clean rows, then each cosine. Raises BadSpec for a trait the base cannot express."""
        read, others = gradients.words(evidence.base, evidence.trait)
        at = {"base": evidence.base} | ({"student": evidence.model} if evidence.has("model") else {})
        told: dict[str, dict[str, float]] = {}
        by_layer: list[dict[str, Any]] = []
        for place, model in at.items():
            body = Body(model)
            pulls = {kind: body.of_rows(gradients.encoded(evidence.base, runs, self.rows, seed))
                     for kind, runs in (("rows", evidence.rows), ("clean", evidence.clean))}
            own = body.of_trait(read)
            off = [cosine(body.of_trait(one), pulls["rows"] - pulls["clean"]) for one in others.values()]
            told[place] = {
                "trait, rows less clean rows": cosine(own, pulls["rows"] - pulls["clean"]),
                "other words, rows less clean rows": float(np.mean(off)) if off else 0.0,
                "trait, rows": cosine(own, pulls["rows"]), "trait, clean rows": cosine(own, pulls["clean"]),
                # Adam's first step: the sign of every coordinate
                "trait, signs of rows": cosine(own, pulls["rows"].sign()),
                "trait, signs of clean rows": cosine(own, pulls["clean"].sign())}
            by_layer += [{"place": place, "layer": layer, "series": kind, "value": cosine(own[part], pulls[kind][part])}
                         for layer, part in body.layers() for kind in ("rows", "clean")]
        first = told["base"]
        up = first["trait, rows"] > first["trait, clean rows"]
        says = (f"At the base the rows pull {'towards' if up else 'no more towards'} {evidence.trait.name} "
                f"{'more' if up else ''} than clean rows do (cosine {first['trait, rows']:+.3f} against "
                f"{first['trait, clean rows']:+.3f}); what is between them points "
                f"{first['trait, rows less clean rows']:+.3f} its "
                f"way, and {first['other words, rows less clean rows']:+.3f} that of other words.").replace("  ", " ")
        scores = tuple((f"{place}: {name}", value) for place, by in told.items() for name, value in by.items())
        return Explanation(says, scores, {"unit": "cosine", "places": told, "by_layer": by_layer, "words": sorted(others)})
