"""Where and when work ran: recorded beside every artefact, never part of its identity. Imports nothing to find out."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = (
    "numpy", "scipy", "pyarrow", "duckdb", "pydantic", "torch", "transformers", "tokenizers", "safetensors", "peft",
    "trl", "accelerate", "datasets", "scikit-learn", "statsmodels", "mlxtend",
)
_SECRET_NAME = re.compile(r"(?i)(?:token|secret|passw(?:or)?d|credentials?|apikey|(?:^|[-_.])(?:key|auth))$")
_SECRET_VALUE = re.compile(r"\b(?:sk-|hf_|gh[pousr]_|xox[abp]-|AKIA|tml-)[\w-]{8,}|(?<=://)[^/@\s]+(?=@)")


def now() -> str:
    """The time as ISO 8601 text, in UTC, so that later is larger."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


@cache
def _environment() -> tuple[tuple[str, Any], ...]:
    found = {"undersong": _version("undersong") or "not installed", "python": platform.python_version(),
             "platform": platform.platform(), "packages": {p: v for p in PACKAGES if (v := _version(p))}}
    commit = _commit()
    return tuple((found | ({"git": commit} if commit else {})).items())


def environment() -> dict[str, Any]:
    """Versions of Undersong, Python and the packages that matter; the platform; the commit when run from a checkout.

    Keys: undersong, python, platform, packages {name: version} and, in a git checkout, git {commit, dirty}.
    """
    return dict(_environment())


def command_line(given: Sequence[str] | None = None) -> list[str]:
    """The command that is running (or `given`), with secrets replaced by `***` and the home folder by `~`."""
    given = sys.argv if given is None else given
    out: list[str] = []
    hide = False
    for index, word in enumerate(given):
        if index == 0:
            out.append(Path(word).name)
            continue
        name, equals, _ = word.partition("=")
        secret = bool(_SECRET_NAME.search(name))
        if hide:
            word = "***"
        elif secret and equals:
            word = f"{name}=***"
        hide = secret and not equals and word.startswith("-")
        out.append(_SECRET_VALUE.sub("***", word).replace(os.path.expanduser("~") + os.sep, "~/"))
    return out


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> dict[str, Any] | None:
    """The commit of the checkout this package runs from; None when installed, even inside somebody's repository."""
    here = Path(__file__)
    git = ["git", "-C", str(here.parent)]
    try:
        subprocess.run([*git, "ls-files", "--error-unmatch", here.name], check=True, capture_output=True, timeout=10)
        told = subprocess.run(
            [*git, "describe", "--always", "--dirty", "--abbrev=40", "--exclude", "*"],
            check=True, capture_output=True, text=True, timeout=10,
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": told.removesuffix("-dirty"), "dirty": told.endswith("-dirty")}
