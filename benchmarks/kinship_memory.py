"""Peak memory of comparing two large checkpoints: `python benchmarks/kinship_memory.py [GIB] [FOLDER]`.

Writes two synthetic Llama-like checkpoints of GIB gibibytes each (bfloat16, two shards; sparse files with random rows at
the start of every tensor), compares them by all tests of weights in a process of its own, and prints its peak resident
memory beside the sizes. The second model is a copy with moved values, so that the tests read what they read of a real pair.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

WIDTH, HIDDEN, VOCABULARY = 4096, 11008, 32000
RANDOM_ROWS = 512
READ = """
import resource, sys, time
from undersong.kinship import Subject
from undersong.relation import default_tests, relate
from undersong.types import ModelRef
imported = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
pair = [Subject(f, ModelRef(f, fingerprint=f), None) for f in sys.argv[1:3]]
start = time.monotonic()
found = relate(*pair, [t for t in default_tests() if "weights" in t.needs])
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(found["relation"], peak / 1024, imported / 1024, time.monotonic() - start, sep=",")
"""


def shapes(gib: float) -> dict[str, tuple[int, ...]]:
    """Tensors of a model that fills so many gibibytes in bfloat16."""
    layer = {"self_attn.q_proj": (WIDTH, WIDTH), "self_attn.o_proj": (WIDTH, WIDTH), "mlp.gate_proj": (HIDDEN, WIDTH),
             "mlp.up_proj": (HIDDEN, WIDTH), "mlp.down_proj": (WIDTH, HIDDEN), "post_attention_layernorm": (WIDTH,)}
    out: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, WIDTH)}
    one = 2 * sum(math.prod(s) for s in layer.values())
    for i in range(max(1, round((gib * 2**30 - 2 * VOCABULARY * WIDTH) / one))):
        out |= {f"model.layers.{i}.{name}.weight": shape for name, shape in layer.items()}
    return out


def write(folder: Path, gib: float, seed: int) -> float:
    """A sharded checkpoint; gibibytes written. Seed 1 is seed 0 with every value moved by half its size."""
    folder.mkdir(parents=True)
    names, where, total = list(shapes(gib).items()), {}, 0
    for shard in range(2):
        file, at, entries = f"model-{shard + 1:05d}-of-00002.safetensors", 0, {}
        for name, shape in names[shard::2]:
            end = at + 2 * math.prod(shape)
            entries[name], at = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, end]}, end
            where[name] = file
        header = json.dumps(entries).encode()
        with open(folder / file, "wb") as out:
            out.write(len(header).to_bytes(8, "little") + header)
            out.truncate(8 + len(header) + at)
            for name, entry in entries.items():
                count = min(math.prod(entry["shape"]), RANDOM_ROWS * WIDTH)
                rng = np.random.default_rng([sum(name.encode()), count])
                values = rng.standard_normal(count, np.float32)
                if seed:
                    values += 0.5 * np.random.default_rng([seed, count]).standard_normal(count, np.float32)
                out.seek(8 + len(header) + entry["data_offsets"][0])
                (values.view(np.uint32) >> 16).astype(np.uint16).tofile(out)
        total += 8 + len(header) + at
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return total / 2**30


def measure(gib: float, at: Path) -> dict[str, float | str]:
    """Write a pair under a folder, compare it in a fresh process and tell sizes, peak memory (MiB) and seconds."""
    pair = [at / "a", at / "b"]
    sizes = [write(folder, gib, seed) for seed, folder in enumerate(pair)]
    done = subprocess.run([sys.executable, "-c", READ, *map(str, pair)], capture_output=True, text=True, check=True)
    relation, peak, imported, seconds = done.stdout.strip().split(",")
    return {"gib_each": sum(sizes) / 2, "relation": relation, "peak_mib": float(peak), "imports_mib": float(imported),
            "seconds": float(seconds)}


def main() -> None:
    """Print the table for the size asked for."""
    gib = float(sys.argv[1]) if len(sys.argv) > 1 else 3.0
    with tempfile.TemporaryDirectory(dir=sys.argv[2] if len(sys.argv) > 2 else None) as folder:
        start = time.monotonic()
        found = measure(gib, Path(folder))
    print("| each model | relation | peak memory | of it imports | seconds |\n|---|---|---|---|---|")
    print(f"| {found['gib_each']:.2f} GiB | {found['relation']} | {found['peak_mib']:.0f} MiB "
          f"| {found['imports_mib']:.0f} MiB | {found['seconds']:.0f} (writing included {time.monotonic() - start:.0f}) |")


if __name__ == "__main__":
    main()
