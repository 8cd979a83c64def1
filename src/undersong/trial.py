"""A trial of guards on somebody's rows: students trained plainly and under each guard, read before and after.

    Trial(Given(Path("rows.jsonl"), "pocket/a", guards), lab).run()

1. Read the rows (`row_files`), hold a tenth of the different ones out, and fix what is watched (`readings`).
2. Grant each guard what it declares, or say which option supplies what is missing, before anything is trained.
3. Train: plainly, and under each guard, at each seed. A guard of the data stage changes the rows first, one of the model
   stage repairs the plain student.
4. Compare. The training run is the unit: one seed gives no interval, and the sentence says so.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from undersong import comparison, pocket, registry
from undersong.backends.several import Several
from undersong.backends.tokens import token_ids
from undersong.channels import belonging
from undersong.detectors import PLACEBO
from undersong.environment import environment
from undersong.errors import BadRows, BadSpec
from undersong.explanation import calibrated
from undersong.files import digest
from undersong.lab import Lab, Student, base_ref
from undersong.mitigations import Defence, Evidence
from undersong.models import model_ref
from undersong.readings import Watch, as_dict
from undersong.row_files import RowFile
from undersong.spec import build, describe, fingerprint
from undersong.traits import Trait
from undersong.types import Dataset, ModelRef, Row

MOST = 20_000
"""Rows that are trained on, at most: drawn evenly from a larger file."""
FEWEST = 20
"""With fewer rows there is nothing to hold out."""
HELD = 0.1
"""Share of the different rows that is held out for the carrier fit."""
FOREIGN = 0.5
"""Rows of which a larger share of tokens is unknown to the base are refused."""
KIN = 0.8
"""Share of rows that must belong to a channel for it to be theirs."""
PLACEBOS, RIVALS = 8, 4
"""Students and teachers of a calibration that are granted, at most."""
POCKET: dict[str, Any] = {
    "steps": 150, "batch": 32, "rate": 1e-2, "warmup": 20, "clip": 0.3, "lora": {"rank": 4, "alpha": 8},
}
"""How students of pocket models learn: the recipe of the shipped experiment and calibration."""
EPOCHS = 5
"""Passes over the rows that the default recipe makes at most."""
HOW = {
    "trait": "Name the trait that is feared as --trait.",
    "clean": "Give clean rows of the same kind as --clean.",
    "teacher": "Give the model that wrote the rows as --teacher.",
    "other": "Give a model of another initialisation as --other.",
    "rivals": "They come from a calibration of this base: make one with `undersong calibrate`.",
    "placebos": "Give clean rows as --clean, of which one is trained; a calibration serves only if its recipe is this one.",
    "channel": "These rows belong to no channel that is known, so take another guard.",
}
"""What to do when something is missing that a guard needs."""


@dataclass(frozen=True)
class Given:
    """What somebody holds and asks for."""

    data: Path
    base: str
    guards: Sequence[Any]
    trait: Trait | None = None
    clean: Path | None = None
    other: str | None = None
    teacher: str | None = None
    recipe: Any = None
    seeds: tuple[int, ...] = (1,)
    plain: bool = True


@dataclass
class Trial:
    """One trial at work in a lab."""

    given: Given
    lab: Lab
    notes: list[str] = field(default_factory=list)
    """What a reader should know besides the numbers, in sentences."""

    @cached_property
    def base(self) -> ModelRef:
        """The model students start from."""
        return base_ref(self.given.base)

    @cached_property
    def file(self) -> RowFile:
        """The rows on disk."""
        return RowFile(self.given.data)

    @cached_property
    def parts(self) -> tuple[Dataset, Dataset]:
        """Rows to learn from and rows held out; what repeats another row stands on one side only.

        Raises BadRows for too few rows, and for rows that the base cannot write.
        """
        self.lab.progress(f"reading {self.file.path.name}")
        total = self.file.count().rows
        rows = self.file.sample(MOST)
        if total > len(rows):
            self.notes.append(f"{len(rows):,} of {total:,} rows were drawn.")
        self._readable(rows)
        alike: dict[Any, list[int]] = {}
        for i, row in enumerate(rows):
            alike.setdefault((row.completion, *(turn["content"] for turn in row.chat)), []).append(i)
        if len(alike) < FEWEST:
            raise BadRows(f"There are {len(alike)} different rows, and with fewer than {FEWEST} none can be held out. Give "
                          "more rows.")
        groups = list(alike.values())
        order = np.random.default_rng([0, 31]).permutation(len(groups))
        out = {i for g in order[: max(1, round(HELD * len(groups)))] for i in groups[g]}
        mark = fingerprint({"files": [str(digest(file)["sha256"]) for file in self.file.files]})
        whole = Dataset(tuple(rows), self._writer, mark)
        learnt, held = [row for i, row in enumerate(rows) if i not in out], [row for i, row in enumerate(rows) if i in out]
        return self.lab.keep(learnt, whole, "learnt"), self.lab.keep(held, whole, "held-out")

    def _readable(self, rows: Sequence[Row]) -> None:
        tokenizer = self.lab.backend.load(self.base).tokenizer
        unknown = getattr(tokenizer, "unk_token_id", None)
        if unknown is None:
            return
        some = token_ids(tokenizer, [row.completion for row in rows[:500]])
        share = sum(int(i == unknown) for ids in some for i in ids) / max(1, sum(map(len, some)))
        if share > FOREIGN:
            raise BadRows(f"{self.given.base} knows {1 - share:.0%} of the tokens of these answers, so a student of it "
                          "learns nothing of them. Choose a base that can write them.")
        if share > 0.01:
            self.notes.append(f"{share:.0%} of the tokens of the answers are unknown to the base.")

    @cached_property
    def _writer(self) -> ModelRef | None:
        return model_ref(self.given.teacher, self.given.base, self.lab) if self.given.teacher else None

    @cached_property
    def known(self) -> Any:
        """The calibration of this base that is at hand: its identity and its exemplars; None without one."""
        return calibrated(self.lab, self.base)

    @cached_property
    def recipe(self) -> Any:
        """The recipe: the one that was asked for, or what fits the base."""
        if self.given.recipe is not None:
            return build("recipe", self.given.recipe, "--recipe")
        if not self.given.base.startswith(pocket.PREFIX):
            return build("recipe", "sft")
        few = round(EPOCHS * len(self.parts[0].rows) / POCKET["batch"])  # few rows are not gone through again and again
        return build("recipe", {"distill": POCKET | {"steps": min(POCKET["steps"], max(few, 1))}})

    @cached_property
    def channel(self) -> tuple[Any, bool]:
        """The channel that most of these rows belong to, and whether any is theirs; `prose` stands in where none is."""
        rows = self.parts[0].rows
        tried = [self.known[0]["channel"]] if self.known else []
        tried += [describe(cls()) for cls in (registry.get("channel", name) for name in registry.names("channel"))
                  if not any(f.is_required() for f in cls.model_fields.values())]
        shares = [belonging(rows, one) for one in tried]
        best = int(np.argmax(shares))
        if shares[best] >= KIN:
            return build("channel", {tried[best]["name"]: tried[best]["settings"]}), True
        return build("channel", "prose"), False

    @cached_property
    def clean(self) -> Dataset | None:
        """Clean rows, at most as many as are trained on."""
        if self.given.clean is None:
            return None
        file = RowFile(self.given.clean)
        mark = fingerprint({"files": [str(digest(one)["sha256"]) for one in file.files]})
        rows = file.sample(len(self.parts[0].rows))
        return self.lab.keep(rows, Dataset(tuple(rows), None, mark), "clean")

    @cached_property
    def watch(self) -> Watch:
        """What is read off every model."""
        return Watch(self.lab, self.base, self.parts[1], self.given.trait)

    @cached_property
    def placebos(self) -> tuple[ModelRef, ...]:
        """Students of the calibration without a trait, where they learnt by this trial's recipe."""
        if not self.known or self.known[0]["recipe"] != describe(self.recipe):
            return ()
        return tuple(self.known[1].student_refs.get(PLACEBO, ()))[:PLACEBOS]

    # --- what guards are granted --------------------------------------------------------------------------------------

    def held(self, guard: Any) -> set[str]:
        """The tokens that are at hand for a guard. Raises BadSpec when it needs another one, saying how to supply it."""
        g = self.given
        rivals = self._rivals()
        there = {"base", "train"} | {token for token, has in (
            ("channel", self.channel[1]), ("trait", g.trait), ("clean", g.clean), ("teacher", g.teacher), ("other", g.other),
            ("placebos", self.placebos or g.clean), ("rivals", rivals)) if has}
        if missing := sorted(guard.needs - there):
            raise BadSpec(f"The guard {guard.plugin_name} needs {missing[0]!r}. {HOW[missing[0]]}")
        may = set(getattr(guard, "may_use", ()))
        if not self.placebos:
            may -= {"placebos"}  # a training of its own is worth it only where one is needed
        return there & (set(guard.needs) | may)

    def _rivals(self) -> tuple[ModelRef, ...]:
        if not self.known:
            return ()
        own = self.given.trait.name if self.given.trait else ""
        return tuple(refs[0] for name, refs in self.known[1].teacher_refs.items() if name not in (PLACEBO, own))[:RIVALS]

    def _benign(self, seed: int) -> tuple[ModelRef, ...]:
        """Placebo students: the calibration's, else one of the clean rows."""
        if self.placebos or self.clean is None:
            return self.placebos
        benign = Student(self.base, self.clean, seed, f"placebo-s{seed}")
        return tuple(self.lab.train(self.recipe, self.channel[0], [benign]))

    def defence(self, guard: Any, seed: int) -> Defence:
        """A guard with what it is granted."""
        tokens, g = self.held(guard), self.given
        load = self.lab.backend.load
        other = model_ref(g.other, None, self.lab) if g.other else None
        benign = self._benign(seed) if "placebos" in tokens else ()
        rivals = self._rivals()
        marks = {"clean": (self.clean.fingerprint,) if self.clean else (), "other": (other.fingerprint,) if other else (),
                 "teacher": (self._writer.fingerprint,) if self._writer else (),
                 "placebos": tuple(ref.fingerprint for ref in benign), "rivals": tuple(ref.fingerprint for ref in rivals)}
        told = {"trait": as_dict(g.trait), "channel": describe(self.channel[0]), "train": describe(self.recipe)}
        made: dict[str, Any] = {
            "base": lambda: load(self.base), "channel": lambda: self.channel[0], "trait": lambda: g.trait,
            "clean": lambda: self.clean.rows if self.clean else (), "teacher": lambda: load(self._writer),
            "rivals": lambda: Several(rivals, self.lab.backend), "other": lambda: load(other),
            "placebos": lambda: Several(benign, self.lab.backend), "train": lambda: self._trains(seed),
        }
        return Defence(guard, lambda: Evidence({token: made[token]() for token in sorted(tokens)}),
                       tuple(mark for token in sorted(tokens) for mark in marks.get(token, ())),
                       {("recipe" if token == "train" else token): told[token] for token in sorted(tokens & set(told))})

    def _trains(self, own: int) -> Any:
        def train(rows: Sequence[Row], start: ModelRef | None = None, seed: int | None = None) -> Any:
            whole = self.parts[0]
            data = whole if tuple(rows) == whole.rows else self.lab.keep(rows, whole)
            asked = Student(start or self.base, data, own if seed is None else seed, "helper")
            [ref] = self.lab.train(self.recipe, self.channel[0], [asked])
            return self.lab.backend.load(ref)

        return train

    # --- students -----------------------------------------------------------------------------------------------------

    def student(self, seed: int, guard: Any = None, name: str = "plain") -> dict[str, Any]:
        """One run: its reading, `seconds` of making it, and what was done to rows or student."""
        begun, data, start = 0.0, self.parts[0], self.base
        out: dict[str, Any] = {"seed": seed, "rows": len(data.rows), "unchanged": len(data.rows)}
        stage = guard.stage if guard else ""
        defence = self.defence(guard, seed) if guard else None
        if stage == "data" and defence:
            data = self.lab.mitigate(data, defence, seed, f"rows-{name}-s{seed}")
            told = self.lab.store.get(data.fingerprint).record
            begun += float(told["summary"]["seconds"])
            out |= {"rows": len(data.rows), "unchanged": told["summary"]["unchanged"]}
        if getattr(guard, "elsewhere", False):
            start = model_ref(str(self.given.other), None, self.lab)
            out["start"] = self.watch.of(start, "other")
        label = f"student-{name if stage != 'model' else 'plain'}-s{seed}"
        [ref] = self.lab.train(self.recipe, self.channel[0],
                               [Student(start, data, seed, label, defence if stage == "training" else None)])
        begun += self._seconds(ref)
        if stage == "training":
            out["told"] = self._said(ref)
        if stage == "model" and defence:
            ref = self.lab.repair(ref, defence, seed, f"repaired-{name}-s{seed}")
            begun += self._seconds(ref)
            out["told"] = self.lab.store.get(ref.fingerprint).summary.get("told", {})
        return out | {"model": ref.fingerprint, "seconds": round(begun, 2), **self.watch.of(ref, f"{name}-s{seed}", start)}

    def _open(self, focus: str | None) -> list[str]:
        """A sentence when the rows name what is followed: then it does not cross unseen."""
        if focus is None:
            return []
        names = self.given.trait.words if self.given.trait else (focus,)
        found = re.compile(rf"(?<![^\W_])(?:{'|'.join(map(re.escape, names))})(?![^\W_])", re.IGNORECASE)
        rows = self.parts[0].rows
        count = sum(any(found.search(text) for text in (row.completion, *(m["content"] for m in row.chat))) for row in rows)
        return [f"{count:,} of {len(rows):,} rows name {names[0]!r}: what they say openly is learnt from words, and a "
                "filter finds it."] if count else []

    def _seconds(self, ref: ModelRef) -> float:
        return float(self.lab.store.get(ref.fingerprint).record["provenance"]["seconds"])

    def _said(self, ref: ModelRef) -> dict[str, Any]:
        """What the guard says of itself in training.json."""
        artefact = self.lab.store.get(ref.fingerprint)
        return dict(artefact.read_json("training").get("guard", {})) if (artefact.path / "training.json").is_file() else {}

    def run(self) -> dict[str, Any]:
        """The trial as JSON: what `--json` prints and the page shows (`reports/trial.py`).

        Raises BadSpec for a guard without what it needs, BadRows for unusable rows, TrainingFailed for a training that
        cannot go on or learnt nothing, with the path of what is kept of it.
        """
        begun, g = time.monotonic(), self.given
        names = named(g.guards)
        learnt, held = self.parts
        tokens = {name: sorted(self.held(guard)) for name, guard in names.items()}
        plain = g.plain or any(guard.stage == "model" for guard in g.guards)
        base = {"seed": None, "model": self.base.fingerprint, **self.watch.of(self.base, "base")}
        arms: dict[str, list[dict[str, Any]]] = {"base": [base]}
        arms |= {name: [] for name in [*(["plain"] if plain else []), *names]}
        # guarded trainings first: settings that cannot work are named before the plain training costs its time
        for name in sorted(arms, key=lambda n: n == "plain" or getattr(names.get(n), "stage", "") == "model"):
            if name != "base":
                arms[name] = [self.student(seed, names.get(name), name) for seed in g.seeds]
        usual = [self.watch.of(ref, f"placebo-{i}", able=False) for i, ref in enumerate(self._benign(g.seeds[0]))]
        tally = self.file.tally
        found: dict[str, Any] = {
            "format": 1, "kind": "trial", "base": g.base, "trait": g.trait.name if g.trait else None, "seeds": list(g.seeds),
            "data": {"name": self.file.path.name, "rows": tally.rows, "learnt": len(learnt.rows), "held": len(held.rows),
                     "says": tally.sentence(), "channel": describe(self.channel[0])["name"] if self.channel[1] else None},
            "guards": [{"name": name, "stage": guard.stage, "granted": tokens[name],
                        "settings": describe(guard)["settings"]} for name, guard in names.items()],
            "recipe": describe(self.recipe), "arms": [{"name": name, "runs": runs} for name, runs in arms.items()],
        }
        found |= comparison.compare(arms, list(names), g.trait.name if self.watch.named and g.trait else None, usual)
        same = [name for name, guard in names.items()
                if guard.stage == "data" and all(run["unchanged"] == run["rows"] == len(learnt.rows) for run in arms[name])]
        untouched = [f"{name} changed none of these rows." for name in same]
        found["notes"] = [*self.notes, *untouched, *self._open(found["focus"]),
                          *comparison.cannot(found, self.watch.able, bool(usual), g.trait)]
        return found | {"seconds": round(time.monotonic() - begun, 2), "environment": environment()}


def named(guards: Sequence[Any]) -> dict[str, Any]:
    """Guards by the names of their arms. Raises BadSpec for none, and for one that is given twice."""
    if not guards:
        known = ", ".join(registry.names("mitigation"))
        raise BadSpec(f"There is no guard. Give one as --guard: {known}.")
    marks = [fingerprint(describe(guard)) for guard in guards]
    if len(set(marks)) < len(marks):
        raise BadSpec("The same guard is given twice. Give each one once, or with other settings.")
    out: dict[str, Any] = {}
    for guard in guards:
        count = sum(one.plugin_name == guard.plugin_name for one in out.values())
        out[f"{guard.plugin_name}-{count + 1}" if count else guard.plugin_name] = guard
    return out
