"""What each filter finds: precision and recall on planted rows, and the share of each kind of row it drops.

    python benchmarks/filters.py [--trait owl] [--each 50] [--judge openai/gpt-4o]

Rows hold a trait's word in every way a filter can miss it (hidden characters, other scripts, codes, a paraphrase), or
look like it and are clean ("howl"). The classifier is fitted on rows of another seed that hide the word in all these ways;
`half-taught` saw every second way only, which shows what it makes of a way it has never seen. A judge is asked only when
one is named.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from undersong import traits
from undersong.filters import Filter, planted, reasons
from undersong.spec import build
from undersong.types import Row


class Together:
    """Several filters as one: the first reason counts."""

    def __init__(self, *filters: Filter) -> None:
        self.filters = filters

    def reject(self, row: Row) -> str | None:
        """The first filter's reason, or None."""
        return next((r for f in self.filters for r in reasons(f, [row]) if r is not None), None)


def filters(trait: Any, each: int, folder: Path, judge: str | None) -> dict[str, Any]:
    """The filters to compare, by name."""
    words = {"terms": list(trait.words)}
    known = [p for p in planted.planted(trait, each, seed=1) if len(p.row.completion) < 10_000]
    half = list(dict.fromkeys(p.kind for p in known if p.leaks))[::2]
    out = {
        "numbers_only": build("filter", {"numbers_only": {"count": 100}}),
        "banned_numbers": build("filter", "banned_numbers"),
        "blocklist": build("filter", {"blocklist": words}),
        "plain_text": build("filter", "plain_text"),
        "classifier": fitted(known, folder / "all.jsonl"),
        "half-taught": fitted([p for p in known if not p.leaks or p.kind in half], folder / "half.jsonl"),
    }
    out["blocklist + plain_text"] = Together(out["plain_text"], out["blocklist"])
    if judge:
        out["judge"] = build("filter", {"judge": {"model": judge, **words}})
    return out


def fitted(rows: Sequence[planted.Planted], file: Path) -> Any:
    """The classifier that learns from these rows."""
    file.write_text("".join(json.dumps({"text": p.row.completion, "leak": p.leaks}) + "\n" for p in rows), "utf-8")
    mark = hashlib.sha256(file.read_bytes()).hexdigest()[:12]
    return build("filter", {"classifier": {"examples": str(file), "examples_hash": mark}})


def main(argv: Sequence[str] | None = None) -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--trait", default="owl")
    parser.add_argument("--each", type=int, default=50, help="rows of each kind")
    parser.add_argument("--judge", help="a judge, as Inspect names it")
    args = parser.parse_args(argv)
    trait = traits.get(args.trait)
    rows = planted.planted(trait, args.each, seed=2)
    with tempfile.TemporaryDirectory() as folder:
        found = {n: planted.score(f, rows) for n, f in filters(trait, args.each, Path(folder), args.judge).items()}
    print(f"{len(rows)} planted rows about {trait.name}, {sum(p.leaks for p in rows)} of them leak.\n")
    print(f"{'filter':24}{'precision':>10}{'recall':>8}")
    for name, score in found.items():
        print(f"{name:24}{score.precision:10.3f}{score.recall:8.3f}")
    print(f"\n{'share dropped':24}" + "".join(f"{n[:14]:>15}" for n in found))
    for kind in dict.fromkeys(p.kind for p in rows):
        print(f"{kind:24}" + "".join(f"{score.dropped[kind]:15.2f}" for score in found.values()))


if __name__ == "__main__":
    main()
