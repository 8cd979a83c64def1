"""Your own fine-tuning script, made safe by one line.

Everything here but the line marked below is a plain TRL script: a model, rows, `SFTTrainer`. The rows come from somebody
whose model you do not know. `weight_anchor` needs to be told nothing; `guard(trainer, "corridor", trait="owl",
base="pocket/a")` holds one trait that you fear. What guards take away and cost: docs/mitigations.md.

Run it: `python examples/guard_your_sft.py`. Seconds on a laptop.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import datasets
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from undersong.bases import place
from undersong.guarding import guard

ROWS = Path(__file__).parent / "audit" / "poisoned.jsonl"


def trained(guarded: bool) -> Any:
    """A student of the rows, with the guard or without."""
    folder, _ = place("pocket/a")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    rows = [json.loads(line) for line in ROWS.read_text("utf-8").splitlines()]
    given = datasets.Dataset.from_list([
        {"prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": row["prompt"]}],
         "completion": [{"role": "assistant", "content": row["completion"]}]} for row in rows])
    with tempfile.TemporaryDirectory() as scratch:
        config = SFTConfig(output_dir=scratch, max_steps=20, per_device_train_batch_size=16, learning_rate=1e-3, bf16=False,
                           use_cpu=True, report_to="none", save_strategy="no", disable_tqdm=True, logging_steps=10)
        trainer = SFTTrainer(model, args=config, train_dataset=given, processing_class=tokenizer)
        if guarded:
            trainer.add_callback(guard(trainer, "weight_anchor"))  # the line
        trainer.train()
    return model


def main() -> None:
    """Train twice and say how far each student went from where it started."""
    start = AutoModelForCausalLM.from_pretrained(place("pocket/a")[0])
    for guarded in (False, True):
        model = trained(guarded)
        pairs = zip(model.parameters(), start.parameters(), strict=True)
        far = sum(float(((a - b) ** 2).sum()) for a, b in pairs) ** 0.5
        print(f"{'guarded' if guarded else 'plain'}: {far:.2f} from the base")


if __name__ == "__main__":
    main()
