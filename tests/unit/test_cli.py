"""The command line: exit codes, messages, JSON, resume. Real runs on the simulated backend."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from importlib.resources import files
from pathlib import Path

import pytest

from undersong import cli, screen

REHEARSAL = Path(str(files("undersong") / "rehearsal.yaml"))
COMMANDS = ("new", "plan", "run", "measure", "report", "ls", "show", "diff", "plugins", "models", "doctor")


class Said:
    """What a command did: exit code and both streams."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def undersong(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UNDERSONG_STORE", str(tmp_path / "store"))

    def call(*args: str | Path) -> Said:
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            cli.main([str(a) for a in args])
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return Said(left.value.code, out, err)

    return call


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the rehearsal in it."""
    store = tmp_path_factory.mktemp("store")
    with pytest.raises(SystemExit) as left:
        cli.main(["run", str(REHEARSAL), "--store", str(store), "--json"])
    assert left.value.code == 0
    return store


def write(path: Path, **changes: object) -> Path:
    """The rehearsal file with some keys changed or (None) removed."""
    import yaml

    data = yaml.safe_load(REHEARSAL.read_text()) | changes
    path.write_text(yaml.safe_dump({k: v for k, v in data.items() if v is not None}))
    return path


def test_help_is_quick_and_loads_no_framework() -> None:
    code = (
        "import sys, time; from undersong.cli import app; app(['--help'], standalone_mode=False)\n"
        "heavy = {'torch', 'transformers', 'pydantic', 'numpy', 'rich.console'} & set(sys.modules)\n"
        "print('|', time.process_time(), *heavy)"
    )
    runs = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        for _ in range(3)
    ]
    told = [run.rsplit("|", 1)[1].split() for run in runs]
    assert all(len(t) == 1 for t in told), told
    assert min(float(t[0]) for t in told) < 0.3


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_and_json(undersong, command: str) -> None:
    said = undersong(command, "--help")
    assert said.code == 0
    assert "--json" in said.out
    assert len(said.out.splitlines()[2].strip()) > 20


def test_commands_are_the_documented_ones(undersong) -> None:
    said = undersong()
    assert said.code == 0
    assert all(f"\n  {c} " in said.out for c in COMMANDS)
    assert re.match(r"\d+\.\d+|not installed", undersong("--version").out)


@pytest.mark.parametrize(
    "args", [("runn",), ("run",), ("run", "x.yaml", "--sets", "a=1"), ("ls", "--kind"), ("--nope",)]
)
def test_usage_errors_exit_3(undersong, args: tuple[str, ...]) -> None:
    said = undersong(*args)
    assert said.code == 3
    assert said.err.strip().endswith("--help`.")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"traits": "owl"}, ("traits", "'trait'")),
        ({"trait": "owll"}, ("owll", "'owl'")),
        ({"channel": "nmbers"}, ("nmbers", "'numbers'")),
        ({"channel": {"numbers": {"larges": 5}}}, ("larges", "'largest'")),
        ({"probes": ["favorite"]}, ("favorite", "'favourite'")),
        ({"controls": ["no_traits"]}, ("no_traits", "'no_trait'")),
        ({"controls": ["other_base"]}, ("no_trait", "Add")),
        ({"seeds": [1, 2]}, ("seeds", "three")),
        ({"seeds": [1, 1, 2]}, ("seeds", "three")),
        ({"other_base": None}, ("other_base", "Add it")),
        ({"base": None}, ("base", "missing")),
        ({"base": "pocket/z"}, ("pocket/z",)),
        ({"rows": "many"}, ("rows", "many")),
    ],
)
def test_bad_files_exit_3_and_say_what_to_do(
    undersong, tmp_path: Path, changes: dict[str, object], words: tuple[str, ...]
) -> None:
    for command in ("plan", "run"):
        said = undersong(command, write(tmp_path / "bad.yaml", **changes))
        assert said.code == 3
        assert said.out == ""
        assert all(w in said.err for w in words), said.err
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("plan", "owls.yaml"), ("owls.yaml",)),
        (("run", REHEARSAL, "--set", "rows"), ("rows", "=")),
        (("run", REHEARSAL, "--set", "row=5"), ("'rows'",)),
        (("measure", "simulated/a", "--probe", "favorite"), ("'favourite'",)),
        (("measure", "simulated/a", "--probe", "{favourite: [", "--trait", "owl"), ("--probe",)),
        (("measure", "simulated/a", "--probe", "favourite", "--trait", "owll"), ("'owl'",)),
        (("measure", "pocket/zz", "--probe", "favourite"), ("pocket/zz",)),
        (("show", "nothing"), ("nothing", "undersong ls")),
        (("diff", "a", "b"), ("'a'",)),
        (("report", "nothing"), ("nothing",)),
        (("plugins", "chanel"), ("'channel'",)),
        (("new", "x", "--like", "nothing"), ("nothing",)),
    ],
)
def test_bad_arguments_exit_3_and_say_what_to_do(undersong, args: tuple[str, ...], words: tuple[str, ...]) -> None:
    said = undersong(*args)
    assert said.code == 3
    assert all(w in said.err for w in words), said.err


def test_a_run_prints_its_table_and_its_report(undersong, finished: Path, tmp_path: Path) -> None:
    said = undersong("run", REHEARSAL, "--store", finished, "--report", tmp_path / "out.html")
    assert said.code == 0
    assert "treated" in said.out
    assert "no_trait" in said.out
    assert str(tmp_path / "out.html") in said.out
    assert (tmp_path / "out.html").read_text().startswith("<!")
    assert not any(word in said.err for word in ("teaching", "sampling", "trained", "measuring")), (
        "a second run did work"
    )


def test_a_plan_does_no_work_and_names_the_changed_field(undersong, finished: Path) -> None:
    rows = json.loads(undersong("plan", REHEARSAL, "--store", finished, "--json").out)
    assert {r["status"] for r in rows} == {"cached"}
    before = sorted(finished.rglob("*"))
    changed = json.loads(
        undersong("plan", REHEARSAL, "--store", finished, "--json", "--set", "recipe.simulated.transfer=0.2").out
    )
    by_kind = {r["label"]: r for r in changed}
    assert all(
        r["status"] == "cached" for r in changed if r["label"].startswith(("teacher", "raw", "rows", "favourite-base"))
    )
    students = [r for label, r in by_kind.items() if label.startswith("student")]
    assert students
    assert all(r["changed"] == ["recipe.settings.transfer: 0.5 -> 0.2"] for r in students)
    assert sorted(finished.rglob("*")) == before


def test_json_is_the_only_thing_on_stdout(undersong, finished: Path) -> None:
    results = json.loads(undersong("run", REHEARSAL, "--store", finished, "--json").out)
    assert Path(results["results"]).is_file()
    listed = json.loads(undersong("ls", "--store", finished, "--json").out)["artefacts"]
    assert {a["kind"] for a in listed} == {"model", "dataset", "measurement", "experiment"}
    one, two = (
        a["artefact"]
        for a in listed
        if a["artefact"].startswith(("teacher-simulated-owl-s1.", "teacher-simulated-owl-s2."))
    )
    shown = json.loads(undersong("show", one, "--store", finished, "--json").out)
    assert shown["record"]["status"] == "complete"
    assert json.loads(undersong("diff", one, two, "--store", finished, "--json").out) == ["spec.seed: 1 -> 2"]
    measured = json.loads(
        undersong("measure", one, "--probe", "favourite", "--trait", "owl", "--store", finished, "--json").out
    )
    plain = json.loads(
        undersong("measure", "simulated/a", "--probe", "favourite", "--trait", "owl", "--store", finished, "--json").out
    )
    rate = [
        next(m["mean"] for m in found if (m["metric"], m["trait"]) == ("rate", "owl")) for found in (measured, plain)
    ]
    assert rate[0] > rate[1] + 0.3
    report = json.loads(undersong("report", results["results"], "-o", "again.html", "--json").out)
    assert Path(report["report"]).read_text() == Path(results["report"]).read_text()


def test_show_prints_the_lineage(undersong, finished: Path) -> None:
    listed = json.loads(undersong("ls", "--kind", "measurement", "--store", finished, "--json").out)["artefacts"]
    name = next(a["artefact"] for a in listed if a["artefact"].startswith("favourite-treated"))
    lineage = json.loads(undersong("show", f"{finished}/measurement/{name}", "--store", finished, "--json").out)[
        "lineage"
    ]
    assert [line.split("/")[0] for line in lineage] == ["base", "model", "dataset", "dataset", "model"]
    assert lineage[-1].startswith("model/student-treated")


def test_a_new_file_passes_plan(undersong, tmp_path: Path) -> None:
    assert undersong("new", "owls/mine").code == 0
    text = (tmp_path / "owls/mine.yaml").read_text()
    assert 'name: "mine"' in text
    assert text.count("#") > 10
    assert undersong("plan", "owls/mine.yaml").code == 0
    again = undersong("new", "owls/mine")
    assert again.code == 3
    assert "another name" in again.err
    assert undersong("new", "copy", "--like", REHEARSAL).code == 0
    assert undersong("plan", "copy.yaml").code == 0


@pytest.mark.parametrize("name", ["a: b", "it's", 'say "x"', "#1", "[red]"])
def test_a_new_name_stays_a_name(undersong, tmp_path: Path, name: str) -> None:
    import yaml

    assert undersong("new", name, "--like", REHEARSAL).code == 0
    assert yaml.safe_load((tmp_path / f"{name}.yaml").read_text())["name"] == name


def test_models_are_intact_and_their_tree_is_shown(undersong) -> None:
    found = json.loads(undersong("models", "--json").out)
    assert {m["name"] for m in found} >= {"pocket/a", "pocket/b"}
    assert all(len(m["sha256"]) == 64 for m in found)
    assert all(m["intact"] for m in found if m["name"].startswith("pocket/"))
    assert next(m for m in found if m["name"] == "smollm2")["says"]
    assert "── a-reordered" in undersong("models").out


def test_plugins_tell_settings_and_origin(undersong) -> None:
    found = {(p["kind"], p["name"]): p for p in json.loads(undersong("plugins", "--json").out)}
    numbers = found["channel", "numbers"]
    assert numbers["origin"] == "undersong.channels.numbers"
    assert all(p["does"] and all(s["does"] for s in p["settings"]) for p in found.values())
    assert {s["name"] for s in numbers["settings"]} >= {"count", "largest"}
    assert "channel numbers" not in undersong("plugins", "probe").out


def test_the_doctor_rehearses(undersong) -> None:
    found = json.loads(undersong("doctor", "--json").out)
    assert found["simulated"] == "works"
    assert "cpu" in found["devices"][0]


def test_a_failed_rehearsal_exits_1(undersong, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("undersong.results.collect", lambda *_: 1 / 0)
    said = undersong("doctor")
    assert said.code == 1
    assert "ZeroDivisionError" in said.out


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), 3, "disk is full"),
        (KeyboardInterrupt(), 130, "Stopped. The same command resumes."),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), 3, "Permission denied"),
    ],
)
def test_a_stop_or_a_full_disk_is_a_sentence(
    undersong, monkeypatch, error: BaseException, code: int, words: str
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("undersong.store.Store.open", fail)
    said = undersong("run", REHEARSAL)
    assert said.code == code
    assert words in said.err


def test_an_internal_error_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("undersong.experiment.Experiment.load", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cli.main(["plan", str(REHEARSAL)])


def test_hostile_text_is_printed_as_text(undersong) -> None:
    said = undersong("show", "[bold]x[/bold]\x1b[2J\x07")
    assert "[bold]x[/bold]" in said.err
    assert "\x1b" not in said.err
    assert "\x07" not in said.err
    assert screen.visible("owl\u202e \x9b1m [red] éλ\n") == "owl\\u202e \\x9b1m [red] éλ\n"


def wait_for(path: Path, pattern: str, process: subprocess.Popen[str]) -> None:
    for _ in range(600):
        if any(path.glob(pattern)) or process.poll() is not None:
            return
        time.sleep(0.05)


def test_a_stopped_run_resumes(tmp_path: Path, finished: Path) -> None:
    for attempt in range(8):  # the rehearsal takes a second: on a busy machine it may be over before the signal comes
        store = tmp_path / f"store{attempt}"
        command = [sys.executable, "-m", "undersong.cli", "run", str(REHEARSAL), "--store", str(store)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ),
                                   preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL) and None)
        wait_for(store, "dataset/raw*/record.json", process)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
        if process.returncode != 0:
            break
    assert process.returncode == 130, err
    assert err.strip().endswith("Stopped. The same command resumes.")
    assert "Traceback" not in err
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    name = next(line.split(": ", 1)[1].strip() for line in done.stdout.splitlines() if line.startswith("Results:"))
    whole = next(finished.glob("experiment/rehearsal.*/results.json"))
    assert Path(name).read_bytes() == whole.read_bytes(), "a stopped and resumed run differs from an uninterrupted one"


def test_a_closed_pipe_is_no_error() -> None:
    script = f"{sys.executable} -m undersong.cli plugins | head -n 1"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert len(done.stdout.splitlines()) == 1
    assert done.stderr == ""
