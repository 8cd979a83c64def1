"""A laboratory (digits from logits, the theorem) as an experiment file: planned, resumed by chunk, kept in the store."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from undersong import logits, spec, theorem
from undersong.artefact import Artefact
from undersong.errors import BadSpec
from undersong.experiment.steps import PlanRow
from undersong.results import environment
from undersong.store import Store

SCIENCES: Mapping[Any, Any] = {"mnist": logits, "theorem": theorem}
"""A laboratory's module: `read`, `identity`, `total`, `run_chunk` and `results` for its settings, and `UNIT`."""


@dataclass(frozen=True)
class Laboratory:
    """A checked file with `laboratory: mnist` or `theorem`. The science is in `logits.py` and in `theorem/`."""

    settings: Any
    science: Any
    """One of `SCIENCES`."""

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Laboratory:
        """The laboratory a parsed YAML file describes. Raises BadSpec naming the nearest key."""
        named = values.get("laboratory")
        if not isinstance(named, str) or named not in SCIENCES:
            raise BadSpec(f"laboratory: there is none called {named!r}. Choose {' or '.join(SCIENCES)}.")
        science = SCIENCES[named]
        return cls(science.read(values), science)

    @property
    def name(self) -> str:
        """The experiment's name."""
        return str(self.settings.name)

    def plan(self, store: Store) -> list[PlanRow]:
        """One line: the whole laboratory, cached, missing or changed."""
        wanted = self.science.identity(self.settings)
        mark = spec.fingerprint({"kind": "experiment", "spec": wanted, "parents": []})
        if store.has("experiment", wanted):
            return [PlanRow("experiment", self.name, mark, "cached")]
        changed = tuple(store.changed("experiment", self.name, wanted))
        return [PlanRow("experiment", self.name, mark, "changed" if changed else "missing", changed)]

    def record(self, store: Store, say: Callable[[str], None]) -> Artefact:
        """Train what is missing and keep rows and `results.json`. An interrupted run keeps every finished chunk, also
        when `chunk` changes in between."""
        total = self.science.total(self.settings)
        with store.open("experiment", self.name, self.science.identity(self.settings)) as artefact:
            if artefact.complete:
                return artefact
            done = {row[self.science.UNIT] for row in artefact.read_parts("rows")} if artefact.parts("rows") else set()
            for start in range(len(done), total, self.settings.chunk):
                part = range(start, min(start + self.settings.chunk, total))
                artefact.write_part("rows", len(artefact.parts("rows")), self.science.run_chunk(self.settings, part))
                say(f"done with {self.science.UNIT}s {part.start + 1} to {part.stop} of {total}")
            found = self.science.results(artefact.read_parts("rows"), self.settings) | {"environment": environment()}
            found["fingerprint"] = artefact.fingerprint
            artefact.write_json("results", found)
            artefact.finish({"sentence": found["sentence"]})
            return artefact
