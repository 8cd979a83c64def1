"""The audit: what an auditor holds, every detector that it suffices for, and one verdict with its reasons.

1. Read: the rows (`row_files`), a clean reference, the base, traits, a student, a teacher: whatever there is.
2. Find the calibration of this base, template and carrier. One made for another is refused, and the reason is told.
3. Run every detector whose evidence is there; each finding is an artefact, so a stopped audit goes on where it was.
4. Hold each family of detectors (rows, student, teacher) against its null by max-T, the families by Holm: `verdict.py`.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from undersong import bases, exemplars, registry, traits
from undersong.calibration import template
from undersong.channels import belonging
from undersong.detectors import PLACEBO, Evidence, Exemplars, drawn, family, spelled
from undersong.environment import environment
from undersong.errors import BadRows, BadSpec, MissingExtra, NothingMeasured, ServerFailed
from undersong.files import digest
from undersong.lab import Lab, base_ref
from undersong.models import files_of, model_ref
from undersong.nulls import Case, Null, Table
from undersong.row_files import RowFile
from undersong.spec import fingerprint
from undersong.types import Row
from undersong.verdict import Heard, Held, Ran, conclude

MOST = 4000
"""Detectors that read single rows get at most so many, drawn evenly."""
BELONGS = 0.8
"""The share of rows that must belong to a carrier before its null is believed."""
FAMILIAR = 0.5
"""The share of rows whose prompts must be worded as those of the null."""
CANNOT = (BadRows, BadSpec, NothingMeasured, MissingExtra, ServerFailed)
"""What stops one detector and no audit: the others go on, and the reason is told."""


@dataclass
class Audit:
    """One audit at work in a lab. `budget` is in seconds: no detector begins after it; 0 sets none."""

    held: Held
    lab: Lab
    detectors: Sequence[Any] = ()
    alpha: float = 0.05
    budget: float = 0.0
    seed: int = 0
    smallest: float = 0.5
    """`clean` is said only if this share of planted rows would have been seen."""
    memo: dict[Any, Any] = field(default_factory=dict, repr=False)
    """Pure results that detectors keep; audits that share it learn their exemplars once."""
    refused: list[str] = field(default_factory=list)
    """Why a calibration was not believed, in sentences."""

    @cached_property
    def file(self) -> RowFile | None:
        """The suspected rows on disk."""
        return RowFile(self.held.rows) if self.held.rows else None

    @cached_property
    def rows(self) -> tuple[Row, ...]:
        """The drawn rows that detectors of single rows read."""
        return tuple(drawn((self.file,), MOST, self.seed)) if self.file is not None else ()

    @cached_property
    def base(self) -> Any:
        """The base, loaded, or None."""
        return self.lab.backend.load(base_ref(self.held.base)) if self.held.base else None

    @cached_property
    def calibration(self) -> tuple[Path, Null] | None:
        """The folder and null of the calibration that fits, or None; `refused` then says why."""
        if self.base is None:
            return None
        about = {"base": bases.identity(str(self.held.base)), "revision": bases.revision(str(self.held.base))}
        for folder in exemplars.folders(self.lab.store):
            null = Null.read(folder)
            if any(null.identity.get(key) != value for key, value in about.items()):
                continue
            if null.identity.get("template") != template(self.base):
                self.refused.append("There is a null of this base, made with another chat template: it is not believed.")
                continue
            if self.held.student and not self.rows and not null.identity.get("students"):
                kind = null.identity["channel"]["name"]
                self.refused.append(f"There is a null of this base for {kind}; it knows no students. Make one that does.")
                continue
            share = belonging(self.rows, null.identity["channel"])
            if self.rows and share < BELONGS:
                kind = null.identity["channel"]["name"]
                self.refused.append(f"There is a null of this base for {kind}; only {share:.0%} of these rows are of "
                                    "that kind, so it is not believed.")
                continue
            known = exemplars.familiar(self.rows, exemplars.placebo_rows(folder))
            if self.rows and known < FAMILIAR:
                kind = null.identity["channel"]["name"]
                self.refused.append(f"There is a null of this base for {kind}; {known:.0%} of these prompts are worded as "
                                    "its placebo sources' are, so it is not believed. Make a calibration with these "
                                    "prompts, or audit rows that keep theirs.")
                continue
            self.refused.clear()  # one for another carrier is no news where one fits
            return folder, null
        if not self.refused:
            self.refused.append(f"There is no null of {self.held.base} here. Make one with `undersong calibrate`.")
        return None

    @cached_property
    def known(self) -> Exemplars | None:
        """The exemplars of the calibration, or None."""
        return exemplars.unpack(self.calibration[0], str(self.held.base), self.lab.backend) if self.calibration else None

    @cached_property
    def evidence(self) -> dict[str, Any]:
        """What is granted, by token. Exemplars' placebo rows stand in for a clean reference that nobody has."""
        held, out = self.held, dict[str, Any]()
        if self.file is not None:
            out["rows"] = (self.rows,)
        if self.base is not None:
            out["base"] = self.base
        if self.known is not None:
            out["exemplars"] = self.known
            out["reference"] = self.known.rows[PLACEBO]
        listed = held.traits or tuple(traits.get(name) for name in (self.known.names if self.known else ()))
        if listed:
            out["traits"] = listed
        for token in ("student", "teacher"):
            named = getattr(held, token)
            if named:
                out[token] = self.lab.backend.load(model_ref(named, self.held.base, self.lab))
        return out

    def run(self) -> dict[str, Any]:
        """The audit as JSON: what `--json` prints and the page shows (`reports/audit.py`).

        Raises BadSpec when there is nothing to audit, BadRows for a file without usable rows, MissingModel for models
        that are not there."""
        start = time.monotonic()
        if self.file is None and not self.held.student:
            raise BadSpec("There is nothing to audit. Give a file of rows, or a student with its base.")
        if self.held.student and not self.held.base:
            raise BadSpec("A student is audited against the model it started from. Give it as --base.")
        if self.file is not None:
            self.lab.progress(f"reading {self.file.path.name}")
            self.file.count()
        self._check_student()
        ran, skipped = self._detect(start)
        null = self.calibration[1] if self.calibration else None
        heard = Heard(self.held, self.alpha, self.smallest, self.seed, self.budget, null, tuple(self.refused), self.file,
                      self.rows, dict(self.evidence), tuple(ran), tuple(skipped), self._families(ran))
        out = conclude(heard)
        out |= {"audited": self._audited(), "seconds": round(time.monotonic() - start, 2), "environment": environment()}
        return out

    def _check_student(self) -> None:
        """Refuse a student that cannot have started from the base: its tensors have other names or shapes."""
        if "student" not in self.evidence or self.base is None:
            return
        modules: list[Any] = [getattr(model, "module", None) for model in (self.base, self.evidence["student"])]
        shapes = [{name: tuple(p.shape) for name, p in module.named_parameters()} for module in modules if module]
        if len(shapes) == 2 and shapes[0] != shapes[1]:
            raise BadSpec(f"{self.held.student} has another shape than {self.held.base}, so it did not start from it. Give "
                          "as --base the model that it started from.")

    def _detect(self, start: float) -> tuple[list[Ran], list[dict[str, Any]]]:
        """Every detector whose evidence is there, and what the others lack."""
        ran: list[Ran] = []
        skipped: list[dict[str, Any]] = []
        if self.calibration is not None:
            self.memo.update(exemplars.learnt(self.calibration[0]))
        for detector in self.detectors or default_detectors():
            name, granted = detector.plugin_name, self._granted(detector)
            missing = sorted(detector.needs - set(granted))
            if missing:
                skipped.append({"detector": name, "missing": missing, "says": f"It needs {', '.join(missing)}."})
                continue
            if not self.detectors and self._without_null(detector):
                skipped.append({"detector": name, "missing": [], "says": "This calibration has no null of it."})
                continue
            if not self.detectors and family(detector) == "rows" and self._too_few(detector):
                skipped.append({"detector": name, "missing": [], "says": "There are too few rows for its null."})
                continue
            if self.budget and time.monotonic() - start > self.budget:
                skipped.append({"detector": name, "missing": [], "says": "The time was up. Raise --budget."})
                continue
            begun = time.monotonic()
            self.lab.progress(f"{name}")
            try:
                evidence = Evidence(granted, self.memo).only(detector.needs)
                finding = self.lab.audit(detector, evidence, self._parents(detector), f"{name}-audit")
            except CANNOT as error:
                skipped.append({"detector": name, "missing": [], "says": str(error)})
                continue
            ran.append(Ran(detector, finding, round(time.monotonic() - begun, 2)))
        return ran, skipped

    def _too_few(self, detector: Any) -> bool:
        """Whether a detector would only learn that nothing can be held against its null."""
        calibrated = self.calibration is not None and not getattr(detector, "permutes", False)
        return calibrated and self.calibration is not None and self.calibration[1].size("rows", len(self.rows)) is None

    def _without_null(self, detector: Any) -> bool:
        """Whether a detector could only say what nothing can be held against, while others can be."""
        if self.calibration is None or getattr(detector, "permutes", False) or family(detector) == "teacher":
            return False
        return spelled(detector) not in self.calibration[1].identity["detectors"]

    def _granted(self, detector: Any) -> dict[str, Any]:
        """The evidence for one detector. A test that permutes needs the user's own reference, and reads every row."""
        granted = dict(self.evidence)
        if getattr(detector, "permutes", False):
            granted.pop("reference", None)
            if self.held.reference:
                granted["reference"] = (RowFile(self.held.reference),)
            if self.file is not None:
                granted["rows"] = (self.file,)
        return granted

    def _parents(self, detector: Any) -> list[str]:
        """What identifies the evidence of one detector."""
        given: dict[str, Any] = {"seed": self.seed}
        for token in sorted(detector.needs):
            given[token] = self._marks[token]
        return [fingerprint(given)]

    @cached_property
    def _marks(self) -> dict[str, Any]:
        held, known = self.held, self.calibration
        null = digest(known[0] / "null.json")["sha256"] if known else ""
        reference = _marks(RowFile(held.reference).files) if held.reference else null
        return {"rows": _marks(self.file.files) if self.file else "", "reference": reference, "exemplars": null,
                "base": base_ref(held.base).fingerprint if held.base else "",
                "traits": [dataclasses.asdict(t) for t in self.evidence.get("traits", ())],
                **{t: self.evidence[t].ref.fingerprint if t in self.evidence else "" for t in ("student", "teacher")}}

    def _audited(self) -> dict[str, list[dict[str, Any]]]:
        """Which bytes this audit is about: each file's name, SHA-256 and size. A seal makes them its subject."""
        student = self.evidence.get("student")
        behind = {"rows": list(self.file.files) if self.file else [], "student": files_of(student.ref) if student else []}
        return {what: [{"name": file.name, **digest(file)} for file in found] for what, found in behind.items() if found}

    def _families(self, ran: Sequence[Ran]) -> dict[str, tuple[Table, dict[Any, float], int]]:
        """Per family with a null: the placebo table, what the audited case says, and the size it was held against."""
        out: dict[str, tuple[Table, dict[Any, float], int]] = {}
        if self.calibration is None:
            return out
        folder, null = self.calibration
        for kind in ("rows", "student", "teacher"):
            mine = [r for r in ran if family(r.detector) == kind and r.finding.p is None]
            size = null.size(kind, len(self.rows)) if kind == "rows" else 0 if kind == "student" else None
            cases = null.cases
            if kind == "teacher" and mine:
                cases, size = self._teacher_cases(folder, mine), 0
            if size is None:
                continue
            here = Null(null.identity, tuple(cases))
            mine = [r for r in mine if spelled(r.detector) in here.detectors(kind, size)]
            if mine:
                said = {(spelled(r.detector), k): v for r in mine for k, v in r.finding.details["by_trait"].items()}
                keys = {spelled(r.detector): self._keys(r) for r in mine}
                table = here.table(kind, size, keys, {name: own for name, own in keys.items() if own is not None})
                out[kind] = table, {key: value for key, value in said.items() if key in table.keys}, size
        return out

    def _keys(self, ran: Ran) -> list[str] | None:
        """The traits that a detector of listed traits is asked about; None for one that lists its own."""
        if self.held.traits is None or not ran.detector.needs & {"traits", "exemplars"}:
            return None
        return ["", *(t.name for t in self.held.traits)]

    def _teacher_cases(self, folder: Path, ran: Sequence[Ran]) -> tuple[Case, ...]:
        """What teacher detectors say of rows that the suspected teacher did not write: a null of its own."""
        out = []
        for r in ran:
            for unit, rows in enumerate(exemplars.placebo_rows(folder)):
                self.lab.progress(f"{r.detector.plugin_name}: placebo source {unit}")
                own = Evidence({**self.evidence, "rows": (rows,)}, {}).only(r.detector.needs)
                said = r.detector.detect(own, self.seed).details["by_trait"]
                out.append(Case("teacher", unit, spelled(r.detector), 0, "", 0.0, said))
        return tuple(out)


def default_detectors() -> list[Any]:
    """Every registered detector that needs no settings, cheap ones first; `row_classifier` needs several runs of rows."""
    out = []
    for name in registry.names("detector"):
        cls = registry.get("detector", name)
        if name != "row_classifier" and not any(f.is_required() for f in cls.model_fields.values()):
            out.append(cls())
    order = ["marginals", "marginal_template", "likelihood_panel"]
    return sorted(out, key=lambda d: order.index(d.plugin_name) if d.plugin_name in order else len(order))


def _marks(files: Sequence[Path]) -> list[str]:
    return [str(digest(file)["sha256"]) for file in files]


