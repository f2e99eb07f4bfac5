"""A running server under examination: what it is, and all that it was asked and has answered.

session = ask("http://127.0.0.1:8080/v1")
examine(session, checks("server"))
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from punie_mlx.doctor import server_probes as probes
from punie_mlx.doctor.findings import Finding, Shown, Skip
from punie_mlx.doctor.server_answer import Answer, streamed, whole
from punie_mlx.doctor.server_causes import OTHER, OURS, OWNERS, STOCK, remedy, text_of_call, written_as
from punie_mlx.doctor.server_client import Client, Reply, base_url
from punie_mlx.doctor.server_probes import Probe
from punie_mlx.errors import ConfigError, InputError

CHAT = "/chat/completions"
LOOK_SECONDS = 30.0
SHORT = 200
MOST_CALLS = 8  # of an answer that are shown
MOST_SILENCES = 2  # a server that did not answer so often, or without end, is asked no more
KEY_CHARACTERS = re.compile(r"[!-~]+")  # what a header can carry


@dataclass
class Session:
    """model: what requests name; None where they name none. listed: models that the server names. answers: all so far,
    the same request once."""

    client: Client
    kind: str
    model: str | None
    listed: tuple[str, ...]
    models: Reply
    answers: list[Answer] = field(default_factory=list)
    requests: int = 1
    _kept: dict[str, Answer] = field(default_factory=dict, repr=False)

    # ---- asking ----

    def chat(self, **fields: Any) -> Answer:
        """The answer to a chat request, which is sent once however often it is asked for. Raises `Skip`."""
        body = self.body(**fields)
        key = json.dumps(body, sort_keys=True)
        if key not in self._kept:
            if sum(a.reply.given_up or not a.reply.status for a in self.answers) >= MOST_SILENCES:
                raise Skip("the server gives no answers")
            self.requests += 1
            reply = self.client.post(CHAT, body)
            self._kept[key] = (streamed if body.get("stream") else whole)(body, reply)
            self.answers.append(self._kept[key])
        return self._kept[key]

    def body(self, **fields: Any) -> dict[str, Any]:
        named = {"model": self.model} if self.model is not None else {}
        return {**named, "temperature": 0, "max_tokens": probes.MOST_TOKENS, **fields}

    def ask(self, probe: Probe, **fields: Any) -> Answer:
        return self.chat(**{**probe.fields, **fields})

    def post(self, body: Any, *, timeout: float | None = None, headers: dict[str, str] | None = None) -> Reply:
        """The reply to a request that is none of the chat's, or is broken on purpose."""
        self.requests += 1
        return self.client.post(CHAT, body, timeout=min(timeout or LOOK_SECONDS, self.client.timeout), headers=headers)

    # ---- what most checks stand on ----

    @cached_property
    def plainly(self) -> list[tuple[Probe, Answer]]:
        """Plain questions, up to the first one that is answered with a call, as text or not, or with an error."""
        tried = []
        for probe in probes.PLAIN:
            tried.append((probe, answer := self.ask(probe)))
            if answer.calls or not answer.ok or self.written(answer):
                break
        return tried

    @property
    def plain(self) -> tuple[Probe, Answer]:
        """The first plain question that is answered with a call, or the last answer."""
        return self.plainly[-1]

    @staticmethod
    def written(answer: Answer) -> str | None:
        """The text of a call in an answer that has none; what was cut off may have become one."""
        return None if answer.calls or answer.finish == "length" else text_of_call(answer.content, answer.offered)

    @cached_property
    def caller(self) -> Probe:
        """A question that this model answers with a call. Raises `Skip` where there is none."""
        probe, answer = self.plain
        if not answer.calls:
            raise Skip("no plain question was answered with a call")
        return probe

    @cached_property
    def format(self) -> str | None:
        """The wire format that the model writes, where its text or the server shows it."""
        for answer in self.answers:
            if found := written_as(answer.content, answer.offered):
                return found[0]
        return self.template_format

    @cached_property
    def _rendered(self) -> dict[str, Any]:
        """What our own server says of a prompt that holds a call."""
        if self.kind != OURS:
            return {}
        messages = [*probes.SECOND, probes.user("Thanks.")]
        self.requests += 1
        body = {k: v for k, v in self.body(messages=messages, tools=[probes.ORBIT]).items() if k != "max_tokens"}
        reply = self.client.post(f"{CHAT}/render", body)
        return reply.json if reply.ok and isinstance(reply.json, dict) else {}

    @property
    def rendered_call(self) -> str:
        """The call as our own server's template writes it, with what stands around it."""
        text = str(self._rendered.get("text", ""))
        question = probes.SECOND[0]["content"]
        return text[text.rindex(question) + len(question) :] if question in text else ""

    @property
    def template_formats(self) -> tuple[str, ...]:
        return written_as(self.rendered_call, [probes.ORBIT], exactly=True)

    @property
    def template_format(self) -> str | None:
        return next(iter(self.template_formats), None)

    @property
    def reads(self) -> str | None:
        """The format in which our own server reads calls, where it says so."""
        return self._rendered.get("format")

    # ---- findings ----

    def found(
        self, check: str, severity: str, summary: str, shown: tuple[Shown, ...], effect: str, cause: str
    ) -> Finding:
        """A finding with its likely cause and what to change on a server of this kind. It never shows the key."""
        hide = self.client.hide
        proof = tuple(replace(s, text=hide(s.text)) for s in shown)
        return Finding(check, severity, hide(summary), proof, effect, remedy(cause, self.kind, self.format))

    def facts(self) -> dict[str, Any]:
        """What was learned of the server, as JSON."""
        return {
            "url": self.client.url,
            "kind": self.kind,
            "model": self.model,
            "models": list(self.listed),
            "format": self.format,
            "requests": self.requests,
        }


# ---- evidence ----


def clip(text: str, most: int = SHORT) -> str:
    """The beginning and the end of `text`, in one line."""
    line = text.replace("\n", "\\n")
    return line if len(line) <= most else f"{line[: most * 2 // 3]} … {line[-most // 3 :]}"


def asked(answer: Answer, *names: str) -> Shown:
    """The last message of a request, and those of its fields that matter."""
    last = next((str(m.get("content")) for m in reversed(answer.asked["messages"])), "")
    more = "".join(f", {n}: {json.dumps(answer.asked[n])}" for n in names if n in answer.asked)
    return Shown("asked", clip(last) + clip(more))


def told(answer: Answer, label: str = "answered") -> Shown:
    """The answer in the terms of the API, without ids."""
    if not answer.ok:
        return refused(answer.reply, label)
    said: dict[str, Any] = {"finish_reason": _short(answer.finish), "content": clip(answer.content)}
    if answer.reasoning:
        said["reasoning_content"] = clip(answer.reasoning, 80)
    said["tool_calls"] = [{"name": _short(c.name), "arguments": _short(c.arguments)} for c in answer.calls[:MOST_CALLS]]
    return Shown(label, json.dumps(said, ensure_ascii=False))


def _short(value: Any) -> Any:
    """`value`, or the text of it where that is long."""
    if isinstance(value, str):
        return clip(value)
    written = json.dumps(value, ensure_ascii=False)
    return value if len(written) <= SHORT else clip(written)


def refused(reply: Reply, label: str = "answered") -> Shown:
    """A reply that is no answer."""
    return Shown(label, f"{reply.outcome}: {clip(reply.text) or 'an empty body'}")


# ---- who is there ----


def ask(url: str, model: str | None = None, api_key: str | None = None, timeout: float = 120.0) -> Session:
    """The server at `url`, which is asked for its models.

    model: what requests are to name; by default what the server lists first.

    Raises:
        ConfigError: `url` is no address, the key cannot be sent, or the server wants another one.
        InputError: nothing answers there.
    """
    if api_key and not KEY_CHARACTERS.fullmatch(api_key):
        raise ConfigError("the API key has spaces, line breaks or letters that no header carries: give it again")
    client = Client(base_url(url), api_key, timeout)
    models = Client(client.url, api_key, min(timeout, LOOK_SECONDS)).get("/models")
    if models.status in (401, 403):
        told = clip(client.hide(models.error))
        raise ConfigError(f"the server at {client.url} refuses the key ({told}): give it with --api-key")
    if models.status == 0 and not _alive(client):
        raise InputError(f"nothing answers at {client.url} ({models.broken}): start the server, or name its address")
    listed, owners = _listed(models)
    kind = _kind(models, owners)
    # mlx_lm.server lists what its cache holds, and would load what a request names.
    chosen = model or (None if kind == STOCK else next(iter(listed), None))
    return Session(client, kind, chosen, listed, models)


def _alive(client: Client) -> bool:
    """Whether anything speaks HTTP there: a server may break over the list of its models only."""
    return client.post(CHAT, b"").status != 0


def _listed(models: Reply) -> tuple[tuple[str, ...], set[str]]:
    data = models.json.get("data") if isinstance(models.json, dict) else None
    found = [m for m in data if isinstance(m, dict) and isinstance(m.get("id"), str)] if isinstance(data, list) else []
    return tuple(m["id"] for m in found), {str(m.get("owned_by", "")) for m in found}


def _kind(models: Reply, owners: set[str]) -> str:
    for owner, kind in OWNERS.items():
        if owner in owners:
            return kind
    server = models.headers.get("server", "")
    if re.match(r"llama\.cpp", server):
        return "llama.cpp"
    return STOCK if server.startswith("BaseHTTP/") and "access-control-allow-methods" in models.headers else OTHER
