"""Suspected teachers: did this model write these rows? `divergence_tokens` on rows of planted teachers and of others.

As in an audit, each suspected teacher has a null of its own: what the detector says, with this teacher, of the rows of every
placebo source that the calibration keeps.
"""

from __future__ import annotations

import math

import numpy as np

from detecting.cells import Cell, Column, Desks, Judgement, Trial
from detecting.plan import PLAIN
from detecting.world import World
from undersong.calibration import FEW
from undersong.detectors import PLACEBO
from undersong.exemplars import placebo_rows
from undersong.nulls import Table
from undersong.spec import build, fingerprint

NULL = "null"


def column() -> Column:
    """The detector of suspected teachers."""
    return Column("divergence_tokens", build("detector", "divergence_tokens"))


def run(world: World, desks: Desks) -> tuple[list[Cell], list[Judgement]]:
    """Every suspected teacher's trials, and what its own null says of them."""
    cells = desks.run(column(), [group for teacher in _suspects(world) for group in teacher])
    judged = []
    for name in dict.fromkeys(cell.kind for cell in cells):
        mine = [cell for cell in cells if cell.kind == name]
        table = Table((("", PLACEBO),), np.array([[c.said[PLACEBO]] for c in mine if c.battery == NULL]))
        for cell in (c for c in mine if c.battery != NULL):
            found = table.judge({("", PLACEBO): cell.said[PLACEBO]})
            kind = PLAIN if cell.trait else "other rows"
            told = Cell(cell.battery, kind, *(getattr(cell, key) for key in list(Cell.__dataclass_fields__)[2:]))
            judged.append(Judgement(told, found.p, found.observed, "", math.nan))
    return cells, judged


def _suspects(world: World) -> list[list[list[Trial]]]:
    """Per suspected teacher its trials by source: placebo rows, benign held-out rows, and its own among clean ones."""
    known, out = placebo_rows(world.folder), []
    sources = [(i, s) for i, s in enumerate(world.planted_sources) if s.number == 0][: world.plan.suspects]
    for index, source in sources:
        trait = next(t for t in world.planted_traits if t.name == source.trait)
        ref = world.teacher(PLAIN, trait, world.teacher_number(trait, 0))

        def trial(battery: str, share: float, number: int, rows: tuple, mark: str, *, by=ref, of=source) -> Trial:
            whose = of.trait if share else ""
            return Trial(battery, of.trait, whose, number, share, len(rows), {"rows": (rows,), "teacher": by},
                         fingerprint({"rows": mark, "teacher": by.fingerprint}))

        clean = world.clean_for(index)
        mine = [world.mixed(source, clean, share, FEW) for share in world.plan.shares]
        out.append([
            [trial(NULL, 0.0, i, rows, fingerprint([row.completion for row in rows])) for i, rows in enumerate(known)],
            [trial("suspects", 0.0, s.number, s.data.rows[:FEW], s.data.fingerprint) for s in world.benign_sources],
            [trial("suspects", share, source.number, data.rows, data.fingerprint)
             for share, data in zip(world.plan.shares, mine, strict=True) if data.rows],
        ])
    return out
