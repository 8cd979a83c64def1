"""in-toto statements: SLSA provenance v1 of an artefact, and an audit as a statement about the bytes it read.

An artefact's statement has as subjects record.json and every payload file; the recipe is in `externalParameters`, and
parents and bases, each pinned by a digest, in `resolvedDependencies`. So one signature on a student reaches, link by link,
to its base. https://slsa.dev/provenance/v1, https://github.com/in-toto/attestation (Statement v1).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from undersong.errors import BadSpec
from undersong.provenance import UNKNOWN, Account, Base, Piece, files_of, need
from undersong.provenance.telling import moment
from undersong.registry import Settings, plugin

STATEMENT = "https://in-toto.io/Statement/v1"
PROVENANCE = "https://slsa.dev/provenance/v1"
AUDIT = "urn:undersong:audit:v1"
"""The predicate type of an audit: `report` (SHA-256 of the JSON report) and `audit` (what it says)."""
RECORD = "record.json"
Json = dict[str, Any]


@plugin("exporter", "slsa")
class Slsa(Settings):
    """An in-toto statement with SLSA provenance v1 (JSON); `undersong seal` signs it in a DSSE envelope."""

    ending: ClassVar[str] = ".intoto.json"

    def export(self, account: Account) -> Json:
        """The statement. Raises MissingExtra without in-toto-attestation, BadSpec when it is not a valid statement."""
        return checked(statement(account))


def statement(account: Account, seal: Mapping[str, Any] | None = None, sealed: Mapping[str, str] | None = None) -> Json:
    """The statement of an artefact. `seal` says who sealed it, when and until when; `sealed` names other seals of it
    with their SHA-256."""
    piece = account.piece
    files = [(name, digest) for name, digest, _ in files_of(piece)]
    parents, bases, evidence = account.parents(piece)
    told = {key: piece.told("provenance", key) for key in ("undersong", "python", "platform")}
    metadata: Json = {"invocationId": str(piece.record["fingerprint"])}
    for key, name in (("startedOn", "started"), ("finishedOn", "finished")):
        if (when := moment(piece, name)) is not None:
            metadata[key] = when
    return {
        "_type": STATEMENT,
        "subject": [{"name": name, "digest": {"sha256": digest}} for name, digest in [(RECORD, piece.sha256), *files]],
        "predicateType": PROVENANCE,
        "predicate": {
            "buildDefinition": {
                "buildType": f"urn:undersong:{piece.makes.replace(' ', '-')}:v1",
                "externalParameters": {"artefact": piece.title, "spec": piece.record["spec"]},
                "internalParameters": told | ({"seal": dict(seal)} if seal else {}),
                "resolvedDependencies": [*map(_artefact, parents), *map(_base, bases), *map(_evidence, evidence)],
            },
            "runDetails": {
                "builder": {"id": f"urn:undersong:{told['undersong']}"}, "metadata": metadata,
                "byproducts": [{"name": n, "digest": {"sha256": d}} for n, d in (sealed or {}).items()],
            },
        },
    }


def audit_statement(audit: Mapping[str, Any], report: str, seal: Mapping[str, Any] | None = None) -> Json:
    """An audit as a statement whose subjects are the bytes it read. `report` is the SHA-256 of the JSON report.

    Raises BadSpec for a report that does not say which bytes were audited."""
    audited = audit.get("audited")
    found = audited.items() if isinstance(audited, Mapping) else ()
    subject = [{"name": f"{what}/{f['name']}", "digest": {"sha256": str(f["sha256"])}}
               for what, files in found if isinstance(files, list)
               for f in files if isinstance(f, Mapping) and {"name", "sha256"} <= set(f)]
    if not subject:
        raise BadSpec("This audit does not say which bytes it read. Run `undersong audit` again and use its JSON report.")
    rows = audit.get("rows")
    told = dict(audit) | ({"rows": {k: v for k, v in rows.items() if k != "examples"}} if isinstance(rows, Mapping) else {})
    predicate = {"report": {"sha256": report}, "audit": told} | ({"seal": dict(seal)} if seal else {})
    return {"_type": STATEMENT, "subject": subject, "predicateType": AUDIT, "predicate": predicate}


def checked(document: Json) -> Json:
    """The document, once the in-toto attestation library takes it. Raises MissingExtra, BadSpec."""
    try:
        from google.protobuf import json_format
        from in_toto_attestation.predicates.provenance.v1 import provenance_pb2
        from in_toto_attestation.v1 import statement_pb2
        from in_toto_attestation.v1.statement import Statement
    except ImportError:
        raise need("in-toto-attestation") from None
    try:
        Statement.copy_from_pb(json_format.ParseDict(document, statement_pb2.Statement())).validate()
        if document["predicateType"] == PROVENANCE:
            json_format.ParseDict(document["predicate"], provenance_pb2.Provenance())
    except (json_format.Error, ValueError, TypeError, RecursionError) as error:
        raise BadSpec(f"No in-toto statement can say what this record says ({str(error)[:300]}). "
                      "Make the artefact again.") from None
    return document


def _artefact(piece: Piece) -> Json:
    return {"name": piece.title, "uri": f"urn:undersong:artefact:{piece.record['fingerprint']}",
            "digest": {"sha256": piece.sha256}, "annotations": {"digestOf": RECORD, "makes": piece.makes}}


def _base(base: Base) -> Json:
    pinned = "the content" if base.sha256 else "its name only"
    out: Json = {"name": base.name, "uri": f"urn:undersong:base:{base.fingerprint}",
                 "annotations": {"revision": base.revision, "precision": base.precision, "pinnedBy": pinned}}
    return out | ({"digest": {"sha256": base.sha256}} if base.sha256 else {})


def _evidence(mark: str) -> Json:
    return {"name": UNKNOWN, "uri": f"urn:undersong:evidence:{mark}",
            "annotations": {"pinnedBy": "a fingerprint of what a detector was granted"}}
