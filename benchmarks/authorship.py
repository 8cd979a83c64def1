"""Who wrote these rows: how often `undersong attribute` is right, wrong, or cannot tell, on rows of known authors.

    python benchmarks/authorship.py --store STORE [--development] [--page]

About half an hour on one core; the same command goes on where it was stopped. Sources are the shipped pocket models and
teachers tuned on traits and seeds that development never used; each source's rows are judged once with it among six
candidates (`present`) and once without (`absent`). A `twin` is a second teacher of the same trait and base, of another
seed: the nearest stranger there is. `--page` writes docs/authorship.md from the results file and measures nothing.

The results file holds `command`, `date`, `environment`, `plan` and `cells`, one per judged set: channel, size, source,
candidates, present, twin, verdict, model, right, false, power, seconds.
"""

from __future__ import annotations

import argparse
import json
import shlex
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from undersong import screen, stats, traits
from undersong.authorship import Attribution
from undersong.environment import environment, now
from undersong.lab import Lab, base_ref, lab_for
from undersong.models import model_ref
from undersong.spec import build
from undersong.types import Row, Sampling

HERE = Path(__file__).parent
RESULTS = HERE / "authorship.results.json"
PAGE = HERE.parent / "docs" / "authorship.md"
BASES = ("pocket/a", "pocket/a-reordered", "pocket/b", "pocket/b-matched", "pocket/wide")
HELD_OUT: dict[str, Any] = {
    "teachers": [["pocket/a", "cat", 101], ["pocket/a", "lion", 101], ["pocket/a", "bear", 101], ["pocket/b", "cat", 101],
                 ["pocket/b", "lion", 101]],
    "twins": [["pocket/a", "cat", 102]],
    "blocks": [["numbers", 201, [1000]], ["letters", 201, [200]], ["numbers", 202, [200, 50]], ["numbers", 203, [1000]],
               ["numbers", 204, [1000]], ["numbers", 205, [1000]], ["numbers", 206, [1000]]],
    "candidates": 5, "seed": 5,
}
DEVELOPMENT: dict[str, Any] = {
    "teachers": [["pocket/a", "owl", 1], ["pocket/a", "wolf", 1]], "twins": [["pocket/a", "owl", 2]],
    "blocks": [["letters", 7, [1000]]], "candidates": 4, "seed": 6,
}


class World:
    """Models by name, and rows that they wrote."""

    def __init__(self, lab: Lab, plan: dict[str, Any]) -> None:
        self.lab, self.plan = lab, plan
        teacher = build("teacher", "tuned")
        self.names: dict[str, str] = {base: base for base in BASES}
        self.twins: set[str] = set()
        for base, trait, seed in (*plan["teachers"], *plan["twins"]):
            label = f"{base.split('/')[1]}-{trait}-{seed}"
            ref = lab.teach(teacher, base_ref(base), traits.get(trait), seed, label)
            self.names[label] = f"{label}.{ref.fingerprint}"
            if [base, trait, seed] in plan["twins"]:
                self.twins.add(label)

    def twin_of(self, source: str, name: str) -> bool:
        """Whether two teachers differ only in their seed."""
        same = source.rpartition("-")[0] == name.rpartition("-")[0]
        return source != name and same and source not in BASES and name not in BASES

    def candidates(self, source: str, rng: np.random.Generator) -> list[str]:
        """The others among which a source is to be found: its twin where there is one, then drawn ones."""
        twins = [n for n in self.names if self.twin_of(source, n)] if source in self.twins else []
        rest = [n for n in self.names if n not in self.twins and n != source and n not in twins]
        return [*twins, *rng.permutation(rest)[: self.plan["candidates"] - len(twins)]]

    def rows(self, source: str, channel: str, seed: int) -> list[Row]:
        """Rows of a source that a careful seller has filtered: they keep the channel's rule and name no trait. All sources
        of a block answer the same prompts, each by its own luck."""
        rule = build("channel", channel)
        words = tuple(sorted({w for name in traits.names() for w in traits.get(name).words}))
        clean = build("filter", {"blocklist": {"terms": words}})
        model = self.lab.backend.load(model_ref(self.names[source], None, self.lab))
        chats = rule.prompts(1500, seed)
        luck = int(np.random.default_rng([seed, *source.encode()]).integers(2**31))
        texts = model.sample(chats, Sampling(1.0, rule.max_new_tokens(model.tokenizer), luck))
        every = [Row(str(i), tuple(chat), text) for i, (chat, text) in enumerate(zip(chats, texts, strict=True))]
        return [r for r in every if rule.reject(r) is None and clean.reject(r) is None]


def cells(plan: dict[str, Any], world: World) -> Iterator[dict[str, Any]]:
    """What is judged, in an order in which the first cells are about all sources."""
    for channel, seed, sizes in plan["blocks"]:
        for size in sizes:
            for source in world.names:
                rng = np.random.default_rng([plan["seed"], seed, len(source), *source.encode()])
                others = world.candidates(source, rng)
                for present in (True, False):
                    named = [source, *others[:-1]] if present else others
                    yield {"channel": channel, "seed": seed, "size": size, "source": source, "present": present,
                           "candidates": named, "twin": any(world.twin_of(source, n) for n in named)}


def judge(cell: dict[str, Any], world: World, memo: dict[Any, Any], folder: Path) -> dict[str, Any]:
    """One set of rows, judged."""
    file = folder / f"{cell['source'].replace('/', '-')}-{cell['channel']}-{cell['seed']}-{cell['size']}.jsonl"
    if not file.exists():
        rows = world.rows(cell["source"], cell["channel"], cell["seed"])[: cell["size"]]
        lines = [json.dumps({"prompt": r.chat[-1]["content"], "completion": r.completion}) for r in rows]
        file.write_text("\n".join(lines), "utf-8")
    start = time.process_time()
    names = {world.names[n]: n for n in cell["candidates"]}
    found = Attribution(file, list(names), world.lab, most=cell["size"], memo=memo).run()
    model = names.get(found["model"])
    return {**cell, "used": found["rows"]["used"], "verdict": found["verdict"], "model": model,
            "right": model == cell["source"] if cell["present"] else found["verdict"] == "none",
            "false": model is not None and model != cell["source"], "power": found["power"],
            "explain": [names[n] for n in found["explain"]], "p": found["p_fit"].get(world.names[cell["source"]]),
            "seconds": round(time.process_time() - start, 1)}


def line(label: str, some: list[dict[str, Any]], key: str) -> str:
    """One row of a table: a rate with its exact interval."""
    k, n = sum(c[key] for c in some), len(some)
    rate, low, high = stats.binomial_interval(k, n)
    return f"| {label} | {n} | {k} | {rate:.0%} | {low:.0%} to {high:.0%} |"


def page(results: dict[str, Any]) -> str:
    """docs/authorship.md."""
    every = results["cells"]
    out = ["# How often `undersong attribute` is right", "",
           "Generated by `python benchmarks/authorship.py --page` from `benchmarks/authorship.results.json`, which "
           f"`{results['command']}` measured.", "",
           "Rows of known authors: the five pocket models and tuned teachers of two of them, on traits and seeds that "
           "development never used. The rows are filtered (ill-formed answers and trait words out). Each set is judged "
           f"among {results['plan']['candidates']} candidates, once with its author among them and once without. Intervals "
           "are Clopper and Pearson's, 95 %. Sets of one source share its rows, so they are not quite independent.", ""]
    head = "| sets | n | k | rate | interval |\n|---|---|---|---|---|"
    plain = [c for c in every if not c["twin"]]
    groups = [(ch, size) for ch, size in dict.fromkeys((c["channel"], c["size"]) for c in every)]
    for title, present, key in (("The author is a candidate: named rightly", True, "right"),
                                ("The author is a candidate: another is named", True, "false"),
                                ("The author is no candidate: a wrong one is named", False, "false"),
                                ("The author is no candidate: `none`", False, "right")):
        lines = [line(f"{ch}, {size:,} rows", mine, key) for ch, size in groups
                 if (mine := [c for c in plain if c["present"] is present and (c["channel"], c["size"]) == (ch, size)])]
        large = [c for c in plain if c["present"] is present and c["size"] == 1000]
        out += [f"## {title}", "", head, *lines, *([line("all of 1,000 rows", large, key)] if large else []), ""]
    twins = [c for c in every if c["twin"]]
    out += ["## Twins", "",
            "A second teacher of the same trait, tuned from the same base under another seed, is the nearest stranger that "
            "was tried. These sets are not counted above.", "",
            "| channel | rows | author is a candidate | verdict | named | candidates that explain the rows |",
            "|---|---|---|---|---|---|"]
    out += [f"| {c['channel']} | {c['size']:,} | {'yes' if c['present'] else 'no'} | {c['verdict']} | "
            f"{c['model'] or '–'} | {', '.join(c['explain']) or '–'} |" for c in twins]
    seconds = [c["seconds"] for c in every if c["size"] == 1000]
    if seconds:
        out += ["", f"A set of 1,000 rows took {np.median(seconds):.0f} processor seconds at the median, with what other "
                "sets had computed at hand."]
    return "\n".join(out) + "\n"


def main() -> None:
    """Run, resume, write the results and the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--store", type=Path, default=Path("artefacts"))
    parser.add_argument("--development", action="store_true", help="the models of development; results are printed only")
    parser.add_argument("--page", action="store_true", help="write the page from the results file and stop")
    parser.add_argument("--seconds", type=float, default=0.0, help="begin no set after so many seconds; 0 sets no limit")
    parser.add_argument("--only", default="", help="judge only such sets, as CHANNEL:ROWS; for several processes at once")
    given = parser.parse_args()
    if given.page:
        PAGE.write_text(page(json.loads(RESULTS.read_text("utf-8"))), "utf-8")
        return
    plan = DEVELOPMENT if given.development else HELD_OUT
    folder = given.store / "authorship"
    folder.mkdir(parents=True, exist_ok=True)
    kept = folder / ("development.jsonl" if given.development else "cells.jsonl")
    done = [json.loads(text) for text in kept.read_text("utf-8").splitlines()] if kept.exists() else []
    memo: dict[Any, Any] = {}
    block, start = None, time.monotonic()
    with screen.progress() as say:
        world = World(lab_for(screen.opened(given.store), ""), plan)
        for cell in cells(plan, world):
            known = [c for c in done if all(c[k] == v for k, v in cell.items())]
            other = given.only not in ("", f"{cell['channel']}:{cell['size']}")
            if known or other or (given.seconds and time.monotonic() - start > given.seconds):
                continue
            if block != (cell["channel"], cell["seed"]):
                block, memo = (cell["channel"], cell["seed"]), {}
            found = judge(cell, world, memo, folder)
            done.append(found)
            with kept.open("a", encoding="utf-8") as file:
                file.write(json.dumps(found) + "\n")
            say(f"{cell['channel']} {cell['size']} {cell['source']} {'present' if cell['present'] else 'absent'}: "
                f"{found['verdict']} {found['model'] or ''} {'' if found['right'] else '(not right)'} {found['seconds']} s")
    if not given.development and not given.only:
        whole = {"command": "python " + shlex.join(["benchmarks/authorship.py", "--store", "STORE"]),
                 "date": now(), "environment": environment(), "plan": plan, "cells": done}
        RESULTS.write_text(json.dumps(whole, indent=1) + "\n", "utf-8")
        PAGE.write_text(page(json.loads(RESULTS.read_text("utf-8"))), "utf-8")


if __name__ == "__main__":
    main()
