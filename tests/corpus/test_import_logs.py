"""A user's logs become cases that expect what was done; what is no use is counted, what is private can be replaced."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from punie_mlx.cli import app
from punie_mlx.corpus.suite import Case, read_suite
from punie_mlx.corpus.suites.logs import Imported, import_logs
from punie_mlx.corpus.suites.redact import Redactor
from punie_mlx.errors import DataError
from punie_mlx.evals.agent import Call, Run
from punie_mlx.evals.score import score

TOOL = {
    "type": "function",
    "function": {
        "name": "mail",
        "description": "Send a mail",
        "parameters": {
            "type": "object",
            "properties": {"to": {"type": "string"}, "times": {"type": "integer"}},
            "required": ["to"],
        },
    },
}
USER = {"role": "user", "content": "Mail Ann"}


def call(name: str = "mail", arguments: Any = None) -> dict[str, Any]:
    given = {"to": "ann"} if arguments is None else arguments
    text = given if isinstance(given, str) else json.dumps(given)
    return {"id": "c1", "type": "function", "function": {"name": name, "arguments": text}}


def response(*calls: dict[str, Any], content: str | None = None, finish: str = "stop") -> dict[str, Any]:
    message = {"role": "assistant", "content": content, **({"tool_calls": list(calls)} if calls else {})}
    return {"id": "x", "choices": [{"index": 0, "message": message, "finish_reason": finish}], "usage": {}}


def asked(*messages: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"model": "m", "messages": list(messages or [USER]), "tools": [TOOL], **more}


def line(answer: Any, request: Any = None) -> dict[str, Any]:
    return {"request": request or asked(), "response": answer}


def log(path: Path, *rows: Any) -> Path:
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
    return path


def cases_of(made: Imported) -> list[Case]:
    return [Case.model_validate(c) for c in made.cases]


def sse(*deltas: dict[str, Any], finish: str | None = "tool_calls") -> str:
    events = [{"choices": [{"index": 0, "delta": d, "finish_reason": None}]} for d in deltas]
    if finish:
        events.append({"choices": [{"index": 0, "delta": {}, "finish_reason": finish}]})
    return ": hello\n\n" + "".join(f"data: {json.dumps(e)}\n\n" for e in events) + "data: [DONE]\n\n"


def piece(arguments: str, name: str | None = None, index: int = 0) -> dict[str, Any]:
    return {"tool_calls": [{"index": index, "function": {"arguments": arguments, **({"name": name} if name else {})}}]}


@pytest.mark.parametrize(
    "entry",
    [
        line(response(call())),
        {"request": json.dumps(asked()), "response": json.dumps(response(call(), finish="tool_calls"))},
        line(sse({"role": "assistant"}, piece("", "mail"), piece('{"to": '), piece('"ann"}'))),
        {"messages": [USER, {"role": "assistant", "content": "", "tool_calls": [call()]}], "tools": [TOOL]},
    ],
)
def test_each_form_gives_the_call_that_was_made(tmp_path: Path, entry: dict[str, Any]) -> None:
    made = import_logs(log(tmp_path / "log.jsonl", entry))
    (case,) = cases_of(made)
    assert case.query == "Mail Ann" and case.source == "log log.jsonl:1" and case.id == "log-0001"
    assert case.expect.turns == "first" and case.expect.execution == "any" and case.category == "one call"
    assert [(c.name, c.arguments) for c in case.expect.calls] == [("mail", {"to": "ann"})]
    assert score(case, Run(calls=[Call(1, "1", "mail", {"to": "ann"})], answer="Done")).passed
    assert not score(case, Run(calls=[Call(1, "1", "mail", {"to": "bob"})], answer="Done")).passed
    assert not score(case, Run(answer="Done")).passed


def test_a_stream_of_two_calls_and_one_of_words(tmp_path: Path) -> None:
    two = sse(piece('{"to": "ann"}', "mail"), piece('{"to":', "mail", 1), piece('"bob"}', index=1))
    words = sse({"content": "Which "}, {"content": "Ann?"}, finish="stop")
    other = asked({"role": "user", "content": "Mail somebody"})
    made = import_logs(log(tmp_path / "log.jsonl", line(two), line(words, other)))
    first, second = cases_of(made)
    assert [c.arguments for c in first.expect.calls] == [{"to": "ann"}, {"to": "bob"}]
    assert first.category == "several calls"
    assert second.alternatives == [[]] and second.category == "no call"


def test_conversations_keep_their_history(tmp_path: Path) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        USER,
        {"role": "assistant", "content": None, "tool_calls": [call()]},
        {"role": "tool", "tool_call_id": "c1", "content": "sent"},
        {"role": "assistant", "content": "Done."},
        {"role": "user", "content": [{"type": "text", "text": "And Bob"}]},
        {"role": "assistant", "tool_calls": [call(arguments={"to": "bob", "times": 2})]},
    ]
    made = import_logs(log(tmp_path / "log.jsonl", {"messages": messages, "tools": [TOOL]}))
    first, last = cases_of(made)
    assert first.system == "Be brief." and first.query == "Mail Ann"
    assert last.query == "And Bob" and len(last.conversation) == 6
    assert last.expect.calls[0].arguments == {"to": "bob", "times": 2}
    assert made.turns == 3 and sum(map(len, made.skipped.values())) == 1  # the answer to the tool's result


def test_duplicates_are_folded_and_other_answers_are_as_good(tmp_path: Path) -> None:
    bob = line(response(call(arguments={"to": "bob"})))
    entries = [line(response(call())), line(response(call())), bob, bob, line(response(content="Which Ann?"))]
    made = import_logs(log(tmp_path / "log.jsonl", *entries))
    (case,) = cases_of(made)
    assert made.turns == 5 and made.folded == 4 and len(made.answered_differently) == 2
    alternatives = [[c.arguments for c in calls] for calls in case.alternatives]
    assert alternatives == [[{"to": "ann"}], [{"to": "bob"}], []]
    assert case.expect.turns == "first" and case.expect.execution == "any"


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ("{", "not JSON"),
        ({"prompt": "x"}, "neither"),
        (line({"error": {"message": "no"}}), "the response is an error"),
        ({**line(response(call())), "status": 500}, "the response is an error"),
        (line({"detail": "no"}), "the response is an error"),
        (line({"choices": []}), "the response has no choices"),
        (line("<html>"), "the response is no JSON"),
        (line(None), "there is no response"),
        (line(sse({"content": "He"}, finish=None)), "the answer did not end by itself (finish_reason no end)"),
        (line('data: {"error": {"message": "x"}}\n\n'), "the response is an error"),
        (line("data: {\n\n"), "the stream holds an event that is no JSON"),
        (line(response(call(), finish="length")), "the answer was cut off (finish_reason length)"),
        (line(response(content="x", finish="content_filter")), "did not end by itself (finish_reason content_filter)"),
        (line(response(content=" ")), "the answer is empty"),
        (line(response(call(arguments='{"to": '))), "a call has arguments that are no JSON"),
        (line(response(call(arguments="[1]"))), "a call has arguments that are no object"),
        (line(response(call("fax"))), "a tool was called that was not offered"),
        (line(response(call(arguments={"to": 1}))), "a call breaks the schema of its own tool"),
        (line(response(call(arguments={"to": "a", "cc": "b"}))), "a call breaks the schema of its own tool"),
        (line(response(content="x"), {"messages": [USER]}), "no tools were offered"),
        (line(response(call()), asked(USER, tool_choice="required")), "tool_choice was required, which no case"),
        (line(response(call()), {"tools": [TOOL]}), "the request has no list of messages"),
        (line(response(call()), "{"), "the request is no JSON"),
        (line(response(call()), asked({"role": "user", "content": ""})), "the user's message is empty"),
        (line(response(call()), asked({"role": "user", "content": [{"type": "image_url"}]})), "more than text"),
        (line(response(call()), asked(USER, {"role": "assistant", "content": "x"})), "a case ends with a user's"),
        (line(response(call()), {**asked(), "tools": [TOOL, TOOL]}), "it is no case: two tools have the same name"),
        ({"messages": [USER], "tools": [TOOL]}, "the conversation holds no answer"),
        ({"messages": "x", "tools": [TOOL]}, "`messages` is no list of messages"),
    ],
)
def test_what_is_no_use_is_listed_with_its_reason(tmp_path: Path, entry: Any, reason: str) -> None:
    made = import_logs(log(tmp_path / "log.jsonl", line(response(call())), entry))
    assert len(made.cases) == 1
    ((told, places),) = made.skipped.items()
    assert reason in told and places == ["log.jsonl:2"]


@pytest.mark.parametrize("odd", [None, 1, "x", [1], {"a": 1}, [None], [[]]])
def test_whatever_a_log_holds_is_no_crash(tmp_path: Path, odd: Any) -> None:
    """Each value of an entry in turn is something odd."""
    request = {"messages": [USER], "tools": [TOOL]}
    message = {"role": "assistant", "content": None, "tool_calls": [call()]}
    response = {"choices": [{"index": 0, "message": message, "finish_reason": "tool_calls"}]}
    delta = {"content": "x", "tool_calls": [{"index": 0, "function": call()["function"]}]}
    event = {"choices": [{"index": 0, "delta": delta, "finish_reason": "tool_calls"}]}
    good = {"request": request, "response": response}
    entries = [*spoilt(good, odd), *spoilt({"messages": [USER, message], "tools": [TOOL]}, odd)]
    entries += [{**good, "response": f"data: {json.dumps(one)}"} for one in spoilt(event, odd)]
    path = tmp_path / "log.jsonl"
    path.write_text("".join(json.dumps(e) + "\n" for e in [good, *entries]))
    made = import_logs(path)
    assert made.turns >= 1 and sum(map(len, made.skipped.values())) > 10
    assert made.turns <= len(entries) + 1


def spoilt(value: Any, odd: Any) -> list[Any]:
    """`value` once for each value inside it, which is `odd` instead."""
    inside: Any = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found = []
    for key, below in inside:
        for one in [odd, *spoilt(below, odd)]:
            copy = value.copy()
            copy[key] = one
            found.append(copy)
    return found


def test_our_own_results_are_logs(tmp_path: Path) -> None:
    exchange = {"status": 200, "request": asked(), "response": response(call())}
    tool = {"role": "tool", "tool_call_id": "c1", "content": "sent"}
    asks = {"role": "assistant", "content": None, "tool_calls": [call()]}
    second = {"status": 200, "request": asked(USER, asks, tool), "response": response(content="Done")}
    cases = [{"id": "a", "trajectory": [exchange, second]}, {"id": "b", "trajectory": None}]
    path = tmp_path / "run.json"
    path.write_text(json.dumps({"kind": "evaluation", "format": 2, "cases": cases}, indent=1))
    made = import_logs(path)
    assert [c["source"] for c in made.cases] == ["log run.json: case a, exchange 1"]
    assert made.turns == 3
    assert made.skipped["the eval result keeps no trajectory of the case"] == ["case b"]


@pytest.mark.parametrize("content", ["", "\n", "a,b\n1,2\n", '{"kind": "other"}\n'])
def test_what_is_no_log_is_an_error(tmp_path: Path, content: str) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(content)
    with pytest.raises(DataError, match="holds nothing that looks like a log: give lines of"):
        import_logs(path)
    with pytest.raises(DataError, match="cannot be read"):
        import_logs(tmp_path / "none.jsonl")


# ---- redaction ----

KEY = "sk-proj-Ab3dE6gH9jK2mN5pQ8sT"
SECRETS = ("ann@firm.example", "Ann@Firm.example", "/home/ann", "/Users/ann", KEY, "0123456789abcdef0123456789abcdef")


def test_what_is_private_is_replaced_the_same_everywhere(tmp_path: Path) -> None:
    text = f"Mail ann@firm.example the file /home/ann/notes.md with key {KEY}"
    entry = line(response(call(arguments={"to": "Ann@Firm.example"})), asked({"role": "user", "content": text}))
    made = import_logs(log(tmp_path / "log.jsonl", entry), redact=True)
    (case,) = cases_of(made)
    assert case.query == "Mail user1@example.com the file /home/user1/notes.md with key redacted_token_1"
    assert case.expect.calls[0].arguments == {"to": "user1@example.com"}
    assert made.redacted == {"e-mail addresses": 2, "home directories": 1, "tokens": 1}
    assert not any(s in json.dumps(made.cases) for s in SECRETS)
    assert case.query != cases_of(import_logs(tmp_path / "log.jsonl"))[0].query


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a@b.example, c@d.example and a@b.example", "user1@example.com, user2@example.com and user1@example.com"),
        ("/Users/ann/x and /home/ann and /home/bob", "/Users/user1/x and /home/user1 and /home/user2"),
        (r"C:\Users\ann\x or C:\\Users\\ann\\x", r"C:\Users\user1\x or C:\\Users\\user1\\x"),
        (f"key={SECRETS[-1]};", "key=redacted_token_1;"),
        ("id 3f2504e0-4f89-41d3-9a0c-0305e82c3301", "id redacted_token_1"),
        ("Bearer dGhpc0lzQVNlY3JldDEyMzQ1Njc4OTA=", "Bearer redacted_token_1"),
        (f"{KEY} {KEY}", "redacted_token_1 redacted_token_1"),
    ],
)
def test_forms_that_are_replaced(text: str, found: str) -> None:
    assert Redactor().text(text) == found


@pytest.mark.parametrize(
    "text",
    [
        "src/amber/basil/cedar/delta/ember/fjord/models_grove.py",
        "test_the_shipped_suite_is_what_the_generator_makes",
        "PersonalAccessTokenAuthenticationHandlerFactory2",
        "/Users/Shared/x and /home/runner/work",
        "deadbeef and 12345678901234567890",
        "user@localhost, decorator @property, 3 @ 4",
        "effaceeffaceeffaceeffaceeffaceface",
    ],
)
def test_words_and_paths_stay(text: str) -> None:
    redactor = Redactor()
    assert redactor.text(text) == text and not redactor.count


def test_the_command_tells_what_it_did(tmp_path: Path) -> None:
    entries = [line(response(call())), line(response(call())), line({"error": "x"})]
    path, out = log(tmp_path / "log.jsonl", *entries), tmp_path / "mine.jsonl"
    found = CliRunner().invoke(app, ["suite", "import-logs", str(path), "--out", str(out), "--redact"])
    assert found.exit_code == 0
    for part in ("1 cases of 3 turns", "1 duplicates folded", "not used: the response is an error (1):",
                 "replaced: nothing", "review the expectations"):  # fmt: skip
        assert part in found.stdout
    assert len(read_suite(out).cases) == 1
    again = CliRunner().invoke(app, ["suite", "import-logs", str(path), "--out", str(out)])
    assert again.exit_code != 0 and re.search("exists already", str(again.exception))
    told = CliRunner().invoke(app, ["suite", "import-logs", str(path), "--out", str(out), "--overwrite", "--json"])
    assert json.loads(told.stdout)["skipped"] == {"the response is an error": ["log.jsonl:3"]}

    nothing = log(tmp_path / "errors.jsonl", line({"error": "x"}))
    found = CliRunner().invoke(app, ["suite", "import-logs", str(nothing), "--out", str(tmp_path / "no.jsonl")])
    assert (
        "can be a case (the response is an error: 1)" in str(found.exception) and not (tmp_path / "no.jsonl").exists()
    )
