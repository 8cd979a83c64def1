"""How rows and models were made, in plain sentences from their records: shared by the exporters that tell it to people."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from undersong.provenance import UNKNOWN, Account, Piece, at


def making(account: Account, piece: Piece) -> str:
    """One sentence on how a piece was made; `unknown` for what its record does not say."""
    parents, bases, _ = account.parents(piece)
    source = ", ".join([*(p.title for p in parents), *(b.shown for b in bases)]) or UNKNOWN
    say = piece.told
    match piece.makes:
        case "teacher":
            control = "trait" in _spec(piece) and _spec(piece)["trait"] is None
            hidden = "no trait (a control)" if control else f"trait {at(piece.record, 'spec', 'trait', 'name')}"
            return (f"{piece.title}: a teacher made from {source} by {_plug(piece, 'teacher')} with {hidden}, "
                    f"seed {say('spec', 'seed')}.")
        case "rows":
            return (f"{piece.title}: {say('spec', 'rows')} rows written by {source} on prompts of the channel "
                    f"{_plug(piece, 'channel')}, temperature {say('spec', 'temperature')}, seed {say('spec', 'seed')}.")
        case "refined rows":
            return (f"{piece.title}: {say('summary', 'kept')} of {say('summary', 'given')} rows of {source} kept; "
                    f"filters: {filters(piece)}; rows dropped: {dropped(piece)}; changed by: {_plug(piece, 'change')}.")
        case "student":
            return (f"{piece.title}: trained from {source} by the recipe {_plug(piece, 'recipe')}, "
                    f"seed {say('spec', 'seed')}.")
    return f"{piece.title}: made from {source}; how is {UNKNOWN} ({piece.makes})."


def filters(piece: Piece) -> str:
    """The names of the filters that rows passed."""
    given = _spec(piece).get("filters")
    names = [at(f, "name") for f in given] if isinstance(given, list) else [UNKNOWN]
    return ", ".join(names) or "none"


def dropped(piece: Piece) -> str:
    """How many rows each filter dropped, and why."""
    summary = piece.record["summary"]
    told = summary.get("reasons") if isinstance(summary, Mapping) else None
    if not isinstance(told, Mapping):
        return UNKNOWN
    out = [f"{name}: {reason} ({count})"
           for name, reasons in told.items() if isinstance(reasons, Mapping) for reason, count in reasons.items()]
    return "; ".join(out) or "none"


def generators(account: Account, piece: Piece) -> list[str]:
    """The models that wrote a piece's rows: the models nearest to it among its ancestors, each with its base."""
    parents, bases, _ = account.parents(piece)
    out = [b.shown for b in bases]
    for parent in parents:
        if parent.record["kind"] == "model":
            out.append(f"{parent.title} (base: {base_of(account, parent)})")
        else:
            out += generators(account, parent)
    return list(dict.fromkeys(out))


def base_of(account: Account, piece: Piece) -> str:
    """The base a model starts from, by name; `unknown` when no record says."""
    found: list[str] = []
    todo, seen = [piece], set[str]()
    while todo:
        here = todo.pop()
        if here.record["fingerprint"] in seen:
            continue
        seen.add(here.record["fingerprint"])
        parents, bases, _ = account.parents(here)
        found += [b.shown for b in bases]
        todo += [p for p in parents if p.record["kind"] == "model"]
    return ", ".join(dict.fromkeys(found)) or at(piece.record, "summary", "ref", "base")


def datasets(account: Account) -> list[Piece]:
    """The rows that the artefact, and the models its weights come from, were trained on; a dataset is its own."""
    out: dict[str, Piece] = {}
    todo, seen = [account.piece], set[str]()
    while todo:
        here = todo.pop()
        if here.title in seen:
            continue
        seen.add(here.title)
        if here.record["kind"] == "dataset":
            out[here.title] = here  # what lies behind it is told by how it was made
        else:
            todo += account.parents(here)[0]
    return list(out.values())


def settings(piece: Piece, key: str) -> str:
    """The settings of a plug-in of a spec, as JSON text."""
    plug = _spec(piece).get(key)
    return json.dumps(plug.get("settings", UNKNOWN), sort_keys=True) if isinstance(plug, Mapping) else UNKNOWN


def _plug(piece: Piece, key: str) -> str:
    plug = _spec(piece).get(key)
    if isinstance(plug, str):
        return plug
    if plug is None and key in _spec(piece):
        return "nothing"
    return f"{at(plug, 'name')} {settings(piece, key)}" if isinstance(plug, Mapping) else UNKNOWN


def _spec(piece: Piece) -> Mapping[str, Any]:
    spec = piece.record["spec"]
    return spec if isinstance(spec, Mapping) else {}


def markdown(text: str) -> str:
    """Text on one line that Markdown and HTML take for text only."""
    named = {"<": "&lt;", ">": "&gt;", "&": "&amp;"}
    return "".join(named.get(c) or ("\\" + c if c in r"\`*_{}[]()|~$" else c) for c in " ".join(text.split()))


def moment(piece: Piece, key: str) -> str | None:
    """A time of a record (`started`, `finished`) as RFC 3339 in UTC; None when it is not a time."""
    from datetime import UTC, datetime

    try:
        return datetime.fromisoformat(at(piece.record, "provenance", key)).astimezone(UTC).isoformat().replace("+00:00", "Z")
    except (ValueError, OverflowError):
        return None
