"""Baselines that should fail: a text classifier of character n-grams, and, where one is named, a language model as judge."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from detecting.cells import auroc
from detecting.world import World
from undersong import stats
from undersong.calibration import side_by_side
from undersong.detectors import PLACEBO, Evidence
from undersong.errors import NothingMeasured
from undersong.spec import build, fingerprint
from undersong.types import Row

TAUGHT = 400
"""Rows of each exemplar run that the classifier learns from."""
SET = 150
"""Rows of a set that is judged by the mean of its rows' log-odds."""


def ngrams(world: World) -> list[dict[str, Any]]:
    """AUROC of a character n-gram classifier on each held-out trait: single rows and sets, against benign sources.

    `known`: it learns from exemplar rows of the trait itself against placebo rows; `unknown`: of all other traits.
    """
    spec = {"verb": "benchmark", "baseline": "ngrams", "taught": TAUGHT, "set": SET, "version": 2}
    sources = [*world.planted_sources, *world.benign_sources]
    parents = [world.mark, fingerprint([s.data.fingerprint for s in sources])]
    with world.lab.store.open("cells", "ngrams", spec, parents) as artefact:
        if not artefact.complete:
            world.lab.progress("character n-grams: the baseline that should fail")
            artefact.write_json("lines", _ngrams(world))
            artefact.finish({})
        return list(artefact.read_json("lines"))


def _ngrams(world: World) -> list[dict[str, Any]]:
    from sklearn.feature_extraction.text import TfidfVectorizer

    known = world.known.rows
    names = [name for name in known if name != PLACEBO]
    texts = {name: [_text(row) for run in runs for row in run[:TAUGHT]] for name, runs in known.items()}
    reader = TfidfVectorizer(analyzer="char", ngram_range=(1, 4), min_df=5, sublinear_tf=True, max_features=20_000)
    reader.fit([text for own in texts.values() for text in own])
    taught = {name: reader.transform(own) for name, own in texts.items()}
    n = min(SET, world.sizes[0])
    benign = [reader.transform([_text(row) for row in s.data.rows[:n]]) for s in world.benign_sources]
    planted = {(s.trait, s.number): reader.transform([_text(row) for row in s.data.rows[:n]]) for s in world.planted_sources}

    def one(pair: tuple[str, str]) -> dict[str, Any]:
        trait, which = pair
        own = [trait] if which == "known" else [name for name in names if name != trait]
        model = _fit(taught[PLACEBO], [taught[name] for name in own])
        clean = [model.decision_function(x) for x in benign]
        mine = [model.decision_function(x) for (name, _), x in planted.items() if name == trait]
        return {"which": which, "trait": trait, "row_auroc": auroc(np.concatenate(mine), np.concatenate(clean)),
                "set_auroc": auroc([x.mean() for x in mine], [x.mean() for x in clean]), "rows": n}

    traits = [t.name for t in world.planted_traits]
    return side_by_side(one, [(trait, which) for which in ("known", "unknown") for trait in traits])


def _fit(clean: Any, own: Sequence[Any]) -> Any:
    from scipy.sparse import vstack
    from sklearn.linear_model import LogisticRegression

    x = vstack([clean, *own], format="csr")
    labels = np.repeat([0, 1], [clean.shape[0], x.shape[0] - clean.shape[0]])
    return LogisticRegression(C=1.0, class_weight="balanced", max_iter=300, tol=1e-6).fit(x, labels)


def _text(row: Row) -> str:
    return row.completion


def judge(world: World, model: str, questions: int) -> dict[str, Any]:
    """How often a language model names the trait of pure rows, among the planted traits and "none"."""
    told = list(world.planted_traits)
    detector = build("detector", {"judge": {"model": model, "questions_asked": 1}})
    right = read = 0
    for i in range(questions):
        source = world.planted_sources[i % len(world.planted_sources)]
        rows = tuple(source.data.rows[20 * (i // len(world.planted_sources)) :][:20])
        held = Evidence({"rows": (rows,), "traits": tuple(told)})
        mark = fingerprint({"rows": source.data.fingerprint, "question": i})
        try:
            found = world.lab.audit(detector, held.only(detector.needs), [mark], "bench-judge")
        except NothingMeasured:
            continue
        read += 1
        right += max(found.details["by_trait"], key=found.details["by_trait"].get) == source.trait and found.statistic > 0
    rate, low, high = stats.binomial_interval(right, questions)
    return {"model": model, "questions": questions, "read": read, "right": rate, "low": low, "high": high,
            "chance": 1 / (len(told) + 1)}
