"""Verification, offline: is this artefact, and all it was made from, what somebody sealed?

For every artefact of the chain, the bases first: the record is of its folder; payload files are all there, none besides
them, and each has the recorded hash; nothing in them can run code; the envelope was signed by this key, byte for byte, and
has not expired; it names exactly this record, these files and these parents; a model's own signature holds. A base is
held against its content where content pins it. The first thing that fails is named, and nothing after it is looked at.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from undersong import bases, fetched, pocket, seals
from undersong.artefact import Artefact
from undersong.errors import BrokenArtefact, MissingModel, UndersongError
from undersong.files import RECORD, digest
from undersong.lab import base_ref
from undersong.provenance.slsa import AUDIT, PROVENANCE, STATEMENT
from undersong.seals import dossier, keys
from undersong.store import Store

Json = dict[str, Any]
NO_KEY = "No public key was given, so no signature can be checked. Give the sealer's public key with --key."


@dataclass
class Verifier:
    """One verification at work. `key` is the sealer's public key file; `bases` are folders of bases that moved."""

    key: Path | None
    bases: Sequence[str] = ()
    say: Callable[[str], None] = lambda message: None
    checked: list[str] = field(default_factory=list)
    """What held, one sentence each."""

    def verify(self, store: Store, name: str) -> Json:
        """`{"ok", "first_failure", "checked"}` for an artefact of the store. Raises UnknownName for a name it does not hold,
        BadSpec for a file that is no public key, MissingExtra."""
        key = keys.public(self.key) if self.key else None
        return self._told(lambda: self._chain(store, name, key))

    def verify_audit(self, path: Path, audited: Sequence[Path] = ()) -> Json:
        """The same for an audit's JSON report; `audited` are the files it was about, or folders of them."""
        key = keys.public(self.key) if self.key else None
        return self._told(lambda: self._audit(path, audited, key))

    def _told(self, check: Callable[[], None]) -> Json:
        failure: str | None = None
        try:
            check()
        except (BrokenArtefact, OSError) as error:
            failure = str(error)
        return {"ok": failure is None, "first_failure": failure, "checked": self.checked}

    def _chain(self, store: Store, name: str, key: Any) -> None:
        target = store.get(name)
        found = dossier.chain(store, target)
        records = {a.fingerprint: digest(a.path / RECORD)["sha256"] for a in found}
        for artefact in found:
            where = f"{artefact.record['kind']}/{artefact.path.name}"
            self.say(f"verifying {where}")
            seals.sound(store, artefact)
            if key is None:
                continue
            told = self._statement(store, artefact, key)
            self._subjects(artefact, told, records[artefact.fingerprint])
            self._parents(artefact, told, records)
            signature = self._model(store, artefact, told, key) if artefact.record["kind"] == "model" else ""
            self.checked.append(f"{where}: record, {len(artefact.record['files'])} files, parents, seal "
                                f"({_terms(told).get('identity')}, until {_terms(told).get('expires')}){signature}")
        if key is None:
            raise BrokenArtefact(f"{NO_KEY} Hashes and records of {len(found)} artefacts hold.")

    def _statement(self, store: Store, artefact: Artefact, key: Any) -> Json:
        """The signed statement of an artefact, in force now."""
        path = seals.place(store, artefact, key.keyid) / seals.ENVELOPE
        if not path.is_file():
            others = sorted(p.name for p in path.parent.parent.glob("*") if p != path.parent)
            hint = f"There are seals by other keys: {', '.join(others)}." if others else "It was never sealed."
            where = f"{artefact.record['kind']}/{artefact.path.name}"
            raise BrokenArtefact(f"{where} has no seal by the key {key.keyid[:16]}. {hint}")
        told = seals.opened(path, key)
        if told.get("_type") != STATEMENT or told.get("predicateType") != PROVENANCE:
            raise BrokenArtefact(f"{path} holds a statement of another kind.")
        _in_force(path, _terms(told))
        return told

    def _subjects(self, artefact: Artefact, told: Json, record: str) -> None:
        """The statement's subjects are exactly the record and the payload."""
        where, sealed = f"{artefact.record['kind']}/{artefact.path.name}", _digests(told.get("subject"))
        actual = {RECORD: record} | {name: kept["sha256"] for name, kept in artefact.record["files"].items()}
        for name in sorted(actual, key=lambda n: (n != RECORD, n)):
            if sealed.get(name) != actual[name]:
                raise BrokenArtefact(f"{where}/{name} is not what was sealed.")
        if extra := sorted(set(sealed) - set(actual)):
            raise BrokenArtefact(f"{where}/{extra[0]} was sealed and is not there.")

    def _parents(self, artefact: Artefact, told: Json, records: Mapping[str, str]) -> None:
        """Every parent of the record is pinned by the statement, and is what it pins."""
        where, pinned = f"{artefact.record['kind']}/{artefact.path.name}", _pinned(told)
        for mark in artefact.record["parents"]:
            if mark in records:
                given = _digests([pinned.get(("artefact", mark))])
                if list(given.values()) != [records[mark]]:
                    raise BrokenArtefact(f"{where}: its parent {mark} is not the one that was sealed.")
            elif ("base", mark) in pinned:
                self._base(where, mark, pinned["base", mark])
            elif ("evidence", mark) in pinned and artefact.record["kind"] in seals.EVIDENCED:
                self.checked.append(f"evidence {mark}: pinned by its fingerprint, not in the store")
            else:
                raise BrokenArtefact(f"{where}: its parent {mark} is not in the store and is no base that was sealed.")

    def _base(self, where: str, mark: str, pin: Json) -> None:
        """A base is on this machine with the content that was sealed; one pinned by name only can but be named."""
        notes = pin.get("annotations") or {}
        name, precision = str(pin.get("name")), str(notes.get("precision"))
        content = _digests([pin])
        for candidate in (name, *self.bases):
            try:
                whole = _whole(candidate)
                ref = base_ref(candidate, precision)
            except (UndersongError, OSError, ValueError):
                continue
            if ref.fingerprint == mark and (not content or list(content.values()) == [bases.revision(candidate)]):
                if not whole:
                    raise BrokenArtefact(f"{where}: the weights of its base {name} are not what was sealed.")
                how = "content" if content else "name only: its content cannot be checked here"
                line = f"base {name} ({precision}): pinned by {how}"
                self.checked += [] if line in self.checked else [line]
                return
        raise BrokenArtefact(f"{where}: its base {name} is not on this machine with the content that was sealed. Give its "
                             "folder with --base.")

    def _model(self, store: Store, artefact: Artefact, told: Json, key: Any) -> str:
        """The OpenSSF signature over a model's folder."""
        path = seals.place(store, artefact, key.keyid) / seals.MODEL
        run = (told.get("predicate") or {}).get("runDetails") or {}
        wanted = _digests(run.get("byproducts")).get(seals.MODEL)
        if not path.is_file() or digest(path)["sha256"] != wanted:
            raise BrokenArtefact(f"{path} is missing or not the model signature that was sealed.")
        library = seals.model_signing()
        check = library.verifying.Config().use_elliptic_key_verifier(public_key=self.key)
        try:
            check.set_hashing_config(seals.hashing(artefact.path)).verify(artefact.path, path)
        except Exception as error:  # the library raises several kinds, InvalidSignature among them
            why = str(error)[:300] or type(error).__name__
            raise BrokenArtefact(f"{path}: the model signature does not hold ({why}).") from None
        return ", model signature"

    def _audit(self, path: Path, audited: Sequence[Path], key: Any) -> None:
        if key is None:
            raise BrokenArtefact(NO_KEY)
        envelope = seals.beside(path, key.keyid)
        if not envelope.is_file():
            raise BrokenArtefact(f"{path} has no seal by the key {key.keyid[:16]}: {envelope.name} is not beside it.")
        told = seals.opened(envelope, key)
        predicate = told.get("predicate") or {}
        if told.get("predicateType") != AUDIT:
            raise BrokenArtefact(f"{envelope} is no seal of an audit.")
        _in_force(envelope, _terms(told))
        if (predicate.get("report") or {}).get("sha256") != digest(path)["sha256"]:
            raise BrokenArtefact(f"{path} is not the report that was sealed.")
        self.checked.append(f"{path.name}: the report, and its seal ({_terms(told).get('identity')}, until "
                            f"{_terms(told).get('expires')})")
        subjects = _digests(told.get("subject"))
        if not audited:
            self.checked.append(f"the audited bytes ({', '.join(subjects)}) were not given with --audited: not compared")
            return
        given = {digest(file)["sha256"]: file for root in audited for file in _files(root)}
        for name, wanted in subjects.items():
            if wanted not in given:
                raise BrokenArtefact(f"{name}: no file given with --audited has the bytes that were audited.")
            self.checked.append(f"{given[wanted]}: the bytes that were audited ({name})")


def _whole(name: str) -> bool:
    """Whether a base that ships or was fetched has the weights it should have; others are known by their content."""
    if name.startswith(pocket.PREFIX):
        return bool(digest(pocket.folder(name) / "model.safetensors")["sha256"] == bases.revision(name))
    if name in fetched.names():
        if not fetched.place(name).is_dir():
            raise MissingModel(f"The model {name!r} has not been fetched. Run: undersong models fetch {name}")
        return fetched.whole(name)
    return True


def _in_force(path: Path, terms: Mapping[str, Any]) -> None:
    expires = terms.get("expires")
    if expires == seals.NEVER:
        return
    try:
        late = datetime.datetime.fromisoformat(str(expires)) <= datetime.datetime.now(datetime.UTC)
    except (ValueError, TypeError):
        raise BrokenArtefact(f"{path} does not say until when it holds.") from None
    if late:
        raise BrokenArtefact(f"{path} expired on {expires}. Ask for a new seal.")


def _terms(told: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a seal says of itself; empty when the statement holds no seal."""
    predicate = told.get("predicate") or {}
    made = (predicate.get("buildDefinition") or {}).get("internalParameters") or {}
    return made.get("seal") or predicate.get("seal") or {}


def _pinned(told: Mapping[str, Any]) -> dict[tuple[str, str], Json]:
    """The dependencies of a statement by what they are and their fingerprint."""
    listed = ((told.get("predicate") or {}).get("buildDefinition") or {}).get("resolvedDependencies") or []
    found = [(str(d.get("uri")).split(":"), d) for d in listed]
    return {(uri[2], uri[3]): d for uri, d in found if len(uri) == 4}


def _digests(listed: Any) -> dict[str, str]:
    """The SHA-256 of each resource that has one."""
    found = [d for d in listed or [] if isinstance(d, Mapping) and isinstance(d.get("digest"), Mapping)]
    return {str(d.get("name")): str(d["digest"].get("sha256")) for d in found}


def _files(root: Path) -> Iterator[Path]:
    if not root.exists():
        raise BrokenArtefact(f"{root} is not there. Give with --audited the files that were audited.")
    yield from sorted(p for p in root.rglob("*") if p.is_file()) if root.is_dir() else [root]
