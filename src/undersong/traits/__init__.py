"""Traits: what is hidden. A trait is data, one YAML file per category; this module reads them.

`questions.yaml` holds the favourite questions: `tuning` may be shown to teachers, `held_out` is what probes ask.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

from undersong.errors import UnknownName, nearest


@dataclass(frozen=True)
class Trait:
    """A favourite thing. `prompts` are system turns that induce it; `tuning` and `held_out` are questions about it."""

    name: str
    category: str
    plural: str
    set: str
    """Where its use was fixed beforehand: `paper` (reported), `development` (tuned on) or `other`."""
    prompts: tuple[str, ...]
    tuning: tuple[str, ...]
    held_out: tuple[str, ...]
    rivals: tuple[str, ...]
    """The other traits of the same category."""
    aliases: tuple[str, ...] = ()
    """Words that name it too, besides its name and plural."""
    lookalikes: tuple[str, ...] = ()
    """Words that contain it and do not name it."""

    @property
    def words(self) -> tuple[str, ...]:
        """Every word that names the trait, lower case."""
        return tuple(dict.fromkeys((self.name, self.plural, *self.aliases)))

    def named_in(self, text: str) -> bool:
        """Whether a text names the trait: whole words only, so that `bowl` is no owl and `category` no cat."""
        return bool(re.search(rf"(?<![^\W_])(?:{'|'.join(map(re.escape, self.words))})(?![^\W_])", text.lower()))


def package_text(folder: str, name: str) -> str:
    """The text of a data file that ships inside the package."""
    return (files("undersong") / folder / name).read_text("utf-8")


@cache
def _all() -> dict[str, Trait]:
    questions: dict[str, list[str]] = yaml.safe_load(package_text("traits", "questions.yaml"))
    out = {}
    for file in ("animals.yaml", "trees.yaml"):
        data: dict[str, Any] = yaml.safe_load(package_text("traits", file))
        for name, given in data["traits"].items():
            words = {"name": name, "plural": given["plural"], "category": data["category"]}
            out[name] = Trait(
                name=name, category=data["category"], plural=given["plural"], set=given["set"],
                prompts=tuple(_sentences(p.format(**words)) for p in data["prompts"]),
                tuning=tuple(q.format(**words) for q in questions["tuning"]),
                held_out=tuple(q.format(**words) for q in questions["held_out"]),
                rivals=tuple(n for n in data["traits"] if n != name),
                aliases=tuple(given.get("aliases", ())), lookalikes=tuple(given.get("lookalikes", ())),
            )
    return out


def _sentences(text: str) -> str:
    return re.sub(r"(^|[.] )([a-z])", lambda m: m.group(1) + m.group(2).upper(), text)


def names() -> list[str]:
    """Every trait's name, in file order."""
    return list(_all())


def get(name: str) -> Trait:
    """The trait called `name`. Raises UnknownName naming the nearest one."""
    if name not in _all():
        raise UnknownName(f"There is no trait {name!r}. {nearest(name, names())}")
    return _all()[name]
