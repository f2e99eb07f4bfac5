"""Reading calls: the rules of each format, in one piece and in many."""

from __future__ import annotations

import json
import re

import pytest

from punie_mlx.errors import ConfigError
from punie_mlx.toolcalls.calls import ArgumentsDelta, CallFinished, CallStarted, Malformed, Text, Tool, ToolCall
from punie_mlx.toolcalls.stream import StreamParser, read

WRITE = Tool(
    "write_file",
    parameters={
        "type": "object",
        "properties": {
            "path": {"type": "string"},
            "content": {"type": "string"},
            "mode": {"type": "integer"},
            "force": {"type": "boolean"},
            "tags": {"type": "array", "items": {"type": "string"}},
        },
        "required": ["path"],
    },
)
RUN = Tool("run", parameters={"type": "object", "properties": {"command": {"type": "string"}}, "required": ["command"]})
TOOLS = [WRITE, RUN]


def call(name: str, **arguments: str) -> str:
    inside = "".join(f"<parameter={k}>\n{v}\n</parameter>\n" for k, v in arguments.items())
    return f"<tool_call>\n<function={name}>\n{inside}</function>\n</tool_call>"


def both(text: str, **options: object):
    """Read whole and by characters; both must agree."""
    whole = read(text, "qwen3_coder", TOOLS, **options)
    single = read(text, "qwen3_coder", TOOLS, chunk=1, **options)
    for attribute in ("content", "reasoning", "calls", "malformed", "problems"):
        assert getattr(whole, attribute) == getattr(single, attribute)
    return whole


def test_a_call_with_typed_arguments():
    found = both(call("write_file", path="a.txt", mode="9007199254740993", force="True", tags='["x"]'))
    assert found.calls == [
        ToolCall("write_file", {"path": "a.txt", "mode": 9007199254740993, "force": True, "tags": ["x"]})
    ]
    assert found.content == "" and not found.malformed and not found.problems


@pytest.mark.parametrize(
    "value",
    [
        "null", '"hi"', '{"a": 1}', "007", " spaces ", "", "\n", "a\r\nb", "&lt;b&gt; \\n", "</tool_call>",
        "</function>", "use </parameter> here", "<parameter=x>", "x\n</parameters>", "<tool_call>", "<think>hm</think>",
        "a < b", "🎉",
    ],
)  # fmt: skip
def test_strings_stay_as_written(value):
    assert both(call("write_file", path="a", content=value)).calls[0].arguments["content"] == value


def test_white_space_before_a_call_is_no_text():
    parser = StreamParser("qwen3_coder", TOOLS)
    events = parser.feed("\n\n" + call("run", command="ls") + "\n") + parser.finish()
    assert not [e for e in events if isinstance(e, Text)]


def test_the_name_comes_before_the_arguments_and_strings_arrive_as_they_are_written():
    parser = StreamParser("qwen3_coder", TOOLS)
    events = parser.feed("<tool_call>\n<function=run>\n<parameter=command>\ngrep -r x")
    assert events == [CallStarted(0, "run"), ArgumentsDelta(0, '{"command": "'), ArgumentsDelta(0, "grep -r x")]


def test_deltas_join_to_the_arguments():
    text = call("write_file", path='a"\\', mode="3", content="x\ny") + "\n" + call("run", command="ls")
    parser = StreamParser("qwen3_coder", TOOLS)
    events = [e for c in text for e in parser.feed(c)] + parser.finish()
    for finished in [e for e in events if isinstance(e, CallFinished)]:
        deltas = "".join(e.json for e in events if isinstance(e, ArgumentsDelta) and e.index == finished.index)
        assert json.loads(deltas) == finished.call.arguments


def test_a_tag_in_prose_is_text():
    for text in (
        "Use the <tool_call> tag to call tools.",
        "In C++ write <function=foo> like std::function.",
        "<tool_call>not valid json</tool_call>",
        "Write <tool_call>\n<function=run> and then the parameters.",
        "if a <b then",
        "The <think> tag opens thinking.",
    ):
        found = both(text)
        assert found.content == text and not found.calls and not found.malformed


def test_a_call_without_its_opening_tag_needs_an_offered_tool():
    text = "Now:\n<function=run>\n<parameter=command>\nls\n</parameter>\n</function>\n</tool_call>"
    assert both(text).calls == [ToolCall("run", {"command": "ls"})]
    assert both(text.replace("run", "other")).content == text.replace("run", "other")


def test_reasoning_resumes_after_a_call():
    text = "plan\n" + call("run", command="ls") + "\nmore</think>\nDone."
    found = both(text, starts_in_reasoning=True)
    assert found.reasoning == "plan\n\nmore" and found.content == "\nDone." and len(found.calls) == 1


def test_an_unclosed_value_ends_before_the_next_parameter_or_the_end_of_the_call():
    text = "<tool_call>\n<function=write_file>\n<parameter=path>\na\n<parameter=content>\nb\n</function>\n</tool_call>"
    found = both(text)
    assert found.calls == [ToolCall("write_file", {"path": "a", "content": "b"})]
    assert [p.kind for p in found.problems] == ["unclosed_parameter"] * 2


def test_an_unclosed_call_does_not_swallow_the_next():
    first = "<tool_call>\n<function=run>\n<parameter=command>\nls\n</function>\n</tool_call>\n"
    assert both(first + call("run", command="pwd")).calls == [
        ToolCall("run", {"command": "ls"}),
        ToolCall("run", {"command": "pwd"}),
    ]


def test_several_functions_in_one_block():
    inside = call("run", command="a").removesuffix("\n</tool_call>")
    text = inside + "\n" + call("run", command="b").removeprefix("<tool_call>\n")
    assert [c.arguments["command"] for c in both(text).calls] == ["a", "b"]


def test_problems_are_reported_and_the_call_kept():
    text = (
        "<tool_call>\n<function=write_file>\n<parameter=mode>\nmany\n</parameter>\n<parameter=mode>\n2\n</parameter>\n"
        "<parameter=color>\nred\n</parameter>\n</function>\n</tool_call>"
    )
    found = both(text)
    assert found.calls == [ToolCall("write_file", {"mode": "many", "color": "red"})]
    assert {p.kind for p in found.problems} == {
        "type_mismatch", "duplicate_parameter", "unknown_parameter", "missing_required",
    }  # fmt: skip
    assert both(call("rm_rf", path="/")).problems[0].kind == "unknown_tool"


@pytest.mark.parametrize("finish", ["stop", "length"])
def test_a_truncated_call_is_never_complete_and_never_lost(finish):
    value = "if x:\n    print('</function>')\n"
    text = "Sure.\n" + call("write_file", path="a", content=value)
    complete = text.rindex("</function>") + len("</function>")
    for cut in range(len(text)):
        found = both(text[:cut], finish=finish)
        for got in found.calls:  # a clean stop after a closed value is a call that lacks only its closing tags
            assert cut >= complete or (finish == "stop" and text[:cut].rstrip().endswith("</parameter>"))
            assert got.arguments["path"] == "a"
        assert "".join(getattr(e, "text", "") or getattr(e, "raw", "") for e in found.events) == text[:cut]


def test_a_cut_off_call_carries_its_raw_text_and_what_had_arrived():
    parser = StreamParser("qwen3_coder", TOOLS)
    text = "<tool_call>\n<function=run>\n<parameter=command>\nls"
    events = parser.feed(text) + parser.finish("length")
    reason = "the call of run is cut off"
    assert events[-1] == Malformed(text, reason, 0, truncated=True, name="run", arguments='{"command": "ls')


def test_json_bodies():
    tricky = {"name": "run", "arguments": {"command": 'echo "</tool_call>" } {', "n": [1, {"x": None}]}}
    found = both(f"hello <tool_call>\n{json.dumps(tricky)}\n</tool_call>")
    assert found.calls == [ToolCall("run", tricky["arguments"])] and found.content == "hello "


@pytest.mark.parametrize(
    "body",
    [
        "{'name': 'run', 'arguments': {'command': 'ls'}}",
        '{"name": "run", "arguments": {"command": "ls",}}',
        '{"name": "run", "arguments": {"command": "ls"}',
        '{"name": "run", "arguments": "{\\"command\\": \\"ls\\"}"}',
    ],
)
def test_json_that_can_be_mended_is_and_is_reported(body):
    found = both(f"<tool_call>\n{body}\n</tool_call>")
    assert found.calls == [ToolCall("run", {"command": "ls"})]
    assert "repaired" in [p.kind for p in found.problems]


@pytest.mark.parametrize(
    "body", ['{"a": 1}', '{"name": "run", "arguments": [1]}', '{"name": "run", "arguments": {"n": NaN}}', "{" * 9]
)
def test_json_that_is_no_call_is_malformed_with_its_raw_text(body):
    text = f"<tool_call>\n{body}\n</tool_call>"
    found = both(text)
    assert not found.calls and found.visible() == text


def test_deep_nesting_and_huge_numbers_raise_nothing():
    for body in ("[" * 200_000, '{"name": "run", "arguments": ' + '{"a":' * 50_000, "9" * 10_000):
        read(f"<tool_call>{body}</tool_call>", "hermes", TOOLS)
        read(call("write_file", path="a", mode="9" * 10_000, tags=body), "qwen3_coder", TOOLS)


@pytest.mark.parametrize(
    "unit",
    [
        "<tool_call>\n", "<function=run>", "</function>\n", " ", "<", "</parameter>\n", "<think>", "{", '"', "\\",
        "<tool_call><function=run><parameter=command>v</function>",
        "<tool_call><function=run><parameter=a>v</parameter>", "</function></tool_call>",
    ],
)  # fmt: skip
@pytest.mark.parametrize("opening", ["", "<tool_call>\n<function=run>\n<parameter=command>\n", '<tool_call>{"name": "'])
def test_cost_is_linear(unit, opening, work):
    def cost(size: int) -> int:
        text = opening + unit * (size // len(unit))
        return work(lambda: read(text, "qwen3_coder", TOOLS, chunk=64))

    assert cost(16_000) < 12 * cost(2_000)


def test_formats_are_known_by_name():
    with pytest.raises(ConfigError, match="choose one of"):
        StreamParser("nonsense")


def test_raw_texts_add_up_to_the_input():
    text = "A\n" + call("run", command="ls") + "\nB <tool_call> " + '<tool_call>{"name": 3}</tool_call> C'
    events = read(text, "qwen3_coder", TOOLS).events
    joined = "".join(getattr(e, "text", "") or getattr(e, "raw", "") for e in events)
    assert joined == text
    assert re.sub(r"\s+", "", joined)
