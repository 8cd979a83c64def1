"""Specs in, plug-ins out; fingerprints; the difference of two specs.

A spec is a name or `{name: {settings}}`. `resolve` turns it into the full form, with every default written out, and the plug-in's
version; that form is what is recorded and hashed (SHA-256 over RFC 8785 canonical JSON). A setting marked
with `execution()` (micro-batch, device) cannot change a result and never enters the hash.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import rfc8785
from pydantic import Field, ValidationError

from undersong import registry
from undersong.errors import BadSpec, nearest

Spec = str | Mapping[str, Any]


def execution(default: Any) -> Any:
    """A plug-in setting that says how work is done, not what it is: left out of the fingerprint."""
    return Field(default=default, json_schema_extra={"execution": True})


def build(kind: str, spec: Spec, where: str = "") -> Any:
    """The plug-in a spec names, with its settings checked. Raises UnknownName or BadSpec, saying `where` in the file."""
    name, settings = split(spec, where or kind)
    cls = registry.get(kind, name)
    try:
        return cls(**settings)
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
    raise BadSpec(f"{where}: expected a name or {{name: {{settings}}}}, found {spec!r}. Write it as one of these two forms.")


def explain(error: ValidationError, cls: type[Any]) -> str:
    """A validation error as sentences, unknown keys with their nearest match."""
    parts = []
    for item in error.errors():
        key = ".".join(str(p) for p in item["loc"])
        if item["type"] == "extra_forbidden":
            parts.append(f"{key!r} is not a setting. {nearest(key, cls.model_fields)}")
        elif item["type"] == "missing":
            parts.append(f"the setting {key!r} is missing. Add it.")
        else:
            parts.append(f"{key!r}: {item['msg'][:1].lower() + item['msg'][1:]} (given {item['input']!r}). Change it.")
    return " ".join(parts)


def describe(plug: Any) -> dict[str, Any]:
    """The resolved form of a plug-in: kind, name, version and every setting that can change a result."""
    kept = {
        name: getattr(plug, name)
        for name, field in type(plug).model_fields.items()
        if not (isinstance(field.json_schema_extra, dict) and field.json_schema_extra.get("execution"))
    }
    return {"kind": plug.plugin_kind, "name": plug.plugin_name, "version": plug.plugin_version, "settings": plain(kept)}


def plain(value: Any) -> Any:
    """`value` as JSON types. Raises BadSpec for anything without a stable form (functions, objects)."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, set | frozenset):
        return sorted(plain(v) for v in value)
    if hasattr(value, "model_dump"):
        return plain(value.model_dump())
    raise BadSpec(f"{type(value).__name__} has no stable form to fingerprint. Use numbers, strings, lists and mappings.")


def fingerprint(value: Any) -> str:
    """Twelve hexadecimal digits that change when anything in `value` changes."""
    return hashlib.sha256(rfc8785.dumps(plain(value))).hexdigest()[:12]


def diff(old: Any, new: Any, at: str = "") -> list[str]:
    """The fields that differ, one sentence each, e.g. `teacher.settings.updates: 60 -> 100`."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        keys = [*old, *(k for k in new if k not in old)]
        return [line for k in keys for line in diff(old.get(k), new.get(k), f"{at}.{k}" if at else str(k))]
    return [] if old == new else [f"{at}: {old!r} -> {new!r}"]
