"""An experiment: arms, controls and seeds from a file; the plan; running it.

1. `Experiment.load` reads a YAML file of values and checks every one of them before any work.
2. `arms()` lists what is compared. An arm says which teacher writes the rows, which base the student starts from and what
   is done to the rows; each arm is run once per seed, and a run has its own teacher, rows and student.
3. `steps()` turns arms into pieces of work with fingerprints (`steps.py`; what a mitigation is granted: `defence.py`);
   `plan` looks them up, `run` does what is missing (`running.py`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from undersong import lab as verbs
from undersong import spec as specs
from undersong import traits
from undersong.errors import BadSpec, UnknownName, nearest
from undersong.experiment.defence import Holdings
from undersong.experiment.steps import Arm, PlanRow, Run, Step, role
from undersong.experiment_file import File, check, one_name_each, text_of, values
from undersong.filters import for_traits
from undersong.lab import Lab
from undersong.spec import build, describe, explain
from undersong.store import Store, clean_label
from undersong.traits import Trait
from undersong.types import ModelRef
from undersong.writing import sample_spec

CONTROLS = ("no_trait", "other_base", "matched_base", "reordered_base", "shuffled_rows", "in_context")
BASES = {"other_base": "other_base", "matched_base": "matched_base", "reordered_base": "reordered_base"}


@dataclass(frozen=True)
class Experiment:
    """A checked experiment file with its plug-ins built."""

    file: File

    @classmethod
    def load(cls, path: Path | str, sets: Sequence[str] = ()) -> Experiment:
        """Read a file, apply `a.b=c` overrides, check it. Raises BadSpec or UnknownName, saying which key and what to do."""
        path = Path(path)
        if not path.is_file():
            known = [p.stem for p in path.parent.glob("*.yaml")]
            near = nearest(path.stem, known) if known else "Write one with `undersong new NAME`."
            raise BadSpec(f"There is no experiment file {str(path)!r}. {near}")
        return cls.read(text_of(path), sets)

    @classmethod
    def read(cls, text: str, sets: Sequence[str] = ()) -> Experiment:
        """The experiment a YAML text describes."""
        data = values(text, sets)
        try:
            file = File(**data)
        except ValidationError as error:
            raise BadSpec(f"Experiment file: {explain(error, File)}") from None
        experiment = cls(file)
        experiment.check()
        return experiment

    def check(self) -> None:
        """Refuse what could not give an answer: too few seeds, no control, a control without its base, unknown names."""
        f = self.file
        check(f)
        clean_label(f.name)
        for control in f.controls:
            if control not in CONTROLS:
                raise UnknownName(f"controls: there is no control {control!r}. {nearest(control, CONTROLS)}")
        if "no_trait" not in f.controls:
            raise BadSpec("controls: without `no_trait` nothing tells the trait from the training itself. Add `no_trait`.")
        for control, key in BASES.items():
            if control in f.controls and getattr(f, key) is None:
                raise BadSpec(f"controls: `{control}` needs the key `{key}`. Add it, or remove the control.")
        _ = (self.traits, self.channel, self.engine, self.filters, self.classifier)
        self._check_traits()
        one_name_each("controls", f.controls)
        one_name_each("teacher", ["", *(t.plugin_name for t in self.teachers[1:])])
        one_name_each("recipe", [self.channel_name(r) for r in self.recipes])
        one_name_each("probes", [p.plugin_name for p in self.probes])
        one_name_each("mitigations", [name for name, _ in self.mitigations])
        self.runs()  # a mitigation whose evidence is not in the experiment is refused here
        for start in {a.start for a in self.arms()}:
            self.base(start)

    def base(self, name: str) -> ModelRef:
        """A reference to a base of this experiment, at its precision."""
        if name not in self._bases:
            self._bases[name] = verbs.base_ref(name, self.file.precision)
        return self._bases[name]

    @cached_property
    def _bases(self) -> dict[str, ModelRef]:
        return {}

    def _check_traits(self) -> None:
        """Refuse ways to behave that nothing here would measure, and a control in the trait's own place."""
        names = [p.plugin_name for p in self.probes]
        if not self.traits[0].probes:
            raise BadSpec(f"trait: {self.file.trait!r} is a control: nothing of its own is measured. List it in `rivals`.")
        for trait in self.traits:
            if trait.tuned_on and trait.probes and not set(trait.probes) & set(names):
                raise BadSpec(f"probes: nothing here measures {trait.name!r}. Add the probe `{trait.probes[0]}`.")

    @cached_property
    def traits(self) -> list[Trait]:
        """The trait and its rivals."""
        return [traits.get(name) for name in (self.file.trait, *self.file.rivals)]

    @cached_property
    def teachers(self) -> list[Any]:
        """The teacher plug-ins, the main one first."""
        given = self.file.teacher if isinstance(self.file.teacher, list) else [self.file.teacher]
        return [build("teacher", s, "teacher") for s in given]

    @cached_property
    def recipes(self) -> list[Any]:
        """The recipe plug-ins."""
        given = self.file.recipe if isinstance(self.file.recipe, list) else [self.file.recipe]
        return [build("recipe", s, "recipe") for s in given]

    @cached_property
    def channel(self) -> Any:
        """The channel plug-in."""
        return build("channel", self.file.channel, "channel")

    @cached_property
    def engine(self) -> Any:
        """The backend that draws the rows, or None for the base's own."""
        return self.file.engine and build("backend", self.file.engine, "engine")

    @cached_property
    def filters(self) -> list[Any]:
        """The filter plug-ins, `from: trait` filled in with the words of every trait, `belongs` with the channel."""
        return for_traits(self.file.filters, self.file.channel, self.traits)

    @cached_property
    def probes(self) -> list[Any]:
        """The probe plug-ins."""
        return [build("probe", s, "probes") for s in self.file.probes]

    @cached_property
    def classifier(self) -> Any:
        """The detector that reads the rows, or None."""
        return self.file.classifier and build("detector", self.file.classifier, "classifier")

    def channel_name(self, recipe: Any) -> str:
        """The channel's name in results: `numbers-soft`, `numbers-sampled`, or `numbers-<recipe>`."""
        how = getattr(recipe, "labels", recipe.plugin_name)
        return f"{self.channel.plugin_name}-{how}"

    def arms(self) -> list[Arm]:
        """Every arm. Control arms that start from another base, or see rows in context, come with a no-trait twin."""
        f, out = self.file, []
        for recipe in self.recipes:
            name = self.channel_name(recipe)
            for i, teacher in enumerate(self.teachers):
                tag = "" if i == 0 else f"-{teacher.plugin_name}"
                taught = self.traits if i == 0 or f.matrix else self.traits[:1]
                out += [Arm(f"{role(t)}{tag}", name, teacher, recipe, t, f.base) for t in taught]
                out.append(Arm(f"no_trait{tag}", name, teacher, recipe, None, f.base))
            main = Arm("", name, self.teachers[0], recipe, self.traits[0], f.base)
            for control in f.controls:
                if control in BASES:
                    start = getattr(f, BASES[control])
                    out.append(dataclasses.replace(main, name=control, start=start))
                    out.append(dataclasses.replace(main, name=f"{control}:no_trait", start=start, trait=None))
                if control == "in_context":
                    out.append(dataclasses.replace(main, name=control, context=True))
                    out.append(dataclasses.replace(main, name=f"{control}:no_trait", context=True, trait=None))
                if control == "shuffled_rows" and getattr(recipe, "labels", "sampled") != "soft":
                    for how in ("within", "across"):
                        change = build("mitigation", {"shuffle": {"how": how}})
                        out.append(dataclasses.replace(main, name=f"shuffled_{how}", change=change))
            for name, change in self.mitigations:
                arm = dataclasses.replace(main, name=name, change=change)
                if getattr(change, "elsewhere", False):
                    arm = dataclasses.replace(arm, start=self._elsewhere(change))
                if getattr(change, "elsewhere", False) or getattr(change, "twin", False):
                    out.append(dataclasses.replace(arm, name=f"{name}:no_trait", trait=None))
                out.append(arm)
        return out

    @cached_property
    def mitigations(self) -> list[tuple[str, Any]]:
        """The mitigations with the names of their arms: a plug-in that is listed twice is told apart by its settings."""
        built = [(given, build("mitigation", given, "mitigations")) for given in self.file.mitigations]
        names = [change.plugin_name for _, change in built]
        out = []
        for given, change in built:
            settings = given[change.plugin_name] or {} if isinstance(given, dict) else {}
            more = [f"{k}-{v}" for k, v in settings.items()] if names.count(change.plugin_name) > 1 else []
            out.append((clean_label("-".join(("mitigated", change.plugin_name, *more))), change))
        return out

    def _elsewhere(self, change: Any) -> str:
        if self.file.other_base is None:
            raise BadSpec(f"mitigations: {change.plugin_name} starts students from another base. Name one as `other_base`.")
        return self.file.other_base

    def runs(self) -> list[Run]:
        """Every arm with every seed, as steps with fingerprints."""
        return self._runs

    @cached_property
    def _runs(self) -> list[Run]:
        return [self._run(arm, seed) for arm in self.arms() for seed in self.file.seeds]

    @cached_property
    def text(self) -> str:
        """The file as JSON: `Experiment(File.model_validate_json(text))` is this experiment."""
        return self.file.model_dump_json()

    def _run(self, arm: Arm, seed: int) -> Run:
        f, who = self.file, f"{arm.teacher.plugin_name}-{arm.trait_name or 'none'}-s{seed}"
        base, start = self.base(f.base), self.base(arm.start)
        taught = self._said(("teach", id(arm.teacher), arm.trait_name, seed),
                            lambda: verbs.teach_spec(arm.teacher, arm.trait, seed))
        asked = self._said(("sample", seed), lambda: sample_spec(self.channel, f.rows, seed, engine=self.engine))
        sifted = self._said(("refine",), lambda: verbs.refine_spec(self.filters, f.keep))
        teacher = Step("model", f"teacher-{who}", taught, (base.fingerprint,))
        raw = Step("dataset", f"raw-{who}", asked, (teacher.fingerprint,))
        rows = Step("dataset", f"rows-{who}-kept", sifted, (raw.fingerprint,))
        label = f"{arm.name.replace(':', '-')}-{arm.channel}-{arm.trait_name or 'none'}-s{seed}"
        changed = student = repaired = guard = None
        defence = self.holdings(arm, seed).defence() if arm.change else None
        if defence and arm.stage == "data":
            spec = verbs.mitigate_spec(defence, seed)
            changed = Step("dataset", f"changed-{label}", spec, (rows.fingerprint, *defence.parents))
        if defence and arm.stage == "training":
            guard = defence
        of: tuple[str, ...] = (start.fingerprint, rows.fingerprint)
        context = f.context_rows
        if not arm.context:
            parents = (start.fingerprint, (changed or rows).fingerprint, *(guard.parents if guard else ()))
            # a student that is repaired afterwards is the treated student: it has its label too
            name = label.replace(arm.name, "treated", 1) if arm.stage == "model" else label
            learns = verbs.train_spec(arm.recipe, self.channel, seed, guard) if guard else self._said(
                ("train", id(arm.recipe), seed), lambda: verbs.train_spec(arm.recipe, self.channel, seed))
            student = Step("model", f"student-{name}", learns, parents)
            of, context = (student.fingerprint,), 0
            if defence and arm.stage == "model":
                parents = (student.fingerprint, *defence.parents)
                repaired = Step("model", f"student-{label}", verbs.repair_spec(defence, seed), parents)
                of = (repaired.fingerprint,)
        return Run(arm, seed, teacher, raw, rows, student, self._measures(label, of, seed, context), changed, repaired)

    def holdings(self, arm: Arm, seed: int) -> Holdings:
        """What the experiment holds for the mitigation of an arm."""
        plain = dataclasses.replace(arm, name="treated", change=None, start=self.file.base)
        rivals = [dataclasses.replace(plain, name=role(t), trait=t) for t in self.traits[1:]]
        clean = dataclasses.replace(plain, name="no_trait", trait=None)
        other = self.base(self.file.other_base) if self.file.other_base else None
        return Holdings(arm, seed, [self._run(a, seed) for a in rivals], self._run(clean, seed), self._run(plain, seed),
                        other, self.base(arm.start), self.channel)

    def _measures(self, label: str, of: tuple[str, ...], seed: int, context: int = 0) -> tuple[Step, ...]:
        def said(probe: Any) -> specs.Said:
            return self._said(("measure", id(probe), seed, context),
                              lambda: verbs.measure_spec(probe, self.traits, seed, context))

        return tuple(Step("measurement", f"{p.plugin_name}-{label}", said(p), of) for p in self.probes)

    def _said(self, key: tuple[Any, ...], make: Callable[[], dict[str, Any]]) -> specs.Said:
        """A spec that several steps share, made once."""
        if key not in self._shared:
            self._shared[key] = specs.Said(make())
        return self._shared[key]

    @cached_property
    def _shared(self) -> dict[tuple[Any, ...], specs.Said]:
        return {}

    def references(self) -> Iterator[tuple[str, str, int, str, tuple[Step, ...]]]:
        """What students are compared with: (arm, trait, seed, base, steps) for untouched bases and main teachers."""
        for start in dict.fromkeys(a.start for a in self.arms()):
            arm = "base" if start == self.file.base else f"base:{start}"
            for seed in self.file.seeds:
                label = f"{arm}-s{seed}".replace(":", "-").replace("/", "-")
                yield arm, "", seed, start, self._measures(label, (self.base(start).fingerprint,), seed)

    def audits(self) -> dict[str, Step]:
        """For every trait, the classifier that reads the main teacher's rows beside the no-trait teacher's."""
        if self.classifier is None:
            return {}
        rows: dict[str, list[str]] = {}
        for run in self.runs():
            if run.arm.name in ("treated", "no_trait") and run.arm.recipe is self.recipes[0]:
                rows.setdefault(run.arm.trait_name, []).append(run.rows.fingerprint)
        return {
            trait: Step(
                "finding",
                f"{self.classifier.plugin_name}-{trait}",
                verbs.audit_spec(self.classifier),
                (*own, *rows[""]),
            )
            for trait, own in rows.items()
            if trait
        }

    def steps(self) -> list[Step]:
        """Every piece of work once, in an order that respects what depends on what."""
        out: dict[str, Step] = {}
        for run in self.runs():
            for step in run.work:
                out.setdefault(step.fingerprint, step)
        for *_, steps in self.references():
            for step in steps:
                out.setdefault(step.fingerprint, step)
        for step in self.audits().values():
            out.setdefault(step.fingerprint, step)
        order = ("model", "dataset", "measurement", "finding")
        return sorted(out.values(), key=lambda s: order.index(s.kind))

    def plan(self, store: Store) -> list[PlanRow]:
        """What is cached, what is missing, and which field changed since the last finished work of the same label."""
        out = []
        for step in self.steps():
            if store.has(step.kind, step.spec, step.parents, step.label):
                out.append(PlanRow(step.kind, step.label, step.fingerprint, "cached"))
                continue
            changed = tuple(store.changed(step.kind, step.label, step.spec, step.parents))
            out.append(PlanRow(step.kind, step.label, step.fingerprint, "changed" if changed else "missing", changed))
        return out

    def resolved(self) -> dict[str, Any]:
        """The file with every plug-in and setting written out: what is recorded."""
        out = self.file.model_dump(exclude=set() if self.engine else {"engine"})
        out |= {
            "teacher": [describe(t) for t in self.teachers],
            "recipe": [describe(r) for r in self.recipes],
            "channel": describe(self.channel),
            "filters": [describe(x) for x in self.filters],
            "probes": [describe(p) for p in self.probes],
            "classifier": self.classifier and describe(self.classifier),
        } | ({"engine": describe(self.engine)} if self.engine else {})
        return out

    def run(self, lab: Lab) -> dict[str, ModelRef]:
        """Do the missing work in this process; afterwards every step of the plan is cached. Returns student references by
        fingerprint. `cells.spread` does the same work anywhere."""
        from undersong.experiment.running import Running

        return Running(self, lab).everything()
