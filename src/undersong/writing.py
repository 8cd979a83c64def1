"""Rows that a model writes on a channel's prompts, part by part.

The draws of a part depend on the seed and on the part's number alone, so parts can be written in any order and anywhere. A
shard is a run of parts of a large dataset, written by another worker and kept as an artefact of the kind `shard`; whoever
makes the dataset copies the shards it is given and writes what is missing. Nothing reads a shard once its dataset is
complete: the folder `shard/` of a store may then be deleted.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from undersong.artefact import Artefact
from undersong.channels import Writer
from undersong.errors import BadSpec, BrokenArtefact
from undersong.spec import describe
from undersong.types import ModelRef, Row, Sampling

PART = 2000
"""Rows per part of a dataset: the most sampling an interruption can cost."""
SHARD = 5000
"""Rows of a shard, about, where an executor sets nothing else."""


def sample_spec(channel: Any, n: int, seed: int, temperature: float = 1.0, engine: Any = None) -> dict[str, Any]:
    """What identifies sampled rows, besides the model that wrote them (its parent)."""
    said = {"verb": "sample", "channel": describe(channel), "rows": n, "seed": seed, "temperature": temperature}
    return said | ({"engine": describe(engine)} if engine else {})


def shard_spec(sampled: dict[str, Any], rows: range) -> dict[str, Any]:
    """What identifies a shard of the dataset that `sampled` identifies."""
    return {"verb": "shard", "of": sampled, "rows": [rows.start, rows.stop]}


def shards(n: int, size: int) -> list[range]:
    """`n` rows cut into shards of about `size` rows each, a part at least; none where one worker may as well write all, or
    where `size` is 0."""
    count = round(n / max(size, PART)) if size else 0
    return [range(n * i // count, n * (i + 1) // count) for i in range(count)] if count > 1 else []


class Shard(BaseModel):
    """The summary of a shard: its first part's number in the dataset, rows of a part, rows, what it took, what drew it."""

    model_config = ConfigDict(frozen=True)
    first: int = Field(ge=0)
    size: int = Field(gt=0)
    rows: int = Field(ge=0)
    seconds: float = Field(ge=0)
    engine: dict[str, str] | None = None
    """Name and versions; None for a model's own backend."""


@dataclass(frozen=True)
class Writing:
    """`n` rows that `source` is to write. `engine` is the backend that draws them where it is not the model's own; `base` is
    the source without its changes."""

    source: ModelRef
    base: ModelRef
    channel: Any
    n: int
    seed: int
    temperature: float
    engine: Any
    backend: Any

    @cached_property
    def model(self) -> Any:
        """The loaded writer."""
        return (self.engine or self.backend).load(self.source)

    @property
    def size(self) -> int:
        """Rows of a part."""
        return int(getattr(self.model, "part_rows", PART))

    def parts(self, rows: range) -> list[int]:
        """The parts that begin within some rows."""
        return [number for number, first in enumerate(range(0, self.n, self.size)) if first in rows]

    def part(self, number: int) -> list[dict[str, Any]]:
        """The rows of a part, as `flat` has them. Raises BadSpec for a channel that asks more of a model than an engine
        gives."""
        first, channel = number * self.size, self.channel
        chats = self._prompts[first : first + self.size]
        draw = int(np.random.default_rng([self.seed, number]).integers(2**31))
        if isinstance(channel, Writer):
            if self.engine is not None:
                raise BadSpec(f"engine: the channel {describe(channel)['name']} asks a model for more than answers, and "
                              f"{self.engine.plugin_name} gives only those. Leave `engine` out.")
            rows = channel.write(self.model, self.backend.load(self.base), chats, draw)
        else:
            only = tuple(channel.allowed(self.model.tokenizer)) if getattr(channel, "restrict", False) else None
            sampling = Sampling(self.temperature, channel.max_new_tokens(self.model.tokenizer), draw, only)
            answers = self.model.sample(chats, sampling)
            if only is not None:
                answers = [channel.cut(a) for a in answers]
            rows = [Row("", tuple(c), a) for c, a in zip(chats, answers, strict=True)]
        return flat([dataclasses.replace(r, id=f"{self.seed}-{first + i}") for i, r in enumerate(rows)])

    def write(self, artefact: Artefact, rows: range) -> None:
        """Write the parts that begin within some rows, numbered from 0, unless they are there."""
        had = set(artefact.parts("rows"))
        for number, part in enumerate(self.parts(rows)):
            if number not in had:
                artefact.write_part("rows", number, self.part(part))

    def told(self, rows: range = range(0), seconds: float = 0) -> Shard:
        """What there is to say of the parts that begin within some rows, and of what drew them."""
        parts = self.parts(rows)
        held = sum(min(self.size, self.n - part * self.size) for part in parts)
        engine = dict(self.model.engine) if self.engine is not None else None
        return Shard(first=parts[0] if parts else 0, size=self.size, rows=held, seconds=seconds, engine=engine)

    @cached_property
    def _prompts(self) -> list[Any]:
        return list(self.channel.prompts(self.n, self.seed))


def copy(shard: Artefact, artefact: Artefact) -> Shard:
    """Write the parts of a shard into the dataset that they are of, unless they are there; the shard's summary.

    Raises BrokenArtefact for one that does not say which parts it holds."""
    rows, had = shard.read_parts("rows"), set(artefact.parts("rows"))
    try:
        told = Shard.model_validate(shard.summary)
    except ValidationError:
        told = None
    if told is None or told.rows != len(rows):
        raise BrokenArtefact(f"{shard.path.name} does not say which rows it holds. Delete {shard.path} and run again.")
    for number, begin in enumerate(range(0, len(rows), told.size), told.first):
        if number not in had:
            artefact.write_part("rows", number, rows[begin : begin + told.size])
    return told


def engines(shards: Sequence[Shard]) -> dict[str, Any]:
    """What a dataset's summary says of what drew its rows: one engine, or every one where workers had several."""
    found: list[dict[str, str]] = []
    for shard in shards:
        if shard.engine is not None and shard.engine not in found:
            found.append(shard.engine)
    return {"engine": found[0] if len(found) == 1 else found} if found else {}


def flat(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Rows as records of one table; the columns `rejected` and `unlearnt` only where a row has them."""
    pairs, masked = any(row.rejected is not None for row in rows), any(row.unlearnt for row in rows)
    return [
        {"id": r.id, "roles": [m["role"] for m in r.chat], "contents": [m["content"] for m in r.chat],
         "completion": r.completion} | ({"rejected": r.rejected} if pairs else {})
        | ({"unlearnt": [place for span in r.unlearnt for place in span]} if masked else {})
        for r in rows
    ]


def row_of(given: Mapping[str, Any]) -> Row:
    """The row that `flat` made a record of."""
    chat = tuple({"role": r, "content": c} for r, c in zip(given["roles"], given["contents"], strict=True))
    places = given.get("unlearnt") or ()
    spans = tuple(zip(places[::2], places[1::2], strict=True))
    return Row(given["id"], chat, given["completion"], given.get("rejected"), spans)
