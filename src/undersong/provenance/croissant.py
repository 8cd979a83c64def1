"""Croissant 1.1 (MLCommons) with its Responsible AI terms: a dataset's files with SHA-256, its fields, and how it was made.

A document lies beside the files it names: `contentUrl` is relative to the artefact's folder, unless `url` says where they
are served from. Several parts of one table are a FileSet: mlcroissant 1.1 reads it without comparing the hashes of its
files, as `undersong verify` does.
"""

from __future__ import annotations

import json
import re
from typing import Any, ClassVar

from undersong.errors import BadSpec
from undersong.provenance import UNKNOWN, Account, Piece, files_of, need
from undersong.provenance.telling import generators, making, moment
from undersong.registry import Settings, plugin

Json = dict[str, Any]
VERSION = "http://mlcommons.org/croissant/1.1"
_TYPES = {"string": "sc:Text", "large_string": "sc:Text", "int64": "sc:Integer", "int32": "sc:Integer",
          "double": "sc:Float", "float": "sc:Float", "bool": "sc:Boolean"}
_PART = re.compile(r"(.+)\.parts/\d{6}\.parquet")


@plugin("exporter", "croissant")
class Croissant(Settings):
    """Croissant JSON-LD of a dataset: files, SHA-256, fields, how the rows were made (rai:dataCollection), biases."""

    ending: ClassVar[str] = ".croissant.json"
    license: str = UNKNOWN
    """The licence, as a name or a URL."""
    creator: str = UNKNOWN
    """Who publishes the dataset."""
    url: str = ""
    """Where the files are served from; empty: beside the document."""

    def export(self, account: Account) -> Json:
        """The document. Raises BadSpec for what is no dataset, MissingExtra without mlcroissant."""
        piece = account.piece
        if piece.record["kind"] != "dataset":
            rows = [p.title for p in account.parents(piece)[0] if p.record["kind"] == "dataset"]
            hint = f"Name {rows[0]}, which it was made from." if rows else "Name a dataset artefact."
            raise BadSpec(f"{piece.title} is no dataset, and Croissant describes one. {hint}")
        document = self._document(account, _tables(piece))
        complaint = complaints(document)
        if complaint:
            raise BadSpec(f"Croissant has no words for {piece.title}: {complaint[:300]}. Make the artefact again.")
        return document

    def _document(self, account: Account, tables: dict[str, list[str]]) -> Json:
        piece, prefix = account.piece, self.url.rstrip("/") + "/" if self.url else ""
        files = [{"@type": "cr:FileObject", "@id": name, "name": name, "contentUrl": prefix + name,
                  "contentSize": f"{size} B", "encodingFormat": "application/x-parquet", "sha256": digest}
                 for name, digest, size in files_of(piece) if name.endswith(".parquet")]
        sets = [{"@type": "cr:FileSet", "@id": f"{table}-parts", "name": f"{table}-parts",
                 "containedIn": [{"@id": name} for name in names], "encodingFormat": "application/x-parquet",
                 "includes": "*.parquet"} for table, names in tables.items() if _parts(names)]
        writers = generators(account, piece)
        how = " ".join(making(account, p) for p in account.pieces)
        return {
            "@context": context(), "@type": "sc:Dataset", "conformsTo": VERSION,
            "name": str(piece.record["label"]), "version": f"1.0.0+{piece.record['fingerprint']}",
            "description": f"{making(account, piece)} Record SHA-256 {piece.sha256}.",
            "license": self.license, "creator": {"@type": "sc:Organization", "name": self.creator},
            "url": self.url or f"urn:undersong:artefact:{piece.record['fingerprint']}",
            # a date has no word for unknown
            "citeAs": UNKNOWN, **({"dateCreated": when} if (when := moment(piece, "finished")) else {}),
            "rai:dataCollection": how, "rai:dataCollectionType": ["Synthetic data"],
            "rai:dataBiases": [f"Written by {w}: rows can carry hidden traits of the model that wrote them to students that "
                               "share its base, and no filter on the text is known to remove them." for w in writers]
                              or [UNKNOWN],
            "rai:personalSensitiveInformation": [UNKNOWN],
            "distribution": [*files, *sets],
            "recordSet": [_records(piece, table, names) for table, names in tables.items()],
        }


def context() -> Json:
    """The JSON-LD context of Croissant 1.1, as mlcroissant writes it."""
    try:
        import mlcroissant
    except ImportError:
        raise need("mlcroissant", "croissant") from None
    made: Json = mlcroissant.Metadata(ctx=mlcroissant.Context(conforms_to=VERSION), name="context").to_json()
    return dict(made["@context"])


def complaints(document: Json) -> str:
    """What mlcroissant has against a document; empty when it is valid."""
    import mlcroissant

    try:
        mlcroissant.Dataset(jsonld=json.loads(json.dumps(document)))
    except mlcroissant.ValidationError as error:
        return str(error)
    return ""


def _tables(piece: Piece) -> dict[str, list[str]]:
    """Each table with its files: `rows.parquet`, or the parts in `rows.parts/`."""
    out: dict[str, list[str]] = {}
    for name in sorted(piece.tables):
        part = _PART.fullmatch(name)
        out.setdefault(part[1] if part else name.removesuffix(".parquet"), []).append(name)
    return out


def _parts(names: list[str]) -> bool:
    return len(names) > 1


def _records(piece: Piece, table: str, names: list[str]) -> Json:
    source = {"fileSet": {"@id": f"{table}-parts"}} if _parts(names) else {"fileObject": {"@id": names[0]}}
    fields = []
    for column, kind in piece.tables[names[0]]:
        inner = re.fullmatch(r"list<\w+: (\w+)>", kind)
        field: Json = {"@type": "cr:Field", "@id": f"{table}/{column}", "name": column,
                       "dataType": _TYPES.get(inner[1] if inner else kind, "sc:Text"),
                       "source": {**source, "extract": {"column": column}}}
        fields.append(field | ({"isArray": True, "arrayShape": "-1"} if inner else {}))
    return {"@type": "cr:RecordSet", "@id": table, "name": table, "field": fields}
