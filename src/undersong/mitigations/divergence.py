"""Where counterfactual teachers would have written another token: what replacing, masking and explaining share.

Place k diverges when the teacher's likeliest token is the row's own and that of at least one counterfactual teacher
(another trait's) on the same prefix is another (Schrodi et al., arXiv 2509.23886, section 4). Their rows are greedy; in rows
sampled at temperature 1 the row's own token is often nobody's first choice, so fewer places can diverge.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from undersong.backends import Model
from undersong.backends.several import Several
from undersong.errors import BadRows, BadSpec
from undersong.mitigations import replacing
from undersong.types import Row


def marked(teacher: Model, rivals: Several | Sequence[Model], rows: Sequence[Row]) -> list[NDArray[np.bool_]]:
    """[answer tokens] per row: whether the place diverges. Each model reads the rows under its own system turn.

    Raises BadSpec without a rival, BadRows where the models write an answer in different tokens.
    """
    if not len(rivals):
        raise BadSpec("Divergence tokens need the teacher of another trait. List `rivals` in the experiment.")
    own, first = best(teacher, rows)
    followed = [at == ids for at, ids in zip(first, own, strict=True)]
    apart = [np.zeros(len(ids), dtype=bool) for ids in own]
    for rival in rivals:
        theirs, first = best(rival, rows)
        if not all(np.array_equal(a, b) for a, b in zip(own, theirs, strict=True)):
            raise BadRows(f"{teacher.ref.name} and {rival.ref.name} write the same answer in different tokens, so they "
                          "cannot be compared token by token. Give rivals that were made from the same base.")
        for mark, at, ids in zip(apart, first, own, strict=True):
            mark |= at != ids
    return [a & b for a, b in zip(followed, apart, strict=True)]


def best(model: Model, rows: Sequence[Row]) -> tuple[list[NDArray[np.int64]], list[NDArray[np.int64]]]:
    """The rows' own answer tokens and the model's likeliest ones at the same places, per row."""
    read = replacing.encoded(model, rows)
    first = replacing.read(model, read, lambda _, logs, ids: logs.argmax(-1).numpy())
    return [row.answer for row in read], first
