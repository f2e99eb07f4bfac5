"""gpt-oss's format: headers in all their forms, what ends a message, calls and code, cuts, and token ids."""

from __future__ import annotations

import pytest

from punie_mlx.toolcalls.calls import (
    ArgumentsDelta,
    CallFinished,
    CallStarted,
    Malformed,
    Marker,
    Reasoning,
    Text,
    Tool,
    ToolCall,
)
from punie_mlx.toolcalls.contract import faults, merged
from punie_mlx.toolcalls.formats import harmony
from punie_mlx.toolcalls.stream import Joined, StreamParser, read

TOOLS = [Tool("f", parameters={"properties": {"a": {"type": "integer"}}})]
CONTROL = dict(enumerate(("<|start|>", "<|channel|>", "<|constrain|>", "<|message|>", "<|call|>", "<|end|>"), 7))
FINAL = "<|start|>assistant<|channel|>final<|message|>"


def events(text: str, chunk: int = 0, finish: str = "stop", *, reasoning: bool = False) -> list:
    parser = StreamParser("harmony", TOOLS, starts_in_reasoning=reasoning)
    size = chunk or len(text) or 1
    found = [e for i in range(0, len(text), size) for e in parser.feed(text[i : i + size])]
    return merged([*found, *parser.finish(finish)])


def same(text: str, finish: str = "stop", *, reasoning: bool = False) -> list:
    """The events of `text`, which keep the contract and are the same for every chunking."""
    whole = events(text, 0, finish, reasoning=reasoning)
    assert not faults(text, whole)
    for chunk in (1, 2, 3, 7):
        assert events(text, chunk, finish, reasoning=reasoning) == whole
    return whole


@pytest.mark.parametrize(
    "header",
    [
        "<|channel|>commentary to=functions.f <|constrain|>json<|message|>",
        "<|channel|>commentary to=functions.f<|constrain|>json<|message|>",
        "<|channel|>commentary to=functions.f json<|message|>",
        "<|channel|>analysis to=functions.f<|message|>",
        "<|channel|>commentary to=f<|message|>",
        "<|start|>assistant<|channel|>commentary to=functions.f<|message|>",
        "<|start|>assistant to=functions.f<|channel|>commentary json<|message|>",
        "<|start|>assistant to=functions.f<|message|>",
        "<|start|>assistant to=functions.f <|constrain|>json<|channel|>commentary<|message|>",
        " to=functions.f<|channel|>commentary json<|message|>",
        "to=functions.f<|channel|>analysis code<|message|>",
        "\n to=functions.f<|channel|>commentary<|message|>",
        "commentary to=functions.f<|message|>",
        "commentary<|channel|>commentary to=functions.f<|message|>",
    ],
)
@pytest.mark.parametrize("end", ["<|call|>", "<|end|>", "<|return|>", "", "\n<|call|>\n"])
def test_a_call_by_every_header(header, end):
    found = same(f'{header}{{"a": 1}}{end}')
    assert [e.call for e in found if isinstance(e, CallFinished)] == [ToolCall("f", {"a": 1})]
    assert not any(isinstance(e, Text | Reasoning | Malformed) for e in found)


def test_arguments_stream():
    parser = StreamParser("harmony", TOOLS)
    assert CallStarted(0, "f") in parser.feed(' to=functions.f<|channel|>commentary json<|message|>{"a": "one')
    assert parser.feed(" two") == [ArgumentsDelta(0, " two")]


@pytest.mark.parametrize(
    ("text", "content", "reasoning"),
    [
        ("Just text.", "Just text.", ""),
        ("final answer: 4", "final answer: 4", ""),
        ("analysis of tools", "analysis of tools", ""),
        ("<|channel|>final<|message|>  4 \n<|return|>", "  4 \n", ""),
        ("<|channel|>final <|constrain|>Weather<|message|>{}", "{}", ""),
        ("<|start|>assistant<|message|>4", "4", ""),
        ("analysis<|message|>so<|end|>assistant<|channel|>final<|message|>4", "4", "so"),
        (f"<|channel|>analysis<|message|>so{FINAL}4<|end|>", "4", "so"),
        ("<|channel|>analysis<|message|>so<|channel|>final<|message|>4", "4", "so"),
        (f"<|channel|>commentary<|message|>I look.<|end|>{FINAL}4<|return|>", "I look.\n4", ""),
        (f"<|channel|>analysis<|message|>a<|end|><|channel|>analysis<|message|>b<|end|>{FINAL}4", "4", "a\nb"),
        ("<|channel|>commentary to=assistant<|message|>note<|end|>", "note", ""),
        ("<|channel|>final<|message|>4<|end|>\n<|return|>\n", "4", ""),
        ("a<|channel|>final<|message|>b<|end|> c", "a\nb\n c", ""),
        (f"{FINAL}4<|end|><|channel|>final: 5<|return|>", "4\n<|channel|>final: 5<|return|>", ""),
        (f"{FINAL}4<|end|><|start|>x y<|end|>{FINAL}5<|return|>", "4\n<|start|>x y<|end|>\n5", ""),
        (f"{FINAL}4<|end|> The <|channel|> marker.<|return|>", "4\n The <|channel|> marker.", ""),
    ],
)
def test_texts(text, content, reasoning):
    same(text)
    found = read(text, "harmony")
    assert (found.content, found.reasoning, found.calls, found.problems) == (content, reasoning, [], [])


@pytest.mark.parametrize(
    "mention",
    [
        "say <|end|> at the end",
        "the <|channel|> marker",
        "<|start|> and <|message|>",
        "<|channel|>a b c d<|message|>",
        "<|channel|>final\n<|message|>",
        "to=functions.f is a recipient",
        "a < b, a <| b, <|",
        "<|start|><|start|>",
    ],
)
def test_a_marker_that_is_talked_about_is_text(mention):
    for text in (f"<|channel|>final<|message|>{mention}.<|return|>", f"It is {mention}."):
        same(text)
        assert mention in read(text, "harmony").content


def test_markers_inside_arguments_are_data():
    body = '{"a": "<|call|><|start|>assistant<|channel|>final<|message|>x"}'
    found = read(f" to=functions.f<|channel|>commentary json<|message|>{body}<|call|>", "harmony")
    assert found.calls == [ToolCall("f", {"a": "<|call|><|start|>assistant<|channel|>final<|message|>x"})]


def test_stray_words_between_messages_are_framing():
    call = '<|channel|>commentary to=functions.f<|message|>{"a": 1}<|call|>commentary'
    found = same(f"{call}{call}<|start|>assistant<|channel|>final<|message|>Done<|return|>")
    assert [e.text for e in found if isinstance(e, Text)] == ["Done"]
    assert sum(isinstance(e, CallFinished) for e in found) == 2
    assert same(call)[-1] == Marker("<|call|>commentary")


def test_a_call_while_thinking_and_reasoning_goes_on():
    text = (
        "so<|end|><|start|>assistant<|channel|>analysis to=browser.search<|message|>"
        '{"q": 1}<|call|><|start|>assistant<|channel|>analysis<|message|>then<|end|>'
    )
    found = same(text, reasoning=True)
    assert [e.text for e in found if isinstance(e, Reasoning)] == ["so", "then"]
    assert [e.call.name for e in found if isinstance(e, CallFinished)] == ["browser.search"]


def test_python_is_sent_code():
    code = "if a < b:\n    print('<|call|>', \"\\n\")\n"
    found = same(f"<|channel|>analysis to=python code<|message|>{code}<|call|>{FINAL}4<|return|>")
    assert [e.call for e in found if isinstance(e, CallFinished)] == [ToolCall("python", {"code": code})]
    as_json = read('<|channel|>analysis to=python json<|message|>{"code": "1"}<|call|>', "harmony")
    assert as_json.calls == [ToolCall("python", {"code": "1"})]
    cut = read(f"<|channel|>analysis to=python<|message|>{code}", "harmony", finish="length")
    assert not cut.calls and cut.malformed[0].truncated


@pytest.mark.parametrize("body", ["[1]", "no JSON", '{"a" 1}', '{"a": <|call|>', "x<|start|>y<|call|>"])
def test_a_broken_call_is_kept(body):
    found = same(f"<|channel|>commentary to=functions.f<|message|>{body}<|call|>{FINAL}Done<|return|>")
    (broken,) = (e for e in found if isinstance(e, Malformed))
    assert broken.raw.startswith("<|channel|>commentary to=functions.f<|message|>") and not broken.truncated
    assert found[-2] == Text("Done")


def test_slips_are_mended_and_told():
    found = read('<|channel|>commentary to=functions.f<|message|>{"a": 1<|call|>', "harmony", TOOLS)
    assert found.calls == [ToolCall("f", {"a": 1})] and found.problems[0].kind == "repaired"
    found = read("<|channel|>commentary to=functions.f<|message|>{'a': 'x',}<|call|>", "harmony", TOOLS)
    assert found.calls == [ToolCall("f", {"a": "x"})]
    assert {p.kind for p in found.problems} == {"repaired", "type_mismatch"}
    empty = read("<|channel|>commentary to=functions.f<|message|> <|call|>", "harmony", TOOLS)
    assert empty.calls == [ToolCall("f", {})] and empty.problems[0].kind == "repaired"
    twice = read('<|channel|>commentary to=functions.f<|message|>{"a": 1, "a": 2}<|call|>', "harmony", TOOLS)
    assert twice.calls == [ToolCall("f", {"a": 1})] and twice.problems[0].kind == "duplicate_parameter"


def test_every_cut():
    call = '<|start|>assistant<|channel|>commentary to=functions.f <|constrain|>json<|message|>{"a": 1}'
    for end in range(len(call)):
        found = same(call[:end], "length")
        named = end > call.index("to=functions.f") + len("to=functions.f")
        assert not any(isinstance(e, CallFinished) for e in found)
        assert [e.name for e in found if isinstance(e, Malformed)] == (["f"] if named else [])
        shown = "".join(e.text for e in found if isinstance(e, Text))
        assert shown == ("" if named or len("<|start|>") <= end <= call.index("to=") + 2 else call[:end])
    assert [type(e) for e in same(call, "length")][-1] is CallFinished  # complete, though the closing marker is missing
    (cut,) = read(call[:-1], "harmony", finish="length").malformed
    assert cut.truncated and cut.arguments == '{"a": '[: len(cut.arguments)] and cut.arguments


def feed_tokens(tokens: list[tuple[str, int]]) -> list:
    parser = StreamParser("harmony", TOOLS, control=CONTROL)
    found = [e for text, token in tokens for e in parser.feed(text, [token])]
    return merged([*found, *parser.finish("stop")])


def marks(*parts: str) -> list[tuple[str, int]]:
    """Each part as a piece of its own; one that is a marker comes as its token."""
    ids = {text: token for token, text in CONTROL.items()}
    return [(part, ids.get(part, 1)) for part in parts]


def test_with_token_ids_only_tokens_are_markers():
    said = "Use <|end|> and <|channel|>final<|message|>. "
    tokens = [*marks("<|channel|>", "final", "<|message|>"), (said, 1), *marks("<|end|>")]
    assert [e for e in feed_tokens(tokens) if isinstance(e, Text)] == [Text(said)]
    spelled = [("<|channel|>final<|message|>Hi", 1)]
    assert feed_tokens(spelled) == [Text("<|channel|>final<|message|>Hi")]


def test_a_token_ends_a_message_even_inside_a_string():
    head = marks("<|channel|>", "commentary to=functions.f", "<|message|>")
    tail = marks("<|call|>", "<|start|>", "assistant", "<|channel|>", "final", "<|message|>", "Done")
    found = feed_tokens([*head, ('{"a": "<|call|>', 1), *tail])
    assert [e.reason for e in found if isinstance(e, Malformed)] == ["the message ends before its arguments do"]
    assert found[-1] == Text("Done")
    found = feed_tokens([*head, ('{"a": "<|call|>"}', 1), *tail])
    assert [e.call.arguments for e in found if isinstance(e, CallFinished)] == [{"a": "<|call|>"}]


def test_rendering_is_what_follows_the_prompt():
    one, two = ToolCall("f", {"a": 1}), ToolCall("g.h", {"b": {"c": [None, "<|call|>é"]}})
    assert harmony.render([one]) == ' to=functions.f<|channel|>commentary json<|message|>{"a": 1}<|call|>'
    for text in (harmony.render([one, two]), "Sure.\n" + harmony.render([one, two])):
        same(text)
        found = read(text, "harmony")
        assert found.calls == [one, two] and found.content.strip() == text.partition(" to=")[0].strip()


def test_joined_texts_come_the_same_in_pieces():
    joined = Joined("\n")
    assert [joined.next(piece) for piece in ("", "a", "b", "", "", "c", "")] == ["", "a", "b", "", "", "\nc", ""]
