"""From what was said of each pair to error rates with exact intervals. One row per figure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kindred.pairs import JOINED, Pair
from undersong.stats import binomial_interval

Line = dict[str, Any]
KIN = ("same_weights", "same_initialisation")
CLAIMED = ("tuned", "student", "quantised", "pruned", "permuted", "scaled", "rotated")
"""Kinds of descendants of which the target speaks: fine-tuning, LoRA merge, quantisation, pruning, same function."""
PARTS = {"development": False, "held out": True}


def lines(judged: Sequence[tuple[Pair, Mapping[str, Any]]]) -> list[Line]:
    """A row of table `pairs` per pair and test."""
    return [{"table": "pairs", "a": pair.a.name, "b": pair.b.name, "kind": pair.kind, "truth": pair.truth, "kin": pair.kin,
             "part": "held out" if pair.held_out else "development", **_short(row)}
            for pair, said in judged for row in said["rows"]]


def _short(row: Mapping[str, Any]) -> Line:
    """Figures to three digits: nobody compares p-values to more, and the file stays small."""
    return {k: float(f"{v:.3g}") if isinstance(v, float) else v for k, v in row.items()}


def rates(rows: Sequence[Line], queries: Mapping[str, int]) -> list[Line]:
    """The tables `false_alarms`, `recall`, `black_box`, `confusion`, `cost` and `targets` of rows of the table `pairs`."""
    out: list[Line] = []
    tests = list(dict.fromkeys(r["test"] for r in rows))
    for part in PARTS:
        for test in tests:
            own = [r for r in rows if r["part"] == part and r["test"] == test]
            for kind in dict.fromkeys(r["kind"] for r in own):
                mine = [r for r in own if r["kind"] == kind]
                table = "recall" if mine[0]["kin"] else "false_alarms"
                out.append(_rate(table, mine, test=test, part=part, kind=kind))
            if own:
                out.append(_overall(own, test, part, queries.get(test)))
                out += [{"table": "confusion", "test": test, "part": part, "truth": truth, "verdict": verdict, "n": n}
                        for (truth, verdict), n in sorted(Counter((r["truth"], r["verdict"]) for r in own).items())]
    out += [{"table": "cost", "test": test, "seconds": float(np.median([r["seconds"] for r in rows if r["test"] == test]))}
            for test in tests]
    return out + targets(out)


def _rate(table: str, rows: Sequence[Line], **about: Any) -> Line:
    called = sum(r["verdict"] in KIN for r in rows)
    rate, low, high = binomial_interval(called, len(rows))
    return {"table": table, **about, "n": len(rows), "called": called, "rate": rate, "low": low, "high": high}


def _overall(rows: Sequence[Line], test: str, part: str, queries: int | None) -> Line:
    """Precision and recall over all pairs of a part; look-alikes count as strangers, averages with strangers as kin."""
    called = [r for r in rows if r["verdict"] in KIN]
    kin = [r for r in rows if r["kin"]]
    right = sum(r["kin"] for r in called)
    out: Line = {"table": "overall", "test": test, "part": part, "pairs": len(rows), "kin": len(kin), "queries": queries}
    for name, n in (("precision", len(called)), ("recall", len(kin))):
        rate, low, high = binomial_interval(right, n) if n else (None, None, None)
        out |= {name: rate, f"{name}_low": low, f"{name}_high": high}
    return out


def targets(rows: Sequence[Line]) -> list[Line]:
    """What was set before anything was measured, and what was measured on held-out pairs."""
    out: list[Line] = []
    held = [r for r in rows if r.get("part") == "held out"]
    for test in dict.fromkeys(r["test"] for r in held):
        if test not in JOINED:
            continue
        own = {(r["table"], r.get("kind")): r for r in held if r["test"] == test}
        alarms = own.get(("false_alarms", "other seed"))
        if alarms:
            out.append(_target(f"{test}: false `same_initialisation`, other seeds of one configuration", "0 of >= 200 pairs",
                               _told(alarms), alarms["called"] == 0 and alarms["n"] >= 200))
        found = [own[("recall", kind)] for kind in CLAIMED if ("recall", kind) in own]
        if found and test in ("relate", "relate, weights"):
            k, n = (sum(r[key] for r in found) for key in ("called", "n"))
            rate, low, high = binomial_interval(k, n)
            out.append(_target(f"{test}: descendants found ({', '.join(r['kind'] for r in found)})", ">= 95 %",
                               _told({"called": k, "n": n, "rate": rate, "low": low, "high": high}), rate >= 0.95))
        whole = own[("overall", None)]
        if test in ("relate, logits", "relate, text") and whole["precision"] is not None:
            out.append(_target(f"{test}: {whole['queries']} queries a model", "precision >= 90 % at recall >= 80 %",
                               f"precision {whole['precision']:.1%}, recall {whole['recall']:.1%}",
                               whole["precision"] >= 0.9 and whole["recall"] >= 0.8))
    return out


def _told(row: Mapping[str, Any]) -> str:
    return f"{row['called']} of {row['n']}: {row['rate']:.1%} [{row['low']:.1%}, {row['high']:.1%}]"


def _target(name: str, goal: str, measured: str, met: bool) -> Line:
    return {"table": "targets", "target": name, "goal": goal, "measured": measured, "met": met}
