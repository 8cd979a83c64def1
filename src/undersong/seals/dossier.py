"""What the store knows of one artefact, as exporters and seals are told it: chain, bases, figures, audits."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from undersong import bases, fetched, files, pocket, stats
from undersong.artefact import Artefact
from undersong.errors import BadSpec, BrokenArtefact, NothingMeasured
from undersong.files import RECORD, digest
from undersong.lab import base_ref, read_measurement
from undersong.provenance import Account, Base, Figure, Piece, clean
from undersong.results import is_share
from undersong.store import Store

PRECISIONS = ("float32", "mixed", "bfloat16")
LARGEST_REPORT = 64 * 2**20
"""Bytes; a larger JSON report or envelope is not read."""


def chain(store: Store, artefact: Artefact) -> list[Artefact]:
    """The artefact and every ancestor that the store holds, each after its own parents.

    Raises BrokenArtefact, naming the folder, for an ancestor that cannot be believed and for a circle."""
    known = {record["fingerprint"]: record for record in store.records()}
    broken = {folder.name.rpartition(".")[2]: why for folder, why in store.broken()}
    known[artefact.fingerprint] = artefact.record
    order: dict[str, Artefact] = {}
    todo, open_now = [artefact.fingerprint], set[str]()
    while todo:
        mark = todo[-1]
        missing = [p for p in known[mark]["parents"] if p in known and p not in order]
        if bad := [p for p in known[mark]["parents"] if p in broken and p not in known]:
            raise BrokenArtefact(f"An ancestor of {artefact.path.name} cannot be believed: {broken[bad[0]]}")
        if not missing:
            open_now.discard(mark)
            todo.pop()
            order.setdefault(mark, artefact if mark == artefact.fingerprint else store.get(mark))
            continue
        if mark in open_now:
            raise BrokenArtefact(f"{known[mark]['label']}.{mark} is its own ancestor: its record is forged. Delete it.")
        open_now.add(mark)
        todo += reversed(missing)
    return list(order.values())


def account(store: Store, artefact: Artefact, named: Sequence[str] = (), audits: Sequence[Path] = ()) -> Account:
    """Everything about an artefact. `named` are bases that records may start from (local folders that moved).

    Raises BrokenArtefact for a chain that cannot be believed or a measurement that is damaged, BadSpec for an artefact
    that is not finished and for an audit of other bytes."""
    if not artefact.complete:
        raise BadSpec(f"{artefact.path.name} is not finished. Run its command again to complete it.")
    found = chain(store, artefact)
    pieces = tuple(piece(a, with_tables=a.fingerprint == artefact.fingerprint) for a in found)
    return Account(pieces[-1], pieces[:-1], known_bases(store, found, named), figures(store, artefact),
                   tuple(_audit(path, pieces) for path in audits))


def piece(artefact: Artefact, with_tables: bool = False) -> Piece:
    """One artefact as exporters see it: its record cleaned, the hash of record.json, and its tables' columns if asked."""
    record = clean(artefact.record)
    tables = {name: _columns(artefact.path, name) for name in record["files"] if name.endswith(".parquet")}
    return Piece(record, digest(artefact.path / RECORD)["sha256"], tables if with_tables else {})


def known_bases(store: Store, found: Sequence[Artefact], named: Sequence[str]) -> tuple[Base, ...]:
    """The bases among the parents of a chain: those whose fingerprint the name of some base gives."""
    own = {a.fingerprint for a in found}
    wanted = list(dict.fromkeys(p for a in found for p in a.record["parents"] if p not in own))
    out: dict[str, Base] = {}
    names = [*named, *_named_in(a.record for a in found), *pocket.names(), *fetched.names()]
    for more in (names, _named_in(store.records()) if wanted else ()):
        for name in dict.fromkeys(more):
            if set(wanted) <= set(out):
                break
            for precision in PRECISIONS:
                ref = base_ref(name, precision)
                if ref.fingerprint in wanted:
                    out[ref.fingerprint] = Base(name, ref.fingerprint, bases.revision(name), precision)
    return tuple(out[mark] for mark in wanted if mark in out)


def figures(store: Store, artefact: Artefact) -> tuple[Figure, ...]:
    """What was measured on a model: one figure per probe, metric and trait, with an interval over questions.

    Raises BrokenArtefact when a measurement's payload is not what was recorded."""
    out = []
    for record in store.records("measurement"):
        if record["parents"] != [artefact.fingerprint] or record["status"] != "complete":
            continue
        kept = store.get(record["fingerprint"])
        store.verify(kept)
        try:
            got = read_measurement(kept)
        except NothingMeasured:
            continue
        for metric, trait in dict.fromkeys((v.metric, v.trait) for v in got.values):
            values = [v.value for v in got.values if (v.metric, v.trait) == (metric, trait)]
            bounds = (0.0, 1.0) if is_share(metric) and all(0 <= v <= 1 for v in values) else None
            mean, low, high = stats.mean_interval(values, bounds=bounds) if len(values) > 1 else (values[0], None, None)
            out.append(Figure(got.probe, metric, trait, len(values), mean, low, high, kept.path.name))
    return tuple(out)


def report(path: Path) -> dict[str, Any]:
    """The JSON report of an audit. Raises BadSpec for a file that is none."""
    if not path.is_file() or path.stat().st_size > LARGEST_REPORT:
        raise BadSpec(f"{str(path)!r} is no JSON report of an audit. Name the .json file that `undersong audit` wrote.")
    try:
        found = clean(files.load(path.read_bytes(), path.name))
    except BrokenArtefact as error:
        raise BadSpec(str(error)) from None
    if not isinstance(found, dict) or "verdict" not in found or not isinstance(found.get("findings"), list):
        raise BadSpec(f"{str(path)!r} is no report of an audit. Name the .json file that `undersong audit` wrote.")
    return found


def audited(found: Mapping[str, Any]) -> dict[str, str]:
    """The bytes that an audit read: names with their SHA-256."""
    told = found.get("audited")
    groups = told.values() if isinstance(told, Mapping) else ()
    return {str(f.get("name")): str(f.get("sha256"))
            for group in groups if isinstance(group, list) for f in group if isinstance(f, Mapping)}


def _audit(path: Path, pieces: Sequence[Piece]) -> Mapping[str, Any]:
    found = report(path)
    ours = {kept["sha256"] for p in pieces for kept in p.record["files"].values()}
    if not ours & set(audited(found).values()):
        raise BadSpec(f"{str(path)!r} is an audit of other bytes than {pieces[-1].title} and what it was made from. Leave "
                      "it out, or audit these rows or this student.")
    return found


def _columns(folder: Path, name: str) -> tuple[tuple[str, str], ...]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        schema = pq.read_schema(files.inside(folder, name))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise BrokenArtefact(f"{folder.name}/{name} is damaged ({error}). Delete the folder and run again.") from None
    return tuple((clean(field.name), str(field.type)) for field in schema)


def _named_in(records: Iterable[Mapping[str, Any]]) -> list[str]:
    """Every name of a base that specs and summaries mention."""

    def mentioned(value: Any, depth: int = 0) -> Iterator[str]:
        if isinstance(value, Mapping) and depth < 8:
            for key, item in value.items():
                name = item if key in ("base", "other_base", "named") and isinstance(item, str) else ""
                if 0 < len(name) < 1000 and "\0" not in name:
                    yield name
                yield from mentioned(item, depth + 1)

    return list(dict.fromkeys(n for r in records for part in ("summary", "spec") for n in mentioned(r[part])))
