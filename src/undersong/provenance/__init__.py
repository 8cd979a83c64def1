"""Provenance: what the store remembers, in other people's formats. A plug-in (an exporter) is settings plus `export`.

`record.json` is the single source: an exporter is handed an `Account` (the records of one artefact and its ancestors, the
bases they start from, what was measured, which audits are of these bytes) and returns a document. It reads no file and
asks no network. Every document has passed its own ecosystem's validator before it is returned.

What is not known is written as `unknown`, never left out. Every text of a record is a stranger's: `Account` holds it
without characters that no format can carry, and text formats escape it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, ClassVar, Protocol

from undersong.errors import BrokenArtefact, MissingExtra

UNKNOWN = "unknown"
Record = Mapping[str, Any]
MAKES = {"teach": "teacher", "sample": "rows", "shard": "rows", "refine": "refined rows", "mitigate": "changed rows",
         "select": "selected rows", "train": "student", "repair": "repaired student", "measure": "measurement",
         "audit": "finding", "calibrate": "calibration", "kinship": "kinship test", "explain": "explanation",
         "read": "reading",
         "report": "experiment"}
"""The verb of a spec, and what it makes."""
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Base:
    """A model that nothing in the store made. `revision` is what pins it: a SHA-256 of content, or its bare name."""

    name: str
    fingerprint: str
    revision: str
    precision: str = "float32"

    @property
    def sha256(self) -> str | None:
        """The SHA-256 of its weights or its folder's content; None when it is pinned by name only."""
        return self.revision if _SHA256.fullmatch(self.revision) else None

    @property
    def shown(self) -> str:
        """Its name without the path it had on one machine."""
        local = self.name.startswith((".", "/", "~")) or self.name.count("/") > 1
        return PurePath(self.name).name if local and self.sha256 else self.name


@dataclass(frozen=True)
class Piece:
    """One artefact: its record, the SHA-256 of record.json, and the columns (name, Arrow type) of its Parquet files."""

    record: Record
    sha256: str
    tables: Mapping[str, tuple[tuple[str, str], ...]]

    @property
    def title(self) -> str:
        """`kind/label.fingerprint`: how the store calls it."""
        return f"{self.record['kind']}/{self.record['label']}.{self.record['fingerprint']}"

    @property
    def makes(self) -> str:
        """What it is: teacher, rows, refined rows, student, ... or unknown."""
        return MAKES.get(at(self.record, "spec", "verb"), UNKNOWN)

    def told(self, *path: str) -> str:
        """A value of its record as text; `unknown` when it is not there."""
        return at(self.record, *path)


@dataclass(frozen=True)
class Figure:
    """One number measured on the artefact: mean over `n` questions, with a 95 % interval over them where there is one."""

    probe: str
    metric: str
    trait: str
    n: int
    mean: float
    low: float | None
    high: float | None
    source: str
    """The measurement artefact."""


@dataclass(frozen=True)
class Account:
    """What an exporter is told: the artefact, its ancestors (the oldest first), bases, figures, and audits (their JSON)."""

    piece: Piece
    ancestors: tuple[Piece, ...] = ()
    bases: tuple[Base, ...] = ()
    figures: tuple[Figure, ...] = ()
    audits: tuple[Mapping[str, Any], ...] = ()

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """The ancestors and the artefact."""
        return (*self.ancestors, self.piece)

    def parents(self, piece: Piece) -> tuple[list[Piece], list[Base], list[str]]:
        """What a piece was made from: artefacts, bases, and fingerprints of evidence that no store holds."""
        known = {p.record["fingerprint"]: p for p in self.pieces}
        starts = {b.fingerprint: b for b in self.bases}
        marks = list(piece.record["parents"])
        return ([known[m] for m in marks if m in known], [starts[m] for m in marks if m not in known and m in starts],
                [m for m in marks if m not in known and m not in starts])

    def of_kind(self, *makes: str) -> list[Piece]:
        """The pieces that are one of these things."""
        return [p for p in self.pieces if p.makes in makes]


class Exporter(Protocol):
    """The contract of an exporter."""

    ending: ClassVar[str]
    """What the file's name ends with."""

    def export(self, account: Account) -> dict[str, Any] | str:
        """The document: a JSON value, or text. Raises BadSpec for artefacts that the format has no words for."""
        ...


def at(value: Any, *path: str) -> str:
    """The text at a path of nested mappings; `unknown` for what is not there, is empty, or is no plain value."""
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    plain = isinstance(value, str | int | float | bool) and value != ""
    return str(value) if plain else UNKNOWN


def clean(value: Any, depth: int = 0) -> Any:
    """A JSON value that every format can carry: lone surrogates and control characters replaced, integers past 2^53 as
    text. Raises BrokenArtefact when it is nested deeper than any record of ours."""
    if depth > 100:
        raise BrokenArtefact("A record is nested more than 100 deep: it is not one of ours. Delete the artefact unused.")
    if isinstance(value, str):
        return "".join("\N{REPLACEMENT CHARACTER}" if _cannot(c) else c for c in value)
    if isinstance(value, Mapping):
        return {clean(str(k)): clean(v, depth + 1) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [clean(v, depth + 1) for v in value]
    return str(value) if isinstance(value, int) and abs(value) > 2**53 else value


def _cannot(c: str) -> bool:
    return (ord(c) < 32 and c not in "\n\t") or 0xD800 <= ord(c) <= 0xDFFF or ord(c) in (0x7F, 0xFFFE, 0xFFFF)


def need(package: str, extra: str = "provenance") -> MissingExtra:
    """The error for an exporter whose library is not installed."""
    return MissingExtra(f"This needs {package}. Run: pip install 'undersong[{extra}]'")


def files_of(piece: Piece) -> Iterator[tuple[str, str, int]]:
    """Each payload file: name, SHA-256, bytes."""
    for name, kept in sorted(piece.record["files"].items()):
        yield name, kept["sha256"], kept["bytes"]
