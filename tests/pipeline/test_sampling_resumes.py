"""Sampling resumes by parts: an interruption repeats no finished part and loses no finished row."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from undersong import writing
from undersong.lab import Lab, base_ref
from undersong.spec import build
from undersong.store import Store
from undersong.types import Chat, ModelRef, Sampling


class Stopping:
    """The simulated backend, whose model is interrupted at one call of `sample` and counts the others."""

    def __init__(self, stop_at: int | None) -> None:
        self.stop_at, self.calls, self.inner = stop_at, 0, build("backend", "simulated")

    def load(self, ref: ModelRef) -> Any:
        self.model = self.inner.load(ref)
        self.tokenizer = self.model.tokenizer
        return self

    def sample(self, chats: Sequence[Chat], sampling: Sampling) -> list[str]:
        if self.calls == self.stop_at:
            raise KeyboardInterrupt
        self.calls += 1
        return list(self.model.sample(chats, sampling))


def test_finished_parts_are_kept_and_not_sampled_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "PART", 20)
    base, channel = base_ref("simulated/a"), build("channel", "numbers")
    whole = Lab(Store(tmp_path / "whole"), Stopping(None)).sample(base, channel, 90, 1)
    store, stopped = Store(tmp_path / "resumed"), Stopping(2)
    with pytest.raises(KeyboardInterrupt):
        Lab(store, stopped).sample(base, channel, 90, 1)
    assert stopped.calls == 2
    again = Stopping(None)
    resumed = Lab(store, again).sample(base, channel, 90, 1)
    assert again.calls == 3, "a finished part was sampled again"
    assert resumed.rows == whole.rows
    assert len({row.id for row in resumed.rows}) == 90
    assert [list(row.chat) for row in whole.rows] == channel.prompts(90, 1), "a row stands under another prompt"
