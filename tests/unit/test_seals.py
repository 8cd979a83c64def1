"""Seals: what was sealed verifies; whatever is changed afterwards, in any kind of artefact, is caught and named."""

from __future__ import annotations

import datetime
import json
import os
import re
import shutil
import stat
from pathlib import Path
from typing import Any

import pytest
import sealed_store
from typer.testing import CliRunner

from undersong import files, seals
from undersong.cli import app
from undersong.errors import BadSpec, BrokenArtefact
from undersong.lab import base_ref
from undersong.provenance.slsa import checked
from undersong.seals import keys
from undersong.seals.verification import NO_KEY, Verifier
from undersong.store import Store

pytest.importorskip("model_signing", reason="the provenance extra is not installed")
KINDS = ("teacher", "raw", "shard", "rows", "student", "adapter", "measured", "finding", "calibration", "cases",
         "kinship", "explanation", "reading", "experiment")


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sealed")


@pytest.fixture(scope="session")
def sealed(home: Path) -> tuple[Path, dict[str, str], Path]:
    return sealed_store.original(home)


@pytest.fixture
def store(sealed: Any, tmp_path: Path) -> Store:
    return sealed_store.copy(sealed[0], tmp_path / "store")


def verify(store: Store, sealed: Any, what: str, key: Path | None = None, **more: Any) -> dict[str, Any]:
    return Verifier(key or Path(f"{sealed[2]}.pub"), **more).verify(store, sealed[1][what])


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_no_kind_of_artefact_is_missing_here(sealed: Any) -> None:
    source = "".join(file.read_text("utf-8") for file in Path(seals.__file__).parents[1].rglob("*.py"))
    made = set(re.findall(r'\bstore\.open\(\s*"(\w+)"', source))
    assert {"model", "kinship", "explanation"} <= made
    assert made <= {sealed[1][what].split("/")[0] for what in KINDS}


@pytest.mark.parametrize("what", KINDS)
def test_what_was_sealed_verifies(sealed: Any, what: str) -> None:
    found = verify(Store(sealed[0]), sealed, what)
    assert found["ok"], found
    assert found["first_failure"] is None
    assert any(sealed[1][what] in line for line in found["checked"])
    assert what == "finding" or any("base pocket/a (float32): pinned by content" in line for line in found["checked"])


@pytest.mark.parametrize("what", KINDS)
def test_every_flipped_byte_is_caught_and_named(sealed: Any, store: Store, what: str) -> None:
    """A byte at the start, in the middle and at the end of each payload file, record, envelope and model signature."""
    folder = Path(store.root) / sealed[1][what]
    beside = Path(store.root) / "seals" / folder.name.rpartition(".")[2]
    targets = [p for p in (*folder.rglob("*"), *beside.rglob("*")) if p.is_file()]
    assert {p.name for p in targets} >= {"record.json", "record.dsse.json"}
    assert len(targets) >= 3
    for path in targets:
        size = path.stat().st_size
        for at in sorted({0, 7, size // 3, size // 2, size - 3, size - 2, size - 1}):
            flip(path, at)
            found = verify(store, sealed, what)
            assert not found["ok"], (path.name, at)
            part = path.name if path.parent != folder else folder.name
            assert part in found["first_failure"], (path.name, at, found["first_failure"])
            assert path.parent == beside or folder.name in found["first_failure"] or path.name in found["first_failure"]
            flip(path, at)
    assert verify(store, sealed, what)["ok"]


def test_every_byte_of_an_envelope_counts(sealed: Any, store: Store) -> None:
    """Also those that base64 and JSON readers forgive."""
    path = next(seals.place(store, store.get(sealed[1]["rows"]), keys.public(Path(f"{sealed[2]}.pub")).keyid).glob("*.json"))
    key = keys.public(Path(f"{sealed[2]}.pub"))
    for at in range(path.stat().st_size):
        if at % 11 == 0 or at > path.stat().st_size - 300:
            flip(path, at)
            with pytest.raises(BrokenArtefact, match=r"record\.dsse\.json"):
                seals.opened(path, key)
            flip(path, at)
    seals.opened(path, key)


def test_what_readers_of_json_forgive_is_a_change(sealed: Any, store: Store) -> None:
    key = keys.public(Path(f"{sealed[2]}.pub"))
    path = seals.place(store, store.get(sealed[1]["rows"]), key.keyid) / "record.dsse.json"
    whole = path.read_bytes()
    for changed in (whole + b"\n", whole.replace(b'"payload": ', b'"payload":  '), whole.replace(b"{", b'{"more": 1,', 1)):
        assert changed != whole
        path.write_bytes(changed)
        with pytest.raises(BrokenArtefact, match="byte for byte"):
            seals.opened(path, key)


@pytest.mark.parametrize("what", ["raw", "rows", "measured", "finding", "experiment"])
@pytest.mark.parametrize("name", ["extra.txt", ".hidden", "sub/.x"])
def test_an_unrecorded_file_is_named_where_no_model_signature_sees_it(
    sealed: Any, store: Store, what: str, name: str
) -> None:
    path = Path(store.root) / sealed[1][what] / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("x")
    assert name in verify(store, sealed, what)["first_failure"]


@pytest.mark.parametrize("ancestor", ["teacher", "raw", "rows"])
def test_a_change_in_an_ancestor_fails_the_student_and_names_the_ancestor(sealed: Any, store: Store, ancestor: str) -> None:
    folder = Path(store.root) / sealed[1][ancestor]
    flip(next(p for p in sorted(folder.rglob("*")) if p.is_file() and p.name != "record.json"), 20)
    found = verify(store, sealed, "student")
    assert not found["ok"]
    assert folder.name in found["first_failure"]


def test_a_missing_ancestor_is_named(sealed: Any, store: Store) -> None:
    shutil.rmtree(Path(store.root) / sealed[1]["raw"])
    found = verify(store, sealed, "student")
    assert sealed[1]["raw"].rpartition(".")[2] in found["first_failure"]
    assert "not in the store" in found["first_failure"]


def test_a_payload_and_record_rewritten_together_are_not_what_was_sealed(sealed: Any, store: Store) -> None:
    folder = Path(store.root) / sealed[1]["student"]
    flip(folder / "weights.safetensors", 200)
    record = json.loads((folder / "record.json").read_text())
    record["files"]["weights.safetensors"] = files.digest(folder / "weights.safetensors")
    (folder / "record.json").write_bytes(files.dump(record, "x"))
    store.verify(store.get(sealed[1]["student"]))  # consistent in itself
    assert "record.json is not what was sealed" in verify(store, sealed, "student")["first_failure"]


def test_a_resealed_forged_parent_is_not_the_parent_that_was_sealed(sealed: Any, store: Store, tmp_path: Path) -> None:
    """Even with the right key: a student's seal pins its rows' record."""
    folder = Path(store.root) / sealed[1]["rows"]
    record = json.loads((folder / "record.json").read_text())
    record["summary"]["kept"] = 5
    (folder / "record.json").write_bytes(files.dump(record, "x"))
    seals.Sealer(sealed[2]).seal(store, store.get(sealed[1]["rows"]))
    assert verify(store, sealed, "rows")["ok"]
    found = verify(store, sealed, "student")
    assert "is not the one that was sealed" in found["first_failure"]
    assert "student" in found["first_failure"]


def test_a_seal_of_another_artefact_does_not_fit(sealed: Any, store: Store) -> None:
    place = lambda what: Path(store.root) / "seals" / sealed[1][what].rpartition(".")[2]  # noqa: E731
    shutil.rmtree(place("adapter"))
    shutil.copytree(place("student"), place("adapter"))
    assert "adapter" in verify(store, sealed, "adapter")["first_failure"]


def test_another_key_a_missing_seal_and_no_key_are_named(sealed: Any, store: Store, tmp_path: Path) -> None:
    keys.new(tmp_path / "other")
    found = verify(store, sealed, "student", tmp_path / "other.pub")
    assert not found["ok"]
    assert "no seal by the key" in found["first_failure"]
    assert keys.public(Path(f"{sealed[2]}.pub")).keyid[:16] in found["first_failure"]  # whose seals there are
    # another key's seals under the expected name
    mine = seals.place(store, store.get(sealed[1]["rows"]), keys.public(Path(f"{sealed[2]}.pub")).keyid)
    theirs = seals.place(store, store.get(sealed[1]["rows"]), keys.public(tmp_path / "other.pub").keyid)
    shutil.copytree(mine, theirs)
    told = verify(store, sealed, "raw", tmp_path / "other.pub")
    assert "no seal" in told["first_failure"]
    with pytest.raises(BrokenArtefact, match="signature does not hold"):
        seals.opened(theirs / "record.dsse.json", keys.public(tmp_path / "other.pub"))
    shutil.rmtree(Path(store.root) / "seals")
    assert "never sealed" in verify(store, sealed, "student")["first_failure"]
    nothing = Verifier(None).verify(store, sealed[1]["student"])
    assert not nothing["ok"]
    assert NO_KEY in nothing["first_failure"]


def test_an_expired_seal_fails_and_a_past_expiry_cannot_be_sealed(
    sealed: Any, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    soon = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=2)
    seals.Sealer(sealed[2], expires=soon.date().isoformat()).seal(store, store.get(sealed[1]["student"]))
    assert verify(store, sealed, "student")["ok"]

    class Later(datetime.datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime.datetime:
            return datetime.datetime(2100, 1, 1, tzinfo=tz)

    monkeypatch.setattr("undersong.seals.verification.datetime.datetime", Later)
    found = verify(store, sealed, "student")
    assert "expired on" in found["first_failure"]
    assert "teacher" in found["first_failure"] or sealed[1]["teacher"].rpartition(".")[2] in found["first_failure"]
    monkeypatch.undo()
    for bad in ("2001-01-01", "soon", "", "99999-01-01"):
        with pytest.raises(BadSpec, match="expires"):
            seals.until(bad)


def test_an_expiry_cannot_be_moved(sealed: Any, store: Store) -> None:
    """It is inside what is signed."""
    import base64

    key = keys.public(Path(f"{sealed[2]}.pub"))
    path = seals.place(store, store.get(sealed[1]["teacher"]), key.keyid) / "record.dsse.json"
    envelope = json.loads(path.read_text())
    told = base64.b64decode(envelope["payload"]).replace(b'"never"', b'"2090-01-01"')
    path.write_bytes(files.dump(envelope | {"payload": base64.b64encode(told).decode()}, "x"))
    assert "signature does not hold" in verify(store, sealed, "student")["first_failure"]


@pytest.mark.parametrize("text", [b"", b"[]", b"{}", b'{"payload": 1, "payloadType": 2, "signatures": 3}', b"\xff" * 50,
                                  b'{"payload": "e30=", "payloadType": "x", "signatures": []}', b"[" * 5000,
                                  b'{"payload": "e30=", "payloadType": "x", "signatures": [{"sig": "AA=="}]}',
                                  b'{"payload": "e30=", "payloadType": "x", "signatures": [7]}'])
def test_a_hostile_envelope_fails_in_words(sealed: Any, store: Store, text: bytes) -> None:
    key = keys.public(Path(f"{sealed[2]}.pub"))
    path = seals.place(store, store.get(sealed[1]["teacher"]), key.keyid) / "record.dsse.json"
    path.write_bytes(text)
    found = verify(store, sealed, "teacher")
    assert not found["ok"]
    assert "record.dsse.json" in found["first_failure"]


def break_link(folder: Path) -> None:
    (folder / "weights.safetensors").rename(folder.parent / "elsewhere")
    os.symlink(folder.parent / "elsewhere", folder / "weights.safetensors")


def inner_link(folder: Path) -> None:
    (folder / ".lock").write_bytes((folder / "weights.safetensors").read_bytes())
    (folder / "weights.safetensors").unlink()
    os.symlink(".lock", folder / "weights.safetensors")


def traversal(folder: Path) -> None:
    record = json.loads((folder / "record.json").read_text())
    record["files"]["../../secret"] = record["files"]["weights.safetensors"]
    (folder / "record.json").write_bytes(files.dump(record, "x"))


def forged_parents(folder: Path) -> None:
    record = json.loads((folder / "record.json").read_text())
    record["parents"] = [record["fingerprint"], record["parents"][1]]
    (folder / "record.json").write_bytes(files.dump(record, "x"))


def grown(folder: Path) -> None:
    with open(folder / "weights.safetensors", "ab") as file:
        file.truncate(2**31)  # sparse: refused by its size, not read


@pytest.mark.parametrize(("damage", "named"), [
    (break_link, "weights.safetensors"), (inner_link, "weights.safetensors"), (traversal, "../../secret"),
    (forged_parents, "parents"), (grown, "weights.safetensors"),
    (lambda f: (f / "extra.txt").write_text("x"), "extra.txt"), (lambda f: (f / ".hidden").write_text("x"), ".hidden"),
    (lambda f: (f / "sub").mkdir() or (f / "sub" / ".x").write_text("x"), "sub/.x"),
    (lambda f: (f / "weights.safetensors").unlink(), "weights.safetensors"),
    (lambda f: (f / "record.json").unlink(), "record"), (lambda f: (f / "record.json").write_text("{}"), "record"),
])
def test_what_does_not_belong_is_named(sealed: Any, store: Store, damage: Any, named: str) -> None:
    damage(Path(store.root) / sealed[1]["student"])
    found = verify(store, sealed, "student")
    assert not found["ok"]
    if damage is forged_parents:
        assert "another artefact" in found["first_failure"]
    else:
        assert named in found["first_failure"]


def test_a_circle_of_parents_is_refused(sealed: Any, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fingerprints make circles impossible on disk; were they forged, the walk would still end."""
    from undersong.seals.dossier import chain

    target = store.get(sealed[1]["student"])
    looped = [r | {"parents": [target.fingerprint]} if r["label"] == "teacher" else r for r in store.records()]
    monkeypatch.setattr(Store, "records", lambda self, kind=None: looped)
    with pytest.raises(BrokenArtefact, match="its own ancestor"):
        chain(store, target)


@pytest.mark.parametrize(("name", "data"), [
    ("model.bin", b"anything"), ("model.pt", b"PK\x03\x04"), ("notes.json", b"\x80\x04\x95pickle"),
    ("rows.parquet", b"PK\x03\x04archive"), ("w.safetensors", b"\x80\x02}q\x00."),
])
def test_pickles_are_refused_by_name_and_by_content(sealed: Any, tmp_path: Path, name: str, data: bytes) -> None:
    store = Store(tmp_path)
    with store.open("model", "bad", {"verb": "teach"}) as artefact:
        (artefact.path / name).write_bytes(data)
        artefact.finish({})
    with pytest.raises(BrokenArtefact, match=name):
        seals.Sealer(sealed[2]).seal(store, artefact)
    found = Verifier(Path(f"{sealed[2]}.pub")).verify(store, "bad")
    assert name in found["first_failure"]


def test_safetensors_are_not_taken_for_pickles(tmp_path: Path) -> None:
    """A header of 640 bytes begins like a pickle of protocol 2."""
    path = tmp_path / "w.safetensors"
    path.write_bytes((640).to_bytes(8, "little") + b"{" + b" " * 700)
    assert path.read_bytes()[:2] == b"\x80\x02"
    assert seals.unsafe(path) is None


def test_a_base_is_held_against_its_content(
    sealed: Any, store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from undersong import pocket

    shutil.copytree(pocket.folder("pocket/a"), tmp_path / "a")
    flip(tmp_path / "a" / "model.safetensors", 5000)
    monkeypatch.setattr(pocket, "folder", lambda name: tmp_path / "a")
    assert "base pocket/a" in verify(store, sealed, "student")["first_failure"]


def test_a_base_folder_that_moved_is_found_by_its_content(sealed: Any, tmp_path: Path) -> None:
    from undersong import pocket

    shutil.copytree(pocket.folder("pocket/a"), tmp_path / "first")
    store, spec = Store(tmp_path / "store"), {"verb": "teach", "teacher": {"name": "tuned"}}
    base = base_ref(str(tmp_path / "first"))
    with store.open("model", "t", spec, [base.fingerprint]) as artefact:
        (artefact.path / "notes.txt").write_text("x")
        artefact.finish({"ref": sealed_store._ref(base=str(tmp_path / "first"))})
    seals.Sealer(sealed[2]).seal(store, artefact)
    shutil.move(tmp_path / "first", tmp_path / "second")
    public = Path(f"{sealed[2]}.pub")
    assert "--base" in Verifier(public).verify(store, "t")["first_failure"]
    found = Verifier(public, [str(tmp_path / "second")]).verify(store, "t")
    assert found["ok"], found
    flip(tmp_path / "second" / "model.safetensors", 9000)
    assert not Verifier(public, [str(tmp_path / "second")]).verify(store, "t")["ok"]


def test_an_artefact_that_is_wrong_is_not_sealed(sealed: Any, store: Store, tmp_path: Path) -> None:
    shutil.rmtree(Path(store.root) / "seals")
    rows = Path(store.root) / sealed[1]["raw"] / "rows.parts" / "000001.parquet"
    flip(rows, 9)
    with pytest.raises(BrokenArtefact, match="000001"):
        seals.Sealer(sealed[2]).seal(store, store.get(sealed[1]["student"]))
    assert not (Path(store.root) / "seals").exists()
    flip(rows, 9)
    shutil.rmtree(Path(store.root) / sealed[1]["teacher"])
    with pytest.raises(BrokenArtefact, match=sealed[1]["teacher"].rpartition(".")[2]):
        seals.Sealer(sealed[2]).seal(store, store.get(sealed[1]["rows"]))


def test_two_people_can_seal_one_artefact(sealed: Any, store: Store, tmp_path: Path) -> None:
    keys.new(tmp_path / "auditor")
    seals.Sealer(tmp_path / "auditor").seal(store, store.get(sealed[1]["student"]))
    assert verify(store, sealed, "student")["ok"]
    assert verify(store, sealed, "student", tmp_path / "auditor.pub")["ok"]
    store.verify(store.get(sealed[1]["student"]))  # the artefact's folder is as it was


def test_a_private_key_is_secret_and_never_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = keys.new(tmp_path / "k")
    assert stat.S_IMODE(os.stat(tmp_path / "k").st_mode) == 0o600
    assert len(made["key"]) == 64
    before = (tmp_path / "k").read_bytes()
    for path in (tmp_path / "k", tmp_path / "k.pub"):
        with pytest.raises(BadSpec, match="never replaced"):
            keys.new(path if path.name == "k" else tmp_path / "k")
    assert (tmp_path / "k").read_bytes() == before
    os.symlink(tmp_path / "nowhere", tmp_path / "dangling")
    with pytest.raises(BadSpec, match="never replaced"):
        keys.new(tmp_path / "dangling")
    monkeypatch.setenv("UNDERSONG_KEY_PASSWORD", "open sesame")
    keys.new(tmp_path / "locked")
    assert b"ENCRYPTED" in (tmp_path / "locked").read_bytes()
    assert keys.signer(tmp_path / "locked")
    monkeypatch.delenv("UNDERSONG_KEY_PASSWORD")
    with pytest.raises(BadSpec, match="UNDERSONG_KEY_PASSWORD"):
        keys.signer(tmp_path / "locked")


def test_an_encrypted_key_seals_models(sealed: Any, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNDERSONG_KEY_PASSWORD", "open sesame")
    keys.new(tmp_path / "locked")
    seals.Sealer(tmp_path / "locked").seal(store, store.get(sealed[1]["student"]))
    monkeypatch.delenv("UNDERSONG_KEY_PASSWORD")
    assert verify(store, sealed, "student", tmp_path / "locked.pub")["ok"]


def test_what_is_no_key_is_refused_in_words(sealed: Any, tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization as pem
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519

    for text in (b"", b"nonsense", b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----", b"x" * 10**5):
        (tmp_path / "k").write_bytes(text)
        with pytest.raises(BadSpec):
            keys.public(tmp_path / "k")
        with pytest.raises(BadSpec):
            keys.signer(tmp_path / "k")
    with pytest.raises(BadSpec, match="private key"):
        keys.public(sealed[2])
    with pytest.raises(BadSpec, match="public key"):
        keys.signer(Path(f"{sealed[2]}.pub"))
    with pytest.raises(BadSpec, match="no key file"):
        keys.public(tmp_path / "none")
    for other in (ed25519.Ed25519PrivateKey.generate(), ec.generate_private_key(ec.SECP256K1())):
        (tmp_path / "k").write_bytes(other.private_bytes(pem.Encoding.PEM, pem.PrivateFormat.PKCS8, pem.NoEncryption()))
        with pytest.raises(BadSpec, match=r"P-256|no key that can be used"):
            keys.signer(tmp_path / "k")


AUDIT = {"format": 1, "verdict": "found", "sentence": "Found in the rows: owl.", "trait": "owl", "p": 0.04, "findings": [],
         "reasons": ["One."], "share": {"estimate": 0.3, "low": 0.2, "high": 0.4}, "rows": {"examples": ["secret text"]}}


def audit_of(path: Path, folder: Path) -> Path:
    report = folder / "audit-rows.json"
    found = AUDIT | {"audited": {"rows": [{"name": path.name, **files.digest(path)}]}}
    report.write_text(json.dumps(found))
    return report


def test_a_sealed_audit_is_about_the_bytes_it_read(sealed: Any, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "1, 2", "completion": "3"}\n')
    report = audit_of(rows, tmp_path)
    envelope = seals.Sealer(sealed[2]).seal_audit(report)
    told = seals.opened(envelope, keys.public(Path(f"{sealed[2]}.pub")))
    assert told["subject"] == [{"name": "rows/rows.jsonl", "digest": {"sha256": files.digest(rows)["sha256"]}}]
    assert told["predicate"]["audit"]["verdict"] == "found"
    assert "secret text" not in json.dumps(told)
    check = lambda *audited: Verifier(Path(f"{sealed[2]}.pub")).verify_audit(report, audited)  # noqa: E731
    assert check(rows)["ok"]
    assert check(tmp_path)["ok"]
    assert any("not compared" in line for line in check()["checked"])
    for path in (report, envelope, rows):
        for at in (10, path.stat().st_size // 2, path.stat().st_size - 2):
            flip(path, at)
            found = check(rows)
            assert not found["ok"], (path, at)
            assert path.name in found["first_failure"]
            flip(path, at)
    assert check(rows)["ok"]
    report.write_text(json.dumps(AUDIT))
    with pytest.raises(BadSpec, match="which bytes"):
        seals.Sealer(sealed[2]).seal_audit(report)


def run(*args: Any) -> tuple[int, str]:
    done = CliRunner().invoke(app, [str(a) for a in args], catch_exceptions=True)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.stdout


def test_the_commands_keys_seal_and_verify(tmp_path: Path) -> None:
    made = sealed_store.build(tmp_path / "store")
    code, said = run("keys", "new", tmp_path / "k", "--json")
    assert (code, json.loads(said)["private"]) == (0, str(tmp_path / "k"))
    terms = ("--identity", "Me", "--expires", "2090-01-01", "--json")
    code, said = run("seal", made["student"].path, "--key", tmp_path / "k", *terms)
    assert code == 0
    assert len(json.loads(said)["sealed"]) == 6
    with_key = ("--key", tmp_path / "k.pub", "--json")
    code, said = run("verify", made["student"].fingerprint, "--store", tmp_path / "store", *with_key)
    told = json.loads(said)
    assert (code, told["ok"], told["first_failure"]) == (0, True, None)
    assert set(told) == {"ok", "first_failure", "checked"}
    flip(made["student"].path / "weights.safetensors", 100)
    code, said = run("verify", made["student"].path, *with_key)
    assert (code, json.loads(said)["ok"]) == (1, False)
    assert run("verify", made["student"].path)[0] == 1


def test_statements_that_no_library_takes_are_refused() -> None:
    good = {"_type": "https://in-toto.io/Statement/v1", "subject": [{"name": "x", "digest": {"sha256": "0"}}],
            "predicateType": "urn:x", "predicate": {"a": 1}}
    assert checked(good) == good
    for bad in ({"subject": []}, {"_type": "x"}, {"subject": [{"name": "x"}]}, {"predicate": {}}, {"bogus": 1}):
        with pytest.raises(BadSpec):
            checked(good | bad)
