"""One conclusion from several tests, and the command that prints it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import pytest
from preserved import Tensors, noise, put, subject, tensors
from test_kinship_checkpoint import adapter, hostile

from undersong import relation
from undersong.cli import main
from undersong.errors import BadSpec, BrokenArtefact
from undersong.kinship.bytes import Bytes
from undersong.kinship.weights import Weights
from undersong.registry import Settings
from undersong.relation import conclude, default_tests, relate
from undersong.types import Finding

OPENED = (Bytes(), Weights())


def told(test: str, relation: str, p: float | None = None, access: str = "weights", power: float | None = None,
         direction: str | None = None) -> dict[str, Any]:
    out = {"test": test, "relation": relation, "p": p, "access": [access], "power": power, "direction": direction}
    return out if p is None else out | {"adjusted": p}


def test_weights_are_believed_before_answers_and_the_contradiction_is_told() -> None:
    alike = told("behaviour", "same_initialisation", 1e-9, "logits")
    apart = told("weights", "same_architecture", 0.4, power=1.0)
    found = conclude([apart, alike], 0.01)
    assert found["relation"] == "same_architecture"
    assert found["contradictions"] == ["behaviour (logits): same_initialisation"]
    assert "Contradicted by behaviour" in found["sentence"]
    assert conclude([alike], 0.01)["relation"] == "same_initialisation"
    kin = told("weights", "same_initialisation", 1e-9, power=1.0, direction="b_from_a")
    other = conclude([kin, told("behaviour", "unrelated", 0.5, "logits", 1.0)], 0.01)
    assert (other["relation"], other["direction"], len(other["contradictions"])) == ("same_initialisation", "b_from_a", 1)


def test_nothing_is_concluded_from_nothing() -> None:
    assert conclude([], 0.01)["relation"] == "unknown"
    assert conclude([told("bytes", "unknown")], 0.01)["relation"] == "unknown"
    weak = told("behaviour", "same_initialisation", 0.03, "text")
    assert conclude([weak], 0.01)["relation"] == "unknown"
    assert conclude([weak], 0.05)["relation"] == "same_initialisation"
    assert conclude([told("bytes", "same_weights"), weak], 0.01)["relation"] == "same_weights"


def test_directions_that_disagree_are_none() -> None:
    both = [told("bytes", "same_initialisation", direction="a_from_b"),
            told("weights", "same_initialisation", 1e-9, direction="b_from_a")]
    assert conclude(both, 0.01)["direction"] is None


class Claims(Settings):
    """A test that claims kinship at a fixed p."""

    p: float
    plugin_name: ClassVar[str] = "claims"
    plugin_kind: ClassVar[str] = "kinship"
    plugin_version: ClassVar[int] = 1
    needs: ClassVar[frozenset[str]] = frozenset({"weights"})

    def compare(self, a: Any, b: Any, controls: Any = ()) -> Finding:
        """It always claims."""
        if self.p > 0.5:
            raise BadSpec("It needs controls. Give some.")
        return Finding("same_initialisation", 1.0, self.p, ("weights",), "", {"power": 1.0})


def test_many_tests_are_corrected_together_and_one_that_cannot_stops_no_other() -> None:
    a, b = subject("pocket/a"), subject("pocket/b")
    one = relate(a, b, [Claims(p=0.008)])
    assert one["relation"] == "same_initialisation"
    several = relate(a, b, [Claims(p=0.008), Claims(p=0.4), Claims(p=0.9)])
    assert several["relation"] == "unknown"
    assert [t["adjusted"] for t in several["tests"]] == pytest.approx([0.016, 0.4])
    assert several["skipped"] == [{"test": "claims", "says": "It needs controls. Give some."}]


def test_the_pocket_family_as_json_with_everything_in_it(tmp_path: Path) -> None:
    found = relate(subject("pocket/a"), subject("pocket/a-reordered"), OPENED)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert {"format", "kind", "a", "b", "relation", "p", "power", "direction", "sentence", "tests", "alpha", "seconds",
            "environment"} <= set(found)
    assert (found["relation"], found["kind"]) == ("same_initialisation", "kinship")
    assert relate(subject("pocket/a"), subject("pocket/b"), OPENED)["relation"] == "same_architecture"
    same = relate(subject("pocket/a"), subject("pocket/a"), OPENED)
    assert (same["relation"], [t["test"] for t in same["tests"]]) == ("same_weights", ["identity"])
    child = relate(subject("pocket/a"), subject("pocket/a", adapter=str(adapter(tmp_path / "x"))), OPENED)
    assert (child["relation"], child["direction"]) == ("same_initialisation", "b_from_a")


def test_models_elsewhere_are_unknown_by_weights_and_damaged_ones_an_error(tmp_path: Path) -> None:
    found = relate(subject("inspect/openai/x"), subject("pocket/a"), OPENED)
    assert (found["relation"], len(found["skipped"])) == ("unknown", 2)
    with pytest.raises(BrokenArtefact):
        relate(subject(hostile("a truncated file", tmp_path)), subject("pocket/a"), OPENED)
    with pytest.raises(BadSpec, match="alpha"):
        relate(subject("pocket/a"), subject("pocket/b"), OPENED, alpha=0.0)


def test_large_models_are_not_loaded_for_what_their_weights_have_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relation, "LIGHT", 1000)
    found = relate(subject("pocket/a"), subject("pocket/b"))
    assert found["relation"] == "same_architecture"
    assert {t["test"] for t in found["tests"]} == {"bytes", "weights"}
    assert {s["test"] for s in found["skipped"]} == {"behaviour", "phylogeny", "seed_print"}
    assert all("Name this test" in s["says"] for s in found["skipped"])


def test_defaults_read_weights_first_at_the_alpha_asked_for() -> None:
    tests = default_tests(0.002)
    assert [t.plugin_name for t in tests][:2] == ["bytes", "weights"]
    assert next(t for t in tests if t.plugin_name == "weights").alpha == 0.002


def run(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main(["kinship", *args])
    out = capsys.readouterr()
    return int(stop.value.code or 0), out.out, out.err


WHITE = ("--test", "bytes", "--test", "weights")


def test_the_command_tells_keeps_and_ends_with_its_code(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    store = ("--store", str(tmp_path / "store"))
    code, out, _ = run(capsys, "pocket/a", "pocket/b", *WHITE, *store)
    assert code == 0
    assert "different initialisations" in out
    code, out, _ = run(capsys, "pocket/a", "pocket/a-reordered", *WHITE, *store, "--json")
    assert (code, json.loads(out)["relation"]) == (0, "same_initialisation")
    kept = list((tmp_path / "store" / "kinship").glob("*/kinship.json"))
    assert {json.loads(k.read_text())["relation"] for k in kept} == {"same_architecture", "same_initialisation"}
    code, out, _ = run(capsys, "pocket/a", "pocket/b", "--test", "bytes", *store)
    assert (code, "cannot be told" in out) == (2, True)


def test_an_adapter_names_its_base_or_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    store = ("--store", str(tmp_path / "store"))
    named = adapter(tmp_path / "named", base_model_name_or_path="pocket/a")
    code, out, _ = run(capsys, "pocket/a", str(named), *WHITE, *store, "--json")
    assert (code, json.loads(out)["direction"]) == (0, "b_from_a")
    lost = adapter(tmp_path / "lost", base_model_name_or_path="/nowhere/\x1b[2Jbase")
    code, _, err = run(capsys, "pocket/a", str(lost), *WHITE, *store)
    assert code == 3
    assert "--base-b" in err
    assert "\x1b" not in err
    assert run(capsys, "pocket/a", str(lost), "--base-b", "pocket/a", *WHITE, *store)[0] == 0
    code, _, err = run(capsys, "pocket/wide", str(lost), "--base-b", "pocket/wide", *WHITE, *store)
    assert (code, "Traceback" in err) == (3, False)


@pytest.mark.parametrize("kind", ["a name that leads out", "an absurd header", "a truncated file"])
def test_hostile_models_end_in_a_sentence_and_code_three(
    kind: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, out, err = run(capsys, str(hostile(kind, tmp_path)), "pocket/a", *WHITE, "--store", str(tmp_path / "store"))
    assert (code, out) == (3, "")
    assert err.strip().splitlines()[-1].endswith(".")


def test_a_change_of_tensors_needs_its_base(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    given: Tensors = noise(tensors("a"), 0.1)
    file = put(tmp_path / "x", given) / "model.safetensors"
    store = ("--store", str(tmp_path / "store"))
    assert run(capsys, str(file), "pocket/a", *WHITE, *store)[0] == 3
    code, out, _ = run(capsys, str(file), "pocket/a", "--base-a", "pocket/a", *WHITE, *store, "--json")
    assert (code, json.loads(out)["relation"]) == (0, "same_initialisation")


@pytest.mark.slow
def test_a_large_pair_needs_a_fraction_of_its_size_in_memory(tmp_path: Path) -> None:
    script = Path(__file__).resolve().parents[2] / "benchmarks" / "kinship_memory.py"
    done = subprocess.run([sys.executable, str(script), "3", str(tmp_path)], capture_output=True, text=True, check=True)
    cells = done.stdout.splitlines()[-1].split("|")
    assert float(cells[1].split()[0]) > 2.9
    assert float(cells[3].split()[0]) < 1024  # MiB, of two models of 3 GiB
