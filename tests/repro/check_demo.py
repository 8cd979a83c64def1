"""Does the demo show what it claims? `python tests/repro/check_demo.py STORE EXPECTED.json` checks its results file.

1. sampled, filtered numbers move the student to the trait, and to that trait only
2. a prompted teacher's figure is reported
3. no-trait students stay at base; other initialisations and rows in context show nothing trait-specific
4. the filters removed every mention, and a classifier is reported beside its confound baseline
5. capability is kept within the stated band
Every check prints what it saw. Exit 1 when one fails.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

Check = tuple[bool, str]
Table = list[dict[str, Any]]


def pick(rows: Table, **wanted: Any) -> Table:
    """The rows that agree with every given value."""
    return [r for r in rows if all(r.get(k) == v for k, v in wanted.items())]


def one(rows: Table, what: str, **wanted: Any) -> dict[str, Any]:
    """The single row that agrees. Raises LookupError when there is none, or more than one."""
    found = pick(rows, **wanted)
    if len(found) != 1:
        raise LookupError(f"{what}: {len(found)} rows match {wanted}, expected one")
    return found[0]


def transfer(results: Mapping[str, Any], want: Mapping[str, Any]) -> Iterator[Check]:
    """Claim 1."""
    at = {k: want[k] for k in ("probe", "metric")}
    trait, rates = want["trait"], results["rates"]
    base = one(rates, "base rate", arm="base", measured=trait, **at)
    low, high = want["base_between"]
    yield low <= base["mean"] <= high, f"base names {trait} at {base['mean']:.3f} (expected {low} to {high})"
    treated = one(rates, "treated rate", arm="treated", trait=trait, measured=trait, channel=want["channel"], **at)
    yield (
        treated["mean"] >= want["treated_at_least"],
        (
            f"treated students name {trait} at {treated['mean']:.3f} [{treated['low']:.3f}, {treated['high']:.3f}] "
            f"(expected at least {want['treated_at_least']})"
        ),
    )
    yield treated["n_runs"] >= want["runs"], f"{treated['n_runs']} treated runs (expected at least {want['runs']})"
    special = one(results["specificity"], "specificity", arm="treated", channel=want["channel"], **at)
    yield (
        special["p"] < want["specificity_p_below"] and special["lambda"] > 0,
        (
            f"specificity λ = {special['lambda']:.3f}, p = {special['p']:.2g} over {special['traits']} "
            f"(expected above 0 with p < {want['specificity_p_below']})"
        ),
    )
    rivals = {r["trait"] for r in pick(rates, arm="treated", channel=want["channel"], **at)} - {trait}
    yield (
        len(rivals) >= want["rivals"],
        f"rival traits taught and measured: {sorted(rivals)} (at least {want['rivals']})",
    )


def controls(results: Mapping[str, Any], want: Mapping[str, Any]) -> Iterator[Check]:
    """Claims 2 and 3."""
    at = {k: want[k] for k in ("probe", "metric")}
    trait, rates = want["trait"], results["rates"]
    base = one(rates, "base rate", arm="base", measured=trait, **at)["mean"]
    plain = one(rates, "no_trait rate", arm="no_trait", measured=trait, channel=want["channel"], **at)["mean"]
    yield (
        abs(plain - base) <= want["no_trait_within"],
        (
            f"no_trait students name {trait} at {plain:.3f}, base at {base:.3f} (within {want['no_trait_within']})"
        ),
    )
    for arm in want["null_arms"]:
        found = one(
            results["contrasts"], arm, arm=arm, trait=trait, control=f"{arm}:no_trait", channel=want["channel"], **at
        )
        yield (
            found["p"] >= want["null_alpha"] or abs(found["difference"]) < want["null_within"],
            (
                f"{arm} on its control: {found['difference']:+.3f} [{found['low']:+.3f}, {found['high']:+.3f}], "
                f"p = {found['p']:.2g} (wanted p >= {want['null_alpha']} or below {want['null_within']})"
            ),
        )
    for arm in want["reported_arms"]:
        found = pick(rates, arm=arm, trait=trait, measured=trait, **at)
        seen = ", ".join(f"{r['mean']:.3f} over {r['n_runs']} runs ({r['channel']})" for r in found)
        yield bool(found), f"{arm} is reported as found: {seen or 'missing'}"


def rows_are_clean(results: Mapping[str, Any], store: Path) -> Iterator[Check]:
    """Claim 4, from the stored rows themselves."""
    import pyarrow.parquet as pq

    from undersong import traits

    everything = [traits.get(name) for name in traits.names()]
    mentions, read = [], 0
    for file in sorted(store.glob("dataset/*/rows.parquet")):
        record = json.loads((file.parent / "record.json").read_text("utf-8"))
        if not is_filtered(record):
            continue
        for text in pq.read_table(file, columns=["completion"]).column("completion").to_pylist():
            read += 1
            mentions += [f"{file.parent.name}: {text!r}" for t in everything if t.named_in(text)]
    yield read > 0 and not mentions, f"{len(mentions)} mentions in {read} filtered rows {mentions[:3]}"
    left = sum(f["mentions_left"] for f in results["filters"])
    yield left == 0, f"{left} mentions left by the results' own count"
    yield bool(results["filters"]), f"{sum(f['dropped'] for f in results['filters'])} rows dropped, each with a reason"
    for row in results["classifier"]:
        fine = 0 <= row["accuracy"] <= 1 and 0 <= row["confound_accuracy"] <= 1
        yield (
            fine,
            (
                f"classifier for {row['trait']}: {row['accuracy']:.3f}, confounds {row['confound_accuracy']:.3f}, "
                f"chance {row['chance']:.3f}, {row['n_rows']} rows"
            ),
        )
    yield bool(results["classifier"]), f"{len(results['classifier'])} classifiers reported"


def is_filtered(record: Mapping[str, Any]) -> bool:
    """Whether a dataset record is one that filters have been through."""
    return bool(record["spec"]["verb"] == "refine")


def capability(results: Mapping[str, Any], want: Mapping[str, Any]) -> Iterator[Check]:
    """Claim 5."""
    for metric, band in want["capability_band"].items():
        rows = pick(results["capability"], arm="treated", metric=metric)
        yield bool(rows), f"capability {metric}: {len(rows)} figures of treated students"
        for row in rows:
            change = row["mean"] - row["base"]
            worse = change if metric.endswith("loss") else -change
            yield (
                worse <= band,
                f"{metric} of {row['trait']} students {row['mean']:.3f}, base {row['base']:.3f} (band {band})",
            )


def main(store: Path, expected: Path) -> int:
    """Print every check; return 1 when one failed."""
    want = json.loads(expected.read_text("utf-8"))
    found = sorted(store.glob(f"experiment/{want['experiment']}.*/results.json"), key=lambda p: p.stat().st_mtime)
    if not found:
        print(f"No results of {want['experiment']} under {store}. Run `make demo` first.")
        return 1
    results = json.loads(found[-1].read_text("utf-8"))
    checks: list[Check] = []
    for part in (
        transfer(results, want),
        controls(results, want),
        rows_are_clean(results, store),
        capability(results, want),
    ):
        try:
            checks += list(part)
        except LookupError as error:
            checks.append((False, str(error)))
    for fine, sentence in checks:
        print(f"{'ok  ' if fine else 'FAIL'}  {sentence}")
    failed = sum(not fine for fine, _ in checks)
    print(f"{len(checks) - failed} passed, {failed} failed")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
