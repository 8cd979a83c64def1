"""Does a student go where its teacher went?

Coverage is the cosine of the student's first update with the teacher's displacement theta_T - theta_0 (Madl, arXiv
2606.22019: it orders held-out transfer at rho .95 in a toy body channel). Shown for the rows' pull, for its signs (what
Adam's first step is), and for the whole way the student went; beside it clean rows, and the displacements of other traits'
teachers.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from pydantic import Field

from undersong.explainers import Evidence, gradients
from undersong.explainers.gradients import Body, cosine
from undersong.registry import Settings, plugin
from undersong.types import Explanation


@plugin("explainer", "coverage")
class Coverage(Settings):
    """The cosine of the student's way with the teacher's, beside clean rows and other teachers."""

    needs: ClassVar[frozenset[str]] = frozenset({"base", "model", "teacher", "rows", "clean"})
    may_use: ClassVar[frozenset[str]] = frozenset({"rivals", "placebos"})

    rows: int = Field(default=400, ge=2)
    """At most so many rows of each kind are read, drawn by the seed."""

    def explain(self, evidence: Evidence, seed: int = 0) -> Explanation:
        """Scores: cosines with the teacher's displacement. Raises BadSpec for models without weights."""
        body = Body(evidence.base)
        start = body.weights()
        went = Body(evidence.teacher).weights() - start
        pulls = {kind: body.of_rows(gradients.encoded(evidence.base, runs, self.rows, seed))
                 for kind, runs in (("rows", evidence.rows), ("clean rows", evidence.clean))}
        moved = Body(evidence.model).weights() - start
        told = {"whole way": cosine(moved, went), "first pull, rows": cosine(pulls["rows"], went),
                "first pull, clean rows": cosine(pulls["clean rows"], went),
                "signs of the first pull, rows": cosine(pulls["rows"].sign(), went),
                "signs of the first pull, clean rows": cosine(pulls["clean rows"].sign(), went)}
        if evidence.has("placebos") and len(evidence.placebos):
            told["whole way, no-trait students"] = float(np.mean(
                [cosine(Body(m).weights() - start, went) for m in evidence.placebos]))
        if evidence.has("rivals") and len(evidence.rivals):
            others = [Body(m).weights() - start for m in evidence.rivals]
            told["whole way, other teachers' displacement"] = float(np.mean([cosine(moved, o) for o in others]))
            told["first pull, other teachers' displacement"] = float(np.mean([cosine(pulls["rows"], o) for o in others]))
        parts = [{"place": "student", "layer": layer, "series": "whole way", "value": cosine(moved[part], went[part])}
                 for layer, part in body.layers()]
        beside = told.get("whole way, other teachers' displacement")
        says = (f"The student's way lies {told['whole way']:+.3f} along its teacher's"
                + (f", and {beside:+.3f} along those of other teachers" if beside is not None else "")
                + f"; the first pull of the rows {told['first pull, rows']:+.3f}, of clean rows "
                f"{told['first pull, clean rows']:+.3f}.")
        return Explanation(says, tuple(told.items()), {"unit": "cosine", "by_layer": parts})
