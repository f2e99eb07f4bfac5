"""Rows are read strictly: a bad one names its file and line."""

from __future__ import annotations

import json

import pytest

from punie_mlx.corpus.rows import BadRow, Row, parse_row, read_rows, read_split, write_rows
from punie_mlx.errors import DataError

GOOD = {
    "messages": [{"role": "user", "content": "Hi\u2028there"}, {"role": "assistant", "content": "Hello"}],
    "tools": [],
}
TOOL = {"type": "function", "function": {"name": "read_file"}}


def test_what_is_written_is_read_back(tmp_path):
    assert write_rows(tmp_path / "train.jsonl", [GOOD, Row(GOOD["messages"], [TOOL])]) == 2
    rows = read_split(tmp_path, "train")
    assert [r.messages for r in rows] == [GOOD["messages"]] * 2
    assert rows[1].tools == [TOOL]
    assert rows[1].where == f"{tmp_path / 'train.jsonl'}:2"


def call(**function: object) -> str:
    """A row with a call."""
    message = {"role": "assistant", "content": "", "tool_calls": [{"function": function}]}
    return json.dumps({"messages": [message]})


@pytest.mark.parametrize(
    "line, says",
    [
        ("{", "not JSON"),
        ("[1]", "JSON object"),
        ("[" * 100_000, "not JSON"),
        ('{"messages": [{"role": "user", "content": "a"}], "weight": NaN}', "NaN is no JSON value"),
        ('{"text": "\\ud83d"}', "surrogate"),
        ("{}", "without `messages`, `prompt` with `completion`, or `text`"),
        ('{"text": "a", "messages": []}', "with `messages` and `text`"),
        ('{"text": " "}', "not be empty"),
        ('{"text": 3}', "`text` must be text"),
        ('{"prompt": "a"}', "`prompt` and `completion` must each"),
        ('{"prompt": "a", "completion": []}', "must not be empty"),
        ('{"prompt": [{"role": "robot"}], "completion": "b"}', "message 1 has the role 'robot'"),
        ('{"messages": []}', "at least one message"),
        ('{"messages": ["Hi"]}', "message 1 is a string, not an object"),
        ('{"messages": [{"role": "robot", "content": ""}]}', "robot"),
        ('{"messages": [{"role": "user", "content": 3}]}', "`content` that is a number"),
        ('{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}', "a part that is no text"),
        ('{"messages": [{"role": "user", "content": ["Hi"]}]}', "a part that is no text"),
        ('{"messages": [{"role": "assistant", "content": "", "reasoning": ["a"]}]}', "`reasoning` that is a list"),
        ('{"messages": [{"role": "user", "content": "", "train": 0}]}', "`train` of message 1 is 0"),
        ('{"messages": [{"role": "user", "content": "", "weight": -1}]}', "`weight` of message 1 is -1"),
        ('{"messages": [{"role": "user", "content": ""}], "weight": true}', "`weight` of the row is True"),
        ('{"messages": [{"role": "assistant", "content": "", "tool_calls": {}}]}', "`tool_calls` that are no list"),
        ('{"messages": [{"role": "assistant", "content": "", "tool_calls": [{}]}]}', "function name"),
        (call(name=""), "function name"),
        (call(name="f", arguments='{"path": "src/a'), "arguments are text that is not JSON"),
        (call(name="f", arguments="[1]"), "arguments are no object"),
        (call(name="f", arguments="null"), "arguments are no object"),
        (call(name="f", arguments=[1]), "arguments are no object"),
        ('{"messages": [{"role": "user", "content": ""}], "tools": {}}', "tools"),
        ('{"messages": [{"role": "user", "content": ""}], "tools": [{"type": "function"}]}', "each with a name"),
    ],
)
def test_a_bad_row_names_file_and_line(tmp_path, line, says):
    path = tmp_path / "train.jsonl"
    path.write_text(json.dumps(GOOD) + "\n\n" + line + "\n")
    with pytest.raises(DataError) as e:
        list(read_rows(path))
    assert f"{path}:3" in str(e.value) and says in str(e.value)


def test_missing_and_empty_files(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        read_split(tmp_path / "no", "train")
    with pytest.raises(DataError, match="does not exist"):
        read_split(tmp_path, "train")
    assert read_split(tmp_path, "valid", required=False) == []
    (tmp_path / "train.jsonl").write_text("\n")
    with pytest.raises(DataError, match="no rows"):
        read_split(tmp_path, "train")
    (tmp_path / "train.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="UTF-8"):
        read_split(tmp_path, "train")


def test_three_shapes_in_one_file(tmp_path):
    lines = [
        json.dumps(GOOD),
        '{"text": "Some text", "train": false}',
        '{"prompt": "Hi", "completion": "Hello", "weight": 0.5}',
        json.dumps(
            {"prompt": GOOD["messages"], "completion": [{"role": "assistant", "content": "Bye"}], "tools": [TOOL]}
        ),
    ]
    (tmp_path / "train.jsonl").write_text("\n".join(lines))
    chat, text, short, long = read_split(tmp_path, "train")
    assert (chat.text, chat.weight) == (None, 1.0)
    assert (text.text, text.messages, text.weight) == ("Some text", [], 0.0)
    assert short.messages == [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    assert short.weight == 0.5 and long.tools == [TOOL]
    # What the assistant said in a prompt is not learned.
    assert [m.get("train", True) for m in long.messages] == [True, False, True]
    write_rows(tmp_path / "again.jsonl", [chat, text, short, long])
    assert [r.to_json() for r in read_rows(tmp_path / "again.jsonl")] == [
        r.to_json() for r in (chat, text, short, long)
    ]


def test_a_history_may_hold_a_broken_call(tmp_path):
    """It was served so; but it is not to be learned."""
    message = json.loads(call(name="f", arguments="{broken"))["messages"][0]
    assert parse_row(json.dumps({"messages": [{**message, "train": False}]}), "f", 1).messages[0]["train"] is False
    assert parse_row(call(name="f", arguments=""), "f", 1) and parse_row(call(name="f", arguments=None), "f", 1)


def test_bad_rows_are_told_together(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text("\n".join([json.dumps(GOOD), "{", "[]", json.dumps(GOOD)]))
    with pytest.raises(DataError) as e:
        read_split(tmp_path, "train")
    first, second = str(e.value).splitlines()
    assert first.startswith(f"{path}:2: this line is not JSON")
    assert second == f"{path}:3: a row is a JSON object, this is a list: mend or remove these lines"
    path.write_text("{\n" * 30)
    with pytest.raises(DataError) as e:
        read_split(tmp_path, "train")
    assert len(str(e.value).splitlines()) == 10 and "there may be more" in str(e.value)


def test_bad_rows_may_be_set_aside(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text("\n".join(["{", json.dumps(GOOD), *["[]"] * 12]))
    bad: list[BadRow] = []
    assert [r.line for r in read_split(tmp_path, "train", bad=bad)] == [2]
    assert [b.line for b in bad] == [1, *range(3, 15)]
    assert bad[1] == BadRow(str(path), 3, "a row is a JSON object, this is a list", "[]")
    path.write_text("{")
    with pytest.raises(DataError, match="no rows"):
        read_split(tmp_path, "train", bad=bad)
