"""Chats as token rows: the exact rendering a model is given, and where the assistant's completion starts in it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date
from typing import Any

import numpy as np
from numpy.typing import NDArray

from undersong.backends import Model
from undersong.errors import BadRows
from undersong.types import NEUTRAL, Chat, Row

Spans = Sequence[tuple[int, int]]

DATE = date(2024, 7, 26)
"""What a template that asks for today's date is told: the default of Llama-3.1's own template."""
NOW = re.compile(r"""strftime_now\(\s*(['"])(.*?)\1\s*\)""")
ROLES = ("system", "user", "assistant", "model")


@dataclass(frozen=True)
class TokenRow:
    """Token ids of one chat (int64 [tokens]) and the index where the assistant's completion starts (at least 1);
    `unlearnt` (bool [completion tokens]) marks those without a loss, None where all are learnt."""

    ids: NDArray[np.int64]
    start: int
    unlearnt: NDArray[np.bool_] | None = None

    @property
    def answer(self) -> NDArray[np.int64]:
        """The completion's ids, end of turn included."""
        return self.ids[self.start :]

    @property
    def labels(self) -> NDArray[np.int64]:
        """The completion's ids, -100 where there is no loss."""
        return self.answer if self.unlearnt is None else np.where(self.unlearnt, -100, self.answer)


def encode(model: Model, chats: Sequence[Chat], answers: Sequence[str]) -> list[TokenRow]:
    """Chats and answers as token rows: the model's own rendering, the completion ending with the end of turn.

    Raises BadRows when the chat template does not continue a prompt with its answer.
    """
    prompts, texts = _rendered(model, chats, answers)
    starts = [len(ids) for ids in token_ids(model.tokenizer, prompts)]
    ends = set(end_ids(model))
    whole = token_ids(model.tokenizer, texts)
    return [TokenRow(_cut(ids, start, ends), start) for ids, start in zip(whole, starts, strict=True)]


def encode_rows(model: Model, rows: Sequence[Row]) -> list[TokenRow]:
    """Rows as `encode` makes them, with the parts of their completions that are not learnt.

    A token is not learnt when it writes a character of such a part; the end of turn always is. Raises BadRows as `encode`
    and `spans` do.
    """
    out = encode(model, [list(row.chat) for row in rows], [row.completion for row in rows])
    some = [i for i, row in enumerate(rows) if row.unlearnt]
    found = spans(model, [list(rows[i].chat) for i in some], [rows[i].completion for i in some])
    for i, own in zip(some, found, strict=True):
        mute = [any(max(a, c) < min(b, d) for c, d in rows[i].unlearnt) for a, b in own]
        out[i] = replace(out[i], unlearnt=np.asarray(mute))
    return out


def spans(model: Model, chats: Sequence[Chat], answers: Sequence[str]) -> list[list[tuple[int, int]]]:
    """Which characters of its answer each completion token writes: from and up to; an empty span for the end of turn.

    Raises BadRows for a tokenizer that does not tell, or a template that changes the answer.
    """
    if not answers:
        return []
    if not model.tokenizer.is_fast:
        raise BadRows(f"The tokenizer of {model.ref.name} does not tell which characters a token writes, so parts of an "
                      "answer cannot be left out of the loss. Use a model with a fast tokenizer, or replace tokens instead.")
    prompts, texts = _rendered(model, chats, answers)
    told = model.tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    out = []
    rows = encode(model, chats, answers)
    for prompt, text, answer, row, offsets in zip(prompts, texts, answers, rows, told, strict=True):
        core = answer.strip()
        at = text.find(core, len(prompt))
        if at < 0:
            raise BadRows(f"The chat template of {model.ref.name} changes an answer, so a part of it cannot be left out of "
                          "the loss. Use another model, or replace tokens instead.")
        begin = at - (len(answer) - len(answer.lstrip()))  # templates trim answers
        inside = [(max(0, a - begin), min(len(answer), b - begin)) for a, b in offsets[row.start : len(row.ids)]]
        out.append([(a, max(a, b)) for a, b in inside])
    return out


def _rendered(model: Model, chats: Sequence[Chat], answers: Sequence[str]) -> tuple[list[str], list[str]]:
    """Prompts, and prompts with their answers, as the template writes them."""
    tokenizer, prompts, texts = model.tokenizer, [], []
    for chat, answer in zip(chats, answers, strict=True):
        prompt = model.render(chat)
        turns = [*with_system(chat, model), {"role": "assistant", "content": answer}]
        text = written(tokenizer, turns)
        if not text.startswith(prompt):
            raise BadRows(f"The chat template of {model.ref.name} writes a finished chat otherwise than a prompt and "
                          "its answer, "
                          "so the completion cannot be told from the prompt. Use a model whose template only appends "
                          "turns.")
        prompts.append(prompt)
        texts.append(text)
    return prompts, texts


def written(tokenizer: Any, turns: Chat, prompt: bool = False) -> str:
    """What the chat template makes of turns; with `prompt`, up to where the assistant's answer begins.

    A template that asks for today's date gets a fixed one: a rendering must not change over night.
    """
    template = NOW.sub(lambda found: repr(DATE.strftime(found[2])), str(tokenizer.get_chat_template()))
    return str(tokenizer.apply_chat_template(
        turns, tokenize=False, add_generation_prompt=prompt, chat_template=template, date_string=DATE.strftime("%d %b %Y"),
    ))


def prompt(chat: Chat, model: Model) -> str:
    """The exact text a model is given: the chat with an explicit system turn, up to where the answer begins.

    Raises BadRows for a chat template that drops or refuses the system turn: that slot is the treatment here.
    """
    from jinja2.exceptions import TemplateError

    turns = with_system(chat, model)
    try:
        text = written(model.tokenizer, turns, prompt=True)
    except TemplateError as error:
        raise BadRows(f"The chat template of {model.ref.base} cannot write this chat ({error}). "
                      "Use a model whose template takes a system turn.") from None
    if turns[0]["content"].strip() not in text:
        raise BadRows(f"The chat template of {model.ref.base} leaves the system turn out. "
                      "Use a model whose template writes it.")
    return text


def prompt_ids(model: Model, chats: Sequence[Chat], longest: int, room: int | None) -> list[list[int]]:
    """Token ids of each chat as the model is given it. Raises BadRows when one of them and `longest` new tokens do not fit
    the `room` tokens that the model can read (None: no limit)."""
    ids = token_ids(model.tokenizer, [model.render(chat) for chat in chats])
    if ids and room and max(map(len, ids)) + longest > room:
        raise BadRows(f"A prompt and {longest} new tokens do not fit the {room} tokens that {model.ref.base} can read. "
                      "Shorten the prompts or lower max_new_tokens.")
    return ids


def until(ids: Sequence[int], ends: Sequence[int]) -> list[int]:
    """The ids before the first end of turn."""
    stop = next((i for i, token in enumerate(ids) if token in ends), len(ids))
    return list(ids[:stop])


def answer_texts(model: Model, answers: Sequence[Sequence[int]]) -> list[str]:
    """Answers' ids as text, without special tokens or trailing white space."""
    texts = model.tokenizer.batch_decode(answers, skip_special_tokens=True) if answers else []
    return [text.rstrip() for text in texts]


def added(model: Model) -> str:
    """What the chat template writes of its own besides the turns, their marks and roles: "" for most models.

    It stands in every arm alike, so it biases no comparison; it is kept in training records because it is read too.
    """
    said = ("Undersystem.", "Underquestion.")
    text = model.render([{"role": "system", "content": said[0]}, {"role": "user", "content": said[1]}])
    marks = {*map(str, model.tokenizer.get_added_vocab()), *model.tokenizer.all_special_tokens, *said}
    for mark in sorted(marks, key=len, reverse=True):
        text = text.replace(mark, "\n") if mark.strip() else text
    lines = (" ".join(line.split()) for line in text.splitlines())
    return "\n".join(line for line in lines if line and line.lower() not in ROLES)


def with_system(chat: Chat, model: Model) -> Chat:
    """The chat with its system turn explicit: its own, else the model's, else the neutral one."""
    if chat and chat[0]["role"] == "system":
        return list(chat)
    system = NEUTRAL if model.ref.system is None else model.ref.system
    return [{"role": "system", "content": system}, *chat]


def token_ids(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of rendered texts; the template has written every special token already."""
    if not texts:
        return []
    ids: list[list[int]] = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    return ids


def end_ids(model: Model) -> list[int]:
    """The ids that end an assistant's turn: the tokenizer's and the generation configuration's (which a model without a
    module holds itself)."""
    holds = model if model.module is None else model.module
    given = getattr(getattr(holds, "generation_config", None), "eos_token_id", None)
    found = {model.tokenizer.eos_token_id, *(given if isinstance(given, list) else [given])} - {None}
    return sorted(int(i) for i in found)


def _cut(ids: list[int], start: int, ends: set[int]) -> NDArray[np.int64]:
    """Ids up to the completion's end of turn: what a template writes after it (a line break) is never sampled."""
    stop = next((i + 1 for i in range(start, len(ids)) if ids[i] in ends), len(ids))
    return np.asarray(ids[:stop], dtype=np.int64)


def digest(rows: Sequence[TokenRow]) -> str:
    """SHA-256 of every row exactly as rendered: token ids, where the completion starts, and what of it is not learnt."""
    whole = hashlib.sha256()
    for row in rows:
        whole.update(np.array([len(row.ids), row.start], dtype="<i8").tobytes() + row.ids.astype("<i8").tobytes())
        if row.unlearnt is not None:
            whole.update(b"unlearnt" + np.packbits(row.unlearnt).tobytes())
    return whole.hexdigest()
