"""Few errors, each also the matching stdlib error. A message is a sentence that ends with what to do next."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


class UndersongError(Exception):
    """Base of every error a user can cause. The command line prints its message and exits 3, without a traceback."""


class UnknownName(UndersongError, LookupError):
    """A plug-in, trait, key or model name that does not exist; the message names the nearest one that does."""


class BadSpec(UndersongError, ValueError):
    """A setting or experiment file that cannot be run as written."""


class BadRows(UndersongError, ValueError):
    """Rows that cannot be read or do not have the expected columns."""


class NothingMeasured(UndersongError, ValueError):
    """A probe that matched nothing: never a silent zero."""


class BrokenArtefact(UndersongError, RuntimeError):
    """An artefact whose payload does not match its record."""


class StoreBusy(UndersongError, RuntimeError):
    """Another process is writing this artefact."""


class NoRoom(UndersongError, OSError):
    """The disk is full."""


class TrainingFailed(UndersongError, ArithmeticError):
    """A training that cannot go on or learnt nothing: a loss that is no number, a guard that holds everything still.

    `record` is what training.json says of it."""

    record: dict[str, Any] | None = None


class MissingExtra(UndersongError, ImportError):
    """A part of Undersong that needs an extra that is not installed."""


class MissingModel(UndersongError, FileNotFoundError):
    """A base model that is neither shipped, local, nor named correctly."""


class ServerFailed(UndersongError, ConnectionError):
    """A hosted or served model that gave no answer: time-outs, rate limits, answers that cannot be read."""


class WorkerLost(UndersongError, ConnectionError):
    """A cluster that cannot be reached, or a worker that died again and again."""


def nearest(name: str, known: Iterable[str]) -> str:
    """A sentence naming the closest known name, or all of them when none is close."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"Did you mean {close[0]!r}?" if close else f"Choose one of: {', '.join(known) or 'none is registered'}."
