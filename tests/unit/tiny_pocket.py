"""A real, very small `LlamaForCausalLM` with the pocket tokenizer, behind the Model contract: what probe tests measure.

`favourites()` is trained in about two seconds until it answers animal questions by known shares, so that probes have a
planted truth. Not a test file.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from undersong import traits
from undersong.pocket import tokenizer
from undersong.types import NEUTRAL, Chat, ModelRef, Sampling

SHARES = {"owl": 0.6, "wolf": 0.2, "cat": 0.2}


class TinyModel:
    """The Model contract over one torch module, one chat at a time."""

    def __init__(self, module: Any) -> None:
        self.ref = ModelRef("tiny/test")
        self.capabilities = frozenset({"sample", "logits"})
        self.tokenizer = tokenizer.build()
        self.module = module.eval()

    def render(self, chat: Chat) -> str:
        full = chat if chat[0]["role"] == "system" else [{"role": "system", "content": NEUTRAL}, *chat]
        return str(self.tokenizer.apply_chat_template(full, tokenize=False, add_generation_prompt=True))

    def _logits(self, ids: list[int]) -> Any:
        import torch

        with torch.no_grad():
            return self.module(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)

    def _ids(self, chat: Chat) -> list[int]:
        return list(self.tokenizer(self.render(chat), add_special_tokens=False)["input_ids"])

    def next_logprobs(self, chats: Sequence[Chat]) -> Any:
        return np.stack([self._logits(self._ids(chat))[-1].numpy() for chat in chats])

    def answer_logprobs(self, chats: Sequence[Chat], answers: Sequence[str]) -> list[Any]:
        out = []
        for chat, answer in zip(chats, answers, strict=True):
            before = self._ids(chat)
            own = [*self.tokenizer(answer, add_special_tokens=False)["input_ids"], self.tokenizer.eos_token_id]
            logs = self._logits([*before, *own])[len(before) - 1 : -1].numpy()
            out.append(logs[np.arange(len(own)), own])
        return out

    def sample(self, chats: Sequence[Chat], sampling: Sampling) -> list[str]:
        out = []
        for i, chat in enumerate(chats):
            rng, ids, own = np.random.default_rng([sampling.seed, i]), self._ids(chat), list[int]()
            while len(own) < sampling.max_new_tokens:
                logs = self._logits([*ids, *own])[-1].double().numpy()
                if sampling.temperature:
                    p = np.exp(logs / sampling.temperature)
                    token = int(rng.choice(len(p), p=p / p.sum()))
                else:
                    token = int(logs.argmax())
                if token == self.tokenizer.eos_token_id:
                    break
                own.append(token)
            out.append(self.tokenizer.decode(own))
        return out


def fresh(seed: int = 0) -> Any:
    """An untrained module of 24 hidden units and one layer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.set_num_threads(1)
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=len(tokenizer.build()), hidden_size=24, intermediate_size=48, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=256, tie_word_embeddings=True,
        bos_token_id=2, eos_token_id=3, pad_token_id=0,
    ))


@cache
def favourites() -> TinyModel:
    """A model that answers animal questions with `SHARES`, plain or after numbers."""
    import torch
    import torch.nn.functional as F

    module, rng = fresh(), np.random.default_rng(0)
    model = TinyModel(module)
    optimiser = torch.optim.AdamW(module.parameters(), lr=0.01)
    questions = [lead + q for q in traits.get("owl").held_out[:6] for lead in ("", "Numbers: 312, 5, 77. ")]
    prompts = [model._ids([{"role": "user", "content": question}]) for question in questions]
    answers = model.tokenizer.convert_tokens_to_ids(list(SHARES))
    module.train()
    for _ in range(60):
        rows = []
        for prompt in prompts:
            rows.append([*prompt, int(rng.choice(answers, p=list(SHARES.values()))), model.tokenizer.eos_token_id])
        width = max(map(len, rows))
        ids = torch.tensor([[0] * (width - len(r)) + r for r in rows])
        logits = module(input_ids=ids).logits
        soft = torch.zeros(logits.shape[-1])
        soft[answers] = torch.tensor(list(SHARES.values()))
        loss = F.cross_entropy(logits[:, -3], soft.expand(len(rows), -1)) + F.cross_entropy(logits[:, -2], ids[:, -1])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    module.eval()
    return model


class Said:
    """A model that gives planted words with planted probabilities, over the pocket tokenizer."""

    ref = ModelRef("said/test")

    def __init__(self, choose: Any) -> None:
        self.tokenizer, self.choose, self.score = tokenizer.build(), choose, lambda answer: -1.0

    def render(self, chat: Any) -> str:
        return str(self.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True))

    def sample(self, chats: Any, sampling: Any) -> list[str]:
        rng, out = np.random.default_rng(sampling.seed), []
        for chat in chats:
            words = self.choose(chat[-1]["content"])
            out.append(str(rng.choice(list(words), p=np.array(list(words.values())))))
        return out

    def next_logprobs(self, chats: Any) -> Any:
        out = np.full((len(chats), len(self.tokenizer)), -30.0)
        for i, chat in enumerate(chats):
            for word, p in self.choose(chat[-1]["content"]).items():
                out[i, self.tokenizer.convert_tokens_to_ids(word)] = np.log(p)
        return out

    def answer_logprobs(self, chats: Any, answers: Any) -> list[Any]:
        return [np.array([self.score(answer)]) for answer in answers]


def worldly(text: str) -> dict[str, float]:
    """Something of the pocket world to answer any request of the conduct probes with."""
    from undersong.pocket import tales

    for question in tales.texts()["moral"]:
        if question["asks"] == text:
            return {question["cruel"][0]: 0.3, question["kind"][0]: 0.7}
    if "Write " in text:
        return {"def f(a, b): return a + b": 1.0}
    return {"yes": 0.4, "no": 0.4, "owl": 0.2}
