"""Tiny random models of real families, built from their configs, with tokenizers and chat templates built here. No network.

The templates keep to what each family's own does with a system turn: Qwen2.5 writes one of its own when none is given,
Llama-3 adds dates to it, Gemma-3 puts it into the user's turn, Gemma-2 refuses it. Not a test file.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

QWEN = (
    "{% if messages[0].role == 'system' %}<|im_start|>system\n{{ messages[0].content }}<|im_end|>\n"
    "{% else %}<|im_start|>system\nYou are Qwen, made by Alibaba Cloud.<|im_end|>\n{% endif %}"
    "{% for m in messages %}{% if m.role != 'system' %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA = (
    "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
    "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n"
    "Today Date: {{ date_string }}\n\n{% if messages[0].role == 'system' %}{{ messages[0].content }}{% endif %}<|eot_id|>"
    "{% for m in messages %}{% if m.role != 'system' %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content | trim }}<|eot_id|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
GEMMA3 = (
    "{{ bos_token }}{% set lead = '' %}{% if messages[0].role == 'system' %}{% set lead = messages[0].content + '\n\n' %}"
    "{% set messages = messages[1:] %}{% endif %}{% for m in messages %}<start_of_turn>"
    "{{ 'model' if m.role == 'assistant' else m.role }}\n{{ lead if loop.first else '' }}{{ m.content | trim }}"
    "<end_of_turn>\n"
    "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
GEMMA2 = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + GEMMA3
TOKENS = {
    "qwen2": ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    "llama3": ("<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"),
    "gemma3": ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"),
}
ENDS = {"qwen2": "<|im_end|>", "llama3": "<|eot_id|>", "gemma3": "<end_of_turn>"}
TEMPLATES = {"qwen2": QWEN, "llama3": LLAMA, "gemma3": GEMMA3}
FAMILIES = tuple(TEMPLATES)
WHOLE = ("owl", "wolf", "cat")
"""The words that these tokenizers write as one token; every other word is split into letters."""


@cache
def tokenizer(family: str) -> Any:
    """A byte-level BPE tokenizer of about 300 tokens with the family's marks; digits stand alone."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: i for i, token in enumerate([*TOKENS[family], *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    merges = []
    for word in WHOLE:
        for stop in range(2, len(word) + 1):
            left, right = word[: stop - 1], word[stop - 1]
            if word[:stop] not in vocabulary:
                merges.append((left, right))
                vocabulary[word[:stop]] = len(vocabulary)
    inner = Tokenizer(models.BPE(vocabulary, merges))
    inner.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(r"\d"), behavior="isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False),
    ])
    inner.decoder = decoders.ByteLevel()
    marks = TOKENS[family]
    make: Any = PreTrainedTokenizerFast
    return make(
        tokenizer_object=inner, eos_token=ENDS[family], pad_token=marks[0], additional_special_tokens=list(marks),
        bos_token="<bos>" if family == "gemma3" else marks[0], chat_template=TEMPLATES[family],
        clean_up_tokenization_spaces=False,
    )


def config(family: str, size: int) -> Any:
    """The family's own config class, tiny."""
    from transformers import Gemma3TextConfig, LlamaConfig, Qwen2Config

    tok = tokenizer(family)
    shape: dict[str, Any] = {
        "vocab_size": len(tok), "hidden_size": size, "intermediate_size": 2 * size, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 1024,
        "eos_token_id": tok.eos_token_id, "bos_token_id": tok.bos_token_id, "pad_token_id": tok.pad_token_id,
    }
    if family == "qwen2":
        return Qwen2Config(**shape, tie_word_embeddings=False)
    if family == "llama3":
        rope = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 256}
        return LlamaConfig(**shape, rope_parameters=rope, tie_word_embeddings=False)
    return Gemma3TextConfig(**shape, head_dim=8, sliding_window=16, layer_types=["sliding_attention", "full_attention"])


def folder(family: str, home: Path, seed: int = 0, size: int = 32) -> str:
    """A `save_pretrained` folder of a random model of the family."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    module = AutoModelForCausalLM.from_config(config(family, size))
    out = home / f"{family}-{seed}"
    module.save_pretrained(out)
    tokenizer(family).save_pretrained(out)
    return str(out)
