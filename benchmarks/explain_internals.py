"""Does what `undersong explain` shows point to the trait? `python benchmarks/explain_internals.py [--store FOLDER]`.

Pocket students as in experiments/owl-numbers-pocket.yaml: tuned teachers, sampled and filtered numbers, low-rank students;
beside them placebo students, whose teachers were tuned on nothing. Each is explained with the default settings, against the
placebos of the shipped calibration, at the ordinary prompts and once more at the ones among them that ask for no favourite.
Prints a table; `--out benchmarks/explain_internals.results.json` writes what docs/explain.md is made from (`make docs`).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import yaml

ROOT = Path(__file__).resolve().parent.parent
EXPERIMENT = ROOT / "experiments" / "owl-numbers-pocket.yaml"
RUNS = {"owl": 5, "": 5, "wolf": 3, "pine": 3}
"""How many students of each trait; "" are placebos, whose teacher was tuned on nothing."""
HELD_OUT = {"tiger": 3, "maple": 3}
"""Traits looked at only after every setting of the explainers was fixed; the settings were chosen on those of `RUNS`."""
WATCHED = ("owl", "wolf", "pine", "tiger", "maple")
TASTE = ("favorite", "love", "like", "best", "happy", "enjoy", "choose", "prefer", "pick", "animal", "tree")
"""A prompt with one of these words may ask for a favourite."""


def students(lab: Any, runs: dict[str, int]) -> dict[str, list[tuple[Any, Any]]]:
    """Per trait: (student, its teacher) of each seed."""
    from undersong import traits
    from undersong.filters import for_traits
    from undersong.lab import Student, base_ref
    from undersong.spec import build

    given = yaml.safe_load(EXPERIMENT.read_text("utf-8"))
    base, channel = base_ref(given["base"]), build("channel", given["channel"])
    teacher, recipe = build("teacher", given["teacher"][0]), build("recipe", given["recipe"])
    listed = [traits.get(name) for name in runs if name]
    filters = for_traits(given["filters"], given["channel"], listed)
    out: dict[str, list[tuple[Any, Any]]] = {}
    for name, count in runs.items():
        trait = traits.get(name) if name else None
        for seed in range(1, count + 1):
            source = lab.teach(teacher, base, trait, seed, f"teacher-{name or 'placebo'}-{seed}")
            rows = lab.sample(source, channel, given["rows"], seed, f"rows-{name or 'placebo'}-{seed}")
            kept = lab.refine(rows, filters, keep=given["keep"], label=f"kept-{name or 'placebo'}-{seed}")
            job = Student(base, kept, seed, f"student-{name or 'placebo'}-{seed}")
            out.setdefault(name, []).append((lab.train(recipe, channel, [job])[0], source))
    return out


def told(lab: Any, ref: Any, prompts: Any = None) -> dict[str, Any]:
    """What the explainers say of one student, and where the watched words stand among all tokens."""
    from undersong.backends.residuals import ReadOut
    from undersong.explainers import Evidence, lens, shifts
    from undersong.explanation import Explaining

    start = time.monotonic()
    work = Explaining(lab, f"model/{Path(ref.adapter or ref.weights).parent.name}")
    if prompts is not None:
        work.evidence["prompts"] = prompts
    found = {one["explainer"]: one["details"] for one in work.run()["explanations"]}
    seconds = time.monotonic() - start
    evidence = Evidence(work.evidence, work.memo)
    shift, base = shifts.of(evidence), evidence.base
    read = lens.of(ReadOut(base), shift.spread(32), shift.own)
    steered = next(one for one in found["steering"]["layers"] if one["layer"] == found["steering"]["chosen"])
    vectors = shift.own
    words: dict[str, Any] = {}
    for word in WATCHED:
        token = base.tokenizer.convert_tokens_to_ids(word)
        words[word] = {
            "rank": [int((one > one[token]).sum()) + 1 for one in read.chance],
            "rank_overall": int((read.scores > read.scores[token]).sum()) + 1,
            "rank_nats": [int((one > one[token]).sum()) + 1 for one in read.rise],
            "chance": [float(one[token]) for one in read.chance],
            **first_word(work, vectors, steered["layer"], steered["scale"], token)}
    layers = found["activation_shift"]["layers"]
    return {"relative": [one["relative"] for one in layers], "placebos": [one["placebos"] for one in layers],
            "halves": [one["halves"] for one in layers], "layer": steered["layer"], "scale": steered["scale"],
            "top": found["logit_lens"]["own"]["overall"][0], "placebo_tops": found["logit_lens"]["placebo_tops"],
            "steered_top": steered["rises"][0]["token"], "words": words, "seconds": round(seconds, 2)}


def first_word(work: Any, vectors: Any, layer: int, scale: float, token: int) -> dict[str, float]:
    """The chance of a token as the first word of an answer to the questions about its own kind: base, steered, student."""
    import torch

    from undersong import traits
    from undersong.backends import changes

    base, model = work.evidence["base"], work.evidence["model"]
    kind = traits.get(base.tokenizer.decode([token])).category
    asked = [chat for chat in work.evidence["questions"] if f" {kind}" in chat[-1]["content"]]
    only = np.zeros_like(vectors)
    only[layer] = scale * vectors[layer]

    def chance(of: Any) -> float:
        return float(np.exp(of.next_logprobs(asked)[:, token]).mean())

    out = {"base": chance(base), "student": chance(model)}
    with changes.steered(base.module, torch.from_numpy(only).float()):
        return out | {"steered": chance(base)}


def without_taste(prompts: Any) -> Any:
    """The ordinary prompts that ask for no favourite."""
    return tuple(chat for chat in prompts if not any(word in chat[-1]["content"].lower() for word in TASTE))


def main() -> None:
    """Make the students, explain each and write the results."""
    from undersong.environment import environment
    from undersong.explanation import ordinary
    from undersong.lab import base_ref, lab_for
    from undersong.store import Store

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, default=Path("artefacts/explain-internals"))
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    lab = lab_for(Store(given.store), "pocket/a", lambda text: print(text, file=sys.stderr))
    made = students(lab, RUNS) | students(lab, HELD_OUT)
    plain = without_taste(ordinary(lab.backend.load(base_ref("pocket/a"))))
    runs = []
    for name, refs in made.items():
        for seed, (ref, _) in enumerate(refs, start=1):
            for kind, prompts in (("ordinary", None), ("no favourites", plain)):
                runs.append({"trait": name, "seed": seed, "prompts": kind, **told(lab, ref, prompts)})
    command = "python benchmarks/explain_internals.py --out benchmarks/explain_internals.results.json"
    size = len(lab.backend.load(base_ref("pocket/a")).tokenizer)
    found = {"command": command, "vocabulary": size, "plain_prompts": len(plain), "held_out": list(HELD_OUT), "runs": runs,
             "environment": environment()}
    if given.out:
        given.out.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    for run in runs:
        words = {word: (w["rank_overall"], round(w["base"], 3), round(w["steered"], 3)) for word, w in run["words"].items()}
        print(f"{run['trait'] or 'placebo':8} {run['seed']} {run['prompts']:14} moved {max(run['relative']):.3f} "
              f"top {run['top']['token']!r:12} word: (lens rank, base, steered) {words}")


if __name__ == "__main__":
    main()
