"""Rows are read strictly: a bad one names its file and line."""

from __future__ import annotations

import json

import pytest

from punie_mlx.corpus.rows import Row, read_rows, read_split, write_rows
from punie_mlx.errors import DataError

GOOD = {
    "messages": [{"role": "user", "content": "Hi\u2028there"}, {"role": "assistant", "content": "Hello"}],
    "tools": [],
}


def test_what_is_written_is_read_back(tmp_path):
    assert write_rows(tmp_path / "train.jsonl", [GOOD, Row(GOOD["messages"], [{"type": "function"}])]) == 2
    rows = read_split(tmp_path, "train")
    assert [r.messages for r in rows] == [GOOD["messages"]] * 2
    assert rows[1].tools == [{"type": "function"}]
    assert rows[1].where == f"{tmp_path / 'train.jsonl'}:2"


@pytest.mark.parametrize(
    "line, says",
    [
        ("{", "not JSON"),
        ("[1]", "JSON object"),
        ('{"text": "<|im_start|>"}', "punie-mlx convert"),
        ('{"messages": []}', "at least one message"),
        ('{"messages": [{"role": "robot", "content": ""}]}', "robot"),
        ('{"messages": [{"role": "user", "content": 3}]}', "content"),
        ('{"messages": [{"role": "assistant", "content": "", "tool_calls": [{}]}]}', "function name"),
        ('{"messages": [{"role": "user", "content": ""}], "tools": {}}', "tools"),
        ("[" * 100_000, "not JSON"),
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
