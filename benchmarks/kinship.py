"""Grow the tree (draft)."""
from __future__ import annotations

import argparse
import time
from pathlib import Path

from kindred import growing, tree


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=1e9)
    parser.add_argument("--backwards", action="store_true")
    given = parser.parse_args()
    start = time.time()
    import transformers
    transformers.utils.logging.disable_progress_bar()
    todo = [m for m in tree.members(tree.Plan()) if not growing.folder(given.store, m.name).is_dir()]
    todo.sort(key=lambda m: m.held_out)
    if not todo:
        raise SystemExit(9)
    for m in todo[::-1] if given.backwards else todo:
        if time.time() - start > given.seconds:
            break
        t = time.time()
        if growing.ready(given.store, m):
            growing.grow(given.store, tree.Plan(), m)
            print(m.name, round(time.time() - t, 1), flush=True)


if __name__ == "__main__":
    main()
