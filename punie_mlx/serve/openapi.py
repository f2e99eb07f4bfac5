"""The API's description (OpenAPI 3.1), made from the models that check the requests."""

from __future__ import annotations

import functools
import importlib.metadata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from punie_mlx.serve.request import ChatRequest, CompletionRequest, TokenizeRequest

ERRORS = {
    400: "The request cannot be served as it is; `param` names the field.",
    401: "The API key is missing or wrong.",
    403: "The Host header, or the origin of the page that calls, is not allowed.",
    404: "There is no such model, or no such path.",
    408: "The request, or its body, took too long to arrive.",
    413: "The body is too large.",
    429: "As many requests run and wait as may: try again after `Retry-After` seconds.",
    500: "The engine failed this request; others go on.",
    503: "The engine is dead, or the server is stopping.",
}
READING = (401, 403)
ASKING = tuple(ERRORS)
JSON, EVENTS, TEXT = "application/json", "text/event-stream", "text/plain"


@dataclass(frozen=True)
class Operation:
    """One path: `body` checks what is sent; `answer` maps content types to schemas of a good answer."""

    path: str
    summary: str
    answer: Mapping[str, Any]
    body: type[BaseModel] | None = None
    failures: tuple[int, ...] = READING
    parameter: str | None = None
    open: bool = False  # without a key, too

    @property
    def method(self) -> str:
        return "get" if self.body is None else "post"


def ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def _object(required: Mapping[str, Any], optional: Mapping[str, Any] | None = None) -> dict[str, Any]:
    return {"type": "object", "properties": {**required, **(optional or {})}, "required": list(required)}


STRING, INTEGER, OBJECT = {"type": "string"}, {"type": "integer"}, {"type": "object"}
CHUNKS = {"type": "string", "description": "Server-sent events of chunks; `data: [DONE]` is the last."}
OPERATIONS = (
    Operation(
        "/v1/chat/completions", "Answer a conversation", {JSON: ref("ChatCompletion"), EVENTS: CHUNKS}, ChatRequest,
        ASKING,
    ),
    Operation(
        "/v1/chat/completions/render", "The exact prompt, tokens and grammar that a request would use",
        {JSON: ref("Rendered")}, ChatRequest, ASKING,
    ),
    Operation(
        "/v1/completions", "Go on with a text", {JSON: ref("Completion"), EVENTS: CHUNKS}, CompletionRequest, ASKING
    ),
    Operation("/tokenize", "The tokens of a text or of a conversation", {JSON: ref("Tokens")}, TokenizeRequest, ASKING),
    Operation("/v1/models", "The model that is served", {JSON: ref("Models")}),
    Operation(
        "/v1/models/{name}", "The model, if it has this name", {JSON: ref("ServedModel")}, None, (*READING, 404), "name"
    ),
    Operation("/health", "Whether the engine takes requests", {JSON: ref("Health")}, None, (403, 503), open=True),
    Operation("/metrics", "Counters in Prometheus' text format", {TEXT: STRING}),
    Operation("/openapi.json", "This description", {JSON: OBJECT}),
)  # fmt: skip
ANSWERS: dict[str, Any] = {
    "ChatCompletion": _object(
        {
            "id": STRING,
            "object": {"const": "chat.completion"},
            "created": INTEGER,
            "model": STRING,
            "choices": {"type": "array", "items": _object({"index": INTEGER, "message": OBJECT}), "minItems": 1},
            "usage": ref("Usage"),
        },
        {"system_fingerprint": STRING},
    ),
    "Completion": _object(
        {
            "id": STRING,
            "object": {"const": "text_completion"},
            "created": INTEGER,
            "model": STRING,
            "choices": {"type": "array", "items": _object({"index": INTEGER, "text": STRING}), "minItems": 1},
            "usage": ref("Usage"),
        }
    ),
    "Usage": _object({"prompt_tokens": INTEGER, "completion_tokens": INTEGER, "total_tokens": INTEGER}),
    "Rendered": OBJECT,
    "Tokens": OBJECT,
    "ServedModel": _object({"id": STRING, "object": {"const": "model"}, "owned_by": STRING, "fingerprint": STRING}),
    "Models": _object({"object": {"const": "list"}, "data": {"type": "array", "items": ref("ServedModel")}}),
    "Health": _object(
        {"status": STRING, "model": STRING, "fingerprint": STRING}
        | dict.fromkeys(("running", "waiting", "restarts"), INTEGER)
    ),
    "Error": _object(
        {
            "error": _object(
                {"message": STRING, "type": STRING, "param": {"type": ["string", "null"]}},
                {"code": {"type": ["string", "null"]}},
            )
        }
    ),
}


@functools.cache
def document(*, secured: bool) -> dict[str, Any]:
    """The whole description; `secured`: a key is needed."""
    models = dict.fromkeys(o.body for o in OPERATIONS if o.body is not None)
    _, schemas = models_json_schema([(m, "validation") for m in models], ref_template="#/components/schemas/{model}")
    components: dict[str, Any] = {"schemas": {**schemas.get("$defs", {}), **ANSWERS}}
    if secured:
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "punie-mlx", "version": importlib.metadata.version("punie-mlx")},
        "paths": {o.path: {o.method: _described(o, secured=secured and not o.open)} for o in OPERATIONS},
        "components": components,
    }


def _described(operation: Operation, *, secured: bool) -> dict[str, Any]:
    responses: dict[str, Any] = {
        "200": {"description": "OK", "content": {kind: {"schema": s} for kind, s in operation.answer.items()}}
    }
    for status in operation.failures:
        answer = ANSWERS["Health"] if operation.open and status == 503 else ref("Error")
        responses[str(status)] = {"description": ERRORS[status], "content": {JSON: {"schema": answer}}}
    name = operation.path.strip("/").translate(str.maketrans("/.", "__", "{}"))
    told: dict[str, Any] = {"summary": operation.summary, "operationId": name, "responses": responses}
    if operation.body is not None:
        told["requestBody"] = {"required": True, "content": {JSON: {"schema": ref(operation.body.__name__)}}}
    if operation.parameter:
        told["parameters"] = [{"name": operation.parameter, "in": "path", "required": True, "schema": STRING}]
    if secured:
        told["security"] = [{"key": []}]
    return told
