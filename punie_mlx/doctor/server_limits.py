"""Does the server hold to the protocol where a request is unusual: names, nulls, nonsense, and what it must not do.

Nothing here is known to end a server: requests that are (a stop that is no string, an empty prompt, tokens or top_k
beyond the vocabulary) are not sent. The answer without a limit would end at its first word, were nobody to hang up.
"""

from __future__ import annotations

import contextlib
import re
import socket
import threading
from collections.abc import Generator, Iterator
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

from punie_mlx.doctor import server_probes as probes
from punie_mlx.doctor.findings import Check, Finding, Shown, Skip
from punie_mlx.doctor.server_client import Reply
from punie_mlx.doctor.server_session import CHAT, Session, clip, refused

HELLO = [probes.user("Good evening, Wexcombe-2.")]
BAD_SECONDS = 5.0
FETCH_SECONDS = 3.0
PICTURE = "/wexcombe.png"
ORIGIN = "http://doctor.invalid"

BAD: tuple[tuple[str, Any, dict[str, str]], ...] = (
    ("no messages", {"max_tokens": 1}, {}),
    ("messages that are a string", {"messages": "hello", "max_tokens": 1}, {}),
    ("a message without a role", {"messages": [{"content": "hello"}], "max_tokens": 1}, {}),
    ("tools that are a string", {"messages": HELLO, "tools": "look_up_orbit", "max_tokens": 1}, {}),
    ("a temperature that is a word", {"messages": HELLO, "temperature": "hot", "max_tokens": 1}, {}),
    ("JSON that breaks off", b'{"messages": [', {}),
    ("a negative Content-Length", b"", {"Content-Length": "-1"}),
)
STOPS = [" ", ".", ",", "!"]
NULLS = ("top_p", "stop", "seed", "presence_penalty", "frequency_penalty", "logit_bias", "n", "stream")


def models(session: Session) -> Iterator[Finding]:
    listed = session.listed
    if not listed:
        yield session.found(
            "server-models",
            "low",
            "the server lists no models",
            (refused(session.models, "GET /models"),),
            "Clients that choose a model from the list, or check the name, do not start.",
            "protocol",
        )
    elif session.model is not None and session.model not in listed:
        yield session.found(
            "server-models",
            "medium",
            f"the server does not list the model {session.model}",
            (Shown("listed", clip(", ".join(listed))),),
            "Requests are refused, or answered by another model than the one that was meant.",
            "any-model",
        )
    elif len(listed) > 1:
        yield session.found(
            "server-models",
            "low",
            f"the server lists {len(listed)} models, so that the first need not be the one that answers",
            (Shown("listed", clip(", ".join(listed))),),
            "Clients that take the first of the list talk to another model, or make the server load it.",
            "many-models",
        )


def unknown_model(session: Session) -> Iterator[Finding]:
    reply = session.post(_body(session, model=probes.NO_SUCH_MODEL))
    looked = re.search(r"repo id|hugging ?face|\bhub\b|download", reply.error, re.IGNORECASE)
    if reply.refused and not looked:
        return
    if looked:
        summary = "a model that is not served is looked for on the Hub, and the one that is served is given up for it"
    elif reply.ok:
        summary = "a request for a model that does not exist is answered, by another model"
    else:
        summary = f"a request for a model that does not exist is not refused in order ({reply.outcome})"
    yield session.found(
        "server-unknown-model",
        "medium",
        summary,
        (Shown("model", probes.NO_SUCH_MODEL), refused(reply)),
        "A misspelt name goes unseen: another model is used, and scored, than the one that was meant.",
        "any-model",
    )


def _body(session: Session, **fields: Any) -> dict[str, Any]:
    return session.body(**{"messages": HELLO, "max_tokens": 1, **fields})


def _bad(session: Session) -> list[tuple[str, Reply]]:
    """The replies to requests that nobody can serve."""
    kept = session.__dict__.setdefault("_bad_replies", [])
    if not kept:
        for label, body, headers in BAD:
            named = {"model": session.model} if isinstance(body, dict) and session.model is not None else {}
            asked = {**named, **body} if isinstance(body, dict) else body
            kept.append((label, session.post(asked, timeout=BAD_SECONDS, headers=headers)))
    return kept


def bad_request(session: Session) -> Iterator[Finding]:
    wrong = [(label, reply) for label, reply in _bad(session) if not reply.refused or reply.status == 404]
    if wrong:
        served = all(reply.ok for _, reply in wrong)
        yield session.found(
            "server-bad-request",
            "low" if served else "medium",
            f"{len(wrong)} of {len(BAD)} requests that cannot be served are not answered with 400: "
            + ", ".join(label for label, _ in wrong),
            tuple(refused(reply, label) for label, reply in wrong),
            "A client that is told 404 looks for another address, one that is told 500 or nothing tries again.",
            "protocol",
        )


def error_shape(session: Session) -> Iterator[Finding]:
    for label, reply in _bad(session):
        if not reply.refused or label == BAD[-1][0]:
            continue  # the last is refused before any server looks at it
        error = reply.json.get("error") if isinstance(reply.json, dict) else None
        shaped = isinstance(error, dict) and isinstance(error.get("message"), str)
        flat = isinstance(reply.json, dict) and isinstance(reply.json.get("message"), str)  # vLLM's until 0.10
        if not shaped and not flat:
            yield session.found(
                "server-error-shape",
                "low",
                "errors are not the API's objects",
                (refused(reply, label), Shown("the API's shape", '{"error": {"message": …, "type": …, …}}')),
                "Clients show an error without its message.",
                "protocol",
            )
            return


def null_parameters(session: Session) -> Iterator[Finding]:
    reply = session.post(_body(session, **dict.fromkeys(NULLS)), timeout=session.client.timeout)
    if not reply.ok:
        yield session.found(
            "server-null-parameters",
            "medium",
            "fields that are null, as the API allows, are refused",
            (Shown("null", ", ".join(NULLS)), refused(reply)),
            "Clients that write out their defaults as null cannot talk to this server.",
            "protocol",
        )


def large_limit(session: Session) -> Iterator[Finding]:
    session.requests += 1
    body = session.body(messages=HELLO, max_tokens=10**9, stream=True, stop=STOPS)
    reply = session.client.begin(CHAT, body)
    if reply.broken or not (reply.status == 200 or reply.refused):
        yield session.found(
            "server-large-limit",
            "low",
            f"a very large max_tokens is neither taken nor refused ({reply.outcome})",
            (Shown("max_tokens", str(10**9)), refused(reply)),
            "Clients that ask for no limit in this way fail.",
            "protocol",
        )


# ---- what a server must not do ----


def cross_origin(session: Session) -> Iterator[Finding]:
    session.requests += 1
    reply = replace(session.client, key=None).get("/models", {"Origin": ORIGIN})  # no page has the key
    allowed = reply.headers.get("access-control-allow-origin", "")
    if allowed in ("*", ORIGIN) and reply.status not in (401, 403):
        yield session.found(
            "server-cross-origin",
            "low",
            "pages of any origin may call",
            (Shown("Origin", ORIGIN), Shown("Access-Control-Allow-Origin", allowed)),
            "Any page that is open in a browser on this machine can use the model and read its answers.",
            "cors",
        )


def fetches(session: Session) -> Iterator[Finding]:
    if urlsplit(session.client.url).hostname not in ("127.0.0.1", "localhost", "::1"):
        raise Skip("the server runs elsewhere, and could not reach an address of this machine")
    with _listening() as (url, came):
        image = [{"type": "text", "text": "Look."}, {"type": "image_url", "image_url": {"url": url}}]
        reply = session.post(_body(session, messages=[{"role": "user", "content": image}]), timeout=BAD_SECONDS)
    if came:
        yield session.found(
            "server-fetches",
            "low",
            "the server fetches an address that stands in a request",
            (Shown("image_url", "an address of this machine"), Shown("what it was asked", came[0]), refused(reply)),
            "Whoever can write a message (a page that an agent read) makes the server call addresses of its network.",
            "protocol",
        )


@contextlib.contextmanager
def _listening() -> Generator[tuple[str, list[str]]]:
    """An address of this machine, and the first lines of the requests that came to it."""
    came: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(FETCH_SECONDS)

        def accept() -> None:
            with contextlib.suppress(OSError):
                connection, _ = listener.accept()
                with connection:
                    connection.settimeout(FETCH_SECONDS)
                    line = connection.recv(1000).decode("latin-1").partition("\r\n")[0]
                    if PICTURE in line:  # and not somebody who looks at open ports
                        came.append(line)
                    connection.sendall(b"HTTP/1.0 404 Not Found\r\nContent-Length: 0\r\n\r\n")

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}{PICTURE}", came
        finally:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            thread.join(FETCH_SECONDS)


def control_tokens(session: Session) -> Iterator[Finding]:
    def tokens(text: str) -> int | None:
        messages = [probes.SECOND[0], probes.calling("look_up_orbit", '{"satellite": "Brannoch-4"}', content=""),
                    probes.result(text)]  # fmt: skip
        return session.chat(messages=messages, tools=[probes.ORBIT], max_tokens=1).prompt_tokens

    for marker in probes.CONTROL:
        few, many = tokens(marker * 20), tokens(marker * 40)
        if few is None or many is None:
            raise Skip("the server does not count the tokens of these prompts")
        if many - few == 20:
            yield session.found(
                "server-control-tokens",
                "medium",
                f"{marker} in the result of a tool becomes the control token",
                (
                    Shown(f"tokens of a prompt with {marker} 20 times in a result", str(few)),
                    Shown("the same with it 40 times", str(many)),
                ),
                "A file or page that an agent reads can end the turn and speak as the system or the user.",
                "protocol",
            )
            return


def still_answers(session: Session) -> Iterator[Finding]:
    reply = session.post(_body(session, max_tokens=2), timeout=session.client.timeout)
    if not reply.ok:
        yield session.found(
            "server-still-answers",
            "high",
            "after these requests the server answers no more",
            (refused(reply),),
            "One odd request of one client stops the server for all.",
            "protocol",
        )


CHECKS = (
    Check("server-models", "server", "The server lists its model", models),
    Check("server-null-parameters", "server", "Null is as good as absent", null_parameters),
    Check("server-large-limit", "server", "A very large max_tokens is answered", large_limit),
    Check("server-bad-request", "server", "Nonsense is answered with 400", bad_request),
    Check("server-error-shape", "server", "Errors are the API's objects", error_shape),
    Check("server-control-tokens", "server", "Text of a result is no control token", control_tokens),
    Check("server-cross-origin", "server", "Pages of other origins may not call", cross_origin),
    Check("server-fetches", "server", "No address in a request is fetched", fetches),
    Check("server-unknown-model", "server", "An unknown model is refused", unknown_model),
    Check("server-still-answers", "server", "The server answers still", still_answers),
)
