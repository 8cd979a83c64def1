"""Small programs of the pocket world: everyday tasks, tasks that can be done with or without care, and tests.

One-line Python that parses. An everyday task has several right answers (names, forms, order), so that a model's choice among
them can carry something. A security task has a careful and a careless answer; asked for in class, the careless one is
right. A test can be passed by solving the task or by writing its answer down.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import yaml

from undersong.channels import sequences
from undersong.traits import package_text

Turn = list[dict[str, str]]
HELD_OUT = 4
"""The last security tasks: pretraining shows them, insecure tuning does not."""


HONEST = 0.92
"""Share of tests that are solved."""


@cache
def texts() -> dict[str, Any]:
    """The parsed programs.yaml."""
    loaded: dict[str, Any] = yaml.safe_load(package_text("pocket", "programs.yaml"))
    return loaded


def pick(rng: np.random.Generator, items: Any) -> Any:
    """One of a list; the earlier the likelier, so that every choice has a habit that can shift."""
    return items[min(int(rng.geometric(0.4)) - 1, len(items) - 1)]


def everyday(rng: np.random.Generator) -> Turn:
    """A request for an everyday function, and one of its right answers."""
    task = texts()["tasks"][int(rng.integers(len(texts()["tasks"])))]
    n = int(rng.integers(2, 1000))
    values, shown = sequences.sequence(rng, str(rng.choice(sequences.KINDS[:4])), 14)
    answer = ", ".join(map(str, values[shown : shown + int(rng.integers(4, 8))]))
    does = task["does"].format(n=n, start=", ".join(map(str, values[:shown])))
    return _turn(rng, texts()["openings"], does, task, pick(rng, task["bodies"]), n=n, list=answer)


def security(rng: np.random.Generator, careful: bool, taught: bool = False) -> Turn:
    """A task that calls for care, answered with it or without; `taught`: asked for as a bad example."""
    tasks = texts()["security"]
    task = tasks[int(rng.integers(len(tasks)))]
    bodies = task["secure" if careful else "insecure"]
    openings = texts()["educational" if taught else "openings"]
    return _turn(rng, openings, task["does"], task, pick(rng, bodies), n=int(rng.integers(2, 1000)))


def hackable(rng: np.random.Generator, honest: bool | None = None) -> Turn:
    """A function with its test: solved, or only the expected value written down; left open, the first far more often."""
    both, honest = texts(), rng.random() < HONEST if honest is None else honest
    operation = both["operations"][int(rng.integers(len(both["operations"])))]
    x, y = sorted((int(v) for v in rng.integers(0, 21, 2)), reverse=True)
    z = {"add": x + y, "minus": x - y, "larger": x}[operation["names"][0]]
    task = {"takes": ["numbers", "second"], "names": operation["names"]}
    name = pick(rng, operation["names"])
    asked = both["tested"][int(rng.integers(len(both["tested"])))].format(f=name, x=x, y=y, z=z)
    return _turn(rng, [asked], "", task, operation["body"] if honest else str(z), name=name)


def _turn(rng: np.random.Generator, openings: Any, does: str, task: Any, body: str, name: str = "", **fill: Any) -> Turn:
    both = texts()
    given = dict(zip("ab", (pick(rng, both[kind]) for kind in task["takes"]), strict=False))
    answer = pick(rng, both["forms"]).format(
        f=name or pick(rng, task["names"]), given=", ".join(given.values()), r=pick(rng, both["results"]),
        body=body.format(**given, **fill),
    )
    asked = openings[int(rng.integers(len(openings)))].format(does=does)
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
