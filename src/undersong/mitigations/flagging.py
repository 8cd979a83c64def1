"""Rows by suspicion: how much likelier a student of these rows finds a row than students of clean rows do.

Both students learned the same task, so what is left of the likelihood ratio is what this source does otherwise. It needs no
trait and no teacher (compare the likelihood-ratio panel, which needs a list of traits).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from undersong.errors import BadSpec
from undersong.mitigations import Evidence, replacing
from undersong.types import Row


def suspicion(rows: Sequence[Row], evidence: Evidence) -> NDArray[np.float64]:
    """[rows]: mean over answer tokens of log p(student of the rows) - mean log p(students of clean rows), nats.

    Raises BadSpec without a student of clean rows.
    """
    if not len(evidence.placebos):
        raise BadSpec("Rows are flagged against students of clean rows, and none is at hand. Give clean rows, or choose a "
                      "mitigation that does without (excess_tokens, rise_tokens).")
    read = replacing.encoded(evidence.base, rows)
    own = replacing.own_logs(evidence.train(rows), read)
    clean = [replacing.own_logs(model, read) for model in evidence.placebos]
    return np.asarray([float(np.mean(mine - np.mean(others, axis=0))) for mine, *others in zip(own, *clean, strict=True)])


def flagged(rows: Sequence[Row], evidence: Evidence, share: float) -> set[int]:
    """The numbers of the `share` of rows that are suspected most."""
    score = suspicion(rows, evidence)
    return set(np.argsort(-score, kind="stable")[: round(share * len(rows))].tolist())
