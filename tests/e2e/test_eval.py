"""`punie-mlx eval` as a user runs it: real process, real server, shipped weights."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pydantic_ai import Agent, RunContext
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

from punie_mlx import identity
from punie_mlx.errors import ServerError
from punie_mlx.evals.drive_pydantic_ai import PROFILE
from punie_mlx.evals.recorded import connect
from punie_mlx.evals.runner import EvalConfig, evaluate
from punie_mlx.evals.server_process import serving

ENV = {**os.environ, "PYTHONWARNINGS": "default", "HF_HUB_OFFLINE": "1"}


@pytest.fixture(scope="module")
def suite(root):
    return root / "data" / "suites" / "discrimination.jsonl"


@pytest.fixture(scope="module")
def server(tiny_base):
    with serving(tiny_base) as (process, ready):
        yield process, ready


def cli(*args, **more):
    command = [sys.executable, "-m", "punie_mlx", "eval", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, env=ENV, timeout=120, **more)


def stat(pid):
    """State letter and parent of a process; None where there is none."""
    # Not every Linux has `ps`, and macOS has no /proc.
    if sys.platform == "linux":
        try:
            state, parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:2]
        except (FileNotFoundError, ProcessLookupError):
            return None
        return state, int(parent)
    found = subprocess.run(["ps", "-o", "stat=,ppid=", "-p", str(pid)], capture_output=True, text=True).stdout.split()
    return (found[0][0], int(found[1])) if found else None


def gone(pid, seconds=10.0):
    """Whether the process ends in time. A dead child of a process that was killed may stay as a zombie."""
    deadline = time.monotonic() + seconds
    while (found := stat(pid)) and found[0] != "Z":
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def children(parent):
    if sys.platform == "linux":
        pids = [int(p.name) for p in Path("/proc").iterdir() if p.name.isdigit()]
    else:
        pids = [int(p) for p in subprocess.run(["ps", "-axo", "pid="], capture_output=True, text=True).stdout.split()]
    return [p for p in pids if (found := stat(p)) and found[1] == parent]


def test_the_base_writes_fences(tmp_path, tiny_base, suite):
    """Where the road begins: direct queries pass, tool queries fail because the calls are JSON in fences."""
    out = tmp_path / "out.json"
    done = cli("--model", tiny_base, "--suite", suite, "--json", out)
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text())
    assert result["model"]["fingerprint"] == identity.fingerprint(tiny_base)
    assert result["summary"]["n"] == 5 and "tiny-base" in done.stdout
    for case in result["cases"]:
        assert case["passed"] is (case["category"] == "direct"), case["reasons"]
        assert ("```json" in case["raw_text"][0]) is (case["category"] == "tool")


def test_another_model_at_the_url_is_exit_code_3(tmp_path, server, suite):
    _, ready = server
    out = tmp_path / "out.json"
    done = cli("--url", ready.url, "--fingerprint", "0" * 64, "--suite", suite, "--json", out)
    assert done.returncode == 3 and not out.exists()
    assert ready.fingerprint in done.stderr and "nothing was scored" in done.stderr


def test_a_running_server_is_scored_and_left_running(server, suite, tiny_base):
    process, ready = server
    config = EvalConfig(suites=(suite,), url=ready.url, fingerprint=identity.fingerprint(tiny_base), limit=2)
    result = evaluate(config)
    assert result["summary"]["n"] == 2 and result["model"]["name"] == ready.model
    assert process.alive()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--model", "no/such/dir/at/all"], "does not exist"),
        (["--model", "BASE", "--adapter", "no-adapter"], "no adapter directory"),
        (["--model", "BASE", "--concurrency", "0"], "--concurrency 0"),
        (["--url", "http://127.0.0.1:1"], "--fingerprint"),
    ],
)
def test_bad_input_is_exit_code_2(tmp_path, tiny_base, suite, args, message):
    args = [str(tiny_base) if a == "BASE" else a for a in args]
    done = cli(*args, "--suite", suite, "--json", tmp_path / "out.json", cwd=tmp_path)
    assert done.returncode == 2 and message in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and list(tmp_path.iterdir()) == []


def test_a_bad_suite_names_its_line(tmp_path, tiny_base, suite):
    bad = tmp_path / "bad.jsonl"
    bad.write_text(suite.read_text() + "{]\n")
    done = cli("--model", tiny_base, "--suite", bad)
    assert done.returncode == 2 and f"{bad}:6: not JSON" in done.stderr


def test_what_the_server_refuses_is_said(tmp_path, tiny_base, suite):
    """Weights that cannot be loaded: the server's own words reach the user."""
    broken = tmp_path / "broken"
    shutil.copytree(tiny_base, broken)
    (broken / "model.safetensors").write_bytes(b"no weights")
    done = cli("--model", broken, "--suite", suite, "--json", tmp_path / "out.json")
    assert done.returncode in (1, 2) and "broken" in done.stderr and not (tmp_path / "out.json").exists()


def test_a_server_that_dies_ends_the_evaluation(tiny_base):
    with serving(tiny_base) as (process, ready):
        os.kill(ready.pid, signal.SIGKILL)
        assert gone(ready.pid)
        error = process.death("while cases were running")
        assert isinstance(error, ServerError) and "SIGKILL" in str(error)


def test_a_server_that_is_never_ready(tiny_base):
    with pytest.raises(ServerError, match=r"not ready after 0\.01 s"), serving(tiny_base, seconds=0.01):
        pass


def test_a_server_whose_parent_has_gone_ends(tiny_base):
    """Also where no kernel helps: the leash sees that its parent is not the one that it was given."""
    command = [sys.executable, "-m", "punie_mlx.evals.leash", str(os.getppid()), "serve", "--model", str(tiny_base)]
    done = subprocess.run([*command, "--port", "0"], capture_output=True, text=True, env=ENV, timeout=60)
    assert done.returncode == 1 and done.stdout == ""


def test_evals_need_no_mlx():
    """The evaluation reaches the server as a user does."""
    code = (
        "import sys, punie_mlx.evals.command; print([m for m in sys.modules if m.split('.')[0] in ('mlx', 'mlx_lm')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def _start_eval(tmp_path, scratch, tiny_base, suite):
    """An evaluation that goes on for a while, and its server's process id."""
    case = json.loads(suite.read_text().splitlines()[0])
    long = tmp_path / "long.jsonl"
    long.write_text("".join(json.dumps({**case, "id": str(i)}) + "\n" for i in range(3000)))
    args = ["--model", str(tiny_base), "--suite", str(long), "--json", str(tmp_path / "out.json")]
    process = subprocess.Popen(
        [sys.executable, "-m", "punie_mlx", "eval", *args],
        env={**ENV, "TMPDIR": str(scratch)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    deadline = time.monotonic() + 60
    while not (pids := children(process.pid)) and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(5)  # into the cases
    return process, pids


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_evaluation_leaves_no_server_and_no_result(tmp_path, tmp_path_factory, tiny_base, suite, sign):
    scratch = tmp_path_factory.mktemp("scratch")
    process, pids = _start_eval(tmp_path, scratch, tiny_base, suite)
    assert len(pids) == 1 and process.poll() is None
    process.send_signal(sign)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == (-sign if sign == signal.SIGKILL else 130), stderr
    assert gone(pids[0])
    # No result, but what was finished, from which the same command goes on.
    assert sorted(p.name for p in tmp_path.iterdir()) == ["long.jsonl", "out.json.partial.jsonl"]
    if sign == signal.SIGINT:
        assert b"the same command goes on from there" in stderr
        assert list(scratch.glob("punie-mlx-*")) == []


def test_pydantic_ai_streamed_and_not(server):
    """The same words both ways, through a plain PydanticAI agent with a plain Python tool."""
    _, ready = server

    async def both():
        async with connect(ready.url, 60) as client:
            model = OpenAIChatModel(ready.model, provider=OpenAIProvider(openai_client=client), profile=PROFILE)
            agent = Agent(model, retries=0, model_settings={"temperature": 0, "max_tokens": 200})

            @agent.tool
            def read_file(ctx: RunContext[None], path: str) -> str:
                """Read a file"""
                return "amber"

            whole = await agent.run("What is dependency injection and when should I use it?")
            async with agent.run_stream("What is dependency injection and when should I use it?") as stream:
                pieces = [p async for p in stream.stream_text(delta=True, debounce_by=None)]
            return whole.output, pieces

    whole, pieces = asyncio.run(both())
    assert whole.strip() and "".join(pieces).strip() == whole.strip()
    assert len(pieces) > 1
