"""/inspect: a page that asks the model and shows what comes of it token by token, where the server has --inspect.

    POST /inspect/stream  {"messages": […], "tools": […], …}    a body of /v1/chat/completions

is answered by server-sent events, on the same way as a chat and by the same reader. The first tells the prompt
(`prompt`, `tokens`, `format`, `grammar`, `watched`, `limit`), one for each token what came of it (`step`), the last is
the choice as a chat that is no stream answers it (`message`, `finish_reason`, `punie`, `usage`):

    data: {…, "choices": [{"index": 0, "step": {"id": 151657, "text": "<tool_call>", "state": "call", "events": […],
                                                "probability": 0.98, "markers": {"<tool_call>": 0.98}, "top": […]}}]}

The step of the token that ends the answer has no `id`, and the one behind it tells only what the end brought.
Probabilities are those before temperature and after the grammar: what a grammar forbids has none. A marker that is not
among the likeliest tokens has null, and `rest` bounds it.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from punie_mlx.pages import tokens as shown
from punie_mlx.pages.text import visible
from punie_mlx.serve import objects
from punie_mlx.serve.chat_api import Chat, ChatShape, Prepared
from punie_mlx.serve.delivery import Choice, Delivery, Delta, deliver
from punie_mlx.serve.errors import BadRequest
from punie_mlx.serve.generation import Piece
from punie_mlx.serve.guard import INSPECT
from punie_mlx.serve.inspect_page import page
from punie_mlx.serve.request import ChatRequest, parse
from punie_mlx.serve.trace import TracedAnswer, TracedChoice
from punie_mlx.toolcalls.calls import dumps, told

PAGE, STREAM = INSPECT, f"{INSPECT}/stream"
LIKELIEST = 20  # tokens among which markers are looked for
SHOWN = 5  # of them
KIND = "punie.inspection"
END = "end of the answer"
# Beside the policy that stands in the page, which cannot say this: no other page may show it in a frame.
HEADERS = {
    "Content-Security-Policy": "frame-ancestors 'none'",
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
}


@dataclass(frozen=True)
class Step:
    """What came of one token; without a `piece`: of the end."""

    piece: Piece | None
    state: str
    events: list[dict[str, Any]]


class WatchedAnswer(TracedAnswer):
    """An answer that says where its reader is."""

    @property
    def state(self) -> str:
        return self._parser.state


class WatchedChoice(TracedChoice):
    """A choice that grows by steps, and keeps the deltas for the end."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.deltas: list[Delta] = []
        self._steps: list[Step] = []
        self._told = 0  # of the reader's events

    async def steps(self) -> AsyncIterator[tuple[list[Delta], Sequence[Piece]]]:
        async for deltas, pieces in super().steps():
            self.deltas += deltas
            steps, self._steps = self._steps, []
            yield [{"step": step} for step in steps], pieces

    def _take(self, pieces: list[Piece]) -> tuple[list[Delta], Sequence[Piece]]:
        deltas: list[Delta] = []
        for i, piece in enumerate(pieces):
            deltas += super()._take([piece])[0]
            self.pieces[-1] = replace(piece, top=())  # it is told now, and would be most of what a long answer keeps
            self._note(piece)
            if self._stops is not None and self._stops.found:
                return deltas, pieces[: i + 1]
        return deltas, pieces

    def _end(self, reason: str) -> list[Delta]:
        deltas = super()._end(reason)
        self._note(None)
        return deltas

    def _note(self, piece: Piece | None) -> None:
        answer = self.reader
        assert isinstance(answer, WatchedAnswer)
        events, self._told = answer.events[self._told :], len(answer.events)
        self._steps.append(Step(piece, answer.state, [_written(e) for e in told(events)]))


class InspectedShape(ChatShape):
    """The objects of a watched answer."""

    def __init__(self, chat: Chat, prepared: Prepared) -> None:
        super().__init__(chat, prepared)
        self._chat = chat
        self._prepared = prepared
        self._watched = watched(chat)

    def head(self, streamed: bool) -> dict[str, Any]:
        return {"object": KIND, "model": self._chat.name, "system_fingerprint": self._chat.fingerprint}

    def opening(self, choice: Choice) -> dict[str, Any]:
        prepared, chat = self._prepared, self._chat
        known = {t: _displayed(_token(t, chat)) for t in set(prepared.prompt.tokens)}  # each once: prompts are long
        plan = prepared.plan
        return {
            "index": choice.index,
            "prompt": prepared.prompt.tokens,
            "tokens": known,
            "format": chat.wire.name,
            "grammar": {"state": plan.state, "reason": plan.reason or None},
            "watched": self._watched,
            "limit": chat.room(len(prepared.prompt.tokens), prepared.request, "messages"),
        }

    def part(self, choice: Choice, delta: Delta, pieces: Sequence[Piece]) -> str:
        return f'{{"index":{choice.index},"step":{dumps(self._step(delta["step"]))}}}'

    def closing(self, choice: Choice, pieces: Sequence[Piece]) -> dict[str, Any]:
        assert isinstance(choice, WatchedChoice)
        whole = self.whole(choice, choice.deltas, [])
        return {**whole, "logprobs": None, "usage": self.usage([choice])}

    def _step(self, step: Step) -> dict[str, Any]:
        piece, chat = step.piece, self._chat
        if piece is None:
            return {"state": step.state, "events": step.events}
        found = dict(piece.top)
        markers = {text: _probability(found.get(token)) for text, token in self._watched.items()}
        rest = _probability(piece.top[-1][1]) if piece.top else None
        top = [{"id": t, "text": _text(t, chat), "probability": _probability(p)} for t, p in piece.top[:SHOWN]]
        likeliest = f"likeliest: {', '.join(_likely(one) for one in top if one['probability'])}"
        if piece.token is None:  # the engine does not name it
            token = {"text": "", "kind": "end", "class": "control", "title": f"{END}\n{likeliest}"}
        else:
            token = _displayed(_token(piece.token, chat, step.state, _probability(piece.logprob), likeliest))
        return {
            **token, "state": step.state, "completes": piece.text, "events": step.events,
            "markers": markers, "rest": rest, "top": top,
        }  # fmt: skip


def watched(chat: Chat) -> dict[str, int]:
    """The markers of the model's format that are one token each, and the ends of its turn."""
    wire, control = chat.wire, chat.engine.loaded.control
    ids = {text: token for token, text in control.items()}
    ends = [control[token] for token in sorted(chat.engine.loaded.eos) if token in control]
    markers = [m.strip() for m in (wire.open, wire.close, *wire.think)]
    return {text: ids[text] for text in dict.fromkeys([*markers, *ends]) if text in ids}


@dataclass(frozen=True)
class Inspecting:
    """The routes."""

    chat: Chat

    async def page(self, http: Request) -> Response:
        """The page. There is nothing of the model in it: it asks for what it shows, with a key where one is needed."""
        return HTMLResponse(page(), headers=HEADERS)

    async def stream(self, http: Request, body: bytes) -> Response:
        """A watched answer. Raises `ApiError`."""
        asked = parse(ChatRequest, body)
        if asked.n > 1:
            raise BadRequest("n: one answer can be watched at a time: leave it out", "n")
        # The reader gives what it gives a chat that is no stream; that it is sent in steps does not concern it.
        top = min(LIKELIEST, self.chat.engine.loaded.vocabulary - 1)
        request = asked.model_copy(update={"stream": False, "logprobs": True, "top_logprobs": top})
        prepared, choices = await self.chat.begin(http, body, request, WatchedAnswer, WatchedChoice)
        shape = InspectedShape(self.chat, prepared)
        delivery = Delivery(choices, shape, self.chat.settings, self.chat.metrics, http.state.trace)
        return await deliver(http, delivery, stream=True)


# ---- tokens ----


def _text(token: int, chat: Chat) -> str:
    return objects.token_bytes(token, chat.engine.loaded).decode("utf-8", "replace")


def _token(token: int, chat: Chat, state: str = "", probability: float | None = None, title: str = "") -> shown.Token:
    spelled = objects.token_bytes(token, chat.engine.loaded)
    control = token in chat.engine.loaded.control
    try:
        text, kind = spelled.decode("utf-8"), "control" if control else "text"
    except UnicodeDecodeError:
        text, kind = spelled.decode("utf-8", "replace"), "part"
    return shown.Token(token, text, kind, state=state, probability=probability, title=title)


def _displayed(token: shown.Token) -> dict[str, Any]:
    """A token for the page, which has but to write it down."""
    said = {key: value for key, value in token.to_json().items() if key != "title"}
    return {**said, "class": shown.classes(token), "title": "\n".join(shown.about(token, {}))}


def _written(event: dict[str, Any]) -> dict[str, Any]:
    """An event for the page; arguments as text too, since a script makes other numbers of 1.0 and of large ones."""
    return {**event, "json": dumps(event["arguments"])} if event["kind"] == "call" else event


def _probability(logprob: float | None) -> float | None:
    if logprob is None or math.isnan(logprob):
        return None
    return float(f"{math.exp(min(logprob, 0.0)):.6g}")


def _likely(token: dict[str, Any]) -> str:
    probability = token["probability"]
    return f"{visible(token['text'])!r} {shown.percent(probability)}"
