"""A small server of the API that is right in all that the doctor looks at, and can be made wrong in one thing."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Generator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Json = dict[str, Any]
Twist = Callable[[Json, Any], Any]


def words(value: Any) -> int:
    """So many tokens the server says that something has: a character is one."""
    return len(json.dumps(value))


def value_of(schema: Json) -> Any:
    """The value that a schema leaves, or some that fits it."""
    if "enum" in schema:
        return schema["enum"][0]
    if schema.get("type") == "object":
        return {name: value_of(inner) for name, inner in schema.get("properties", {}).items()}
    return {"string": "Zeeland", "integer": 1, "number": 1.5, "boolean": True}[schema["type"]]


def call(index: int, tool: Json, **arguments: Any) -> Json:
    function = tool["function"]
    given = json.dumps({**value_of(function["parameters"]), **arguments})
    return {"id": f"call_{index}", "type": "function", "function": {"name": function["name"], "arguments": given}}


class Refused(Exception):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def check(body: Json) -> None:
    messages, tools = body.get("messages"), body.get("tools")
    if not isinstance(messages, list) or not all(isinstance(m, dict) and "role" in m for m in messages):
        raise Refused(400, "messages: must be a list of messages")
    if any(isinstance(m.get("content"), list) for m in messages):
        raise Refused(400, "content: only text is read")
    if tools is not None and not isinstance(tools, list):
        raise Refused(400, "tools: must be a list")
    if not isinstance(body.get("temperature") or 0, int | float):
        raise Refused(400, "temperature: must be a number")
    if body.get("model") not in (None, "good"):
        raise Refused(404, "there is no such model")


def calls_for(body: Json, question: str) -> list[Json]:
    tools, choice = body.get("tools") or [], body.get("tool_choice") or "auto"
    if not tools or choice == "none" or body["messages"][-1]["role"] == "tool":
        return []
    if isinstance(choice, dict):
        return [call(0, t) for t in tools if t["function"]["name"] == choice["function"]["name"]]
    if "Quorra" in question:
        both = [call(i, tools[0], satellite=f"Quorra-{12 + i}") for i in range(2)]
        return both[: 1 if body.get("parallel_tool_calls") is False else 2]
    if choice == "auto" and ("Farrow" in question or "Tolmin" in question):
        return []
    return [call(0, tools[-1] if "Farrow" in question else tools[0])]


def answer(body: Json) -> Json:
    """A good answer to a good request. Raises `Refused`."""
    check(body)
    question = next(m["content"] for m in body["messages"] if m["role"] == "user")
    form = (body.get("response_format") or {}).get("json_schema")
    made = calls_for(body, question)
    said = json.dumps(value_of(form["schema"])) if form else "Brannoch-4 flies 412 km high."
    message = {"role": "assistant", "content": None if made else said, **({"tool_calls": made} if made else {})}
    length, limit = words(made or said), body.get("max_tokens") or 10**9
    finish = "tool_calls" if made else "stop"
    if limit < length:
        message, finish = {"role": "assistant", "content": (json.dumps(made) if made else said)[:limit]}, "length"
    return {
        "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "good",
        "choices": [{"index": 0, "message": message, "finish_reason": finish}],
        "usage": {
            "prompt_tokens": words([body["messages"], body.get("tools")]),
            "completion_tokens": min(limit, length),
        },
    }  # fmt: skip


def chunks(whole: Json) -> list[Json]:
    """The same answer in parts."""
    (choice,) = whole["choices"]
    message, deltas = choice["message"], []
    if message["content"]:
        deltas.append({"role": "assistant", "content": message["content"]})
    for index, made in enumerate(message.get("tool_calls", ())):
        arguments = made["function"]["arguments"]
        deltas.append({"tool_calls": [{**made, "index": index, "function": {**made["function"], "arguments": ""}}]})
        deltas += [
            {"tool_calls": [{"index": index, "function": {"arguments": arguments[at : at + 9]}}]}
            for at in range(0, len(arguments), 9)
        ]
    out = [{"choices": [{"index": 0, "delta": d, "finish_reason": None}]} for d in deltas]
    return [*out, {"choices": [{"index": 0, "delta": {}, "finish_reason": choice["finish_reason"]}]}]


@contextlib.contextmanager
def running(
    owner: str = "vllm",
    *,
    whole: Twist = lambda body, made: made,
    parts: Twist = lambda body, made: made,
    headers: Json | None = None,
    models: Any = None,
    done: bool = True,
    key: str | None = None,
) -> Generator[tuple[str, list[Json]]]:
    """The address of a server and the bodies that it was sent.

    whole, parts: make another answer, or list of chunks, of a good one; they may raise `Refused`. The answer may be
    bytes, which are sent as they are.
    """
    bodies: list[Json] = []
    listed = models if models is not None else [{"id": "good", "object": "model", "owned_by": owner}]

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def reply(self, status: int, value: Any, kind: str = "application/json") -> None:
            payload = value if isinstance(value, bytes) else json.dumps(value).encode()
            self.send_response(status)
            for name, text in {**(headers or {}), "Content-Type": kind, "Content-Length": len(payload)}.items():
                self.send_header(name, str(text))
            self.end_headers()
            self.wfile.write(payload)

        def refuse(self, status: int, message: str) -> None:
            self.reply(status, {"error": {"message": message, "type": "invalid_request_error"}})

        def do_GET(self) -> None:
            if key and self.headers.get("Authorization") != f"Bearer {key}":
                return self.refuse(401, "a key is needed")
            self.reply(200, {"object": "list", "data": listed})

        def do_POST(self) -> None:
            try:
                length = int(self.headers.get("Content-Length", "0"))
                if length < 0:
                    raise ValueError(length)
                body = json.loads(self.rfile.read(length))
                bodies.append(body)
                made = whole(body, answer(body))
            except Refused as e:
                return self.refuse(e.status, str(e))
            except ConnectionError:  # no answer at all
                self.close_connection = True
                return None
            except ValueError:
                return self.refuse(400, "the body is no JSON")
            if isinstance(made, bytes):
                return self.reply(200, made)
            if not body.get("stream"):
                return self.reply(200, made)
            found = parts(body, chunks(made))
            ending = b"data: [DONE]\n\n" if done else b""
            text = "".join(f"data: {json.dumps(c)}\n\n" for c in found).encode() + ending
            self.reply(200, text, "text/event-stream")

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", bodies
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)
