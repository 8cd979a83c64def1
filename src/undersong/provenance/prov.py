"""W3C PROV (2013): artefacts and bases as entities, each step as an activity, by the `prov` package.

PROV has no words for models, so what a step did is in plain attributes; the graph is the point.
"""

from __future__ import annotations

import json
from typing import Any, ClassVar, Literal

from undersong.provenance import Account, files_of, need
from undersong.provenance.telling import making, moment
from undersong.registry import Settings, plugin


@plugin("exporter", "prov")
class Prov(Settings):
    """W3C PROV of the chain, as PROV-JSON or PROV-N."""

    ending: ClassVar[str] = ".prov.json"
    form: Literal["json", "provn"] = "json"
    """`json` for PROV-JSON, `provn` for the notation people read."""

    def export(self, account: Account) -> dict[str, Any] | str:
        """The document. Raises MissingExtra without the package prov."""
        try:
            from prov.model import ProvDocument
        except ImportError:
            raise need("prov") from None
        document: Any = ProvDocument()
        document.add_namespace("us", "urn:undersong:")
        software = document.agent("us:undersong", {
            "prov:type": "prov:SoftwareAgent", "us:version": account.piece.told("provenance", "undersong")})
        entities: dict[str, Any] = {}
        for base in account.bases:
            entities[base.fingerprint] = document.entity(f"us:base-{base.fingerprint}", {
                "prov:label": base.shown, "us:revision": base.revision, "us:precision": base.precision})
        for piece in account.pieces:
            mark = piece.record["fingerprint"]
            files = [(f"us:file-{i}", f"{name} sha256:{digest}") for i, (name, digest, _) in enumerate(files_of(piece))]
            entity = entities[mark] = document.entity(f"us:artefact-{mark}", {
                "prov:label": piece.title, "us:makes": piece.makes, "us:record-sha256": piece.sha256, **dict(files)})
            activity = document.activity(f"us:making-{mark}", moment(piece, "started"), moment(piece, "finished"), {
                "prov:label": making(account, piece), "us:spec": json.dumps(piece.record["spec"], sort_keys=True)})
            document.wasGeneratedBy(entity, activity)
            document.wasAssociatedWith(activity, software)
            for parent in dict.fromkeys(piece.record["parents"]):
                if parent not in entities:
                    entities[parent] = document.entity(f"us:evidence-{parent}", {"prov:label": "unknown"})
                document.used(activity, entities[parent])
                document.wasDerivedFrom(entity, entities[parent])
        if self.form == "provn":
            return str(document.get_provn()) + "\n"
        out: dict[str, Any] = json.loads(document.serialize(format="json"))
        return out
