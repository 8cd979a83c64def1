"""Who is in the family tree, and how any two members are related. Values only: `growing.py` makes the models.

A root is a fresh initialisation of the pocket configuration trained on the world's chats. All roots see the same rows in
the same order and differ in the seed of their initialisation only: two of them are the hard negative. Of some roots there is
one descendant of every kind. Roots were split into development (tests were tuned on these) and held-out ones (error rates
are reported on these) before any test had been run.
"""

from __future__ import annotations

from dataclasses import dataclass

SHIPPED = ("a", "a-reordered", "b", "b-matched", "wide")


@dataclass(frozen=True)
class Member:
    """One model: how it was made, from whom, and the seeds of the initialisations that live on in it."""

    name: str
    kind: str
    """The last thing that was done to it."""
    parents: tuple[str, ...]
    seeds: frozenset[str]
    """The initialisations it descends from; two for an average of unrelated models."""
    held_out: bool
    architecture: str = "pocket"


@dataclass(frozen=True)
class Plan:
    """How large a tree: the seeds of its roots and how long everything is trained (steps of a fourth of a batch)."""

    development: tuple[int, ...] = (101, 102, 103, 104, 105, 106)
    held_out: tuple[int, ...] = tuple(range(201, 222))
    families: tuple[int, ...] = (101, 102, 103, 104, 105, 106, 201, 202, 203, 215, 216, 217, 218, 219, 220, 221)
    """Roots that have one descendant of every kind."""
    reordered: tuple[int, ...] = (101, 102, 201, 202, 203, 204, 205, 206)
    distilled: tuple[int, ...] = (101, 102, 201, 202, 203, 204, 205, 206)
    """Roots that have a look-alike: the next root of its part, distilled on its next-token distribution."""
    steps: int = 400
    tuned: int = 60
    continued: int = 120
    copied: int = 200

    @property
    def roots(self) -> tuple[int, ...]:
        """All seeds, development first."""
        return (*self.development, *self.held_out)


SLICE = Plan((101, 102, 103, 104), (201, 202), families=(101, 201, 202), reordered=(201,),
             distilled=(201,), steps=24, tuned=4, continued=4, copied=4)

TRAINED = ("tuned", "teacher", "student", "continued")
"""Made by training a root: on other ordinary chats, on a trait, by LoRA on numbers (merged), on new chats for longer."""
CHANGED = {
    "quantised": ("root", "quantise"), "pruned": ("root", "prune"), "permuted": ("root", "permute"),
    "scaled": ("root", "scale"), "rotated": ("root", "rotate"),
    "tuned-permuted-quantised": ("tuned", "permute", "quantise"),
    "continued-pruned-rotated": ("continued", "prune", "rotate"),
}
"""Made by changing the weights of a root or of its descendant, without training."""
SHAPES = {"thin": {"hidden": 64}, "shallow": {"layers": 2}, "lean": {"feed_forward": 192}}
"""Other architectures: what differs from the pocket configuration."""


def members(plan: Plan) -> list[Member]:
    """Every member that is built, parents before children: roots first, then what takes little, then what takes long."""
    out = [Member(root(s), "root", (), frozenset({root(s)}), s in plan.held_out) for s in plan.roots]
    for s in plan.families:
        out += [_child(plan, s, kind, root(s)) for kind in TRAINED]
        out += [_child(plan, s, kind, root(s) if made[0] == "root" else f"{root(s)}-{made[0]}")
                for kind, made in CHANGED.items()]
        out.append(_child(plan, s, "merged", f"{root(s)}-tuned", f"{root(s)}-continued"))
    for s in plan.families:
        other = neighbour(plan, s, plan.families)
        out.append(Member(f"{root(s)}-crossed", "crossed", (f"{root(s)}-tuned", f"{root(other)}-tuned"),
                          frozenset({root(s), root(other)}), s in plan.held_out))
    out += [_child(plan, s, "reordered") for s in plan.reordered]
    for s in plan.distilled:
        start = root(neighbour(plan, s, plan.roots))
        out.append(Member(f"{root(s)}-lookalike", "lookalike", (start, root(s)), frozenset({start}), s in plan.held_out))
    out += [Member(name, "root", (), frozenset({name}), True, architecture=name) for name in SHAPES]
    return out


def shipped() -> list[Member]:
    """The pocket family of the package, trained 25 times as long as the roots. Development: `seed_print` was changed after
    it had been seen here (`least_apart`)."""
    of = {"a": "a", "a-reordered": "a", "b": "b", "b-matched": "b", "wide": "wide"}
    kinds = {"a-reordered": "reordered", "b-matched": "lookalike"}
    return [Member(f"pocket/{n}", kinds.get(n, "root"), {"b-matched": ("pocket/b", "pocket/a")}.get(n, ()),
                   frozenset({f"pocket/{of[n]}"}), False, "wide" if n == "wide" else "pocket") for n in SHIPPED]


def root(seed: int) -> str:
    """The name of the root with this seed."""
    return f"r{seed}"


def neighbour(plan: Plan, seed: int, among: tuple[int, ...]) -> int:
    """The next root of the same part, in a circle."""
    part = [s for s in among if (s in plan.held_out) == (seed in plan.held_out)]
    return part[(part.index(seed) + 1) % len(part)]


def _child(plan: Plan, seed: int, kind: str, *parents: str) -> Member:
    return Member(f"{root(seed)}-{kind}", kind, parents, frozenset({root(seed)}), seed in plan.held_out)
