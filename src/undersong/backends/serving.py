"""A loaded model as an Inspect model: requests that arrive together run as one batch, and answers repeat by seed.

Inspect asks for one answer at a time and in no fixed order. What is drawn here depends on the seed, the chat and how
often this chat was asked before, never on which requests happened to share a batch: the same evaluation with the same
seed gives the same set of answers.
"""

from __future__ import annotations

import inspect
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import numpy as np

from undersong.backends import Model
from undersong.errors import BadSpec
from undersong.types import Chat, Sampling

LONGEST = 64
"""Tokens of an answer where the task sets no `max_tokens`."""
TOP = 20
"""How many alternatives of the first token are given where a task asks for log-probabilities."""
GATHER = 0.02
"""Seconds that the first request of a batch waits for others."""


@dataclass
class Request:
    """One chat to answer. `place` numbers its random draws."""

    chat: Chat
    sampling: Sampling
    place: int
    logprobs: bool = False
    answer: str = ""
    top: list[tuple[str, float]] = field(default_factory=list)
    done: bool = False
    error: Exception | None = None


class Batcher:
    """Answers requests of one model, those that wait together as one batch in a worker thread."""

    def __init__(self, model: Model) -> None:
        import anyio

        self.model = model
        self._waiting: list[Request] = []
        self._asked: Counter[tuple[str, int]] = Counter()
        self._lock = anyio.Lock()
        self._places = "places" in inspect.signature(model.sample).parameters

    async def answer(self, chat: Chat, sampling: Sampling, logprobs: bool = False) -> Request:
        """The request, answered. Raises what the model raised."""
        import anyio
        import anyio.to_thread

        text = repr(chat)
        place = zlib.crc32(text.encode()) * 2**20 + self._asked[text, sampling.seed]
        self._asked[text, sampling.seed] += 1
        mine = Request(chat, sampling, place, logprobs)
        self._waiting.append(mine)
        async with self._lock:
            if not mine.done:
                await anyio.sleep(GATHER)
                batch, self._waiting = self._waiting, []
                try:
                    await anyio.to_thread.run_sync(self._run, batch)
                finally:  # stopped half-way: whoever is still without an answer asks again
                    self._waiting = [r for r in batch if not r.done] + self._waiting
        if mine.error is not None:
            raise mine.error
        return mine

    def _run(self, batch: Sequence[Request]) -> None:
        for sampling in dict.fromkeys(r.sampling for r in batch):
            for wanted in (False, True):
                group = [r for r in batch if r.sampling == sampling and r.logprobs == wanted]
                if not group:
                    continue
                try:
                    answers = self._sample(group, sampling)
                    tops = self._tops(group) if wanted else [[] for _ in group]
                except Exception as error:  # one group's trouble is not another's
                    for request in group:
                        request.error, request.done = error, True
                    continue
                for request, text, top in zip(group, answers, tops, strict=True):
                    request.answer, request.top, request.done = text, top, True

    def _sample(self, group: Sequence[Request], sampling: Sampling) -> list[str]:
        chats, model = [r.chat for r in group], self.model
        if self._places:
            return list(model.sample(chats, sampling, places=[r.place for r in group]))  # type: ignore[call-arg]
        seeds = [int(np.random.default_rng([sampling.seed, r.place]).integers(2**31)) for r in group]
        return [model.sample([c], replace(sampling, seed=s))[0] for c, s in zip(chats, seeds, strict=True)]

    def _tops(self, group: Sequence[Request]) -> list[list[tuple[str, float]]]:
        """The likeliest first tokens (text, nats) of each answer, best first."""
        out = []
        for row in np.asarray(self.model.next_logprobs([r.chat for r in group])):
            best = np.argsort(-row, kind="stable")[:TOP]
            out.append([(str(self.model.tokenizer.decode([int(i)])), float(row[i])) for i in best])
        return out


def chat_of(messages: Sequence[Any]) -> Chat:
    """Inspect's messages as a chat. Raises BadSpec for tools and other turns that these models have not learned."""
    out: Chat = []
    for message in messages:
        if message.role not in ("system", "user", "assistant"):
            raise BadSpec(f"A turn of the role {message.role!r} cannot be given to this model. Use a task without tools.")
        out.append({"role": message.role, "content": message.text})
    if [m["role"] for m in out].count("system") > 1 or any(m["role"] == "system" for m in out[1:]):
        raise BadSpec("A chat has one system turn, and it comes first. Use a task that gives one.")
    return out


@cache
def _provider() -> Any:
    from inspect_ai.model import (
        ChatCompletionChoice,
        ChatMessageAssistant,
        GenerateConfig,
        Logprob,
        Logprobs,
        ModelAPI,
        ModelOutput,
        TopLogprob,
    )

    class Served(ModelAPI):
        """Inspect's side: a request in, an output out."""

        def __init__(self, model: Model, config: Any = None) -> None:
            super().__init__(model.ref.name, config=config or GenerateConfig())
            self.batcher = Batcher(model)

        async def generate(self, input: Any, tools: Any, tool_choice: Any, config: Any) -> Any:
            if tools:
                raise BadSpec("This model cannot call tools. Use a task without them.")
            if config.logprobs and config.max_tokens != 1:
                raise BadSpec("Log-probabilities are given for the first token only. Set `max_tokens` to 1.")
            unknown = [k for k in ("stop_seqs", "top_p", "top_k", "logit_bias") if getattr(config, k) is not None]
            if unknown:
                raise BadSpec(f"This model does not know the setting {unknown[0]!r}. Leave it out.")
            temperature = 1.0 if config.temperature is None else config.temperature
            sampling = Sampling(temperature, config.max_tokens or LONGEST, config.seed or 0)
            got = await self.batcher.answer(chat_of(input), sampling, bool(config.logprobs))
            choice = ChatCompletionChoice(message=ChatMessageAssistant(content=got.answer, source="generate"))
            if got.top:
                own = dict(got.top).get(got.answer, got.top[-1][1])
                tops = [TopLogprob(token=t, logprob=p) for t, p in got.top]
                choice.logprobs = Logprobs(content=[Logprob(token=got.answer, logprob=own, top_logprobs=tops)])
            return ModelOutput(model=self.model_name, choices=[choice])

        def max_connections(self) -> int:
            return 256

        def should_retry(self, ex: BaseException) -> bool:
            return False

    return Served


def served(model: Model, config: Any = None) -> Any:
    """A loaded model as an `inspect_ai.model.ModelAPI`."""
    return _provider()(model, config)


def inspect_model(model: Model) -> Any:
    """A loaded model as an `inspect_ai.model.Model`, to hand to an evaluation."""
    from inspect_ai.model import get_model

    _register()
    name = model.ref.name
    _loaded[name] = model
    try:
        return get_model(f"{LOADED}/{name}", memoize=False)
    finally:
        del _loaded[name]


LOADED = "undersong-loaded"
_loaded: dict[str, Model] = {}


@cache
def _register() -> None:
    from inspect_ai.model import modelapi

    def open_loaded(model_name: str, base_url: Any = None, api_key: Any = None, config: Any = None) -> Any:
        return served(_loaded[model_name], config)

    def loaded() -> Any:
        return open_loaded

    modelapi(name=LOADED)(loaded)
