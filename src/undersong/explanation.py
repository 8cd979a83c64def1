"""What changed inside a model: every explainer that (model, base) suffices for, each result an artefact of its own.

1. Resolve the two models. A pair that cannot belong together (other shapes, another tokenizer) is refused; a pair whose
   tensors are all the same is an answer: nothing changed.
2. Gather the evidence: ordinary prompts, a few questions, and placebo students of this base where a calibration holds them.
3. Run the explainers. The same command reads what is stored, so an interrupted one goes on where it was.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from undersong import bases, exemplars, registry
from undersong.backends.several import Several
from undersong.calibration import template
from undersong.detectors import PLACEBO, Exemplars, probe_bank
from undersong.environment import environment
from undersong.errors import BadSpec, BrokenArtefact
from undersong.explainers import Evidence
from undersong.explainers.ordinary import ordinary
from undersong.lab import Lab, base_ref
from undersong.models import model_ref
from undersong.nulls import Null
from undersong.spec import describe, fingerprint
from undersong.types import Chat, Explanation, ModelRef

MOST = 4000
"""Prompts that a file may hold."""
PLACEBOS = 8
"""Placebo students that are read, the first of a calibration's."""
ASKED = 16
"""Questions that are shown to people, at most; of every category as many wordings."""


@dataclass
class Explaining:
    """One model to explain against its base, in a lab. `prompts` is a file of one prompt a line."""

    lab: Lab
    model: str
    base: str | None = None
    explainers: Sequence[Any] = ()
    prompts: Path | None = None
    seed: int = 0
    memo: dict[Any, Any] = field(default_factory=dict, repr=False)
    """Pure results that the explainers of one call share."""

    @cached_property
    def refs(self) -> tuple[ModelRef, ModelRef]:
        """The model and its base, both to be read in float32: a small change is lost in less. Raises BadSpec where the base
        is not told and cannot be read off the model."""
        changed = model_ref(self.model, self.base, self.lab)
        plain = not (changed.weights or changed.adapter or changed.vector or changed.system)
        if self.base is None and plain:
            raise BadSpec(f"What changed inside {self.model!r} is told against the model it started from. Give that as "
                          "--base.")
        start = model_ref(self.base, None, self.lab) if self.base else base_ref(changed.base)
        return dataclasses.replace(changed, precision="float32"), dataclasses.replace(start, precision="float32")

    @cached_property
    def loaded(self) -> tuple[Any, Any]:
        """The two models, loaded. Raises BadSpec for a pair that cannot belong together."""
        changed, start = (self.lab.backend.load(ref) for ref in self.refs)
        for model in (changed, start):
            if model.module is None:
                raise BadSpec(f"What {model.ref.name} computes inside is not at hand. Give a local copy of it.")
        if changed.tokenizer.get_vocab() != start.tokenizer.get_vocab():
            raise BadSpec(f"{self.model} and {start.ref.base} have different tokenizers, so their states do not stand at "
                          "the same tokens. Give as --base the model that it started from.")
        shapes = [{name: tuple(p.shape) for name, p in m.module.named_parameters()} for m in (changed, start)]
        if shapes[0] != shapes[1]:
            raise BadSpec(f"{self.model} has another shape than {start.ref.base}, so it did not start from it. Give as "
                          "--base the model that it started from.")
        return changed, start

    @property
    def same(self) -> bool:
        """Whether nothing differs: all tensors, and the vectors that steer them."""
        import torch

        changed, start = self.loaded
        if changed.ref.vector != start.ref.vector:
            return False
        own = dict(start.module.named_parameters())
        return all(torch.equal(p, own[name]) for name, p in changed.module.named_parameters())

    @cached_property
    def placebos(self) -> tuple[ModelRef, ...]:
        """Placebo students of this base and template from the newest calibration that holds them."""
        found = calibrated(self.lab, self.refs[1])
        return tuple(found[1].student_refs.get(PLACEBO, ()))[:PLACEBOS] if found else ()

    @cached_property
    def evidence(self) -> dict[str, Any]:
        """What is granted, by token."""
        changed, start = self.loaded
        prompts = from_file(self.prompts) if self.prompts else ordinary(start)
        out = {"base": start, "model": changed, "prompts": prompts, "questions": asked(start) or prompts[:8]}
        return out | ({"placebos": Several(self.placebos, self.lab.backend)} if self.placebos else {})

    def run(self) -> dict[str, Any]:
        """The explanation as JSON: what `--json` prints and the page shows (`reports/explain.py`)."""
        begun = time.monotonic()
        changed, start = self.refs
        out: dict[str, Any] = {
            "format": 1, "kind": "explanation", "seed": self.seed,
            "model": {"name": self.model, "fingerprint": changed.fingerprint},
            "base": {"name": self.base or start.base, "fingerprint": start.fingerprint}}
        if self.same:
            said = f"Nothing changed: every tensor of {self.model} is that of {out['base']['name']}."
            out |= {"same_weights": True, "sentence": said, "explanations": [], "skipped": []}
        else:
            out |= {"same_weights": False, **self._explain()}
        return out | {"seconds": round(time.monotonic() - begun, 2), "environment": environment()}

    def _explain(self) -> dict[str, Any]:
        found, skipped = [], []
        for explainer in self.explainers or default_explainers():
            name = explainer.plugin_name
            if missing := sorted(explainer.needs - set(self.evidence)):
                skipped.append({"explainer": name, "says": f"It needs {', '.join(missing)}."})
                continue
            start = time.monotonic()
            try:
                one = self._one(explainer)
            except BadSpec as error:
                if self.explainers:
                    raise
                skipped.append({"explainer": name, "says": str(error)})
                continue
            found.append({"explainer": name, "settings": describe(explainer)["settings"], "sentence": one.sentence,
                          "scores": [list(pair) for pair in one.scores], "details": one.details,
                          "seconds": round(time.monotonic() - start, 2)})
        held = self.evidence
        return {"explanations": found, "skipped": skipped, "sentence": sentence(found),
                "prompts": [chat[-1]["content"] for chat in held["prompts"]],
                "questions": [chat[-1]["content"] for chat in held["questions"]], "placebos": len(self.placebos)}

    def _one(self, explainer: Any) -> Explanation:
        """One explanation, from the store where it is there."""
        uses = {*explainer.needs, *getattr(explainer, "may_use", ())}
        texts = {token: self.evidence[token] for token in ("prompts", "questions") if token in uses}
        spec = {"verb": "explain", "explainer": describe(explainer), "seed": self.seed, "texts": fingerprint(texts)}
        parents = [ref.fingerprint for ref in (*self.refs, *(self.placebos if "placebos" in uses else ()))]
        with self.lab.store.open("explanation", explainer.plugin_name, spec, parents) as artefact:
            if not artefact.complete:
                self.lab.progress(f"explaining by {explainer.plugin_name}")
                evidence = Evidence(self.evidence, self.memo).only(explainer.needs, getattr(explainer, "may_use", ()))
                artefact.write_json("explanation", dataclasses.asdict(explainer.explain(evidence, self.seed)))
                artefact.finish({"explainer": explainer.plugin_name})
            got = artefact.read_json("explanation")
        try:
            return Explanation(got["sentence"], tuple((str(n), float(v)) for n, v in got["scores"]), dict(got["details"]))
        except (KeyError, TypeError, ValueError):
            raise BrokenArtefact(f"{artefact.path} holds no explanation. Remove it and run the command again.") from None


def calibrated(lab: Lab, start: ModelRef) -> tuple[Mapping[str, Any], Exemplars] | None:
    """The newest calibration of an untouched base that knows students, at its chat template: its identity and exemplars."""
    if start.weights or start.adapter or start.vector:
        return None
    about = {"base": bases.identity(start.base), "revision": bases.revision(start.base)}
    for folder in exemplars.folders(lab.store):
        told = Null.read(folder).identity
        same = all(told.get(k) == v for k, v in about.items())
        if same and told.get("students") and told.get("template") == template(lab.backend.load(start)):
            return told, exemplars.unpack(folder, start.base, lab.backend)
    return None


def default_explainers() -> list[Any]:
    """Every registered explainer that needs no settings, in the order of a report."""
    order = ["activation_shift", "logit_lens", "steering", "weight_change"]
    names = sorted(registry.names("explainer"), key=lambda n: (order.index(n) if n in order else len(order), n))
    classes = [registry.get("explainer", name) for name in names]
    return [cls() for cls in classes if not any(f.is_required() for f in cls.model_fields.values())]


def sentence(found: Sequence[dict[str, Any]]) -> str:
    """The headline: the token that the lens promotes most and the one that steering raises most, else the first sentence."""
    by = {one["explainer"]: one for one in found}
    said = []
    if "logit_lens" in by:
        token, score = by["logit_lens"]["scores"][0]
        said.append(f"the shift promotes {token!r} most (by {score:.1%}, mean over layers)")
    if "steering" in by:
        told = by["steering"]["details"]
        rise = next(one for one in told["layers"] if one["layer"] == told["chosen"])["rises"][0]
        if rise["rise"] > 0:
            said.append(f"added to the base it raises {rise['token']!r} most, from {rise['base']:.1%} to "
                        f"{rise['steered']:.1%} of first words")
    if said:
        return f"Inside, {'; '.join(said)}."
    return found[0]["sentence"] if found else "No explainer could run."


def asked(base: Any) -> tuple[Chat, ...]:
    """A few neutral questions about favourites, of every category that the base's tokenizer can write."""
    chats, categories = probe_bank.questions(base)
    each = max(1, ASKED // max(1, len(set(categories))))
    return tuple(chat for i, chat in enumerate(chats) if categories[:i].count(categories[i]) < each)


def from_file(path: Path) -> tuple[Chat, ...]:
    """Prompts of a text file, one a line. Raises BadSpec for none, too many, or what is no text."""
    try:
        lines = [line.strip() for line in path.read_text("utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise BadSpec(f"The prompts {str(path)!r} cannot be read ({error}). Give a UTF-8 text, one prompt a "
                      "line.") from None
    if not 2 <= len(lines) <= MOST:
        raise BadSpec(f"{str(path)!r} holds {len(lines)} prompts; 2 to {MOST} can be read. Change the file.")
    return tuple([{"role": "user", "content": line}] for line in lines)
