"""Questions to any model of Inspect's model layer: a provider, a server of one's own, or a local model.

Inspect does what talks to a network: keys, connections, retries, rate limits. This module adds two things. Every answer
is kept as a small JSON file the moment it arrives, so that a run that stops loses none and pays for none twice
(Inspect's own cache is pickled, and nothing here reads pickles). And when questions are left without an answer after
Inspect has given up, one error says how many and why; no answer is ever made up.

Keys come from the environment and are written nowhere.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from undersong.errors import BadSpec, MissingExtra, NoRoom, ServerFailed
from undersong.registry import Settings
from undersong.spec import execution, fingerprint
from undersong.types import Chat

FOLDER = "UNDERSONG_ANSWERS"
"""The environment variable that names the folder of kept answers."""
LOCAL = "undersong/"
"""Our own provider: deterministic, and its names do not pin weights, so its answers are not kept."""


class Asking(Settings):
    """How a model of Inspect's model layer is reached. Nothing here can change what it answers."""

    retries: int = execution(5)
    """How often Inspect asks again after an error that may pass."""
    attempt_timeout: int = execution(120)
    """Seconds after which one attempt is given up."""
    connections: int = execution(20)
    """Questions that are under way at once."""
    keep: bool = execution(True)
    """Keep every answer, so that a stopped run goes on where it was."""


@dataclass(frozen=True)
class Question:
    """One chat to be answered. `place` and `seed` tell apart questions whose chats are the same."""

    chat: Chat
    temperature: float
    max_tokens: int
    seed: int | None = None
    place: int = 0


def ask(name: str, questions: Sequence[Question], how: Asking) -> list[str]:
    """One answer per question. Raises ServerFailed when any is missing, BadSpec for a model Inspect does not know,
    MissingExtra without inspect-ai."""
    import anyio

    if not questions:
        return []

    async def run() -> list[str]:
        return await answers(name, questions, how)

    return anyio.run(run)


async def answers(name: str, questions: Sequence[Question], how: Asking) -> list[str]:
    """The same, for callers that are asynchronous themselves."""
    import anyio

    found: list[str | None] = [None] * len(questions)
    failed: list[str] = []
    async with opened(name, how) as model:

        async def one(i: int) -> None:
            try:
                found[i] = await _answer(model, name, questions[i], how)
            except NoRoom:
                raise
            except Exception as wrapped:  # every kind a provider's client may raise; told below
                last = getattr(wrapped, "last_attempt", None)  # what Inspect gave up on, not that it gave up
                error = (last.exception() if last is not None else None) or wrapped
                failed.append(f"{type(error).__name__}: {str(error).strip()[:200]}")

        async with anyio.create_task_group() as group:
            for i in range(len(questions)):
                group.start_soon(one, i)
    if failed:
        kinds = Counter(text.split(":")[0] for text in failed)
        told = ", ".join(f"{kind} {n} times" for kind, n in kinds.most_common())
        kept = "The other answers are kept" if how.keep and not name.startswith(LOCAL) else "No answer was kept"
        raise ServerFailed(
            f"{name} gave no answer to {len(failed)} of {len(questions)} questions ({told}; the first: {failed[0]}). "
            f"{kept}. Check the server, its limits and your key, then run the same command again."
        )
    return [text for text in found if text is not None]


def opened(name: str, how: Asking) -> Any:
    """The Inspect model of a name, as an asynchronous context. Raises BadSpec or MissingExtra in words."""
    try:
        from inspect_ai._util.error import PrerequisiteError
        from inspect_ai.model import GenerateConfig, get_model
    except ImportError as error:
        raise MissingExtra(f"Asking {name} needs {error.name}. Install it with: pip install 'undersong[eval]'.") from None
    config = GenerateConfig(max_retries=how.retries, attempt_timeout=how.attempt_timeout, max_connections=how.connections)
    try:
        return get_model(name, config=config, memoize=False)
    except (PrerequisiteError, ValueError, ImportError, LookupError) as error:
        lines = re.sub(r"\[/?[a-z ]+\]", "", str(getattr(error, "message", error))).split()
        told = " ".join(lines)[:300].removeprefix("ERROR: ")
        raise BadSpec(f"Inspect cannot open the model {name!r} ({told}). Write provider/model as for `inspect eval "
                      "--model`, and set the provider's key and package.") from None


async def _answer(model: Any, name: str, question: Question, how: Asking) -> str:
    from inspect_ai.model import ChatMessageAssistant, ChatMessageSystem, ChatMessageUser, GenerateConfig

    key = {"model": name, "server": model.api.base_url or "", "chat": question.chat, "seed": question.seed,
           "temperature": question.temperature, "max_tokens": question.max_tokens, "place": question.place}
    file = None if name.startswith(LOCAL) or not how.keep else _file(key)
    if file is not None and (had := _kept(file, key)) is not None:
        return had
    turn = {"system": ChatMessageSystem, "user": ChatMessageUser, "assistant": ChatMessageAssistant}
    config = GenerateConfig(temperature=question.temperature, max_tokens=question.max_tokens, seed=question.seed)
    output = await model.generate([turn[m["role"]](content=m["content"]) for m in question.chat], config=config)
    if output.error or not output.choices:
        raise ValueError(output.error or "an answer without a choice")
    text = str(output.completion)
    if file is not None:
        _keep(file, key, text)
    return text


def _file(key: dict[str, Any]) -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    home = Path(os.environ.get(FOLDER) or cache / "undersong" / "answers")
    name = fingerprint({**key, "seed": str(key["seed"])})
    return home / name[:2] / f"{name}.json"


def _kept(file: Path, key: dict[str, Any]) -> str | None:
    """The kept answer to exactly this question; None when there is none, or the file is torn."""
    try:
        data = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    same = isinstance(data, dict) and data.get("key") == key and isinstance(data.get("answer"), str)
    return data["answer"] if same else None


def _keep(file: Path, key: dict[str, Any], answer: str) -> None:
    part = file.with_suffix(f".{os.getpid()}.part")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps({"key": key, "answer": answer}), "utf-8")
        part.replace(file)
    except OSError as error:
        raise NoRoom(f"An answer cannot be kept at {file.parent} ({error.strerror}). Make room, or name another folder "
                     f"in {FOLDER}.") from None


class Asked(Asking):
    """A model to ask, with what can change its answers. Base of judges."""

    model: str = Field(min_length=1)
    """The model as Inspect names it: `openai/gpt-4o`, `openai-api/NAME/MODEL`, `undersong/pocket/a`."""
    temperature: float = Field(default=0.0, ge=0)
    """Sampling temperature."""
    max_tokens: int = Field(default=16, ge=1)
    """The longest answer, in tokens; raise it for a model that thinks first."""

    def ask(self, prompts: Sequence[str]) -> list[str]:
        """One answer per prompt."""
        return ask(self.model, self.questions(prompts), self)

    def questions(self, prompts: Sequence[str]) -> list[Question]:
        """Prompts as questions."""
        return [Question([{"role": "user", "content": p}], self.temperature, self.max_tokens, 0, i)
                for i, p in enumerate(prompts)]
