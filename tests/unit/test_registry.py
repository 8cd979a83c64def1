"""Names to plug-ins: one door, strict, with the nearest name in every refusal."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from importlib.metadata import EntryPoint

import pytest

from undersong import registry
from undersong.errors import BadSpec, MissingExtra, UnknownName
from undersong.registry import Settings, plugin


@pytest.fixture(autouse=True)
def _own_registry() -> Iterator[None]:
    """What a test registers is forgotten after it."""
    registry.names("explainer")
    kept = dict(registry._plugins)
    yield
    registry._plugins.clear()
    registry._plugins.update(kept)
    registry._load.cache_clear()


def test_a_registered_class_is_found_by_kind_and_name() -> None:
    @plugin("explainer", "echo", version=3)
    class Echo(Settings):
        times: int = 2

    assert registry.get("explainer", "echo") is Echo
    assert "echo" in registry.names("explainer")
    assert (Echo.plugin_kind, Echo.plugin_name, Echo.plugin_version) == ("explainer", "echo", 3)
    assert Echo().times == 2


def test_settings_are_frozen_strict_and_finite() -> None:
    class Echo(Settings):
        times: float = 2

    with pytest.raises(ValueError, match="frozen"):
        Echo().times = 3  # type: ignore[misc]
    for bad in ({"times": "2"}, {"times": True}, {"times": float("nan")}, {"often": 2}):
        with pytest.raises(ValueError, match=r"times|often"):
            Echo(**bad)


def test_an_unknown_name_is_an_error_that_names_the_nearest() -> None:
    @plugin("explainer", "planted_explainer")
    class Echo(Settings):
        pass

    with pytest.raises(UnknownName, match="Did you mean 'planted_explainer'"):
        registry.get("explainer", "planted_explaine")
    with pytest.raises(UnknownName, match="Did you mean 'explainer'"):
        registry.names("explainers")
    with pytest.raises(UnknownName, match="Did you mean 'teacher'"):
        plugin("teachers", "x")


def test_two_plug_ins_cannot_claim_one_name_even_with_one_class_name() -> None:
    def stranger(module: str) -> type[Settings]:
        return types.new_class("Numbers", (Settings,), {}, lambda body: body.update(__module__=module))

    first = stranger("ours")
    plugin("explainer", "numbers")(first)
    plugin("explainer", "numbers")(stranger("ours"))  # the same module imported again
    with pytest.raises(BadSpec, match=r"ours and theirs\. Rename"):
        plugin("explainer", "numbers")(stranger("theirs"))


def test_a_class_has_one_name_and_must_hold_settings() -> None:
    class Echo(Settings):
        pass

    plugin("explainer", "one")(Echo)
    with pytest.raises(BadSpec, match="two names"):
        plugin("explainer", "two")(Echo)
    with pytest.raises(BadSpec, match="Derive it from"):
        plugin("explainer", "three")(dict)  # type: ignore[type-var]


def test_strangers_packages_come_in_by_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    class Theirs(Settings):
        pass

    class Point:
        name, value = "theirs", "theirs:plugins"

        def load(self) -> None:
            plugin("explainer", "theirs")(Theirs)

    registry._load.cache_clear()
    monkeypatch.setattr(registry, "entry_points", lambda group: [Point()])
    assert registry.get("explainer", "theirs") is Theirs


def test_a_strangers_package_that_cannot_be_imported_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    registry._load.cache_clear()
    point = EntryPoint("theirs", "no_such_module_of_theirs", "undersong.plugins")
    monkeypatch.setattr(registry, "entry_points", lambda group: [point])
    with pytest.raises(MissingExtra, match=r"'theirs'.*Update or uninstall"):
        registry.names("explainer")
    assert "no_such_module_of_theirs" not in sys.modules
