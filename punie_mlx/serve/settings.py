"""What a server is started with: frozen settings, each with its default."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

CONSTRAIN = ("auto", "off", "required-only")


@dataclass(frozen=True)
class Defaults:
    """What a request that leaves a field out is served with; from the model's generation_config.json, then options."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    max_tokens: int | None = None  # None: what is left of the context
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)  # for the chat template, `enable_thinking` say


@dataclass(frozen=True)
class ChatSettings:
    """How requests are answered.

    constrain: "auto" (lazy grammar wherever tools are offered), "required-only" (only where the request demands a call
    or a schema), "off". rescue: read calls outside the wire format, too, where the request does not say.
    request_seconds: an answer that takes longer is ended with an error. keepalive_seconds: a stream with nothing to
    send gets a comment that often.
    """

    constrain: str = "auto"
    rescue: bool = False
    request_seconds: float = 600.0
    keepalive_seconds: float = 10.0
    choices: int = 8  # the most that `n` may be
    log_content: bool = False
    defaults: Defaults = Defaults()


@dataclass(frozen=True)
class HttpSettings:
    """What a client may ask of the server's memory and patience, and who may ask.

    body, header_bytes: bytes. body_seconds, header_seconds: how long a client may take to send. idle_seconds: how long
    a connection is kept between requests. stalled_seconds: how long a client may take nothing of what it is sent.
    drain_seconds: after SIGTERM, for answers that are under way. api_key: None lets everyone in. origins: those of
    browsers' pages that may call (CORS). hosts: the names that the Host header may have; None takes any.
    inspect: there is a page at /inspect.
    """

    body: int = 16 * 2**20
    body_seconds: float = 60.0
    header_bytes: int = 64 * 2**10
    header_seconds: float = 20.0
    idle_seconds: float = 75.0
    stalled_seconds: float = 60.0
    connections: int = 4096
    drain_seconds: float = 30.0
    api_key: str | None = None
    origins: tuple[str, ...] = ()
    hosts: frozenset[str] | None = None
    inspect: bool = False
