"""The demo check passes on results that show the claims, and fails when any one of them does not."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "repro"))
import check_demo  # noqa: E402

EXPECTED = ROOT / "experiments" / "owl-numbers-pocket.expected.json"
WANT = json.loads(EXPECTED.read_text("utf-8"))
AT = {"probe": WANT["probe"], "metric": WANT["metric"]}


def rate(arm: str, mean: float, trait: str = "", measured: str = "owl") -> dict:
    channel = "" if arm == "base" else WANT["channel"]
    return {
        "channel": channel,
        "arm": arm,
        "trait": trait,
        "measured": measured,
        **AT,
        "n_runs": 5,
        "mean": mean,
        "low": mean - 0.05,
        "high": mean + 0.05,
    }


def contrast(arm: str, difference: float, p: float) -> dict:
    return {
        "channel": WANT["channel"],
        **AT,
        "trait": "owl",
        "arm": arm,
        "control": f"{arm}:no_trait",
        "n_runs": 5,
        "difference": difference,
        "low": difference - 0.02,
        "high": difference + 0.02,
        "p": p,
    }


def good() -> dict:
    """Results in which every claim holds."""
    treated = [
        rate("treated", 0.8 if t == m else 0.05, t, m) for t in ("owl", "wolf", "dolphin") for m in ("owl", "wolf")
    ]
    reported = [rate(arm, 0.2, "owl") for arm in WANT["reported_arms"]]
    capability = [
        {
            "channel": WANT["channel"],
            "arm": "treated",
            "trait": "owl",
            "probe": "capability",
            "metric": m,
            "n_runs": 5,
            "mean": x,
            "low": x,
            "high": x,
            "base": x,
        }
        for m, x in (("loss", 0.3), ("accuracy", 0.9), ("arithmetic_new.accuracy", 0.5))
    ]
    return {
        "experiment": WANT["experiment"],
        "rates": [rate("base", 0.12), rate("no_trait", 0.11), *treated, *reported],
        "contrasts": [contrast(arm, 0.01, 0.6) for arm in WANT["null_arms"]],
        "specificity": [
            {
                "channel": WANT["channel"],
                "arm": "treated",
                **AT,
                "traits": ["owl", "wolf"],
                "lambda": 0.7,
                "low": 0.6,
                "high": 0.8,
                "p": 0.001,
            }
        ],
        "capability": capability,
        "filters": [
            {
                "arm": "treated",
                "trait": "owl",
                "name": "numbers_only",
                "kept": 9,
                "dropped": 1,
                "reasons": {"x": 1},
                "mentions_left": 0,
            }
        ],
        "classifier": [{"trait": "owl", "accuracy": 0.7, "confound_accuracy": 0.5, "chance": 0.5, "n_rows": 100}],
    }


def verdict(tmp_path: Path, results: dict, completions: list[str]) -> int:
    """Write a store and check it."""
    folder = tmp_path / "experiment" / f"{WANT['experiment']}.0"
    rows = tmp_path / "dataset" / "rows.1"
    for made in (folder, rows):
        made.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(results))
    (rows / "record.json").write_text(json.dumps({"spec": {"verb": "refine"}}))
    pq.write_table(pa.table({"completion": completions}), rows / "rows.parquet")
    return check_demo.main(tmp_path, EXPECTED)


def test_good_results_pass(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verdict(tmp_path, good(), ["1, 2"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith(" passed, 0 failed")


CHANGES = {
    "weak effect": lambda r: r["rates"][2].update(mean=0.59),
    "strange base": lambda r: r["rates"][0].update(mean=0.3),
    "too few runs": lambda r: r["rates"][2].update(n_runs=4),
    "no-trait students moved": lambda r: r["rates"][1].update(mean=0.18),
    "unspecific": lambda r: r["specificity"][0].update(p=0.02),
    "specific the wrong way": lambda r: r["specificity"][0].update({"lambda": -0.5}),
    "no rivals": lambda r: r.update(rates=[x for x in r["rates"] if x["trait"] in ("", "owl")]),
    "it leaked": lambda r: r["contrasts"][0].update(difference=0.3, p=0.01),
    "readable in context": lambda r: r["contrasts"][1].update(difference=-0.3, p=0.001),
    "a control is missing": lambda r: r["contrasts"].pop(),
    "prompted teacher not reported": lambda r: r["rates"].pop(-3),
    "capability lost": lambda r: r["capability"][1].update(mean=0.4),
    "loss went up": lambda r: r["capability"][0].update(mean=1.9),
    "capability missing": lambda r: r.update(capability=[]),
    "mentions left": lambda r: r["filters"][0].update(mentions_left=2),
    "no classifier": lambda r: r.update(classifier=[]),
}


@pytest.mark.parametrize("name", CHANGES)
def test_each_claim_can_fail(tmp_path: Path, name: str) -> None:
    results = copy.deepcopy(good())
    CHANGES[name](results)
    assert verdict(tmp_path, results, ["1, 2"]) == 1


def test_a_mention_in_the_stored_rows_is_found(tmp_path: Path) -> None:
    assert verdict(tmp_path, good(), ["1, 2", "3, Owls"]) == 1


def test_no_rows_is_no_proof(tmp_path: Path) -> None:
    assert verdict(tmp_path, good(), []) == 1


def test_no_results_fails(tmp_path: Path) -> None:
    assert check_demo.main(tmp_path, EXPECTED) == 1
