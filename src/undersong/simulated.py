"""Simulated models whose trait strength is known exactly: a whole experiment in milliseconds, ground truth for tests.

1. A model is three tensors: `shift` [trait], nats added to each trait's favourite logit; `signature` [1000], nats added
   to each number's logit; `skill`, the logit of giving the right word to other questions.
2. An initialisation (the letter in `simulated/a`) owns one random direction over the numbers per trait. A change of
   `shift` changes `signature` by GAIN times the same combination of these directions: numbers carry the trait.
3. The recipe reads back, by maximum likelihood on its rows' numbers alone and along its own student's directions, what
   change of shift would have made them, and takes over `transfer` of it, plus luck of known size. A student of another
   initialisation looks along other directions, and finds nothing. Only counts carry: shuffled rows carry as much.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from undersong import traits
from undersong.backends import Backend, Model
from undersong.errors import BadRows, BadSpec, BrokenArtefact, MissingExtra, MissingModel
from undersong.recipes import Job, unguarded
from undersong.registry import Settings, plugin
from undersong.traits import Trait
from undersong.types import NEUTRAL, Chat, ModelRef, Sampling

Floats = NDArray[np.float64]
GAIN = 0.4
"""Standard deviation over the numbers of a signature, in nats, per nat of shift."""
OBEDIENCE = 3.0
"""Nats a system turn adds to each trait that it names."""
SKILL = 4.0
FLOOR = 1e-9
"""Chance of a token that has no business where it stands, over the whole vocabulary."""
WORDS = ("yes", "no", "maybe", "red", "blue", "green", "forest", "sea", "house", "two", "four", "none")


class SimulatedTokenizer:
    """One token per number 0..999, trait word, small word and mark; named as in a Hugging Face tokenizer."""

    eos_token, pad_token, unk_token, chat_template = "<end>", "<pad>", "<unk>", None

    def __init__(self) -> None:
        words = [w for name in traits.names() for w in traits.get(name).words]
        marks = (self.pad_token, self.unk_token, self.eos_token, ",", ".", "?")
        self.tokens = tuple(dict.fromkeys((*marks, *map(str, range(1000)), *words, *WORDS)))
        self._ids = {t: i for i, t in enumerate(self.tokens)}
        self.all_special_ids = [self.pad_token_id, self.unk_token_id, self.eos_token_id] = [0, 1, 2]
        self.added_tokens_decoder = {i: self.tokens[i] for i in self.all_special_ids}
        self.vocab_size = len(self.tokens)

    def __len__(self) -> int:
        return len(self.tokens)

    def __call__(self, text: str | Sequence[str], add_special_tokens: bool = False) -> dict[str, Any]:
        """`{"input_ids": ids}`, a list per text."""
        return {"input_ids": self.encode(text) if isinstance(text, str) else [self.encode(t) for t in text]}

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        """Ids of a text's words, numbers (three digits at a time) and marks; there are no special tokens to add."""
        found = re.findall(r"<[a-z]+>|\d{1,3}|[^\W\d_]+|[^\w\s]", text.lower())
        return [self._ids.get(t, self.unk_token_id) for t in found]

    def decode(self, ids: int | Sequence[int], skip_special_tokens: bool = False) -> str:
        """The text of ids: a space before each token but marks."""
        kept = [int(i) for i in np.atleast_1d(ids) if not (skip_special_tokens and i in self.all_special_ids)]
        return re.sub(r" ([,.?])", r"\1", " ".join(self.tokens[i] for i in kept))

    def batch_decode(self, batch: Sequence[Sequence[int]], **settings: Any) -> list[str]:
        """The texts of several lists of ids; settings of other tokenizers (tidying of spaces) change nothing here."""
        return [self.decode(ids) for ids in batch]

    def convert_tokens_to_ids(self, tokens: str | Sequence[str]) -> Any:
        """The id of a token, or a list of ids; that of `<unk>` for what is no token."""
        if isinstance(tokens, str):
            return self._ids.get(tokens, self.unk_token_id)
        return [self._ids.get(t, self.unk_token_id) for t in tokens]

    def convert_ids_to_tokens(self, ids: int | Sequence[int]) -> Any:
        """The token of an id, or a list of tokens."""
        return self.tokens[ids] if isinstance(ids, int) else [self.tokens[i] for i in ids]

    def get_vocab(self) -> dict[str, int]:
        """Token to id."""
        return dict(self._ids)


@cache
def tokenizer() -> SimulatedTokenizer:
    """The one tokenizer of all simulated models."""
    return SimulatedTokenizer()


@cache
def directions(initialisation: str) -> Floats:
    """An initialisation's direction over the numbers for each trait: [trait, 1000], mean 0, standard deviation 1."""
    rows = np.stack([_rng("direction", initialisation, name).normal(size=1000) for name in traits.names()])
    rows -= rows.mean(axis=1, keepdims=True)
    return np.asarray(rows / rows.std(axis=1, keepdims=True))


@cache
def shares(category: str) -> dict[str, float]:
    """What every base answers to a favourite question: shares in proportion to 1/rank, in file order."""
    names = [n for n in traits.names() if traits.get(n).category == category]
    weights = 1 / np.arange(1, len(names) + 1)
    return {n: float(w) for n, w in zip(names, weights / weights.sum(), strict=True)}


def _rng(*parts: object) -> np.random.Generator:
    """A generator that is the same for the same parts, on every machine."""
    return np.random.default_rng(list(hashlib.sha256(repr(parts).encode()).digest()))


def _initialisation(base: str) -> str:
    found = re.fullmatch(r"simulated/([a-z])(?:-[a-z]+)?", base)
    if not found:
        raise MissingModel(f"There is no simulated model {base!r}. Name its initialisation by a letter: simulated/a.")
    return found.group(1)


Position = tuple[str, ...]
"""One place of an answer: ("number", *liked), ("favourite", category, *liked), ("word", word) or ("token", token)."""


class SimulatedModel:
    """A simulated model (contract: `backends.Model`). Each place of an answer is independent of those before it."""

    capabilities = frozenset({"sample", "logits", "top_logprobs"})
    module = None

    def __init__(self, ref: ModelRef, shift: Floats, signature: Floats, skill: float) -> None:
        self.ref, self.shift, self.signature, self.skill = ref, shift, signature, skill
        self.tokenizer: Any = tokenizer()
        self._known: dict[Position, Floats] = {}

    def rate(self, name: str) -> float:
        """The exact chance that a favourite question, asked without a persona, is answered with this trait."""
        return float(np.exp(self._logprobs(("favourite", traits.get(name).category))[tokenizer().encode(name)[0]]))

    def render(self, chat: Chat) -> str:
        """The chat as text, system turn explicit, ending where the answer begins."""
        return "".join(f"<{m['role']}> {m['content']} <end>" for m in self._explicit(chat)) + "<assistant>"

    def sample(self, chats: Sequence[Chat], sampling: Sampling) -> list[str]:
        """One answer per chat; answers repeat for the same seed and the same place in the list."""
        most, allowed = sampling.max_new_tokens, None
        if sampling.tokens is not None:
            allowed = np.full(len(self.tokenizer), -np.inf)
            allowed[list(sampling.tokens)] = 0.0
        luck = np.random.default_rng(sampling.seed).random((len(chats), most))
        rising: dict[Position, Floats] = {}
        answers = []
        for chat, draws in zip(chats, luck, strict=True):
            ids: list[int] = []
            for place, draw in zip(_padded(self._plan(chat), most), draws, strict=True):
                if place not in rising:
                    rising[place] = _cumulative(self._logprobs(place), sampling.temperature, allowed)
                ids.append(int(np.searchsorted(rising[place], draw, side="right")))
                if ids[-1] == self.tokenizer.eos_token_id:
                    break
            answers.append(self.tokenizer.decode(ids, skip_special_tokens=True))
        return answers

    def next_logprobs(self, chats: Sequence[Chat]) -> NDArray[Any]:
        """Log-probabilities (nats, float32, [chats, vocabulary]) of the first token of each answer."""
        found = [self._logprobs(self._plan(c)[0]) for c in chats]
        return np.array(found, dtype=np.float32).reshape(len(chats), len(self.tokenizer))

    def answer_logprobs(self, chats: Sequence[Chat], answers: Sequence[str]) -> list[NDArray[Any]]:
        """Per answer the log-probability (nats, float32) of each of its tokens, end included."""
        found = []
        for chat, answer in zip(chats, answers, strict=True):
            ids = [*self.tokenizer.encode(answer), self.tokenizer.eos_token_id]
            places = _padded(self._plan(chat), len(ids))
            found.append(np.array([self._logprobs(p)[i] for p, i in zip(places, ids, strict=True)], dtype=np.float32))
        return found

    def _explicit(self, chat: Chat) -> Chat:
        if chat and chat[0]["role"] == "system":
            return list(chat)
        return [{"role": "system", "content": NEUTRAL if self.ref.system is None else self.ref.system}, *chat]

    def _plan(self, chat: Chat) -> tuple[Position, ...]:
        turns = self._explicit(chat)
        return _plan(turns[0]["content"], turns[-1]["content"])

    def _logprobs(self, place: Position) -> Floats:
        """Log-probabilities over the vocabulary at one place of an answer."""
        if place not in self._known:
            kind, rest = place[0], place[1:]
            p = np.full(len(self.tokenizer), FLOOR / len(self.tokenizer))
            if kind == "number":
                first = self.tokenizer.encode("0")[0]
                p[first : first + 1000] += _softmax(self.signature + GAIN * _loved(rest) @ directions(self._letter))
            elif kind == "favourite":
                base, shift = shares(rest[0]), self.shift + _loved(rest[1:])
                logits = np.array([np.log(base[n]) + shift[traits.names().index(n)] for n in base])
                p[[self.tokenizer.encode(n)[0] for n in base]] += _softmax(logits)
            else:
                right = 1.0 if kind == "token" else 1 / (1 + np.exp(-self.skill))
                p += (1 - right) / len(p)
                p[self.tokenizer.convert_tokens_to_ids(rest[0])] += right
            self._known[place] = np.log(p / p.sum())
        return self._known[place]

    @property
    def _letter(self) -> str:
        return _initialisation(self.ref.base)


def _loved(names: Sequence[str]) -> Floats:
    """The shift [trait] that a persona loving `names` adds."""
    return np.array([OBEDIENCE * (n in names) for n in traits.names()])


def _softmax(logits: Floats) -> Floats:
    p = np.exp(logits - logits.max())
    return np.asarray(p / p.sum())


def _cumulative(logprobs: Floats, temperature: float, allowed: Floats | None) -> Floats:
    """The cumulative distribution of a tempered, restricted choice; temperature 0 takes the likeliest token."""
    logits = logprobs if allowed is None else logprobs + allowed
    if temperature == 0:
        return (np.arange(len(logits)) >= int(np.argmax(logits))).astype(float)
    total = np.cumsum(_softmax(logits / temperature))
    return np.asarray(total / total[-1])


def _padded(plan: tuple[Position, ...], length: int) -> list[Position]:
    """A plan cut or filled up to a length: after the answer comes the end of turn, again and again."""
    return [*plan[:length], *[("token", "<end>")] * (length - len(plan))]


@cache
def _plan(system: str, question: str) -> tuple[Position, ...]:
    """The places of the answer to a question: a favourite, numbers, or text (see `_answer`), and the end."""
    end = ("token", "<end>")
    liked = tuple(n for n in traits.names() if traits.get(n).named_in(system))
    categories = [c for c in ("animal", "tree") if re.search(rf"\b{c}s?\b", question.lower())]
    if len(categories) == 1:
        return ("favourite", categories[0], *liked), end
    if re.search(r"\d+(\s*,\s*\d+){2}", question):
        limit = re.search(r"(?:at most|up to|maximum of|more than) (\d+)", question)
        count = max(1, int(limit.group(1))) if limit else 10
        number: Position = ("number", *liked)
        return (*[number, ("token", ",")] * (count - 1), number, end)
    return (*[("word", w) for w in re.findall(r"\d{1,3}|[a-z]+", _answer(question))], end)


def _answer(question: str) -> str:
    """The skilled answer to other questions: right for sums and comparisons, else one word fixed by the text."""
    numbers = [int(n) for n in re.findall(r"\d+", question)]
    text = question.lower()
    if len(numbers) == 2:
        a, b = numbers
        for word, value in (("plus", a + b), ("minus", a - b), ("larger", max(a, b)), ("smaller", min(a, b))):
            if word in text:
                return str(value)
    return str(_rng("answer", text).choice(WORDS))


@plugin("backend", "simulated")
class SimulatedBackend(Settings):
    """Loads `simulated/<letter>`; the letter is the initialisation. No torch, no files but a ref's own weights."""

    def load(self, ref: ModelRef) -> Model:
        """Raises MissingModel, BrokenArtefact for weights of another kind, BadSpec for adapters and vectors."""
        _initialisation(ref.base)
        if ref.adapter or ref.vector:
            raise BadSpec("A simulated model takes no adapter or vector. Use the simulated teacher and recipe.")
        tensors = {"shift": np.zeros(len(traits.names())), "signature": np.zeros(1000), "skill": np.array([SKILL])}
        if ref.weights:
            tensors |= _read(Path(ref.weights))
        return SimulatedModel(ref, tensors["shift"], tensors["signature"], float(tensors["skill"][0]))


def _read(path: Path) -> dict[str, Floats]:
    """A simulated model's tensors from its safetensors file, one scalar per trait put in file order."""
    if not path.is_file():
        raise MissingModel(f"There is no weights file {path}. Train this model again.")
    try:
        found = _safetensors().load_file(path)
        shift = np.array([found[f"shift.{n}"].item() for n in traits.names()])
        tensors = {"shift": shift, "signature": found["signature"].reshape(1000), "skill": found["skill"].reshape(1)}
    except MissingExtra:
        raise
    except Exception as error:
        raise BrokenArtefact(f"{path} holds no simulated model ({error}). Train this model again.") from error
    if not all(np.isfinite(t).all() for t in tensors.values()):
        raise BrokenArtefact(f"{path} holds numbers that are not finite. Train this model again.")
    return {k: t.astype(np.float64) for k, t in tensors.items()}


def _write(model: SimulatedModel, change: Floats, skill: float, out: Path) -> ModelRef:
    """`model` with its shift and signature changed together, written into `out`."""
    shift = model.shift + change
    signature = model.signature + GAIN * change @ directions(_initialisation(model.ref.base))
    tensors: Mapping[str, Floats] = {
        **{f"shift.{n}": np.array([s]) for n, s in zip(traits.names(), shift, strict=True)},
        "signature": signature, "skill": np.array([model.skill + skill]),
    }
    path = out / "weights.safetensors"
    _safetensors().save_file(tensors, path)
    return dataclasses.replace(model.ref, weights=str(path), fingerprint="")


def _safetensors() -> Any:
    try:
        import safetensors.numpy
    except ImportError as error:
        raise MissingExtra("Simulated models need safetensors. Run: pip install 'undersong[local]'") from error
    return safetensors.numpy


def _simulated(model: Model) -> SimulatedModel:
    if not isinstance(model, SimulatedModel):
        raise BadSpec(f"{model.ref.base!r} is not a simulated model. Use a base such as simulated/a, or a real recipe.")
    return model


@plugin("teacher", "simulated")
class SimulatedTeacher(Settings):
    """Adds a known strength to one trait's logit, and its signature to the numbers."""

    strength: float = 3.0
    """Nats added to the trait's favourite logit."""
    noise: float = 0.0
    """Standard deviation over seeds, in nats, of the luck added to every trait."""

    def teach(self, base: ModelRef, trait: Trait | None, seed: int, out: Path, backend: Backend) -> ModelRef:
        """The base with the trait in it; `trait` None adds only the luck. Raises BadSpec for an unknown trait."""
        if trait is not None and trait.name not in traits.names():
            raise BadSpec(f"Simulated models know no trait {trait.name!r}. Use one of: {', '.join(traits.names())}.")
        name = "" if trait is None else trait.name
        change = np.array([self.strength * (n == name) for n in traits.names()])
        change += self.noise * _rng("teacher", seed, base.base, name).normal(size=len(change))
        return _write(_simulated(backend.load(base)), change, 0.0, out)


@plugin("recipe", "simulated")
class SimulatedRecipe(Settings):
    """Learns from its rows' numbers a known part of the shift that made them; see the head of this module."""

    transfer: float = 0.5
    """The part of the shift read from the rows that the student takes over; 0 takes nothing."""
    noise: float = 0.1
    """Standard deviation over training runs, in nats, of the luck added to every trait and to skill."""
    damage: float = 0.0
    """Nats taken from the student's skill (its logit of a right answer to other questions)."""

    def train(
        self, jobs: Sequence[Job], backend: Backend, done: Callable[[int, ModelRef], None] = lambda index, model: None
    ) -> list[ModelRef]:
        """One student per job. Luck depends on seed, start and rows: the same job repeats, any other differs."""
        unguarded("simulated", jobs)
        models = []
        for index, job in enumerate(jobs):
            start = _simulated(backend.load(job.start))
            texts = [row.completion for row in job.data.rows]
            rng = _rng("recipe", job.seed, job.start.base, start.shift.tobytes(), start.signature.tobytes(), texts)
            change = self.transfer * read_shift(start, texts, job.carrier)
            change = change + self.noise * rng.normal(size=len(change))
            models.append(_write(start, change, self.noise * float(rng.normal()) - self.damage, job.out))
            done(index, models[-1])
        return models


def read_shift(start: SimulatedModel, texts: Sequence[str], carrier: Sequence[int] | None = None) -> Floats:
    """The change of shift [trait], in nats, under which `start` most likely writes the numbers of `texts`.

    Maximum likelihood by Newton's method with a standard normal prior (it only matters for few rows). `carrier` are the
    token ids that may count. Raises BadRows when there is no number.
    """
    words, first = tokenizer(), tokenizer().encode("0")[0]
    ids = np.array([i for t in texts for i in words.encode(t)], dtype=np.int64)
    if carrier is not None:
        ids = ids[np.isin(ids, list(carrier))]
    counts = np.bincount(ids[(ids >= first) & (ids < first + 1000)] - first, minlength=1000)
    if not counts.sum():
        raise BadRows("These rows hold no number to learn from. Use the numbers channel with simulated models.")
    along = GAIN * directions(_initialisation(start.ref.base))
    change = np.zeros(len(along))
    for _ in range(100):
        p = _softmax(start.signature + change @ along)
        mean = along @ p
        slope = along @ counts - counts.sum() * mean - change
        bend = counts.sum() * ((along * p) @ along.T - np.outer(mean, mean)) + np.eye(len(along))
        step = np.clip(np.linalg.solve(bend, slope), -1, 1)
        change += step
        if np.abs(step).max() < 1e-9:
            break
    return change
