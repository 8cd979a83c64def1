"""A program of another Python environment that we speak to by process, in lines of JSON: how a library is used whose
requirements cannot be met in ours.

It reads a question a line on its standard input and writes an answer a line on its standard output; what else it has to
say goes to a log that is shown when it dies. It ends when its input does: when this process ends, however it ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import threading
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from undersong.errors import MissingExtra, ServerFailed

PATIENCE = 10
"""Seconds that a program may take to end of itself."""
SHOWN = 6
"""Lines of its log that an error shows, each of at most WIDTH characters."""
WIDTH = 300


_running: weakref.WeakSet[Foreign] = weakref.WeakSet()


def rest() -> None:
    """End every program that runs for this process. Called before a model of ours takes a GPU, whose memory they hold; they
    are started anew when they are asked again."""
    for program in list(_running):
        program.end()


class Foreign:
    """A running program: `script` under `python`, which sees nothing of our packages (`-I`). `name` is for people; `home` is
    a folder for its log. Raises MissingExtra for a Python that cannot be started."""

    def __init__(self, name: str, python: str, script: Path, environment: Mapping[str, str], home: Path) -> None:
        self.name, self._log = name, home / "log"
        found = shutil.which(Path(python).expanduser())
        if found is None:
            raise MissingExtra(f"There is no Python at {python!r}. Give the path of the python in the environment that has "
                               f"{name}.")
        with self._log.open("wb") as log:
            # a session of its own: Ctrl-C reaches us alone, and its children can be ended with it
            self._process = subprocess.Popen([found, "-I", str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                             stderr=log, env=dict(environment), start_new_session=True)
        self._owner, self._speaking, self._over = os.getpid(), threading.Lock(), False
        _running.add(self)

    @property
    def alive(self) -> bool:
        """Whether it runs and is ours: a process that was forked off ours must not speak into the same pipe."""
        return self._owner == os.getpid() and self._process.poll() is None

    def ask(self, question: Mapping[str, Any] | None, limit: int) -> dict[str, Any]:
        """The answer to a question, of at most `limit` bytes; None only listens. Whatever goes wrong ends the program.

        Raises ServerFailed when it died or answers something that is no JSON object.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with self._speaking:
            try:
                if question is not None:
                    with contextlib.suppress(BrokenPipeError):  # it died: reading tells
                        self._process.stdin.write(json.dumps(question, allow_nan=False).encode() + b"\n")
                        self._process.stdin.flush()
                line = self._process.stdout.readline(limit)
                if not line:
                    self.end()
                    raise ServerFailed(f"{self.name} died ({self._ended()}). {self.last_words()} Correct what it says, or "
                                       "give it more memory, then run the same command again.")
                with contextlib.suppress(ValueError, RecursionError):
                    answer = json.loads(line)
                    if line.endswith(b"\n") and isinstance(answer, dict):
                        return answer
                raise self.refused(f"{len(line)} bytes that are no answer")
            except BaseException:  # also Ctrl-C: an answer that nobody reads would be taken for the next one
                self.end()
                raise

    def refused(self, what: str) -> ServerFailed:
        """The error for an answer that was not asked for."""
        return ServerFailed(f"{self.name} answered with {what}. {self.last_words()} Check which versions its environment "
                            "holds, then run the same command again.")

    def last_words(self) -> str:
        """The end of its log, as one sentence."""
        with self._log.open("rb") as log:
            log.seek(max(0, self._log.stat().st_size - 20_000))
            lines = [line.strip() for line in log.read().decode("utf-8", "replace").splitlines()]
        lines = ["".join(c if c.isprintable() else " " for c in line[:WIDTH]) for line in lines if line.strip(" ^~|")]
        return f"The last lines of its log: {' | '.join(lines[-SHOWN:])}." if lines else "Its log is empty."

    def _ended(self) -> str:
        code = self._process.returncode
        return f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"

    def end(self) -> None:
        """End it and whatever it started."""
        if self._over or self._owner != os.getpid():
            return
        self._over = True  # its number may be another's from now on
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(PATIENCE)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
