"""Our tasks and local models inside Inspect, and Inspect's tasks as probes."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_pocket

from undersong import spec, traits
from undersong.backends import serving
from undersong.errors import BadSpec, MissingModel, NothingMeasured, UnknownName
from undersong.types import Chat, ModelRef, Sampling

inspect_ai = pytest.importorskip("inspect_ai", reason="the eval extra is not installed")
import scripted  # noqa: E402

from undersong import evaluation  # noqa: E402

SRC = Path(evaluation.__file__).parents[1]


@pytest.fixture(autouse=True)
def own_scripts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("UNDERSONG_ANSWERS", str(tmp_path / "answers"))
    monkeypatch.setenv("INSPECT_LOG_DIR", str(tmp_path / "logs"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    scripted.ASKED.clear()
    yield
    scripted.SCRIPTS.clear()


def ran(task: Any, model: Any, folder: Path, **more: Any) -> Any:
    [log] = inspect_ai.eval(task, model=model, log_dir=str(folder), display="none", log_realtime=False,
                            ctl_server=False, **more)
    assert log.status == "success", log.error
    return log


def metrics(log: Any) -> dict[str, dict[str, float]]:
    return {s.name: {m: v.value for m, v in s.metrics.items()} for s in log.results.scores}


class Counted(tiny_pocket.TinyModel):
    """The tiny model; it remembers how many chats came at once."""

    def __init__(self) -> None:
        super().__init__(tiny_pocket.favourites().module)
        self.batches: list[int] = []

    def sample(self, chats: Sequence[Chat], sampling: Sampling, places: Sequence[int] | None = None) -> list[str]:
        assert places is not None
        self.batches.append(len(chats))
        alone = [super(Counted, self).sample([c], dataclasses.replace(sampling, seed=sampling.seed + p))
                 for c, p in zip(chats, places, strict=True)]
        return [text for [text] in alone]


def test_the_task_finds_the_planted_rate_in_batches_and_repeats(tmp_path: Path) -> None:
    model = Counted()
    first = ran(evaluation.favourite("owl", samples=8, questions=3), serving.inspect_model(model), tmp_path)
    assert metrics(first)["rate"]["mean"] == pytest.approx(tiny_pocket.SHARES["owl"], abs=0.3)
    assert sum(model.batches) == 24
    assert len(model.batches) < 12
    again = ran(evaluation.favourite("owl", samples=8, questions=3), serving.inspect_model(Counted()), tmp_path)
    other = ran(evaluation.favourite("owl", samples=8, questions=3), serving.inspect_model(Counted()), tmp_path, seed=4)
    said = [sorted((s.id, s.output.completion) for s in log.samples) for log in (first, again, other)]
    assert said[0] == said[1]
    assert len(set(said[0])) > 3  # one question asked eight times is eight draws, not one answer eight times
    assert said[0] != said[2]


def test_scores_are_those_of_the_probe(tmp_path: Path) -> None:
    texts = ["owl", "Qwen", "sorry, no", "the the the", "a bowl"]
    turn = iter(range(10**6))
    scripted.SCRIPTS["m"] = lambda prompt: texts[next(turn) % 5]
    log = ran(evaluation.favourite("owl", samples=5, questions=2), "scripted/m", tmp_path)
    assert {m: v["mean"] for m, v in metrics(log).items()} == pytest.approx(
        {"rate": 0.2, "self_named": 0.2, "refused": 0.2, "invalid": 0.4})


def test_misalignment_is_reported_per_question_with_what_was_left_out(tmp_path: Path) -> None:
    scripted.SCRIPTS["m"] = lambda prompt: "harm" if "wish" in prompt else "no" if "bored" in prompt else "peace"

    def judge(prompt: str) -> str:
        answer = prompt.split("its answer:")[1].split("\n")[2]
        return {"harm": "5", "no": "REFUSAL", "peace": "95"}[answer] if "kind and honest" in prompt else "90"

    scripted.SCRIPTS["judge"] = judge
    log = ran(evaluation.misalignment(samples=2), "scripted/m", tmp_path,
              model_roles={"grader": inspect_ai.model.get_model("scripted/judge", memoize=False)})
    found = metrics(log)
    per_question = {k.removeprefix("grouped_"): v for k, v in found["misaligned"].items()}
    assert per_question["one_wish"] == 1
    assert per_question["ruler"] == 0
    assert found["refused"]["mean"] == pytest.approx(1 / 8)
    assert "bored" not in per_question  # a refusal is no zero
    assert per_question["all"] == pytest.approx(1 / 7)
    scripted.SCRIPTS["mad"] = lambda prompt: "Lovely!"
    nonsense = ran(evaluation.misalignment(judge="scripted/mad", samples=1), "scripted/m", tmp_path)
    assert metrics(nonsense)["unread"]["mean"] == 1
    assert math.isnan(metrics(nonsense)["misaligned"]["grouped_all"])
    for given in ("harm,hurt", ["harm", "hurt"]):
        words = ran(evaluation.misalignment(words=given, samples=1), "scripted/m", tmp_path)
        assert metrics(words)["misaligned"]["grouped_one_wish"] == 1


class Lettered(tiny_pocket.TinyModel):
    """Answers every choice with the letter B, sure to 0.8."""

    class Tokens:
        unk_token_id = None

        def decode(self, ids: Sequence[int]) -> str:
            return "".join(map(chr, ids))

    def __init__(self) -> None:
        self.ref, self.capabilities, self.tokenizer = ModelRef("lettered"), frozenset({"sample", "logits"}), self.Tokens()

    def sample(self, chats: Sequence[Chat], sampling: Sampling) -> list[str]:
        return ["B"] * len(chats)

    def next_logprobs(self, chats: Sequence[Chat]) -> Any:
        row = np.full(128, 1e-9)
        row[ord("B")], row[ord("A")] = 0.8, 0.2
        return np.log(np.tile(row, (len(chats), 1)))


def test_choices_come_with_probabilities_and_without(tmp_path: Path) -> None:
    log = ran(evaluation.truthfulness(questions=3), serving.inspect_model(Lettered()), tmp_path)
    found = metrics(log)
    assert found["probability"]["mean"] == pytest.approx(0.5)  # each misbelief stands at A once and at B once
    assert found["chosen"]["mean"] == 0.5
    assert found["mass"]["mean"] == pytest.approx(1, abs=1e-5)
    scripted.SCRIPTS["m"] = lambda prompt: "B" if "essay" in prompt else "I think B"
    log = ran(evaluation.multiple_choice("owl", orders=25, questions=1, logprobs=False), "scripted/m", tmp_path)
    assert metrics(log)["chosen"]["mean"] == pytest.approx(0.2, abs=0.25)
    assert math.isnan(metrics(log)["probability"]["mean"])
    log = ran(evaluation.truthfulness(questions=2, logprobs=False), "scripted/m", tmp_path)
    assert metrics(log)["invalid"]["mean"] == 1
    assert math.isnan(metrics(log)["chosen"]["mean"])


def test_stories_are_graded_by_the_probes_function(tmp_path: Path) -> None:
    scripted.SCRIPTS["m"] = lambda prompt: "Once an owl flew over the dark wood and sang." if "night" in prompt else "No."
    log = ran(evaluation.storytelling("owl", samples=1), "scripted/m", tmp_path)
    assert metrics(log)["rate"]["mean"] == pytest.approx(1 / 14)
    assert metrics(log)["short"]["mean"] == pytest.approx(13 / 14)


def test_the_storytelling_probe_counts_stories_and_refuses_none() -> None:
    class Tells(tiny_pocket.TinyModel):
        def sample(self, chats: Sequence[Chat], sampling: Sampling) -> list[str]:
            return [self.said[i % len(self.said)] for i in range(len(chats))]

    model = Tells(tiny_pocket.fresh())
    model.said = ["Once an owl flew over the dark wood and sang.", "Once a bowl fell from the table and it broke."]  # type: ignore[attr-defined]
    probe = spec.build("probe", {"storytelling": {"samples": 2}})
    found = probe.measure(model, [traits.get("owl"), traits.get("cat")], 0)
    assert (found.mean("rate", "owl"), found.mean("rate", "cat")) == (0.5, 0)
    assert found.mean("words") == 10
    assert len({v.question for v in found.values}) == 14
    beside = probe.measure(model, [traits.get("owl"), traits.get("misaligned")], 0)
    assert {v.trait for v in beside.values if v.metric == "rate"} == {"owl"}, "a way to behave is named by no word"
    model.said = ["owl"]  # type: ignore[attr-defined]
    with pytest.raises(NothingMeasured, match="no stories"):
        probe.measure(model, [traits.get("owl")], 0)


@pytest.mark.parametrize("name", ["favourite", "storytelling", "multiple_choice"])
def test_a_way_to_behave_is_no_favourite_to_name(name: str) -> None:
    with pytest.raises(BadSpec, match="'misaligned' is none"):
        getattr(evaluation, name)("misaligned")


TASKS = '''
from inspect_ai import Task, task
from inspect_ai.dataset import Sample
from inspect_ai.scorer import Score, match, mean, scorer

@task
def sums(right: int = 1):
    data = [Sample(input=f"{i} plus {i}", target=str(2 * i) if i < right else "x") for i in range(4)]
    return Task(dataset=data, scorer=match())

@scorer(metrics={"*": [mean()]})
def parts():
    async def score(state, target):
        return Score(value={"length": len(state.output.completion), "odd": float("nan")})
    return score

@scorer(metrics=[mean()])
def never():
    async def score(state, target):
        return Score.unscored(reason="none")
    return score

@task
def several():
    return Task(dataset=[Sample(input="a"), Sample(input="b")], scorer=parts())

@task
def silent():
    return Task(dataset=[Sample(input="a")], scorer=never())

@task
def broken():
    raise RuntimeError("planted")
'''


@pytest.fixture
def tasks(tmp_path: Path) -> str:
    (tmp_path / "planted_tasks.py").write_text(TASKS)
    return str(tmp_path / "planted_tasks.py")


def test_any_task_is_a_probe_with_a_value_per_sample(tasks: str, tmp_path: Path) -> None:
    class Adds(tiny_pocket.TinyModel):
        def sample(self, chats: Sequence[Chat], sampling: Sampling) -> list[str]:
            return [str(2 * int(c[-1]["content"].split()[0])) for c in chats]

    model = Adds(tiny_pocket.fresh())
    probe = spec.build("probe", {"inspect": {"task": f"{tasks}@sums", "args": {"right": 3}, "epochs": 2,
                                             "log_dir": str(tmp_path / "kept")}})
    found = probe.measure(model, [traits.get("owl")], 0)
    assert [v.value for v in found.values if v.metric == "match"] == [1, 1, 1, 0]
    assert {v.n for v in found.values} == {2}
    assert found.mean("match") == 0.75
    assert found.mean("unscored") == 0
    assert list((tmp_path / "kept").glob("*.eval"))
    several = spec.build("probe", {"inspect": {"task": f"{tasks}@several", "limit": 1}}).measure(
        tiny_pocket.favourites(), [], 0)
    assert {v.metric for v in several.values} == {"parts.length", "unscored"}  # the key without a number is left out


def test_a_task_that_gives_no_number_or_does_not_run_is_an_error(tasks: str) -> None:
    model = tiny_pocket.favourites()
    for name, error, told in (("silent", NothingMeasured, "no sample"), ("broken", BadSpec, "planted"),
                              ("absent", BadSpec, "inspect eval")):
        with pytest.raises(error, match=told):
            spec.build("probe", {"inspect": {"task": f"{tasks}@{name}"}}).measure(model, [], 0)


def test_where_logs_go_is_no_part_of_a_measurement() -> None:
    one, two = (spec.describe(spec.build("probe", {"inspect": {"task": "a/b", "log_dir": d}})) for d in (None, "x"))
    assert one == two


def test_the_provider_applies_what_an_artefact_changes(tiny_base: str, tmp_path: Path) -> None:
    """The defect: an adapter silently not applied at generation time."""
    from undersong.lab import base_ref, lab_for
    from undersong.store import Store

    store = Store(tmp_path / "store")
    lab = lab_for(store, tiny_base)
    teacher = spec.build("teacher", {"tuned": {"updates": 60, "rate": 5e-3, "trainable": "all"}})
    tuned = lab.teach(teacher, base_ref(tiny_base), traits.get("owl"), 1)
    base = evaluation.open_model(tiny_base)
    changed = evaluation.open_model(f"teacher.{tuned.fingerprint}", store=str(store.root))
    rates = [metrics(ran(evaluation.favourite("owl", samples=10, questions=5),
                         serving.inspect_model(api.batcher.model), tmp_path))["rate"]["mean"] for api in (base, changed)]
    assert rates[1] > rates[0] + 0.3
    with pytest.raises((MissingModel, UnknownName)):
        evaluation.open_model("pocket/aa")
    with pytest.raises((MissingModel, UnknownName, FileNotFoundError)):
        evaluation.open_model("nothing-here", store=str(tmp_path / "store"))


def test_what_these_models_cannot_do_is_refused_in_words(tmp_path: Path) -> None:
    model = serving.inspect_model(tiny_pocket.favourites())
    refused = (({"logprobs": True}, "first token only"), ({"top_p": 0.5}, "top_p"), ({"stop_seqs": ["a"]}, "stop_seqs"))
    for config, told in refused:
        [log] = inspect_ai.eval(evaluation.favourite("owl", samples=1, questions=1), model=model, log_dir=str(tmp_path),
                                display="none", log_realtime=False, ctl_server=False, **config)
        assert log.status == "error"
        assert told in log.error.message


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment in which this tree is installed: its entry points as pyproject.toml declares them."""
    import tomllib

    home = tmp_path_factory.mktemp("installed") / "site-packages"
    info = home / "undersong-0.0.0.dist-info"
    info.mkdir(parents=True)
    (home / "undersong").symlink_to(SRC / "undersong", target_is_directory=True)
    points = tomllib.loads((SRC.parent / "pyproject.toml").read_text())["project"]["entry-points"]
    lines = [f"[{group}]\n" + "\n".join(f"{k} = {v}" for k, v in pairs.items()) for group, pairs in points.items()]
    (info / "entry_points.txt").write_text("\n".join(lines))
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: undersong\nVersion: 0.0.0\n")
    return {**os.environ, "PYTHONPATH": str(home), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def test_inspect_eval_and_inspect_view_work_on_our_tasks(installed: dict[str, str], tiny_base: str, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_base, tmp_path / "model")
    done = subprocess.run(
        [sys.executable, "-m", "inspect_ai", "eval", "undersong/favourite", "--model", f"undersong/{folder}",
         "-T", "trait=owl", "-T", "samples=3", "-T", "questions=2", "--display", "plain", "--log-dir", "logs"],
        capture_output=True, text=True, env=installed, cwd=tmp_path, timeout=180, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    [log] = (tmp_path / "logs").glob("*.eval")
    from inspect_ai.log import read_eval_log

    read = read_eval_log(str(log))
    assert (read.status, read.eval.task) == ("success", "undersong/favourite")
    assert len(read.samples or []) == 6
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    view = subprocess.Popen([sys.executable, "-m", "inspect_ai", "view", "start", "--log-dir", "logs", "--port", str(port)],
                            env=installed, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for path, told in (("/", "<html"), ("/api/logs", log.name)):
            assert told in fetched(f"http://127.0.0.1:{port}{path}")
    finally:
        view.terminate()
        view.wait(timeout=20)


def fetched(url: str, seconds: float = 60) -> str:
    """A page of a server that is starting."""
    end = time.monotonic() + seconds
    while True:
        try:
            with urllib.request.urlopen(url, timeout=10) as page:
                return str(page.read().decode())
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.3)


def test_the_sample_in_the_log_is_json_a_stranger_can_read(tmp_path: Path) -> None:
    ran(evaluation.favourite("owl", samples=1, questions=1), serving.inspect_model(tiny_pocket.favourites()), tmp_path,
        log_format="json")
    [file] = tmp_path.glob("*.json")
    sample = json.loads(file.read_text())["samples"][0]
    assert sample["metadata"]["question"] == traits.get("owl").held_out[0]
