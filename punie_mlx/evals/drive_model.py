"""The model without a server: prompts to a child process (`punie_mlx.direct`), calls read from its tokens here.

The child renders and generates; the text is read with `punie_mlx.toolcalls` as the server would read it, without a
grammar and without the rescue of calls in another format. So what fails through the server and not through this is the
server's doing, and what fails in both is the model's.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any

from punie_mlx.corpus.suite import Case
from punie_mlx.errors import ConfigError, ServerError
from punie_mlx.evals.agent import AgentSettings, Run, Turn
from punie_mlx.evals.loop import Message, converse
from punie_mlx.evals.recorded import bounded
from punie_mlx.evals.scratch import Scratch
from punie_mlx.evals.server_process import ServerProcess
from punie_mlx.toolcalls import detect
from punie_mlx.toolcalls.calls import Tool, ToolCall, dumps, told
from punie_mlx.toolcalls.stream import Reading, StreamParser, gather

PATIENCE = 60.0
"""Seconds that the child may take longer than it was told to, before it counts as dead."""
ANSWERED, FAILED = 200, 500
"""What stands for the status of an exchange, as a server would have it."""


class Reader:
    """Reads the calls in what a model wrote, by what its child process said of it. Raises `ConfigError`."""

    def __init__(self, ready: Mapping[str, Any]) -> None:
        try:
            self.wire = detect.examine(ready["template"], ready["vocabulary"]).wire()
        except ConfigError as e:
            raise ConfigError(f"{e}. Score the model through its server instead: leave --through out") from e
        self._control = {int(i): spelling for i, spelling in ready["control"].items()}

    def read(self, trace: Mapping[str, Any], tools: list[dict[str, Any]], finish: str) -> Reading:
        """All that the output of `trace` holds."""
        prompt, tag = "".join(text for _, text in trace["prompt"]).rstrip(), self.wire.think[0].strip()
        parser = StreamParser(
            self.wire,
            [Tool.from_openai(t) for t in tools],
            starts_in_reasoning=bool(tag) and prompt.endswith(tag),
            control=self._control,
        )
        events = [e for token, text in trace["output"] for e in parser.feed(text, [token])]
        return gather([*events, *parser.finish(finish)], self.wire.joint)


class ModelDriver:
    """A child process that all cases share; it answers one at a time."""

    def __init__(self, process: ServerProcess, ready: Mapping[str, Any], settings: AgentSettings) -> None:
        self._process, self._settings = process, settings
        self._reader = Reader(ready)
        self._turn = asyncio.Lock()

    async def run(self, case: Case, scratch: Scratch, *, seed: int | None = None) -> Run:
        """Run one case to its end. What goes wrong is part of the record; nothing is raised but cancellation."""
        run, settings = Run(), self._settings

        async def ask(messages: list[Message]) -> Message:
            request = {
                "messages": messages, "tools": case.tools, "max_tokens": settings.max_tokens,
                "temperature": settings.temperature, "seed": seed, "seconds": settings.timeout,
            }  # fmt: skip
            run.sent = list(messages)
            at, start = run.now(), time.perf_counter()
            answer = await self._ask(request)
            turn = self._turn_of(case, answer, len(run.turns), time.perf_counter() - start)
            turn.at, turn.request = at, bounded({**request, "messages": run.sent})
            run.add(turn)
            if answer["error"]:
                raise ValueError(answer["error"])
            return turn.message

        try:
            await converse(case, scratch, run, settings, ask)
        except ServerError as e:
            run.error, run.lost = f"ServerError: {e}", True
        except ValueError as e:
            run.error = f"{type(e).__name__}: {e}"
        finally:
            run.seconds = run.now()
        return run

    async def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        async with self._turn:
            try:
                return await asyncio.to_thread(self._process.ask, request, self._settings.timeout + PATIENCE)
            except asyncio.CancelledError:
                self._process.kill()  # or the thread would wait for the answer, and all would wait for the thread
                raise

    def _turn_of(self, case: Case, answer: dict[str, Any], number: int, seconds: float) -> Turn:
        trace, finish = answer.pop("trace"), answer["finish_reason"]
        if trace is None or answer["error"]:
            return Turn(seconds, FAILED, {"role": "error", "content": answer["error"]}, response=bounded(answer))
        reading = self._reader.read(trace, case.tools, finish)
        trace["events"] = told(reading.events)
        message = message_of(reading, number)
        calls = bool(message.get("tool_calls"))
        return Turn(
            seconds,
            ANSWERED,
            message,
            finish_reason="tool_calls" if calls and finish != "length" else finish,
            usage=answer["usage"],
            response=bounded(answer),
            trace=bounded(trace),
            problems=[{"kind": p.kind, "detail": p.detail, "raw": p.raw} for p in reading.problems],
        )


def message_of(reading: Reading, number: int = 0) -> Message:
    """The assistant's message of the API that a reading amounts to; calls that could not be read are text.

    `number` of the turn, for the ids of its calls: 9 letters and digits, since some templates take no others.
    """
    cut = "".join(m.raw for m in reading.malformed if m.truncated and not m.in_reasoning)
    calls = [
        {"id": f"call{number:02}{i:03}", "type": "function", "function": _function(c)}
        for i, c in enumerate(reading.calls)
    ]
    content = reading.visible() + cut
    if calls:
        content = content.strip()
    message: Message = {"role": "assistant", "content": content or (None if calls else "")}
    if thinking := reading.visible(reasoning=True):
        message["reasoning_content"] = thinking
    return message | ({"tool_calls": calls} if calls else {})


def _function(call: ToolCall) -> dict[str, Any]:
    return {"name": call.name, "arguments": dumps(call.arguments)}
