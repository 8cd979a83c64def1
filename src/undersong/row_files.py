"""The rows an auditor was handed, read from disk again and again: JSONL, CSV or Parquet, or a folder of such files.

A file is never held whole (only a `.json` list is, up to 64 MiB): rows come in batches, and what is remembered of a
million of them is eight bytes each. What is no row is counted with its reason and place; a file without any row raises
BadRows. Nothing that a file says is run, and no text of it appears in a reason. Forms of a row: `undersong.row_forms`.
"""

from __future__ import annotations

import array
import csv
import gzip
import itertools
import json
import zlib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, cast

import numpy as np

from undersong.errors import BadRows
from undersong.row_forms import COMPLETION, FORMS, KEYS, LONGEST, row_of
from undersong.types import Row

KINDS = (".jsonl", ".ndjson", ".jsonlines", ".json", ".csv", ".tsv", ".parquet")
"""Endings of files that are read; all but `.parquet` also with `.gz` behind."""
FIRST = 5
"""So many places are remembered of each reason."""
_BATCH = 8192
_FEW = 128  # rows that are not kept: a list of thousands would survive into the garbage collector's slow rounds
_LIST_BYTES = 64 * 2**20
_GROUP_BYTES = 2**31
_Records = Iterator[tuple[int, Any]]


@dataclass
class Refusal:
    """Why some rows were left out: how many, and the first places (`file:line`, or `file:row` in Parquet)."""

    count: int = 0
    places: list[str] = field(default_factory=list)


@dataclass
class Tally:
    """What one whole pass has met. `rows` are usable; `duplicates` are those among them that were there before, prompt
    and answer alike; `forms` counts the rows of each form."""

    rows: int = 0
    duplicates: int = 0
    refused: dict[str, Refusal] = field(default_factory=dict)
    forms: dict[str, int] = field(default_factory=dict)

    @property
    def n_refused(self) -> int:
        """Rows left out, for all reasons together."""
        return sum(refusal.count for refusal in self.refused.values())

    def sentence(self) -> str:
        """What was read, for people: counts, reasons and where."""
        said = [f"{self.rows:,} rows ({self.duplicates:,} of them repeat another)"]
        for reason, refusal in sorted(self.refused.items(), key=lambda item: -item[1].count):
            said.append(f"{refusal.count:,} refused: {reason} ({', '.join(refusal.places)})")
        return "; ".join(said)


@dataclass(frozen=True)
class _Bad:
    """A place in a file that held no record, and the reason."""

    reason: str


class RowFile(Collection[Row]):
    """Rows on disk: a collection that is read anew each time, in file order. Ids are `file:line`, from 1.

    Raises BadRows at once for a path that is not there or has no known ending, and when a pass ends without a row.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.files = _files(self.path)
        self._tally: Tally | None = None
        self._stamp: list[tuple[int, int]] = []

    def __iter__(self) -> Iterator[Row]:
        for batch in self.batches(_FEW):
            yield from batch

    def __len__(self) -> int:
        return self.tally.rows

    def __contains__(self, row: object) -> bool:
        return any(own == row for own in self)

    def __repr__(self) -> str:
        return f"RowFile({str(self.path)!r})"

    @property
    def tally(self) -> Tally:
        """The tally of the last whole pass; the first call makes one when there was none."""
        return self._tally if self._tally is not None else self.count()

    def count(self) -> Tally:
        """Read everything once and say what was met. Raises BadRows when no row is usable."""
        for _ in self.batches(_FEW):
            pass
        return cast(Tally, self._tally)

    def batches(self, size: int) -> Iterator[list[Row]]:
        """The rows in lists of `size`, the last one shorter. Raises BadRows, also when a file has changed since it was
        counted."""
        stamp = [(s.st_size, s.st_mtime_ns) for s in (file.stat() for file in self.files)]
        if self._tally is not None and stamp != self._stamp:
            raise BadRows(f"{_shown(self.path)} has changed since it was first read. Open it anew.")
        tally, seen = Tally(), array.array("q")
        rows = self._rows(tally, seen)
        while batch := list(itertools.islice(rows, size)):
            yield batch
        if not tally.rows:
            raise BadRows(_nothing(self.path, tally))
        if self._tally is None:
            tally.duplicates = len(seen) - len(np.unique(np.frombuffer(seen, np.int64)))
            self._tally, self._stamp = tally, stamp

    def sample(self, n: int, seed: int = 0) -> list[Row]:
        """`n` rows drawn evenly, without putting any back, in file order; all of them when there are no more."""
        n, total = max(0, n), len(self)
        if n >= total:
            return list(self)
        chosen = np.sort(np.random.default_rng(seed).choice(total, n, replace=False, shuffle=False))
        out: list[Row] = []
        start = 0
        for batch in self.batches(_BATCH):
            if len(out) == n:
                break
            here = chosen[len(out) : np.searchsorted(chosen, start + len(batch))]
            out += [batch[i - start] for i in here.tolist()]
            start += len(batch)
        return out

    def _rows(self, tally: Tally, seen: array.array[int]) -> Iterator[Row]:
        forms: Counter[str] = Counter()
        for file in self.files:
            name = _shown(file.relative_to(self.path) if file != self.path else Path(file.name))
            for place, record in _records(file):
                found = record.reason if isinstance(record, _Bad) else row_of(record, f"{name}:{place}")
                if isinstance(found, str):
                    refusal = tally.refused.setdefault(found, Refusal())
                    refusal.count += 1
                    if len(refusal.places) < FIRST:
                        refusal.places.append(f"{name}:{place}")
                    continue
                row, form = found
                tally.rows += 1
                forms[form] += 1
                if self._tally is None:
                    # Python's own hash of text: fast, and keyed anew in each process, so nobody can aim at a collision
                    seen.append(hash((row.completion, row.rejected, *[m["content"] for m in row.chat])))
                yield row
        tally.forms = {form: forms[form] for form in FORMS if forms[form]}


def _files(path: Path) -> list[Path]:
    """The files to read, sorted by name. Raises BadRows."""
    if path.is_dir():
        inside = sorted(f for f in path.rglob("*") if f.is_file() and _kind(f) and not f.name.startswith("."))
        if not inside:
            raise BadRows(f"The folder {_shown(path)} holds no file of rows. Put a file in it that ends with "
                          f"{_either(KINDS)}.")
        return inside
    if not path.is_file():
        raise BadRows(f"There is no file {_shown(path)}. Name a file of rows or a folder of such files.")
    if not _kind(path):
        raise BadRows(f"{_shown(path)} has an ending that says nothing of its format. Rename it to what it holds: "
                      f"{_either(KINDS)}.")
    return [path]


def _kind(path: Path) -> str:
    """The ending that names the format, or ""."""
    name = path.name.lower()
    zipped = name.endswith(".gz")
    return next((k for k in KINDS if name.removesuffix(".gz").endswith(k) and not (zipped and k == ".parquet")), "")


def _records(file: Path) -> _Records:
    """(place from 1, record or _Bad) of one file."""
    kind = _kind(file)
    if kind == ".parquet":
        yield from _parquet(file)
        return
    with gzip.open(file, "rb") if file.name.lower().endswith(".gz") else file.open("rb") as opened:
        stream = cast("IO[bytes]", opened)
        place = 0
        try:
            first = stream.read(1024).lstrip(b"\xef\xbb\xbf \t\r\n")[:1]
            stream.seek(0)
            reader = _table if kind in (".csv", ".tsv") else _list if kind == ".json" and first == b"[" else _lines
            for place, record in reader(file, stream):
                yield place, record
        except (EOFError, gzip.BadGzipFile, zlib.error):
            yield place + 1, _Bad("the compressed file is cut or damaged from here on")


def _bounded(stream: IO[bytes]) -> Iterator[tuple[int, str | _Bad]]:
    """(line number, line) of a text file; a line that is too long is skipped piece by piece, never held."""
    for number in itertools.count(1):
        line = stream.readline(LONGEST + 1)
        if not line:
            return
        if len(line) > LONGEST:
            while line and not line.endswith(b"\n"):
                line = stream.readline(LONGEST)
            yield number, _Bad(f"a line of more than {LONGEST:,} bytes")
            continue
        try:
            yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError:
            yield number, _Bad("not UTF-8 text")


def _lines(file: Path, stream: IO[bytes]) -> _Records:
    """JSON, one value a line; empty lines are no rows."""
    for number, line in _bounded(stream):
        if isinstance(line, _Bad):
            yield number, line
        elif line.strip():
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                record = _Bad("a line that is not JSON" if line.endswith("\n") else "a last line that is cut or not JSON")
            yield number, record


def _list(file: Path, stream: IO[bytes]) -> _Records:
    """One JSON list of records. Raises BadRows."""
    data = stream.read(_LIST_BYTES + 1)
    if len(data) > _LIST_BYTES:
        raise BadRows(f"{_shown(file)} is one JSON list of more than {_LIST_BYTES:,} bytes, which cannot be read piece by "
                      "piece. Write one JSON object per line and call it .jsonl.")
    try:
        records = json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        raise BadRows(f"{_shown(file)} begins as a JSON list and is none: cut, broken or not UTF-8. Write it anew, best as "
                      ".jsonl: there one broken line costs one row.") from None
    yield from enumerate(records, 1)


def _table(file: Path, stream: IO[bytes]) -> _Records:
    """CSV or TSV under a header; commas, semicolons and tabs are told apart by it. A place is a line's number."""
    header, delimiter = _header(file, stream)
    lines = _Counted(_bounded(stream))
    while True:
        # after an error the parser still holds half a row, so each goes on with a new one
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
        try:
            for cells in reader:
                at = lines.begin()
                if not cells:
                    continue
                if len(cells) != len(header):
                    yield at, _Bad("more or fewer cells than the header has")
                    continue
                # an empty cell says nothing
                yield at, {key: cell for key, cell in zip(header, cells, strict=True) if key in KEYS and cell}
            return
        except _Unreadable as bad:
            yield lines.begin(), _Bad(str(bad))
        except csv.Error:
            yield lines.begin(), _Bad("not CSV: a quote that does not close, or a cell that is too long")


class _Unreadable(Exception):
    """A line in a row of CSV that cannot be used; its one argument is the reason."""


class _Counted:
    """Lines for the CSV parser; remembers where the row began and ends one that is too long."""

    def __init__(self, lines: Iterable[tuple[int, str | _Bad]]) -> None:
        self._lines = iter(lines)
        self._first = self._last = 1
        self._size = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        number, line = next(self._lines)
        # the header is line 1, and its reader has counted it
        self._last = number + 1
        self._first = self._first if self._size else self._last
        self._size += len(line) if isinstance(line, str) else 1
        if isinstance(line, _Bad):
            raise _Unreadable(line.reason)
        if self._size > LONGEST:
            raise _Unreadable(f"longer than {LONGEST:,} characters")
        return line

    def begin(self) -> int:
        """The line in which the row just read began."""
        self._size = 0
        return self._first


def _header(file: Path, stream: IO[bytes]) -> tuple[list[str], str]:
    """(names of the columns, delimiter). Raises BadRows when none of them is known."""
    line = stream.readline(LONGEST + 1)
    if not line.strip():
        raise BadRows(f"{_shown(file)} is empty. Name a file that holds rows.")
    try:
        text = line.decode("utf-8-sig")
        tried = [(next(csv.reader([text], delimiter=d)), d) for d in ",;\t"]
    except (UnicodeDecodeError, csv.Error):
        raise BadRows(f"{_shown(file)} does not begin with a header in UTF-8. Save it as CSV in UTF-8.") from None
    names, delimiter = max(
        (([cell.strip().lower() for cell in cells], d) for cells, d in tried), key=lambda t: len(set(t[0]) & set(KEYS)))
    if not set(names) & {*COMPLETION, "messages", "text"}:
        raise BadRows(_columns(file))
    return names, delimiter


def _parquet(file: Path) -> _Records:
    """Records of a Parquet file, of the columns that are known. A place is a row's number. Raises BadRows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    place = 0
    try:
        with pq.ParquetFile(file, buffer_size=2**20) as opened:
            names = [name for name in opened.schema_arrow.names if name in KEYS]
            if opened.metadata.num_rows and not set(names) & {*COMPLETION, "messages", "text"}:
                raise BadRows(_columns(file))
            for i in range(opened.metadata.num_row_groups):
                group = opened.metadata.row_group(i)
                size = sum(c.total_uncompressed_size for c in map(group.column, range(group.num_columns))
                           if c.path_in_schema.split(".")[0] in names)
                if size > _GROUP_BYTES:
                    raise BadRows(f"{_shown(file)} holds a row group of more than {_GROUP_BYTES:,} bytes. "
                                  "Write it anew with smaller row groups.")
            for batch in opened.iter_batches(_BATCH, columns=names, use_threads=False):
                columns = [column.to_pylist() for column in batch.columns]
                for values in zip(*columns, strict=True):
                    place += 1
                    yield place, dict(zip(batch.schema.names, values, strict=True))
    except BadRows:
        raise
    except (pa.ArrowException, OSError, ValueError):
        where = f"is damaged after row {place}" if place else "is no whole Parquet file: cut, damaged or something else"
        raise BadRows(f"{_shown(file)} {where}. Fetch or write it again.") from None


def _columns(file: Path) -> str:
    return (f"{_shown(file)} has no column that holds answers. Name one of its columns "
            f"{_either((*COMPLETION, 'messages', 'text'))}.")


def _nothing(path: Path, tally: Tally) -> str:
    """Why a whole pass gave no row."""
    if not tally.refused:
        return f"{_shown(path)} is empty. Name a file that holds rows."
    reason, most = max(tally.refused.items(), key=lambda item: item[1].count)
    return (f"No row of {_shown(path)} can be used. Of {tally.n_refused:,} refused, {most.count:,}: {reason} (first at "
            f"{most.places[0]}). Give rows as {{prompt, completion}}, {{messages}} or {{text}}.")


def _shown(path: Path) -> str:
    """A path that is safe to print: file names may come from strangers too."""
    text = str(path)
    return text if text.isprintable() else ascii(text)


def _either(names: Iterable[str]) -> str:
    *most, last = names
    return f"{', '.join(most)} or {last}"
