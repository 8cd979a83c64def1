"""CycloneDX 1.7 ML-BOM: models, datasets, their pedigree, what was measured, and how each was made.

The classes of cyclonedx-python-lib know neither `modelCard` nor `data` (11.12; its issues 912 and 913), so the document is
built as JSON and held against the strict schema that the library bundles.
"""

from __future__ import annotations

import json
import uuid
from typing import Any, ClassVar

from undersong.errors import BadSpec
from undersong.provenance import UNKNOWN, Account, Base, Figure, Piece, files_of, need
from undersong.provenance.telling import base_of, dropped, generators, making, moment
from undersong.registry import Settings, plugin

_SPACE = uuid.UUID("8e3d3a0e-0c0b-5d0b-9a63-756e64657273")
"""The namespace of serial numbers: one account has one serial number."""
Json = dict[str, Any]


@plugin("exporter", "cyclonedx")
class CycloneDX(Settings):
    """A CycloneDX 1.7 ML-BOM with pedigree, model card, formulation and declarations (JSON)."""

    ending: ClassVar[str] = ".cdx.json"

    def export(self, account: Account) -> Json:
        """The BOM. Raises MissingExtra without cyclonedx-python-lib, BadSpec when the schema refuses the document."""
        piece = account.piece
        main = _component(account, piece) | {"pedigree": _pedigree(account)}
        if piece.record["kind"] == "model":
            main["modelCard"] = _card(account)
        bom: Json = {
            "$schema": "http://cyclonedx.org/schema/bom-1.7.schema.json", "bomFormat": "CycloneDX", "specVersion": "1.7",
            "serialNumber": f"urn:uuid:{uuid.uuid5(_SPACE, piece.sha256)}", "version": 1,
            "metadata": {"component": main, "tools": {"components": [
                {"type": "application", "name": "undersong", "version": piece.told("provenance", "undersong")}]}},
            "components": [*(_base(b) for b in account.bases), *(_component(account, p) for p in account.ancestors)],
            "dependencies": [*({"ref": ref(b)} for b in account.bases), *(
                {"ref": ref(p), "dependsOn": [ref(m) for m in _made_of(account, p)]} for p in account.pieces)],
            "formulation": [{"workflows": [_workflow(account, p) for p in account.pieces]}],
            "declarations": _declarations(account),
        }
        if (when := moment(piece, "finished")) is not None:
            bom["metadata"]["timestamp"] = when
        if problem := complaint(bom):
            raise BadSpec(f"The CycloneDX schema refuses what the record of {piece.title} says: {problem[:300]}. "
                          "Correct nothing by hand: make the artefact again.")
        return bom


def complaint(bom: Json) -> str | None:
    """What the strict schema of CycloneDX 1.7 has against a document; None when it is valid."""
    try:
        from cyclonedx.exception import MissingOptionalDependencyException
        from cyclonedx.schema import SchemaVersion
        from cyclonedx.validation.json import JsonStrictValidator
    except ImportError:
        raise need("cyclonedx-python-lib") from None
    try:
        error = JsonStrictValidator(SchemaVersion.V1_7).validate_str(json.dumps(bom))
    except MissingOptionalDependencyException:
        raise need("cyclonedx-python-lib[json-validation]") from None
    return None if error is None else str(error)


def ref(thing: Piece | Base) -> str:
    """The `bom-ref` of a component."""
    return f"artefact:{thing.title}" if isinstance(thing, Piece) else f"base:{thing.fingerprint}"


def _made_of(account: Account, piece: Piece) -> list[Piece | Base]:
    parents, bases, _ = account.parents(piece)
    found: list[Piece | Base] = [*bases, *parents]
    return list({ref(x): x for x in found}.values())


def _component(account: Account, piece: Piece, refs: bool = True) -> Json:
    model = piece.record["kind"] == "model"
    files = [{"type": "file", "name": name, "hashes": [{"alg": "SHA-256", "content": digest}],
              "properties": [{"name": "undersong:bytes", "value": str(size)}]} for name, digest, size in files_of(piece)]
    out: Json = {
        "type": "machine-learning-model" if model else "data", "name": str(piece.record["label"]),
        "version": str(piece.record["fingerprint"]), "description": making(account, piece),
        "properties": [{"name": "undersong:makes", "value": piece.makes},
                       {"name": "undersong:record:sha256", "value": piece.sha256},
                       {"name": "undersong:licence", "value": UNKNOWN}],
    }
    if len(files) == 1:
        out["hashes"] = files[0]["hashes"]
    if files:
        out["components"] = files
    if not model:
        rows = piece.record["kind"] == "dataset"
        out["data"] = [{"type": "dataset" if rows else "other", "name": str(piece.record["label"]),
                        "description": f"Written by: {', '.join(generators(account, piece)) or UNKNOWN}. "
                                       f"Rows dropped: {dropped(piece)}."}]
    return {"bom-ref": ref(piece), **out} if refs else out


def _base(base: Base, refs: bool = True) -> Json:
    out: Json = {"type": "machine-learning-model", "name": base.shown, "version": base.revision[:1024],
                 "description": "A model that this store did not make.",
                 "properties": [{"name": "undersong:precision", "value": base.precision},
                                {"name": "undersong:pinned-by", "value": "content" if base.sha256 else "name only"}]}
    if base.sha256:
        out["hashes"] = [{"alg": "SHA-256", "content": base.sha256}]
    return {"bom-ref": ref(base), **out} if refs else out


def _pedigree(account: Account) -> Json:
    """All ancestors, the nearest first; without refs, which stand in `components`."""
    older = [_component(account, p, refs=False) for p in reversed(account.ancestors)]
    return {"ancestors": [*older, *(_base(b, refs=False) for b in account.bases)],
            "notes": " ".join(making(account, p) for p in account.pieces)}


def _card(account: Account) -> Json:
    piece = account.piece
    rows = [p for p in account.parents(piece)[0] if p.record["kind"] == "dataset"]
    parameters: Json = {"task": "text-generation", "modelArchitecture": f"that of {base_of(account, piece)}"}
    if piece.makes in ("student", "teacher"):
        parameters["approach"] = {"type": "supervised"}
    parameters["datasets"] = [{"ref": ref(p)} for p in rows] or [{"type": "dataset", "name": UNKNOWN}]
    told = [f"Rows of {p.title} were written by {', '.join(generators(account, p)) or UNKNOWN}: a model that shares its "
            "base with the writer can inherit hidden traits of it." for p in rows]
    metrics = [_metric(f) for f in account.figures] + [m for a in account.audits for m in _audit_metrics(a)]
    return {
        "modelParameters": parameters,
        "quantitativeAnalysis": {"performanceMetrics": metrics or [{"type": UNKNOWN, "value": UNKNOWN}]},
        "considerations": {"users": [UNKNOWN], "useCases": [UNKNOWN], "technicalLimitations": told or [UNKNOWN]},
    }


def _metric(figure: Figure) -> Json:
    about = f"trait {figure.trait}; " if figure.trait else ""
    out: Json = {"type": f"{figure.probe}: {figure.metric}", "value": f"{figure.mean:.6g}",
                 "slice": f"{about}{figure.n} questions; 95 % interval over questions; measurement {figure.source}"}
    if figure.low is not None and figure.high is not None:
        out["confidenceInterval"] = {"lowerBound": f"{figure.low:.6g}", "upperBound": f"{figure.high:.6g}"}
    return out


def _audit_metrics(audit: Any) -> list[Json]:
    """The verdict's p-value, and the share of rows with its interval where there is one."""
    p = audit.get("p")
    out: list[Json] = [{"type": "audit: p-value", "value": UNKNOWN if p is None else str(p),
                        "slice": f"verdict {audit.get('verdict', UNKNOWN)}; trait {audit.get('trait') or 'none'}"}]
    share = audit.get("share")
    if isinstance(share, dict):
        low, high = (str(share.get(k, UNKNOWN)) for k in ("low", "high"))
        out.append({"type": "audit: share of rows that carry the trait", "value": str(share.get("estimate", UNKNOWN)),
                    "confidenceInterval": {"lowerBound": low, "upperBound": high}})
    return out


def _workflow(account: Account, piece: Piece) -> Json:
    out: Json = {"bom-ref": f"workflow:{piece.title}", "uid": str(piece.record["fingerprint"]), "name": piece.makes,
                 "description": making(account, piece),
                 "taskTypes": ["build" if piece.record["kind"] == "model" else "other"],
                 "outputs": [{"type": "artifact", "resource": {"ref": ref(piece)}}]}
    if made_of := _made_of(account, piece):
        out["inputs"] = [{"resource": {"ref": ref(x)}} for x in made_of]
    for key, name in (("timeStart", "started"), ("timeEnd", "finished")):
        if (when := moment(piece, name)) is not None:
            out[key] = when
    return out


def _declarations(account: Account) -> Json:
    """Claims with their evidence: the lineage as recorded, and each audit of these bytes."""
    piece = account.piece
    claims: list[Json] = [{"bom-ref": "claim:lineage", "target": ref(piece), "predicate": making(account, piece),
                           "reasoning": "Declared by the record; the hashes of files and parents can be checked.",
                           "evidence": ["evidence:record"]}]
    evidence: list[Json] = [{"bom-ref": "evidence:record", "description": f"record.json, SHA-256 {piece.sha256}"}]
    for i, audit in enumerate(account.audits):
        claims.append({"bom-ref": f"claim:audit-{i}", "target": ref(piece), "evidence": [f"evidence:audit-{i}"],
                       "predicate": str(audit.get("sentence", UNKNOWN)),
                       "reasoning": " ".join(map(str, audit.get("reasons") or [UNKNOWN]))})
        evidence.append({"bom-ref": f"evidence:audit-{i}", "description": "The audit, as JSON.", "data": [
            {"name": "audit", "contents": {"attachment": {"contentType": "application/json",
                                                          "content": json.dumps(audit, sort_keys=True)}}}]})
    return {"claims": claims, "evidence": evidence}
