"""Whatever a server sends, and for however long: the client stops reading, keeps little, and raises nothing."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Generator
from dataclasses import replace

import pytest

from punie_mlx.doctor.findings import examine
from punie_mlx.doctor.server_answer import whole
from punie_mlx.doctor.server_causes import MOST_TEXT, text_of_call, written_as
from punie_mlx.doctor.server_checks import CHECKS
from punie_mlx.doctor.server_client import MOST_BYTES, PIECE, Client, Reply
from punie_mlx.doctor.server_every import _loss
from punie_mlx.doctor.server_probes import ORBIT
from punie_mlx.doctor.server_session import SHORT, Session, clip, told

SECONDS = 0.4
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


@contextlib.contextmanager
def sending(first: bytes, again: bytes, pause: float = 0.0) -> Generator[str]:
    """The address of a server that sends `first`, and then `again` until nobody listens."""
    over = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def send(connection: socket.socket) -> None:
            with contextlib.suppress(OSError), connection:
                connection.recv(1 << 16)
                connection.sendall(first)
                while not over.wait(pause):
                    connection.sendall(again)

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    threading.Thread(target=send, args=(listener.accept()[0],), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        finally:
            over.set()
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)


ENDLESS = {
    "a head": (b"HTTP/1.1 200 OK\r\nX: ", b"a", 0.02),
    "continuing": (b"", b"HTTP/1.1 100 Continue\r\n\r\n", 0.0),
    "a body": (HEAD + b"Content-Length: 1000\r\n\r\n", b"a", 0.02),
    "a size of a chunk": (HEAD + b"Transfer-Encoding: chunked\r\n\r\n5;", b"a", 0.02),
    "trailers": (HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n", b"X: y\r\n", 0.0),
    "silence": (HEAD + b"\r\n{", b"", 0.05),
}


@pytest.mark.parametrize("name", ENDLESS)
def test_what_has_no_end_is_given_up(name: str) -> None:
    with sending(*ENDLESS[name]) as url:
        reply = Client(url, timeout=SECONDS).post("/chat/completions", {})
    assert reply.given_up and not reply.ok and f"within {SECONDS:g} s" in reply.broken


def test_what_is_huge_is_not_kept() -> None:
    with sending(HEAD + b"\r\n", b"[" * PIECE) as url:
        reply = Client(url, timeout=20).get("/models")
    assert reply.given_up and reply.broken == f"the answer is longer than {MOST_BYTES} bytes"
    assert len(reply.text) == PIECE and reply.json is None  # nested more deeply than any reader goes


def test_a_server_without_end_is_not_asked_all() -> None:
    with sending(HEAD + b"\r\n", b"{" * PIECE) as url:
        session = Session(Client(url, timeout=20), "vLLM", "good", ("good",), Reply(200))
        found = examine(session, CHECKS)
    assert len(session.answers) <= 3 and ("server-history", "the server gives no answers") in found.skipped
    assert "server-tools-refused" not in [f.check for f in found.findings]
    late = session.answers[0]
    assert _loss(late) is None  # it may have come in the end
    assert "breaks off" in str(_loss(replace(late, reply=replace(late.reply, given_up=False))))


def test_a_key_that_is_cut_is_not_shown() -> None:
    key = "secret-key-of-71"
    for before in range(SHORT):
        text = clip("." * before + key + "." * SHORT)
        told = Client("http://h/v1", key).hide(text)
        assert key[:4] not in told and key[-4:] not in told, told
    assert Client("http://h/v1", "of").hide("one of two") == "one of two"


@pytest.mark.parametrize("text", ["[" * MOST_BYTES, "<tool_call>" * 100_000, '{"name": ' * 100_000])
def test_a_huge_text_is_read_in_part(text: str) -> None:
    assert written_as(text, [ORBIT]) == () and len(text_of_call(text, [ORBIT]) or "") <= MOST_TEXT


def test_a_huge_call_is_shown_in_part() -> None:
    calls = [{"id": "1", "type": "function", "function": {"name": "n" * 9999, "arguments": {"a": "b" * 9999}}}] * 99
    answer = whole({}, Reply(200, {}, json.dumps({"choices": [{"message": {"tool_calls": calls}}]})))
    assert len(answer.calls) == 99 and len(told(answer).text) < 5000


@pytest.mark.parametrize("url", ["http://h..h/v1", "http://127.0.0.1:1/v1", "http://h\n/v1"])
def test_nothing_raises(url: str) -> None:
    assert Client(url, timeout=2).get("/models").broken.startswith("no answer")
