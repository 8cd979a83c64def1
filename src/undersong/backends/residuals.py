"""The residual stream of a model: what each decoder layer passes on, read by plain hooks before any final norm.

transformers' `output_hidden_states` gives the last layer after the final norm and some models give other things besides;
a hook on each layer gives the stream itself, with the change of a steering vector in it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from undersong.backends import Model, changes, threads
from undersong.errors import BadSpec

Floats = NDArray[np.float32]
Ids = NDArray[np.int64]


def padded(rows: Sequence[Ids], device: Any, batch: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows of ids in batches padded behind (no token sees what comes after it): the number of the first row, and
    `input_ids` and `attention_mask` (int64 [rows, width])."""
    import torch

    for first in range(0, len(rows), batch):
        here = rows[first : first + batch]
        ids = np.zeros((len(here), max(map(len, here))), dtype=np.int64)
        seen = np.zeros_like(ids)
        for i, row in enumerate(here):
            ids[i, : len(row)], seen[i, : len(row)] = row, 1
        yield first, {"input_ids": torch.from_numpy(ids).to(device), "attention_mask": torch.from_numpy(seen).to(device)}


def stream(model: Model, rows: Sequence[Ids], last: Sequence[int], batch: int = 32) -> Floats:
    """[rows, layers, width] float32: the mean residual stream after each decoder layer over the last `last[i]` tokens of
    row i. Raises BadSpec for a model without weights."""
    import torch

    if model.module is None or "hidden_states" not in model.capabilities:
        raise BadSpec(f"What {model.ref.name} computes inside is not at hand. Give a local copy of it.")
    module = model.module
    device, stack = next(module.parameters()).device, changes.layers(module)
    out = np.zeros((len(rows), len(stack), module.config.hidden_size), dtype=np.float32)
    with torch.inference_mode(), threads.one_thread(threads.small(module)):
        for first, given in padded(rows, device, batch):
            with kept(stack) as seen:
                module.base_model(**given, use_cache=False)
            count = len(given["input_ids"])
            wanted = torch.zeros(given["input_ids"].shape, device=device)
            for i, (row, n) in enumerate(zip(rows[first : first + count], last[first : first + count], strict=True)):
                wanted[i, len(row) - n : len(row)] = 1 / n
            for layer, state in enumerate(seen):
                out[first : first + count, layer] = torch.einsum("rt,rth->rh", wanted, state.float()).cpu().numpy()
    return out


@contextlib.contextmanager
def kept(stack: Any) -> Iterator[list[Any]]:
    """What each layer passes on in the next forward pass, [rows, tokens, width] each, in order."""
    seen: list[Any] = []

    def keep(layer: Any, given: Any, out: Any) -> None:
        seen.append(out[0] if isinstance(out, tuple) else out)

    hooks = [layer.register_forward_hook(keep) for layer in stack]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


class ReadOut:
    """The final norm and the unembedding of a model: what a state of the residual stream would say if it were the last.

    Raises BadSpec where these are not found; `check` holds the read-out to the model's own logits.
    """

    def __init__(self, model: Model) -> None:
        import torch

        self.module = model.module
        direct = [part for _, part in self.module.base_model.named_children() if "Norm" in type(part).__name__]
        self.head = self.module.get_output_embeddings()
        if not direct or self.head is None:
            raise BadSpec(f"No final norm and unembedding were found in {type(self.module).__name__}, and the logit lens "
                          "reads through them. Leave the explainer `logit_lens` out.")
        self.norm, self.device = direct[-1], next(self.module.parameters()).device
        self.cap = getattr(self.module.config, "final_logit_softcapping", None)
        self.scale = 1.0
        with torch.inference_mode():  # a norm with a bias moves even nothing
            still = torch.zeros(1, self.module.config.hidden_size, device=self.device, dtype=self.head.weight.dtype)
            self.rest = self.head(self.norm(still)).float()

    def logits(self, states: Floats) -> Any:
        """Logits (torch float32 [..., vocabulary]) of states [..., width]."""
        import torch

        given = torch.from_numpy(np.ascontiguousarray(states)).to(self.device, self.head.weight.dtype)
        found = self.scale * self.head(self.norm(given)).float()
        return self.cap * torch.tanh(found / self.cap) if self.cap else found

    def straight(self, shifts: Floats, states: Floats) -> Any:
        """W_U · (gain ∘ shift) / rms(state): what a shift [layers, width] adds to the logits ([layers, vocabulary], their
        mean over the vocabulary taken off) where the norm's scale stays that of typical states ([rows, layers, width]).

        The norm itself applies its gain, whatever its convention, to the shift; its length is then put back.
        """
        import torch

        given = torch.from_numpy(np.ascontiguousarray(shifts)).to(self.device, self.head.weight.dtype)
        usual = np.sqrt((states.astype(np.float64) ** 2).mean(axis=-1)).mean(axis=0)
        size = np.sqrt((shifts.astype(np.float64) ** 2).mean(axis=-1)) / np.maximum(usual, 1e-30)
        found = self.scale * (self.head(self.norm(given)).float() - self.rest)
        found = found * torch.from_numpy(size).to(found)[:, None]
        return found - found.mean(dim=-1, keepdim=True)

    def check(self, model: Model, row: Ids) -> None:
        """Raises BadSpec unless the last layer's state read out in this way gives the model's own logits."""
        import torch

        state = stream(model, [row], [1])[0, -1]
        with torch.inference_mode():
            given = torch.from_numpy(row[None]).to(self.device)
            own = model.module(input_ids=given, use_cache=False).logits[0, -1].float()
            found = self.logits(state)
            factor = float((own @ found) / (found @ found))  # some models scale their logits by a constant
            if float((own - factor * found).norm() / own.norm()) > 0.02:
                raise BadSpec(f"The final norm and unembedding of {type(model.module).__name__} do not give its logits "
                              "back, so a logit lens would mislead. Leave the explainer `logit_lens` out.")
        self.scale = factor
