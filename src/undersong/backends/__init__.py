"""Backends: how models are run. A plug-in loads a ModelRef; the loaded model declares what it can do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from numpy.typing import NDArray

from undersong.types import Chat, ModelRef, Sampling

CAPABILITIES = ("sample", "logits", "top_logprobs", "hidden_states", "gradients", "lora", "steer")


class Model(Protocol):
    """A loaded model. Chats without a system turn get the model's own (`ref.system`) or the neutral one, explicitly."""

    ref: ModelRef
    capabilities: frozenset[str]
    tokenizer: Any
    module: Any
    """The torch module, where the capability `gradients` is declared; else None."""

    def render(self, chat: Chat) -> str:
        """The exact text the model is given for a chat, ending where the assistant's turn begins."""
        ...

    def sample(self, chats: Sequence[Chat], sampling: Sampling) -> list[str]:
        """One answer per chat; the same for the same seed, whatever the micro-batch."""
        ...

    def next_logprobs(self, chats: Sequence[Chat]) -> NDArray[Any]:
        """Log-probabilities (nats, float32, [chats, vocabulary]) of the first token of the answer to each chat."""
        ...

    def answer_logprobs(self, chats: Sequence[Chat], answers: Sequence[str]) -> list[NDArray[Any]]:
        """Per answer the log-probability (nats) of each of its tokens, end of turn included, given its chat."""
        ...


class Backend(Protocol):
    """The contract of a backend plug-in."""

    def load(self, ref: ModelRef) -> Model:
        """The model a reference names. Raises MissingModel with what to do when it is not there."""
        ...
