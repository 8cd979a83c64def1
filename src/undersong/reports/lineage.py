"""The report of `undersong lineage`: a drawn page, and what the terminal prints.

Declared edges are thin, grey and dashed: a record says so. Tested edges are solid and coloured: a test says so. An edge
whose declaration a test contradicts is red, and stands in words above the drawing.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from undersong.lineage import KIN, Graph
from undersong.reports import drawing
from undersong.reports.page import as_html, save
from undersong.reports.parts import Banner, Page, Section, Table, given, table_of
from undersong.reports.stacks import Stacks, stacked
from undersong.reports.terminal import plain, put

if TYPE_CHECKING:
    from rich.console import Console

MOST = 300
"""Lines of a table of the page; the JSON holds them all."""

WORDS = {"trained": "starts from", "taught": "taught from"}
PLAIN = ("rows", "refined")
"""Roles that a tree need not name: what such a node says, says it."""


def render(graph: Graph, about: str, every: bool = False, apart: bool = False) -> str:
    """The page as a string; the same graph gives the same bytes. Raises MissingExtra without the `[report]` extra."""
    stacks = stacked(graph, every, apart)
    alarms = graph.alarms
    banner = Banner("found", "!", "Alarm", _facts(graph), (("What cannot be true", alarms),)) if alarms else None
    told = table_of("What is missing", ("",), [(line,) for line in graph.told[:MOST]])
    sections = (
        Section("graph", "The graph", _lead(stacks), drawings=(drawing.draw(stacks),)),
        *given(_tested_section(graph, stacks)),
        Section("nodes", "Every stack in words", tables=given(_stacks(stacks), told)),
    )
    title, whose = f"Lineage of {about}", f"{about}, the lineage of an Undersong store"
    return as_html(Page(title, whose, sentence(graph), sections, banner))


def write(graph: Graph, about: str, path: str | Path, every: bool = False, apart: bool = False) -> Path:
    """Render into a file, which appears whole or not at all. Raises NoRoom on a full disk, else as `render` does."""
    return save(render(graph, about, every, apart), path)


def section(graph: Graph) -> Section | None:
    """The graph as one section of another page; None when nothing in it was made from anything."""
    stacks = stacked(graph)
    if not stacks.links:
        return None
    lead = (sentence(graph), *_lead(stacks), *graph.alarms)
    return Section("lineage", "What was made from what", lead, drawings=(drawing.draw(stacks),))


def sentence(graph: Graph) -> str:
    """What the graph holds, in one sentence."""
    roles = Counter(n.role for n in graph.nodes.values())
    names = (("base", "base", "bases"), ("unknown base", "unknown base", "unknown bases"),
             ("teacher", "teacher", "teachers"), ("rows", "dataset as written", "datasets as written"),
             ("refined", "filtered dataset", "filtered datasets"),
             ("student", "student", "students"))
    parts = [f"{roles[role]:,} {one if roles[role] == 1 else many}" for role, one, many in names if roles[role]]
    count = len(graph.tested)
    tested = f"{count:,} tested edge{'' if count == 1 else 's'}" if count else "no tested edge"
    rung = len(graph.alarms)
    alarms = f" {rung:,} alarm{'s' if rung > 1 else ''}: what is declared there cannot be true." if rung else ""
    return f"{', '.join(parts) or 'Nothing'}: {len(graph.edges):,} declared edges, {tested}.{alarms}"


def summary(graph: Graph, width: int = 110, every: bool = False, apart: bool = False) -> str:
    """The graph as plain text: a tree of stacks, tested edges, alarms. Nothing in it can drive a terminal."""
    return plain(lambda console: _print(graph, every, apart, console), width)


def listing(graph: Graph, marks: Sequence[str], width: int = 100) -> str:
    """Nodes as a plain table: the answer to a question about the graph."""
    rows = [(graph.nodes[m].role, graph.nodes[m].name, graph.nodes[m].says) for m in marks]
    table = table_of(f"{len(rows):,} found", ("role", "name", "what it is"), rows)
    return plain(lambda console: put(table, console) if table else console.print("None."), width)


def _print(graph: Graph, every: bool, apart: bool, console: Console) -> None:
    from rich.text import Text

    stacks = stacked(graph, every, apart)
    console.print(Text(sentence(graph)))
    for alarm in graph.alarms:
        console.print(Text(f"ALARM  {alarm}", style="bold"))
    console.print()
    for line in tree(stacks):
        console.print(Text(line), no_wrap=True, overflow="ellipsis")
    table = _tested(graph, stacks)
    if table is not None:
        put(table, console)
    notes = [*graph.told[:10], *([f"And {len(graph.told) - 10:,} more; --json holds them."] if len(graph.told) > 10 else [])]
    for note in (*_left_out(stacks), *notes):
        console.print(Text(f"Note: {note}", style="dim"))


def tree(stacks: Stacks) -> list[str]:
    """The stacks as an indented tree. Each stands once, below the rows it learnt from or else below its first parent; its
    other parents are named behind it. `┄` is a declared edge; tested edges are no part of the tree."""
    parents: dict[int, list[tuple[int, str]]] = defaultdict(list)
    for link in stacks.links:
        parents[link.child].append((link.parent, link.way))
    below: dict[int, list[int]] = defaultdict(list)
    roots = []
    for i in sorted(range(len(stacks.stacks)), key=lambda i: (stacks.stacks[i].layer, stacks.stacks[i].label)):
        own = sorted(parents[i], key=lambda p: (p[1] != "learnt from", stacks.stacks[p[0]].layer))
        own = [p for p in own if stacks.stacks[p[0]].layer < stacks.stacks[i].layer]  # no edge of a circle
        if own:
            below[own[0][0]].append(i)
        else:
            roots.append(i)
    home = {child: parent for parent, inner in below.items() for child in inner}
    lines = []
    todo = [(i, "", "") for i in reversed(roots)]
    while todo:
        i, bar, corner = todo.pop()
        stack = stacks.stacks[i]
        others = dict.fromkeys(f"{WORDS.get(way, way)} {stacks.stacks[p].title}"
                               for p, way in parents[i] if p not in (home.get(i), i))
        role = "" if stack.label.startswith(stack.role) or stack.role in PLAIN else f"[{stack.role}]"
        lines.append("  ".join(s for s in (f"{bar}{corner}{stack.title}", role, "; ".join((*others, stack.says))) if s))
        inner = bar + ("" if not corner else "   " if corner.startswith("└") else "┊  ")
        for place, child in enumerate(reversed(below[i])):
            todo.append((child, inner, "└┄ " if place == 0 else "├┄ "))
    return lines


def _lead(stacks: Stacks) -> tuple[str, ...]:
    piles = sum(len(s.members) > 1 for s in stacks.stacks)
    pile = "A box with an edge behind it stands for several that differ by their seeds." if piles else ""
    return tuple(s for s in (pile, *_left_out(stacks)) if s)


def _left_out(stacks: Stacks) -> list[str]:
    if not stacks.hidden:
        return []
    parts = ", ".join(f"{n:,} {role}{'s' if n > 1 and not role.endswith('s') else ''}" for role, n in stacks.hidden)
    return [f"Left out here: {parts}. --every shows them."]


def _facts(graph: Graph) -> tuple[tuple[str, str], ...]:
    return (("alarms", f"{len(graph.alarms):,}"), ("declared edges", f"{len(graph.edges):,}"),
            ("tested edges", f"{len(graph.tested):,}"))


def _tested_section(graph: Graph, stacks: Stacks) -> Section | None:
    table = _tested(graph, stacks)
    lead = ("What a kinship test says of two models, beside what their records declare. A test that contradicts a record is "
            "an alarm; one that cannot tell is neither.")
    return Section("tested", "Tested edges", (lead,), tables=(table,)) if table else None


def _tested(graph: Graph, stacks: Stacks) -> Table | None:
    rows = []
    for b in stacks.bonds:
        ps = [t.p for t in b.tested if t.p is not None]
        power = [t.power for t in b.tested if t.power is not None]
        sign = "══" if b.relation in KIN else "≠" if b.relation != "unknown" else "?"
        told = Counter(graph.standing(t) for t in b.tested)
        rows.append((stacks.stacks[b.a].title, sign, stacks.stacks[b.b].title, b.relation.replace("_", " "),
                     f"{max(ps):.2g}" if ps else "", f"{min(power):.2f}" if power else "",
                     ", ".join(f"{n} × {word}" if len(b.tested) > 1 else word for word, n in told.items())))
    head = ("model", "", "model ", "tested", "largest p", "least power", "with the records")
    return table_of("Tested edges", head, rows[:MOST], (4, 5), (5,))


def _stacks(stacks: Stacks) -> Table | None:
    order = sorted(stacks.stacks, key=lambda s: (s.layer, s.role, s.label))
    rows = [(s.role, s.title, s.says, ", ".join(m.mark for m in s.members[:5]) + (" …" if len(s.members) > 5 else ""))
            for s in order[:MOST]]
    return table_of("Stacks", ("role", "name", "what it is", "fingerprints"), rows)
