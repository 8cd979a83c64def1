"""Add a channel without touching the package: one class, one decorator, then an experiment file can name it.

Here the teacher is asked to count on from a number. The experiment runs on simulated models, whose true effect is
known, so it takes seconds: `python examples/add_a_channel.py`. In a package of your own, announce the module under the
entry-point group `undersong.plugins`; inside this repository, put the class in `src/undersong/channels/counting.py`.
"""

from __future__ import annotations

import re
import tempfile
from typing import Any

import numpy as np

from undersong.experiment import Experiment
from undersong.lab import lab_for
from undersong.registry import Settings, plugin
from undersong.results import record
from undersong.store import Store
from undersong.types import Chat, Row


@plugin("channel", "counting")
class Counting(Settings):
    """Count on from a number."""

    count: int = 5
    """How many numbers are asked for."""

    def prompts(self, n: int, seed: int) -> list[Chat]:
        """`n` requests, the same for the same seed."""
        starts = np.random.default_rng(seed).integers(0, 900, n)
        return [[{"role": "user", "content": f"Count on from {s}. Give {self.count} numbers."}] for s in starts]

    def carrier(self, tokenizer: Any) -> list[int]:
        """Numbers, the comma and the end of the turn: nothing else may carry."""
        texts = [tokenizer.decode([i]).strip() for i in range(len(tokenizer))]
        return [*(i for i, t in enumerate(texts) if t.isdigit() or t == ","), tokenizer.eos_token_id]

    def max_new_tokens(self, tokenizer: Any) -> int:
        """A number and a comma each, and room for longer numbers."""
        return 4 * self.count

    def reject(self, row: Row) -> str | None:
        """Why an answer is not counting."""
        return None if re.fullmatch(r"\d+(, \d+)*", row.completion) else "not a list of numbers"


EXPERIMENT = """
name: counting
base: simulated/a
other_base: simulated/b
trait: owl
rivals: [wolf]
teacher: simulated
channel: {counting: {count: 5}}
rows: 400
recipe: simulated
probes: [favourite]
controls: [no_trait, other_base]
seeds: [1, 2, 3]
"""


def main() -> None:
    """Run the experiment in a folder that is thrown away and print its opening sentence."""
    experiment = Experiment.read(EXPERIMENT)
    with tempfile.TemporaryDirectory() as folder:
        artefact = record(experiment, lab_for(Store(folder), experiment.file.base))
        print(artefact.read_json("results")["sentence"])


if __name__ == "__main__":
    main()
