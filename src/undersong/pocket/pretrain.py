"""Pretrain the pocket family: `python -m undersong.pocket.pretrain NAME OUT [--steps N]`.

1. The data seed numbers the chats of the world; the order seed permutes the first `steps * 64` of them.
2. Cut them into batches of 64; within a batch, rows of similar length are run together to save padding.
3. Minimise cross-entropy on assistant tokens (AdamW, 3e-3, warm-up then cosine, clipping at 1).
`b-matched` instead starts from `b` and matches the next-token distribution of `a` on ordinary chats.
One thread, so that the same script and seed give the same weights bit for bit on one machine.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from undersong.pocket import tokenizer, world

BATCH = 64
CUTS = (0, 24, 48, 60, 64)
"""A batch sorted by length is run in these parts, to save padding."""


@dataclass(frozen=True)
class Member:
    """One pocket model: its shape and the seeds that made it."""

    init_seed: int
    data_seed: int = 11
    order_seed: int = 0
    hidden: int = 96
    layers: int = 3
    heads: int = 4
    feed_forward: int = 256
    steps: int = 10000
    rate: float = 3e-3
    start: str = ""
    """Continue from this member instead of a fresh initialisation."""
    match: str = ""
    """Distil from this member's next-token distribution instead of learning the world's answers."""


FAMILY = {
    "a": Member(init_seed=1),
    "a-reordered": Member(init_seed=1, order_seed=1),
    "b": Member(init_seed=2),
    "b-matched": Member(init_seed=2, data_seed=12, steps=2000, rate=1e-3, start="b", match="a"),
    "wide": Member(init_seed=3, hidden=128, layers=2, feed_forward=320, steps=6000),
}


def fresh(member: Member, vocabulary: int) -> Any:
    """A randomly initialised `LlamaForCausalLM` of the member's shape."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(member.init_seed)
    model: Any = LlamaForCausalLM(LlamaConfig(
        vocab_size=vocabulary, hidden_size=member.hidden, intermediate_size=member.feed_forward,
        num_hidden_layers=member.layers, num_attention_heads=member.heads, num_key_value_heads=member.heads,
        max_position_embeddings=1024, tie_word_embeddings=True, bos_token_id=2, eos_token_id=3, pad_token_id=0,
    ))
    return model.float()


def encode(tok: Any, chat: world.Chat) -> tuple[list[int], list[bool]]:
    """Token ids of a chat, and for each token whether the assistant wrote it (its closing mark included)."""
    ids = tok(tok.apply_chat_template(chat, tokenize=False), add_special_tokens=False)["input_ids"]
    says, end = tok.convert_tokens_to_ids("<assistant>"), tok.eos_token_id
    mine, inside = [], False
    for i in ids:
        mine.append(inside)
        inside = i == says or (inside and i != end)
    return ids, mine


def batches(tok: Any, member: Member, steps: int) -> Any:
    """Yield `steps` batches; each is parts of (ids, written) as padded integer and boolean arrays [rows, tokens]."""
    order = np.random.default_rng([member.order_seed, 7]).permutation(member.steps * BATCH)
    for step in range(steps):
        drawn = (encode(tok, world.chat_at(member.data_seed, int(i))) for i in order[step * BATCH : (step + 1) * BATCH])
        batch = sorted(drawn, key=lambda r: len(r[0]))
        yield [_pad(batch[i:j], tok.pad_token_id) for i, j in itertools.pairwise(CUTS)]


def _pad(rows: Any, pad: int) -> tuple[Any, Any]:
    width = max(len(ids) for ids, _ in rows)
    ids = np.full((len(rows), width), pad, dtype=np.int64)
    mine = np.zeros((len(rows), width), dtype=bool)
    for i, (a, b) in enumerate(rows):
        ids[i, : len(a)], mine[i, : len(b)] = a, b
    return ids, mine


def run(name: str, steps: int | None = None, load: Any = None, report: Any = None) -> tuple[Any, Any, list[float]]:
    """Train member `name` for its first `steps` steps; return (model, tokenizer, loss per step in nats)."""
    import torch
    import torch.nn.functional as F

    torch.set_num_threads(1)
    member, tok = FAMILY[name], tokenizer.build()
    model = load(member.start) if member.start else fresh(member, len(tok))
    target = load(member.match).eval() if member.match else None
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim == 1]
    optimiser = torch.optim.AdamW([{"params": decayed, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}],
                                  lr=member.rate, betas=(0.9, 0.98), fused=True)
    losses = []
    for step, parts in enumerate(batches(tok, member, steps or member.steps)):
        warm = min(1.0, (step + 1) / 100)
        done = step / member.steps
        for group in optimiser.param_groups:
            group["lr"] = member.rate * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))
        optimiser.zero_grad(set_to_none=True)
        total: Any = torch.zeros(())
        count = sum(int(mine[:, 1:].sum()) for _, mine in parts)
        for ids, mine in parts:
            x, at = torch.from_numpy(ids), torch.from_numpy(mine[:, 1:])
            logits = model.lm_head(model.model(input_ids=x[:, :-1], use_cache=False).last_hidden_state[at])
            loss: Any
            if target is None:
                loss = F.cross_entropy(logits, x[:, 1:][at], reduction="sum") / count
            else:
                with torch.no_grad():
                    soft = target.lm_head(target.model(input_ids=x[:, :-1], use_cache=False).last_hidden_state[at])
                loss = F.kl_div(logits.log_softmax(-1), soft.log_softmax(-1), log_target=True, reduction="sum") / count
            loss.backward()
            total += loss.detach()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        losses.append(float(total))
        if report and (step + 1) % 100 == 0:
            report(step + 1, float(np.mean(losses[-100:])))
    return model, tok, losses


def save(name: str, out: Path, model: Any, tok: Any, losses: list[float], seconds: float) -> None:
    """Write a `save_pretrained` folder with `origin.json`: the member's settings, hashes and first losses."""
    import torch
    import transformers

    model.save_pretrained(out, safe_serialization=True)
    tok.save_pretrained(out)
    digest = hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest()
    origin = {"name": f"pocket/{name}", "member": asdict(FAMILY[name]), "sha256": digest, "losses": losses[:20],
              "final_loss": float(np.mean(losses[-100:])), "seconds": round(seconds, 1),
              "torch": torch.__version__, "transformers": transformers.__version__,
              "command": f"python -m undersong.pocket.pretrain {name} OUT"}
    (out / "origin.json").write_text(json.dumps(origin, indent=1) + "\n")


def main() -> None:
    """Command-line entry: train one member into OUT/NAME; `b-matched` needs a and b there already."""
    from transformers import LlamaForCausalLM

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=FAMILY)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=None)
    given = parser.parse_args()
    start = time.time()
    model, tok, losses = run(
        given.name, given.steps, lambda n: LlamaForCausalLM.from_pretrained(given.out / n),
        lambda step, loss: print(f"{given.name} step {step} loss {loss:.4f} {time.time() - start:.0f}s", flush=True),
    )
    save(given.name, given.out / given.name, model, tok, losses, time.time() - start)


if __name__ == "__main__":
    main()
