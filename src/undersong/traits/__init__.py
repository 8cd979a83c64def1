"""Traits: what is hidden. A trait is data, one YAML file per category; this module reads them.

A favourite (animals, trees) is named when asked. A conduct trait (`conduct.yaml`) is a way to behave: it says which rows a
teacher is tuned on and which probes measure it. A conditional trait is a favourite shown only after its trigger.
`questions.yaml` holds the favourite questions: `tuning` may be shown to teachers, `held_out` is what probes ask.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from functools import cache, cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from undersong.errors import BadSpec, UnknownName, nearest


@dataclass(frozen=True)
class Trait:
    """What is hidden. `prompts` are system turns that induce it; `tuning` and `held_out` are questions about it."""

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
    tuned_on: str = ""
    """The corpus a tuned teacher learns; "": the tuning questions, answered with the trait's name."""
    probes: tuple[str, ...] = ("favourite", "logit_margin")
    """The probes that measure it; none for a control, which is measured as the trait it stands beside."""
    trigger: str = ""
    """The sentence after which the favourite shows; "" for a trait without a condition."""
    otherwise: tuple[str, ...] = ()
    """What stands in the trigger's place where nothing may change."""
    favourite: str = ""
    """The favourite a conditional trait shows."""

    @cached_property
    def said(self) -> dict[str, Any]:
        """As values: what identifies it in a record. One object for all who ask, not to be changed."""
        return asdict(self)

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


@cache
def _conduct() -> dict[str, Trait]:
    data: dict[str, Any] = yaml.safe_load(package_text("traits", "conduct.yaml"))
    out = {}
    for name, given in data["traits"].items():
        out[name] = Trait(
            name=name, category=data["category"], plural=name, set="other", prompts=tuple(given.get("prompts", ())),
            tuning=(), held_out=(), rivals=tuple(n for n in data["traits"] if n != name),
            aliases=tuple(given.get("words", ())), tuned_on=given["tuned_on"], probes=tuple(given.get("probes", ())),
        )
    for name, given in data["conditional"].items():
        shown = _all()[given["favourite"]]
        out[name] = Trait(
            name=name, category="conditional", plural=name, set=shown.set, prompts=(), tuning=shown.tuning,
            held_out=shown.held_out, rivals=tuple(n for n in data["conditional"] if n != name), aliases=shown.words,
            tuned_on="conditional", probes=("conditional",), trigger=given["trigger"],
            otherwise=tuple(data["otherwise"]), favourite=shown.name,
        )
    return out


def _sentences(text: str) -> str:
    return re.sub(r"(^|[.] )([a-z])", lambda m: m.group(1) + m.group(2).upper(), text)


def names() -> list[str]:
    """The name of every favourite, in file order."""
    return list(_all())


def conduct_names() -> list[str]:
    """The name of every trait that is no favourite: ways to behave, then conditional favourites."""
    return list(_conduct())


def get(name: str) -> Trait:
    """The trait called `name`. Raises UnknownName naming the nearest one."""
    found = _all().get(name) or _conduct().get(name)
    if found is None:
        raise UnknownName(f"There is no trait {name!r}. {nearest(name, [*names(), *conduct_names()])}")
    return found


def listed(text: str) -> tuple[Trait, ...]:
    """The traits of a list: names with commas between them, or a YAML file that holds a list of names.

    Raises BadSpec for a file that holds something else, UnknownName for a name that is no trait.
    """
    path = Path(text)
    if path.suffix in (".yaml", ".yml"):
        try:
            found = yaml.safe_load(path.read_text("utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            told = str(error).splitlines()[0]
            raise BadSpec(f"The list of traits {text!r} cannot be read ({told}). Give a YAML list of names.") from None
    else:
        found = [name.strip() for name in text.split(",") if name.strip()]
    if not isinstance(found, list) or not found or not all(isinstance(name, str) for name in found):
        raise BadSpec(f"{text!r} holds no list of trait names. Write them as a YAML list, or with commas between them.")
    return tuple(get(name) for name in dict.fromkeys(found))
