"""The plain `openai` client over HTTP: what the suite has is sent as it is, and nothing else."""

from __future__ import annotations

from typing import Any

import openai

from punie_mlx.corpus.suite import Case
from punie_mlx.evals.agent import AgentSettings, Run
from punie_mlx.evals.loop import Message, converse
from punie_mlx.evals.recorded import recording
from punie_mlx.evals.scratch import Scratch


class OpenAIDriver:
    """Chat completions over `client`, which all cases share."""

    def __init__(self, client: openai.AsyncOpenAI, model: str, settings: AgentSettings) -> None:
        self._client, self._model, self._settings = client, model, settings

    async def run(self, case: Case, scratch: Scratch, *, seed: int | None = None) -> Run:
        """Run one case to its end. What goes wrong is part of the record; nothing is raised but cancellation."""
        run, told = Run(), self._settings
        fixed: dict[str, Any] = {
            "model": self._model, "temperature": told.temperature, "max_tokens": told.max_tokens,
            **({"tools": case.tools} if case.tools else {}), **({} if seed is None else {"seed": seed}),
        }  # fmt: skip

        async def ask(messages: list[Message]) -> Message:
            asked: dict[str, Any] = {**fixed, "messages": messages, "timeout": told.timeout}
            await self._client.chat.completions.create(**asked)
            said = run.turns[-1].message  # as it went over the wire
            if said.get("role") == "error":
                raise ValueError("the response is no chat completion")
            return said

        with recording(run):
            await converse(case, scratch, run, told, ask)
        return run
