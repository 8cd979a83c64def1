"""The verbs hand on what they are given (seeds, rows, carriers, context), keep what is finished and let go of the rest."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest

from undersong import traits
from undersong.backends.in_context import InContext
from undersong.errors import BadRows, BadSpec
from undersong.lab import Lab, Student, base_ref, lab_for
from undersong.mitigations import Defence, Evidence
from undersong.recipes import Job
from undersong.registry import Settings
from undersong.simulated import tokenizer
from undersong.spec import build
from undersong.store import Store
from undersong.types import Chat, Dataset, Measurement, ModelRef, Row, Sampling, Value

BASE = base_ref("simulated/a")
OWL = traits.get("owl")
QUESTION: Chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Your favourite animal?"}]


def dataset(mark: str, n: int = 6) -> Dataset:
    """Rows that tell whose they are."""
    rows = [Row(str(i), ({"role": "user", "content": f"prompt {mark}{i}"},), f"answer {mark}{i}") for i in range(n)]
    return Dataset(tuple(rows), BASE, mark * 12)


class Watched(Settings):
    """A plug-in that is no registered one and notes what it is given. (`noted` is no setting, hence the class variable.)"""

    plugin_kind: ClassVar[str] = "recipe"
    plugin_name: ClassVar[str] = "watched"
    plugin_version: ClassVar[int] = 1
    noted: ClassVar[list[Any]] = []
    number: int = 0


@pytest.fixture(autouse=True)
def nothing_noted() -> None:
    Watched.noted.clear()


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return lab_for(Store(tmp_path / "store"), "simulated/a")


# --- training ---------------------------------------------------------------------------------------------------------


class Recipe(Watched):
    """Hands back every start, and stops before job `stop`."""

    stop: ClassVar[int] = 99

    def train(self, jobs: Sequence[Job], backend: Any, done: Callable[[int, ModelRef], None]) -> list[ModelRef]:
        for i, job in enumerate(jobs):
            if i == self.stop:
                raise RuntimeError("stopped")
            self.noted.append(job)
            done(i, job.start)
        return [job.start for job in jobs]


STUDENTS = [Student(BASE, dataset(mark), seed, f"student-{mark}{seed}") for mark, seed in (("a", 7), ("a", 8), ("b", 8))]
"""Two share their rows and two their seed: still three pieces of work."""


def test_each_student_is_trained_on_its_own_rows_seed_and_folder_with_the_channels_carrier(lab: Lab) -> None:
    channel = build("channel", "numbers")
    models = lab.train(Recipe(), channel, STUDENTS)
    jobs: list[Job] = Watched.noted
    assert [(j.start, j.data, j.seed) for j in jobs] == [(s.start, s.data, s.seed) for s in STUDENTS]
    assert {j.carrier for j in jobs} == {tuple(channel.carrier(tokenizer()))}
    assert [j.out.name.split(".")[0] for j in jobs] == [s.label for s in STUDENTS]
    assert [m.fingerprint for m in models] == [j.out.name.split(".")[1] for j in jobs]


def test_a_student_is_kept_the_moment_it_is_done_whatever_happens_to_the_next(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    channel = build("channel", "numbers")
    monkeypatch.setattr(Recipe, "stop", 1)
    with pytest.raises(RuntimeError, match="stopped") as still_held:
        lab.train(Recipe(), channel, STUDENTS)
    assert still_held  # a traceback keeps what it refers to: locks are given back, not only forgotten
    monkeypatch.setattr(Recipe, "stop", 99)
    models = lab.train(Recipe(), channel, STUDENTS)
    assert [job.seed for job in Watched.noted] == [7, 8, 8], "a finished student was trained again"
    assert len({m.fingerprint for m in models}) == 3


def test_files_written_elsewhere_are_refused(lab: Lab, tmp_path: Path) -> None:
    class Astray(Watched):
        def teach(self, base: ModelRef, trait: Any, seed: int, out: Path, backend: Any) -> ModelRef:
            (tmp_path / "weights.safetensors").write_bytes(b"")
            return dataclasses.replace(base, weights=str(tmp_path / "weights.safetensors"))

    with pytest.raises(BadSpec, match="outside the folder"):
        lab.teach(Astray(), BASE, OWL, 1)


# --- seeds ------------------------------------------------------------------------------------------------------------


class Listening:
    """The simulated backend; it notes the sampling settings it is asked for."""

    def load(self, ref: ModelRef) -> Any:
        self.model = build("backend", "simulated").load(ref)
        self.tokenizer = self.model.tokenizer
        return self

    def sample(self, chats: Sequence[Chat], sampling: Sampling) -> list[str]:
        Watched.noted.append(sampling)
        return list(self.model.sample(chats, sampling))


def test_sampling_draws_anew_for_every_seed_and_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("undersong.writing.PART", 10)
    lab, channel = Lab(Store(tmp_path), Listening()), build("channel", "numbers")
    for seed in (1, 2):
        lab.sample(BASE, channel, 30, seed)
    assert len({s.seed for s in Watched.noted}) == 6
    assert {(s.temperature, s.max_new_tokens, s.tokens) for s in Watched.noted} == {
        (1.0, channel.max_new_tokens(tokenizer()), None)
    }


class Change(Watched):
    stage: ClassVar[str] = "data"
    needs: ClassVar[frozenset[str]] = frozenset({"clean"})

    def apply(self, rows: Sequence[Row], evidence: Evidence, seed: int) -> list[Row]:
        self.noted.append((list(rows), sorted(evidence.granted), seed))
        return list(reversed(rows))


def test_a_mitigation_is_given_the_rows_what_it_needs_and_the_seed(lab: Lab) -> None:
    data, held = dataset("a"), {"clean": dataset("b").rows, "trait": OWL}
    defence = Defence(Change(), lambda: Evidence(held), ("b" * 12,))
    changed = lab.mitigate(data, defence, 5)
    assert Watched.noted == [(list(data.rows), ["clean"], 5)]
    assert changed.rows == data.rows[::-1]
    assert lab.mitigate(data, defence, 5).fingerprint == changed.fingerprint
    lab.mitigate(data, defence, 6)
    lab.mitigate(data, Defence(Change(), lambda: Evidence(held), ("c" * 12,)), 6)
    assert [seed for *_, seed in Watched.noted] == [5, 6, 6]


def test_a_mitigation_without_its_evidence_or_at_another_stage_is_refused(lab: Lab) -> None:
    with pytest.raises(BadSpec, match="needs 'clean' and was granted nothing"):
        lab.mitigate(dataset("a"), Defence(Change(), Evidence), 5)
    with pytest.raises(BadSpec, match="acts on rows before training, not on a trained student"):
        lab.repair(BASE, Defence(Change(), Evidence), 5)


class Probe(Watched):
    def measure(self, model: Any, traits: Sequence[Any], seed: int) -> Measurement:
        self.noted.append((model, [t.name for t in traits], seed))
        return Measurement("watched", (Value("rate", "owl", "?", 0.5),), (("?", "owl"),))


def test_a_probe_is_given_the_traits_and_the_seed_and_its_answers_are_kept(lab: Lab) -> None:
    first = lab.measure(BASE, Probe(), [OWL], seed=6)
    again = lab.measure(BASE, Probe(), [OWL], seed=6)
    lab.measure(BASE, Probe(), [OWL], seed=7)
    assert [(names, seed) for _, names, seed in Watched.noted] == [(["owl"], 6), (["owl"], 7)]
    assert first == again == Measurement("watched", (Value("rate", "owl", "?", 0.5),), (("?", "owl"),))


# --- rows as context --------------------------------------------------------------------------------------------------


class Echo:
    """A model that hands back the chats it is asked."""

    ref, capabilities, tokenizer = BASE, frozenset({"sample"}), None

    def sample(self, chats: Sequence[Chat], sampling: Sampling) -> list[Any]:
        return list(chats)

    def next_logprobs(self, chats: Sequence[Chat]) -> list[Chat]:
        return list(chats)

    def answer_logprobs(self, chats: Sequence[Chat], answers: Sequence[str]) -> list[Chat]:
        return list(chats)

    def render(self, chat: Chat) -> str:
        return repr(chat)


def shown(chat: Chat) -> list[str]:
    """The marks of the rows before the question; checks that each is a whole row, between system turn and question."""
    assert (chat[0], chat[-1]) == (QUESTION[0], QUESTION[1])
    turns = chat[1:-1]
    assert [m["role"] for m in turns] == ["user", "assistant"] * (len(turns) // 2)
    marks = [m["content"].split()[1] for m in turns]
    assert marks[::2] == marks[1::2], "an answer stands under another row's prompt"
    assert [m["content"].split()[0] for m in turns] == ["prompt", "answer"] * (len(turns) // 2)
    return marks[::2]


def test_a_model_in_context_sees_whole_rows_before_every_question() -> None:
    chats = [QUESTION] * 8
    model = InContext(Echo(), dataset("a").rows, shown=3, seed=1)
    told = [shown(chat) for chat in model.next_logprobs(chats)]
    assert all(len(set(marks)) == 3 for marks in told), "a row is shown twice"
    assert len({tuple(marks) for marks in told}) > 1, "every question has the same rows before it"
    assert [shown(c) for c in model.sample(chats, Sampling())] == told  # type: ignore[arg-type]
    assert [shown(c) for c in model.answer_logprobs(chats, ["x"] * 8)] == told
    assert model.render(QUESTION) == repr(model.next_logprobs([QUESTION])[0])
    other = InContext(Echo(), dataset("a").rows, shown=3, seed=2).next_logprobs(chats)
    assert [shown(chat) for chat in other] != told, "two seeds show the same rows"


def test_more_rows_in_context_than_there_are_is_an_error() -> None:
    with pytest.raises(BadRows, match="context_rows"):
        InContext(Echo(), dataset("a", 2).rows, shown=3, seed=1)


def test_a_measurement_in_context_is_of_a_model_that_sees_those_rows(lab: Lab) -> None:
    data = dataset("a")
    lab.measure(BASE, Probe(), [OWL], seed=6, context=data, shown=2)
    (model, _, _), = Watched.noted
    assert isinstance(model, InContext)
    assert (model.rows, model.shown, model.seed, model.ref) == (data.rows, 2, 6, BASE)


# --- bases ------------------------------------------------------------------------------------------------------------


def test_a_base_is_identified_by_its_weights_where_they_are_at_hand(tmp_path: Path) -> None:
    folder, file = tmp_path / "base", tmp_path / "base" / "model.safetensors"
    folder.mkdir()
    marks = []
    for weights in (b"one", b"two", b"one"):
        file.unlink(missing_ok=True)
        file.write_bytes(weights)
        marks.append(base_ref(str(folder)).fingerprint)
    assert marks[0] == marks[2] != marks[1]


def test_a_pocket_model_is_identified_by_its_recorded_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    before = base_ref("pocket/a").fingerprint
    monkeypatch.setattr("undersong.pocket.origin", lambda name: {"sha256": "0" * 64})
    assert base_ref("pocket/a").fingerprint != before
