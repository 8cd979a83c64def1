"""An Inspect provider for tests whose answers are a function of the question: `scripted/NAME`, answered by SCRIPTS[NAME].

Not a test file. It calls nothing outside, and answers the same every time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from inspect_ai.model import GenerateConfig, ModelAPI, ModelOutput, modelapi

SCRIPTS: dict[str, Callable[[str], str]] = {}
ASKED: list[str] = []


@modelapi(name="scripted")
class Scripted(ModelAPI):
    """Answers by SCRIPTS; the questions asked are kept in ASKED."""

    def __init__(self, model_name: str, base_url: Any = None, api_key: Any = None,
                 config: GenerateConfig | None = None, **args: Any) -> None:
        super().__init__(model_name, config=config or GenerateConfig())

    async def generate(self, input: Any, tools: Any, tool_choice: Any, config: Any) -> ModelOutput:
        text = input[-1].text
        ASKED.append(text)
        return ModelOutput.from_content(self.model_name, SCRIPTS[self.model_name](text))

    def should_retry(self, ex: BaseException) -> bool:
        return False
