"""The backend of hosted and served models: whatever Inspect can talk to, by `inspect/PROVIDER/MODEL`.

`inspect/openai/ft:gpt-4.1-nano:me::id`, `inspect/openai-api/NAME/MODEL` (any OpenAI-compatible server, its address in
NAME_BASE_URL), `inspect/vllm/MODEL` (Inspect starts vLLM in a process of its own). Such a model can be sampled and
nothing else: no logits, no restriction to some tokens, and what stands behind the name cannot be verified.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

from undersong.backends import tokens
from undersong.backends.asking import Asking, Question, ask, opened
from undersong.errors import BadSpec
from undersong.registry import plugin
from undersong.types import Chat, ModelRef, Sampling

PREFIX = "inspect/"


@plugin("backend", "inspect")
class Inspect(Asking):
    """Sample hosted or served models through Inspect's model layer."""

    def load(self, ref: ModelRef) -> HostedModel:
        """The model a reference names. Raises BadSpec when Inspect cannot open it, or the reference holds local changes."""
        if not ref.base.startswith(PREFIX) or ref.base.count("/") < 2:
            raise BadSpec(f"{ref.base!r} is no hosted model. Write inspect/PROVIDER/MODEL.")
        if ref.weights or ref.adapter or ref.vector:
            raise BadSpec(f"{ref.base} runs elsewhere and cannot take local weights. Start from a local base.")
        opened(ref.base.removeprefix(PREFIX), self)  # a wrong name or a missing key is told before any work
        return HostedModel(ref, self)


class Characters:
    """Stands for a tokenizer nobody can see: a token per character, so that a length in tokens is never too short."""

    unk_token_id = eos_token_id = pad_token_id = None
    chat_template = None

    @property
    def all_special_ids(self) -> NoReturn:
        """Raises BadSpec: whoever asks wants to hold the model to some tokens."""
        raise BadSpec("A hosted model does not show its tokens, so it cannot be held to some of them. Leave `restrict` out, "
                      "and filter its answers instead.")

    def __call__(self, text: str | Sequence[str], add_special_tokens: bool = False) -> dict[str, Any]:
        """`{"input_ids": ids}`, a list of ids per text when several are given."""
        return {"input_ids": [ord(c) for c in text] if isinstance(text, str) else [[ord(c) for c in t] for t in text]}


class HostedModel:
    """A model at the other end of Inspect's model layer (contract: `undersong.backends.Model`, sampling only)."""

    capabilities = frozenset({"sample"})
    tokenizer: Any = Characters()
    module = None
    part_rows = 100
    """Rows that the Lab asks for and stores at once: what one trouble can put off."""

    def __init__(self, ref: ModelRef, how: Asking) -> None:
        self.ref, self.how = ref, how
        self.name = ref.base.removeprefix(PREFIX)

    def render(self, chat: Chat) -> str:
        """The turns that are sent, the system turn explicit; how the server writes them for its model is its own."""
        return "\n".join(f"{m['role']}: {m['content']}" for m in tokens.with_system(chat, self))

    def sample(self, chats: Sequence[Chat], sampling: Sampling) -> list[str]:
        """One answer per chat. Each is asked with a seed of its own; not every provider heeds it.

        Raises ServerFailed when any answer is missing (the others are kept), BadSpec for a restriction to tokens.
        """
        if sampling.tokens is not None:
            raise BadSpec(f"{self.ref.base} cannot be held to some tokens. Filter its answers instead.")
        asked = [Question(tokens.with_system(chat, self), sampling.temperature, sampling.max_new_tokens,
                          (sampling.seed + i) % 2**31, i) for i, chat in enumerate(chats)]
        return [text.rstrip() for text in ask(self.name, asked, self.how)]

    def next_logprobs(self, chats: Sequence[Chat]) -> NoReturn:
        """Raises BadSpec: a hosted model shows no logits."""
        self._cannot("log-probabilities")

    def answer_logprobs(self, chats: Sequence[Chat], answers: Sequence[str]) -> NoReturn:
        """Raises BadSpec: a hosted model does not score given answers."""
        self._cannot("log-probabilities of given answers")

    def _cannot(self, what: str) -> NoReturn:
        raise BadSpec(f"{self.ref.base} gives no {what}. Measure it with a probe that samples (`favourite`, "
                      "`storytelling`, `misalignment`), or use a local model.")
