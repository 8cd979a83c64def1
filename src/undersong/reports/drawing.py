"""Where the boxes and lines of a lineage lie: layers from left to right, what belongs together at one height.

Layered drawing after Sugiyama, Tagawa and Toda (1981), in its simplest form: layers by the longest path, then each column in
the order of its neighbours' heights, back and forth, and pushed apart until no two boxes overlap.
"""

from __future__ import annotations

import textwrap
from collections import defaultdict
from collections.abc import Mapping, Sequence

from undersong.lineage import KIN
from undersong.reports.parts import Box, Drawing, Line
from undersong.reports.stacks import Bond, Link, Stack, Stacks

WIDE, HIGH, ACROSS, DOWN = 164, 66, 40, 14
"""Of a box: width and height; of the gaps: between columns and between boxes. In pixels; five columns fill a page."""
EDGE = 6
"""Pixels left around the drawing."""
SWEEPS = 6
LETTERS = 19
"""Letters of a box's label that fit on a line."""
PREFIX = {"teacher": "teacher-", "student": "student-", "rows": "raw-", "refined": "rows-"}
"""What labels repeat of their role."""
ROLES = {"rows": "rows as written", "refined": "rows after filters"}
LEGEND = (("declared", "declared: a record says so"), ("kin", "tested: same weights or initialisation"),
          ("apart", "tested: another initialisation"), ("contradiction", "tested, and it contradicts the records"))


def draw(stacks: Stacks) -> Drawing:
    """The drawing of a lineage in stacks."""
    places = _places(stacks)
    boxes = tuple(_box(s, *places[i]) for i, s in enumerate(stacks.stacks))
    lines = [Line(_curve(places[k.parent], places[k.child]), "declared", _declared(stacks, k))
             for k in stacks.links if places[k.parent][0] < places[k.child][0]]
    bonds = sorted(stacks.bonds, key=lambda b: bool(b.alarms))
    lines += [Line(_arc(places[b.a], places[b.b]), _kind(b), _told(stacks, b)) for b in bonds]
    width = max((x + WIDE for x, _ in places), default=WIDE) + EDGE
    below = max((_dip(places[b.a], places[b.b]) for b in bonds), default=0.0)
    height = max((y + HIGH for _, y in places), default=HIGH) + max(below, EDGE) + 4
    kinds = {line.kind for line in lines}
    legend = tuple((kind, text) for kind, text in LEGEND if kind in kinds)
    return Drawing("From base to student", int(width), int(height), boxes, tuple(lines), legend)


def _places(stacks: Stacks) -> list[tuple[float, float]]:
    """The upper left corner of every stack's box."""
    columns: dict[int, list[int]] = defaultdict(list)
    up: dict[int, list[int]] = defaultdict(list)
    down: dict[int, list[int]] = defaultdict(list)
    for i, s in enumerate(stacks.stacks):
        columns[s.layer].append(i)
    for link in stacks.links:
        if abs(stacks.stacks[link.parent].layer - stacks.stacks[link.child].layer) == 1:
            down[link.parent].append(link.child)
            up[link.child].append(link.parent)
    for column in columns.values():
        column.sort(key=lambda i: stacks.stacks[i].label)
    step = HIGH + DOWN
    y = {i: float(place * step) for column in columns.values() for place, i in enumerate(column)}
    order = sorted(columns)
    for sweep in range(SWEEPS):
        for at in order if sweep % 2 == 0 else reversed(order):
            _settle(columns[at], up if sweep % 2 == 0 else down, y, step)
    top = min(y.values(), default=0.0)
    return [(EDGE + order.index(s.layer) * (WIDE + ACROSS), EDGE + y[i] - top) for i, s in enumerate(stacks.stacks)]


def _settle(column: list[int], near: Mapping[int, Sequence[int]], y: dict[int, float], step: float) -> None:
    """Move the boxes of a column towards their neighbours, then apart until none overlap."""
    wish = {i: sum(y[n] for n in near[i]) / len(near[i]) if near.get(i) else y[i] for i in column}
    column.sort(key=lambda i: wish[i])
    low = float("-inf")
    for i in column:
        y[i] = max(wish[i], low)
        low = y[i] + step
    shift = sum(wish[i] - y[i] for i in column) / len(column)
    for i in column:
        y[i] += shift


def _box(stack: Stack, x: float, y: float) -> Box:
    many = f" ×{len(stack.members)}" if len(stack.members) > 1 else ""
    short = stack.label.removeprefix(PREFIX.get(stack.role, "")) or stack.label
    lines = textwrap.wrap(short, LETTERS, max_lines=2, placeholder="…") or [short]
    names = ", ".join(m.name for m in stack.members[:6]) + (" …" if len(stack.members) > 6 else "")
    title = "\n".join(t for t in (f"{stack.role}: {stack.title}", stack.says, names) if t)
    says = textwrap.shorten(stack.says, LETTERS + 7, placeholder="…") if len(lines) == 1 else ""
    role = ROLES.get(stack.role, stack.role) + many
    kind, at = stack.role.replace(" ", "-"), (round(x, 1), round(y, 1))
    return Box(*at, WIDE, HIGH, kind, role, tuple(lines), says, title, bool(many))


def _curve(a: tuple[float, float], b: tuple[float, float]) -> str:
    """From the right side of one box to the left side of another."""
    x0, y0, x1, y1 = a[0] + WIDE, a[1] + HIGH / 2, b[0], b[1] + HIGH / 2
    bend = max(ACROSS / 2, (x1 - x0) / 3)
    return f"M{x0:.1f} {y0:.1f}C{x0 + bend:.1f} {y0:.1f} {x1 - bend:.1f} {y1:.1f} {x1:.1f} {y1:.1f}"


def _arc(a: tuple[float, float], b: tuple[float, float]) -> str:
    """Between two boxes of one column along their left sides, else below the declared edge."""
    if a[0] == b[0]:
        x, y0, y1 = a[0], a[1] + HIGH / 2, b[1] + HIGH / 2
        return f"M{x:.1f} {y0:.1f}C{x - ACROSS:.1f} {y0:.1f} {x - ACROSS:.1f} {y1:.1f} {x:.1f} {y1:.1f}"
    left, right = sorted((a, b))
    if dip := _dip(a, b):  # a straight line would run behind the boxes between them, as if it were about these
        x0, x1, y0, y1 = left[0] + 0.6 * WIDE, right[0] + 0.4 * WIDE, left[1] + HIGH, right[1] + HIGH
        low = max(y0, y1) + dip / 0.75
        return f"M{x0:.1f} {y0:.1f}C{x0:.1f} {low:.1f} {x1:.1f} {low:.1f} {x1:.1f} {y1:.1f}"
    return _curve((left[0], left[1] + HIGH / 4), (right[0], right[1] + HIGH / 4))


def _dip(a: tuple[float, float], b: tuple[float, float]) -> float:
    """How far a tested edge bows below two boxes of about one height with columns between them; 0 for all others."""
    columns = round(abs(a[0] - b[0]) / (WIDE + ACROSS))
    return 10.0 + 4.0 * columns if columns > 1 and abs(a[1] - b[1]) < HIGH else 0.0


def _kind(bond: Bond) -> str:
    if bond.alarms:
        return "contradiction"
    return "kin" if bond.relation in KIN else "apart" if bond.relation != "unknown" else "cannot-tell"


def _declared(stacks: Stacks, link: Link) -> str:
    child, parent = stacks.stacks[link.child].title, stacks.stacks[link.parent].title
    return f"declared: {child} was made ({link.way}) from {parent}" + (f", {link.count} times" if link.count > 1 else "")


def _told(stacks: Stacks, bond: Bond) -> str:
    first = bond.tested[0]
    about = f"tested: {stacks.stacks[bond.a].title} and {stacks.stacks[bond.b].title}, {bond.relation.replace('_', ' ')}"
    p = f" (p = {first.p:.2g})" if first.p is not None and len(bond.tested) == 1 else f", {len(bond.tested)} tests"
    return "\n".join((about + p, *bond.alarms[:3]))
