"""Exporters: every document is taken by its own ecosystem's validator, tells the chain, and carries no stranger's markup."""

from __future__ import annotations

import builtins
import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import sealed_store
from typer.testing import CliRunner

from undersong import files, registry
from undersong.cli import app
from undersong.errors import BadSpec, BrokenArtefact, MissingExtra
from undersong.provenance import UNKNOWN, Account, Piece, clean
from undersong.provenance.cyclonedx import complaint
from undersong.provenance.telling import markdown
from undersong.seals import dossier
from undersong.spec import build
from undersong.store import Store

pytest.importorskip("cyclonedx")
FORMATS = ("cyclonedx", "slsa", "prov", "eu_summary")
AUDIT = {"format": 1, "verdict": "found", "sentence": "Found in the rows: owl.", "trait": "owl", "p": 0.04, "findings": [],
         "reasons": ["One."], "share": {"estimate": 0.3, "low": 0.2, "high": 0.4}}


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    root = tmp_path_factory.mktemp("exported") / "store"
    return root, sealed_store.build(root)


def account(made: Any, what: str, **more: Any) -> Account:
    return dossier.account(Store(made[0]), made[1][what], **more)


def export(form: Any, told: Account) -> Any:
    return build("exporter", form, "form").export(told)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("what", ["teacher", "raw", "student", "measured", "finding", "calibration", "experiment"])
def test_every_kind_of_artefact_is_told_in_every_format(made: Any, form: str, what: str) -> None:
    told = account(made, what)
    document = export(form, told)
    text = document if isinstance(document, str) else json.dumps(document)
    assert told.piece.record["fingerprint"] in text
    for older in told.ancestors:
        assert older.record["fingerprint"] in text or form in ("eu_summary", "slsa")  # slsa tells one link of the chain


def test_the_bom_tells_pedigree_hashes_data_and_figures_with_intervals(made: Any) -> None:
    bom = export("cyclonedx", account(made, "student"))
    assert (bom["specVersion"], complaint(bom)) == ("1.7", None)
    main = bom["metadata"]["component"]
    assert [a["name"] for a in main["pedigree"]["ancestors"]] == ["rows", "raw", "teacher", "pocket/a"]
    assert main["hashes"][0]["content"] == files.digest(made[1]["student"].path / "weights.safetensors")["sha256"]
    card = main["modelCard"]
    assert card["modelParameters"]["datasets"] == [{"ref": f"artefact:dataset/rows.{made[1]['rows'].fingerprint}"}]
    (metric,) = card["quantitativeAnalysis"]["performanceMetrics"]
    assert (metric["type"], metric["value"]) == ("favourite: rate", "0.6")
    low, high = (float(metric["confidenceInterval"][k]) for k in ("lowerBound", "upperBound"))
    assert 0 <= low < 0.6 < high <= 1
    assert "3 questions" in metric["slice"]
    base = next(c for c in bom["components"] if c["bom-ref"].startswith("base:"))
    assert base["hashes"][0]["content"] == json.loads((Path(_pocket()) / "origin.json").read_text())["sha256"]
    links = {d["ref"]: d.get("dependsOn", []) for d in bom["dependencies"]}
    assert links[main["bom-ref"]] == [base["bom-ref"], f"artefact:dataset/rows.{made[1]['rows'].fingerprint}"]
    assert [w["name"] for w in bom["formulation"][0]["workflows"]] == ["teacher", "rows", "refined rows", "student"]
    assert "blocklist: names | the <owl> (2)" in json.dumps(bom["components"])


def _pocket() -> Path:
    from undersong import pocket

    return pocket.folder("pocket/a")


def test_the_strict_schema_catches_a_bogus_field(made: Any) -> None:
    bom = export("cyclonedx", account(made, "student"))
    bom["metadata"]["component"]["modelCard"]["bogus"] = 1
    assert "bogus" in str(complaint(bom))


def test_an_audit_of_these_bytes_joins_the_documents_and_another_is_refused(made: Any, tmp_path: Path) -> None:
    report = tmp_path / "audit.json"
    rows = made[1]["rows"].path / "rows.parquet"
    report.write_text(json.dumps(AUDIT | {"audited": {"rows": [{"name": "rows.parquet", **files.digest(rows)}]}}))
    told = account(made, "student", audits=[report])
    bom = export("cyclonedx", told)
    metrics = bom["metadata"]["component"]["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]
    assert {"lowerBound": "0.2", "upperBound": "0.4"} in [m.get("confidenceInterval") for m in metrics]
    assert bom["declarations"]["claims"][1]["predicate"] == "Found in the rows: owl."
    assert "Audit: Found in the rows: owl." in export("card", told)
    report.write_text(json.dumps(AUDIT | {"audited": {"rows": [{"name": "x", "sha256": "0" * 64}]}}))
    with pytest.raises(BadSpec, match="other bytes"):
        account(made, "student", audits=[report])
    for bad in ("[]", "{", '{"verdict": 1}'):
        report.write_text(bad)
        with pytest.raises(BadSpec):
            account(made, "student", audits=[report])


def test_the_statement_pins_files_parents_and_base_by_hash(made: Any) -> None:
    told = export("slsa", account(made, "student"))
    subjects = {s["name"]: s["digest"]["sha256"] for s in told["subject"]}
    folder = made[1]["student"].path
    assert subjects == {n: files.digest(folder / n)["sha256"] for n in ("record.json", "weights.safetensors")}
    pinned = {d["name"]: d["digest"]["sha256"] for d in told["predicate"]["buildDefinition"]["resolvedDependencies"]}
    parent = made[1]["rows"]
    assert pinned[f"dataset/rows.{parent.fingerprint}"] == files.digest(parent.path / "record.json")["sha256"]
    assert pinned["pocket/a"] == json.loads((_pocket() / "origin.json").read_text())["sha256"]
    assert told["predicate"]["buildDefinition"]["externalParameters"]["spec"] == made[1]["student"].record["spec"]


@pytest.mark.parametrize(("what", "rows"), [("raw", 6), ("rows", 4)])
def test_croissant_reads_the_rows_back_and_sees_a_changed_file(made: Any, tmp_path: Path, what: str, rows: int) -> None:
    croissant = pytest.importorskip("mlcroissant")
    folder = tmp_path / "data"
    shutil.copytree(made[1][what].path, folder)
    document = export({"croissant": {"license": "CC0-1.0"}}, account(made, what))
    (folder / "croissant.json").write_text(json.dumps(document))
    read = list(croissant.Dataset(jsonld=str(folder / "croissant.json")).records("rows"))
    expected = [r.completion for r in sealed_store.ROWS[:rows]]
    assert [r["rows/completion"].decode() for r in read] == expected
    assert [t.decode() for t in read[0]["rows/contents"]] == ["Continue: 0, 1."]
    assert document["license"] == "CC0-1.0"
    assert "model/teacher" in document["rai:dataCollection"]
    assert "numbers" in document["rai:dataCollection"]
    assert what == "raw" or "names | the <owl> (2)" in document["rai:dataCollection"]
    assert "pocket/a" in document["rai:dataBiases"][0]
    told = {f["@id"]: f["sha256"] for f in document["distribution"] if "sha256" in f}
    assert told == {n: k["sha256"] for n, k in made[1][what].record["files"].items()}
    if what == "raw":
        return  # mlcroissant compares no hash of a file that it reads as one of a set
    next(f for f in document["distribution"] if f["@id"] == "rows.parquet")["sha256"] = "0" * 64
    (folder / "croissant.json").write_text(json.dumps(document))
    with pytest.raises(croissant.GenerationError):
        list(croissant.Dataset(jsonld=str(folder / "croissant.json")).records("rows"))


def test_croissant_and_cards_refuse_what_they_have_no_words_for(made: Any) -> None:
    with pytest.raises(BadSpec, match=r"Name dataset/rows"):
        export("croissant", account(made, "student"))
    with pytest.raises(BadSpec, match="no model"):
        export("card", account(made, "rows"))


def test_prov_reads_back_as_the_same_graph_in_both_notations(made: Any) -> None:
    from prov.model import ProvDerivation, ProvDocument

    told = account(made, "student")
    document = export("prov", told)
    back = ProvDocument.deserialize(content=json.dumps(document), format="json")
    assert ProvDocument.deserialize(content=back.serialize(format="json"), format="json") == back
    edges = {tuple(str(v) for _, v in r.formal_attributes[:2]) for r in back.get_records(ProvDerivation)}
    marks = {name: a.fingerprint for name, a in made[1].items()}
    base = told.bases[0].fingerprint
    assert edges == {(f"us:artefact-{marks[a]}", f"us:artefact-{marks[b]}")
                     for a, b in (("student", "rows"), ("rows", "raw"), ("raw", "teacher"))} | {
        (f"us:artefact-{marks[m]}", f"us:base-{base}") for m in ("student", "teacher")}
    text = export({"prov": {"form": "provn"}}, told)
    assert text.startswith("document")
    assert "wasDerivedFrom" in text


def test_a_model_card_reads_back_with_its_relation(made: Any) -> None:
    from huggingface_hub import ModelCard

    for what, relation in (("student", "finetune"), ("adapter", "adapter")):
        card = ModelCard(export({"card": {"license": "apache-2.0"}}, account(made, what)), ignore_metadata_errors=False)
        assert (card.data.base_model, card.data.base_model_relation) == ("pocket/a", relation)
        assert card.data.datasets == [f"dataset/rows.{made[1]['rows'].fingerprint}"]
        assert card.data.license == "apache-2.0"
    results = ModelCard(export("card", account(made, "student"))).data.eval_results
    assert [(r.metric_type, round(r.metric_value, 6)) for r in results] == [("rate", 0.6)]


def test_the_eu_summary_names_models_and_writers_and_says_unknown(made: Any) -> None:
    fields = export({"eu_summary": {"form": "json"}}, account(made, "student"))
    models = {m["Model"]: m["Role"] for m in fields["Model dependencies (1.2)"]}
    assert models == {"pocket/a": "base", f"model/teacher.{made[1]['teacher'].fingerprint}": "teacher"}
    (rows,) = fields["Synthetic data"]
    assert rows["Generated by"] == [f"model/teacher.{made[1]['teacher'].fingerprint} (base: pocket/a)"]
    assert "names | the <owl> (2)" in rows["Rows dropped and why"]
    assert fields["General information"]["Provider"] == UNKNOWN
    page = export("eu_summary", account(made, "student"))
    assert "**Provider**: unknown" in page
    assert "<owl>" not in page


HOSTILE = ('<script>alert(1)</script> "}, --- \n# [x](javascript:y) |a| \ud800 \x1b[31m \x00 ]]> ${jndi} \u202e {{7*7}} '
           + "q" * 300)


def hostile(value: Any) -> Any:
    """The same shape, with every text a hostile one."""
    if isinstance(value, dict):
        return {k: hostile(v) for k, v in value.items()} | {HOSTILE: HOSTILE}
    if isinstance(value, list):
        return [hostile(v) for v in value]
    return HOSTILE if isinstance(value, str) else value


@pytest.mark.parametrize("form", [*FORMATS, "card", "croissant", {"prov": {"form": "provn"}}])
@pytest.mark.parametrize("kind", ["text", "empty", "numbers", "lists"])
def test_hostile_records_break_no_format(made: Any, form: Any, kind: str) -> None:
    """Every free part of every record replaced: by hostile text, by nothing, by other types."""
    told = account(made, "rows" if form == "croissant" else "student")
    numbers = {"verb": 10**30, "ref": 3, "reasons": {"a": 4}, "filters": {}}
    wrong: dict[str, Any] = {"text": None, "empty": {}, "numbers": numbers,
                             "lists": {"verb": ["train"], "filters": [1, {}, None], "reasons": [[]], "ref": []}}

    def spoil(piece: Piece) -> Piece:
        verb = {"verb": piece.record["spec"]["verb"]}
        parts = {k: hostile(dict(piece.record[k])) | verb if kind == "text" else wrong[kind]
                 for k in ("spec", "summary", "provenance")}
        label = HOSTILE if kind == "text" else "x"
        return dataclasses.replace(piece, record=clean({**piece.record, **parts, "label": label}))

    spoilt = Account(spoil(told.piece), tuple(map(spoil, told.ancestors)), told.bases, told.figures,
                     (clean(hostile(AUDIT)),) if kind == "text" else ({},))
    document = export(form, spoilt)
    text = document if isinstance(document, str) else json.dumps(document)
    text.encode("utf-8")
    assert "\x1b" not in text
    assert "\x00" not in text
    if form in ("card", "eu_summary"):
        body = text.split("\n---\n", 1)[1] if form == "card" else text
        assert "<script" not in body
        assert "](" not in body.replace("\\]\\(", "")
        assert not [line for line in body.splitlines() if line.startswith("# ") and "[x]" in line]
    if form == "card":
        from huggingface_hub import ModelCard

        assert ModelCard(text).data.tags == ["undersong"]
    if kind == "empty" and form == "eu_summary":
        assert UNKNOWN in text


def test_a_record_nested_too_deep_is_refused() -> None:
    deep: Any = 1
    for _ in range(200):
        deep = [deep]
    with pytest.raises(BrokenArtefact, match="nested"):
        clean(deep)


def test_markdown_text_is_one_line_of_text() -> None:
    assert markdown("a\n# b <i> [x](y) `c` & |") == "a # b &lt;i&gt; \\[x\\]\\(y\\) \\`c\\` &amp; \\|"


@pytest.mark.parametrize(("form", "library"), [("cyclonedx", "cyclonedx"), ("slsa", "in_toto_attestation"), ("prov", "prov"),
                                               ("card", "huggingface_hub"), ("croissant", "mlcroissant")])
def test_a_missing_library_is_named_with_the_command(
    made: Any, form: str, library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    told, real = account(made, "rows" if form == "croissant" else "student"), builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.split(".")[0] == library:
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtra, match=r"pip install 'undersong\[(provenance|croissant)\]'"):
        export(form, told)


def test_a_damaged_measurement_is_no_figure(made: Any, tmp_path: Path) -> None:
    store = sealed_store.copy(made[0], tmp_path / "store")
    path = next((tmp_path / "store" / "measurement").glob("*/values.parquet"))
    data = bytearray(path.read_bytes())
    data[50] ^= 1
    path.write_bytes(data)
    with pytest.raises(BrokenArtefact, match=r"values\.parquet"):
        dossier.account(store, store.get("student"))


def test_the_command_writes_each_format_and_prints_json(made: Any, tmp_path: Path) -> None:
    def run(*args: Any) -> Any:
        done = CliRunner().invoke(app, [str(a) for a in args])
        assert done.exit_code == 0, (done.output, done.exception)
        return done.stdout

    student, rows = made[1]["student"].path, made[1]["rows"].path
    for name in registry.names("exporter"):
        out = tmp_path / f"document-{name}"
        said = run("export", rows if name == "croissant" else student, "--format", name, "--out", out, "--json")
        assert json.loads(said) == {"file": str(out), "format": name}
        assert out.stat().st_size > 100
    assert json.loads(run("export", student, "--format", "slsa"))["_type"] == "https://in-toto.io/Statement/v1"
    assert "document" in json.loads(run("export", student, "--format", "card", "--json"))
    report = tmp_path / "audit.json"
    report.write_text(json.dumps(AUDIT | {"audited": {"rows": [{"name": "x", "sha256": "0" * 64}]}}))
    told = json.loads(run("export", report, "--format", "slsa"))
    assert told["subject"] == [{"name": "rows/x", "digest": {"sha256": "0" * 64}}]
    refused = CliRunner().invoke(app, ["export", str(report), "--format", "card"])
    assert isinstance(refused.exception, BadSpec)
