"""The logit laboratory as an experiment file: planned, resumed by chunk and kept in the store like any other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from undersong import logits, spec
from undersong.artefact import Artefact
from undersong.experiment.steps import PlanRow
from undersong.results import environment
from undersong.store import Store


@dataclass(frozen=True)
class Laboratory:
    """A checked file with `laboratory: mnist`. The science is in `logits.py`."""

    settings: logits.LogitsExperiment

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Laboratory:
        """The laboratory a parsed YAML file describes. Raises BadSpec naming the nearest key."""
        return cls(logits.read(values))

    @property
    def name(self) -> str:
        """The experiment's name."""
        return self.settings.name

    def plan(self, store: Store) -> list[PlanRow]:
        """One line: the whole laboratory, cached, missing or changed."""
        wanted = logits.identity(self.settings)
        mark = spec.fingerprint({"kind": "experiment", "spec": wanted, "parents": []})
        if store.find("experiment", wanted) is not None:
            return [PlanRow("experiment", self.name, mark, "cached")]
        changed = tuple(store.changed("experiment", self.name, wanted))
        return [PlanRow("experiment", self.name, mark, "changed" if changed else "missing", changed)]

    def record(self, store: Store, say: Callable[[str], None]) -> Artefact:
        """Train what is missing and keep rows and `results.json`. An interrupted run keeps every finished chunk, also
        when `chunk` changes in between."""
        total = self.settings.models
        with store.open("experiment", self.name, logits.identity(self.settings)) as artefact:
            if artefact.complete:
                return artefact
            done = {row["model"] for row in artefact.read_parts("rows")} if artefact.parts("rows") else set()
            for start in range(len(done), total, self.settings.chunk):
                part = range(start, min(start + self.settings.chunk, total))
                artefact.write_part("rows", len(artefact.parts("rows")), logits.run_chunk(self.settings, part))
                say(f"trained models {part.start + 1} to {part.stop} of {total}")
            found = logits.results(artefact.read_parts("rows"), self.settings) | {"environment": environment()}
            found["fingerprint"] = artefact.fingerprint
            artefact.write_json("results", found)
            artefact.finish({"sentence": found["sentence"]})
            return artefact
