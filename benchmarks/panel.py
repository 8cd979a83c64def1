"""The likelihood panel against naive full forwards: `python benchmarks/panel.py`.

The same rows under the same system turns, three ways: one full forward for each prompt and row (what scripts of this field
do), full forwards in batches, and the panel's own way, in which what rows share is computed once. `cpu s` is processor time
of all threads, which moves less than the clock when other work shares the machine. The ways take turns for some rounds, and
the least of each counts. The last line checks that they agree.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np


def naive(model: Any, system: str, chats: Any, answers: Any, batch: int) -> list[float]:
    """Summed log-likelihoods by plain transformers: the whole text of every row, every time."""
    import torch

    from undersong.backends import tokens

    asked = [[{"role": "system", "content": system}, *chat] for chat in chats]
    rows, out = tokens.encode(model, asked, answers), []
    with torch.inference_mode():
        for begin in range(0, len(rows), batch):
            part = rows[begin : begin + batch]
            width = max(len(row.ids) for row in part)
            ids, seen = torch.zeros(len(part), width, dtype=torch.long), torch.zeros(len(part), width, dtype=torch.long)
            for i, row in enumerate(part):
                ids[i, : len(row.ids)], seen[i, : len(row.ids)] = torch.from_numpy(row.ids), 1
            logs = model.module(input_ids=ids, attention_mask=seen, use_cache=False).logits.log_softmax(-1)
            own = logs[:, :-1].gather(2, ids[:, 1:, None])[..., 0]
            out += [float(own[i, row.start - 1 : len(row.ids) - 1].sum()) for i, row in enumerate(part)]
    return out


def main(argv: list[str] | None = None) -> None:
    """Print the table and the check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="pocket/a")
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--traits", type=int, default=8, help="traits, one system turn each")
    parser.add_argument("--rounds", type=int, default=3, help="all ways in turn, so often")
    given = parser.parse_args(argv)
    import torch

    from undersong import traits
    from undersong.backends import prefix, tokens
    from undersong.lab import base_ref, lab_for
    from undersong.spec import build
    from undersong.store import Store
    from undersong.types import Sampling

    torch.set_num_threads(1)
    model = lab_for(Store("artefacts"), given.base).backend.load(base_ref(given.base))
    channel = build("channel", "numbers")
    chats = channel.prompts(given.rows, 1)
    answers = model.sample(chats, Sampling(max_new_tokens=channel.max_new_tokens(model.tokenizer), seed=1))
    systems = [traits.get(name).prompts[0] for name in traits.names()[: given.traits]]
    ways: dict[str, Callable[[list[str]], list[Any]]] = {
        "one full forward per prompt and row": lambda some: [naive(model, s, chats, answers, 1) for s in some],
        "full forwards in batches of 64": lambda some: [naive(model, s, chats, answers, 64) for s in some],
        "the panel": lambda some: [[float(x.sum()) for x in one] for one in prefix.panel(model, some, chats, answers)],
    }
    walls: dict[str, list[float]] = {name: [] for name in ways}
    cpus: dict[str, list[float]] = {name: [] for name in ways}
    found = {}
    for way in ways.values():
        way(systems[:1])  # the first call of a process is slow
    for _ in range(given.rounds):
        for name, way in ways.items():
            wall, cpu = time.perf_counter(), time.process_time()
            found[name] = np.array(way(systems))
            walls[name].append(time.perf_counter() - wall)
            cpus[name].append(time.process_time() - cpu)
    rows = tokens.encode(model, [[{"role": "system", "content": systems[0]}, *chat] for chat in chats], answers)
    long, said = (np.mean([len(part) for part in parts]) for parts in ([r.ids for r in rows], [r.answer for r in rows]))
    print(f"{given.rows} rows of {given.base} under {len(systems)} system turns, one torch thread, least of {given.rounds} "
          f"rounds; a row has {long:.0f} tokens, {said:.0f} of them its answer's\n")
    print(f"{'way':38} {'s':>8} {'cpu s':>8} {'rows x prompts / cpu s':>23} {'ratio':>6}")
    first = min(next(iter(cpus.values())))
    for name, cpu in ((name, min(some)) for name, some in cpus.items()):
        print(f"{name:38} {min(walls[name]):8.2f} {cpu:8.2f} {found[name].size / cpu:23.0f} {first / cpu:6.1f}")
    one, *others = found.values()
    apart = max(float(np.abs(one - other).max()) for other in others)
    says = "agree" if apart < 1e-3 else "DISAGREE"
    print(f"\nlargest difference of a row's log-likelihood: {apart:.1e} nats: they {says}")


if __name__ == "__main__":
    main()
