"""The formats whose calls are JSON: each spelling, what streams, and what becomes of what is broken or cut off."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from punie_mlx.toolcalls import formats
from punie_mlx.toolcalls.calls import (
    ArgumentsDelta,
    CallFinished,
    CallStarted,
    Event,
    Malformed,
    Marker,
    Text,
    Tool,
    ToolCall,
)
from punie_mlx.toolcalls.formats import deepseek, hermes, kimi, smollm3
from punie_mlx.toolcalls.stream import Reading, StreamParser, read

STRING = {"type": "object", "properties": {"command": {"type": "string"}}}
RUN = Tool("run", parameters=STRING)
PYTHON = Tool("python", parameters={"type": "object", "properties": {"code": {"type": "string"}}})
TOOLS = [RUN, Tool("f")]
LS = ToolCall("run", {"command": "ls"})
JSON_FORMATS = ["hermes", "smollm3", "mistral", "llama3_json", "kimi", "deepseek"]
ARGUMENTS = '{"command": "ls"}'


def both(text: str, format: object, tools: list[Tool] = TOOLS, **options: object) -> Reading:
    """Read whole and in small pieces; all must agree, and nothing may be lost."""
    whole = read(text, format, tools, **options)
    assert "".join(getattr(e, "text", "") or getattr(e, "raw", "") for e in whole.events) == text
    for size in (1, 2, 3, 7):
        pieces = read(text, format, tools, chunk=size, **options)
        for attribute in ("content", "reasoning", "calls", "malformed", "problems"):
            assert getattr(pieces, attribute) == getattr(whole, attribute)
        assert [c.id for c in pieces.calls] == [c.id for c in whole.calls]
    return whole


def kinds(found: Reading) -> list[str]:
    return [p.kind for p in found.problems]


def block(body: str) -> str:
    return f"<tool_call>\n{body}\n</tool_call>"


def k2(*calls: str) -> str:
    return f"{kimi.OPEN}{''.join(calls)}{kimi.CLOSE}"


def k2_call(id: str, arguments: str = ARGUMENTS) -> str:
    return f"{kimi.CALL}{id}{kimi.ARGUMENTS}{arguments}{kimi.CALL_END}"


def v3(name: str, arguments: str = ARGUMENTS) -> str:
    return f"{deepseek.CALL}function{deepseek.SEPARATOR}{name}\n```json\n{arguments}\n```{deepseek.CALL_END}"


# ---- every spelling ----

SPELLINGS = {
    "hermes": [
        block('{"name": "run", "arguments": {"command": "ls"}}'),
        block('{"name": "run", "parameters": {"command": "ls"}}'),
        block('{"arguments": {"command": "ls"}, "name": "run"}'),
        block('{"id": "a", "type": "function", "function": {"arguments": {"command": "ls"}, "name": "run"}}'),
        block('[{"name": "run", "arguments": {"command": "ls"}}]'),
        block('```json\n{"name": "run", "arguments": {"command": "ls"}}\n```'),
        block('```\n{"name": "run", "arguments": {"command": "ls"}}\n```'),
        '<tool_call>{"name": "run", "arguments": {"command": "ls"}}',
    ],
    "mistral": [
        '[TOOL_CALLS] [{"name": "run", "arguments": {"command": "ls"}, "id": "123456789"}]',
        '[TOOL_CALLS][{"arguments": {"command": "ls"}, "name": "run"}]</s>',
        '[TOOL_CALLS]{"name": "run", "arguments": {"command": "ls"}}',
        "[TOOL_CALLS]run" + ARGUMENTS,
        "[TOOL_CALLS] run " + ARGUMENTS,
        "[TOOL_CALLS]run[ARGS]" + ARGUMENTS,
        "[TOOL_CALLS]run[CALL_ID]abc123def[ARGS]" + ARGUMENTS,
    ],
    "llama3_json": [
        '{"name": "run", "parameters": {"command": "ls"}}',
        '{"type": "function", "name": "run", "parameters": {"command": "ls"}}<|eot_id|>',
        '<|python_tag|>{"name": "run", "arguments": {"command": "ls"}}<|eom_id|>',
        '<|python_tag|> [{"name": "run", "arguments": {"command": "ls"}}]',
        '<|python_tag|>run.call(command="ls")',
        '{"parameters": {"command": "ls"}, "name": "run"};',
    ],
    "kimi": [
        k2(k2_call("functions.run:0")),
        k2(k2_call("run:0")),
        k2(k2_call(" functions.run:0\n")),
        f"{kimi.OPEN}\n{k2_call('functions.run:12')}\n{kimi.CLOSE}",
        k2_call("functions.run:0"),
        k2_call("functions.run:0").removesuffix(kimi.CALL_END),
        f"<|tool_call_section_begin|>{k2_call('functions.run:0')}<|tool_call_section_end|>",
    ],
    "deepseek": [
        f"{deepseek.OPEN}{deepseek.CALL}run{deepseek.SEPARATOR}{ARGUMENTS}{deepseek.CALL_END}{deepseek.CLOSE}",
        f"{deepseek.OPEN}{v3('run')}{deepseek.CLOSE}<｜end▁of▁sentence｜>",
        v3("run"),
        f"{deepseek.OPEN}{v3('run').removesuffix(deepseek.CALL_END)}",
        f"<｜tool calls begin｜>{v3('run')}{deepseek.CLOSE}",
    ],
}
SPELLINGS["smollm3"] = SPELLINGS["hermes"]


@pytest.mark.parametrize("name, text", [(n, t) for n, texts in SPELLINGS.items() for t in texts])
def test_each_spelling_is_a_call_between_texts(name, text):
    found = both("Sure.\n" + text, name)
    assert found.calls == [LS] and found.content.strip() == "Sure."
    assert not found.malformed and not found.problems


@pytest.mark.parametrize("name", JSON_FORMATS)
def test_what_is_rendered_is_read_back_and_streams(name):
    value = {"command": 'a "b" </tool_call> [TOOL_CALLS] <|tool_call_end|> <｜tool▁call▁end｜> ; {"x": 1}\n\u2028🎉'}
    calls = [ToolCall("run", value), ToolCall("f", {}), ToolCall("a.b-c", {"n": [1, 2.0, {"x": None}], "name": "g"})]
    text = "Sure.\n" + formats.render(name, calls)
    found = both(text, name, [])
    assert found.calls == calls and found.content.strip() == "Sure." and not found.problems
    parser = StreamParser(name, [])
    events = [e for c in text[: text.index("🎉")] for e in parser.feed(c)]
    sent = "".join(e.json for e in events if isinstance(e, ArgumentsDelta))
    assert events[0:1] == [Text("S")] and sent.startswith('{"command": "a \\"b\\"') and sent.endswith("\u2028")


def finished(events: list[Event]) -> list[CallFinished]:
    return [e for e in events if isinstance(e, CallFinished)]


@pytest.mark.parametrize("name, text", [(n, t) for n, texts in SPELLINGS.items() for t in texts])
@pytest.mark.parametrize("finish", ["stop", "length"])
def test_every_prefix_is_read_without_loss_and_completes_nothing(name, text, finish):
    end = text.index('"ls"') + len('"ls"') + 1  # the last bracket of the arguments
    for cut in range(len(text)):
        found = both("A\n" + text[:cut], name, finish=finish)
        if cut < end:
            assert not found.calls
        for call in found.calls:
            assert call == LS
        for broken in found.malformed:
            assert not broken.truncated or LS.name == broken.name
            assert '{"command": "ls"}'.startswith(broken.arguments)


# ---- JSON bodies ----


def test_the_name_comes_first_and_the_arguments_arrive_as_they_are_written():
    parser = StreamParser("hermes", TOOLS)
    events = parser.feed('<tool_call>{"name": "run", "arguments": {"command": "gr')
    assert [e for e in events if not isinstance(e, ArgumentsDelta)] == [CallStarted(0, "run")]
    assert parser.feed("ep") == [ArgumentsDelta(0, "ep")]


def test_arguments_before_the_name_wait_for_it():
    parser = StreamParser("hermes", TOOLS)
    assert parser.feed('<tool_call>{"arguments": {"name": "evil", "arguments": {"x": 1}}, ') == []
    assert parser.feed('"name": "run"') == [
        CallStarted(0, "run"),
        ArgumentsDelta(0, '{"name": "evil", "arguments": {"x": 1}}'),
    ]
    assert finished(parser.feed("}"))[0].call == ToolCall("run", {"name": "evil", "arguments": {"x": 1}})


@pytest.mark.parametrize(
    "body, kind",
    [
        ("{'name': 'run', 'arguments': {'command': 'ls'}}", "repaired"),
        ('{"name": "run", "arguments": {"command": "ls",},}', "repaired"),
        ('{"name": "run", "arguments": {"command": "ls"}', "repaired"),
        ('{"name": "run", "arguments": {"command": "ls"', "repaired"),
        ('{"name": "run", "arguments": "{\\"command\\": \\"ls\\"}"}', "repaired"),
        ('{"name": "run", "arguments": {"command": "ls", "command": "pwd"}}', "duplicate_parameter"),
        ('[{"x": 1}, {"name": "run", "arguments": {"command": "ls"}}]', "not_a_call"),
    ],
)
def test_json_that_can_be_mended_is_and_is_reported(body, kind):
    found = both(block(body), "hermes")
    assert found.calls == [LS] and kind in kinds(found) and not found.content


def test_null_arguments_are_none():
    assert both(block('{"name": "f", "arguments": null}'), "hermes").calls == [ToolCall("f", {})]


@pytest.mark.parametrize(
    "body",
    [
        '{"a": 1}', '{"name": "run"}', '{"name": 3, "arguments": {}}', '{"name": "run", "arguments": [1]}',
        '{"name": "run", "arguments": "ls"}', '{"name": "run", "arguments": {"n": NaN}}', '[{"a": 1}]', "{" * 9,
        '{"name": "run", "arguments": {"command": "say "hi" to me"}}',
        '{"name": "run", "arguments": {"a": ' + "[" * 999,
    ],
)  # fmt: skip
def test_json_that_is_no_call_is_shown_and_takes_no_other_with_it(body):
    text = block(body)
    found = both(f"{text}\n{block(json.dumps({'name': 'run', 'arguments': LS.arguments}))}", "hermes")
    assert found.calls == [LS] and text in found.visible()


@pytest.mark.parametrize("body", ["not json", "[1, 2]", "[]", '"x"', "```python\nx\n```"])
def test_a_tag_that_no_json_follows_is_text(body):
    found = both(block(body), "hermes")
    assert found.content == block(body) and not found.malformed


def test_entries_of_a_list_are_calls_each_finished_at_its_end():
    entries = '{"name": "run", "arguments": {"command": "ls"}}, {"name": "f", "arguments": {}}, "junk"'
    text = f"<tool_call>[{entries}]</tool_call>"
    found = both(text, "hermes")
    assert found.calls == [LS, ToolCall("f", {})] and found.visible() == ', "junk"]'
    parser = StreamParser("hermes", TOOLS)
    assert len(finished(parser.feed(text[: text.index(', {"name": "f"')]))) == 1


@pytest.mark.parametrize("between", ["\n", "", " \n\n"])
def test_a_block_may_hold_several_objects(between):
    one, two = (json.dumps({"name": "run", "arguments": {"command": command}}) for command in ("ls", "{"))
    calls = [LS, ToolCall("run", {"command": "{"})]
    for text in (block(one + between + two), f"<tool_call>{one}{between}{two}"):
        found = both(f"a {text}", "hermes")
        assert found.calls == calls and found.content.strip() == "a" and not found.problems
    found = both(block(f"{one}{between}{{'x': 1}}") + "z", "hermes")
    assert found.calls == [LS] and found.visible() == "{'x': 1}z" and kinds(found) == ["malformed"]
    assert both(block(one + between + "{ prose }"), "hermes").calls == [LS]


def test_a_call_that_is_broken_after_its_start_says_so():
    events = StreamParser("hermes", TOOLS).feed('<tool_call>{"name": "run", "arguments": {"n": oops}}</tool_call>')
    assert events[0] == CallStarted(0, "run")
    assert isinstance(events[-1], Malformed) and events[-1].index == 0 and not events[-1].truncated


def test_a_cut_call_has_what_had_arrived():
    found = both('<tool_call>{"name": "run", "arguments": {"command": "l', "hermes", finish="length")
    broken = found.malformed[0]
    assert (broken.truncated, broken.name, broken.arguments) == (True, "run", '{"command": "l')


def test_a_call_in_reasoning_is_a_call():
    found = both(f"<think>hm {block(json.dumps({'name': 'run', 'arguments': LS.arguments}))}more</think>ok", "hermes")
    assert (found.calls, found.reasoning, found.content) == ([LS], "hm more", "ok")


def test_types_that_do_not_fit_are_kept_and_reported():
    found = both(block('{"name": "run", "arguments": {"command": 3}}'), "hermes")
    assert found.calls == [ToolCall("run", {"command": 3})] and kinds(found) == ["type_mismatch"]


def test_markers_with_tokens_are_only_those():
    control = {1: "<tool_call>", 2: "</tool_call>"}
    parser = StreamParser("hermes", TOOLS, control=control)
    events = [
        *parser.feed("<tool_call>", [1]),
        *parser.feed('{"name": "run", "arguments": {"command": "</tool_call>"', [5]),
    ]
    events += parser.feed("</tool_call>", [6])  # spelled out in ordinary tokens: it closes nothing
    assert not finished(events)
    parser = StreamParser("hermes", TOOLS, control=control)
    events = [
        *parser.feed("<tool_call>", [1]),
        *parser.feed('{"name": "run", "arguments": {"command": "</tool_call>"}}', [5]),
    ]
    events += [*parser.feed("</tool_call>", [2]), *parser.finish()]
    assert finished(events)[0].call.arguments == {"command": "</tool_call>"} and events[-1] == Marker("</tool_call>")
    assert read("<tool_call>", "hermes").content == "<tool_call>"
    parser = StreamParser("hermes", TOOLS, control=control)
    spelled = block(json.dumps({"name": "run", "arguments": {}}))
    assert "".join(e.text for e in parser.feed(spelled, [7]) + parser.finish()) == spelled


# ---- smollm3 ----


def test_smollm3_has_the_markers_of_the_model():
    text = '<|tc_start|>{"name": "run", "arguments": {"command": "</tool_call>"}}<|tc_end|>'
    other = replace(smollm3.FORMAT, open="<|tc_start|>", close="<|tc_end|>")
    assert both(text, other).calls == [ToolCall("run", {"command": "</tool_call>"})]
    between = smollm3.between("[[", "]]")
    assert between.render([LS]).startswith("[[\n{") and both(between.render([LS]), between).calls == [LS]


@pytest.mark.parametrize("code", ['print("</code>")', "", "\nx = 1\n", "if a < b:\n\tpass", "x\r\ny", "a </code> b"])
def test_smollm3_code_is_a_call(code):
    found = both(f"Ok.\n<code>\n{code}\n</code>\nDone.", "smollm3", [PYTHON, RUN])
    assert found.calls == [ToolCall("python", {"code": code})] and found.content.split() == ["Ok.", "Done."]


def test_smollm3_code_is_a_call_of_the_tool_that_takes_it():
    tool = Tool("exec", parameters=PYTHON.parameters)
    assert both("<code>x</code>", "smollm3", [tool, RUN]).calls == [ToolCall("exec", {"code": "x"})]
    for text, tools in [("<code>x</code>", [RUN]), ("Use the <code> tag.", [PYTHON]), ("a <code>x</code>", [PYTHON])]:
        assert both(text, "smollm3", tools).content == text


def test_smollm3_code_streams_and_may_be_cut_off():
    parser = StreamParser("smollm3", [PYTHON])
    parser.feed("<code>\n")
    assert parser.feed('print("hi")') == [ArgumentsDelta(0, 'print(\\"hi\\")')]
    assert parser.feed("\n") == []
    broken = parser.finish("length")[-1]
    assert broken.truncated and broken.arguments == '{"code": "print(\\"hi\\")'


# ---- mistral ----


def test_mistral_calls_in_a_row():
    one, two = "run[ARGS]" + ARGUMENTS, 'f[ARGS]{"x": 1}'
    calls = [LS, ToolCall("f", {"x": 1})]
    for text in (f"[TOOL_CALLS]{one}{two}", f"[TOOL_CALLS]{one}[TOOL_CALLS]{two}", f"[TOOL_CALLS]{one}\n{two}"):
        found = both(f"hi{text}\n\nLet me see.", "mistral")
        assert found.calls == calls and found.content.split() == ["hi", "Let", "me", "see."]


def test_mistral_ids_and_reasoning():
    found = both("[THINK]hm[/THINK][TOOL_CALLS]run[CALL_ID]abc123def[ARGS]" + ARGUMENTS, "mistral")
    assert found.reasoning == "hm" and found.calls[0].id == "abc123def"
    found = both('[TOOL_CALLS][{"id": "xyz", "name": "run", "arguments": {"command": "ls"}}]', "mistral")
    assert found.calls[0].id == "xyz"


@pytest.mark.parametrize("text", ["[TOOL_CALLS]" + ARGUMENTS, "[TOOL_CALLS][ARGS]" + ARGUMENTS])
def test_mistral_calls_without_a_name(text):
    nameless = ToolCall("", {"command": "ls"})
    found = both(f"run{text}{text}", "mistral")
    assert found.content == "run" and found.calls == [nameless] * 2 and kinds(found) == ["unknown_tool"] * 2
    assert kinds(both(text, "mistral", [])) == ["missing_name"]


@pytest.mark.parametrize(
    "text",
    ["The [TOOL_CALLS] token.", "[TOOL_CALLS] [not json]", "[TOOL_CALLS]run[ARGS] then", "[TOOL_CALLS]", "a [b] c"],
)
def test_mistral_markers_in_prose_are_text(text):
    found = both(text, "mistral")
    assert found.content == text and not found.malformed


# ---- llama3_json ----


def test_llama_calls_are_joined_by_semicolons():
    one, two = '{"name": "run", "parameters": {"command": "a; {b}"}}', '{"name": "f", "parameters": {}}'
    calls = [ToolCall("run", {"command": "a; {b}"}), ToolCall("f", {})]
    for text in (
        f"{one}; {two}",
        f"{one};{two};",
        f"<|python_tag|>{one};{two}",
        f"<|python_tag|>{one}<|python_tag|>{two}",
    ):
        found = both(f"Ok. {text}", "llama3_json")
        assert found.calls == calls and found.content == "Ok. "
    assert both(f"{one}; and so on", "llama3_json").content == "; and so on"


@pytest.mark.parametrize(
    "text",
    [
        '{"parameters": {}}', '{"a": 1}', '{"name": "run"}', '{"name": "other", "parameters": {"x": {}}}', "{}",
        '{"type": "object", "properties": {}}', '{"name": "run", "age": 3}', '{"name": "run", "parameters": [1]}',
        '{"name', "f() { x }", "<|python_tag|>print(1)", "<|python_tag|>x.call(1)",
    ],
)  # fmt: skip
def test_llama_json_that_is_no_call_is_text(text):
    found = both(f"See {text}", "llama3_json")
    assert found.content == f"See {text}" and not found.calls and not found.malformed


def test_llama_a_tag_makes_any_name_a_call():
    found = both('<|python_tag|>{"name": "other", "parameters": {}};{"name": "more", "parameters": {}}', "llama3_json")
    assert [c.name for c in found.calls] == ["other", "more"]


def test_llama_a_broken_object_leaves_the_next():
    text = '{"name": "f", "parameters": {{"name": "f", "parameters": {}}'
    found = both(text, "llama3_json")
    assert found.calls == [ToolCall("f", {})] and found.visible() == '{"name": "f", "parameters": {'


def test_llama_built_in_calls():
    found = both(
        "<|python_tag|>brave_search.call(query=\"a, b)\", n=3, deep=True, o={'x': [1]})<|eom_id|>", "llama3_json", []
    )
    assert found.calls == [ToolCall("brave_search", {"query": "a, b)", "n": 3, "deep": True, "o": {"x": [1]}})]
    assert both("<|python_tag|>f.call()", "llama3_json").calls == [ToolCall("f", {})]
    assert both("<|python_tag|>f.call(a=1, a=2)", "llama3_json").malformed


# ---- kimi and deepseek ----


def test_kimi_ids_and_odd_names():
    found = both(k2(k2_call("functions.a.b:c:7", "{}"), k2_call("functions.f", "{}")), "kimi")
    assert [(c.name, c.id) for c in found.calls] == [("a.b:c", "functions.a.b:c:7"), ("f", "functions.f")]


@pytest.mark.parametrize(("id", "tools"), [("functions.f.0", TOOLS), ("f_0", TOOLS), ("0", TOOLS), ("functions.f", [])])
def test_kimi_an_id_without_an_index_must_name_a_tool(id, tools):
    odd = k2_call(id, "{}")
    found = both(k2(odd, k2_call("functions.run:1")), "kimi", tools)
    assert found.calls == [LS] and found.content == kimi.OPEN + odd
    found = both(k2(k2_call("functions.run:1"), odd), "kimi", tools)
    assert found.calls == [LS] and found.content == odd + kimi.CLOSE


def test_kimi_an_empty_section_is_framing():
    found = both(f"Done.{k2()}", "kimi")
    assert found.content == "Done." and not found.calls and not found.problems


def test_kimi_a_broken_call_does_not_take_the_next_with_it():
    for arguments in ('{"command": oops}', '{"command": [[["x"'):
        found = both(k2(k2_call("functions.f:0", arguments), k2_call("functions.run:1")), "kimi")
        assert found.calls == [LS] and found.malformed[0].raw == k2_call("functions.f:0", arguments)
    found = both(k2(k2_call("functions.run:0", '{"command": "ls"'), k2_call("functions.run:1")), "kimi")
    assert found.calls == [LS, LS] and kinds(found) == ["repaired"]


def test_kimi_a_call_without_arguments():
    found = both(k2(k2_call("functions.f:0", "")), "kimi")
    assert found.calls == [ToolCall("f", {})] and kinds(found) == ["repaired"]


@pytest.mark.parametrize(
    "text", [f"The {kimi.OPEN} token", f"{kimi.CALL}x", f"run:0{kimi.ARGUMENTS}{{}}{kimi.CALL_END}"]
)
def test_kimi_markers_in_prose_are_text(text):
    assert both(text, "kimi").content == text


def test_deepseek_calls_in_all_spellings():
    calls = [LS, LS]
    assert both(f"{deepseek.OPEN}{v3('run')}\n{v3('run')}{deepseek.CLOSE}", "deepseek").calls == calls
    assert both(formats.render("deepseek", calls), "deepseek").calls == calls
    tags = '<｜DSML｜invoke name="run">\n<｜DSML｜parameter name="command" string="true">ls</｜DSML｜parameter>\n'
    text = f"<｜DSML｜function_calls>\n{tags}</｜DSML｜invoke>\n</｜DSML｜function_calls>"
    assert both(text, "deepseek").calls == [LS]


def test_a_header_that_is_cut_off_is_a_cut_call_once_its_name_is_known():
    for name, text in [
        ("kimi", f"{kimi.OPEN}{kimi.CALL}functions.run:0{kimi.ARGUMENTS}"),
        ("mistral", "[TOOL_CALLS]run[ARGS]"),
        ("deepseek", v3("run").partition("{")[0]),
    ]:
        found = both(text, name, finish="length")
        assert [(m.name, m.truncated, m.arguments) for m in found.malformed] == [("run", True, "")]
        cut = text[: -len("[ARGS]")] if name == "mistral" else text[: text.index("run")]
        assert both(cut, name, finish="length").content == cut


# ---- cost ----


@pytest.mark.parametrize("name", JSON_FORMATS)
@pytest.mark.parametrize(
    "unit",
    ['{"name": "run", "arguments": {', '{"parameters": "', '{"a": [', '{"id": "x", ', "[TOOL_CALLS]run[ARGS]",
     "[TOOL_CALLS][{", "<|python_tag|>", "<tool_call>{", "<tool_call>```", "<code>\n", "</code> ", kimi.OPEN,
     k2_call("functions.run:0", "{"), kimi.CALL, v3("run", "{"), deepseek.OPEN, " ", "\\", '"', "["],
)  # fmt: skip
def test_cost_is_linear(name, unit, work):
    def cost(size: int) -> int:
        return work(lambda: read(unit * (size // len(unit)), name, [*TOOLS, PYTHON], chunk=4))

    assert cost(16_000) < 12 * cost(2_000)


@pytest.mark.parametrize("name", JSON_FORMATS)
def test_nothing_raises(name):
    for body in ("[" * 100_000, '{"name": "run", "arguments": ' + '{"a":' * 50_000, "9" * 10_000, "\ud800"):
        for text in SPELLINGS[name]:
            read(text.replace('"ls"', body), name, TOOLS)
            read(text.replace('{"command"', body + '{"command"'), name, TOOLS)


def test_hermes_renders_as_the_template_does():
    assert hermes.render([LS]) == '<tool_call>\n{"name": "run", "arguments": {"command": "ls"}}\n</tool_call>'
