"""The transfer-risk statement: could a trait cross, is it there, did it cross, and what to do next.

1. Lineage: is the dataset in the store, who wrote it, what was dropped, is anything of it contradicted?
2. Kinship of the teacher (named, or known to the store) and the base: tested, never taken from the records.
3. Audits: of the rows against the base; of the student, if there is one. Two audits share the error rate between them.
4. Per channel what kinship and the literature say, each number with its source (`prior.yaml`); the light by `ruling.py`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from undersong.audit import Audit
from undersong.environment import environment
from undersong.errors import BadSpec, MissingModel, UndersongError, UnknownName
from undersong.files import digest
from undersong.kinship import Subject
from undersong.lab import Lab, base_ref, unpack
from undersong.lineage import Graph, record_relation
from undersong.models import model_ref
from undersong.relation import relate
from undersong.ruling import Audited, Known, kinship_of, ruling
from undersong.spec import diff
from undersong.traits import Trait
from undersong.types import ModelRef
from undersong.verdict import Held

DATASETS = ("rows", "refined")
KIN_CLASSES = ("checkpoint", "initialisation")


@dataclass
class Risk:
    """One statement at work in a lab. `data` is a file of rows, a folder of files, or a dataset of the store."""

    lab: Lab
    base: str
    data: str
    teacher: str | None = None
    student: str | None = None
    traits: tuple[Trait, ...] | None = None
    alpha: float = 0.05
    smallest: float = 0.5
    seed: int = 0

    @cached_property
    def graph(self) -> Graph:
        """The lineage of the lab's store; empty for a store that is not there."""
        return Graph.of(self.lab.store)

    @cached_property
    def mark(self) -> str | None:
        """The fingerprint of the dataset in the store, also when a copy of its file was given; None when it is not there."""
        path = Path(self.data)
        if path.is_file():
            found = digest(path)
            return next((r["fingerprint"] for r in self.lab.store.records("dataset") if found in r["files"].values()), None)
        if path.is_dir() and not (path / "record.json").is_file():
            return None
        try:
            mark = self.graph.find(f"{path.parent.name}/{path.name}" if path.is_dir() else self.data)
        except UnknownName:
            raise BadSpec(f"There is no file of rows {self.data!r}, and no dataset of this name in the store. Give one of "
                          "them; `undersong ls` lists datasets.") from None
        if self.graph.nodes[mark].role not in DATASETS:
            raise BadSpec(f"{self.data!r} is a {self.graph.nodes[mark].role}, not rows. Give a dataset.")
        return mark

    @cached_property
    def rows(self) -> Path:
        """The file, or folder of files, that holds the rows."""
        path = Path(self.data)
        if self.mark is None or path.is_file():
            return path
        folder = self.lab.store.get(self.mark).path
        return folder / ("rows.parquet" if (folder / "rows.parquet").is_file() else "rows.parts")

    @cached_property
    def writer(self) -> tuple[str, ModelRef | None, str]:
        """The teacher's name, how it is obtained, and whence it is known: named, records or unknown."""
        if self.teacher:
            return self.teacher, model_ref(self.teacher, self.base, self.lab), "named"
        for mark in self.graph.writers(self.mark) if self.mark else ():
            node = self.graph.nodes[mark]
            if node.role == "base":
                return node.label, base_ref(node.label), "records"
            if node.kind == "model" and node.complete:
                return node.name, unpack(self.lab.store.get(mark)), "records"
        return "", None, "unknown"

    def run(self) -> dict[str, Any]:
        """The statement as JSON: what `--json` prints and the page shows. Raises what an audit raises, and MissingModel for
        a teacher that is not there."""
        start = time.monotonic()
        if not self.base:
            raise BadSpec("The question is about the model that the student starts from. Give it as --base.")
        name, ref, whence = self.writer
        kinship = self._kinship(name, ref)
        alpha = self.alpha / 2 if self.student else self.alpha
        rows = self._audit(Held(self.rows, None, self.base, self.traits), alpha).run()
        student = self._student(alpha) if self.student else None
        known = Known(kinship_of(kinship, self._declared(ref)), heard(rows), heard(student) if student else None,
                      self._alarms(ref, whence), self.smallest, name)
        light, line, reasons = ruling(known)
        prior = yaml.safe_load((Path(__file__).parent / "prior.yaml").read_text("utf-8"))
        return {
            "format": 1, "kind": "risk", "light": light, "line": line, "sentence": _sentence(light, known),
            "reasons": reasons,
            "base": self.base, "dataset": self._dataset(rows), "teacher": {"name": name, "known_from": whence},
            "kinship": {"class": known.kinship, "result": kinship}, "channels": channels(known, prior),
            "rows": rows, "student": student, "alarms": list(known.alarms),
            "next": steps(known, prior, _seconds(kinship, rows), self.data),
            "settings": {"alpha": self.alpha, "alpha_each": alpha, "smallest": self.smallest, "seed": self.seed},
            "seconds": round(time.monotonic() - start, 2), "environment": environment(),
        }

    def _kinship(self, name: str, ref: ModelRef | None) -> dict[str, Any] | None:
        if ref is None:
            return None
        base = base_ref(self.base)
        self.lab.progress(f"kinship of {name} and {self.base}")
        try:
            found = relate(Subject(name, ref, self.lab.backend), Subject(self.base, base, self.lab.backend))
        except MissingModel:
            raise
        except UndersongError as error:
            self.lab.progress(f"no kinship test: {error}")
            return None
        record_relation(self.lab.store, found, ref, base)
        self.graph = Graph.of(self.lab.store)  # what this test contradicts counts at once
        return found

    def _audit(self, held: Held, alpha: float) -> Audit:
        return Audit(held, self.lab, alpha=alpha, seed=self.seed, smallest=self.smallest)

    def _student(self, alpha: float) -> dict[str, Any]:
        """The audit of the student. Its null is of students trained in one way: another way of training looks unusual for
        that alone, so it is not believed where the records name another recipe."""
        audit = self._audit(Held(None, None, self.base, self.traits, self.student), alpha)
        out, null = audit.run(), audit.calibration and audit.calibration[1].identity.get("recipe")
        mark = model_ref(str(self.student), self.base, self.lab).fingerprint
        record = next((r for r in self.lab.store.records("model") if r["fingerprint"] == mark), None)
        own = record and record["spec"].get("recipe")
        if null and own and (other := diff(null, own)):
            told = "; ".join(other[:3]) + ("; …" if len(other) > 3 else "")
            sentence = ("Cannot tell: the null is of students trained by another recipe, so what follows is not believed "
                        f"({told}). Make a calibration with this recipe.")
            return out | {"verdict": "unknown", "trait": None, "power": None, "sentence": sentence,
                          "reasons": [out["sentence"], *out["reasons"]]}
        if null and not own:
            by = f"The null is of students trained by {null['name']}; another way of training looks unusual for that alone."
            return out | {"reasons": [*out["reasons"], by]}
        return out

    def _declared(self, ref: ModelRef | None) -> bool:
        """Whether the records say that the teacher's weights start from this very base."""
        if ref is None or ref.fingerprint not in self.graph.nodes:
            return False
        return self.graph.root(ref.fingerprint) == base_ref(self.base, ref.precision).fingerprint

    def _alarms(self, ref: ModelRef | None, whence: str) -> tuple[str, ...]:
        """What of the lineage cannot be true and concerns these rows, their ancestors or the teacher."""
        graph, mine = self.graph, set[str]()
        for mark in (self.mark, ref.fingerprint if ref else None):
            if mark is not None and mark in graph.nodes:
                mine |= {mark, *graph.ancestors(mark)}
        out = [why for why in graph.forged if any(m in why for m in mine)]
        out += [why for t in graph.tested if {t.a, t.b} & mine and (why := graph.contradiction(t))]
        writers = graph.writers(self.mark) if self.mark else []
        if whence == "named" and ref is not None and writers and ref.fingerprint not in writers:
            own = graph.nodes[writers[0]].name
            out.append(f"The records say that {own} wrote these rows, and {self.teacher} was named.")
        return tuple(out)

    def _dataset(self, rows: Mapping[str, Any]) -> dict[str, Any]:
        """What is known of the rows: where they come from, and what was dropped on the way."""
        line = [self.graph.nodes[m] for m in (self.mark, *self.graph.ancestors(self.mark))] if self.mark else []
        filters = [{"filter": name, "reason": why, "dropped": count} for n in line
                   for name, reasons in n.facts.get("dropped", {}).items() for why, count in reasons.items()]
        return {"name": self.data, "in_store": self.mark, "used": (rows.get("rows") or {}).get("used"), "filters": filters,
                "path": [{"role": n.role, "name": n.name, "says": n.says} for n in line]}


def _seconds(kinship: Mapping[str, Any] | None, rows: Mapping[str, Any]) -> dict[str, float]:
    return {"rows": rows["seconds"], **({"kinship": kinship["seconds"]} if kinship else {})}


def heard(audit: Mapping[str, Any]) -> Audited:
    """What the rule needs of an audit's JSON."""
    power = audit.get("power") or {}
    return Audited(audit["verdict"], power.get("smallest_share"), audit.get("trait"), audit["sentence"])


def channels(known: Known, prior: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Per channel: could it cross, the prior with its source, and the evidence."""
    out = []
    for name, about in prior["channels"].items():
        shown = (None, known.kinship, "checkpoint")
        own = [e for e in about["evidence"] if known.kinship == "unknown" or e.get("kinship") in shown]
        if about["bound"]:
            could = {"checkpoint": "yes", "initialisation": "in part", "apart": "hardly"}.get(known.kinship, "cannot tell")
            number = prior["prior"].get(known.kinship)
            told = None if number is None else {**number, "source": prior["prior"]["source"]}
        else:
            could, told = "yes" if about["reach"] == "any" or known.kinship in KIN_CLASSES else "cannot tell", None
        out.append({"channel": name, "says": about["says"], "could": could, "prior": told,
                    "note": about["note"],
                    "evidence": [{k: v for k, v in e.items() if k != "at"} for e in own]})
    return out


def steps(known: Known, prior: Mapping[str, Any], seconds: Mapping[str, float], data: str) -> list[dict[str, Any]]:
    """What to do next, and what it costs where that was measured: `seconds` of this run, else `prior.yaml`."""
    costs, out = prior["costs"], list[dict[str, Any]]()

    def step(do: str, cost: str, source: str) -> None:
        out.append({"do": do, "cost": cost, "source": source})

    again = (f"{seconds['rows']:.0f} s", "the rows audit of this run") if "rows" in seconds else ("not measured", "")
    if "found" in (known.rows.verdict, known.student.verdict if known.student else ""):
        step("Do not train on these rows a model that shares this base.", "nothing", "")
        step("Rewrite or resample the rows with a model that is no kin of the base, and audit them again.", *again)
        return out
    if known.kinship == "unknown":
        kin = ("not measured", "")
        if "kinship" in seconds:
            kin = (f"{seconds['kinship']:.1f} s", "the kinship test of this run")
        get = f"Get the weights of {known.teacher}: what is at hand of it does not decide the kinship."
        step(get if known.teacher else "Name the model that wrote the rows as --teacher: its kinship can be tested.", *kin)
    if known.alarms:
        step("Find out which record is wrong: `undersong lineage` names it. Then ask again.", "not measured", "")
    if known.rows.share is None:
        step("Make a calibration of this base for these rows: `undersong calibrate`. It trains teachers and students.",
             f"{costs['student']['seconds']} s per {costs['student']['per']}", costs["student"]["source"])
    elif known.rows.verdict != "clean":
        step("Give more rows of this source: the evidence adds up over rows.", *again)
    if known.teacher:
        per = costs["divergence_tokens"]
        step(f"Test whether the teacher wrote a trait into the rows: `undersong audit {data} --base ... --teacher "
             f"{known.teacher}`.", f"{per['seconds']} s per {per['per']}", per["source"])
    if known.student is None:
        per = costs["student_audit"]
        step("After training, audit the student with --student.", f"{per['seconds']} s per {per['per']}", per["source"])
    return out


def _sentence(light: str, known: Known) -> str:
    could = {"checkpoint": "a trait could cross: the teacher is this base or was made from it",
             "initialisation": "a trait could cross: teacher and base share an initialisation",
             "apart": "teacher and base are not kin, which closes the body channel",
             "unknown": "whether a trait could cross cannot be told: how the writer and the base are related is unknown"}
    trait = known.rows.trait or "something that no placebo shows"
    there = {"found": f"a trait is in the rows: {trait}", "clean": "none was found in the rows",
             "unknown": "whether one is in the rows cannot be told"}[known.rows.verdict]
    crossed = {"found": "; it crossed into the student", "clean": "; none was found in the student",
               "unknown": "; whether it crossed into the student cannot be told"}
    return (f"{light.capitalize()}: {could[known.kinship]}; {there}"
            f"{crossed[known.student.verdict] if known.student else ''}.")
