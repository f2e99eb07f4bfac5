"""Real servers on one model: ours is all green, mlx_lm's own has its known faults named, a wrong format its cause."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from punie_mlx.doctor import server_calls, server_probes
from punie_mlx.doctor.findings import Check, Examined, examine
from punie_mlx.doctor.server_checks import CHECKS
from punie_mlx.doctor.server_client import Client
from punie_mlx.doctor.server_session import ask

from ..e2e.conftest import build_replaying_model

STARTUP_SECONDS = 60.0


def call(name: str, *parameters: tuple[str, str]) -> str:
    inner = "".join(f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in parameters)
    return f"<function={name}>\n{inner}</function>\n"


def block(*calls: str) -> str:
    return f"<tool_call>\n{''.join(calls)}</tool_call>"


SPELLED = server_probes.MARKED_TEXT.replace("</tool_call>", "\\</tool_call>")
SCRIPTS = {
    "Zeeland-71": block(call("look_up_orbit", ("satellite", "Zeeland-71"))),
    "Quorra-12": block(
        call("look_up_orbit", ("satellite", "Quorra-12")), call("look_up_orbit", ("satellite", "Quorra-13"))
    ),
    "Kestrel": block(
        call(
            "book_berth",
            ("berth", "9007199254740993"),
            ("draught", "2.5"),
            ("at_night", "true"),
            ("harbour_code", "04109"),
            ("remark", "null"),
            ("hull", '{"class": "Kestrel", "masts": 3}'),
        )
    ),
    "Marlow-5": block(call("save_note", ("text", SPELLED))),
    "Tolmin-8": "The manual says that calls begin with \\<tool_call> there.",
    "Brannoch-4": "It flies 412 km high.",
    "Farrow-6": "Good morning to you.",
    "Ostrava-3": "It is Ostrava, number three.",
    "Wexcombe-2": "Good evening to you.",
}


@pytest.fixture(scope="module", autouse=True)
def short_answers() -> Iterator[None]:
    """What has no script goes on to the limit: a low one costs less, and every script fits into it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(server_probes, "MOST_TOKENS", 200)
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Path:
    """It answers each probe with its script, and has a template that is good in all that is looked at."""
    path = tmp_path_factory.mktemp("doctor") / "replaying"
    path.mkdir()
    build_replaying_model(path, SCRIPTS)
    shutil.copy(tiny_base / "chat_template.jinja", path)
    return path


@contextlib.contextmanager
def stock(model: Path, home: Path) -> Generator[str]:
    """`mlx_lm.server` as users start it, with a cache of its own."""
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
    command = [sys.executable, "-m", "mlx_lm", "server", "--model", str(model), "--port", str(port)]
    environment = {**os.environ, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "NO_PROXY": "*", "no_proxy": "*"}
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
        try:
            root, deadline = Client(f"http://127.0.0.1:{port}"), time.monotonic() + STARTUP_SECONDS
            while not root.get("/health").ok:
                assert process.poll() is None and time.monotonic() < deadline, "mlx_lm.server did not start"
                time.sleep(0.1)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.kill()


def examined(url: str, checks: Sequence[Check] = CHECKS) -> Examined:
    return examine(ask(url, timeout=60), checks)


def test_ours_is_all_green(model: Path, serving: Callable[..., Any]) -> None:
    with serving(model) as server:
        found = examined(server.url)
    assert [(f.check, f.evidence) for f in found.findings] == []
    assert dict(found.skipped) == {  # what this model does not do, and no fault of the server
        "server-reasoning": "the model did not think",
        "server-parallel": "the model made no parallel call",
    }


@pytest.fixture(scope="module")
def of_stock(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    with stock(model, tmp_path_factory.mktemp("home")) as url:
        found = examined(url)
    yield {f.check: f for f in found.findings}


@pytest.mark.parametrize(
    ("check", "says"),
    [
        ("server-call-lost", "tool_calls is empty"),  # of a marker that is only mentioned
        ("server-choice-none", "a call comes all the same"),
        ("server-choice-required", "no call comes"),
        ("server-choice-named", "no call came"),
        ("server-parallel", "only the second"),  # two functions in one block
        ("server-typed-arguments", "remark"),
        ("server-markers-in-text", "ends the call"),
        ("server-cut-call", "is lost"),
        ("server-response-format", "not kept"),
        ("server-null-parameters", "must be of type"),
        ("server-bad-request", "HTTP 404"),
        ("server-bad-request", "a negative Content-Length: no answer"),
        ("server-error-shape", '{"error": "Request did not contain messages"}'),
        ("server-control-tokens", "<|im_end|>"),
        ("server-cross-origin", "Access-Control-Allow-Origin: *"),
        ("server-fetches", "GET /wexcombe.png"),
        ("server-unknown-model", "looked for on the Hub"),
    ],
)
def test_known_faults_of_mlx_lms_server_are_named(of_stock: dict[str, Any], check: str, says: str) -> None:
    finding = of_stock[check]
    assert says in f"{finding.summary}\n{finding.evidence}"
    assert "punie-mlx serve" in finding.remedy or "--allowed-origins" in finding.remedy


def test_what_mlx_lms_server_does_right_is_no_finding(of_stock: dict[str, Any]) -> None:
    right = {
        "server-wrong-format", "server-tools-refused", "server-tools-in-prompt", "server-call-as-text",
        "server-plain-call", "server-streamed-call", "server-second-turn", "server-history", "server-beside-call",
        "server-reasoning", "server-large-limit", "server-still-answers",
    }  # fmt: skip
    assert right.isdisjoint(of_stock)


def test_ours_with_a_wrong_format_has_its_cause_named(model: Path, serving: Callable[..., Any]) -> None:
    with serving(model, "--tool-call-format", "mistral") as server:
        found = examined(server.url, server_calls.CHECKS)
    assert [f.check for f in found.findings] == ["server-wrong-format"]
    (finding,) = found.findings
    assert finding.severity == "high" and "qwen3_coder" in finding.summary and "mistral" in finding.summary
    assert "leave out `--tool-call-format`" in finding.remedy and "--tool-call-format qwen3_coder" in finding.remedy
    assert "look_up_orbit" in finding.evidence
