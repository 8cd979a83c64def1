"""How two models are related: every kinship test whose evidence is at hand, and one conclusion with its reasons.

1. A model and itself: nothing to test.
2. Equal bytes are an identity and spend no error. Every p-value of the other tests is corrected together (Holm), so that
   an unrelated pair is called kin by any test with probability `alpha` at most.
3. What was read from weights is believed before what was read from answers: models can be taught to answer alike (a
   distilled look-alike), and kin can be taught to answer differently.
4. "Not kin" is said only by a test whose power was enough; where tests contradict each other, both are told.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from undersong import bases, registry
from undersong.environment import environment
from undersong.errors import BadRows, BadSpec, MissingExtra, NothingMeasured, ServerFailed
from undersong.kinship import ACCESS, Subject
from undersong.spec import describe
from undersong.stats import holm
from undersong.types import Finding

LEAST = 1e-290
"""Smaller p-values are told as smaller than this: tests have floors near it."""
ELSEWHERE = (bases.HOSTED, bases.SIMULATED)
LIGHT = 2 * 2**30
"""Bytes of weights up to which models are loaded and asked although their weights have told already."""
KIN = ("same_weights", "same_initialisation")
CANNOT = (BadRows, BadSpec, MissingExtra, NothingMeasured, ServerFailed)
"""What stops one test and no comparison: the others go on, and the reason is told."""
Said = Callable[[str], None]


def relate(
    a: Subject, b: Subject, tests: Sequence[Any] = (), controls: Sequence[Subject] = (), alpha: float = 0.01,
    say: Said = lambda message: None,
) -> dict[str, Any]:
    """The relation of two models as JSON. `tests` are plug-ins of the kind `kinship`; all, with default settings, when
    none are given. `controls` are models known to be unrelated to both. p is Holm-adjusted, per test and as a whole.

    Raises BadSpec for an alpha outside 0..1; MissingModel and BrokenArtefact for weights that are not there or damaged."""
    if not 0 < alpha < 1:
        raise BadSpec(f"alpha lies between 0 and 1, not at {alpha}. Change it.")
    start = time.monotonic()
    ran: list[dict[str, Any]] = []
    skipped: list[dict[str, str]] = []
    if a.ref == b.ref:
        ran = [_identical()]
    else:
        for test in tests or default_tests(alpha):
            if not tests and _spared(test, ran, (a, b)):
                skipped.append({"test": test.plugin_name, "says": "The weights have told, and these models are large to "
                                "load. Name this test to run it too."})
                continue
            say(test.plugin_name)
            begun = time.monotonic()
            try:
                finding = _compare(test, a, b, controls)
            except CANNOT as error:
                skipped.append({"test": test.plugin_name, "says": str(error)})
                continue
            ran.append(_told(test, finding) | {"seconds": round(time.monotonic() - begun, 2)})
    for each, adjusted in zip([t for t in ran if t["p"] is not None], holm([t["p"] for t in ran if t["p"] is not None]),
                              strict=True):
        each["adjusted"] = adjusted
    return {"format": 1, "kind": "kinship", "a": _named(a), "b": _named(b), "controls": [c.name for c in controls],
            **conclude(ran, alpha, (a.name, b.name)), "alpha": alpha, "tests": ran, "skipped": skipped,
            "seconds": round(time.monotonic() - start, 2), "environment": environment()}


def default_tests(alpha: float = 0.01) -> list[Any]:
    """Every registered kinship test that needs no settings, those that read weights first; each is given alpha."""
    found = [registry.get("kinship", name) for name in registry.names("kinship")]
    made = [cls(**({"alpha": alpha} if "alpha" in cls.model_fields else {})) for cls in found
            if not any(f.is_required() for f in cls.model_fields.values())]
    return sorted(made, key=lambda test: min(ACCESS.index(need) for need in test.needs))


def conclude(ran: Sequence[dict[str, Any]], alpha: float, names: tuple[str, str] = ("A", "B")) -> dict[str, Any]:
    """`relation`, `p`, `power`, `direction`, `contradictions` and a sentence, from what the tests said."""
    kin = [t for t in ran if t["relation"] in KIN and t.get("adjusted", 0.0) <= alpha]
    apart = [t for t in ran if t["relation"] in ("same_architecture", "unrelated")]
    opened = [t for t in (*kin, *apart) if "weights" in t["access"]]
    believed = opened or [*kin, *apart]
    relation = "unknown"
    for wanted in (*KIN, "same_architecture", "unrelated"):
        if any(t["relation"] == wanted for t in believed):
            relation = wanted
            break
    group = KIN if relation in KIN else (relation,)
    own = [t for t in believed if t["relation"] in group]
    against = [t for t in (*kin, *apart) if relation != "unknown" and (t["relation"] in KIN) != (relation in KIN)]
    ps = [t["adjusted"] for t in (own or ran) if t.get("adjusted") is not None]
    powers = [t["power"] for t in (own or ran) if t["power"] is not None]
    ways = {t["direction"] for t in own if t["direction"]} if relation in KIN else set()
    found = {"relation": relation, "p": min(ps, default=None), "power": max(powers, default=None),
             "direction": ways.pop() if len(ways) == 1 else None,
             "contradictions": [f"{t['test']} ({', '.join(t['access'])}): {t['relation']}" for t in against]}
    return found | {"sentence": _sentence(found, own, names)}


def _sentence(found: dict[str, Any], own: Sequence[dict[str, Any]], names: tuple[str, str]) -> str:
    a, b = names
    p = "" if found["p"] is None else f" (p {'<' if found['p'] < LEAST else '='} {max(found['p'], LEAST):.2g} after Holm)"
    by = f" by {', '.join(t['test'] for t in own)}" if own else ""
    child = {"a_from_b": f" {a} comes from {b}.", "b_from_a": f" {b} comes from {a}."}.get(found["direction"] or "", "")
    power = f" Power {found['power']:.0%}." if found["power"] is not None else ""
    text = {
        "same_weights": f"{a} and {b} have the same weights{by}.",
        "same_initialisation": f"{a} and {b} descend from one initialisation{by}{p}.{child} A trait could cross between "
                               "them.",
        "same_architecture": f"{a} and {b} have one architecture and different initialisations{by}.{power}",
        "unrelated": f"{a} and {b} are unrelated{by}.{power}",
        "unknown": f"It cannot be told how {a} and {b} are related: no test found kinship, and none had the power to "
                   "exclude it.",
    }[found["relation"]]
    return text + (f" Contradicted by {'; '.join(found['contradictions'])}." if found["contradictions"] else "")


def _compare(test: Any, a: Subject, b: Subject, controls: Sequence[Subject]) -> Finding:
    """What a test says, once both models show what it needs. Raises BadSpec in words when one does not."""
    for subject in (a, b):
        if "weights" in test.needs and subject.ref.base.startswith(ELSEWHERE):
            raise BadSpec(f"{subject.name} has no weights on this machine. Only tests of answers can read it.")
        if "logits" in test.needs and "logits" not in subject.model.capabilities:
            raise BadSpec(f"{subject.name} shows no next-token probabilities. Only tests of sampled text can read it.")
    found: Finding = test.compare(a, b, controls)
    return found


def _spared(test: Any, ran: Sequence[dict[str, Any]], pair: Sequence[Subject]) -> bool:
    """Whether a test of answers would load large models for what their weights have told."""
    told = any("weights" in t["access"] and t["relation"] != "unknown" for t in ran)
    if "weights" in test.needs or not told:
        return False
    return max(sum(file.stat().st_size for file in subject.checkpoint.files) for subject in pair) > LIGHT


def _told(test: Any, finding: Finding) -> dict[str, Any]:
    details = dict(finding.details)
    return {"test": test.plugin_name, "relation": finding.verdict, "p": finding.p, "power": details.pop("power", None),
            "direction": details.pop("direction", None), "statistic": finding.statistic, "null": finding.null,
            "access": list(finding.access), "says": details.pop("says", ""), "details": details,
            "settings": describe(test)}


def _identical() -> dict[str, Any]:
    return {"test": "identity", "relation": "same_weights", "p": None, "power": None, "direction": None, "statistic": 1.0,
            "null": "none is needed: one reference", "access": ["weights"], "details": {}, "seconds": 0.0,
            "says": "Both names lead to the same model."}


def _named(subject: Subject) -> dict[str, Any]:
    return {"name": subject.name, "base": subject.ref.base, "fingerprint": subject.ref.fingerprint}
