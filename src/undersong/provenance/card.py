"""A Hugging Face model card: the front matter that hubs read (`base_model`, `base_model_relation`, `datasets`,
results), by huggingface_hub's ModelCardData, and how the model was made in sentences."""

from __future__ import annotations

from typing import ClassVar

from undersong.errors import BadSpec
from undersong.provenance import UNKNOWN, Account, at, need
from undersong.provenance.telling import base_of, datasets, generators, making, markdown
from undersong.registry import Settings, plugin


@plugin("exporter", "card")
class Card(Settings):
    """A Hugging Face model card (Markdown) with base_model, base_model_relation, datasets and results."""

    ending: ClassVar[str] = ".md"
    license: str = UNKNOWN
    """The licence, as the hub names it."""
    base_model: str | None = None
    """The hub's name of the base, where the record knows another one."""

    def export(self, account: Account) -> str:
        """The card. Raises BadSpec for what is no model, MissingExtra without huggingface_hub."""
        piece = account.piece
        if piece.record["kind"] != "model":
            raise BadSpec(f"{piece.title} is no model, and a model card describes one. Name a model artefact.")
        try:
            from huggingface_hub import EvalResult, ModelCardData
        except ImportError:
            raise need("huggingface_hub") from None
        label = str(piece.record["label"])
        results = [EvalResult(
            task_type="text-generation", dataset_type=f.probe, dataset_name=f.probe,
            dataset_args={"trait": f.trait or "none", "questions": f.n}, metric_type=f.metric, metric_value=f.mean,
            metric_name=f"{f.metric} ({f.trait})" if f.trait else f.metric,
        ) for f in account.figures]
        data = ModelCardData(
            base_model=self.base_model or base_of(account, piece), datasets=[p.title for p in datasets(account)],
            license=self.license, model_name=label, eval_results=results or None, tags=["undersong"],
            base_model_relation="adapter" if at(piece.record, "summary", "ref", "adapter") != UNKNOWN else "finetune",
        )
        writers = list(dict.fromkeys(g for p in datasets(account) for g in generators(account, p)))
        lines = [f"# {markdown(label)}", "", "How it was made:", "",
                 *(f"- {markdown(making(account, p))}" for p in account.pieces), "",
                 f"Models that wrote its rows: {markdown('; '.join(writers) or UNKNOWN)}.", "",
                 f"Fingerprint {piece.record['fingerprint']}, SHA-256 of record.json {piece.sha256}.",
                 *(f"\nAudit: {markdown(str(a.get('sentence', UNKNOWN)))}" for a in account.audits)]
        return f"---\n{data.to_yaml()}\n---\n\n" + "\n".join(lines) + "\n"
