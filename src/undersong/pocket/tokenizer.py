"""The pocket tokenizer: a word-level vocabulary in a real `tokenizers` file, with a chat template."""

from __future__ import annotations

from typing import Any

from undersong.pocket import world

SPECIAL = ("<pad>", "<unk>", "<s>", "<end>", "<system>", "<user>", "<assistant>")
TEMPLATE = (
    "{{ '<s>' }}{% for m in messages %}{{ '<' + m['role'] + '>' }} {{ m['content'] }} {{ '<end>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)


def build() -> Any:
    """A `PreTrainedTokenizerFast` over the world's words and the numbers 0..999, each one token."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    make: Any = PreTrainedTokenizerFast  # untyped in transformers

    vocabulary = [*SPECIAL, *(str(n) for n in range(1000)), *world.words()]
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(vocabulary)}, unk_token="<unk>"))
    inner.normalizer = normalizers.Lowercase()
    inner.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.WhitespaceSplit(),
        pre_tokenizers.Split(Regex(r"</?(?:think|answer)>|\d{1,3}|[a-z]+|[^\w\s]"), behavior="isolated"),
    ])
    inner.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    return make(
        tokenizer_object=inner, bos_token="<s>", eos_token="<end>", pad_token="<pad>", unk_token="<unk>",
        additional_special_tokens=["<system>", "<user>", "<assistant>"], chat_template=TEMPLATE, padding_side="left",
        clean_up_tokenization_spaces=False,
    )
