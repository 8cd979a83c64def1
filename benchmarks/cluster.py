"""One experiment inline, on two Ray nodes, and on two of which one is killed half way: `python benchmarks/cluster.py`.

Two raylets on this machine make a cluster of two nodes, each of one processor. What is compared is the SHA-256 of every
payload file of every artefact; where the work ran must not change one of them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

DEMO = Path(__file__).parent.parent / "experiments" / "owl-numbers-pocket.yaml"


@contextlib.contextmanager
def two_nodes() -> Iterator[Any]:
    """A cluster of two raylets: a head that does no work, so that either of two nodes may die."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        cluster.workers = [cluster.add_node(num_cpus=1, include_dashboard=False) for _ in range(2)]
        yield cluster
    finally:
        cluster.shutdown()


def command(file: Path, store: Path, *more: str) -> list[str]:
    """The command a user would give."""
    return [sys.executable, "-m", "undersong.cli", "run", str(file), "--store", str(store), *more]


def digests(store: Path) -> dict[str, dict[str, str]]:
    """The SHA-256 of every payload file of every finished artefact."""
    out = {}
    for path in sorted(store.glob("*/*/record.json")):
        record = json.loads(path.read_text())
        if record["status"] == "complete":
            out[f"{record['kind']}/{record['fingerprint']}"] = {n: f["sha256"] for n, f in record["files"].items()}
    return out


def on_nodes(file: Path, store: Path, kill: float | None = None, say: Any = None) -> tuple[float, str]:
    """Run on two nodes; with `kill`, one dies when that share of the cells is done. Seconds, and what the driver said."""
    start, said, dead = time.monotonic(), [], kill is None
    with two_nodes() as cluster:
        driver = subprocess.Popen(command(file, store, "--executor", "ray", "--address", cluster.address),
                                  stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        for line in driver.stderr or ():
            said.append(line.rstrip())
            if say:
                say(line.rstrip())
            done, _, rest = line.partition("s  ")[2].partition("/")
            if not dead and done.strip().isdigit() and int(done) >= (kill or 0) * int(rest.split()[0]):
                cluster.remove_node(cluster.workers[-1], allow_graceful=False)
                said.append("-- one node killed --")
                dead = True
        if driver.wait() != 0:
            raise SystemExit("\n".join(said[-5:]))
    return time.monotonic() - start, "\n".join(said)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?", type=Path, default=DEMO)
    parser.add_argument("--inline", type=Path, help="a store in which the experiment is finished inline already")
    parser.add_argument("--store", type=Path, help="where the two other stores go; a temporary folder when left out")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        root, start = given.store or Path(scratch), time.monotonic()
        inline = given.inline or root / "inline"
        subprocess.run(command(given.file, inline), check=True, stdout=subprocess.DEVNULL)
        wanted = digests(inline)
        print("| where | seconds | artefacts | payload files | differ from inline | cells begun again |")
        print("|---|---|---|---|---|---|")
        print(f"| inline{' (was finished)' if given.inline else ''} | {time.monotonic() - start:.0f} | {len(wanted)} | "
              f"{sum(map(len, wanted.values()))} | | |")
        for name, kill in (("two nodes", None), ("two nodes, one killed half way", 0.5)):
            store = root / name.replace(" ", "-").replace(",", "")
            seconds, said = on_nodes(given.file, store, kill, lambda line: print(line, file=sys.stderr))
            got = digests(store)
            other = sum(got.get(mark) != files for mark, files in wanted.items()) + len(set(got) - set(wanted))
            print(f"| {name} | {seconds:.0f} | {len(got)} | {sum(map(len, got.values()))} | {other} | "
                  f"{said.count('the worker of')} |", flush=True)


if __name__ == "__main__":
    main()
