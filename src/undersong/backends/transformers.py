"""The local backend: any causal language model of transformers, from a pocket model to a Hugging Face name.

Only safetensors are read, `trust_remote_code` is never set, and every loaded model owns its tensors. Small bases are
read from disk once and copied in memory after that, so that many students load quickly.
"""

from __future__ import annotations

import contextlib
import copy
import os
import threading
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from undersong import bases
from undersong.backends import CAPABILITIES, changes, foreign, tokens
from undersong.backends.logits import completion_logits
from undersong.backends.sampling import Chooser, uniforms
from undersong.backends.threads import SMALL, side_by_side, small
from undersong.backends.tokens import TokenRow
from undersong.errors import BrokenArtefact, MissingExtra, MissingModel, UndersongError
from undersong.registry import Settings, plugin
from undersong.spec import execution
from undersong.types import Chat, ModelRef, Sampling

_loading = threading.RLock()


@plugin("backend", "transformers")
class Transformers(Settings):
    """Run models on this machine with transformers."""

    batch: int = execution(256)
    """Rows that run at once."""
    workers: int = execution(0)
    """Threads that sample small models side by side; 0 takes every core."""
    device: str = execution("auto")
    """`cpu`, `cuda`, `cuda:1`, ...; `auto` takes a GPU when there is one."""

    def load(self, ref: ModelRef) -> LocalModel:
        """The model a reference names, with its weights, adapter and vectors applied, in evaluation mode.

        Raises MissingExtra without torch, MissingModel for a base that is not there, BrokenArtefact for a change that
        does not fit.
        """
        torch, transformers = _libraries()
        transformers.utils.logging.disable_progress_bar()
        device = self.device if self.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
        with _loading:
            half = ref.precision == "bfloat16"
            module, tokenizer = _open(ref.base, "bfloat16" if half else "float32")
            if ref.weights:
                changes.apply_weights(module, Path(ref.weights))
            if ref.adapter:
                # merged into bfloat16 weights, most of a small update would be rounded away
                module = changes.apply_adapter(module, Path(ref.adapter), merge=not half)
            if ref.vector:
                changes.apply_vector(module, Path(ref.vector))
        if device != "cpu":
            foreign.rest()
        return LocalModel(ref, module.to(device).eval(), tokenizer, self.batch, self.workers)


class LocalModel:
    """A loaded model (contract: `undersong.backends.Model`). Its module is its own: changing it changes no other
    model."""

    capabilities = frozenset(CAPABILITIES)

    def __init__(self, ref: ModelRef, module: Any, tokenizer: Any, batch: int, workers: int) -> None:
        self.ref, self.module, self.tokenizer = ref, module, tokenizer
        self._batch, self._workers = batch, workers
        self.pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokens.end_ids(self)[0]

    def render(self, chat: Chat) -> str:
        """The exact text the model is given: the chat with an explicit system turn, up to where the answer begins.

        Raises BadRows for a chat template that drops or refuses the system turn: that slot is the treatment here.
        """
        return tokens.prompt(chat, self)

    def sample(self, chats: Sequence[Chat], sampling: Sampling, places: Sequence[int] | None = None) -> list[str]:
        """One answer per chat without special tokens or trailing white space; row i's noise depends on (seed, i) only.

        `places` gives each chat another number than its place in the list: for callers whose lists are chance.
        Temperature 0 takes the best token. Raises BadRows when a prompt and its answer do not fit the model's context.
        """
        import torch

        room = getattr(self.module.config, "max_position_embeddings", None)
        prompts = [np.asarray(ids) for ids in tokens.prompt_ids(self, chats, sampling.max_new_tokens, room)]
        numbers = np.arange(len(prompts)) if places is None else np.asarray(places, dtype=np.int64)
        order = np.argsort([len(p) for p in prompts], kind="stable")
        parts = [order[i : i + self._batch] for i in range(0, len(order), self._batch)]
        answers: list[list[int]] = [[]] * len(prompts)
        mixed = bool(prompts) and self.ref.precision == "mixed"
        writer = copy.deepcopy(self.module).to(torch.bfloat16) if mixed else self.module

        def run(part: NDArray[np.int64], stop: threading.Event) -> list[list[int]]:
            if stop.is_set():
                raise KeyboardInterrupt
            with torch.inference_mode():
                return self._generate(writer, [prompts[i] for i in part], numbers[part], sampling)

        for part, found in zip(parts, self._spread(run, parts), strict=True):
            for i, ids in zip(part, found, strict=True):
                answers[i] = ids
        return tokens.answer_texts(self, answers)

    def _generate(
        self, writer: Any, prompts: list[NDArray[np.int64]], rows: NDArray[np.int64], sampling: Sampling
    ) -> list[list[int]]:
        import torch

        width, device = max(map(len, prompts)), self.module.device
        ids, mask = np.full((len(prompts), width), self.pad), np.zeros((len(prompts), width), dtype=np.int64)
        for i, prompt in enumerate(prompts):
            ids[i, width - len(prompt) :], mask[i, width - len(prompt) :] = prompt, 1
        ends = tokens.end_ids(self)
        draws = uniforms(sampling.seed, rows, sampling.max_new_tokens)
        out = writer.generate(
            input_ids=torch.from_numpy(ids).to(device), attention_mask=torch.from_numpy(mask).to(device),
            max_new_tokens=sampling.max_new_tokens, do_sample=False, num_beams=1, pad_token_id=self.pad,
            eos_token_id=ends,
            logits_processor=[Chooser(draws, sampling.temperature, sampling.tokens, device)],
        )
        return [tokens.until(answer, ends) for answer in out[:, width:].tolist()]

    def next_logprobs(self, chats: Sequence[Chat]) -> NDArray[np.float32]:
        """Log-probabilities (nats, float32, [chats, vocabulary]) of the first token of the answer to each chat."""
        prompts = tokens.token_ids(self.tokenizer, [self.render(c) for c in chats])
        found = self._score([TokenRow(np.asarray([*ids, self.pad]), len(ids)) for ids in prompts], whole=True)
        return np.concatenate(found) if found else np.zeros((0, self.module.config.vocab_size), dtype=np.float32)

    def answer_logprobs(self, chats: Sequence[Chat], answers: Sequence[str]) -> list[NDArray[np.float32]]:
        """Per answer the log-probability (nats, float32) of each of its tokens, end of turn included, given its chat.
        """
        return self._score(tokens.encode(self, chats, answers), whole=False)

    def _score(self, rows: Sequence[TokenRow], whole: bool) -> list[NDArray[np.float32]]:
        """Log-probabilities at each row's completion tokens: over the vocabulary, or of the tokens themselves."""
        import torch

        order = np.argsort([len(r.ids) for r in rows], kind="stable")
        parts = [order[i : i + self._batch] for i in range(0, len(order), self._batch)]

        def run(part: NDArray[np.int64], stop: threading.Event) -> NDArray[np.float32]:
            here = [rows[i] for i in part]
            with torch.inference_mode():
                logs = completion_logits(self.module, here, self.pad).float().log_softmax(-1)
                if not whole:
                    target = torch.from_numpy(np.concatenate([r.answer for r in here])).to(logs.device)
                    logs = logs.gather(1, target[:, None])[:, 0]
                return np.asarray(logs.cpu().numpy(), dtype=np.float32)

        out: list[NDArray[np.float32]] = [np.zeros(0, dtype=np.float32)] * len(rows)
        for part, logs in zip(parts, self._spread(run, parts), strict=True):
            ends = np.cumsum([len(rows[i].answer) for i in part])
            for i, piece in zip(part, np.split(logs, ends[:-1]), strict=True):
                out[i] = piece
        return out

    def _spread(self, run: Any, parts: Sequence[Any]) -> list[Any]:
        """Run parts side by side on threads where the model is small and on the CPU, else one after another."""
        if small(self.module):
            return side_by_side(run, parts, self._workers, lambda index, result: None)
        return [run(part, threading.Event()) for part in parts]


def _libraries() -> tuple[Any, Any]:
    """Torch and transformers. Raises MissingExtra without them."""
    try:
        import torch
        import transformers
    except ImportError as error:
        raise MissingExtra(f"Running models needs {error.name}. Install it with: pip install "
                           "'undersong[local]'.") from None
    return torch, transformers


def _open(base: str, dtype: str) -> tuple[Any, Any]:
    """A fresh module and the tokenizer of a base."""
    place, revision = bases.place(base)
    files = sorted(Path(place).glob("*.safetensors")) if Path(place).is_dir() else []
    stamp = (max((f.stat().st_mtime for f in files), default=0.0), sum(f.stat().st_size for f in files))
    module, tokenizer = _read(place, revision, stamp, dtype)
    if module.num_parameters() > SMALL:
        _read.cache_clear()  # a large base is handed out, not kept beside its copy
        return module, tokenizer
    return copy.deepcopy(module), tokenizer


@lru_cache(maxsize=4)
def _read(place: str, revision: str | None, stamp: tuple[float, int], dtype: str) -> tuple[Any, Any]:
    """Module and tokenizer from disk or the Hugging Face cache. Raises MissingModel or BrokenArtefact in words."""
    import torch
    from transformers import AutoModelForCausalLM

    with _told(place, revision):
        tokenizer = _tokenizer(place, revision)
        module = AutoModelForCausalLM.from_pretrained(
            place, use_safetensors=True, dtype=getattr(torch, dtype), trust_remote_code=False, **_where(place, revision))
    module.generation_config = _plain(module.generation_config)
    return module, tokenizer


def _plain(given: Any) -> Any:
    """What a model's own generation configuration says of the ends of a text, and nothing else: penalties and bans that some
    models ship would have rows drawn from another distribution than the one that probes and soft labels read."""
    from transformers import GenerationConfig

    made: Any = GenerationConfig
    return made(bos_token_id=given.bos_token_id, eos_token_id=given.eos_token_id, pad_token_id=given.pad_token_id)


def outline(base: str) -> tuple[Any, Any]:
    """The module of a base without its weights (every tensor on torch's `meta` device), with its generation configuration,
    and the tokenizer: what can be known of a model that another program runs. Raises as `Transformers.load` does."""
    torch, transformers = _libraries()
    place, revision = bases.place(base)
    where = _where(place, revision)
    with _told(place, revision):
        tokenizer = _tokenizer(place, revision)
        config = transformers.AutoConfig.from_pretrained(place, trust_remote_code=False, **where)
        with torch.device("meta"):
            module = transformers.AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    with contextlib.suppress(OSError):  # else what the configuration gives stands, as in from_pretrained
        module.generation_config = _plain(transformers.GenerationConfig.from_pretrained(place, **where))
    return module.eval(), tokenizer


def _where(place: str, revision: str | None) -> dict[str, Any]:
    """What tells transformers where to look: at a revision, and at no hub for a folder or when it is to stay offline."""
    offline = any(os.environ.get(name, "0").lower() not in ("", "0", "false", "no", "off")
                  for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"))
    return {"local_files_only": offline or Path(place).is_dir()} | ({} if revision is None else {"revision": revision})


def _tokenizer(place: str, revision: str | None) -> Any:
    """The tokenizer of a base. Raises MissingModel when it has no chat template."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=False, **_where(place, revision))
    if tokenizer.chat_template is None:
        raise MissingModel(f"The model {place!r} has no chat template, so chats cannot be written for it. Use a chat "
                           "model.")
    return tokenizer


@contextlib.contextmanager
def _told(place: str, revision: str | None) -> Iterator[None]:
    """What goes wrong in opening a base, in words."""
    from safetensors import SafetensorError

    try:
        yield
    except UndersongError:
        raise
    except SafetensorError as error:
        raise BrokenArtefact(f"The weights of {place!r} cannot be read ({error}). Fetch or write the model "
                             "again.") from None
    except (OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        at = f" at the revision {revision!r}" if revision else ""
        raise MissingModel(f"The model {place!r}{at} cannot be loaded ({first}). Check its name, or give a local folder "
                           "written by save_pretrained, or a pocket model (see `undersong models`).") from None
