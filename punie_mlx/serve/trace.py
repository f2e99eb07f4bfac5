"""The trace of one request: what the server did with it, and when.

    POST /v1/chat/completions with `X-Punie-Trace: 1`  →  {…, "punie_trace": {"spans": [{"name": "receive", …}], …}}

A request is in one phase at a time, from its first byte on, so its spans follow each other without a gap; what happens
inside a phase, or beside it in the other thread, is summed up in attributes. Of several choices the phases are those of
all together, and each has its own under "choices". A request without a trace has the `Trace` that does nothing, whose
kinds of masks, answers and choices are the ordinary ones.

| span      | until                                                                                                  |
|-----------|--------------------------------------------------------------------------------------------------------|
| `receive` | the body is there                                                                                      |
| `parse`   | the request is read and checked                                                                        |
| `render`  | prompt, tokens and grammar are made; `waited_seconds` of it for other prompts, `grammar_seconds` for   |
|           | the grammar                                                                                            |
| `queue`   | the engine takes it                                                                                    |
| `prefill` | the first token: `prompt_tokens`, of which `cached_tokens` were spared; `grammar_seconds`              |
| `decode`  | the last token is read: `step_seconds` for the network, sampling and the grammar, `grammar_seconds` of |
|           | them for the grammar, `read_seconds` for making calls and text of tokens, on the other thread; of      |
|           | `guessed_tokens` so many `accepted_tokens`, where tokens are guessed ahead                             |
| `respond` | the answer is written as JSON                                                                          |
| `trace`   | this trace is written, where it is shown: what it costs to be watched                                  |
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from starlette.datastructures import Headers
from starlette.types import Scope

from punie_mlx.serve import objects
from punie_mlx.serve.answer import Answer
from punie_mlx.serve.constrain import Mask
from punie_mlx.serve.delivery import Choice, Delta
from punie_mlx.serve.generation import Generation, Piece
from punie_mlx.toolcalls.calls import Event, dumps, told

if TYPE_CHECKING:
    from punie_mlx.serve.engine import Loaded
    from punie_mlx.serve.request import Generating

HEADER = "X-Punie-Trace"
KEY = "punie_trace"
ARRIVED = "punie.arrived"  # in the connection's state: when the first byte of the request came, by `time.monotonic`
PLACES = 6  # of seconds


# ---- what is watched from inside ----


class TimedMask(Mask):
    """A mask that notes when it was made, and in what time."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.times: list[tuple[float, float]] = []  # (end, seconds)

    def _follow(self, new: Sequence[int]) -> None:
        began = time.monotonic()
        try:
            super()._follow(new)
        finally:
            ended = time.monotonic()
            self.times.append((ended, ended - began))


class TracedAnswer(Answer):
    """An answer that keeps what its reader found."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.events: list[Event] = []

    def _deltas(self, events: Iterable[Event]) -> list[Delta]:
        events = list(events)
        self.events += events
        return super()._deltas(events)


class TracedChoice(Choice):
    """A choice that keeps its tokens, and notes the time that it takes to read them."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.pieces: list[Piece] = []
        self.read_seconds = 0.0

    def _take(self, pieces: list[Piece]) -> tuple[list[Delta], Sequence[Piece]]:
        began = time.monotonic()
        deltas, taken = super()._take(pieces)
        self.read_seconds += time.monotonic() - began
        self.pieces += taken
        return deltas, taken

    def _end(self, reason: str) -> list[Delta]:
        began = time.monotonic()
        deltas = super()._end(reason)
        self.read_seconds += time.monotonic() - began
        return deltas


# ---- traces ----


@dataclass
class Span:
    """What was done from `start` to `end`, by `time.monotonic`; None: it is being done."""

    name: str
    start: float
    end: float | None = None
    attributes: dict[str, Any] = field(default_factory=dict)


class Trace:
    """No trace: it does nothing."""

    shown = False  # to the client
    mask: type[Mask] = Mask
    answer: type[Answer] = Answer
    choice: type[Choice] = Choice

    def enter(self, name: str, at: float | None = None) -> None:
        """The phase `name` begins, now or `at`; the one before ends."""

    def timed(self, name: str) -> AbstractContextManager[None]:
        """Add the time of a block to the attribute `name` of the phase."""
        return nullcontext()

    def waited(self) -> None:
        """All of the phase up to now was waiting."""

    def about(self, operation: str, model: str, request: Generating, prompt: Sequence[int], loaded: Loaded) -> None:
        """What is asked of the model."""

    def generated(self, choices: Sequence[Choice]) -> None:
        """The engine has done what it will for `choices`: enter the phases that they have been in."""

    def end(self) -> None:
        """The request is over."""

    def sealed(self, text: str) -> str:
        """`text`, a JSON object, with the trace in it where it is to be shown. Nothing is traced after it."""
        return text

    def told(self) -> dict[str, Any]:
        """What stands beside the error of a request that is refused."""
        return {}


UNTRACED = Trace()


class Recorded(Trace):
    """The trace of one request, which arrived at `arrived` by `time.monotonic`."""

    mask = TimedMask
    answer = TracedAnswer
    choice = TracedChoice

    def __init__(self, arrived: float | None = None, *, shown: bool = False, first: str = "receive") -> None:
        now = time.monotonic()
        arrived = now if arrived is None else arrived
        self.shown = shown
        self.began = arrived
        self.epoch_ns = time.time_ns() - round((now - arrived) * 1e9)  # the same instant, for the rest of the world
        self.spans = [Span(first, arrived)]
        self.operation = self.model = ""
        self.request: Generating | None = None
        self.prompt: Sequence[int] = ()
        self.choices: Sequence[Choice] = ()
        self._loaded: Loaded | None = None

    def enter(self, name: str, at: float | None = None) -> None:
        last = self.spans[-1]
        at = max(time.monotonic() if at is None else at, last.start)
        last.end = at if last.end is None else last.end
        self.spans.append(Span(name, last.end))

    @contextmanager
    def timed(self, name: str) -> Generator[None]:
        began = time.monotonic()
        try:
            yield
        finally:
            found = self.spans[-1].attributes
            found[name] = found.get(name, 0.0) + time.monotonic() - began

    def waited(self) -> None:
        self.spans[-1].attributes["waited_seconds"] = time.monotonic() - self.spans[-1].start

    def about(self, operation: str, model: str, request: Generating, prompt: Sequence[int], loaded: Loaded) -> None:
        self.operation, self.model, self.request, self.prompt = operation, model, request, prompt
        self._loaded = loaded

    def generated(self, choices: Sequence[Choice]) -> None:
        if self.choices:
            return
        self.choices = choices
        for name, at in _phases([c.generation for c in choices]):
            self.enter(name, at)
            self.spans[-1].attributes |= _attributes(name, choices)

    def end(self) -> None:
        last = self.spans[-1]
        last.end = time.monotonic() if last.end is None else last.end

    @property
    def seconds(self) -> float:
        """From the first byte to the end of the last span."""
        return (self.spans[-1].end or time.monotonic()) - self.began

    def timeline(self) -> dict[str, Any]:
        """The spans and the whole time; seconds since the beginning."""
        return {"spans": [self._shown(s) for s in self.spans], "wall": round(self.seconds, PLACES)}

    def sealed(self, text: str) -> str:
        if not self.shown:
            self.end()
            return text
        self.enter("trace")
        content = dumps(self._content())
        self.end()
        return f'{text[:-1]},"{KEY}":{content[:-1]},{dumps(self.timeline())[1:]}}}'

    def told(self) -> dict[str, Any]:
        self.end()
        return {KEY: {**self._content(), **self.timeline()}} if self.shown else {}

    def _content(self) -> dict[str, Any]:
        """What went into the model, what came out, and what the reader made of it."""
        first = _written(self.choices[0]) if self.choices else {"output": [], "events": []}
        more = [{"index": c.index, **_written(c), "spans": self._own(c)} for c in self.choices]
        return {"prompt": self._spelled(), **first, **({"choices": more} if len(more) > 1 else {})}

    def _spelled(self) -> list[Any]:
        loaded = self._loaded
        if loaded is None:
            return []
        # Each token once: others wait meanwhile, and a prompt is long.
        texts = {t: objects.token_bytes(t, loaded).decode("utf-8", "replace") for t in set(self.prompt)}
        return [[t, texts[t]] for t in self.prompt]

    def _own(self, choice: Choice) -> list[Any]:
        """The spans of one of several choices."""
        whole = next((s for s in self.spans if s.name == "respond"), self.spans[-1])
        found = list(_phases([choice.generation]))
        ends = [*(at for _, at in found[1:]), whole.start]
        spans = (Span(n, at, end, _attributes(n, [choice])) for (n, at), end in zip(found, ends, strict=True))
        return [self._shown(s) for s in spans]

    def _shown(self, span: Span) -> dict[str, Any]:
        end = time.monotonic() if span.end is None else span.end
        times = {"start": round(span.start - self.began, PLACES), "end": round(end - self.began, PLACES)}
        told = {k: round(v, PLACES) if isinstance(v, float) else v for k, v in span.attributes.items()}
        return {"name": span.name, **times, **({"attributes": told} if told else {})}


def _phases(generations: Sequence[Generation]) -> Generator[tuple[str, float]]:
    """The phases that the engine took them through, as far as they came, and when each began."""
    yield "queue", min(g.created for g in generations)
    for name, instants in (("prefill", [g.started for g in generations]), ("decode", [g.first for g in generations])):
        known = [at for at in instants if at is not None]
        if not known:
            return
        yield name, min(known)


def _attributes(phase: str, choices: Sequence[Choice]) -> dict[str, Any]:
    """What is known of `phase` beside its time."""
    generations = [c.generation for c in choices]
    if phase == "prefill":
        tokens = {"prompt_tokens": generations[0].prompt_tokens, "cached_tokens": generations[0].cached_tokens}
        return {**tokens, **_masked(choices, before=True)}
    if phase != "decode":
        return {}
    steps = sum(g.step_seconds for g in generations)
    guesses = [g.guesses for g in generations if g.guesses is not None]
    counted = {"guessed_tokens": sum(g.guessed for g in guesses), "accepted_tokens": sum(g.accepted for g in guesses)}
    return {
        "tokens": sum(g.completion_tokens for g in generations),
        **(counted if guesses else {}),
        **({"step_seconds": steps} if steps else {}),  # the engine does not tell where it serves alone
        **_masked(choices, before=False),
        "read_seconds": sum(c.read_seconds for c in choices if isinstance(c, TracedChoice)),
    }


def _masked(choices: Sequence[Choice], *, before: bool) -> dict[str, float]:
    """The time that masks took before the first token, or from there on; nothing where there are none."""
    masks = [(c.generation.first, c.mask) for c in choices if isinstance(c.mask, TimedMask)]
    if not masks:
        return {}
    taken = [s for first, m in masks for end, s in m.times if (first is None or end <= first) == before]
    return {"grammar_seconds": sum(taken, 0.0)}


def _written(choice: Choice) -> dict[str, Any]:
    """The tokens of a choice, each with the text that it completed, and the reader's events.

    The end token has no entry; where text was left for it, that stands alone.
    """
    pieces = choice.pieces if isinstance(choice, TracedChoice) else []
    events = choice.reader.events if isinstance(choice.reader, TracedAnswer) else []
    output = [[p.token, p.text] for p in pieces if p.token is not None or p.text]
    return {"output": output, "events": told(events)}


def begin(scope: Scope, *, exported: bool) -> Trace:
    """The trace of the request in `scope`: recorded where its header asks for it, or where all are `exported`."""
    shown = Headers(scope=scope).get(HEADER) == "1"
    if scope["method"] != "POST" or not (shown or exported):
        return UNTRACED
    state: Mapping[str, Any] = scope.get("state", {})
    return Recorded(state.get(ARRIVED), shown=shown)
