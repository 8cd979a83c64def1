"""Why a trait crossed, in the runs of an experiment: explainers that know the truth, each on the stored artefacts of one
run.

    Explained(experiment, lab).run()

The training run is the unit: every explainer gives one number per run and score, and what is told is their mean over runs,
with an interval, beside the confound baselines that the explainer brings. Nothing is trained here; each explanation is an
artefact.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from undersong import registry, stats
from undersong.backends.several import Several
from undersong.environment import environment
from undersong.errors import BadSpec, UndersongError
from undersong.experiment import Experiment
from undersong.experiment.steps import Run, Step
from undersong.explainers import Evidence
from undersong.explainers.ordinary import ordinary
from undersong.explanation import asked
from undersong.lab import Lab, read_rows, unpack
from undersong.spec import describe
from undersong.types import Explanation, ModelRef

TRUTH = frozenset({"rows", "clean", "teacher", "rivals", "trait"})
"""What only an experiment holds."""


@dataclass
class Explained:
    """An experiment to explain: by all explainers that know the truth, and over all seeds, where none are given."""

    experiment: Experiment
    lab: Lab
    explainers: Sequence[Any] = ()
    seeds: Sequence[int] = ()
    memo: dict[Any, Any] = field(default_factory=dict, repr=False)

    def run(self) -> dict[str, Any]:
        """The explanation as JSON: what `--json` prints and the page shows.

        Raises Unfinished when the experiment has not been run, BadSpec when it holds no run of these seeds."""
        begun, f = time.monotonic(), self.experiment.file
        seeds = list(self.seeds) or list(f.seeds)
        if unknown := sorted(set(seeds) - set(f.seeds)):
            raise BadSpec(f"The experiment {f.name} has no run of seed {unknown[0]}. Choose among "
                          f"{', '.join(map(str, f.seeds))}.")
        found, skipped = [], []
        for explainer in self.explainers or knowing():
            runs, why = [], ""
            for seed in seeds:
                start = time.monotonic()
                try:
                    one = self._one(explainer, seed)
                except BadSpec as error:
                    why = str(error)
                    continue
                runs.append({"seed": seed, "sentence": one.sentence, "scores": [list(pair) for pair in one.scores],
                             "details": one.details, "seconds": round(time.monotonic() - start, 2)})
            if why:
                lost = f"{len(seeds) - len(runs)} of {len(seeds)} runs"
                skipped.append({"explainer": explainer.plugin_name, "says": f"It could not explain {lost}. {why}"})
            if runs:
                found.append({"explainer": explainer.plugin_name, "settings": describe(explainer)["settings"],
                              "runs": runs, "summary": summary(runs)})
        if not found:
            raise BadSpec(f"Nothing could be explained. {skipped[0]['says'] if skipped else 'Name an explainer.'}")
        return {"format": 1, "kind": "experiment explanation", "experiment": f.name, "trait": f.trait, "base": f.base,
                "seeds": seeds, "explanations": found, "skipped": skipped, "sentence": headline(found, f.trait),
                "seconds": round(time.monotonic() - begun, 2), "environment": environment()}

    def _one(self, explainer: Any, seed: int) -> Explanation:
        """One explanation of one run, from the store where it is there. Raises Unfinished when a piece is missing."""
        uses = [*explainer.needs, *getattr(explainer, "may_use", ())]
        pieces = self._pieces(seed)
        there = [token for token in uses if token in pieces]
        if missing := sorted(explainer.needs - set(there)):
            raise BadSpec(f"The explainer {explainer.plugin_name} needs {missing[0]!r}, which this experiment does not "
                          "hold. List `rivals` in it, or choose another explainer.")
        parents = [step.fingerprint for token in sorted(there) for step in pieces[token][0]]
        spec = {"verb": "explain", "explainer": describe(explainer), "seed": seed,
                "trait": dataclasses.asdict(self.experiment.traits[0]), "base": self.experiment.file.base}
        with self.lab.store.open("explanation", f"{explainer.plugin_name}-s{seed}", spec, parents) as artefact:
            if not artefact.complete:
                self._finished([step for token in there for step in pieces[token][0]])
                self.lab.progress(f"explaining seed {seed} by {explainer.plugin_name}")
                granted = {token: pieces[token][1]() for token in there}
                held = Evidence(granted).only(explainer.needs, getattr(explainer, "may_use", ()))
                one = explainer.explain(held, seed)
                artefact.write_json("explanation", dataclasses.asdict(one))
                artefact.finish({"explainer": explainer.plugin_name})
            got = artefact.read_json("explanation")
        return Explanation(got["sentence"], tuple((str(n), float(v)) for n, v in got["scores"]), dict(got["details"]))

    def _pieces(self, seed: int) -> dict[str, tuple[list[Step], Callable[[], Any]]]:
        """Per token the steps it comes from, and what makes its value."""
        e, load = self.experiment, self.lab.backend.load
        plain = {(r.arm.name, r.arm.trait_name, r.seed): r for r in e.runs()
                 if not r.arm.change and not r.arm.context and r.arm.recipe is e.recipes[0] and r.arm.start == e.file.base}
        own, none = plain["treated", e.file.trait, seed], plain["no_trait", "", seed]
        rivals = [r for (arm, trait, s), r in plain.items() if s == seed and trait not in ("", e.file.trait)
                  and ":" not in arm and r.arm.teacher is e.teachers[0]]
        placebos = [r for (arm, _, _), r in plain.items() if arm == "no_trait"]
        students = [r.student for r in placebos if r.student]

        def ref(step: Step) -> ModelRef:
            return dataclasses.replace(unpack(self._found(step)), precision="float32")

        def rows(run: Run) -> Any:
            return (read_rows(self._found(run.rows)),)

        base = dataclasses.replace(e.base(e.file.base), precision="float32")
        out: dict[str, tuple[list[Step], Callable[[], Any]]] = {
            "base": ([], lambda: load(base)), "trait": ([], lambda: e.traits[0]),
            "prompts": ([], lambda: ordinary(load(base))), "questions": ([], lambda: asked(load(base))),
            "teacher": ([own.teacher], lambda: load(ref(own.teacher))), "rows": ([own.rows], lambda: rows(own)),
            "clean": ([none.rows], lambda: rows(none)),
            "placebos": (students, lambda: Several(tuple(map(ref, students)), self.lab.backend)),
        }
        if own.student:
            student = own.student
            out["model"] = ([student], lambda: load(ref(student)))
        if rivals:
            out["rivals"] = ([r.teacher for r in rivals],
                             lambda: Several(tuple(ref(r.teacher) for r in rivals), self.lab.backend))
        return out

    def _found(self, step: Step) -> Any:
        return self.lab.store.find(step.kind, step.spec, step.parents, like=step.label)

    def _finished(self, steps: Sequence[Step]) -> None:
        for step in steps:
            if self._found(step) is None:
                raise Unfinished(f"The {step.kind} {step.label}.{step.fingerprint} is not in the store. Run the experiment "
                                 f"first: undersong run experiments/{self.experiment.file.name}.yaml")


class Unfinished(UndersongError, LookupError):
    """An experiment that has not been run."""


def knowing() -> list[Any]:
    """Every explainer that needs what only an experiment holds."""
    classes = [registry.get("explainer", name) for name in registry.names("explainer")]
    return [cls() for cls in classes if cls.needs & TRUTH and not any(f.is_required() for f in cls.model_fields.values())]


def summary(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Per score its mean over runs with an interval, in the order of the first run."""
    values: dict[str, list[float]] = {}
    for run in runs:
        for name, value in run["scores"]:
            values.setdefault(name, []).append(float(value))
    out = []
    for name, found in values.items():
        # cosines and shares may be negative
        bounds = (0.0, 1.0) if runs[0]["details"].get("unit") == "AUROC" else None
        mean, low, high = stats.mean_interval(found, bounds=bounds) if len(found) > 1 else (found[0], None, None)
        out.append({"name": name, "mean": mean, "low": low, "high": high, "n_runs": len(found), "values": found})
    return out


def headline(found: Sequence[dict[str, Any]], trait: str) -> str:
    """The first score of the explainer that reads most of a run, in one sentence."""
    by = {one["explainer"]: one for one in found}
    one = next((by[name] for name in ("coverage", "layer_sites") if name in by), found[0])
    first, n = one["summary"][0], len(one["runs"])
    spread = f" [{first['low']:.2f}, {first['high']:.2f}]" if first["low"] is not None else ""
    return (f"Why {trait} crossed, in {n} training run{'s' if n > 1 else ''}: {one['explainer'].replace('_', ' ')} "
            f"({first['name']}) {first['mean']:.2f}{spread}.")
