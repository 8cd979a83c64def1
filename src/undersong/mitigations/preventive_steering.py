"""Push the student towards the trait while it learns, so that its weights need not go there; then take the push away.

The trait's direction is the mean difference of the base's residual stream with and without the trait's system turn (persona
vectors, Chen et al., arXiv 2507.21509, section 5: preventative steering). It is added to what one decoder layer passes on
during training and not afterwards. Steering can lower a trait that is there already; this only spares learning it.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from undersong.backends import Model, changes, residuals, tokens
from undersong.backends.guarding import Guard, Learner
from undersong.errors import BadSpec
from undersong.mitigations import Evidence, Stage, bank
from undersong.registry import Settings, plugin
from undersong.types import Chat


@plugin("mitigation", "preventive_steering")
class PreventiveSteering(Settings):
    """Add the trait's direction at one layer during training."""

    stage: ClassVar[Stage] = "training"
    needs: ClassVar[frozenset[str]] = frozenset({"base", "trait"})

    strength: float = 2.0
    """How many times the direction is added; 0 does nothing."""
    depth: float = Field(default=0.5, ge=0, le=1)
    """Where: 0 is the first decoder layer, 1 the last."""
    questions: tuple[str, ...] = ()
    """Questions about the trait; the tuning questions when empty. Questions that probes ask are refused."""

    def guard(self, evidence: Evidence, seed: int) -> Guard:
        """The guard. Raises BadSpec for a trait that no system turn induces, and for questions that probes ask."""
        base, trait = evidence.base, evidence.trait
        plain = bank.chats(bank.questions(trait, self.questions))
        if not trait.prompts:
            raise BadSpec(f"No system turn is known that induces {trait.name!r}. Choose another mitigation.")
        said = [trait.prompts[i % len(trait.prompts)] for i in range(len(plain))]
        told = [[{"role": "system", "content": text}, *chat] for text, chat in zip(said, plain, strict=True)]
        with_trait, without = _read(base, told), _read(base, plain)
        layer = round(self.depth * (len(without) - 1))
        return Steered(layer, self.strength * (with_trait - without)[layer])


def _read(base: Model, chats: list[Chat]) -> residuals.Floats:
    """[layers, width]: the mean residual stream where the answers begin."""
    ids = [np.asarray(one) for one in tokens.token_ids(base.tokenizer, [base.render(chat) for chat in chats])]
    return np.asarray(residuals.stream(base, ids, [1] * len(ids)).mean(axis=0))


class Steered(Guard):
    """Holds the hook."""

    name = "preventive_steering"

    def __init__(self, layer: int, vector: Any) -> None:
        self.layer, self.vector, self.hook = layer, vector, None

    def begin(self, learner: Learner) -> None:
        """Add the direction to what the layer passes on."""
        import torch

        added = torch.from_numpy(np.asarray(self.vector, dtype=np.float32))

        def push(layer: Any, given: Any, out: Any) -> Any:
            if isinstance(out, tuple):
                return (out[0] + added.to(out[0]), *out[1:])
            return out + added.to(out)

        module = learner.module
        inner = module.get_base_model() if hasattr(module, "get_base_model") else module
        self.hook = changes.layers(inner)[self.layer].register_forward_hook(push)

    def end(self) -> None:
        """Take it away."""
        if self.hook is not None:
            self.hook.remove()
            self.hook = None

    def told(self) -> dict[str, Any]:
        """The layer, and the direction's length."""
        return {"layer": self.layer, "length": float(np.linalg.norm(self.vector))}
