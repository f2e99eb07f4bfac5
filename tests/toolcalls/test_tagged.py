"""Calls whose values stand between tags: every spelling, what ends a value, and what a stream shows of it."""

from __future__ import annotations

import itertools
import json
import random
from dataclasses import dataclass

import pytest

from punie_mlx.toolcalls import contract, formats
from punie_mlx.toolcalls.calls import ArgumentsDelta, CallFinished, CallStarted, Event, Malformed, Tool, ToolCall, dumps
from punie_mlx.toolcalls.formats import dsml
from punie_mlx.toolcalls.stream import Reading, StreamParser, gather, read
from punie_mlx.toolcalls.window import Window
from punie_mlx.toolcalls.wire import Format

DSML = Format("dsml", dsml.render, dsml.OPENERS, framing=dsml.FRAMING)
FORMATS = {n: formats.get(n) for n in ("qwen3_coder", "seed_oss", "mimo", "minimax", "glm")} | {"dsml": DSML}


@dataclass(frozen=True)
class Spelling:
    """The tags of a format, written once more and by hand; `%s` is a name."""

    open: str
    close: str
    function: str
    function_end: str
    parameter: str
    parameter_end: str
    newline: str = ""  # what the family writes on either side of a value

    def value(self, key: str, value: str) -> str:
        return self.parameter % key + self.newline + value + self.newline + self.parameter_end

    def body(self, name: str, **arguments: str) -> str:
        return self.function % name + "".join(self.value(k, v) for k, v in arguments.items()) + self.function_end

    def call(self, name: str, **arguments: str) -> str:
        return self.open + self.body(name, **arguments) + self.close


FUNCTION = ("<function=%s>\n", "</function>\n", "<parameter=%s>", "</parameter>\n")
INVOKE = ('<invoke name="%s">\n', "</invoke>\n", '<parameter name="%s">', "</parameter>\n")
DSML_TAGS = (tag.replace("<", "<｜DSML｜").replace("<｜DSML｜/", "</｜DSML｜") for tag in INVOKE)
SPELLINGS = {
    "qwen3_coder": Spelling("<tool_call>\n", "</tool_call>", *FUNCTION, newline="\n"),
    "seed_oss": Spelling("<seed:tool_call>\n", "</seed:tool_call>", *FUNCTION),
    "mimo": Spelling("<tool_call>", "</tool_call>", *(tag.strip() for tag in FUNCTION)),
    "minimax": Spelling("<minimax:tool_call>\n", "</minimax:tool_call>", *INVOKE),
    "glm": Spelling("<tool_call>", "</tool_call>", "%s\n", "", "<arg_key>%s</arg_key>\n<arg_value>", "</arg_value>\n"),
    "dsml": Spelling("<｜DSML｜function_calls>\n", "</｜DSML｜function_calls>", *DSML_TAGS),
}
every = pytest.mark.parametrize("name", FORMATS)
PROPERTIES = {
    "path": {"type": "string"},
    "content": {"type": "string"},
    "mode": {"type": "integer"},
    "force": {"type": "boolean"},
    "tags": {"type": "array", "items": {"type": "string"}},
    "any": {},
}
TOOLS = [
    Tool("write", parameters={"type": "object", "properties": PROPERTIES, "required": ["path"]}),
    Tool("now", parameters={"type": "object", "properties": {}}),
]


def events_of(name: str, text: str, sizes: list[int], finish: str = "stop", thinking: bool = False) -> list[Event]:
    parser = StreamParser(FORMATS[name], TOOLS, starts_in_reasoning=thinking)
    out, at = [], 0
    for size in itertools.cycle(sizes):
        if at >= len(text):
            return out + parser.finish(finish)
        out += parser.feed(text[at : at + size])
        at += size
    raise AssertionError("no sizes")


def reading(name: str, text: str, finish: str = "stop", thinking: bool = False) -> Reading:
    """What `text` holds, read whole, by characters and in odd pieces; all must agree and keep the contract."""
    whole = events_of(name, text, [len(text) or 1], finish, thinking)
    assert contract.faults(text, whole) == []
    for sizes in ([1], [3, 1, 7, 2]):
        assert contract.merged(events_of(name, text, sizes, finish, thinking)) == contract.merged(whole)
    return gather(whole)


def kinds(found: Reading) -> list[str]:
    return [p.kind for p in found.problems]


# ---- spellings ----


@every
def test_a_call_of_each_type(name):
    text = SPELLINGS[name].call("write", path="a b", mode="9007199254740993", force="True", tags='["x", "y"]', any="7")
    found = reading(name, text)
    expected = {"path": "a b", "mode": 9007199254740993, "force": True, "tags": ["x", "y"], "any": "7"}
    assert found.calls == [ToolCall("write", expected)]
    assert list(found.calls[0].arguments) == list(expected)
    assert not found.problems and found.visible() == ""


@every
def test_a_call_without_arguments(name):
    for text in (SPELLINGS[name].call("now"), SPELLINGS[name].call("now").replace("\n", "")):
        found = reading(name, text)
        assert found.calls == [ToolCall("now", {})] and not found.problems


@every
def test_rendered_calls_are_read_back(name):
    values = {"path": " a\nb ", "mode": -3, "force": False, "tags": ["ü", "</x>"], "content": ""}
    calls = [ToolCall("write", values), ToolCall("now", {}), ToolCall("write", {"path": "null"})]
    wire = FORMATS[name]
    found = reading(name, "Sure." + wire.framing + wire.render(calls) + "\nDone.")
    assert found.calls == calls and not found.problems
    assert found.visible() == "Sure.\nDone."


@every
def test_calls_between_text_and_thinking(name):
    opening, closing = FORMATS[name].think
    call = SPELLINGS[name].call("now")
    found = reading(name, f"plan {call} more{closing}Answer. {call}{call} End.", thinking=True)
    assert len(found.calls) == 3
    assert (found.reasoning.split(), found.content.split()) == (["plan", "more"], ["Answer.", "End."])
    found = reading(name, f"{opening}plan {call}")  # the thinking is never closed
    assert found.calls == [ToolCall("now", {})] and found.reasoning.strip() == "plan"


@every
def test_a_marker_without_a_legal_body_is_text(name):
    spelling = SPELLINGS[name]
    for text in (
        f"Write {spelling.open.strip()} and then the call.",
        f"{spelling.open.strip()}not a call{spelling.close}",
        f"{spelling.open}{spelling.function % 'now'}and then its parameters.",
        f"{spelling.open}{spelling.function % 'now'}{spelling.parameter[:9]}> x",
        f"a < b {spelling.parameter % 'path'}x{spelling.parameter_end}",
        spelling.open.strip(),
        spelling.open.strip()[:-1],
    ):
        found = reading(name, text)
        assert found.content == text and not found.calls and not found.malformed


@pytest.mark.parametrize("name", [n for n in FORMATS if n != "glm"])
def test_several_functions_in_one_block(name):
    spelling = SPELLINGS[name]
    bodies = spelling.body("write", path="a") + "\n" + spelling.body("now") + spelling.body("write", path="b")
    found = reading(name, spelling.open + bodies + spelling.close)
    assert [c.name for c in found.calls] == ["write", "now", "write"] and not found.problems


@pytest.mark.parametrize("name", [n for n in FORMATS if n != "glm"])
def test_a_call_without_its_block_needs_an_offered_tool(name):
    spelling = SPELLINGS[name]
    found = reading(name, "Now: " + spelling.body("write", path="a") + spelling.close)
    assert found.calls == [ToolCall("write", {"path": "a"})] and found.content.strip() == "Now:"
    text = "Now: " + spelling.body("other", path="a") + spelling.close
    assert reading(name, text).content == text


@every
def test_closing_tags_may_be_missing_at_a_clean_end(name):
    spelling = SPELLINGS[name]
    text = (spelling.open + spelling.body("write", path="a", content="b")).removesuffix(spelling.function_end)
    assert reading(name, text).calls == [ToolCall("write", {"path": "a", "content": "b"})]
    assert "unclosed_function" in kinds(reading(name, text))
    found = reading(name, text, "length")
    assert not found.calls and found.malformed[0].truncated
    if spelling.function_end:
        assert "unclosed_function" in kinds(reading(name, text + spelling.close + " Done."))


@every
def test_arguments_as_one_json_object(name):
    spelling = SPELLINGS[name]
    head = spelling.open + spelling.function % "write"
    body = json.dumps({"path": f"x{spelling.parameter_end}{spelling.close}", "mode": 3})
    found = reading(name, head + body + "\n" + spelling.function_end + spelling.close + " Done.")
    assert found.calls == [ToolCall("write", json.loads(body))] and not found.problems
    assert found.content == " Done."
    assert reading(name, head + body, "length").calls  # its last bracket has come
    assert reading(name, head + body[:-1], "length").malformed[0].truncated
    broken = head + '{"path": NaN}' + spelling.close
    assert not reading(name, broken).calls and reading(name, broken).visible() == broken


def test_tags_in_the_block_of_hermes_and_json_in_that_of_the_others():
    tags = SPELLINGS["qwen3_coder"].call("now")
    assert read(tags, "hermes", TOOLS).calls == [ToolCall("now", {})]
    for name in ("qwen3_coder", "mimo", "glm"):
        text = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
        assert reading(name, text).calls == [ToolCall("now", {})]


def test_minimax_takes_other_quotes_and_attributes():
    text = "<minimax:tool_call><invoke name='write'><parameter name=path type=\"string\">a</parameter></invoke>"
    assert reading("minimax", text).calls == [ToolCall("write", {"path": "a"})]


def test_seed_oss_has_tags_of_its_own_for_thinking():
    text = "<seed:think>a<seed:cot_budget_reflect>b</seed:cot_budget_reflect>c</seed:think>Answer.<seed:eos>"
    found = reading("seed_oss", text)
    assert found.reasoning == "a<seed:cot_budget_reflect>b</seed:cot_budget_reflect>c" and found.content == "Answer."


@pytest.mark.parametrize(
    ("name", "end"), [("glm", "<|observation|>"), ("glm", "<|role_end|>"), ("minimax", "[e~["), ("mimo", "<|im_end|>")]
)
def test_the_token_that_ends_a_turn_is_no_text(name, end):
    assert reading(name, "Hello." + end).content == "Hello."
    assert reading(name, SPELLINGS[name].call("now") + end).visible() == ""


# ---- glm ----


def test_glm_with_and_without_newlines():
    compact = "<tool_call>write<arg_key>path</arg_key><arg_value> a </arg_value></tool_call>"
    assert reading("glm", compact).calls == [ToolCall("write", {"path": " a "})]
    assert reading("glm", compact + compact).calls == [ToolCall("write", {"path": " a "})] * 2


def test_glm_with_newlines_and_quotes_spelled_out():
    text = '<tool_call>write\\n<arg_key>tags</arg_key>\\n<arg_value>[\\"a\\\\\\\\b\\"]</arg_value>\n</tool_call>'
    found = reading("glm", text)
    assert found.calls == [ToolCall("write", {"tags": ["a\\b"]})]
    assert "repaired" in kinds(found) and "type_mismatch" not in kinds(found)


def test_glm_keeps_a_bare_word_that_is_cut_off_as_text_unless_it_is_a_tool():
    assert reading("glm", "Use the <tool_call> tag\n").content.startswith("Use the <tool_call> tag")
    assert reading("glm", "<tool_call>wri").content == "<tool_call>wri"
    cut = reading("glm", "<tool_call>write\n", "length").malformed
    assert cut[0].truncated and cut[0].name == "write"


# ---- DSML ----


def dsml_call(*values: tuple[str, str, str]) -> str:
    inside = "".join(
        f'<｜DSML｜parameter name="{key}" string="{is_string}">{value}</｜DSML｜parameter>\n'
        for key, is_string, value in values
    )
    return f'<｜DSML｜invoke name="write">\n{inside}</｜DSML｜invoke>\n'


def test_dsml_types_what_the_schema_leaves_open():
    values = [("path", "false", "5"), ("mode", "true", "5"), ("any", "false", "[1.0, null]"), ("x", "false", "7")]
    found = reading("dsml", f"{dsml.OPEN}\n{dsml_call(*values)}{dsml.CLOSE}")
    assert found.calls == [ToolCall("write", {"path": "5", "mode": 5, "any": [1.0, None], "x": 7})]
    found = reading("dsml", f"{dsml.OPEN}{dsml_call(('path', 'true', 'a'), ('any', 'true', '[1]'))}{dsml.CLOSE}")
    assert found.calls[0].arguments["any"] == "[1]"
    found = reading("dsml", f"{dsml.OPEN}{dsml_call(('path', 'true', 'a'), ('any', 'false', '{oops'))}{dsml.CLOSE}")
    assert found.calls[0].arguments["any"] == "{oops"


def test_dsml_blocks_of_v4():
    text = f"<｜DSML｜tool_calls>\n{dsml_call(('path', 'true', 'a'))}</｜DSML｜tool_calls>"
    found = reading("dsml", text)
    assert found.calls == [ToolCall("write", {"path": "a"})] and found.visible() == ""


# ---- what ends a value ----


@every
def test_values_are_verbatim(name):
    spelling = SPELLINGS[name]
    values = ["null", '"hi"', "007", " spaces ", "", "\n", "\r\n", "a\r\nb\r\n", "&lt;b&gt; \\n", "a < b", "🎉", "x\n"]
    for value in values:
        found = reading(name, spelling.call("write", path=value, content=value))
        assert found.calls == [ToolCall("write", {"path": value, "content": value})]


@every
def test_tags_in_a_value_are_data_unless_they_show_that_they_end_it(name):
    spelling = SPELLINGS[name]
    end = spelling.parameter_end.strip()
    parts = [spelling.open, spelling.close, end, spelling.parameter, spelling.parameter % "x", "<think>", end[:-1]]
    parts += [spelling.function_end.strip(), f"{end} in code", f"{end}\n{spelling.open}", f"{end}{end}", "<", "</"]
    for part in parts:
        for value in (part, f"a{part}b", f"a\n{part}\nb"):
            found = reading(name, spelling.call("write", path="p", content=value, mode="3"))
            assert found.calls == [ToolCall("write", {"path": "p", "content": value, "mode": 3})]


@every
def test_an_unclosed_value_ends_before_a_parameter_that_may_follow(name):
    spelling = SPELLINGS[name]
    start = spelling.open + spelling.function % "write" + spelling.parameter % "path" + spelling.newline + "a\n"
    end = spelling.function_end + spelling.close
    found = reading(name, start + spelling.value("content", "b") + end)
    assert found.calls == [ToolCall("write", {"path": "a", "content": "b"})]
    assert kinds(found) == ["unclosed_parameter"]
    undeclared = reading(name, start + spelling.value("nothing", "b") + end).calls[0].arguments
    assert list(undeclared) == ["path"] and spelling.parameter % "nothing" in undeclared["path"]


@every
def test_an_unclosed_value_ends_where_its_call_does(name):
    spelling = SPELLINGS[name]
    unclosed = (
        spelling.open + spelling.function % "write" + spelling.parameter % "path" + spelling.newline + "a\n"
        + spelling.function_end + spelling.close
    )  # fmt: skip
    for after in ("", "\n" + spelling.call("write", path="b"), " Done."):
        found = reading(name, unclosed + after)
        assert found.calls[0] == ToolCall("write", {"path": "a"})
        assert kinds(found) == ["unclosed_parameter"]
        assert len(found.calls) == 1 + after.startswith("\n")
        assert found.visible().strip() == after.strip() * (len(found.calls) == 1)


@every
def test_what_looks_like_the_end_of_an_unclosed_value_is_none_where_the_text_was_cut_off(name):
    spelling = SPELLINGS[name]
    text = spelling.open + spelling.function % "write" + spelling.parameter % "path"
    text += spelling.newline + "see " + spelling.function_end + spelling.close + " as such"
    found = reading(name, text, "length")
    assert not found.calls and json.loads(found.malformed[0].arguments + '"}')["path"].endswith(" as such")


@every
def test_duplicates_and_strangers_are_reported_and_the_call_kept(name):
    spelling = SPELLINGS[name]
    inside = spelling.value("mode", "many") + spelling.value("mode", "2") + spelling.value("color", "red")
    found = reading(name, spelling.open + spelling.function % "write" + inside + spelling.function_end + spelling.close)
    assert found.calls == [ToolCall("write", {"mode": "many", "color": "red"})]
    assert set(kinds(found)) == {"type_mismatch", "duplicate_parameter", "unknown_parameter", "missing_required"}
    assert kinds(reading(name, spelling.call("other", path="a"))) == ["unknown_tool"]


# ---- streams ----


@every
def test_a_string_arrives_while_it_is_written(name):
    spelling = SPELLINGS[name]
    parser = StreamParser(FORMATS[name], TOOLS)
    events = parser.feed(spelling.open + spelling.function % "write" + spelling.parameter % "path")
    events += parser.feed(spelling.newline)
    assert events == [CallStarted(0, "write"), ArgumentsDelta(0, '{"path": "')]
    assert parser.feed('a "b') == [ArgumentsDelta(0, 'a \\"b')]
    assert parser.feed("\n") == []  # may be framing
    assert parser.feed("c <") == [ArgumentsDelta(0, "\\nc ")]
    half = spelling.parameter_end[1:5]
    assert parser.feed(half) == []
    assert parser.feed("! d") == [ArgumentsDelta(0, f"<{half}! d")]
    assert parser.feed(spelling.parameter_end) == []
    assert "".join(e.json for e in parser.feed("e") if isinstance(e, ArgumentsDelta)).endswith("e")
    events = parser.feed(spelling.newline + spelling.parameter_end + spelling.function_end + spelling.close)
    finished = next(e for e in events if isinstance(e, CallFinished))
    assert finished.call.arguments["path"] == f'a "b\nc <{half}! d{spelling.parameter_end}e'


@every
def test_a_call_is_reported_when_its_last_tag_has_come(name):
    parser = StreamParser(FORMATS[name], TOOLS)
    spelling = SPELLINGS[name]
    text = spelling.open + spelling.body("write", path="a", mode="3")
    events = parser.feed(text if spelling.function_end else text + spelling.close)
    assert isinstance(events[-1], CallFinished)


@every
@pytest.mark.parametrize("finish", ["stop", "length"])
def test_a_call_that_is_cut_off_is_never_complete_and_never_lost(name, finish):
    spelling = SPELLINGS[name]
    value = f"if x:\n    print('{spelling.function_end.strip()}')\n{spelling.close} {spelling.parameter_end}:"
    text = "Sure. " + spelling.call("write", path="a", content=value, mode="34")
    known = text.index("write") + len("write") + 1
    complete = text.rindex(spelling.function_end.strip() or spelling.close)
    closed = [text.index(v) + len(v) for v in (spelling.value("path", "a"), spelling.value("content", value))]
    for cut in range(known, complete):
        found = reading(name, text[:cut], finish)
        if found.calls:  # who stops there has left out closing tags; who was cut off there has not
            assert finish == "stop" and found.calls[0].arguments["path"] == "a"
        elif found.malformed:
            broken = found.malformed[0]
            assert broken.truncated and broken.name == "write" and contract.is_json_prefix(broken.arguments)
            if cut >= closed[1]:
                assert broken.arguments.startswith(dumps({"path": "a", "content": value})[:-2])


@every
def test_what_had_arrived_of_a_string_is_reported(name):
    spelling = SPELLINGS[name]
    start = spelling.open + spelling.function % "write"
    cut = reading(name, start + spelling.parameter % "path" + spelling.newline + "half a str", "length").malformed
    assert cut == [
        Malformed(cut[0].raw, "the call of write is cut off", 0, False, True, "write", '{"path": "half a str')
    ]
    cut = reading(name, start + spelling.parameter % "mode" + spelling.newline + "12", "length").malformed
    assert cut[0].arguments == '{"mode": '  # 12 may have been the beginning of 123


@every
def test_garbage_keeps_the_contract_in_any_pieces(name):
    choose = random.Random(name)
    spelling = SPELLINGS[name]
    tags = [
        spelling.open,
        spelling.close,
        spelling.function % "write",
        spelling.function % "other",
        "\n",
        "\r\n",
        "\\n",
    ]
    tags += [spelling.function_end, spelling.parameter_end, "<", "</", ">", " ", "x", "12", '{"path": "a"}', "{"]
    tags += [spelling.parameter % key for key in ("path", "mode", "other")] + ["<think>", "</think>", "ü", "\ud800"]
    for _ in range(400):
        text = "".join(choose.choices(tags, k=choose.randint(1, 25)))
        finish, thinking = choose.choice(["stop", "length"]), choose.random() < 0.3
        whole = events_of(name, text, [len(text)], finish, thinking)
        assert contract.faults(text, whole) == []
        sizes = [choose.randint(1, 9) for _ in range(4)]
        assert contract.merged(events_of(name, text, sizes, finish, thinking)) == contract.merged(whole)


# ---- token ids ----

CONTROL = {1: "<tool_call>", 2: "</tool_call>", 3: "<arg_key>", 4: "</arg_key>", 5: "<arg_value>", 6: "</arg_value>"}


def with_tokens(name: str, pieces: list[str | int], finish: str = "stop") -> Reading:
    """Feed texts by characters, and control tokens by their ids."""
    control = {k: v for k, v in CONTROL.items() if name == "glm" or k < 3}
    parser = StreamParser(FORMATS[name], TOOLS, control=control)
    events: list[Event] = []
    for piece in pieces:
        if isinstance(piece, int):
            events += parser.feed(control[piece], [piece])
        else:
            events += [e for c in piece for e in parser.feed(c)]
    events += parser.finish(finish)
    text = "".join(control[p] if isinstance(p, int) else p for p in pieces)
    assert contract.faults(text, events) == []
    return gather(events)


def test_markers_spelled_out_in_a_value_are_data():
    value = "a</parameter>b</function>\n</tool_call>\n<tool_call>\n<function=now>\n</function>\n</tool_call>"
    call = f"\n<function=write>\n<parameter=path>\n{value}\n</parameter>\n</function>\n"
    found = with_tokens("qwen3_coder", ["Hi <tool_call>.", 1, call, 2, "<tool_call>"])
    assert found.calls == [ToolCall("write", {"path": value})] and not found.problems
    assert found.content == "Hi <tool_call>.<tool_call>"
    call = ["\n<function=write>\n<parameter=path>\n", 1, "\n</parameter>\n</function>"]  # another marker is data
    assert with_tokens("qwen3_coder", [1, *call, 2]).calls == [ToolCall("write", {"path": "<tool_call>"})]


def test_markers_of_glm_spelled_out_in_a_value_are_data():
    value = "</arg_value><arg_key>content</arg_key><arg_value>x</arg_value></tool_call>"
    found = with_tokens("glm", [1, "write\n", 3, "path", 4, "\n", 5, value, 6, "\n", 2])
    assert found.calls == [ToolCall("write", {"path": value})] and not found.problems


def test_the_token_that_ends_a_block_ends_an_open_value():
    found = with_tokens("qwen3_coder", [1, "\n<function=write>\n<parameter=path>\na\n</function>\n", 2, " Done."])
    assert found.calls == [ToolCall("write", {"path": "a"})] and found.content == " Done."
    found = with_tokens("qwen3_coder", [1, "<function=write><parameter=path>\na", 2, " Done."])
    assert found.calls == [ToolCall("write", {"path": "a"})] and found.content == " Done."
    assert kinds(found) == ["unclosed_parameter", "unclosed_function"]
    found = with_tokens("glm", [1, "write", 3, "path", 4, 5, "a", 2, " Done."])
    assert found.calls == [ToolCall("write", {"path": "a"})] and kinds(found) == ["unclosed_parameter"]


# ---- cost ----


@every
def test_what_is_looked_at_again_is_a_fixed_multiple_of_the_text(name, monkeypatch):
    seen = []  # the characters that readers may look at: all that are held, at every look

    class Counting(Window):
        def feed(self, piece, tokens=()):
            looks = super().feed(piece, tokens)
            seen.append(len(self.text) * looks)
            return looks

    monkeypatch.setattr("punie_mlx.toolcalls.stream.Window", Counting)
    spelling = SPELLINGS[name]
    start = spelling.open + spelling.function % "write" + spelling.parameter % "path"
    over = spelling.function_end + spelling.close
    units = ["<", " ", "\n", "\\", "x", over, spelling.parameter_end, spelling.open, start, start + "v" + over + " x"]
    for unit in units:
        text = start + unit * (200_000 // len(unit))
        seen.clear()
        assert contract.faults(text, events_of(name, text, [64])) == []
        assert sum(seen) < 12 * len(text)
