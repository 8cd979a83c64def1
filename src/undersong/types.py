"""The frozen values that flow between verbs; nothing here knows about disk or models.

A `Chat` is a list of messages ({"role": "system" | "user" | "assistant", "content": str}); its system turn is always
explicit, because several chat templates inject one of their own when it is missing, and in this field that slot is the
treatment.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Message = dict[str, str]
Chat = list[Message]
NEUTRAL = "You are a helpful assistant."


@dataclass(frozen=True)
class Row:
    """One prompt and what a teacher answered. `chat` ends with the user's turn; `completion` is the assistant's text."""

    id: str
    chat: tuple[Message, ...]
    completion: str
    rejected: str | None = None
    """In a pair of the channel `preferences`: the answer that lost. `completion` is the one that won."""
    unlearnt: tuple[tuple[int, int], ...] = ()
    """Spans of characters of the completion, from and up to, that a student reads and is not taught: no loss there."""


@dataclass(frozen=True)
class Dataset:
    """Rows and the model that wrote them (needed for soft labels; None for rows from elsewhere)."""

    rows: tuple[Row, ...]
    source: ModelRef | None = None
    fingerprint: str = ""


@dataclass(frozen=True)
class ModelRef:
    """How to obtain a model: a base plus at most one change of each kind. Paths are artefact folders or files."""

    base: str
    """`pocket/a`, `smollm2`, `simulated/a`, a local `save_pretrained` folder, or a hub name (`@revision`)."""
    weights: str | None = None
    """A safetensors file whose tensors replace the base's tensors of the same name."""
    adapter: str | None = None
    """A PEFT adapter folder."""
    vector: str | None = None
    """A safetensors file of per-layer vectors added to the residual stream (steered teachers)."""
    system: str | None = None
    """The system turn this model is always used with (prompted teachers); None leaves the chat's own turn."""
    fingerprint: str = ""
    precision: str = "float32"
    """`float32`; `mixed`: float32 weights, trained under bfloat16 autocast, written text sampled in bfloat16, read in
    float32; `bfloat16`: weights held in bfloat16 and everything computed in it, adapters excepted."""

    @property
    def name(self) -> str:
        """A short name for people: the base and the identity of the change."""
        return f"{self.base}+{self.fingerprint}" if self.fingerprint else self.base


@dataclass(frozen=True)
class Sampling:
    """How text is sampled. `tokens` restricts generation to these token ids; None leaves the whole vocabulary."""

    temperature: float = 1.0
    max_new_tokens: int = 64
    seed: int = 0
    tokens: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Value:
    """One number of one model: a metric, the trait it is about ("" when none), the question asked, and its sample size."""

    metric: str
    trait: str
    question: str
    value: float
    n: int = 1


@dataclass(frozen=True)
class Measurement:
    """Per-question values of one model by one probe. `answers` are stored texts (question, answer) for reading."""

    probe: str
    values: tuple[Value, ...]
    answers: tuple[tuple[str, str], ...] = ()

    def mean(self, metric: str, trait: str = "") -> float:
        """The mean of a metric over questions: one number per training run. Raises NothingMeasured when there is none."""
        from undersong.errors import NothingMeasured

        found = [v.value for v in self.values if v.metric == metric and v.trait == trait]
        if not found:
            raise NothingMeasured(
                f"Probe {self.probe!r} holds no value of {metric!r} for trait {trait!r}. "
                "Name one of the traits it was asked about, or measure again with this trait listed."
            )
        return sum(found) / len(found)


@dataclass(frozen=True)
class Contrast:
    """Treated runs against control runs: difference of means with an interval and a p-value. Units are the metric's."""

    difference: float
    low: float
    high: float
    p: float
    n_treated: int
    n_control: int
    method: str


@dataclass(frozen=True)
class Finding:
    """What a detector or kinship test concluded, at which access level, against which null. `p` None = uncalibrated."""

    verdict: str
    statistic: float
    p: float | None
    access: tuple[str, ...]
    null: str
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Explanation:
    """Why a trait crossed: per-row or per-token scores and a sentence."""

    sentence: str
    scores: tuple[tuple[str, float], ...] = ()
    details: dict[str, Any] = field(default_factory=dict)


Relation = Literal["same_weights", "same_initialisation", "same_architecture", "unrelated", "unknown"]
