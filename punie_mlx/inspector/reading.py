"""What the reader makes of tokens: its state after each of them, and the message that they are."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from punie_mlx.toolcalls.calls import Event, Tool, dumps
from punie_mlx.toolcalls.stream import StreamParser, gather
from punie_mlx.toolcalls.wire import Format


@dataclass(frozen=True)
class Read:
    """What was read. `name` says what; `message` is an assistant's, as OpenAI's API has it."""

    name: str
    text: str
    message: Mapping[str, Any]
    problems: tuple[Mapping[str, Any], ...]
    finish: str
    """OpenAI's finish_reason: "tool_calls", "stop" or "length"."""

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "text": self.text,
            "message": dict(self.message),
            "problems": [dict(p) for p in self.problems],
            "finish_reason": self.finish,
        }


@dataclass(frozen=True)
class Wire:
    """How the model's calls are read: its format, the tools that are offered, and its control tokens by id."""

    format: Format
    tools: tuple[Tool, ...]
    control: Mapping[int, str]

    def read(
        self,
        name: str,
        pieces: Iterable[tuple[int, str]],
        *,
        ends: Collection[int],
        in_reasoning: bool,
        finish: str = "stop",
    ) -> tuple[Read, list[str]]:
        """What `pieces` are, tokens and the text that each completes, and the state after each of them.

        An end token is not fed, as the server does not: it has the state "".
        """
        parser = StreamParser(self.format, self.tools, starts_in_reasoning=in_reasoning, control=self.control)
        events: list[Event] = []
        states, texts = [], []
        for token, text in pieces:
            if token in ends:
                states.append("")
                continue
            events += parser.feed(text, [token])
            states.append(parser.state)
            texts.append(text)
        events += parser.finish(finish)
        return self._read(name, "".join(texts), events, finish), states

    def _read(self, name: str, text: str, events: Sequence[Event], finish: str) -> Read:
        reading = gather(events, self.format.joint)
        calls = [
            {
                "id": call.id or f"call_{i}",
                "type": "function",
                "function": {"name": call.name, "arguments": dumps(call.arguments)},
            }
            for i, call in enumerate(reading.calls, 1)
        ]
        content, reasoning = reading.visible().strip(), reading.visible(reasoning=True).strip()
        message: dict[str, Any] = {"role": "assistant", "content": content or (None if calls else "")}
        if reasoning:
            message["reasoning_content"] = reasoning
        if calls:
            message["tool_calls"] = calls
        reason = "tool_calls" if calls and finish == "stop" else finish
        return Read(name, text, message, tuple(asdict(p) for p in reading.problems), reason)
