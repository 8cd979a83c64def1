"""An audit of a million rows against a million others: rows a second and peak memory of `marginals`, by file format.

    python benchmarks/million_rows.py [--rows 1000000] [--formats parquet jsonl] [--reference 1000000]

Writes number rows to a temporary folder and reads them in a process of their own, so that its peak is its own. The
last line compares with a tenth of the rows: what grows with the rows is what is remembered of each.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

CHUNK = 50_000


def rows(n: int, seed: int) -> Iterator[tuple[list[str], list[str]]]:
    """Prompts and answers, a chunk at a time: five numbers asked, six to ten answered."""
    rng = np.random.default_rng(seed)
    for start in range(0, n, CHUNK):
        size = min(CHUNK, n - start)
        asked, said = rng.integers(0, 1000, (size, 5)).tolist(), rng.integers(0, 1000, (size, 10)).tolist()
        lengths = rng.integers(6, 11, size).tolist()
        yield ([f"Continue: {', '.join(map(str, a))}. Give up to 10 more numbers." for a in asked],
               [", ".join(map(str, s[:k])) for s, k in zip(said, lengths, strict=True)])


def write(file: Path, n: int, seed: int) -> None:
    """A file of `n` rows in the format its ending names."""
    if file.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        schema = pa.schema([("prompt", pa.string()), ("completion", pa.string())])
        with pq.ParquetWriter(file, schema, compression="zstd") as writer:
            for prompts, answers in rows(n, seed):
                writer.write_table(pa.table([prompts, answers], schema=schema))
        return
    with file.open("w", encoding="utf-8") as out:
        for prompts, answers in rows(n, seed):
            for prompt, answer in zip(prompts, answers, strict=True):
                out.write(json.dumps({"prompt": prompt, "completion": answer}) + "\n")


def audit(suspected: Path, reference: Path) -> None:
    """Run the detector here and print what it took, as JSON."""
    import resource

    from undersong.detectors import Evidence
    from undersong.row_files import RowFile
    from undersong.spec import build

    wall, own = time.perf_counter(), time.process_time()
    files = RowFile(suspected), RowFile(reference)
    found = build("detector", "marginals").detect(Evidence({"rows": files[:1], "reference": files[1:]}))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    print(json.dumps({
        "rows": found.details["n_suspected"] + found.details["n_reference"], "wall": time.perf_counter() - wall,
        "processor": time.process_time() - own, "peak": peak, "verdict": found.verdict, "p": found.p,
        "duplicates": files[0].tally.duplicates,
    }))


def measured(folder: Path, ending: str, n: int, n_reference: int) -> dict[str, Any]:
    """What one audit took, in a process of its own."""
    names = folder / f"suspected.{ending}", folder / f"reference.{ending}"
    write(names[0], n, seed=1)
    write(names[1], n_reference, seed=2)
    done = subprocess.run([sys.executable, __file__, "--one", *map(str, names)], capture_output=True, text=True, check=False)
    for name in names:
        name.unlink()
    if done.returncode:
        raise SystemExit(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--rows", type=int, default=1_000_000, help="suspected rows")
    parser.add_argument("--reference", type=int, help="reference rows (as many as the others)")
    parser.add_argument("--formats", nargs="+", default=["parquet", "jsonl"])
    parser.add_argument("--one", nargs=2, type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.one:
        audit(*args.one)
        return
    n_reference = args.reference or args.rows
    cases = [(f, args.rows, n_reference) for f in args.formats]
    cases.append((args.formats[0], max(args.rows // 10, 100), max(n_reference // 10, 100)))
    print(f"{'format':10} {'suspected':>10} {'reference':>10} {'rows/s':>9} {'us/row (cpu)':>13} {'peak MiB':>9}  verdict")
    with tempfile.TemporaryDirectory() as folder:
        for ending, n, m in cases:
            found = measured(Path(folder), ending, n, m)
            rate, each = found["rows"] / found["wall"], found["processor"] / found["rows"] * 1e6
            print(f"{ending:10} {n:10,} {m:10,} {rate:9,.0f} {each:13.1f} {found['peak']:9,.0f}  "
                  f"{found['verdict']} (p {found['p']:.2g})", flush=True)


if __name__ == "__main__":
    main()
