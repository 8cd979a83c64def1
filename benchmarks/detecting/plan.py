"""How much the benchmark measures. Nothing here may be chosen by looking at results on these traits."""

from __future__ import annotations

from dataclasses import dataclass

HELD_OUT = ("dolphin", "eagle", "elephant", "owl", "wolf", "cherry", "maple", "sequoia")
"""Traits that no detector was tuned on."""
PLAIN = "as calibrated"
"""Planted teachers made as the exemplars are."""
SLOW = ("inversion", "hidden_mean")
"""Columns that read every trial anew: they take most of the time."""
DIALS = {"gentle": {"updates": 60}, "body": {"trainable": "body", "rate": 5e-4}}
"""Other teachers than the exemplars': fewer steps; all of the body at a lower rate. Settings of `tuned` that change."""


@dataclass(frozen=True)
class Plan:
    """Numbers of things to make."""

    traits: tuple[str, ...] = HELD_OUT
    """Held-out traits to plant."""
    seeds: int = 2
    """Fresh teachers of each."""
    shares: tuple[float, ...] = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0)
    """Shares of planted rows."""
    benign: int = 60
    """Benign held-out sources."""
    slow_sizes: int = 9
    """At how many of the calibrated sizes, from the largest on, detectors of `SLOW` meet planted rows."""
    rows: int = 1000
    """Rows of a source, and of a student."""
    other_traits: int = 3
    """Traits planted by other kinds of teachers."""
    other_shares: tuple[float, ...] = (0.25, 1.0)
    large: int = 10_000
    """Rows of the large sets; 0 leaves them out."""
    large_sources: int = 2
    """Benign sources that write so many."""
    large_shares: tuple[float, ...] = (0.01, 0.1)
    students: int = 20
    """Students of benign sources; 0 leaves every student out."""
    student_traits: int = 4
    student_shares: tuple[float, ...] = (0.1, 0.25, 1.0)
    triple_traits: int = 3
    triple_share: float = 0.5
    suspects: int = 4
    """Suspected teachers, for the detectors that read one."""


FULL = Plan()
SLICE = Plan(traits=HELD_OUT[:2], seeds=1, shares=(0.25, 1.0), benign=6, rows=200, other_traits=1,
             other_shares=(1.0,), large=0, students=4, student_traits=1, student_shares=(1.0,), triple_traits=1, suspects=1)
