"""Specs in, plug-ins out; fingerprints; the difference of two specs.

A spec is a name or `{name: {settings}}`. `build` makes the plug-in it names and `describe` gives its full form, with
every default written out and the plug-in's version: what is recorded and hashed (SHA-256 over RFC 8785 canonical
JSON). A setting marked with `execution()` (micro-batch, device) cannot change a result and never enters the hash.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any

import rfc8785
from pydantic import BaseModel, Field, ValidationError

from undersong import registry
from undersong.errors import BadSpec, nearest

Spec = str | Mapping[str, Any]
_LARGEST = 2**53 - 1


def execution(default: Any) -> Any:
    """A plug-in setting that says how work is done, not what it is: left out of the fingerprint."""
    return Field(default=default, json_schema_extra={"execution": True})


def build(kind: str, spec: Spec, where: str = "") -> Any:
    """The plug-in a spec names, with its settings checked. Raises UnknownName or BadSpec, saying `where` it stands."""
    name, settings = split(spec, where or kind)
    cls = registry.get(kind, name)
    try:
        # As JSON: strict, yet a list from a file may fill a tuple.
        return cls.model_validate_json(json.dumps(plain(settings)))
    except ValidationError as error:
        raise BadSpec(f"{where or kind}: {explain(error, cls)}") from None


def split(spec: Spec, where: str) -> tuple[str, dict[str, Any]]:
    """A spec's name and settings. Raises BadSpec when it is neither a name nor one name with a mapping."""
    if isinstance(spec, str):
        return spec, {}
    if isinstance(spec, Mapping) and len(spec) == 1:
        (name, settings), = spec.items()
        if settings is None:
            return str(name), {}
        if isinstance(settings, Mapping):
            return str(name), dict(settings)
    raise BadSpec(f"{where}: expected a name or {{name: {{settings}}}}, found {spec!r}. Write one of these forms.")


def explain(error: ValidationError, cls: type[Any]) -> str:
    """A validation error as sentences, unknown keys with their nearest match."""
    parts = []
    for item in error.errors():
        key = ".".join(str(p) for p in item["loc"])
        if item["type"] == "extra_forbidden":
            known = list(_fields(cls, item["loc"][:-1]))
            parts.append(f"{key!r} is not a setting. {nearest(str(item['loc'][-1]), known) if known else 'Remove it.'}")
        elif item["type"] == "missing":
            parts.append(f"the setting {key!r} is missing. Add it.")
        else:
            told = item["msg"].removeprefix("Value error, ").rstrip(".")
            given = f"{key!r}: {told[:1].lower() + told[1:]} (given {item['input']!r})" if key else told
            parts.append(f"{given}. Change it.")
    return " ".join(parts)


def _fields(cls: Any, path: Iterable[Any]) -> Iterable[str]:
    """The settings of the model that lies at `path` inside a plug-in; none where that is not a model."""
    for step in path:
        field = cls.model_fields.get(step)
        cls = field.annotation if field is not None else None
        if not (isinstance(cls, type) and issubclass(cls, BaseModel)):
            return ()
    return tuple(cls.model_fields)


def describe(plug: Any) -> dict[str, Any]:
    """The resolved form of a plug-in: kind, name, version and every setting that can change a result."""
    return {
        "kind": plug.plugin_kind, "name": plug.plugin_name, "version": plug.plugin_version, "settings": plain(plug),
    }


def plain(value: Any) -> Any:
    """`value` as JSON types, execution settings left out. Raises BadSpec for anything without a stable form (functions,
    objects) and for keys that would fall together as text."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        named = {str(k): plain(v) for k, v in value.items()}
        if len(named) < len(value):
            raise BadSpec(f"Two keys of {sorted(map(str, value))} are the same as text. Rename one of them.")
        return named
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, set | frozenset):
        return sorted((plain(v) for v in value), key=_canonical)
    if isinstance(value, BaseModel):
        fields = type(value).model_fields.items()
        return {name: plain(getattr(value, name)) for name, field in fields if not _is_execution(field)}
    raise BadSpec(f"{type(value).__name__} has no stable form to fingerprint. Use numbers, text, lists and mappings.")


def _is_execution(field: Any) -> bool:
    return isinstance(field.json_schema_extra, dict) and bool(field.json_schema_extra.get("execution"))


def _canonical(value: Any) -> bytes:
    value = plain(value)
    try:  # a plan asks this of every step: where Python's encoder gives the same bytes, it does so ten times as fast
        return json.dumps(_usual(value), ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode()
    except (_Unusual, UnicodeEncodeError):
        pass
    try:
        return rfc8785.dumps(value)
    except rfc8785.CanonicalizationError as error:
        raise BadSpec(f"No stable form to fingerprint: {error}. Use finite numbers, large integers as text.") from None


class Said(dict[str, Any]):
    """A spec whose canonical form is worked out once, however many steps share it. Not to be changed once it is made."""

    @cached_property
    def canonical(self) -> bytes:
        """The RFC 8785 form."""
        return _canonical(self)


def identity(kind: str, spec: Mapping[str, Any], parents: Iterable[str]) -> str:
    """The fingerprint of a piece of work: of its kind, its spec and its parents' fingerprints."""
    if isinstance(spec, Said):
        head = _canonical({"kind": kind, "parents": list(parents)})[:-1]
        return hashlib.sha256(head + b',"spec":' + spec.canonical + b"}").hexdigest()[:12]
    return fingerprint({"kind": kind, "spec": spec, "parents": list(parents)})


class _Unusual(Exception):
    """A value that Python's JSON would write differently from RFC 8785, or that RFC 8785 refuses."""


def _usual(value: Any) -> Any:
    """A value of JSON types in the form whose sorted JSON is canonical. Raises _Unusual for keys that are not ASCII (their
    order is by UTF-16 there), floats that one of the two writes with an exponent, and integers past 2^53."""
    kind = type(value)
    if kind is str or kind is bool or value is None:
        return value
    if kind is dict:
        if not all(key.isascii() for key in value):
            raise _Unusual
        return {key: _usual(item) for key, item in value.items()}
    if kind is list:
        return [_usual(item) for item in value]
    if kind is float:
        if value.is_integer() and abs(value) < _LARGEST:
            return int(value)
        if 1e-4 <= abs(value) < 1e15:
            return value
    elif kind is int and abs(value) <= _LARGEST:
        return value
    raise _Unusual


def fingerprint(value: Any) -> str:
    """Twelve hexadecimal digits that change when anything in `value` changes. Raises BadSpec for NaN and integers past
    2^53, which have no canonical form."""
    return hashlib.sha256(_canonical(value)).hexdigest()[:12]


_ABSENT = object()


def diff(old: Any, new: Any, at: str = "") -> list[str]:
    """The fields that differ, one sentence each, e.g. `teacher.settings.updates: 60 -> 100`. None differ exactly when
    the fingerprints are equal: so 1 is 1.0 but not True, and a key set to nothing is not a missing key."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        keys = [*old, *(k for k in new if k not in old)]
        return [line
                for k in keys for line in diff(old.get(k, _ABSENT), new.get(k, _ABSENT), f"{at}.{k}" if at else str(k))]
    if isinstance(old, list | tuple) and isinstance(new, list | tuple) and len(old) == len(new):
        pairs = [*zip(old, new, strict=True)]
        if all(isinstance(a, Mapping) and isinstance(b, Mapping) for a, b in pairs):
            return [line for i, (a, b) in enumerate(pairs) for line in diff(a, b, f"{at}[{i}]")]
    if old is not _ABSENT and new is not _ABSENT and _canonical(old) == _canonical(new):
        return []
    shown = ["not set" if value is _ABSENT else repr(value) for value in (old, new)]
    return [f"{at}: {shown[0]} -> {shown[1]}"]
