"""Prompts without the tools, servers that do not tell, responses of another model: records made by hand."""

from __future__ import annotations

import asyncio
import json

import pytest

from punie_mlx.errors import FingerprintError, ModelError
from punie_mlx.evals import sanity
from punie_mlx.evals.recorded import connect

from .conftest import says
from .made import made_case

NAMES = ("read_file", "write_file")
TOOLS = [{"type": "function", "function": {"name": n, "parameters": {"type": "object"}}} for n in NAMES]
OURS, OTHER = "a" * 64, "b" * 64


def exchange(prompt=None, tokens=50, tools=TOOLS, response=None):
    """One exchange; `prompt` is what the server says that it showed the model, in pieces."""
    trace = {"prompt": [[i, text] for i, text in enumerate(prompt)], "output": []} if prompt is not None else None
    request = {"model": "m", "messages": [{"role": "user", "content": "Read it"}], "tools": tools}
    usage = {"prompt_tokens": tokens, "completion_tokens": 1} if tokens else None
    return {"at": 0.0, "seconds": 0.1, "status": 200, "request": request, "response": response, "usage": usage,
            "finish_reason": "stop", "trace": trace}  # fmt: skip


def records(*exchanges, query="Read it"):
    return [made_case(True, "1", trajectory=list(exchanges), query=query)]


def test_tools_in_the_prompt_are_found_across_tokens():
    assert sanity.check(records(exchange(["{read_", "file} {", "write_file", "} Read it"]))) == []


@pytest.mark.parametrize(
    ("prompt", "holds"),
    [(["Read it"], "holds none"), (["read_file Read it"], r"holds 1 \(it lacks write_file\)")],
)
def test_tools_that_the_template_drops_end_the_run(prompt, holds):
    with pytest.raises(ModelError, match=f"case 1: of 2 offered tools the model's prompt {holds}") as e:
        sanity.check(records(exchange(prompt)))
    assert e.value.exit_code == 2 and "chat template" in str(e.value)
    [warning] = sanity.check(records(exchange(prompt)), allow=True)
    assert "offered tools" in warning


def test_any_exchange_is_looked_at():
    with pytest.raises(ModelError):
        sanity.check(records(exchange(["read_file write_file Read it"]), exchange(["Read it"])))


def test_cases_without_tools_say_nothing():
    assert sanity.check(records(exchange(["Why?"], tools=[]))) == []
    assert sanity.check([made_case(True, "1")]) == []


def test_where_nothing_tells_that_is_said():
    assert sanity.check(records(exchange())) == [sanity.NOT_TOLD]
    assert sanity.check(records(exchange(tokens=None)), bare=20) == [sanity.NOT_TOLD]


def test_the_number_of_tokens_tells():
    assert sanity.check(records(exchange(tokens=50)), bare=20) == []
    with pytest.raises(ModelError, match="has 50 tokens with the 2 offered tools and 50 without them"):
        sanity.check(records(exchange(tokens=50)), bare=50)
    with pytest.raises(ModelError, match="a prompt of 1 tokens cannot hold the names of 2 tools"):
        sanity.check(records(exchange(tokens=1)))


def test_a_query_that_the_prompt_does_not_hold():
    prompt = ["read_file write_file"]
    [warning] = sanity.check(records(exchange(prompt), query="Summarize everything"))
    assert "no word of the query" in warning
    assert sanity.check(records(exchange(prompt), query="Hi")) == []


def test_a_trace_that_was_cut_tells_nothing():
    one = exchange()
    one["trace"] = {"cut": True, "bytes": 2_000_000, "text": '{"prompt": ['}
    assert sanity.check(records(one)) == [sanity.NOT_TOLD]


def test_each_response_names_its_model():
    good, bad = ({"system_fingerprint": f} for f in (OURS, OTHER))
    sanity.same_model(records(exchange(response=good), exchange(response=good)), OURS)
    with pytest.raises(FingerprintError, match=f"case 1 was answered by another model .{OTHER}. than") as e:
        sanity.same_model(records(exchange(response=good), exchange(response=bad)), OURS)
    assert e.value.exit_code == 3


def test_fingerprints_of_others_are_none_of_ours():
    for response in ({"system_fingerprint": "fp_44709d6fcb"}, {"system_fingerprint": None}, {}, "cut", None):
        sanity.same_model(records(exchange(response=response)), OURS)


def test_the_prompt_without_tools_is_asked_for(scripted):
    """Once, for one token, without the tools; not where the prompt is known."""

    async def ask(record):
        async with connect(scripted.url, 10) as client:
            return await sanity.bare_tokens(client, record)

    scripted.reply = lambda body: says("x")
    bare = asyncio.run(ask(records(exchange())[0]))
    [body] = scripted.requests
    assert bare == len(json.dumps(body)) // 4  # what the server says that it read
    assert "tools" not in body and body["max_tokens"] == 1 and body["messages"][0]["content"] == "Read it"
    assert asyncio.run(ask(records(exchange(["read_file"]))[0])) is None
    assert asyncio.run(ask(made_case(True, "1"))) is None and len(scripted.requests) == 1
    scripted.reply = lambda body: 500
    assert asyncio.run(ask(records(exchange())[0])) is None
