"""Rows written by vLLM (Kwon et al., arXiv 2309.06180), which lives in a Python environment of its own.

vLLM pins its torch and trails transformers, so it is never imported here. A worker process of the other environment holds
the model; token ids go to it and come back. Prompts are rendered and cut into tokens, and answers are ended and written out
as text, by the very functions that the `transformers` backend uses: only the drawing differs, so two engines agree in
distribution, and in every greedy answer up to rounding.

One worker at most runs per process. It is kept for the next model that needs the same weights, and ends with this process.
"""

from __future__ import annotations

import atexit
import json
import os
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Literal, NoReturn, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from undersong import bases
from undersong.backends import changes, tokens
from undersong.backends.foreign import Foreign
from undersong.backends.transformers import Transformers, outline
from undersong.errors import BadSpec, BrokenArtefact, MissingExtra, NoRoom
from undersong.registry import Settings, plugin
from undersong.spec import execution
from undersong.types import Chat, ModelRef, Sampling

PYTHON = "UNDERSONG_VLLM_PYTHON"
"""The environment variable that names the Python that has vLLM. No setting does: an experiment file, which may be a
stranger's, must not name a program to run."""
MAKE = ("Make one with `python3 -m venv vllm-env && vllm-env/bin/pip install vllm`, and set "
        f"{PYTHON}=vllm-env/bin/python.")
WORKER = Path(__file__).with_name("vllm_worker.py")
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The ranks of adapters that vLLM makes room for."""
COOLEST = 0.01
"""vLLM raises any temperature between 0 and this one to it."""
SMALL = 100_000
"""Bytes of an answer that holds no rows."""


@plugin("backend", "vllm")
class Vllm(Settings):
    """Write rows with vLLM, from a Python environment of its own."""

    gpu_memory: Annotated[float, Field(gt=0, le=1)] = execution(0.5)
    """Share of a GPU's memory that vLLM takes (of the main memory, for a vLLM built for CPUs)."""
    tensor_parallel: Annotated[int, Field(ge=1)] = execution(1)
    """GPUs that hold the model together."""
    max_model_len: Annotated[int, Field(ge=1)] | None = execution(None)
    """Tokens of a prompt and its answer; None takes all the model can read."""
    adapters: Literal["beside", "merged"] = execution("beside")
    """`beside`: vLLM adds an adapter as it runs, one process serves many; `merged`: weights are written anew for each."""

    def load(self, ref: ModelRef) -> VllmModel:
        """The model a reference names, in a running vLLM.

        Raises MissingExtra without such an environment, BadSpec for a model that vLLM cannot run, MissingModel and
        BrokenArtefact as the `transformers` backend does, ServerFailed when vLLM cannot open the model.
        """
        if ref.base.startswith((bases.SIMULATED, bases.HOSTED)):
            raise BadSpec(f"{ref.base!r} is no model that vLLM can run. Leave `engine` out, or name a local or hub model.")
        if ref.vector:
            raise BadSpec("vLLM cannot steer: this model adds vectors to what its layers pass on. Leave `engine` out, so "
                          "that the default engine writes its rows.")
        python = os.environ.get(PYTHON, "")
        if not python:
            raise MissingExtra(f"vLLM needs a Python environment of its own, and none is named. {MAKE}")
        skeleton, tokenizer = outline(ref.base)
        merged = ref.adapter is not None and self.adapters == "merged"
        if merged and ref.precision == "bfloat16":
            raise BadSpec("Merged into bfloat16 weights, most of a small update would be rounded away. Use "
                          "`adapters: beside`, or the precision `mixed`.")
        rank = 0 if ref.adapter is None or merged else _rank(skeleton, Path(ref.adapter))
        held = ModelRef(ref.base, weights=ref.weights, adapter=ref.adapter if merged else None, precision=ref.precision)
        start = Start(python, held, (_stamp(held.weights), _stamp(held.adapter)), rank, self.gpu_memory,
                      self.tensor_parallel, self.max_model_len)
        return VllmModel(ref, start, skeleton, tokenizer)


@dataclass(frozen=True)
class Start:
    """What a worker is started with: the Python, the weights it holds with the state of their files, the largest rank of an
    adapter beside them (0: none), and its share of the machine."""

    python: str
    held: ModelRef
    stamps: tuple[Any, ...]
    rank: int
    gpu_memory: float
    tensor_parallel: int
    max_model_len: int | None

    @property
    def dtype(self) -> str:
        """The type of the numbers that text is written in."""
        return "float32" if self.held.precision == "float32" else "bfloat16"

    def serves(self, other: Start) -> bool:
        """Whether a worker that was started so can run a model that asks for `other`."""
        return replace(self, rank=0) == replace(other, rank=0) and self.rank >= other.rank


class VllmModel:
    """A model in a vLLM worker (contract: `undersong.backends.Model`, sampling only). `engine` says what writes its rows:
    `name`, the versions of `vllm` and `torch`, `device`, `dtype`, and how its `adapter` is applied, where it has one."""

    capabilities = frozenset({"sample"})
    module = None

    def __init__(self, ref: ModelRef, start: Start, skeleton: Any, tokenizer: Any) -> None:
        self.ref, self.tokenizer, self._start = ref, tokenizer, start
        self.generation_config = skeleton.generation_config
        self._words = int(skeleton.config.get_text_config().vocab_size)
        with _keeping:
            running = _running(start)
            self.engine: dict[str, str] = {"name": "vllm", **running.about.model_dump(), "dtype": start.dtype}
            self.room = min(running.room, getattr(skeleton.config, "max_position_embeddings", None) or running.room)
        if ref.adapter:
            self.engine["adapter"] = "beside" if start.rank else "merged"

    def render(self, chat: Chat) -> str:
        """The exact text the model is given (see `tokens.prompt`)."""
        return tokens.prompt(chat, self)

    def sample(self, chats: Sequence[Chat], sampling: Sampling, places: Sequence[int] | None = None) -> list[str]:
        """One answer per chat without special tokens or trailing white space; row i's noise depends on (seed, i) only.

        `places` gives each chat another number than its place in the list. Temperature 0 takes the best token. Raises
        BadRows when a prompt and its answer do not fit, BadSpec for a temperature that vLLM would change, ServerFailed when
        the worker dies; the next call starts another.
        """
        if 0 < sampling.temperature < COOLEST:
            raise BadSpec(f"vLLM samples at {COOLEST} where the temperature is {sampling.temperature}. Take 0, or at least "
                          f"{COOLEST}.")
        prompts = tokens.prompt_ids(self, chats, sampling.max_new_tokens, self.room)
        if not prompts:
            return []
        numbers, low = range(len(prompts)) if places is None else places, sampling.seed & 0xFFFFFFFFFFFFFFFF
        ends = tokens.end_ids(self)
        question = {
            "prompts": prompts, "seeds": [int(np.random.default_rng([low, n]).integers(2**63)) for n in numbers],
            "temperature": float(sampling.temperature), "longest": sampling.max_new_tokens, "ends": ends,
            "allowed": None if sampling.tokens is None else sorted(set(sampling.tokens)),
        }
        with _keeping:
            answers = _running(self._start).write(question, self.ref.adapter if self._start.rank else None, self._words)
        return tokens.answer_texts(self, [tokens.until(ids, ends) for ids in answers])

    def next_logprobs(self, chats: Sequence[Chat]) -> NoReturn:
        """Raises BadSpec: vLLM is asked for text only."""
        self._cannot("log-probabilities")

    def answer_logprobs(self, chats: Sequence[Chat], answers: Sequence[str]) -> NoReturn:
        """Raises BadSpec: vLLM is asked for text only."""
        self._cannot("log-probabilities of given answers")

    def _cannot(self, what: str) -> NoReturn:
        raise BadSpec(f"{self.ref.base} in vLLM gives no {what}: there it writes rows and nothing else. Leave `engine` out.")


class _Said(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class _About(_Said):
    vllm: str
    torch: str
    device: str


class _Opened(_Said):
    room: Annotated[int, Field(gt=0)]


class _Written(_Said):
    number: int
    answers: list[list[int]]


S = TypeVar("S", bound=_Said)


class _Running:
    """A worker that holds a model, and the folder that it needs meanwhile: its log, and weights that no folder held yet."""

    def __init__(self, start: Start) -> None:
        self.start, self._asked = start, 0
        self._adapters: dict[Any, int] = {}
        self._home = TemporaryDirectory(prefix="undersong-vllm-")
        home = Path(self._home.name)
        # in one process where one GPU holds the model, which also makes it repeatable; no look-up of this machine's address
        usual = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_HOST_IP": "127.0.0.1"}
        silent = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
        self._worker: Foreign | None = None
        try:
            self._worker = Foreign("vLLM", start.python, WORKER, usual | dict(os.environ) | silent, home)
            hello = self._worker.ask(None, SMALL)
            if "missing" in hello:
                raise MissingExtra(f"{start.python} has no vLLM that can be imported ({hello['missing']}). {MAKE}")
            self.about = self._read(_About, hello)
            if start.rank and start.dtype == "float32" and self.about.device != "cpu":
                raise BadSpec("On a GPU, vLLM adds adapters to 16-bit weights only. Write "
                              "`engine: {vllm: {adapters: merged}}`, or use the precision `mixed`.")
            place, revision = bases.place(start.held.base)
            if start.held.weights or start.held.adapter:
                place, revision = _write(start.held, home / "model"), None
            place = os.path.abspath(place) if Path(place).is_dir() else place
            asked = {"model": place, "revision": revision, "dtype": start.dtype, "rank": start.rank}
            more = {k: v for k, v in asdict(start).items() if k in ("gpu_memory", "tensor_parallel", "max_model_len")}
            self.room = self._read(_Opened, self._worker.ask(asked | more, SMALL)).room
        except BaseException:
            self.end()
            raise

    @property
    def alive(self) -> bool:
        return self._worker is not None and self._worker.alive

    def write(self, question: dict[str, Any], adapter: str | None, words: int) -> list[list[int]]:
        """The token ids that answer each prompt. Raises ServerFailed for anything that was not asked for."""
        assert self._worker is not None
        self._asked += 1
        told = None
        if adapter is not None:
            key = (adapter, _stamp(adapter))
            told = {"number": self._adapters.setdefault(key, len(self._adapters) + 1), "folder": os.path.abspath(adapter)}
        most, count = question["longest"], len(question["prompts"])
        limit = SMALL + count * (most + 1) * (len(str(words)) + 4)
        found = self._read(_Written, self._worker.ask({**question, "number": self._asked, "adapter": told}, limit))
        wrong = "an answer to another question" if found.number != self._asked else _wrong(found.answers, question, words)
        if wrong:
            self._worker.end()
            raise self._worker.refused(wrong)
        return found.answers

    def _read(self, kind: type[S], given: dict[str, Any]) -> S:
        assert self._worker is not None
        try:
            return kind.model_validate(given)
        except ValidationError:
            self._worker.end()
            raise self._worker.refused(f"something else than {', '.join(kind.model_fields)}") from None

    def end(self) -> None:
        if self._worker is not None:
            self._worker.end()
        self._home.cleanup()


def _wrong(answers: list[list[int]], question: dict[str, Any], words: int) -> str:
    """What of the answers was not asked for; "" for nothing."""
    count, most, ends = len(question["prompts"]), question["longest"], set(question["ends"])
    may = range(words) if question["allowed"] is None else set(question["allowed"])
    if len(answers) != count:
        return f"{len(answers)} answers to {count} prompts"
    for ids in answers:
        if not 0 < len(ids) <= most or (len(ids) < most and ids[-1] not in ends):
            return f"an answer of {len(ids)} tokens that ends where none should"
        if not all(i in may for i in ids) or not ends.isdisjoint(ids[:-1]):
            return "tokens that were not allowed"
    return ""


def _rank(skeleton: Any, folder: Path) -> int:
    """The room that an adapter needs beside the weights. vLLM passes over what it does not know, so every tensor must have
    its place in the base, and be one that vLLM adds. Raises BrokenArtefact or BadSpec when not."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that nothing is copied into a module without weights: meant
        changes.apply_adapter(skeleton, folder, merge=False)
    other = [name for name in changes.read_tensors(folder / "adapter_model.safetensors")
             if not name.endswith((".lora_A.weight", ".lora_B.weight"))]
    try:
        said = json.loads((folder / "adapter_config.json").read_text("utf-8"))
        rank = max(int(said["r"]), *map(int, (said.get("rank_pattern") or {}).values()), 1)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise BrokenArtefact(f"The adapter {folder} does not say its rank ({error}). Train it again.") from None
    if other or rank > RANKS[-1]:
        why = f"holds {other[0]!r}" if other else f"has rank {rank}"
        raise BadSpec(f"vLLM cannot add the adapter {folder} as it runs: it {why}. Write "
                      "`engine: {vllm: {adapters: merged}}`.")
    return next(room for room in RANKS if room >= rank)


def _stamp(place: str | None) -> tuple[tuple[str, int, int], ...]:
    """The state of a file, or of the files of a folder: another one under the same name is another model."""
    if place is None:
        return ()
    found = [Path(place)] if Path(place).is_file() else sorted(f for f in Path(place).glob("*") if f.is_file())
    return tuple((f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in found)


def _write(held: ModelRef, folder: Path) -> str:
    """The whole changed model as a folder that vLLM can open. Raises NoRoom where it does not fit."""
    from safetensors import SafetensorError
    from transformers import GenerationConfig

    written: Any = GenerationConfig
    model = Transformers(device="cpu").load(held)
    model.module.generation_config = written()  # vLLM is told everything; some of them cannot be written at all
    try:
        model.module.save_pretrained(folder)
        model.tokenizer.save_pretrained(folder)
    except (OSError, SafetensorError) as error:
        raise NoRoom(f"The changed weights of {held.base} cannot be written to {folder} ({error}). Free space there, or let "
                     "TMPDIR name another folder.") from None
    return str(folder)


_keeping = threading.RLock()
_kept: _Running | None = None


def _running(start: Start) -> _Running:
    """A worker for this start: the kept one where it serves, else a new one in its place. Hold `_keeping` around it."""
    global _kept
    if _kept is None or not (_kept.alive and _kept.start.serves(start)):
        stop()
        _kept = _Running(start)
    return _kept


@atexit.register
def stop() -> None:
    """End the worker that is kept, and give its memory back."""
    global _kept
    with _keeping:
        ended, _kept = _kept, None
        if ended is not None:
            ended.end()
