"""Which artefact folders a kind has, without listing a large folder twice.

A sweep has tens of thousands of artefacts, and every step asks whether its own is there. A process lists a folder once;
after that it reads only what was added to the journal beside it: the kind's lock file, to which whoever makes a folder
adds its name first, while holding it. The journal is a help and no truth: a name counts when its folder is there, a folder
that was copied in by hand is found by the next process (and at once under its own label), and a lost journal costs a
listing.
"""

from __future__ import annotations

import os
from pathlib import Path
from threading import Lock

from undersong.artefact import LOCK

_seen: dict[Path, tuple[dict[str, set[str]], int, int]] = {}
"""Per folder: names by fingerprint, how many bytes of which journal (inode) they cover."""
_lock = Lock()


def known(parent: Path) -> dict[str, set[str]]:
    """Folder names by fingerprint (what follows the last dot). Those since removed may be among them."""
    journal = parent.absolute() / LOCK
    with _lock:
        try:
            told = os.stat(journal)
            inode, size = told.st_ino, told.st_size
        except OSError:
            inode, size = 0, 0
        names, covered, of = _seen.get(journal, ({}, 0, -1))
        if of != inode or size < covered:  # first asked, or another store in its place
            names, covered = {}, size
            _add(names, _listed(parent))
        elif size > covered:
            with open(journal, "rb") as file:
                file.seek(covered)
                fresh = file.read(size - covered)
            whole = fresh[: fresh.rfind(b"\n") + 1]  # the rest is being written
            covered += len(whole)
            _add(names, whole.decode("utf-8", "replace").splitlines())
        if inode:
            _seen[journal] = (names, covered, inode)
        return names


def _listed(parent: Path) -> list[str]:
    try:
        with os.scandir(parent) as entries:
            return [entry.name for entry in entries if not entry.name.startswith(".")]
    except OSError:
        return []


def _add(names: dict[str, set[str]], found: list[str]) -> None:
    for name in found:
        names.setdefault(name.rpartition(".")[2], set()).add(name)
