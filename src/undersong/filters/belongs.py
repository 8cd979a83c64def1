"""The `belongs` filter: keep answers that belong to a channel, by the channel's own strict rule.

In an experiment file the bare name is enough: the experiment's channel is filled in.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

from pydantic import Field

from undersong.registry import Settings, plugin
from undersong.spec import build
from undersong.types import Row


@plugin("filter", "belongs")
class Belongs(Settings):
    """Keep answers that follow the format rule of a channel."""

    channel: str | dict[str, Any] = Field()
    """The channel: its name, or {name: {settings}}. Left out in an experiment file, it is the experiment's own."""

    @cached_property
    def _rule(self) -> Any:
        return build("channel", self.channel, "filter belongs")

    def reject(self, row: Row) -> str | None:
        """The channel's reason why the answer is not of it, or None."""
        reason = self._rule.reject(row)
        return None if reason is None else str(reason)
