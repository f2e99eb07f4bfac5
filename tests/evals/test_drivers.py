"""The drivers over real HTTP: what they send, what they put on record, and that both judge the same words alike."""

from __future__ import annotations

import copy
import json

import pytest

from punie_mlx.corpus.world import TOOLS
from punie_mlx.evals import recorded
from punie_mlx.evals.agent import AgentSettings
from punie_mlx.evals.runner import EvalConfig, evaluate

from .conftest import FINGERPRINT, call, says

HTTP = ("pydantic-ai", "openai")
OFFERED = [TOOLS[n] for n in ("read_file", "run_command", "set_threshold")]
READS = call("read_file", {"path": "a.txt"})
READ = {"calls": [{"name": "read_file", "arguments": {"path": "a.txt"}}], "answer": {"contains": ["amber"]}}
NO_CALL = {"calls": []}
HISTORY = [
    {"role": "user", "content": "Look at a.txt"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "h1", "type": "function", "function": {"name": "read_file", "arguments": '{"path": "a.txt"}'}}
        ],
    },
    {"role": "tool", "tool_call_id": "h1", "content": "amber"},
    {"role": "assistant", "content": "It says amber."},
    {"role": "user", "content": "And what does it mean?"},
]


def case(expect, id="1", **more):
    asked = {} if "messages" in more else {"query": "Read a.txt"}
    more = {"category": "c", "tools": OFFERED, "files": {"a.txt": "amber"}, **asked, **more}
    return {"id": id, "expect": expect, **more}


def run(tmp_path, scripted, *cases, through="pydantic-ai", **settings):
    path = tmp_path / "suite.jsonl"
    path.write_text("".join(json.dumps(c) + "\n" for c in cases))
    settings = {"concurrency": 1, "fingerprint": FINGERPRINT, "through": through, **settings}
    return evaluate(EvalConfig(suites=(path,), url=scripted.url, **settings))


def in_turn(*replies):
    """The reply for as many answers as the conversation holds."""

    def reply(body):
        return replies[min(len(replies) - 1, sum(m["role"] == "assistant" for m in body["messages"]))]

    return reply


def plain(messages):
    """Messages without what says nothing, and their arguments as values: clients differ in how they spell it."""
    messages = copy.deepcopy(messages)
    for function in (c["function"] for m in messages for c in m.get("tool_calls") or ()):
        function["arguments"] = json.loads(function["arguments"])
    return [{k: v for k, v in m.items() if v not in (None, "")} for m in messages]


# ---- the same words, the same verdict ----

FLIES, MISREADS = call("fly", {}, "c0"), call("read_file", "[1]", "c0")
ONCE = {"calls": READ["calls"], "turns": "first"}
WORDS = {
    "a call and the answer": (READ, [says(None, READS), says("It says amber.")]),
    "text beside a call": (READ, [says("Let me look.", READS), says("It says amber.")]),
    "wrong arguments": (READ, [says(None, call("read_file", {"path": "b.txt"})), says("amber")]),
    "two calls": (READ, [says(None, READS, call("read_file", {"path": "b"}, "c2")), says("amber")]),
    "no end": (READ, [says(None, READS)]),
    "an unknown tool": (READ, [says(None, call("fly", {})), says("amber")]),
    "an unknown tool, mended": (READ, [says(None, FLIES), says(None, READS), says("amber")]),
    "two wrong at once, mended": (READ, [says(None, FLIES, FLIES | {"id": "c9"}), says(None, READS), says("amber")]),
    "wrong, right and wrong again": (READ | {"calls": READ["calls"] * 2}, [
        says(None, MISREADS), says(None, READS), says(None, MISREADS | {"id": "c2"}), says(None, READS | {"id": "c3"}),
        says("amber")]),
    "wrong after what counts": (ONCE, [says(None, READS), says(None, FLIES), says("amber")]),
    "arguments that are no JSON": (READ, [says(None, call("read_file", '{"path": "a')), says("amber")]),
    "arguments without end": (READ, [says(None, call("read_file", "[" * 100_000)), says("amber")]),
    "arguments that are no object": (READ, [says(None, call("read_file", "[1]")), says("amber")]),
    "no arguments": ({"calls": [{"name": "run_command"}], "execution": "any"}, [says(None, call("run_command", "")),
                     says("x")]),
    "a server error": (READ, [500]),
    "a dropped connection": (READ, [None]),
    "an answer": (NO_CALL, [says("Because.")]),
    "an empty answer": (NO_CALL, [says("")]),
    "white space": (NO_CALL, [says(" \n")]),
    "cut off before a word": (NO_CALL, [says("", finish="length")]),
    "cut off in the answer": (NO_CALL, [says("Becau", finish="length")]),
    "cut off in a call": (READ, [says(None, call("read_file", '{"pa'), finish="length")]),
    "a fence": (NO_CALL, [says('```json\n{"name": "read_file", "arguments": {"path": "a.txt"}}\n```')]),
}  # fmt: skip


@pytest.mark.parametrize("retries", [0, 1])
def test_both_clients_judge_the_same_words_alike(tmp_path, scripted, retries):
    """One suite, each case with words of its own, through both; what was called and executed is the same, too."""
    first, second = (said(tmp_path, scripted, t, retries) for t in HTTP)
    keys = ("passed", "passed_with_retry", "lenient", "checks", "parse_failures", "retried", "answer", "unread_call")
    for one, other in zip(first, second, strict=True):
        assert {k: one[k] for k in keys} == {k: other[k] for k in keys}, one["id"]
        assert (one["error"] is None) is (other["error"] is None), one["id"]
        executed = [[(c["turn"], c["name"], c["result"], c["ok"]) for c in r["calls"] if c["ok"] is not None]
                    for r in (one, other)]  # fmt: skip
        assert executed[0] == executed[1], one["id"]
    assert 3 <= sum(r["passed"] for r in first) < len(first)
    assert any(r["passed_with_retry"] and not r["passed"] for r in first) is bool(retries)


def said(tmp_path, scripted, through, retries):
    """The records of `WORDS`."""
    cases = [case(expect, id=name, system=name) for name, (expect, _) in WORDS.items()]
    replies = {name: in_turn(*words) for name, (_, words) in WORDS.items()}
    scripted.reply = lambda body: replies[body["messages"][0]["content"]](body)
    agent = AgentSettings(retries=retries, request_limit=6)
    return run(tmp_path, scripted, *cases, through=through, agent=agent)["cases"]


@pytest.mark.parametrize("through", HTTP)
def test_a_first_try_is_judged_the_same_whether_or_not_there_is_a_second(tmp_path, scripted, through):
    without, allowed = (said(tmp_path, scripted, through, retries) for retries in (0, 2))
    for one, other in zip(without, allowed, strict=True):
        assert {k: one[k] for k in ("passed", "lenient")} == {k: other[k] for k in ("passed", "lenient")}, one["id"]
    assert any(r["retried"] and r["lenient"] for r in allowed)


LOOKS = [READS | {"id": f"h{i}"} for i in range(4)]
LOOKED = [
    {"role": "user", "content": "Look four times"},
    {"role": "assistant", "content": None, "tool_calls": LOOKS},
    *({"role": "tool", "tool_call_id": c["id"], "content": "amber"} for c in LOOKS),
    {"role": "assistant", "content": "It says amber."},
    {"role": "user", "content": "And what does it mean?"},
]


@pytest.mark.parametrize("through", HTTP)
def test_retries_are_seen_behind_any_history(tmp_path, scripted, through):
    """PydanticAI joins the results of one turn, so its history is shorter than what it was given. With a follow-up,
    what was asked again for the first query is counted once."""
    replies = [says(""), says("A resin."), says(""), says("Because.")]
    scripted.reply = lambda body: replies[len(scripted.requests) - 1]
    asked = case(NO_CALL, messages=LOOKED, follow_ups=["Why?"])
    [record] = run(tmp_path, scripted, asked, through=through, agent=AgentSettings(retries=1))["cases"]
    assert (record["retried"], record["passed"], record["passed_with_retry"]) == (2, False, True)


# ---- what is sent ----


@pytest.mark.parametrize("through", HTTP)
def test_a_history_is_sent_as_it_is(tmp_path, scripted, through):
    scripted.reply = lambda body: says("A fossil resin.")
    [record] = run(tmp_path, scripted, case(NO_CALL, messages=HISTORY, system="Be brief."), through=through)["cases"]
    [body] = scripted.requests
    assert plain(body["messages"]) == plain([{"role": "system", "content": "Be brief."}, *HISTORY])
    assert body["tools"] == OFFERED
    assert record["passed"] and record["query"] == "And what does it mean?" and record["calls"] == []


@pytest.mark.parametrize("through", HTTP)
def test_follow_ups_are_asked_in_the_same_conversation(tmp_path, scripted, through):
    scripted.reply = in_turn(
        says(None, READS), says("It says amber."), says(None, READS | {"id": "c2"}), says("Amber.")
    )
    wanted = {"calls": [READ["calls"][0]] * 2, "answer": {"contains": ["Amber"]}}
    asked = case(wanted, system="Be brief.", follow_ups=["Once more."])
    # Two requests are enough for each query, though not for both.
    result = run(tmp_path, scripted, asked, through=through, agent=AgentSettings(request_limit=2))
    [record] = result["cases"]
    assert record["passed"], record["reasons"]
    roles = ["system", "user", "assistant", "tool", "assistant", "user", "assistant", "tool", "assistant"]
    assert [m["role"] for m in record["messages"]] == roles
    assert record["messages"][5] == {"role": "user", "content": "Once more."}
    assert [c["turn"] for c in record["calls"]] == [1, 3] and record["answer"] == "Amber."


@pytest.mark.parametrize("through", HTTP)
def test_a_query_that_ends_badly_has_no_follow_up(tmp_path, scripted, through):
    scripted.reply = lambda body: says("")
    [record] = run(tmp_path, scripted, case(NO_CALL, follow_ups=["More?"]), through=through)["cases"]
    assert record["error"] and len(record["turns"]) == 1


@pytest.mark.parametrize("through", HTTP)
def test_a_seed_is_sent_only_where_tokens_are_drawn(tmp_path, scripted, through):
    cases = [case(NO_CALL, id=str(i)) for i in range(2)]
    run(tmp_path, scripted, *cases, through=through, seed=7)
    assert all("seed" not in r and r["temperature"] == 0 for r in scripted.requests)

    def seeds(**settings):
        scripted.requests.clear()
        agent = AgentSettings(temperature=0.7)
        result = run(tmp_path, scripted, *cases, through=through, repeats=2, agent=agent, **settings)
        sent = [r["seed"] for r in scripted.requests]
        assert sent == [c["seed"] for c in result["cases"]] and {r["temperature"] for r in scripted.requests} == {0.7}
        return sent

    first = seeds(seed=7)
    assert len(set(first)) == 4 and first == seeds(seed=7) and not set(first) & set(seeds(seed=8))


# ---- what is on record ----


@pytest.mark.parametrize("through", HTTP)
def test_the_trajectory_holds_what_went_over_the_wire(tmp_path, scripted, through):
    scripted.reply = in_turn(says(None, READS), says("It says amber."))
    [record] = run(tmp_path, scripted, case(READ), through=through)["cases"]
    assert [e["request"] for e in record["trajectory"]] == scripted.requests
    assert {{k.lower(): v for k, v in h.items()}["x-punie-trace"] for h in scripted.headers} == {"1"}
    first, second = record["trajectory"]
    assert first["response"]["choices"] == [says(None, READS)] and "punie_trace" not in first["response"]
    assert first["trace"]["prompt"] and first["status"] == 200 and first["finish_reason"] == "tool_calls"
    assert first["usage"]["completion_tokens"] == 1
    [made] = record["calls"]
    assert 0 <= first["at"] <= first["at"] + first["seconds"] <= made["at"] <= second["at"] < record["seconds"]["wall"]


@pytest.mark.parametrize("through", HTTP)
def test_what_a_server_says_beside_the_api_is_kept_too(tmp_path, scripted, through):
    scripted.traces = False
    scripted.reply = lambda body: 503
    [record] = run(tmp_path, scripted, case(READ), through=through)["cases"]
    [exchange] = record["trajectory"]
    assert exchange["status"] == 503 and exchange["response"]["error"]["message"] == "told to fail"
    assert exchange["trace"] is None and record["raw_text"][0] and not record["passed"]


def test_a_body_that_is_too_long_is_cut_and_marked(tmp_path, scripted, monkeypatch):
    monkeypatch.setattr(recorded, "MOST_BYTES", 4000)
    scripted.traces = False
    scripted.reply = lambda body: says("ä" * 3000)
    [record] = run(tmp_path, scripted, case(NO_CALL))["cases"]
    [exchange] = record["trajectory"]
    assert exchange["response"]["cut"] and exchange["response"]["bytes"] > 6000
    assert len(exchange["response"]["text"].encode()) <= 4000 and "ä" in exchange["response"]["text"]
    assert exchange["request"] == scripted.requests[0] and record["answer"] == "ä" * 3000


def test_calls_that_the_server_could_not_read_are_counted(tmp_path, scripted):
    def broken(kind):
        return says("<tool_call>{") | {"punie": {"problems": [{"kind": kind, "detail": "no JSON", "raw": "{"}]}}

    scripted.reply = lambda body: {"0": broken("malformed"), "1": broken("truncated"), "2": broken("typed"),
                                   "3": says("Fine.")}[body["messages"][0]["content"]]  # fmt: skip
    cases = [case(NO_CALL, id=str(i), system=str(i)) for i in range(4)]
    # The third is told as text only, which counts once as well.
    assert [c["parse_failures"] for c in run(tmp_path, scripted, *cases)["cases"]] == [1, 1, 1, 0]


def test_the_files_afterwards_are_on_record_where_the_case_asks(tmp_path, scripted):
    writes = call("write_file", {"path": "b/c.txt", "content": "new"})
    scripted.reply = in_turn(says(None, writes), says("Done."))
    tools = [TOOLS["write_file"]]
    asks = {"calls": [{"name": "write_file"}], "files": {"b/c.txt": "new", "a.txt": {"contains": ["amb"]}}}
    first, second = run(tmp_path, scripted, case(asks, "0", tools=tools), case({"calls": [{"name": "write_file"}]}, "1",
                        tools=tools))["cases"]  # fmt: skip
    assert first["passed"] and first["files"] == {"a.txt": "amber", "b/c.txt": "new"}
    assert second["passed"] and second["files"] is None


# ---- retries and repeats ----


@pytest.mark.parametrize("through", HTTP)
def test_a_retry_fails_the_first_try_and_is_judged_apart(tmp_path, scripted, through):
    scripted.reply = in_turn(says(None, call("fly", {}, "c0")), says(None, READS), says("It says amber."))
    [record] = run(tmp_path, scripted, case(READ), through=through, agent=AgentSettings(retries=1))["cases"]
    assert (record["passed"], record["passed_with_retry"], record["lenient"], record["retried"]) == (
        False,
        True,
        False,
        1,
    )
    assert [(c["name"], c["refused"], c["ok"]) for c in record["calls"]] == [
        ("fly", True, None), ("read_file", False, True),
    ]  # fmt: skip
    assert any(r.startswith("retry: ") for r in record["reasons"])
    [without] = run(tmp_path, scripted, case(READ), through=through)["cases"]
    assert not without["passed"] and without["passed_with_retry"] is None and without["error"]


@pytest.mark.parametrize("through", HTTP)
def test_no_more_retries_than_allowed(tmp_path, scripted, through):
    scripted.reply = lambda body: says("Because." if len(scripted.requests) == 5 else "")
    [one] = run(tmp_path, scripted, case(NO_CALL), through=through, agent=AgentSettings(retries=1))["cases"]
    assert one["error"] and len(one["turns"]) == 2 and not one["passed_with_retry"]
    [two] = run(tmp_path, scripted, case(NO_CALL), through=through, agent=AgentSettings(retries=2))["cases"]
    assert two["answer"] == "Because." and two["passed_with_retry"] and not two["passed"]


def test_repeats_are_records_of_their_own(tmp_path, scripted):
    count = iter(range(100))
    scripted.reply = lambda body: says("" if next(count) == 3 else "Because.")
    result = run(tmp_path, scripted, *(case(NO_CALL, id=str(i)) for i in range(2)), repeats=3)
    assert [(c["id"], c["repeat"]) for c in result["cases"]] == [(i, r) for r in range(3) for i in "01"]
    assert [c["passed"] for c in result["cases"]] == [True, True, True, False, True, True]
    assert (result["settings"]["repeats"], result["summary"]["n"], result["summary"]["passed"]) == (3, 6, 5)
