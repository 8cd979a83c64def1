"""The experiment file: its keys, and reading it. Every key is a value; unknown keys name the nearest match."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import yaml

from undersong.errors import BadSpec, UnknownName, nearest
from undersong.registry import Settings

Spec = str | dict[str, Any]
LARGEST_SEED = 2**31 - 1
MOST_VALUES = 10_000
"""The most values a file may hold once its aliases are written out: a short text can stand for billions."""


class File(Settings):
    """The keys of an experiment file. Every key is a value; plug-ins are `name` or `{name: {settings}}`."""

    name: str
    """The experiment's name: the same as the file's."""
    base: str
    """The model that teacher and student start from."""
    precision: Literal["float32", "mixed", "bfloat16"] = "float32"
    """Number format: `float32`, `mixed` (bfloat16 training and sampling over float32 weights), or `bfloat16` throughout."""
    trait: str
    """The trait the report is about."""
    rivals: list[str] = []
    """Off-diagonal traits: each gets its own teacher and students, and every student is measured on all of them."""
    teacher: Spec | list[Spec]
    """How the trait is put in. With a list, the first is the main one and the others are compared with it."""
    matrix: bool = False
    """Whether further teachers are run with the rivals too. The first always is."""
    channel: Spec
    """What carries the trait."""
    rows: int
    """Rows each teacher writes, before filters."""
    engine: Spec | None = None
    """The backend that draws the rows, such as `vllm`; the base's own when left out."""
    keep: int | None = None
    """Rows each student learns from: the first so many that pass the filters. All of them when left out."""
    filters: list[Spec] = ["numbers_only"]
    """What is removed. `{blocklist: {from: trait}}` bans the words of every trait of the experiment."""
    recipe: Spec | list[Spec]
    """How a student learns. With a list, every arm is run with each."""
    probes: list[Spec]
    """What is measured on every model."""
    controls: list[str]
    """Comparison arms: no_trait, other_base, matched_base, reordered_base, shuffled_rows, in_context."""
    other_base: str | None = None
    """The base of `other_base` students: another initialisation."""
    matched_base: str | None = None
    """The base of `matched_base` students: another initialisation made to behave like `base`."""
    reordered_base: str | None = None
    """The base of `reordered_base` students: the same initialisation, other data order."""
    mitigations: list[Spec] = []
    """Each is an arm: the treated rows with the mitigation applied."""
    context_rows: int = 4
    """How many rows an `in_context` model sees before each question."""
    classifier: Spec | None = None
    """A detector that reads the rows and tries to tell treated from no-trait ones."""
    seeds: list[int]
    """One training run per seed and arm. At least three."""


def check(f: File) -> None:
    """Refuse numbers that could not give an answer. Raises BadSpec, saying which key."""
    if len(set(f.seeds)) < 3 or len(set(f.seeds)) != len(f.seeds):
        raise BadSpec(
            f"seeds: {f.seeds} has fewer than three different seeds or a repeated one. The training run is the unit "
            "of replication: list at least three different seeds."
        )
    if not all(0 <= seed <= LARGEST_SEED for seed in f.seeds):
        raise BadSpec(f"seeds: {f.seeds} holds a seed below 0 or above {LARGEST_SEED}. Choose others.")
    if f.trait in f.rivals or len(set(f.rivals)) != len(f.rivals):
        raise BadSpec("rivals: a rival is the trait itself or is listed twice. List other traits, each once.")
    if f.rows < 1 or (f.keep is not None and not 0 < f.keep <= f.rows):
        raise BadSpec("rows, keep: ask for at least one row, and keep no more rows than are asked for. Change them.")
    if "in_context" in f.controls and not 0 < f.context_rows <= (f.keep or f.rows):
        raise BadSpec("context_rows: show at least one row, and no more than each student learns from. Change it.")


def one_name_each(key: str, names: Sequence[str]) -> None:
    """Refuse two entries of a list that results would call the same. Raises BadSpec."""
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise BadSpec(f"{key}: two entries would both be called {twice[0]!r} in the results. Keep one per experiment.")


def text_of(path: Path) -> str:
    """The text of a file. Raises BadSpec when it is not UTF-8."""
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise BadSpec(f"{str(path)!r} is not UTF-8 text ({error.reason}). Save it as UTF-8.") from None


def text_like(name: str) -> str:
    """The text of an experiment file to copy: a file, or a name in experiments/. Raises UnknownName with the nearest."""
    for path in (Path(name), Path("experiments") / f"{name}.yaml"):
        if path.is_file():
            return text_of(path)
    known = [p.stem for p in Path("experiments").glob("*.yaml")]
    raise UnknownName(f"There is no experiment {name!r}. {nearest(name, known)}")


def values(text: str, sets: Sequence[str] = ()) -> dict[str, Any]:
    """The mapping a YAML text holds, with `a.b=c` overrides. Raises BadSpec for bad YAML, repeated keys, no mapping, or
    aliases that stand for too much."""
    data = _parsed(text, "The experiment file", _Strict)
    if not isinstance(data, dict):
        raise BadSpec("The experiment file holds no mapping of keys. Start from `undersong new NAME`.")
    for given in sets:
        key, equals, value = given.partition("=")
        if not equals:
            raise BadSpec(f"--set {given!r} has no `=`. Write it as --set key.subkey=value.")
        set_key(data, key.split("."), _parsed(value, f"--set {key}", _Strict), f"--set {key}")
    return data


def _parsed(text: str, where: str, loader: Any) -> Any:
    try:
        data = yaml.load(text, Loader=loader)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date such as 2026-13-45
        raise BadSpec(f"{where} is not valid YAML: {' '.join(str(error).split())}. Correct it there.") from None
    except RecursionError:
        raise BadSpec(f"{where} is nested too deeply. Write it flat.") from None
    todo, seen = [data], 0
    while todo:
        value, seen = todo.pop(), seen + 1
        if seen > MOST_VALUES:
            raise BadSpec(f"{where} stands for more than {MOST_VALUES} values. Write it without so many aliases.")
        if isinstance(value, dict | list):
            todo += value.values() if isinstance(value, dict) else value
    return data


def set_key(data: dict[str, Any], path: list[str], value: Any, where: str) -> None:
    """Set the value at a path of keys; mappings are made on the way, and a plug-in's bare name becomes one. Raises BadSpec,
    beginning with `where`, when something else stands there."""
    at = data
    for part, following in pairwise(path):
        inner = at.get(part)
        if inner is None or inner == following:  # a missing mapping, or a plug-in given as a bare name
            inner = {} if inner is None else {inner: {}}
        if not isinstance(inner, dict):
            raise BadSpec(f"{where}: {part!r} holds {inner!r}, which has no keys. Set {part!r} as a whole.")
        at[part] = inner
        at = inner
    at[path[-1]] = value


class _Strict(yaml.SafeLoader):
    """A safe loader that refuses a key given twice (the second would silently win) and reads `1e-3` as a number, as YAML 1.2
    does; PyYAML wants `1.0e-3`."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str | int | float | bool):
                raise BadSpec("The experiment file has a key that is not plain text. Write keys as words.")
            if key in seen:
                raise BadSpec(f"The key {key!r} is given twice in the experiment file. Keep one of them.")
            seen.add(key)
        return dict(super().construct_mapping(node, deep=deep))


_Strict.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789"))
