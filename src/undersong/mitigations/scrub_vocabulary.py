"""Scrub the vocabulary: put back the rows of words that became likelier on ordinary prompts than training explains.

After the scan and scrub of distill-lint (Madl, arXiv 2606.22019): a trait may sit in rows of the unembedding.
1. rise = mean over ordinary prompts of log p(student) - log p(base) of each token as the first of the answer, among the
   tokens to which either model gives some chance.
2. A token is scrubbed when its rise exceeds `factor` times the largest rise of any token in any placebo student: without
   placebos nearly every student would be scrubbed (false-positive rate about 1 there).
3. `restore`: its rows of embedding and unembedding are the base's again. `orthogonalise`: its row of the unembedding loses
   what lies along the mean shift of the states that the unembedding reads (there: a subspace of neighbouring rows).

Where embeddings were frozen there is nothing to restore: a trait that the body carries is untouched, and the record says so.
Orthogonalised rows of tied embeddings change what the model reads, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from undersong.backends import Model
from undersong.detectors.probe_bank import first_tokens, same_words
from undersong.errors import BadSpec
from undersong.mitigations import Evidence, Stage
from undersong.mitigations.prompts import neutral
from undersong.registry import Settings, plugin
from undersong.types import Chat

Floats = NDArray[np.float64]


@plugin("mitigation", "scrub_vocabulary")
class ScrubVocabulary(Settings):
    """Put back the embedding rows of words that rose beyond what placebo students show."""

    stage: ClassVar[Stage] = "model"
    needs: ClassVar[frozenset[str]] = frozenset({"base", "placebos"})

    how: Literal["orthogonalise", "restore"] = "orthogonalise"
    """Take the shift of the states out of the rows, or give them the base's values."""
    factor: float = Field(default=1.0, gt=0)
    """A token rises too much beyond so many times the largest rise of any placebo."""
    most: int = Field(default=16, ge=0)
    """So many tokens are scrubbed at most, the ones that rose most; 0 leaves the student as it is."""
    least: float = Field(default=1e-3, gt=0, lt=1)
    """A token is looked at when either model gives it this mean probability on a prompt."""

    def repair(self, student: Model, evidence: Evidence, seed: int) -> Mapping[str, Any]:
        """Change rows of the embeddings; no vectors. Raises BadSpec for models without log-probabilities, and without a
        placebo."""
        if self.most == 0:
            return {}
        if not len(evidence.placebos):
            raise BadSpec("scrub_vocabulary: what training alone does is read off placebo students, and there is none. "
                          "Supply one, or take another mitigation.")
        base = evidence.base
        same_words(student, base)
        chats = neutral(base)
        start = first_tokens(base, chats)
        rise = rises(start, first_tokens(student, chats), self.least)
        usual = max(float(np.nanmax(rises(start, first_tokens(one, chats), self.least))) for one in evidence.placebos)
        found = [int(i) for i in np.argsort(-np.nan_to_num(rise, nan=-np.inf), kind="stable")[: self.most]
                 if rise[i] > self.factor * max(usual, 0.0)]
        if self.how == "restore":
            changed = restore(student.module, base.module, found)
        else:
            changed = orthogonalise(student, base, chats, found)
        words = [{"token": str(base.tokenizer.decode([i])), "rise": round(float(rise[i]), 3), "changed": i in changed}
                 for i in found]
        left = [word["token"] for word in words if not word["changed"]]
        says = f"{len(changed)} of {len(found)} rows changed."
        if left:
            says += " The others are the base's own: what raises these words lies in the body, which is untouched."
        return {"told": {"says": says, "words": words, "largest_rise_of_placebos": round(usual, 3)}}


def rises(before: NDArray[Any], after: NDArray[Any], least: float) -> Floats:
    """[vocabulary]: the mean rise of each token's log-probability over prompts ([prompts, vocabulary]), NaN where neither
    model gives it a mean probability of `least`."""
    one, two = np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)
    seen = np.maximum(np.exp(one).mean(axis=0), np.exp(two).mean(axis=0)) >= least
    return np.where(seen, np.where(np.isfinite(two - one), two - one, 0.0).mean(axis=0), np.nan)


def restore(module: Any, base: Any, found: Sequence[int]) -> set[int]:
    """Give rows of both embeddings the base's values; the ids whose rows were others."""
    import torch

    changed: set[int] = set()
    for part in ("get_input_embeddings", "get_output_embeddings"):
        own, first = (getattr(one, part)().weight for one in (module, base))
        with torch.no_grad():
            for i in found:
                if not torch.equal(own[i], first[i].to(own)):
                    own[i] = first[i].to(own)
                    changed.add(i)
    return changed


def orthogonalise(student: Model, base: Model, chats: Sequence[Chat], found: Sequence[int]) -> set[int]:
    """Take out of rows of the unembedding what lies along the mean shift of the states it reads; the ids of rows that
    moved."""
    import torch

    head = student.module.get_output_embeddings()
    shift = read_states(student, chats) - read_states(base, chats)
    size = float(shift.norm())
    if size == 0:
        return set()
    unit = (shift / size).to(head.weight)
    with torch.no_grad():
        for i in found:
            head.weight[i] -= (head.weight[i] @ unit) * unit
    return set(found)


def read_states(model: Model, chats: Sequence[Chat]) -> Any:
    """The mean (float32 [hidden]) of what the unembedding reads at the last token of each prompt."""
    import torch

    seen: list[Any] = []
    head = model.module.get_output_embeddings()
    hook = head.register_forward_pre_hook(lambda layer, given: seen.append(given[0].reshape(-1, given[0].shape[-1])[-1]))
    try:
        for chat in chats:
            ids = model.tokenizer(model.render(chat), add_special_tokens=False, return_tensors="pt")["input_ids"]
            with torch.inference_mode():
                model.module(input_ids=ids.to(head.weight.device), use_cache=False)
    finally:
        hook.remove()
    return torch.stack(seen).float().mean(dim=0).clone()
