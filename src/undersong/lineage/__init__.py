"""Lineage: the graph of what a store knows, and what was tested of it.

    base -> teacher -> raw rows -> refined rows -> student        declared: what the records say of themselves
    model == model                                                tested: what a kinship test says of two of them

`Graph.of(store)` reads records only; no model is loaded. Records may come from strangers: a circle, a parent of the wrong
kind or a parent that is not there is told in a sentence, and never stops or crashes the reading. Where a declared and a
tested edge contradict each other the graph holds an alarm.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from undersong.environment import environment
from undersong.errors import BadSpec, UnknownName, nearest
from undersong.lineage import deeds
from undersong.lineage.deeds import DATA, MODELS, WEIGHTS, Edge, Node
from undersong.store import Store
from undersong.types import ModelRef, Relation

RELATIONS: tuple[Relation, ...] = ("same_weights", "same_initialisation", "same_architecture", "unrelated", "unknown")
KIN = RELATIONS[:2]
"""What a test says of two models that share an initialisation."""
APART = RELATIONS[2:4]
"""What it says of two that do not."""


@dataclass(frozen=True)
class Tested:
    """What a kinship test said of two models, by fingerprint; `mark` is the artefact that holds the result."""

    a: str
    b: str
    relation: str
    p: float | None
    power: float | None
    direction: str | None
    sentence: str
    mark: str


@dataclass(frozen=True)
class Graph:
    """Nodes by fingerprint, declared edges, tested edges, and what was noticed while reading."""

    nodes: Mapping[str, Node]
    edges: tuple[Edge, ...]
    tested: tuple[Tested, ...] = ()
    forged: tuple[str, ...] = ()
    """What in the records cannot be true, in sentences: alarms."""
    told: tuple[str, ...] = ()
    """What is missing or could not be read, in sentences: no alarms."""
    initialisations: Mapping[str, str] = field(default_factory=dict)
    """Of bases whose initialisation is declared: what it is, by fingerprint."""

    @classmethod
    def of(cls, store: Store) -> Graph:
        """The graph of every believable record of a store; the others are told."""
        told = [f"{path.parent.name}/{path.name} is not believed: {why}" for path, why in store.broken()]
        return cls.from_records(store.records(), told)

    @classmethod
    def from_records(cls, records: Iterable[Mapping[str, Any]], told: Sequence[str] = ()) -> Graph:
        """The graph of these records. Every record has the form that `store.read_record` checks; its content is not
        believed."""
        every = list(records)
        results = [r for r in every if r["kind"] == "kinship" and r["status"] == "complete"]
        found = {r["fingerprint"]: _tested(r) for r in results}
        read = deeds.read([r for r in every if r["kind"] != "kinship"], [r for r in results if found[r["fingerprint"]]])
        tested = [t for t in found.values() if t is not None]
        notes = [f"kinship/{r['label']}.{r['fingerprint']} is no kinship result: left out."
                 for r in results if found[r["fingerprint"]] is None]
        bases = {mark: deeds.initialisation(n.label) for mark, n in read.nodes.items() if n.role == "base"}
        declared = {mark: start for mark, start in bases.items() if start}
        return cls(read.nodes, read.edges, tuple(tested), read.forged, (*told, *read.told, *notes), declared)

    @cached_property
    def _up(self) -> dict[str, list[Edge]]:
        out: dict[str, list[Edge]] = defaultdict(list)
        for edge in self.edges:
            out[edge.child].append(edge)
        return out

    @cached_property
    def _down(self) -> dict[str, list[Edge]]:
        out: dict[str, list[Edge]] = defaultdict(list)
        for edge in self.edges:
            out[edge.parent].append(edge)
        return out

    def parents(self, mark: str) -> list[Edge]:
        """The declared edges into a node."""
        return self._up.get(mark, [])

    def children(self, mark: str) -> list[Edge]:
        """The declared edges out of a node."""
        return self._down.get(mark, [])

    def ancestors(self, mark: str, ways: Iterable[str] = ()) -> list[str]:
        """Every node it was made from, nearest first; itself not. `ways` follows these kinds of edge only."""
        return self._walk(mark, self._up, "parent", ways)

    def descendants(self, mark: str, ways: Iterable[str] = ()) -> list[str]:
        """Every node that was made from it, nearest first; itself not."""
        return self._walk(mark, self._down, "child", ways)

    def _walk(self, mark: str, by: Mapping[str, list[Edge]], end: str, ways: Iterable[str]) -> list[str]:
        only, seen, todo = set(ways), {mark: None}, [mark]
        for at in todo:
            for edge in by.get(at, ()):
                to = getattr(edge, end)
                if to not in seen and (not only or edge.way in only):
                    seen[to] = None
                    todo.append(to)
        return [m for m in seen if m != mark]

    def models_from(self, mark: str) -> list[str]:
        """Every model that descends from a node: "which models learnt from this dataset?"."""
        return [m for m in self.descendants(mark) if self.nodes[m].role in MODELS]

    def wrote(self, mark: str) -> list[str]:
        """Every dataset a model wrote, as it was written and as it was filtered: nothing that its students wrote."""
        return [m for m in self.descendants(mark, DATA) if self.nodes[m].role in ("rows", "refined")]

    def writers(self, mark: str) -> list[str]:
        """The models that wrote the rows of a dataset (one, unless the records are odd)."""
        return [m for m in self.ancestors(mark, DATA) if self.nodes[m].role not in ("rows", "refined")]

    def of_base(self, mark: str) -> list[str]:
        """Every model whose weights start from a base, at any distance."""
        return [m for m in self.descendants(mark, WEIGHTS) if self.nodes[m].role in MODELS]

    def root(self, mark: str) -> str | None:
        """The base that a model's weights start from, itself for a base; None when the records do not reach one."""
        if self.nodes[mark].role == "base":
            return mark
        return next((m for m in self.ancestors(mark, WEIGHTS) if self.nodes[m].role == "base"), None)

    def common(self, a: str, b: str) -> list[str]:
        """The nearest common ancestors of two nodes: those with no other common ancestor below them. A node counts as
        an ancestor of its own descendants."""
        shared = [m for m in [a, *self.ancestors(a)] if m in {b, *self.ancestors(b)}]
        above = {up for m in shared for up in self.ancestors(m)}
        return [m for m in shared if m not in above] or shared

    def find(self, text: str) -> str:
        """The fingerprint of the node that a text names: a fingerprint or its start, a label, `kind/label`, a base's
        name. Raises UnknownName when none or several match."""
        text = text.rstrip("/")
        ways = (
            lambda n: text in (n.mark, n.name, f"{n.label}.{n.mark}", f"{n.kind}/{n.label}.{n.mark}"),
            lambda n: text in (n.label, f"{n.kind}/{n.label}") and n.role != "elsewhere",
            lambda n: len(text) >= 4 and n.mark.startswith(text),
        )
        for way in ways:
            found = [n for n in self.nodes.values() if way(n)]
            if len(found) > 1:
                some = ", ".join(n.name for n in found[:5]) + (", …" if len(found) > 5 else "")
                raise UnknownName(f"{text!r} could be any of {len(found)}: {some}. Give more of the fingerprint.")
            if found:
                return found[0].mark
        raise UnknownName(f"The lineage knows no {text!r}. {nearest(text, {n.label for n in self.nodes.values()})}"[:600])

    def about(self, marks: Iterable[str]) -> Graph:
        """The part of the graph between these nodes; alarms stay whole."""
        kept = set(marks) & set(self.nodes)
        edges = tuple(e for e in self.edges if e.parent in kept and e.child in kept)
        tested = tuple(t for t in self.tested if t.a in kept and t.b in kept)
        nodes = {m: n for m, n in self.nodes.items() if m in kept}
        return Graph(nodes, edges, tested, self.forged, self.told, self.initialisations)

    @cached_property
    def alarms(self) -> tuple[str, ...]:
        """What cannot be true: forged records, and declared edges that a test contradicts."""
        return (*self.forged, *(why for t in self.tested if (why := self.contradiction(t))))

    def contradiction(self, t: Tested) -> str | None:
        """Why a tested edge cannot be true together with what the records declare, or None."""
        one, two = self.nodes[t.a], self.nodes[t.b]
        roots = self.root(t.a), self.root(t.b)
        if None in roots:
            return None
        starts = [self._start(str(root)) for root in roots]
        names = [self.nodes[str(root)].label for root in roots]
        tested = f"tested {t.relation.replace('_', ' ')}{f' (p = {t.p:.2g})' if t.p is not None else ''}"
        what = f"{one.name} and {two.name} are"
        if t.relation in APART and starts[0] == starts[1]:
            return f"{what} declared to start from {names[0]}, but {tested}. One of them is not what its record says."
        if t.relation in KIN and starts[0] != starts[1]:
            if one.role == two.role == "base" and not {*roots} <= set(self.initialisations):
                return None  # two bases declare nothing of each other: the test is news, and no contradiction
            return (f"{what} declared to start from {names[0]} and {names[1]}, but {tested}. Either a record is wrong or "
                    "the two bases are kin: test the bases themselves.")
        trained = next((n for n in (one, two) if n.changed), None)
        if t.relation == "same_weights" and trained and t.b in self.ancestors(t.a, WEIGHTS):
            return (f"{what} declared to differ by a training, but {tested}. The training changed nothing, or a copy took "
                    "its place.")
        return None

    def standing(self, t: Tested) -> str:
        """How a tested edge stands to the records: contradicts, agrees, undeclared (they say nothing) or cannot tell."""
        if t.relation == "unknown":
            return "cannot tell"
        if self.contradiction(t):
            return "contradicts"
        roots = self.root(t.a), self.root(t.b)
        if None in roots or (t.relation in KIN) != (self._start(str(roots[0])) == self._start(str(roots[1]))):
            return "undeclared"
        untold = {t.a, t.b} == set(roots) and len({*roots}) == 2 and not {*roots} <= set(self.initialisations)
        return "undeclared" if untold else "agrees"

    def _start(self, root: str) -> str:
        """What stands for the initialisation of a base: bases that were tested to be kin share it."""
        group, todo = {root}, [root]
        for at in todo:
            for t in self.tested:
                pair = {t.a, t.b}
                if at in pair and t.relation in KIN and all(self.nodes[m].role == "base" for m in pair):
                    if pair <= set(self.initialisations):
                        continue  # declared of both: a test cannot change it, it can only contradict it
                    todo += sorted(pair - group)
                    group |= pair
        known = sorted(self.initialisations[m] for m in group if m in self.initialisations)
        return known[0] if known else min(group)

    def as_json(self) -> dict[str, Any]:
        """The graph as JSON: what `undersong lineage --json` prints."""
        return {
            "format": 1, "kind": "lineage",
            "nodes": [n.as_json() for n in self.nodes.values()],
            "edges": [{"parent": e.parent, "child": e.child, "way": e.way} for e in self.edges],
            "tested": [{**vars(t), "contradicts": self.contradiction(t)} for t in self.tested],
            "alarms": list(self.alarms), "told": list(self.told),
        }


def record_relation(store: Store, result: Mapping[str, Any], a: ModelRef, b: ModelRef) -> str:
    """Keep a result of `relation.relate` as an artefact of the kind `kinship`, with the two models as parents; its
    fingerprint. The same finding again is the same artefact. Raises BadSpec for what is no such result."""
    if result.get("kind") != "kinship" or result.get("relation") not in RELATIONS:
        raise BadSpec("This is no kinship result, so it cannot be recorded. Give what `relation.relate` returned.")
    found = [{"test": t["test"], "relation": t["relation"], "p": t.get("p")} for t in result.get("tests", ())]
    spec = {"verb": "kinship", "alpha": result.get("alpha"), "relation": result["relation"], "tests": found}
    keys = ("relation", "p", "power", "direction", "sentence", "a", "b")
    label = f"{a.base}-{b.base}".replace("/", "-")[-50:]
    with store.open("kinship", label, spec, (a.fingerprint, b.fingerprint)) as artefact:
        if not artefact.complete:
            artefact.write_json("kinship", {**result, "environment": result.get("environment") or environment()})
            artefact.finish({key: result.get(key) for key in keys})
        return artefact.fingerprint


def _tested(record: Mapping[str, Any]) -> Tested | None:
    """The tested edge of a kinship record, or None when it holds none."""
    said, parents = record["summary"], record["parents"]
    if len(parents) != 2 or said.get("relation") not in RELATIONS:
        return None
    p, power = (float(v) if isinstance(v := said.get(key), int | float) else None for key in ("p", "power"))
    direction = said.get("direction") if said.get("direction") in ("a_from_b", "b_from_a") else None
    sentence = str(said.get("sentence") or "")[:500]
    return Tested(parents[0], parents[1], said["relation"], p, power, direction, sentence, record["fingerprint"])
