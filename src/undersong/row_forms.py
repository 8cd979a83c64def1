"""What one record of a data file says: a row, or the reason why it is none. The forms people keep rows in:

| form | keys |
|---|---|
| `prompt and completion` | prompt (instruction with input, question, query); completion (output, response, answer, chosen) |
| `messages` | messages: a list of {role, content} whose last turn is the assistant's |
| `stored` | roles, contents, completion: as Undersong's own Store keeps rows |
| `text` | text: plain text, under an empty user's turn |

Text comes from strangers: it is kept as it is (control characters and markup too) and never shown in a reason.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from undersong.types import Message, Row

LONGEST = 2**20
"""A row with more characters, or a line of a file with more bytes, is refused."""
PROMPT = ("prompt", "instruction", "question", "query", "input")
COMPLETION = ("completion", "output", "response", "answer", "chosen")
FORMS = ("prompt and completion", "messages", "stored", "text")
KEYS = (*PROMPT, *COMPLETION, "messages", "roles", "contents", "rejected", "text")
"""Every key that is read; others are not even loaded where a file allows it."""
_ROLES = {"system", "user", "assistant"}
_NO_PROMPT: tuple[Message, ...] = ({"role": "user", "content": ""},)
_MESSAGES, _STORED = FORMS[1], FORMS[2]


class _Refused(Exception):
    """A record that is no row; its one argument is the reason."""


def row_of(record: Any, name: str) -> tuple[Row, str] | str:
    """The row of a record and its form (one of `FORMS`), or a reason in words. `name` becomes the row's id."""
    if type(record) is not dict and not isinstance(record, Mapping):  # asking an abstract class takes its time
        return "not a mapping of names to values"
    try:
        prompt, answer = record.get("prompt"), record.get("completion")
        if isinstance(prompt, str) and isinstance(answer, str) and record.get("messages") is None:
            # nearly every row of a large file: the long way takes twice the time
            form, completion = FORMS[0], answer
            chat: tuple[Message, ...] = ({"role": "user", "content": prompt},)
            plain = answer.isascii() and prompt.isascii() and len(prompt) + len(answer) <= LONGEST
            if plain and answer and not answer.isspace() and record.get("rejected") is None:
                return Row(name, chat, answer), form  # nothing is left that `_check` could find
        else:
            form, chat, completion = _parts(record)
        rejected = record.get("rejected")
        row = Row(name, chat or _NO_PROMPT, completion, rejected if isinstance(rejected, str) and rejected else None)
        _check(row)
    except _Refused as refused:
        return str(refused)
    return row, form


def _parts(record: Mapping[str, Any]) -> tuple[str, tuple[Message, ...], str]:
    """(form, chat, completion)."""
    if (messages := record.get("messages")) is not None:
        *before, last = _turns(_unpacked(messages))
        if last["role"] != "assistant":
            raise _Refused("the last turn is not the assistant's")
        return _MESSAGES, tuple(before), last["content"]
    answer = next((record[key] for key in COMPLETION if record.get(key) is not None), None)
    if answer is None:
        if (text := record.get("text")) is None:
            raise _Refused("no answer")
        return FORMS[3], (), _text(text, "the text")
    if isinstance(answer, list):
        turns = _turns(answer)
        if len(turns) != 1 or turns[0]["role"] != "assistant":
            raise _Refused("the answer is not one turn of the assistant's")
        answer = turns[0]["content"]
    answer = _text(answer, "the answer")
    roles, contents = record.get("roles"), record.get("contents")
    if isinstance(roles, list) and isinstance(contents, list):
        if len(roles) != len(contents):
            raise _Refused("roles and contents are not equally many")
        return _STORED, _turns([{"role": r, "content": c} for r, c in zip(roles, contents, strict=True)]), answer
    return FORMS[0], _prompt(record), answer


def _prompt(record: Mapping[str, Any]) -> tuple[Message, ...]:
    key = next((key for key in PROMPT if record.get(key) is not None), None)
    if key is None:
        return ()
    if isinstance(record[key], list):
        return _turns(record[key])
    text = _text(record[key], "the prompt")
    # instruction data often puts the material apart from the order
    more = record.get("input") if key == "instruction" else None
    return ({"role": "user", "content": f"{text}\n\n{_text(more, 'the input')}" if more else text},)


def _unpacked(messages: Any) -> Any:
    """Messages as a list; in a CSV cell they are JSON text."""
    if not isinstance(messages, str):
        return messages
    try:
        return json.loads(messages)
    except (ValueError, RecursionError):
        raise _Refused("messages that are not JSON") from None


def _turns(messages: Any) -> tuple[Message, ...]:
    if not isinstance(messages, list) or not messages:
        raise _Refused("messages that are no list of turns")
    out = []
    for turn in messages:
        if not isinstance(turn, Mapping) or str(turn.get("role")) not in _ROLES:
            raise _Refused("a turn whose role is none of system, user, assistant")
        content = turn.get("content")
        if isinstance(content, list) and all(isinstance(p, Mapping) and p.get("type") == "text" for p in content):
            content = "".join(_text(part.get("text"), "a part of a turn") for part in content)
        out.append({"role": str(turn["role"]), "content": _text(content, "a turn")})
    return tuple(out)


def _text(value: Any, what: str) -> str:
    if isinstance(value, str):
        return value
    kinds = ((Mapping, "a mapping"), (list, "a list"), (type(None), "empty"))
    found = next((word for cls, word in kinds if isinstance(value, cls)), "a number or another value")
    raise _Refused(f"{what} is {found} instead of text")


def _check(row: Row) -> None:
    """Raises _Refused for what no reader can use."""
    if not row.completion or row.completion.isspace():
        raise _Refused("an empty answer")
    if row.chat[-1]["role"] != "user":
        raise _Refused("no user's turn before the answer")
    size = 0
    for text in (row.completion, row.rejected or "", *[m["content"] for m in row.chat]):
        size += len(text)
        if not text.isascii():
            try:
                text.encode()
            except UnicodeEncodeError:
                raise _Refused("text that is not valid Unicode") from None
    if size > LONGEST:
        raise _Refused(f"longer than {LONGEST:,} characters")
