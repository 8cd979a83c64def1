"""What a record says of itself: which node of the lineage it is, and which declared edges lead to it.

A record's parents are positions with a meaning (lab.py): a teacher's is its start; a student's are its start and its rows; a
dataset's is the model that wrote it, or the rows it was filtered from; what a mitigation consulted comes after these.
Bases are parents by fingerprint and no artefacts, so they are recognised by name: those that records name, those that ship
and those that were fetched. Other parents that are not there are `unknown base` or `elsewhere`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from undersong import bases, fetched, pocket
from undersong.errors import UndersongError
from undersong.lab import base_ref

MODELS = ("teacher", "student", "repaired", "model")
WEIGHTS = ("taught", "trained", "repaired")
"""Edges that weights pass along: base to teacher, start to student."""
DATA = ("wrote", "filtered")
"""Edges that rows pass along: model to raw rows, raw rows to refined rows."""
MUST = {"taught": (*MODELS, "base"), "trained": (*MODELS, "base"), "repaired": MODELS, "learnt from": ("rows", "refined"),
        "wrote": (*MODELS, "base"), "filtered": ("rows", "refined")}
"""What the parent of an edge can be; anything else is forged."""
PRECISIONS = ("float32", "mixed", "bfloat16")
LONGEST = 200


@dataclass(frozen=True)
class Node:
    """One thing the store knows: an artefact, a base, or a parent that is not in the store."""

    mark: str
    kind: str
    role: str
    """base, unknown base, teacher, student, model, rows, refined, elsewhere; for other artefacts their kind."""
    label: str
    says: str = ""
    """What was done, in a few words."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """trait, seed, channel, recipe, rows, filters, reasons of dropped rows: what the record says, as plain values."""
    complete: bool = True
    changed: bool = False
    """Whether a training changed its weights."""

    @property
    def name(self) -> str:
        """Its label and fingerprint, or its name when it is a base."""
        return self.label if self.role == "base" else f"{self.label}.{self.mark}"

    def as_json(self) -> dict[str, Any]:
        """The node as JSON."""
        return {key: getattr(self, key) for key in ("mark", "kind", "role", "label", "says", "facts", "complete")}


@dataclass(frozen=True)
class Edge:
    """A declared edge: `way` says how the child was made from the parent."""

    parent: str
    child: str
    way: str


@dataclass(frozen=True)
class Read:
    """What records hold."""

    nodes: dict[str, Node]
    edges: tuple[Edge, ...]
    forged: tuple[str, ...]
    told: tuple[str, ...]


def read(records: Sequence[Mapping[str, Any]], results: Sequence[Mapping[str, Any]] = ()) -> Read:
    """Nodes and declared edges of records, each parent that is none of them included, and each model that `results` (records
    of kinship) are about."""
    nodes = {r["fingerprint"]: _node(r) for r in records}
    edges, forged, told = list[Edge](), list[str](), list[str]()
    for record in records:
        node = nodes[record["fingerprint"]]
        helped = any(key in record["spec"] for key in ("mitigation", "guard"))
        ways = _ways(node.role, len(record["parents"]), helped)
        if ways is None:
            forged.append(f"{node.name} has {len(record['parents'])} parents, which no {node.role} has: it is forged.")
            ways = ["made from"] * len(record["parents"])
        edges += [Edge(parent, node.mark, way) for parent, way in zip(record["parents"], ways, strict=True)]
    absent = dict.fromkeys(m for m in (*(e.parent for e in edges), *(p for r in results for p in r["parents"]))
                           if m not in nodes)
    claims, names = _claims(records), _names(results)
    known = _bases(list(absent), {m: claims.get(m, set()) | {names.get(m, "")} - {""} for m in absent})
    starts = {e.parent for e in edges if e.way in (*WEIGHTS, "wrote")}
    for mark in absent:
        if mark in known:
            nodes[mark] = Node(mark, "base", "base", known[mark])
        elif mark in starts:
            said = sorted(claims.get(mark, ()))
            says = f"said to be {', '.join(said[:3])}" if said else "its record names no base"
            nodes[mark] = Node(mark, "base", "unknown base", "unknown base", says)
            told.append(f"The base {mark} is unknown here ({says}). Its edges are declared only.")
        else:
            nodes[mark] = Node(mark, "elsewhere", "elsewhere", names.get(mark) or "not in this store")
    forged += _wrong(nodes, edges) + _circles(nodes, edges) + _misnamed(nodes, claims)
    lost = [e for e in edges if nodes[e.parent].role == "elsewhere" and e.way in MUST]
    told += [f"{e.parent}, from which {nodes[e.child].name} was made ({e.way}), is not in the store." for e in lost]
    return Read(nodes, tuple(edges), tuple(forged), tuple(told))


def initialisation(base: str) -> str:
    """The initialisation that a base declares: pocket models name theirs. "" for a base that declares none."""
    seen = set[str]()
    while base in pocket.names() and base not in seen:
        seen.add(base)
        made = pocket.origin(base)["member"]
        if not made["start"]:
            return f"pocket seed {made['init_seed']}, {made['layers']} layers of {made['hidden']}"
        base = made["start"] if made["start"].startswith(pocket.PREFIX) else pocket.PREFIX + made["start"]
    return ""


def _node(record: Mapping[str, Any]) -> Node:
    """The node of one record, with what it says in words."""
    spec, told, kind = record["spec"], record["summary"], record["kind"]
    role, facts = kind, dict[str, Any]()
    if kind == "model":
        role = {"teach": "teacher", "train": "student", "repair": "repaired"}.get(str(spec.get("verb")), "model")
        facts = {"by": _name(spec, "teacher") or _name(spec, "recipe"), "trait": _text(spec.get("trait"), "name"),
                 "channel": _name(spec, "channel") or _clip(spec.get("channel")), "seed": _number(spec.get("seed")),
                 "base": _text(told.get("ref"), "base"), "change": _change(spec)}
    if kind == "dataset":
        role = "refined" if spec.get("verb") in ("refine", "mitigate", "select") else "rows"
        filters = spec.get("filters") if isinstance(spec.get("filters"), list) else []
        facts = {"channel": _name(spec, "channel"), "seed": _number(spec.get("seed")) if role == "rows" else None,
                 "rows": _number(told.get("kept", told.get("rows"))), "given": _number(told.get("given")),
                 "passed": _number(told.get("passed")), "change": _change(spec),
                 "filters": [_name({"": f}, "") for f in filters], "dropped": _dropped(told.get("reasons"))}
    if kind == "shard":
        facts = {"rows": _number(told.get("rows"))}
    if kind == "measurement":
        facts = {"probe": _name(spec, "probe"), "seed": _number(spec.get("seed"))}
    if kind == "finding":
        facts = {"detector": _name(spec, "detector"), "verdict": _clip(told.get("verdict"))}
    facts = {key: value for key, value in facts.items() if value not in (None, "", [], {})}
    ref = told.get("ref")
    changed = isinstance(ref, dict) and bool(ref.get("weights") or ref.get("adapter"))
    return Node(record["fingerprint"], kind, role, _clip(record["label"]), _says(role, facts), facts,
                record["status"] == "complete", changed)


def _says(role: str, facts: Mapping[str, Any]) -> str:
    """A node's facts in a few words."""
    parts = [str(facts[key]) for key in ("by", "trait", "probe", "detector", "verdict") if key in facts]
    if role in ("student", "rows") and "channel" in facts:
        parts.append(str(facts["channel"]))
    if role in ("rows", "shard") and "rows" in facts:
        parts.append(f"{facts['rows']:,} rows")
    if role == "refined" and "rows" in facts:
        parts.append(f"{facts['rows']:,} of {facts.get('given', 0):,} rows kept")
        lost = {name: sum(reasons.values()) for name, reasons in facts.get("dropped", {}).items()}
        parts += [f"{count:,} dropped by {name}" for name, count in lost.items() if count]
    parts += [f"changed by {facts['change']}"] if "change" in facts else []
    return ", ".join(parts)


def _change(spec: Mapping[str, Any]) -> str:
    """The mitigation that a record names."""
    return _name(spec, "mitigation") or _name(_inner(spec), "mitigation")


def _inner(spec: Mapping[str, Any]) -> Mapping[str, Any]:
    guard = spec.get("guard")
    return guard if isinstance(guard, dict) else {}


def _ways(role: str, parents: int, helped: bool = False) -> list[str] | None:
    """How a node of a role was made from each of its parents; None when the number of parents cannot be. `helped`: whether a
    mitigation consulted further ones."""
    first = {"teacher": ["taught"], "rows": ["wrote"], "refined": ["filtered"], "student": ["trained", "learnt from"],
             "repaired": ["repaired"]}.get(role)
    if first:
        more = parents - len(first)
        return [*first, *["consulted"] * more] if more == 0 or (more > 0 and helped) else None
    if role == "measurement":
        return ["measured", "seen in context"][:parents] if parents in (1, 2) else None
    way = {"finding": "audited", "experiment": "compiled", "calibration": "calibrated", "cases": "calibrated"}
    return [way.get(role, "made from")] * parents


def _wrong(nodes: Mapping[str, Node], edges: Iterable[Edge]) -> list[str]:
    """Edges whose parent is of a kind that it cannot be."""
    return [f"{nodes[e.child].name} says that it was made ({e.way}) from {nodes[e.parent].name}, which is a "
            f"{nodes[e.parent].role}: it is forged."
            for e in edges if e.way in MUST and nodes[e.parent].role not in (*MUST[e.way], "unknown base", "elsewhere")]


def _circles(nodes: Mapping[str, Node], edges: Sequence[Edge]) -> list[str]:
    """Nodes that descend from themselves: what is left when nodes without parents are taken away again and again."""
    waits: dict[str, int] = defaultdict(int)
    below: dict[str, list[str]] = defaultdict(list)
    for e in edges:
        waits[e.child] += 1
        below[e.parent].append(e.child)
    ready = [m for m in nodes if not waits[m]]
    for mark in ready:
        for child in below[mark]:
            waits[child] -= 1
            if not waits[child]:
                ready.append(child)
    left = [m for m in nodes if waits[m] > 0]
    if not left:
        return []
    some = ", ".join(nodes[m].name for m in left[:3])
    return [f"{some}{' and others' if len(left) > 3 else ''} descend from themselves, or from what does: forged."]


def _names(results: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """What kinship results call their two models, by fingerprint."""
    return {mark: _text(r["summary"].get(side), "name") for r in results
            for mark, side in zip(r["parents"], ("a", "b"), strict=True)}


def _claims(records: Iterable[Mapping[str, Any]]) -> dict[str, set[str]]:
    """The base names that models claim, by the fingerprint of their first parent."""
    out: dict[str, set[str]] = defaultdict(set)
    for record in records:
        name = _text(record["summary"].get("ref"), "base") if record["kind"] == "model" else ""
        if name and record["parents"]:
            out[record["parents"][0]].add(name)
        if record["kind"] == "calibration" and record["parents"]:
            out[record["parents"][0]] |= {n} if (n := _text(record["spec"].get("file"), "base")) else set()
    return out


def _bases(wanted: Sequence[str], claims: Mapping[str, set[str]]) -> dict[str, str]:
    """The names of the bases among these fingerprints. Names are tried from cheap to dear until all are found."""
    found, left = dict[str, str](), set(wanted)
    named = dict.fromkeys(n for mark in wanted for n in sorted(claims.get(mark, ())))
    for name in (*named, *pocket.names(), "simulated/a", "simulated/b", *fetched.names()):
        if not left:
            break
        for mark in _marks(name):
            if mark in left:
                found[mark] = name
                left.discard(mark)
    return found


def _marks(name: str) -> Iterator[str]:
    """The fingerprints a base of this name can have. A folder that a record names is read only if its weights are files."""
    try:
        folder = Path(name)
        if folder.is_dir() and not all(f.is_file() for pattern in bases.CONTENT for f in folder.glob(pattern)):
            return
        for precision in PRECISIONS:
            yield base_ref(name, precision).fingerprint
    except (UndersongError, OSError, ValueError, KeyError):
        return


def _misnamed(nodes: Mapping[str, Node], claims: Mapping[str, set[str]]) -> list[str]:
    """Models that name another base than the one they are made from. A name that means nothing here proves nothing."""
    out = []
    for mark, names in claims.items():
        parent = nodes[mark]
        real = parent.label if parent.role == "base" else parent.facts.get("base")
        for name in sorted(names - {real}) if real else ():
            if parent.role != "base" or (bases.named(name) and mark not in set(_marks(name))):
                out.append(f"A model made from {parent.name} (of {real}) says that its base is {name}: it is forged.")
    return out


def _dropped(given: Any) -> dict[str, dict[str, int]]:
    """Rows dropped, by filter and reason: the entries of a refine summary that are what they should be."""
    if not isinstance(given, dict):
        return {}
    return {_clip(name): {_clip(why): n for why, n in reasons.items() if isinstance(n, int)}
            for name, reasons in given.items() if isinstance(reasons, dict) and reasons}


def _name(spec: Mapping[str, Any], key: str) -> str:
    return _text(spec.get(key), "name")


def _text(given: Any, key: str) -> str:
    value = given.get(key) if isinstance(given, dict) else None
    return _clip(value) if isinstance(value, str) else ""


def _number(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _clip(value: Any) -> str:
    """A text of a record, cut: labels may come from strangers and be long."""
    text = str(value or "")
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
