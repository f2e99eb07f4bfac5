"""A chat completion as a client sees it, whole or streamed, and what is wrong with its stream."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from punie_mlx.doctor.server_client import Json, Reply, parsed

DONE = "[DONE]"


@dataclass(frozen=True)
class Call:
    """A call as it came; `arguments` is a string where the server keeps to the API."""

    id: Any
    kind: Any
    name: Any
    arguments: Any

    @cached_property
    def values(self) -> dict[str, Any] | None:
        """The arguments; None where they are no JSON object."""
        try:
            found = json.loads(self.arguments, parse_constant=_refuse)
        except (TypeError, ValueError, RecursionError):
            return None
        return found if isinstance(found, dict) else None


@dataclass(frozen=True)
class Answer:
    """What the server made of the request `asked`. faults: what is wrong with a stream, each with the proof."""

    asked: Json
    reply: Reply
    content: str = ""
    reasoning: str = ""
    calls: tuple[Call, ...] = ()
    finish: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    fingerprint: str = ""
    faults: tuple[tuple[str, str], ...] = field(default=())

    @property
    def ok(self) -> bool:
        return self.reply.ok

    @property
    def names(self) -> list[Any]:
        return [c.name for c in self.calls]

    @property
    def offered(self) -> list[Json]:
        """The tools of the request."""
        return list(self.asked.get("tools") or ())


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON")


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _items(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _string(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _call(value: Any) -> Call:
    call = _mapping(value)
    function = _mapping(call.get("function"))
    return Call(call.get("id"), call.get("type"), function.get("name"), function.get("arguments"))


def _reasoning(message: Mapping[str, Any]) -> str:
    return _string(message.get("reasoning_content")) or _string(message.get("reasoning"))


def _about(value: Any) -> dict[str, Any]:
    """Usage and fingerprint of a completion or chunk."""
    usage, fingerprint = _mapping(_mapping(value).get("usage")), _string(_mapping(value).get("system_fingerprint"))
    counts = {name: usage.get(name) for name in ("prompt_tokens", "completion_tokens")}
    return {
        **{n: c for n, c in counts.items() if isinstance(c, int)},
        **({"fingerprint": fingerprint} if fingerprint else {}),
    }


def whole(asked: Json, reply: Reply) -> Answer:
    """The answer that was not streamed."""
    choices = _items(_mapping(reply.json).get("choices"))
    choice = _mapping(choices[0]) if choices else {}
    message = _mapping(choice.get("message"))
    return Answer(
        asked,
        reply,
        _string(message.get("content")),
        _reasoning(message),
        tuple(_call(c) for c in _items(message.get("tool_calls"))),
        choice.get("finish_reason"),
        **_about(reply.json),
    )


def streamed(asked: Json, reply: Reply) -> Answer:
    """The answer that its parts add up to, as clients add them up."""
    reading = _Reading()
    for data in _events(reply.text):
        reading.take(data)
    reading.end(reply)
    return Answer(
        asked,
        reply,
        "".join(reading.content),
        "".join(reading.reasoning),
        tuple(Call(c["id"], c["type"], c["name"], "".join(c["arguments"])) for _, c in sorted(reading.calls.items())),
        reading.finish,
        **reading.about,
        faults=tuple(reading.faults),
    )


def _events(text: str) -> Iterator[str]:
    for line in re.split(r"\r\n|\n|\r", text):  # and nowhere else, as `splitlines` would
        if line.startswith("data:"):
            yield line[5:].strip()


class _Reading:
    """The state of a stream that is read."""

    def __init__(self) -> None:
        self.content: list[str] = []
        self.reasoning: list[str] = []
        self.calls: dict[int, dict[str, Any]] = {}
        self.faults: list[tuple[str, str]] = []
        self.about: dict[str, Any] = {}
        self.finish: str | None = None
        self.done = False
        self.broken = False  # an error came within the stream, which needs no [DONE] after it

    def fault(self, what: str, proof: Any) -> None:
        if what not in [known for known, _ in self.faults]:
            self.faults.append((what, proof if isinstance(proof, str) else json.dumps(proof, ensure_ascii=False)))

    def take(self, data: str) -> None:
        if data == DONE:
            self.done = True
            return
        chunk = parsed(data)
        if chunk is None:
            self.fault("a part of the stream is no JSON", data)
            return
        if _mapping(chunk).get("error"):
            self.fault("the stream ends in an error", data)
            self.broken = True
        self.about |= _about(chunk)
        for choice in _items(_mapping(chunk).get("choices")):
            self._choice(_mapping(choice))

    def _choice(self, choice: Mapping[str, Any]) -> None:
        delta = _mapping(choice.get("delta"))
        self.finish = choice.get("finish_reason") or self.finish
        self.content.append(_string(delta.get("content")))
        self.reasoning.append(_reasoning(delta))
        for part in _items(delta.get("tool_calls")):
            self._part(_mapping(part))

    def _part(self, part: Mapping[str, Any]) -> None:
        function, index = _mapping(part.get("function")), part.get("index")
        if not isinstance(index, int):
            self.fault("a part of a call has no index, so parts of several calls cannot be told apart", part)
            index = len(self.calls) if part.get("id") else max(self.calls, default=0)
        name, arguments = function.get("name"), function.get("arguments")
        if index not in self.calls:
            self.calls[index] = {
                "id": part.get("id"),
                "type": part.get("type", "function"),
                "name": name,
                "arguments": [],
            }
            if not name:
                self.fault("the first part of a call has no name", part)
            if not part.get("id"):
                self.fault("the first part of a call has no id", part)
        elif name:
            self.fault("the name of a call comes again in a later part, and clients join the two", part)
            self.calls[index]["name"] = f"{self.calls[index]['name']}{name}"
        if arguments is not None and not isinstance(arguments, str):
            self.fault("the arguments in a part of a call are no string", part)
        self.calls[index]["arguments"].append(_string(arguments))

    def end(self, reply: Reply) -> None:
        if reply.status != 200:
            return
        if reply.broken:
            self.fault(reply.broken, reply.text[-200:])
        kind = reply.headers.get("content-type", "")
        if "text/event-stream" not in kind:
            self.fault("a streamed answer was asked for, and another came", f"Content-Type: {kind}")
        elif not self.broken:
            if not self.done:
                self.fault("the stream ends without [DONE]", reply.text[-200:])
            if not self.finish:
                self.fault("no part of the stream has a finish_reason", reply.text[-200:])
        if self.calls and sorted(self.calls) != list(range(len(self.calls))):
            self.fault("the indexes of the calls do not count from 0", str(sorted(self.calls)))
