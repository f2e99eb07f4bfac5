"""JSON in pieces: what is passed on is strict, arrives at once, and does not depend on the pieces."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from punie_mlx.toolcalls.calls import CallFinished, Problem, dumps
from punie_mlx.toolcalls.jsonstream import DEPTH, JsonArguments, JsonStream, Slot, problems, whole
from punie_mlx.toolcalls.sink import Sink
from punie_mlx.toolcalls.window import Window

CLOSER = "</tool_call>"


def feed(text: str, size: int = 0, closers: tuple[str, ...] = ()) -> tuple[JsonStream, str, int]:
    """The stream of `text` in pieces of `size`, what it passed on, and how much of the text it read."""
    out: list[str] = []
    stream, window = JsonStream(out.append, closers=closers), Window()
    size, read = size or len(text) or 1, 0
    for i in range(0, len(text) + size, size):
        if i < len(text):
            window.feed(text[i : i + size])
        else:
            window.end(clean=True)
        before = window.pos
        window.pos = stream.read(window, window.pos)
        read += window.pos - before
        if stream.done or stream.broken:
            break
    return stream, "".join(out), read


def outcome(text: str, size: int = 0) -> tuple[object, ...]:
    stream, out, read = feed(text, size, (CLOSER,))
    return out, read, stream.done, stream.broken, stream.repairs, stream.duplicates, stream.short


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=1000, deadline=None)
@given(st.lists(JSON, max_size=3) | st.dictionaries(st.text(), JSON, max_size=3), st.booleans(), st.integers(0, 9))
def test_json_is_passed_on_as_it_is(value, ascii, size):
    text = json.dumps(value, ensure_ascii=ascii, indent=size % 2 or None)
    stream, out, read = feed(text, size)
    assert stream.done and not stream.broken and not stream.repairs and read == len(text)
    assert stream.value() == value and json.loads(out) == value
    out.encode()


PIECES = ["{", "}", "[", "]", ",", ":", '"', "'", "\\", "u12", "1", "-", "e5", ".", "true", "None", "a", " ", "\n"]
PIECES += ["\ud800", "é", CLOSER, "<", '"a": ', "'b'", "\\u00e9", "\x00", "{'a': ", '"c"', "NaN"]


@settings(max_examples=2000, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=20).map("".join), st.sampled_from(["", '{"a": ', "[1, "]))
def test_garbage_gives_the_same_in_any_pieces_and_only_json_is_done(text, opening):
    found = outcome(opening + text)
    assert outcome(opening + text, 1) == outcome(opening + text, 3) == found
    if found[2]:
        json.loads(found[0])


@pytest.mark.parametrize(
    "text, expected, repairs",
    [
        ("{'a': 'b', \"c\": 'd'}", '{"a": "b", "c": "d"}', ["single quotes"]),
        ("{'a': 'say \"hi\"'}", '{"a": "say \\"hi\\""}', ["single quotes"]),
        ('{"a": "it\\\'s"}', '{"a": "it\'s"}', ["an escaped single quote"]),
        ('{"a": [True, False, None]}', '{"a": [true, false, null]}', ["a Python literal instead of JSON"]),
        ('{"a": [1, 2, ], }', '{"a": [1, 2]}', ["trailing comma"]),
        ('{"a": "x\ny\t"}', '{"a": "x\\ny\\t"}', ["a control character in a string"]),
        ('{"a": "\\d \\u12 \\x41"}', '{"a": "\\\\d \\\\u12 \\\\x41"}', ["an unknown escape"]),
        ('{"a": {"b": 1' + CLOSER, '{"a": {"b": 1}}', ["missing }}"]),
        ("{" + CLOSER, "{}", ["missing }"]),
    ],
)
def test_slips_are_mended_and_reported(text, expected, repairs):
    for size in (0, 1, 2, 3):
        stream, out, _ = feed(text, size, (CLOSER,))
        assert (out, stream.done, stream.repairs) == (expected, True, repairs)
        assert dumps(stream.value()) == expected


@pytest.mark.parametrize(
    "text",
    [
        "NaN", "[Infinity]", "[-Infinity]", "[1e999]", "[01]", "[+1]", "[.5]", "[1.]", "[0x1]", "[1 2]", "[,1]",
        "[1,,2]", "{,}", '{"a" 1}', '{"a": 1: 2}', '{"a": }', "{a: 1}", '{"a": 1]', "[1}", "undefined", "(1)",
        '{"a": "b" "c"}', '{"a": ' + CLOSER, '{"a": 1,' + CLOSER, "[[[1" + CLOSER, '{"a"' + CLOSER, "9" * 5000,
        '{{"a": 1}}',
    ],
)  # fmt: skip
def test_what_is_no_json_stops_with_a_reason(text):
    for size in (0, 1, 3):
        stream, _, _ = feed(text, size, (CLOSER,))
        assert stream.broken and not stream.done


def test_strings_arrive_as_they_are_written():
    out: list[str] = []
    stream, window = JsonStream(out.append), Window()
    for piece, passed_on in [
        ('{"a', "{"),
        ('": "x', '"a": "x'),
        ("yz", "yz"),
        ("\\", ""),
        ("n\\u00", "\\n"),
        ("e9", "\\u00e9"),
        ('", "n": 12', '", "n": '),  # a number may go on
        ("3 ", "123"),
        (",", ""),  # held back: it may be a trailing one
        ('"b"', ', "b": '),
        (":[]}", "[]}"),
    ]:
        out.clear()
        window.feed(piece)
        window.pos = stream.read(window, window.pos)
        assert "".join(out) == passed_on
    assert stream.done


def test_the_first_of_duplicate_keys_stands_at_any_depth():
    stream, out, _ = feed('{"a": 1, "a": {"b": [2], "b": 3}, "\\u0061": 4, "o": {"x": 1, "x": 2}}')
    assert out == '{"a": 1, "o": {"x": 1}}'
    assert stream.duplicates == [("b", "3"), ("a", '{"b": [2]}'), ("a", "4"), ("x", "2")]
    assert problems(stream)[0] == Problem("duplicate_parameter", "b", "3")


def test_numbers_keep_their_spelling():
    text = '{"a": 9007199254740993, "b": 1.0, "c": -0.5E+3, "d": 1e2}'
    stream, out, _ = feed(text)
    assert out == text and [type(v) for v in stream.value().values()] == [int, float, float, float]


def test_depth_is_bounded():
    assert feed("[" * DEPTH + "]" * DEPTH)[0].done
    assert feed("[" * (DEPTH + 1))[0].broken == feed('{"a":' * 100_000)[0].broken == "nested too deeply"


def test_lone_surrogates_are_passed_on_as_escapes():
    for text in ('{"a": "\ud800"}', '{"a": "\\ud800"}', '{"\ud800": 1}'):
        stream, out, _ = feed(text)
        assert "\\ud800" in out and out.isascii()
        assert stream.value() in ({"a": "\ud800"}, {"\ud800": 1})


def test_a_route_sends_values_elsewhere():
    parts: list[str] = []
    over: list[bool] = []

    def route(depth: int, key: str, char: str) -> Slot | None:
        return Slot(parts.append, lambda: over.append(True)) if (depth, key, char) == (1, "b", "{") else None

    out: list[str] = []
    stream = JsonStream(out.append, route=route)
    window = Window()
    window.text = '{"a": 1, "b": {"c": {}}, "d": 2}'
    stream.read(window, 0)
    assert "".join(out) == '{"a": 1, "b": , "d": 2}' and "".join(parts) == '{"c": {}}' and over == [True]


def test_whole_reads_one_value_and_nothing_after_it():
    assert whole(' {"a": 1} ').value() == {"a": 1}
    assert whole("12").value() == 12
    for text in ('{"a": 1} x', '{"a": 1', "", " "):
        assert whole(text).broken


def test_arguments_go_to_the_sink():
    sink, window = Sink(()), Window()
    sink.start("f")
    arguments = JsonArguments(sink, (CLOSER,))
    window.feed('{\'a\': 1, "a": 2, "b": "x')
    assert not arguments.step(window) and not arguments.done
    window.feed('"' + CLOSER)
    assert arguments.step(window) and arguments.done
    assert arguments.value() == {"a": 1, "b": "x"}
    assert [p.kind for p in arguments.problems()] == ["repaired", "duplicate_parameter"]
    sink.finish(arguments.value())
    assert isinstance(sink.events[-1], CallFinished)
    assert window.text[window.pos :] == CLOSER


def test_arguments_must_be_an_object():
    for text in ("[1]", '"x"', "null", "x"):
        sink, window = Sink(()), Window()
        sink.start("f")
        arguments = JsonArguments(sink)
        window.feed(text)
        assert arguments.step(window) and arguments.broken


@pytest.mark.parametrize(
    "text",
    ['{"a": "' + "x" * 10**6 + '"}', '["' + "\\n" * 300_000, "[" + "1," * 200_000, " " * 10**6, '["' + "\\",
     "9" * 10**6],
    ids=["string", "escapes", "list", "spaces", "backslash", "digits"],
)  # fmt: skip
def test_a_million_characters_in_small_pieces(text):
    feed(text, 4)  # quadratic would be minutes
