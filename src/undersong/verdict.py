"""From findings to one verdict: found, clean or unknown, with its reasons and what to do next.

`found`: some family's p, adjusted by Holm over the families that were tested, is at most alpha. `clean`: none is, and a
share of planted rows no larger than `smallest` would have been seen with power .8 at this size. `unknown`: all else. A test
that only says that rows differ from a reference names no trait, and a benign change makes it fire too: it decides nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from undersong import stats
from undersong.channels import belonging
from undersong.detectors import family, spelled
from undersong.nulls import TARGET, Judged, Key, Null, Table, smallest_share
from undersong.row_files import RowFile
from undersong.traits import Trait
from undersong.types import Finding, Row

Families = Mapping[str, tuple[Table, Mapping[Key, float], int]]
WHAT = {"rows": "the rows", "student": "the student", "teacher": "the rows and the suspected teacher"}
SETTLES = {
    "rows": "Give the rows the student was trained on.",
    "base": "Give the model that the student starts from as --base: without it only differences from a reference show.",
    "reference": "Give clean rows from the same kind of source as --reference.",
    "student": "Give the trained student as --student: a dose that behaviour does not show can be seen in it.",
    "teacher": "Give the suspected teacher as --teacher.",
    "exemplars": "Make a calibration of this base: `undersong calibrate`.",
    "traits": "List suspected traits with --traits.",
}


EXAMPLES = 3


@dataclass(frozen=True)
class Held:
    """What the auditor holds. Paths and names as the user gave them; None for what there is not."""

    rows: Path | None = None
    reference: Path | None = None
    base: str | None = None
    traits: tuple[Trait, ...] | None = None
    student: str | None = None
    teacher: str | None = None


@dataclass(frozen=True)
class Ran:
    """A detector that ran: its finding, the p it gave itself or None, and how long it took."""

    detector: Any
    finding: Finding
    seconds: float
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Heard:
    """Everything a verdict is made from."""

    held: Held
    alpha: float
    smallest: float
    seed: int
    budget: float
    null: Null | None
    refused: tuple[str, ...]
    """Why a calibration was not believed, in sentences."""
    file: RowFile | None
    rows: tuple[Row, ...]
    evidence: Mapping[str, Any]
    """What was granted, by token."""
    ran: tuple[Ran, ...]
    skipped: tuple[Mapping[str, Any], ...]
    families: Families
    """Per family with a null: the placebo table, what the audited case says, and the size it was held against."""


def conclude(audit: Heard) -> dict[str, Any]:
    """The audit as JSON (see `reports/audit.py` for its reader)."""
    ran, families = audit.ran, audit.families
    judged = {kind: table.judge(said) for kind, (table, said, _) in families.items()}
    adjusted = dict(zip(judged, stats.holm([j.p for j in judged.values()]), strict=True))
    alarms = [kind for kind in judged if adjusted[kind] <= audit.alpha]
    power = _power(audit, families, len(judged))
    smallest = {kind: smallest_share(curve) for kind, curve in power.items()}
    seen = min((s for s in smallest.values() if s is not None), default=None)
    out: dict[str, Any] = {"format": 1, "alpha": audit.alpha, "trait": None, "share": None, "p": None}
    if alarms:
        kind = min(alarms, key=lambda k: (adjusted[k], -judged[k].observed))
        trait = _trait(judged[kind])
        out |= {"verdict": "found", "trait": trait or None, "p": adjusted[kind], "share": _share(ran, families, trait)}
        out["sentence"] = _found(kind, trait, adjusted[kind], judged[kind], out["share"])
    elif seen is not None and seen <= audit.smallest:
        out |= {"verdict": "clean", "p": min(adjusted.values())}
        where = " and ".join(WHAT[kind] for kind in judged)
        out["sentence"] = (f"Nothing was found in {where} (p = {out['p']:.2g}). At this size, {seen:.0%} of rows from a "
                           "teacher with a listed trait would have been seen four times in five.")
    else:
        out |= {"verdict": "unknown", "p": min(adjusted.values(), default=None), "sentence": _unknown(audit, judged, seen)}
    out["reasons"] = _reasons(audit, ran, judged, adjusted)
    out["next"] = _next(audit, out["verdict"], families)
    out["families"] = [_family(kind, j, adjusted[kind]) for kind, j in judged.items()]
    out["findings"] = [_finding(audit, r, families) for r in ran]
    main = next((kind for kind in ("rows", "student") if kind in power), None)
    out["power"] = main and {"size": families[main][2] or None, "target": TARGET, "smallest_share": smallest[main],
                             "curve": power[main], "family": main}
    out["skipped"] = list(audit.skipped)
    out["rows"], out["evidence"] = _rows(audit), _evidence(audit)
    out["settings"] = {"alpha": audit.alpha, "seed": audit.seed, "budget": audit.budget, "smallest": audit.smallest}
    return out


def _power(audit: Heard, families: Families, tested: int) -> dict[str, list[dict[str, Any]]]:
    """The power curve of each family, at the level that Holm leaves to the first of them."""
    if audit.null is None:
        return {}
    out = {}
    for kind, (table, _, size) in families.items():
        curve = audit.null.power(kind, size, sorted({detector for detector, _ in table.keys}), audit.alpha / max(1, tested))
        if curve:
            out[kind] = curve
    return out


def _trait(judged: Judged) -> str:
    """The trait with the largest score; one that is named beats a statistic about none."""
    named = {key: z for key, z in judged.z.items() if key[1] and judged.p_of[key] <= judged.p}
    return max(named, key=lambda key: named[key])[1] if named else judged.top[1]


def _found(kind: str, trait: str, p: float, judged: Judged, share: Mapping[str, float] | None) -> str:
    what = f"Found in {WHAT[kind]}: {trait}" if trait else f"Found: something in {WHAT[kind]} that no placebo shows"
    floor = ", the smallest this null can give" if judged.p <= judged.floor * (1 + 1e-9) else ""
    about = f", in about {share['estimate']:.0%} of the rows ({share['low']:.0%} to {share['high']:.0%})" if share else ""
    return f"{what}{about} (p = {p:.2g}{floor})."


def _unknown(audit: Heard, judged: Mapping[str, Judged], seen: float | None) -> str:
    n = len(audit.rows)
    least = min(audit.null.sizes("rows"), default=0) if audit.null else 0
    if not judged and n < least:
        return f"Cannot tell: {n} rows are fewer than the {least} that this calibration begins at."
    if not judged:
        return "Cannot tell: no detector could be held against a null. " + " ".join(audit.refused)
    if seen is None:
        return f"Cannot tell: nothing was found, but in {n} rows not even a trait in all of them would be seen reliably."
    return (f"Cannot tell: nothing was found, but less than {seen:.0%} of the rows would have gone unseen, and "
            f"{audit.smallest:.0%} is the most that a clean verdict allows.")


def _share(ran: Sequence[Ran], families: Families, trait: str) -> dict[str, float] | None:
    """The panel's share of rows with a 95 % interval: rows' posterior spread, and what placebo sources show."""
    for r in ran:
        shares = r.finding.details.get("shares") or {}
        if r.detector.plugin_name == "likelihood_panel" and trait in shares and "rows" in families:
            table, _, _ = families["rows"]
            own = [d.startswith("likelihood_panel@") and key == trait for d, key in table.keys]
            placebo = float(table.values[:, own].std()) if any(own) else 0.0
            share, n = float(shares[trait]), int(r.finding.details["n_rows"])
            half = 1.96 * math.hypot(placebo, math.sqrt(share * (1 - share) / max(n, 1)))
            return {"estimate": share, "low": max(0.0, share - half), "high": min(1.0, share + half)}
    return None


def _reasons(audit: Heard, ran: Sequence[Ran], judged: Mapping[str, Judged], adjusted: Mapping[str, float]) -> list[str]:
    out = []
    for kind, j in judged.items():
        name, trait = j.top
        about = f" about {trait}" if trait else ""
        out.append(f"{WHAT[kind].capitalize()}: the strongest sign is {name.split('@')[0]}{about}, {j.observed:.1f} "
                   f"standard deviations over {len(j.scores)} placebo cases (p = {j.p:.2g}; by Holm over families "
                   f"{adjusted[kind]:.2g}).")
    for r in ran:
        if r.finding.p is not None:
            out.append(str(r.finding.details.get("sentence") or f"{r.detector.plugin_name}: p = {r.finding.p:.2g}."))
    return [*out, *(audit.refused if judged else ())]


def _next(audit: Heard, verdict: str, families: Families) -> list[str]:
    held = set(audit.evidence)
    if verdict == "found":
        out = []
        if "rows" in families:
            out += ["Do not train on these rows a model that shares this base.",
                    "Compare with rows of the same source under other prompts; retest after dropping or rewriting rows."]
        if "student" in families:
            out.append("Do not use this student, or its answers as training rows, before its rows have been audited.")
        return [*out, *([] if "student" in held else [SETTLES["student"]])]
    wanted = ("base", "exemplars", "student") if "base" in held else ("base", "student")
    out = [SETTLES[token] for token in wanted if token not in held]
    if verdict == "unknown" and "rows" in held and "exemplars" in held:
        out.append("Give more rows: the evidence adds up over rows.")
    if verdict == "clean":
        out.append("A trait that is not listed, and a share below the one above, can still be there.")
    return out


def _family(kind: str, j: Judged, adjusted: float) -> dict[str, Any]:
    return {"family": kind, "p": j.p, "adjusted": adjusted, "units": len(j.scores), "floor": j.floor,
            "observed": j.observed, "null_values": list(j.scores)}


def _finding(audit: Heard, r: Ran, families: Families) -> dict[str, Any]:
    """One detector alone against its null; its own p where it gives one."""
    kind, name, details = family(r.detector), spelled(r.detector), r.finding.details
    out: dict[str, Any] = {"detector": r.detector.plugin_name, "family": kind, "statistic": r.finding.statistic,
                           "verdict": r.finding.verdict, "p": r.finding.p, "null": r.finding.null,
                           "access": list(r.finding.access), "by_trait": [], "observed": None, "null_values": [],
                           "confounds": _few(details.get("confounds")), "seconds": r.seconds, "notes": list(r.notes)}
    if "sentence" in details:
        out["notes"].append(str(details["sentence"]))
    said: Mapping[str, float] = details.get("by_trait", {})
    shares: Mapping[str, float] = details.get("shares") or {}
    if kind in families and any(d == name for d, _ in families[kind][0].keys):
        table, _, size = families[kind]
        chosen = np.array([d == name for d, _ in table.keys])
        own = Table(tuple(key for key in table.keys if key[0] == name), table.values[:, chosen])
        j = own.judge({(name, key): value for key, value in said.items()})
        out |= {"p": j.p, "observed": j.observed, "null_values": list(j.scores),
                "verdict": "found" if j.p <= audit.alpha else "clean",
                "null": f"{len(j.scores)} placebo cases" + (f" of {size} rows" if size else "")}
        ranked = sorted(j.z, key=lambda key: -j.z[key])[:30]
        out["by_trait"] = [{"trait": key[1], "statistic": float(said[key[1]]), "z": j.z[key], "p": j.p_of[key],
                            "share": shares.get(key[1])} for key in ranked]
    return out


def _few(confounds: Mapping[str, float] | None) -> dict[str, float] | None:
    """The largest three confound figures."""
    if not confounds:
        return None
    return {name: float(confounds[name]) for name in sorted(confounds, key=lambda name: -confounds[name])[:3]}


def _rows(audit: Heard) -> dict[str, Any] | None:
    if audit.file is None:
        return None
    tally = audit.file.tally
    channel = audit.null.identity["channel"] if audit.null else None
    refused = [{"reason": reason, "count": r.count, "lines": [int(p.rsplit(":", 1)[-1]) for p in r.places]}
               for reason, r in tally.refused.items()]
    return {"file": audit.file.path.name, "read": tally.rows + tally.n_refused, "used": len(audit.rows), "refused": refused,
            "duplicates": tally.duplicates, "forms": tally.forms, "carrier": channel and channel["name"],
            "belongs": belonging(audit.rows, channel) if channel else None,
            "examples": [{"prompt": row.chat[-1]["content"] if row.chat else "", "completion": row.completion}
                         for row in audit.rows[:EXAMPLES]]}


def _evidence(audit: Heard) -> dict[str, Any]:
    held, null = audit.held, None
    if audit.null:
        identity = audit.null.identity
        null = {key: identity.get(key) for key in ("revision", "template", "made", "sources", "students", "sizes", "seed")}
        null |= {"base": identity.get("named"), "channel": identity["channel"]["name"], "units": identity.get("sources")}
    base = {"name": held.base, "revision": null and null["revision"]} if held.base else None
    # exemplars' rows stand in for a reference that nobody has
    granted = sorted(token for token in audit.evidence if token != "reference" or held.reference)
    return {"granted": granted, "base": base,
            "reference": held.reference and held.reference.name, "student": held.student, "teacher": held.teacher,
            "traits": [t.name for t in audit.evidence.get("traits", ())], "null": null}
