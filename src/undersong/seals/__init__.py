"""Seals: signatures on an artefact and everything it was made from, so that others can check what was handed to them.

    <root>/seals/<fingerprint>/<key>/record.dsse.json    a DSSE envelope over the artefact's in-toto statement
    <root>/seals/<fingerprint>/<key>/model.sig           an OpenSSF model signature over a model artefact's folder
    <report>.<key>.dsse.json                             beside an audit's JSON report

They lie beside the artefacts, not in them: a finished artefact never changes, and several people can seal the same one.
`<key>` is the start of the key's identity. The statement (`provenance/slsa.py`) names record.json, every payload file, the
model signature and every parent by SHA-256, who sealed it, when, and until when the seal holds.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from undersong import files
from undersong.artefact import Artefact
from undersong.environment import now
from undersong.errors import BadRows, BadSpec, BrokenArtefact
from undersong.files import digest
from undersong.provenance import UNKNOWN, Account
from undersong.provenance.slsa import audit_statement, checked, statement
from undersong.seals import dossier, keys
from undersong.store import Store

FOLDER, ENVELOPE, MODEL = "seals", "record.dsse.json", "model.sig"
PAYLOAD = "application/vnd.in-toto+json"
NEVER = "never"
EVIDENCED = ("finding", "explanation")
"""Kinds whose parents may be evidence that no store holds: audited files, placebo students of a shipped calibration."""
KEPT = (".lock", ".set-aside-")
"""Hidden entries of an artefact folder that the store itself leaves there."""
_PICKLED = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy")


@dataclass(frozen=True)
class Sealer:
    """A private key and the terms of its seals."""

    key: Path
    identity: str = UNKNOWN
    """Who seals, for people: a name or an address. Signed, not proved."""
    expires: str | None = None
    """Until when the seal holds: an ISO date or time; None for ever."""

    @cached_property
    def signer(self) -> Any:
        """The signer of the key. Raises BadSpec or MissingExtra."""
        return keys.signer(self.key)

    @cached_property
    def terms(self) -> dict[str, Any]:
        """What every seal says of itself. Raises BadSpec for an expiry that is no time or is past."""
        return {"format": 1, "sealed": now(), "identity": self.identity, "expires": until(self.expires),
                "key": self.signer.public_key.keyid}

    def seal(
        self, store: Store, artefact: Artefact, bases: Sequence[str] = (), say: Callable[[str], None] = lambda _: None
    ) -> list[str]:
        """Seal an artefact and all its ancestors, the oldest first; the files written, relative to the store.

        Every byte is checked against the records first: BrokenArtefact names what is wrong, and nothing is sealed."""
        terms, whole = self.terms, dossier.account(store, artefact, bases)
        found = dossier.chain(store, artefact)
        for part in found:
            say(f"checking {part.path.name}")
            sound(store, part)
        unmade = [mark for p in whole.pieces if p.record["kind"] not in EVIDENCED for mark in whole.parents(p)[2]]
        if unmade:
            raise BrokenArtefact(f"{unmade[0]}, an ancestor of {artefact.path.name}, is not in the store and is no base "
                                 "that is known here. Copy it here, or name the base's folder with --base.")
        out: list[str] = []
        for part, piece in zip(found, whole.pieces, strict=True):
            say(f"sealing {part.path.name}")
            home = place(store, part, terms["key"])
            home.mkdir(parents=True, exist_ok=True)
            others = {}
            if part.record["kind"] == "model":
                sign_model(part.path, home / MODEL, self.key)
                others = {MODEL: digest(home / MODEL)["sha256"]}
                out.append(str((home / MODEL).relative_to(store.root)))
            told = statement(Account(piece, tuple(p for p in whole.pieces if p is not piece), whole.bases), terms, others)
            files.put(home / ENVELOPE, self.envelope(told))
            out.append(str((home / ENVELOPE).relative_to(store.root)))
        return out

    def seal_audit(self, path: Path) -> Path:
        """Seal an audit's JSON report: a statement about the bytes it read. Returns the envelope's path."""
        told = audit_statement(dossier.report(path), digest(path)["sha256"], self.terms)
        target = beside(path, self.terms["key"])
        files.put(target, self.envelope(told))
        return target

    def envelope(self, document: dict[str, Any]) -> bytes:
        """A signed DSSE envelope over a statement, as JSON. Raises BadSpec for what is no valid statement."""
        from securesystemslib.dsse import Envelope

        made = Envelope(files.dump(checked(document), "the statement"), PAYLOAD, {})
        made.sign(self.signer)
        return files.dump(made.to_dict(), "the envelope")


def place(store: Store, artefact: Artefact, key: str) -> Path:
    """Where a key's seals of an artefact lie."""
    return Path(store.root) / FOLDER / artefact.fingerprint / key[:16]


def beside(path: Path, key: str) -> Path:
    """Where a key's envelope of an audit's report lies."""
    return path.with_name(f"{path.stem}.{key[:16]}.dsse.json")


def until(text: str | None) -> str:
    """An expiry as a time in UTC. Raises BadSpec for what is no time, or is past."""
    if text is None:
        return NEVER
    try:
        when = datetime.datetime.fromisoformat(text)
    except ValueError:
        raise BadSpec(f"--expires {text!r} is no time. Write it as 2027-01-31 or 2027-01-31T12:00:00+00:00.") from None
    when = when.replace(tzinfo=when.tzinfo or datetime.UTC).astimezone(datetime.UTC)
    if when <= datetime.datetime.now(datetime.UTC):
        raise BadSpec(f"--expires {text} is past. Give a later time.")
    return when.isoformat()


def sound(store: Store, artefact: Artefact) -> None:
    """Raise BrokenArtefact, naming the file, unless an artefact holds exactly what its record says and nothing that can
    run code when opened."""
    store.verify(artefact)
    where = f"{artefact.record['kind']}/{artefact.path.name}"
    for entry in sorted(artefact.path.rglob(".*")):
        if not (entry.parent == artefact.path and entry.name.startswith(KEPT)) and not _set_aside(artefact.path, entry):
            raise BrokenArtefact(f"{where}/{entry.relative_to(artefact.path)} is hidden and not in the record. Remove it.")
    for name in artefact.record["files"]:
        if why := unsafe(files.inside(artefact.path, name)):
            raise BrokenArtefact(f"{where}/{name} {why}. Do not open it; make the artefact again with safetensors weights.")


def unsafe(path: Path) -> str | None:
    """Why a file may not be trusted to be data: a pickle by name or content, or no safetensors under that name."""
    if path.name.lower().endswith(_PICKLED):
        return "may hold a pickle, which can run code when opened"
    with open(path, "rb") as file:
        head = file.read(9)
    if path.suffix == ".safetensors":
        length = int.from_bytes(head[:8], "little")
        fine = head[8:] == b"{" and length <= min(100 * 2**20, path.stat().st_size - 8)
        return None if fine else "is not safetensors"
    pickled = len(head) > 1 and head[0] == 0x80 and head[1] in (2, 3, 4, 5)
    return "holds a pickle or an archive, which can run code when opened" if pickled or head[:4] == b"PK\x03\x04" else None


def sign_model(folder: Path, target: Path, key: Path) -> None:
    """An OpenSSF model signature over an artefact's folder. Raises MissingExtra, BadSpec."""
    signing = model_signing().signing.Config().use_elliptic_key_signer(private_key=key, password=_bytes())
    signing.set_hashing_config(hashing(folder)).sign(folder, target)


def hashing(folder: Path) -> Any:
    """How model signatures hash an artefact's folder: every file but what the store leaves hidden there; no links."""
    kept = [entry.name for entry in folder.iterdir() if entry.name.startswith(KEPT)]
    return model_signing().hashing.Config().set_ignored_paths(paths=kept, ignore_git_paths=False)


def model_signing() -> Any:
    """The library of OpenSSF model signing. Raises MissingExtra; its sigstore part needs pyopenssl, which it does not ask
    for."""
    try:
        import model_signing as library
    except ImportError:
        raise keys.EXTRA from None
    return library


def opened(path: Path, key: Any) -> dict[str, Any]:
    """The statement in an envelope that this key signed. Raises BrokenArtefact, naming the file, for every other."""
    import binascii

    from securesystemslib.dsse import Envelope
    from securesystemslib.exceptions import Error as LibraryError

    if path.stat().st_size > dossier.LARGEST_REPORT:
        raise BrokenArtefact(f"{path} has more than {dossier.LARGEST_REPORT} bytes: it is no seal. Seal again.")
    data = path.read_bytes()
    try:
        envelope = Envelope.from_dict(files.load(data, str(path)))
        signed_by = envelope.verify([key], 1)
        whole = files.dump(envelope.to_dict(), "the envelope") == data
    except (LibraryError, BadRows, KeyError, ValueError, TypeError, AttributeError, binascii.Error) as error:
        raise BrokenArtefact(f"{path}: the signature does not hold ({type(error).__name__}: {str(error)[:200]}).") from None
    if not signed_by or not whole or envelope.payload_type != PAYLOAD:
        raise BrokenArtefact(f"{path} is not the envelope that was signed, byte for byte.")
    told = files.load(envelope.payload, f"{path}: the statement")
    if not isinstance(told, dict):
        raise BrokenArtefact(f"{path} holds no statement.")
    return told


def _set_aside(folder: Path, entry: Path) -> bool:
    return entry.relative_to(folder).parts[0].startswith(KEPT[1])


def _bytes() -> Any:
    word = keys.password()
    return word.encode() if word else None


