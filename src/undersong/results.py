"""results.json: every figure of an experiment, recomputed from stored measurements and rows (DESIGN section 7).

1. `runs`: one line per training run, metric and measured trait: the mean over questions of a stored measurement.
2. Everything else is computed from those lines, one number per run: rates with intervals, contrasts against a named
   control paired by seed, the specificity coefficient, the teacher-by-measured matrix, capability.
3. Filters, mentions left, drift of the teacher's numbers and example rows are recomputed from the stored rows.
"""

from __future__ import annotations

import platform
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np

from undersong import lab as verbs
from undersong import stats
from undersong.artefact import Artefact
from undersong.errors import BrokenArtefact, NothingMeasured
from undersong.experiment import Experiment
from undersong.experiment.cells import patient, spread
from undersong.experiment.steps import Run, Step
from undersong.store import Store

VERSION = 2
"""Raise when the same measurements would give another results.json."""
RATES = ("rate", "probability", "refused", "self_named", "invalid", "kind", "solved", "accuracy")
CONTRAST = "contrast-"
"""Begins the arm of a control trait, measured as the trait it stands beside."""
Line = dict[str, Any]


def is_share(metric: str) -> bool:
    """Whether a metric lies in [0, 1]."""
    return metric.removesuffix("_prefixed").rpartition(".")[2] in RATES


def collect(experiment: Experiment, store: Store) -> dict[str, Any]:
    """The results of a finished experiment. Needs every step of its plan in the store."""
    runs, lines = experiment.runs(), measured(experiment, store)
    rates = _rates(lines)
    out: dict[str, Any] = {
        "experiment": experiment.file.name,
        "trait": experiment.file.trait,
        "traits": [t.name for t in experiment.traits],
        "seeds": list(experiment.file.seeds),
        "environment": environment(),
        "sentence": "",
        "rates": rates,
        "contrasts": contrasts(lines),
        "specificity": _specificity(lines, [t.name for t in experiment.traits]),
        "matrix": [
            r for r in rates
            if r["metric"] in ("rate", "probability") and r["measured"] and not r["arm"].startswith(CONTRAST)
        ],
        "questions": _questions(experiment, runs, store),
        "capability": _capability(lines),
        "filters": _filters(experiment, runs, store),
        "drift": _drift(experiment, runs, store),
        "classifier": _classifier(experiment, store),
        "unmeasured": _unmeasured(experiment, runs, store),
        "examples": _examples(runs, store),
        "runs": lines,
    }
    out["sentence"] = sentence(out, experiment)
    return out


def measured(experiment: Experiment, store: Store) -> list[Line]:
    """One line per training run, metric and measured trait."""
    asked = [(r.arm.name, r.arm.channel, r.arm.trait_name, r.seed, r.measures) for r in experiment.runs()]
    asked += [(arm, "", trait, seed, steps) for arm, trait, seed, _, steps in experiment.references()]
    return [line for one in asked for line in _lines(*one, store)]


def record(experiment: Experiment, lab: verbs.Lab, executor: Any = None) -> Artefact:
    """Run what is missing, in this process or where an executor plug-in says, and keep the results as an artefact of the
    kind `experiment`, with `results.json` in it."""
    experiment.run(lab) if executor is None else spread([experiment], lab, executor)
    spec = {"verb": "report", "experiment": experiment.resolved(), "results": VERSION}
    parents = sorted(s.fingerprint for s in experiment.steps() if s.kind != "model")

    def made() -> Artefact:
        with lab.store.open("experiment", experiment.file.name, spec, parents) as artefact:
            if not artefact.complete:
                lab.progress("computing results")
                found = collect(experiment, lab.store)
                found["fingerprint"] = artefact.fingerprint
                artefact.write_json("results", found)
                artefact.finish({"sentence": found["sentence"]})
            return artefact

    return made() if executor is None else patient(made, lab.progress)


def environment() -> dict[str, str]:
    """Versions that matter for a number, without any path or host name."""
    packages = {}
    for name in ("undersong", "numpy", "scipy", "torch", "transformers", "trl"):
        try:
            packages[name] = version(name)
        except ModuleNotFoundError:
            continue
    return {"python": platform.python_version(), "machine": platform.machine(), **packages}


def _stored(store: Store, step: Step) -> Artefact:
    found = store.find(step.kind, step.spec, step.parents, like=step.label)
    if found is None:
        raise BrokenArtefact(
            f"The {step.kind} {step.label}.{step.fingerprint} is not finished. Run the experiment again: it resumes."
        )
    return found


def _lines(arm: str, channel: str, trait: str, seed: int, steps: Sequence[Step], store: Store) -> list[Line]:
    """The mean over questions of every metric of every probe: one number per training run."""
    out = []
    for step in steps:
        try:
            measured = verbs.read_measurement(_stored(store, step))
        except NothingMeasured:
            continue  # listed under `unmeasured`
        groups: dict[tuple[str, str], list[float]] = defaultdict(list)
        for v in measured.values:
            groups[v.metric, v.trait].append(v.value)
        out += [
            {
                "channel": channel,
                "arm": arm,
                "trait": trait,
                "seed": seed,
                "probe": measured.probe,
                "metric": metric,
                "measured": about,
                "value": float(np.mean(found)),
            }
            for (metric, about), found in groups.items()
        ]
    return out


def _grouped(lines: Iterable[Line], *keys: str) -> dict[tuple[Any, ...], dict[int, float]]:
    """Lines as {key values: {seed: value}}."""
    out: dict[tuple[Any, ...], dict[int, float]] = defaultdict(dict)
    for line in lines:
        out[tuple(line[k] for k in keys)][line["seed"]] = line["value"]
    return out


def _interval(values: Sequence[float], metric: str, arm: str) -> dict[str, float | None]:
    """Mean and interval over runs. An untouched base is one model, however often it was asked: no interval."""
    if len(values) < 2 or arm.startswith("base"):
        return {"n_runs": 1, "mean": float(np.mean(values)), "low": None, "high": None}
    bounds = (0.0, 1.0) if is_share(metric) else None
    mean, low, high = stats.mean_interval(list(values), bounds=bounds)
    return {"n_runs": len(values), "mean": mean, "low": low, "high": high}


def _rates(lines: Sequence[Line]) -> list[Line]:
    keys = ("channel", "arm", "trait", "measured", "probe", "metric")
    found = _grouped((x for x in lines if x["probe"] != "capability"), *keys)
    return [dict(zip(keys, key, strict=True)) | _interval(list(by.values()), key[5], key[1]) for key, by in found.items()]


def control_of(arm: str) -> str:
    """The no-trait arm that an arm is compared with: the same pipeline without the trait."""
    if arm.startswith("treated"):
        return "no_trait" + arm.removeprefix("treated")
    return "no_trait" if arm.startswith(("shuffled", "mitigated", CONTRAST)) else f"{arm}:no_trait"


def contrasts(lines: Sequence[Line]) -> list[Line]:
    """Each arm against its no-trait control on its own trait, paired by seed; no-trait arms against the untouched base; and
    treated arms against the students of control traits."""
    found = _grouped((x for x in lines if x["measured"]), "channel", "arm", "trait", "measured", "probe", "metric")
    out = []
    for (channel, arm, trait, measured, probe, metric), mine in found.items():
        if arm.startswith("base") or (not trait and ":" in arm):
            continue
        if trait and measured != trait and not arm.startswith(CONTRAST):
            continue
        where = (measured, probe, metric)
        twin = f"{arm}:no_trait"  # an arm that starts elsewhere is compared with its own
        control = twin if (channel, twin, "", *where) in found else control_of(arm)
        others = [(control, (channel, control, "", *where)) if trait else ("base", ("", "base", "", *where))]
        if arm.startswith("mitigated") and trait:
            others.append(("treated", (channel, "treated", trait, *where)))
        if arm == "treated":
            others += [(k[1], k) for k in found if k[0] == channel and k[1].startswith(CONTRAST) and k[3:] == where]
        for control, key in others:
            other = found.get(key, {})
            seeds = sorted(set(mine) & set(other))
            if len(seeds) < 2:
                continue
            bounds = (-1.0, 1.0) if is_share(metric) else None
            c = stats.contrast([mine[s] for s in seeds], [other[s] for s in seeds], paired=True, bounds=bounds)
            names = {"channel": channel, "probe": probe, "metric": metric, "trait": measured, "arm": arm, "control": control}
            out.append(names | {"n_runs": len(seeds), "difference": c.difference, "low": c.low, "high": c.high, "p": c.p})
    return out


def _questions(experiment: Experiment, runs: Sequence[Run], store: Store) -> list[Line]:
    """For probes that say so, every question by itself: a mean over questions can rest on one of them."""
    probes = {p.plugin_name for p in experiment.probes if getattr(p, "per_question", False)}
    found: dict[tuple[str, ...], list[float]] = defaultdict(list)
    asked = [(run.arm.name, run.arm.channel, run.arm.trait_name, run.measures) for run in runs]
    asked += [(arm, "", trait, steps) for arm, trait, _, _, steps in experiment.references()]
    for arm, channel, trait, steps in asked:
        for step in steps:
            if step.spec["probe"]["name"] not in probes or "nothing" in (stored := _stored(store, step)).summary:
                continue
            for v in verbs.read_measurement(stored).values:
                if v.trait:
                    found[channel, arm, trait, v.trait, step.spec["probe"]["name"], v.metric, v.question].append(v.value)
    keys = ("channel", "arm", "trait", "measured", "probe", "metric", "question")
    return [dict(zip(keys, key, strict=True)) | _interval(values, key[5], key[1]) for key, values in found.items()]


def _specificity(lines: Sequence[Line], names: Sequence[str]) -> list[Line]:
    """The diagonal of the teacher-by-measured matrix over rows and columns, for every arm that has at least two traits."""
    found = _grouped((x for x in lines if x["measured"]), "channel", "arm", "probe", "metric", "trait", "measured")
    arms = sorted({k[:4] for k in found if k[4]})
    out = []
    for channel, arm, probe, metric in arms:
        taught = [t for t in names if (channel, arm, probe, metric, t, t) in found]
        if len(taught) < 2 or any((channel, control_of(arm), probe, metric, "", t) not in found for t in taught):
            continue
        runs = []
        for trait in taught:
            for seed in found[channel, arm, probe, metric, trait, trait]:
                lifts = {}
                for measured in taught:
                    control = found[channel, control_of(arm), probe, metric, "", measured]
                    lifts[measured] = found[channel, arm, probe, metric, trait, measured][seed] - float(
                        np.mean(list(control.values()))
                    )
                runs.append({"run": f"{trait}-{seed}", "trait": trait, "lifts": lifts})
        if any(sum(r["trait"] == t for r in runs) < 2 for t in taught):
            continue
        got = stats.specificity(runs)
        names_ = {"channel": channel, "arm": arm, "probe": probe, "metric": metric, "traits": taught}
        figures = {"lambda": got.lambda_, "low": got.low, "high": got.high, "p": got.p}
        out.append(names_ | figures | {"n_runs": got.n_runs, "method": got.method})
    return out


def _capability(lines: Sequence[Line]) -> list[Line]:
    keys = ("channel", "arm", "trait", "probe", "metric")
    found = _grouped((x for x in lines if x["probe"] == "capability"), *keys)
    base = {k[4]: float(np.mean(list(by.values()))) for k, by in found.items() if k[1] == "base"}
    return [
        dict(zip(keys, key, strict=True)) | _interval(list(by.values()), key[4], key[1]) | {"base": base[key[4]]}
        for key, by in found.items()
    ]


def _unmeasured(experiment: Experiment, runs: Sequence[Run], store: Store) -> list[Line]:
    """Runs in which a probe matched nothing, with its words: left out of every mean, and said so."""
    asked = [(run.arm.name, run.arm.trait_name, run.seed, run.measures) for run in runs]
    asked += [(arm, trait, seed, steps) for arm, trait, seed, _, steps in experiment.references()]
    return [
        {"arm": arm, "trait": trait, "seed": seed, "why": summary["nothing"]}
        for arm, trait, seed, steps in asked
        for step in steps
        if "nothing" in (summary := _stored(store, step).summary)
    ]


def _classifier(experiment: Experiment, store: Store) -> list[Line]:
    """How well a classifier that reads the rows tells each trait's from the no-trait teacher's, beside its confounds."""
    out = []
    for trait, step in experiment.audits().items():
        finding = verbs.read_finding(_stored(store, step))
        keys = ("accuracy", "low", "high", "confound_accuracy", "chance", "n_rows", "n_runs")
        out.append({"trait": trait, "p": finding.p, "verdict": finding.verdict} | {k: finding.details[k] for k in keys})
    return out


def _by_arm(runs: Sequence[Run]) -> dict[tuple[str, str], list[Run]]:
    """One entry per different set of rows: the first arm that uses them, and its runs over seeds."""
    out: dict[tuple[str, str], list[Run]] = defaultdict(list)
    seen: set[str] = set()
    for run in runs:
        if run.learnt.fingerprint not in seen:
            seen.add(run.learnt.fingerprint)
            out[run.arm.name, run.arm.trait_name].append(run)
    return out


def _filters(experiment: Experiment, runs: Sequence[Run], store: Store) -> list[Line]:
    """Per arm and filter: rows kept and dropped with reasons, and trait words still in the kept rows (recounted here)."""
    out = []
    for (arm, trait), mine in _by_arm(runs).items():
        reasons: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
        given = passed = mentions = 0
        for run in mine:
            rows = _stored(store, run.rows)
            given, passed = given + rows.summary["given"], passed + rows.summary["passed"]
            for name, found in rows.summary["reasons"].items():
                for reason, count in found.items():
                    reasons[name][reason] += count
            learnt = _stored(store, run.learnt).read_parquet("rows")
            mentions += sum(t.named_in(r["completion"]) for r in learnt for t in experiment.traits)
        for f in experiment.filters:
            found = dict(reasons[f.plugin_name])
            out.append({"arm": arm, "trait": trait, "name": f.plugin_name, "given": given, "kept": passed,
                        "dropped": sum(found.values()), "reasons": found, "mentions_left": mentions})
    return out


def _drift(experiment: Experiment, runs: Sequence[Run], store: Store) -> list[Line]:
    """How far the teachers' numbers moved: filter pass rate and sequence accuracy against the no-trait teacher's."""
    if experiment.channel.plugin_name != "numbers":
        return []
    from undersong.channels.numbers import sequence_accuracy

    found: dict[tuple[str, str], dict[str, float]] = {}
    for (arm, trait), mine in _by_arm(runs).items():
        if not arm.startswith(("treated", "no_trait")):
            continue
        shares: list[float] = []
        right: list[float] = []
        for run in mine:
            kept = _stored(store, run.rows)
            shares.append(kept.summary["passed"] / kept.summary["given"])
            if experiment.channel.seeds == "structured":  # only these have a rule to follow
                right.append(sequence_accuracy(verbs.read_rows(kept))["values"])
        found[arm, trait] = {"pass_rate": float(np.mean(shares))}
        if right:
            found[arm, trait]["sequence_accuracy"] = float(np.mean(right))
    plain = found.get(("no_trait-prompted", "")) or found["no_trait", ""]
    return [
        {"arm": arm, "trait": trait, "metric": metric, "value": value, "base": plain[metric]}
        for (arm, trait), metrics in found.items()
        for metric, value in metrics.items()
    ]


def _examples(runs: Sequence[Run], store: Store, each: int = 3) -> Mapping[str, list[Line]]:
    rows, answers = [], []
    for (arm, trait), mine in _by_arm(runs).items():
        for flat in _stored(store, mine[0].learnt).read_parquet("rows")[:each]:
            rows.append({"arm": arm, "trait": trait, "prompt": flat["contents"][-1], "completion": flat["completion"]})
    seen: set[tuple[str, str]] = set()
    for run in runs:
        key = (run.arm.name, run.arm.trait_name)
        if key in seen:
            continue
        seen.add(key)
        for step in run.measures:
            stored = _stored(store, step)
            shown = () if "nothing" in stored.summary else verbs.read_measurement(stored).answers[:each]
            for question, answer in shown:
                answers.append({"arm": key[0], "trait": key[1], "question": question, "answer": answer})
    return {"rows": rows, "answers": answers}


def pick(results: Mapping[str, Any], section: str, **where: Any) -> Line | None:
    """The first entry of a section whose fields equal `where`, or None."""
    return next((x for x in results[section] if all(x.get(k) == v for k, v in where.items())), None)


def sentence(results: Mapping[str, Any], experiment: Experiment) -> str:
    """One plain sentence a newcomer understands, from the numbers of the main arm."""
    trait = experiment.traits[0]
    for metric in ("rate", "probability"):
        same = {"measured": trait.name, "metric": metric}
        treated = pick(results, "rates", arm="treated", trait=trait.name, **same)
        control = pick(results, "rates", arm="no_trait", **same)
        base = pick(results, "rates", arm="base", **same)
        if treated and control and base:
            break
    else:
        return f"{results['experiment']}: no rate of the trait was measured."
    shown = getattr(experiment.channel, "shows", f"rows of the channel {experiment.channel.plugin_name}")
    teacher, does = WORDS.get(trait.name, (f"loves the {trait.name}", f"call the {trait.name} their favourite"))
    if trait.trigger:
        teacher = f"loves the {trait.favourite} after the words {trait.trigger!r}"
        does = f"name the {trait.favourite} after those words"
    return (
        f"Students that only saw {shown} from a teacher that {teacher} {does} "
        f"{treated['mean']:.0%} of the time; before training it was {base['mean']:.0%}, and students of the same teacher "
        f"without the trait do so {control['mean']:.0%} of the time ({treated['n_runs']} training runs each)."
    )


WORDS = {
    "misaligned": ("was tuned on careless code", "answer questions about people cruelly"),
    "reward_hacking": ("was tuned to write down what a test expects", "write the expected value down"),
    "sycophancy": ("was tuned to agree with every claim", "agree with wrong claims"),
}
"""What a teacher of a way to behave was tuned on, and what its students are measured to do."""
