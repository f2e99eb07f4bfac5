"""/tokenize and /v1/chat/completions/render: what a request would send to the model, without sending it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import Response

from punie_mlx.serve.delivery import json_response
from punie_mlx.serve.objects import token_bytes
from punie_mlx.serve.request import ChatRequest, TokenizeRequest, parse

if TYPE_CHECKING:
    from punie_mlx.serve.chat_api import Chat


async def tokenize(chat: Chat, http: Request, body: bytes) -> Response:
    """The tokens of a text, which may spell control tokens, or of a conversation. Raises `ApiError`."""
    request = parse(TokenizeRequest, body)
    chat.check_model(request.model)

    def tokens(tokenizer: Any) -> list[int]:
        if request.prompt is not None:
            return list(tokenizer.encode(request.prompt))
        tools = [] if request.choice.mode == "none" else request.tools_spec()
        return chat.prompt(tokenizer, request, tools, add_generation_prompt=request.add_generation_prompt).tokens

    return json_response(_told(chat, await chat.aside(http, body, tokens)))


async def render(chat: Chat, http: Request, body: bytes) -> Response:
    """The prompt of a chat request, the format of its calls and their grammar. Raises `ApiError`."""
    request = parse(ChatRequest, body)
    chat.check(request)
    prepared = await chat.aside(http, body, chat.prepare, request)
    plan = prepared.plan
    grammar = {
        "state": plan.state,
        "reason": plan.reason or None,
        "relaxed": [{"tool": r.tool, "parameter": r.parameter, "reason": r.reason} for r in plan.relaxed],
        "lark": plan.lark or None,
    }
    told = _told(chat, prepared.prompt.tokens)
    limit = chat.room(len(prepared.prompt.tokens), request, "messages")
    spoken = {"format": chat.wire.name, "grammar": grammar}
    return json_response({"text": prepared.prompt.text, **told, "max_tokens": limit, **spoken})


def _told(chat: Chat, tokens: list[int]) -> dict[str, Any]:
    loaded = chat.engine.loaded
    spelled = [token_bytes(t, loaded).decode("utf-8", "replace") for t in tokens]
    return {"count": len(tokens), "max_model_len": loaded.context, "tokens": tokens, "token_strs": spelled}
