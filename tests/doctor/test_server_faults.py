"""A server that is wrong in one thing is told so by one check, with the flag to change."""

from __future__ import annotations

import copy
import json
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from punie_mlx.doctor import server_causes
from punie_mlx.doctor.findings import Examined, examine
from punie_mlx.doctor.server_answer import streamed
from punie_mlx.doctor.server_checks import CHECKS
from punie_mlx.doctor.server_client import Reply, base_url
from punie_mlx.doctor.server_session import ask
from punie_mlx.errors import ConfigError, InputError

from . import misconfigured
from .misconfigured import Refused, running

Json = dict[str, Any]
HERMES = '<tool_call>\n{"name": "look_up_orbit", "arguments": {"satellite": "Zeeland-71"}}\n</tool_call>'


def examined(**options: Any) -> Examined:
    with running(**options) as (url, _):
        return examine(ask(url, timeout=20), CHECKS)


def message(made: Json) -> Json:
    return made["choices"][0]["message"]


def text_instead(text: str) -> Callable[[Json, Json], Json]:
    """All calls come as `text`."""

    def twist(body: Json, made: Json) -> Json:
        if message(made).get("tool_calls"):
            made["choices"][0] = {"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        return made

    return twist


def no_auto(body: Json, made: Json) -> Json:
    if body.get("tools") and body.get("tool_choice", "auto") == "auto":
        raise Refused(400, '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set')
    return made


def no_jinja(body: Json, made: Json) -> Json:
    if body.get("tools"):
        raise Refused(500, "tools param requires --jinja flag")
    return made


def no_tools_in_prompt(body: Json, made: Json) -> Json:
    made["usage"]["prompt_tokens"] = misconfigured.words([body["messages"], None])
    return made


def no_results_in_prompt(body: Json, made: Json) -> Json:
    shown = [m for m in body["messages"] if m["role"] != "tool"]
    made["usage"]["prompt_tokens"] = misconfigured.words([shown, body.get("tools")])
    return made


def null_content_refused(body: Json, made: Json) -> Json:
    if any(m["role"] == "assistant" and m["content"] is None for m in body["messages"]):
        raise Refused(500, "jinja2.exceptions.UndefinedError: can only concatenate str")
    return made


def unparsed(body: Json, made: Json) -> Json:
    if "Tolmin" in str(body["messages"]):
        made["choices"][0] = {"message": {"role": "assistant", "content": None}, "finish_reason": "tool_calls"}
    return made


def empty(body: Json, made: Json) -> Json:
    if "Tolmin" in str(body["messages"]):
        made["choices"][0]["message"]["content"] = ""
    return made


def one_id(body: Json, made: Json) -> Json:
    for call in message(made).get("tool_calls", ()):
        call["id"] = "call_x"
    return made


def arguments_as_object(body: Json, made: Json) -> Json:
    for call in () if body.get("stream") else message(made).get("tool_calls", ()):
        call["function"]["arguments"] = json.loads(call["function"]["arguments"])
    return made


def no_name(body: Json, made: Json) -> Json:
    for call in () if body.get("stream") else message(made).get("tool_calls", ()):
        call["function"]["name"] = {"look": "up"}
    return made


def space_beside(body: Json, made: Json) -> Json:
    if message(made).get("tool_calls"):
        message(made)["content"] = "\n\n"
    return made


def choice_ignored(*ignored: Any) -> Callable[[Json, Json], Json]:
    """`tool_choice` counts for nothing where it is one of these."""

    def twist(body: Json, made: Json) -> Json:
        choice = body.get("tool_choice")
        named = "named" if isinstance(choice, dict) else choice
        return misconfigured.answer({**body, "tool_choice": "auto"}) if named in ignored else made

    return twist


def parallel_ignored(body: Json, made: Json) -> Json:
    return misconfigured.answer({k: v for k, v in body.items() if k != "parallel_tool_calls"})


def only_the_last(body: Json, made: Json) -> Json:
    if message(made).get("tool_calls"):
        message(made)["tool_calls"] = message(made)["tool_calls"][-1:]
    return made


def converted(body: Json, made: Json) -> Json:
    for call in message(made).get("tool_calls", ()):
        values = json.loads(call["function"]["arguments"])
        changed = {"harbour_code": 4109, "remark": None, "berth": 9007199254740992}
        given = {**values, **{k: v for k, v in changed.items() if k in values}}
        call["function"]["arguments"] = json.dumps(given)
    return made


def ends_at_marker(body: Json, made: Json) -> Json:
    for call in message(made).get("tool_calls", ()):
        values = json.loads(call["function"]["arguments"])
        given = {k: v.partition("</tool_call>")[0] if isinstance(v, str) else v for k, v in values.items()}
        call["function"]["arguments"] = json.dumps(given)
    return made


def thinking_shown(body: Json, made: Json) -> Json:
    if message(made)["content"]:
        message(made)["content"] = f"<think>\nWell.\n</think>\n{message(made)['content']}"
    return made


def cut_is_lost(body: Json, made: Json) -> Json:
    if made["choices"][0]["finish_reason"] == "length" and body.get("tools"):
        message(made)["content"] = None
    return made


def format_ignored(body: Json, made: Json) -> Json:
    if body.get("response_format"):
        message(made)["content"] = "Sure: it is Ostrava-3."
    return made


def nulls_refused(body: Json, made: Json) -> Json:
    if None in body.values():
        raise Refused(400, "top_p: must be a number")
    return made


def control_encoded(body: Json, made: Json) -> Json:
    text = str(body["messages"])
    made["usage"]["prompt_tokens"] -= text.count("<|im_end|>") * (len("<|im_end|>") - 1)
    return made


def huge_fails(body: Json, made: Json) -> Json:
    if (body.get("max_tokens") or 0) > 10**6:
        raise Refused(500, "out of memory")
    return made


def delta(change: Callable[[Json], None]) -> Callable[[Json, list[Json]], list[Json]]:
    """`change` is made to each part of a call."""

    def twist(body: Json, made: list[Json]) -> list[Json]:
        out = copy.deepcopy(made)
        for chunk in out:
            for part in chunk["choices"][0]["delta"].get("tool_calls", ()):
                change(part)
        return out

    return twist


def name_again(part: Json) -> None:
    part["function"]["name"] = "look_up_orbit"


def no_index(part: Json) -> None:
    del part["index"]


def no_finish(body: Json, made: list[Json]) -> list[Json]:
    return made[:-1]


@dataclass(frozen=True)
class Fault:
    """options: of the server; check: that must name it, and no other; says: what finding and remedy must say."""

    check: str
    says: tuple[str, ...]
    options: dict[str, Any] = field(default_factory=dict)


FAULTS = {
    "auto is off": Fault("server-tools-refused", ("--enable-auto-tool-choice --tool-call-parser",), {"whole": no_auto}),
    "no jinja": Fault("server-tools-refused", ("`--jinja`",), {"whole": no_jinja, "owner": "llamacpp"}),
    "wrong parser": Fault("server-call-as-text", ("--tool-call-parser hermes",), {"whole": text_instead(HERMES)}),
    "wrong parser of SGLang": Fault(
        "server-call-as-text", ("--tool-call-parser qwen25",), {"whole": text_instead(HERMES), "owner": "sglang"}
    ),
    "call in a fence": Fault(
        "server-call-as-text",
        ("describes its call in text", "--probe"),
        {"whole": text_instead('```json\n{"name": "look_up_orbit", "arguments": {"satellite": "Zeeland-71"}}\n```')},
    ),
    "prose": Fault("server-plain-call", ("--probe",), {"whole": text_instead("I have no tools.")}),
    "tools left out": Fault("server-tools-in-prompt", ("stale", "--chat-template FILE"), {"whole": no_tools_in_prompt}),
    "results left out": Fault("server-history", ("the results of tools",), {"whole": no_results_in_prompt}),
    "content null": Fault("server-second-turn", ("null", "--chat-template"), {"whole": null_content_refused}),
    "empty tool_calls": Fault("server-call-lost", ("tool_calls is empty",), {"whole": unparsed}),
    "text lost": Fault("server-call-lost", ("shows none of them",), {"whole": empty}),
    "one id": Fault("server-call-shape", ("same id",), {"whole": one_id}),
    "arguments as object": Fault("server-call-shape", ("no string",), {"whole": arguments_as_object}),
    "space beside": Fault("server-beside-call", ("white space",), {"whole": space_beside}),
    "none ignored": Fault("server-choice-none", ("tool_choice",), {"whole": choice_ignored("none")}),
    "required ignored": Fault("server-choice-required", ("0.8.3",), {"whole": choice_ignored("required")}),
    "named ignored": Fault("server-choice-named", ("no call came",), {"whole": choice_ignored("named")}),
    "parallel ignored": Fault("server-parallel", ("parallel_tool_calls",), {"whole": parallel_ignored}),
    "only the last": Fault("server-parallel", ("only the second",), {"whole": only_the_last}),
    "converted": Fault("server-typed-arguments", ("berth, harbour_code, remark", "null"), {"whole": converted}),
    "ends at a marker": Fault("server-markers-in-text", ("ends the call",), {"whole": ends_at_marker}),
    "thinking shown": Fault("server-reasoning", ("--reasoning-parser",), {"whole": thinking_shown}),
    "cut call lost": Fault("server-cut-call", ("is lost",), {"whole": cut_is_lost}),
    "format ignored": Fault("server-response-format", ("not kept",), {"whole": format_ignored}),
    "nulls refused": Fault("server-null-parameters", ("top_p",), {"whole": nulls_refused}),
    "control tokens": Fault("server-control-tokens", ("<|im_end|>",), {"whole": control_encoded}),
    "huge fails": Fault("server-large-limit", ("500",), {"whole": huge_fails}),
    "name again": Fault("server-streamed-call", ("name of a call comes again",), {"parts": delta(name_again)}),
    "no index": Fault("server-streamed-call", ("no index",), {"parts": delta(no_index)}),
    "no finish": Fault("server-streamed-call", ("no part of the stream",), {"parts": no_finish}),
    "no done": Fault("server-streamed-call", ("without [DONE]",), {"done": False}),
    "cors": Fault("server-cross-origin", ("--allowed-origins",), {"headers": {"Access-Control-Allow-Origin": "*"}}),
    "no models": Fault("server-models", ("no models",), {"models": []}),
    "two models": Fault("server-models", ("2 models",), {"models": [{"id": "good"}, {"id": "other"}]}),
}


def test_a_good_server_gives_no_finding() -> None:
    with running() as (url, bodies):
        session = ask(url, timeout=20)
        found = examine(session, CHECKS)
    assert found.findings == ()
    assert dict(found.skipped).keys() == {"server-wrong-format", "server-reasoning"}
    assert session.facts()["kind"] == "vLLM" and session.requests == len(bodies) + 4  # the list twice, two no bodies
    assert session.requests < 60
    assert max(b.get("max_tokens") or 0 for b in bodies if not b.get("stream")) <= 1024
    for body in bodies:  # what is known to kill a server
        assert "top_k" not in body and not body.get("logit_bias")
        assert all(isinstance(s, str) for s in body.get("stop") or ())
        assert (body.get("max_tokens") or 0) <= 1024 or (body["stream"] and body["stop"])


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_named_by_its_own_check_and_no_other(name: str) -> None:
    fault = FAULTS[name]
    found = examined(**fault.options)
    assert [f.check for f in found.findings if f.check != fault.check] == []
    (finding, *_) = found.findings
    told = f"{finding.summary}\n{finding.evidence}\n{finding.remedy}"
    assert all(s in told for s in fault.says), told
    assert finding.remedy.startswith("Likely cause: ")


def test_names_that_are_no_strings() -> None:
    found = [f.check for f in examined(whole=no_name).findings]
    assert found == ["server-call-shape", "server-choice-named"]


def test_an_unknown_model_is_told_by_who_answers_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    strict = misconfigured.check

    def lax(body: Json) -> None:
        strict({k: v for k, v in body.items() if k != "model"})

    monkeypatch.setattr(misconfigured, "check", lax)
    assert [f.check for f in examined().findings] == ["server-unknown-model"]


def test_nonsense_that_is_answered_with_500(monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(body: Json) -> None:
        if not isinstance(body.get("messages"), list) or isinstance(body.get("tools"), str):
            raise Refused(500, "AttributeError")
        if body.get("model") != "good" or isinstance(body["messages"][0].get("content"), list):
            raise Refused(404, "no")

    monkeypatch.setattr(misconfigured, "check", crash)
    found = {f.check: f for f in examined().findings}
    assert "server-bad-request" in found and "HTTP 500" in found["server-bad-request"].evidence


def test_a_server_that_gives_no_answers_is_not_asked_all() -> None:
    def silent(body: Json, made: Json) -> Any:
        raise ConnectionError

    with running(whole=silent) as (url, bodies):
        found = examine(ask(url, timeout=20), CHECKS)
    severities = {f.check: f.severity for f in found.findings}
    assert severities["server-plain-call"] == "high" and severities["server-still-answers"] == "high"
    assert ("server-history", "the server gives no answers") in found.skipped
    assert sum("tools" in b for b in bodies) <= 3


# ---- asking ----


def test_where_nothing_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
    with pytest.raises(InputError, match="nothing answers"):
        ask(f"http://127.0.0.1:{port}", timeout=2)


@pytest.mark.parametrize(
    "url", ["ftp://x", "http://", "http://h:x/v1", "", "http://[::1", "http://a b", "http://h/\u00e9"]
)
def test_what_is_no_address(url: str) -> None:
    with pytest.raises(ConfigError, match="no address"):
        ask(url)


def test_addresses_as_users_write_them() -> None:
    assert base_url("127.0.0.1:8080") == "http://127.0.0.1:8080/v1"
    assert base_url("http://h/api/v1/") == "http://h/api/v1"
    assert base_url("http://h/v1/chat/completions") == "http://h/v1"
    assert base_url("http://h") == base_url("http://h/") == base_url("http://h/v1") == "http://h/v1"


def test_a_password_in_an_address_is_not_told() -> None:
    assert base_url("http://me:hunter2@h/v1") == "http://h/v1"
    with pytest.raises(ConfigError) as error:
        base_url("ftp://me:hunter2@h/v1")
    assert "hunter2" not in str(error.value) and "h/v1" in str(error.value)


def test_an_address_with_and_without_its_path() -> None:
    with running() as (url, _):
        for given in (url, url.removesuffix("/v1"), url.removesuffix("/v1").removeprefix("http://")):
            assert ask(given, timeout=5).model == "good"


def test_a_key_that_is_missing() -> None:
    with running(key="secret-5") as (url, _):
        with pytest.raises(ConfigError, match="--api-key"):
            ask(url, timeout=5)
        assert ask(url, None, "secret-5", 5).model == "good"


@pytest.mark.parametrize("key", ["two words", "a\nb", "schl\u00fcssel", "secret-5\r"])
def test_a_key_that_no_header_carries_is_not_shown(key: str) -> None:
    with pytest.raises(ConfigError, match="API key") as error:
        ask("http://127.0.0.1:1", api_key=key, timeout=2)
    assert key not in str(error.value)


def test_a_key_that_a_server_repeats_is_not_shown() -> None:
    key = "secret-key-of-71"

    def repeats(body: Json, made: Json) -> Json:
        raise Refused(400, f"no tools for the key {key} " + "or another one " * 10 + key[:12] + key)

    with running(whole=repeats, key=key) as (url, _):
        session = ask(url, None, key, 20)
        found = examine(session, CHECKS)
        with pytest.raises(ConfigError) as error:
            ask(url, None, "another-key", 5)
    assert "[the key]" in str([f.to_json() for f in found.findings])
    told = f"{found.to_json()} {session.facts()} {error.value}"
    assert key not in told and key[-12:] not in told and "another-key" not in told


def test_pages_without_the_key_are_refused_by_it() -> None:
    with running(key="secret-5", headers={"Access-Control-Allow-Origin": "*"}) as (url, _):
        found = examine(ask(url, None, "secret-5", 20), CHECKS)
    assert [f.check for f in found.findings] == []


def test_a_line_of_a_stream_ends_where_the_protocol_says() -> None:
    text = "one\u2028two\x85three"
    data = json.dumps(
        {"error": None, "choices": [{"delta": {"content": text}, "finish_reason": "stop"}]}, ensure_ascii=False
    )
    reply = Reply(200, {"content-type": "text/event-stream"}, f"data: {data}\r\n\r\ndata: [DONE]\n\n")
    answer = streamed({}, reply)
    assert answer.content == text and answer.faults == ()


# ---- the tables ----


def test_each_check_has_a_page(root: Path) -> None:
    pages = root / "punie_mlx" / "doctor" / "explained"
    ids = [c.id for c in CHECKS]
    assert len(set(ids)) == len(ids)
    for id in ids:
        lines = (pages / f"{id}.md").read_text(encoding="utf-8").splitlines()
        assert lines[0].startswith(f"# {id}: ") and 8 <= len(lines) <= 20, id


def test_each_cause_says_what_to_change_on_each_server() -> None:
    kinds = (*server_causes.OWNERS.values(), server_causes.STOCK, server_causes.OTHER)
    for cause in server_causes.CAUSES:
        for kind in kinds:
            told = server_causes.remedy(cause, kind, "hermes")
            assert "{" not in told and "To change: ." not in told, told


def test_the_format_of_a_text_is_the_one_that_would_write_it() -> None:
    tools = [{"type": "function", "function": {"name": "look_up_orbit", "parameters": {
        "type": "object", "properties": {"satellite": {"type": "string"}}}}}]  # fmt: skip
    xml = "<tool_call>\n<function=look_up_orbit>\n<parameter=satellite>\nX-1\n</parameter>\n</function>\n</tool_call>"
    assert server_causes.written_as(xml, tools, exactly=True)[0] == "qwen3_coder"
    assert "hermes" not in server_causes.written_as(xml, tools, exactly=True)
    assert "hermes" in server_causes.written_as(HERMES, tools, exactly=True)
    assert "qwen3_coder" not in server_causes.written_as(HERMES, tools, exactly=True)
    assert server_causes.written_as(f"```xml\n{xml}\n```", tools) == ()
    assert server_causes.written_as("No call of look_up_orbit.", tools) == ()
