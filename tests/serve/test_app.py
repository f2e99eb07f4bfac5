"""Routes, errors and who may call, over a real socket."""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2 as httpx
import jsonschema
import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.datastructures import Headers

from punie_mlx.serve import guard

KEY = "a-key-of-this-test"
PAGE = "https://page.example"
HELLO = {"messages": [{"role": "user", "content": "#hello"}]}


@pytest.fixture(scope="module")
def closed(
    serving: Callable[..., Any], scripted_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Any]:
    """A server that wants a key and lets one page call; so from a file."""
    file = tmp_path_factory.mktemp("config") / "serve.yaml"
    file.write_text(f"api-key: {KEY}\nallow-origin: {PAGE}\nname: served-name\nmax-context: 64\n")
    with serving(scripted_model, "--config", str(file)) as server:
        yield server


def root(server: Any) -> str:
    return server.url.removesuffix("/v1")


def get(url: str, **headers: str) -> httpx.Response:
    return httpx.get(url, headers=headers, trust_env=False, timeout=30)


def error(response: httpx.Response) -> dict[str, Any]:
    content = response.json()["error"]
    assert content["message"] and content["type"] and {"param", "code"} <= content.keys()
    return content


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


# ---- who may call ----


def test_without_the_key_nothing_but_health_answers(closed: Any) -> None:
    assert get(root(closed) + "/health").json()["status"] == "ok"
    for path in ("/v1/models", "/v1/models/served-name", "/metrics", "/openapi.json", "/nowhere"):
        response = get(root(closed) + path)
        assert response.status_code == 401 and response.headers["www-authenticate"] == "Bearer", path
        assert error(response)["code"] == "invalid_api_key"
    response = httpx.post(closed.url + "/chat/completions", json=HELLO, trust_env=False)
    assert response.status_code == 401


@pytest.mark.parametrize("key", ["wrong", KEY + "x", KEY[:-1], KEY.upper()])
def test_a_wrong_key_is_refused(closed: Any, key: str) -> None:
    assert get(closed.url + "/models", **bearer(key)).status_code == 401


def test_a_key_that_is_no_utf8_is_refused(closed: Any) -> None:
    connection = http.client.HTTPConnection(urlsplit(closed.url).netloc, timeout=10)
    connection.request("GET", "/v1/models", headers={"Authorization": b"Bearer \xff\xfe"})
    assert connection.getresponse().status == 401


def test_with_the_key_it_answers(closed: Any) -> None:
    assert get(closed.url + "/models", **bearer(KEY)).json()["data"][0]["id"] == "served-name"
    assert get(closed.url + "/models", Authorization=f"bearer  {KEY}").status_code == 200
    response = httpx.post(closed.url + "/chat/completions", json=HELLO, headers=bearer(KEY), trust_env=False)
    assert response.json()["choices"][0]["message"]["content"] == "Hello, world 🌍!"


def test_an_allowed_page_may_call_and_ask_before(closed: Any) -> None:
    asked = httpx.options(
        closed.url + "/chat/completions",
        headers={
            "Origin": PAGE,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization,content-type",
        },
        trust_env=False,
    )
    assert asked.status_code == 200
    assert asked.headers["access-control-allow-origin"] == PAGE
    assert "authorization" in asked.headers["access-control-allow-headers"].lower()
    answered = get(closed.url + "/models", Origin=PAGE, **bearer(KEY))
    assert answered.status_code == 200 and answered.headers["access-control-allow-origin"] == PAGE
    # The page can read why it was refused.
    assert get(closed.url + "/models", Origin=PAGE).headers["access-control-allow-origin"] == PAGE


def test_another_page_may_not_call_even_with_the_key(closed: Any) -> None:
    response = get(closed.url + "/models", Origin="https://evil.example", **bearer(KEY))
    assert response.status_code == 403 and error(response)["code"] == "origin_not_allowed"
    assert "access-control-allow-origin" not in response.headers


def test_cors_is_off_unless_asked_for(scripted_server: Any) -> None:
    headers = {"Origin": PAGE, "Access-Control-Request-Method": "POST"}
    asked = httpx.options(scripted_server.url + "/chat/completions", headers=headers, trust_env=False)
    assert asked.status_code in (403, 405)
    posted = httpx.post(
        scripted_server.url + "/chat/completions", json=HELLO, headers={"Origin": PAGE}, trust_env=False
    )
    assert posted.status_code == 403
    for response in (asked, posted):
        assert not [name for name in response.headers if name.startswith("access-control")]


def test_a_name_that_only_points_here_is_refused(scripted_server: Any) -> None:
    port = urlsplit(scripted_server.url).port
    assert get(scripted_server.url + "/models", Host=f"localhost:{port}").status_code == 200
    assert get(scripted_server.url + "/models", Host=f"LOCALHOST.:{port}").status_code == 200
    for name in ("evil.example", f"evil.example:{port}", "127.0.0.1.evil.example", "[", ""):
        response = get(scripted_server.url + "/models", Host=name)
        assert response.status_code == 403 and error(response)["code"] == "unknown_host", name


def test_a_page_of_the_same_origin_may_call(scripted_server: Any) -> None:
    origin = root(scripted_server)
    assert get(scripted_server.url + "/models", Origin=origin).status_code == 200
    assert get(scripted_server.url + "/models", Origin="null").status_code == 403


def test_keys_are_compared_whole() -> None:
    assert guard.same("a" * 9, "a" * 9)
    assert not guard.same("", "a") and not guard.same("\udcff", "a")
    assert guard.bearer(Headers({"authorization": "Basic x"})) == ""


# ---- routes ----


def test_the_one_model(closed: Any) -> None:
    listed = get(closed.url + "/models", **bearer(KEY)).json()
    (served,) = listed["data"]
    assert listed["object"] == "list" and served["object"] == "model"
    assert served["fingerprint"] == closed.ready["fingerprint"] and served["max_model_len"] == 64
    assert abs(served["created"] - time.time()) < 600
    assert get(closed.url + "/models/served-name", **bearer(KEY)).json() == served
    response = get(closed.url + "/models/org/other", **bearer(KEY))
    assert response.status_code == 404 and "org/other" in error(response)["message"]


def test_the_context_is_the_shorter_one(closed: Any) -> None:
    body = {"messages": [{"role": "user", "content": "many words " * 40}]}
    response = httpx.post(closed.url + "/chat/completions", json=body, headers=bearer(KEY), trust_env=False)
    assert response.status_code == 400
    assert "64" in error(response)["message"] and error(response)["code"] == "context_length_exceeded"


def test_health_says_what_runs(scripted_server: Any) -> None:
    content = get(root(scripted_server) + "/health").json()
    assert content["fingerprint"] == scripted_server.ready["fingerprint"]
    assert {k: type(content[k]) for k in ("running", "waiting", "restarts")} == {
        "running": int, "waiting": int, "restarts": int,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nowhere", 404),
        ("GET", "/v1/chat/completions", 405),
        ("POST", "/v1/models", 405),
        ("DELETE", "/health", 405),
        ("POST", "/v1/chat/completions/", 404),
        ("GET", "/v1/../health", 404),
        ("GET", "/inspect", 404),
        ("POST", "/inspect/stream", 404),
    ],
)
def test_what_is_not_there_is_an_error_of_the_same_shape(
    scripted_server: Any, method: str, path: str, status: int
) -> None:
    connection = http.client.HTTPConnection(urlsplit(scripted_server.url).netloc, timeout=10)
    connection.request(method, path)
    response = connection.getresponse()
    assert response.status == status
    assert {"message", "type", "param", "code"} <= json.loads(response.read())["error"].keys()


def test_a_head_request_has_no_body(scripted_server: Any) -> None:
    response = httpx.head(root(scripted_server) + "/health", trust_env=False)
    assert response.status_code == 200 and response.content == b""


def test_a_websocket_is_not_spoken(scripted_server: Any) -> None:
    where = urlsplit(scripted_server.url)
    with socket.create_connection((where.hostname, where.port), timeout=10) as s:
        s.sendall(
            b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        assert s.recv(12) == b"HTTP/1.1 200"  # an ordinary answer


def test_metrics_count_requests_by_route(closed: Any) -> None:
    def counted() -> dict[tuple[str, ...], float]:
        text = get(root(closed) + "/metrics", **bearer(KEY)).text
        families = text_string_to_metric_families(text)
        return {(s.name, *s.labels.values()): s.value for f in families for s in f.samples}

    before = counted()
    get(closed.url + "/models/no-such-model", **bearer(KEY))
    get(root(closed) + "/made-up-by-a-client", **bearer(KEY))
    get(closed.url + "/models")
    after = counted()

    def grown(*name: str) -> float:
        return after.get(name, 0) - before.get(name, 0)

    assert grown("punie_requests_total", "/v1/models/{name:path}", "404") == 1
    assert grown("punie_requests_total", "other", "404") == 1
    assert grown("punie_requests_refused_total", "invalid_api_key") == 1
    assert not [name for name in after if any("made-up" in part for part in name)]


# ---- its description ----


def test_the_description_is_valid_and_tells_every_failure(closed: Any) -> None:
    document = get(root(closed) + "/openapi.json", **bearer(KEY)).json()
    assert document["openapi"].startswith("3.1")
    for name, schema in document["components"]["schemas"].items():
        jsonschema.Draft202012Validator.check_schema(schema)
        assert "$defs" not in schema, name
    text = json.dumps(document)
    wanted = {reference.split('"')[0] for reference in text.split("#/components/schemas/")[1:]}
    assert wanted <= document["components"]["schemas"].keys()
    for path in ("/v1/chat/completions", "/v1/chat/completions/render", "/v1/completions", "/tokenize"):
        operation = document["paths"][path]["post"]
        assert operation["responses"].keys() >= {"200", "400", "401", "404", "408", "413", "429", "500", "503"}
        assert operation["requestBody"]["content"]["application/json"]["schema"]["$ref"]
        assert operation["security"] == [{"key": []}]
    assert "security" not in document["paths"]["/health"]["get"]


def test_answers_are_as_described(scripted_server: Any) -> None:
    document = get(root(scripted_server) + "/openapi.json").json()

    def check(response: httpx.Response, method: str, path: str) -> None:
        described = document["paths"][path][method]["responses"][str(response.status_code)]
        schema = described["content"]["application/json"]["schema"]
        validator = jsonschema.Draft202012Validator({**schema, "components": document["components"]})
        validator.validate(response.json())

    def post(path: str, body: Any) -> httpx.Response:
        return httpx.post(root(scripted_server) + path, json=body, trust_env=False)

    check(post("/v1/chat/completions", HELLO), "post", "/v1/chat/completions")
    check(post("/v1/chat/completions", {"messages": 1}), "post", "/v1/chat/completions")
    check(post("/v1/chat/completions/render", HELLO), "post", "/v1/chat/completions/render")
    check(post("/v1/completions", {"prompt": "#hello"}), "post", "/v1/completions")
    check(post("/tokenize", HELLO), "post", "/tokenize")
    check(get(scripted_server.url + "/models"), "get", "/v1/models")
    check(get(root(scripted_server) + "/health"), "get", "/health")


def test_nothing_of_the_descriptions_paths_is_missing(scripted_server: Any) -> None:
    document = get(root(scripted_server) + "/openapi.json").json()
    for path, operations in document["paths"].items():
        for method in operations:
            url = root(scripted_server) + path.replace("{name}", "scripted")
            response = httpx.request(method, url, json={} if method == "post" else None, trust_env=False)
            assert response.status_code in (200, 400), (method, path)
