"""Names to plug-ins. One door, used by our own plug-ins and by strangers' packages alike.

A plug-in is a strict, frozen pydantic model of settings with one method that does the work; `@plugin(kind, name)`
registers it. Our own live in the folder of their kind and are imported when that kind is first asked for; other
packages announce a module under the entry-point group `undersong.plugins`.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from functools import cache
from importlib.metadata import entry_points
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict

from undersong.errors import BadSpec, MissingExtra, UndersongError, UnknownName, nearest

FOLDERS = {
    "teacher": "teachers", "channel": "channels", "filter": "filters", "recipe": "recipes", "probe": "probes",
    "detector": "detectors", "kinship": "kinship", "explainer": "explainers", "mitigation": "mitigations",
    "backend": "backends", "executor": "executors", "exporter": "provenance",
}
KINDS = tuple(FOLDERS)
_plugins: dict[tuple[str, str], type[Settings]] = {}


class Settings(BaseModel):
    """Base of every plug-in: frozen, strict settings; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)


P = TypeVar("P", bound=type[Settings])


def plugin(kind: str, name: str, *, version: int = 1) -> Callable[[P], P]:
    """Register a `Settings` class as a plug-in. Raise `version` when the same settings give another result."""
    if kind not in FOLDERS:
        raise UnknownName(f"There is no plug-in kind {kind!r}. {nearest(kind, KINDS)}")

    def register(cls: P) -> P:
        known = _plugins.get((kind, name))
        if not issubclass(cls, Settings):
            raise BadSpec(f"The {kind} {name!r} in {cls.__module__} is no plug-in. Derive it from registry.Settings.")
        if known is not None and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
            raise BadSpec(f"Two plug-ins claim {kind} {name!r}: {known.__module__} and {cls.__module__}. Rename one.")
        if "plugin_name" in vars(cls) and vars(cls)["plugin_name"] != name:
            raise BadSpec(f"{cls.__module__}.{cls.__qualname__} has two names. Give each name a class of its own.")
        cls.plugin_kind, cls.plugin_name, cls.plugin_version = kind, name, version  # type: ignore[attr-defined]
        _plugins[kind, name] = cls
        return cls

    return register


@cache
def _load(kind: str) -> None:
    package = importlib.import_module(f"undersong.{FOLDERS[kind]}")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")
    importlib.import_module("undersong.simulated")
    for point in entry_points(group="undersong.plugins"):
        try:
            point.load()
        except UndersongError:
            raise
        except Exception as error:
            raise MissingExtra(
                f"The plug-ins of {point.name!r} ({point.value}) cannot be loaded: {error}. "
                "Update or uninstall that package."
            ) from error


def names(kind: str) -> list[str]:
    """The registered names of a kind, sorted. Raises UnknownName for an unknown kind."""
    if kind not in FOLDERS:
        raise UnknownName(f"There is no plug-in kind {kind!r}. {nearest(kind, KINDS)}")
    _load(kind)
    return sorted(n for k, n in _plugins if k == kind)


def get(kind: str, name: str) -> type[Any]:
    """The plug-in class registered under a name. Raises UnknownName naming the nearest one."""
    known = names(kind)
    if name not in known:
        raise UnknownName(f"There is no {kind} called {name!r}. {nearest(name, known)}")
    return _plugins[kind, name]


def about(kind: str, name: str) -> dict[str, Any]:
    """What a plug-in says of itself: kind, name, version, origin (its module), what it does, and its settings.

    Each setting has a name, its default as text, and the first line of the docstring under it.
    """
    cls = get(kind, name)
    docs = _setting_docs(cls)
    settings = [
        {"name": n, "default": "required" if f.is_required() else repr(f.get_default(call_default_factory=True)),
         "does": docs.get(n, "")}
        for n, f in cls.model_fields.items()
    ]
    return {"kind": kind, "name": name, "version": cls.plugin_version, "origin": cls.__module__,
            "does": (cls.__doc__ or "").strip().split("\n")[0], "settings": settings}


def _setting_docs(cls: type[Any]) -> dict[str, str]:
    """The first line of the docstring under each setting of a class and its bases, read from the source."""
    import ast
    import inspect
    import itertools
    import textwrap

    out: dict[str, str] = {}
    for base in reversed(cls.__mro__[: cls.__mro__.index(Settings)]):
        definition = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]
        body = definition.body if isinstance(definition, ast.ClassDef) else []
        for field, text in itertools.pairwise(body):
            named = isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
            if named and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
                out[field.target.id] = str(text.value.value).strip().split("\n")[0]  # type: ignore[attr-defined]
    return out
