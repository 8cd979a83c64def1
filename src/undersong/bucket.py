"""Objects under one address of object storage, through fsspec: whole ones put, pieces and listings got.

What a storage library raises becomes a sentence here. Retries with back-off are the library's own, and so are its
credentials, which come from its environment variables and files.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from undersong import files
from undersong.errors import BadSpec, MissingExtra, NoRoom, ServerFailed, UndersongError

LIBRARIES = {"s3": "undersong[shared]", "gs": "gcsfs", "az": "adlfs", "memory": "undersong[shared]"}
"""What serves each scheme. `memory` lasts as long as the process: for tests."""
BATCH = 64
"""Objects that are got at once."""
_FULL = ("storagefull", "quota", "insufficientstorage", "not enough space")
_BEYOND = ("InvalidRange", "416")


@dataclass(frozen=True)
class Bucket:
    """The objects under `address`, such as s3://bucket/prefix. `kept` ends messages: where finished work is.

    Everything may raise ServerFailed (no answer), NoRoom (full, or not allowed), BadSpec (no such bucket) and
    MissingExtra (no library for the scheme).
    """

    address: str
    kept: Path

    def get(self, path: str, end: int, start: int = 0) -> bytes | None:
        """The bytes of an object from `start` up to `end`, never more; None when there is no such object."""
        with self._talking() as (remote, root):
            try:
                return bytes(remote.cat_file(f"{root}/{path}", start=start, end=end))
            except Exception as error:
                return _nothing(error)

    def get_many(self, ends: Mapping[str, int]) -> Iterator[tuple[str, bytes]]:
        """Objects with their paths, each up to its end; those that are gone are left out."""
        paths = list(ends)
        for first in range(0, len(paths), BATCH):
            some = paths[first : first + BATCH]
            with self._talking() as (remote, root):
                last = [ends[path] for path in some]
                got = remote.cat_ranges([f"{root}/{path}" for path in some], [0] * len(some), last, on_error="return")
                found = [_nothing(data) if isinstance(data, Exception) else bytes(data) for data in got]
            yield from ((path, data) for path, data in zip(some, found, strict=True) if data is not None)

    def sizes(self, under: str) -> dict[str, int]:
        """The paths of the objects under a path, with their bytes."""
        with self._talking() as (remote, root):
            remote.invalidate_cache()
            try:
                listed = remote.find(f"{root}/{under}", detail=True)
            except Exception as error:
                _nothing(error)
                return {}
            return {path[len(root) + 1 :]: int(told["size"]) for path, told in listed.items()}

    def put(self, path: str, content: bytes | Path, what: str) -> None:
        """Put an object, whole or not at all: bytes in one piece, a file in as many as its library wants."""
        with self._talking(what) as (remote, root):
            if isinstance(content, Path):
                remote.put_file(str(content), f"{root}/{path}")
            else:
                remote.pipe_file(f"{root}/{path}", content)

    @cached_property
    def _connection(self) -> tuple[Any, str]:
        scheme = self.address.partition("://")[0]
        try:
            import fsspec

            remote = fsspec.filesystem(scheme, skip_instance_cache=True)
        except ImportError:
            raise MissingExtra(f"{scheme}:// needs a library. Install it: pip install '{LIBRARIES[scheme]}'") from None
        return remote, str(remote._strip_protocol(self.address))

    @contextlib.contextmanager
    def _talking(self, putting: str = "") -> Iterator[tuple[Any, str]]:
        try:
            yield self._connection
        except UndersongError:
            raise
        except Exception as error:  # each library has errors of its own
            raise self._told(error, putting) from error

    def _told(self, error: Exception, putting: str) -> UndersongError:
        why = (str(error) or type(error).__name__)[:500]
        words, what = str(error).lower(), f"{putting} could not be published to" if putting else "Cannot read"
        kept, again = f"Finished work is kept in {self.kept}", "run the same command again: it publishes what is finished."
        if isinstance(error, FileNotFoundError):
            return BadSpec(f"{what} {self.address}: there is no such bucket ({why}). {kept}: make the bucket or correct the "
                           f"address, then {again}")
        if putting and (files.is_full(error) or any(sign in words for sign in _FULL)):
            return NoRoom(f"{what} {self.address}: it is full ({why}). {kept}: make room there, then {again}")
        if isinstance(error, PermissionError):
            right = f"{kept}: get the right to {'write and list' if putting else 'read and list'} there"
            return NoRoom(f"{what} {self.address}: not allowed ({why}). {right}, then {again}")
        return ServerFailed(f"{what} {self.address} ({why}). {kept}: check the network, the endpoint and the credentials, "
                            f"then {again}")


def _nothing(error: Exception) -> bytes | None:
    """What an error says of an object: None when it is not there, no bytes beyond its end. Any other is raised."""
    code = _code(error)
    if code in _BEYOND:
        return b""
    if isinstance(error, FileNotFoundError) and code != "NoSuchBucket":
        return None
    raise error


def _code(error: BaseException | None) -> str:
    """The code that S3 gave an error, or the one it came from."""
    while error is not None:
        told = getattr(error, "response", None)
        if isinstance(told, dict):
            return str(told.get("Error", {}).get("Code", ""))
        error = error.__cause__
    return ""
