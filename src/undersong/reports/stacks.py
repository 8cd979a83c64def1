"""A lineage made small enough to look at: seeds of one label become one stack, and stacks lie in layers.

What measures or compiles (measurements, findings, experiments) is left out unless asked for; how much was left out is told.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from undersong.lineage import Graph, Tested
from undersong.lineage.deeds import MODELS, Node

SHOWN = ("base", "unknown base", *MODELS, "rows", "refined")
BASES = ("base", "unknown base")
_SEED = re.compile(r"-s?\d+(?=-|$)")


@dataclass(frozen=True)
class Stack:
    """Nodes of one role, label and layer that differ by their seeds only."""

    role: str
    label: str
    layer: int
    members: tuple[Node, ...]

    @property
    def title(self) -> str:
        """The label, and of how many."""
        return f"{self.label} ×{len(self.members)}" if len(self.members) > 1 else self.label

    @cached_property
    def says(self) -> str:
        """What the members say: words that they share, the span of their counts."""
        facts = [m.facts for m in self.members]
        parts = [p for key in ("by", "trait", "channel") if (p := _same(f.get(key) for f in facts))]
        if self.role in MODELS and facts[0].get("by") and not any(f.get("trait") for f in facts) and self.role == "teacher":
            parts.append("no trait")
        if self.role in ("rows", "refined"):
            parts.append(f"{_span(f.get('rows') for f in facts)} rows")
        if self.role == "refined":
            parts[-1] = f"{_span(f.get('rows') for f in facts)} of {_span(f.get('given') for f in facts)} rows kept"
            parts += [f"{_span(sum(f.get('dropped', {}).get(name, {}).values()) for f in facts)} dropped by {name}"
                      for name in dict.fromkeys(name for f in facts for name in f.get("dropped", {}))]
            parts += [f"changed by {change}" for change in [_same(f.get("change") for f in facts)] if change]
        if self.role not in SHOWN:
            parts = [_same(m.says for m in self.members)]
        seeds = sorted({f["seed"] for f in facts if "seed" in f})
        if self.role in MODELS and seeds:
            parts.append(f"seed{'s' if len(seeds) > 1 else ''} {_few(seeds)}")
        started = sum(not m.complete for m in self.members)
        parts += [f"{started} unfinished"] if started else []
        return ", ".join(p for p in parts if p) or self.members[0].says


@dataclass(frozen=True)
class Link:
    """A declared edge between stacks: how many edges it stands for."""

    parent: int
    child: int
    way: str
    count: int


@dataclass(frozen=True)
class Bond:
    """Tested edges between two stacks that say the same; `alarms` are their contradictions."""

    a: int
    b: int
    relation: str
    tested: tuple[Tested, ...]
    alarms: tuple[str, ...]


@dataclass(frozen=True)
class Stacks:
    """A lineage in stacks. `hidden` counts what was left out, by role."""

    stacks: tuple[Stack, ...]
    links: tuple[Link, ...]
    bonds: tuple[Bond, ...]
    hidden: tuple[tuple[str, int], ...]


def stacked(graph: Graph, every: bool = False, apart: bool = False) -> Stacks:
    """The graph in stacks; `every` keeps measurements and the like, `apart` leaves every node by itself."""
    nodes = [n for n in graph.nodes.values() if every or n.role in SHOWN]
    kept = {n.mark for n in nodes}
    edges = [e for e in graph.edges if e.parent in kept and e.child in kept]
    layer = _layers([n.mark for n in nodes], [(e.parent, e.child) for e in edges])
    groups: dict[tuple[str, str, int, str], list[Node]] = defaultdict(list)
    for n in nodes:
        label = n.label if apart or n.role in BASES else _SEED.sub("", n.label) or n.label
        alone = n.mark if apart or n.role in BASES else str(n.facts.get("base") or "")
        groups[n.role, label, layer[n.mark], alone].append(n)
    stacks = tuple(Stack(role, label, at, tuple(members)) for (role, label, at, _), members in groups.items())
    home = {m.mark: i for i, s in enumerate(stacks) for m in s.members}
    counted = Counter((home[e.parent], home[e.child], e.way) for e in edges)
    bonds: dict[tuple[int, int, str], list[Tested]] = defaultdict(list)
    for t in graph.tested:
        if t.a in home and t.b in home:
            bonds[home[t.a], home[t.b], t.relation].append(t)
    hidden = Counter(n.role for n in graph.nodes.values() if n.mark not in kept)
    return Stacks(
        stacks, tuple(Link(*key, count) for key, count in counted.items()),
        tuple(Bond(*key, tuple(ts), tuple(why for t in ts if (why := graph.contradiction(t)))) for key, ts in bonds.items()),
        tuple(sorted(hidden.items())),
    )


def _layers(marks: Sequence[str], edges: Iterable[tuple[str, str]]) -> dict[str, int]:
    """For every node the length of the longest path to it. Nodes in a circle come after all others."""
    waits, below, layer = Counter[str](), defaultdict[str, list[str]](list), dict.fromkeys(marks, 0)
    for parent, child in edges:
        waits[child] += 1
        below[parent].append(child)
    ready = [m for m in marks if not waits[m]]
    for mark in ready:
        for child in below[mark]:
            layer[child] = max(layer[child], layer[mark] + 1)
            waits[child] -= 1
            if not waits[child]:
                ready.append(child)
    last = max((layer[m] for m in ready), default=0) + 1
    return {m: last if waits[m] > 0 else layer[m] for m in marks}


def _same(values: Iterable[object]) -> str:
    """The value that all share, or ""."""
    found = {str(v) for v in values if v}
    return found.pop() if len(found) == 1 else ""


def _span(values: Iterable[object]) -> str:
    found = [v for v in values if isinstance(v, int)]
    if not found:
        return "?"
    low, high = min(found), max(found)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _few(seeds: Sequence[int]) -> str:
    if len(seeds) > 2 and seeds == list(range(seeds[0], seeds[0] + len(seeds))):
        return f"{seeds[0]} to {seeds[-1]}"
    return " ".join(map(str, seeds[:5])) + (" …" if len(seeds) > 5 else "")
