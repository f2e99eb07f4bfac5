"""The parse verb: its interface is promised, so every key, option and message that others may build on is tested."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from punie_mlx.errors import ConfigError, DataError
from punie_mlx.toolcalls import formats
from punie_mlx.toolcalls.calls import ToolCall
from punie_mlx.toolcalls.command import Options, parse, parse_cases, read_text, read_tools

CALL = "<tool_call>\n<function=f>\n<parameter=x>\n1\n</parameter>\n</function>\n</tool_call>"
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"properties": {"x": {"type": "integer"}}}}}]
COMMAND = (sys.executable, "-m", "punie_mlx", "parse")


def run(*options: str | Path, text: str | bytes = "") -> subprocess.CompletedProcess[bytes]:
    given = text.encode() if isinstance(text, str) else text
    return subprocess.run([*COMMAND, *options], input=given, capture_output=True, check=False)


def refused(*options: str | Path, text: str | bytes = "") -> str:
    """What the command says when it refuses."""
    done = run(*options, text=text)
    assert done.returncode == 2 and not done.stdout
    return done.stderr.decode()


def lines(path: Path, *cases: object) -> Path:
    path.write_text("".join(json.dumps(case) + "\n" for case in cases))
    return path


# ---- results ----


def test_the_keys_of_a_result():
    assert parse(f"Sure.\n{CALL}", "qwen3_coder", TOOLS) == {
        "content": "Sure.\n",
        "reasoning": None,
        "tool_calls": [{"name": "f", "arguments": {"x": 1}}],
        "problems": [],
        "finish_reason": "tool_calls",
    }
    assert parse("so</think>4", "qwen3_coder", reasoning=True) == {
        "content": "4",
        "reasoning": "so",
        "tool_calls": [],
        "problems": [],
        "finish_reason": "stop",
    }


def test_a_problem_has_kind_detail_and_raw():
    (problem,) = parse(CALL.replace("=f>", "=g>"), "qwen3_coder", TOOLS)["problems"]
    assert problem == {"kind": "unknown_tool", "detail": "g", "raw": ""}


def test_a_call_that_is_cut_off_has_the_text_of_its_arguments():
    nameless = parse(CALL[:22], "qwen3_coder", finish="length")
    assert nameless["tool_calls"] == [] and nameless["content"] == CALL[:22]
    text = '<tool_call>{"name": "f", "arguments": {"x": "a b'
    cut = parse(text, "hermes", TOOLS, finish="length")
    assert cut["tool_calls"] == [{"name": "f", "arguments": '{"x": "a b', "truncated": True}]
    assert cut["finish_reason"] == "length" and cut["content"] is None
    assert cut["problems"][0]["kind"] == "truncated"


def test_a_rescued_call_says_so():
    text = '{"name": "f", "arguments": {"x": 1}}'
    (call,) = parse(text, "qwen3_coder", TOOLS, rescue=True)["tool_calls"]
    assert call == {"name": "f", "arguments": {"x": 1}, "rescued": True}
    assert parse(text, "qwen3_coder", TOOLS)["content"] == text
    assert "rescued" not in parse(CALL, "qwen3_coder", TOOLS, rescue=True)["tool_calls"][0]


def test_texts_of_several_messages_are_joined():
    text = "<|channel|>commentary<|message|>I look.<|end|><|start|>assistant<|channel|>final<|message|>4<|return|>"
    for chunk in (0, 1, 3):
        assert parse(text, "harmony", chunk=chunk)["content"] == "I look.\n4"


def test_an_unknown_format_or_finish_is_refused():
    with pytest.raises(ConfigError, match="there is no wire format 'nonsense'"):
        parse("x", "nonsense")
    with pytest.raises(ConfigError, match="one of stop, length"):
        parse("x", finish="tool_calls")


# ---- auto ----


@pytest.mark.parametrize("name", [n for n, f in formats.FORMATS.items() if f.native])
def test_auto_takes_the_format_that_the_text_shows(name):
    text = "Sure.\n" + formats.render(name, [ToolCall("f", {"x": 1})])
    found = parse(text, tools=TOOLS)
    assert [c["name"] for c in found["tool_calls"]] == ["f"]
    same_words = {"hermes": "qwen3_coder", "mimo": "qwen3_coder", "smollm3": "qwen3_coder"}
    assert found["format"] == same_words.get(name, name)
    assert "format" not in parse(text, name, TOOLS)


def test_auto_is_not_misled_by_words_alone():
    said = "Not [TOOL_CALLS], not <|channel|>, not [int(x) for x in y], not {'a': 1}, but "
    assert parse(said + CALL, tools=TOOLS)["format"] == "qwen3_coder"
    assert parse(said)["content"] == said and parse(said)["format"] == "qwen3_coder"
    inside = CALL.replace("1", '[TOOL_CALLS][{"name": "f", "arguments": {}}]')
    assert parse(inside)["format"] == "qwen3_coder"
    assert parse("<|channel|>final<|message|>Hi<|return|>")["content"] == "Hi"
    assert parse("<tool_call>f\n</tool_call>", tools=TOOLS)["format"] == "glm"
    assert parse('[TOOL_CALLS][{"name": "f", "arg')["format"] == "mistral"


# ---- the command ----


def test_one_answer(tmp_path):
    (tmp_path / "tools.json").write_text(json.dumps(TOOLS))
    (tmp_path / "answer.txt").write_bytes(b"a\r\nb")
    one = run("--format", "qwen3_coder", "--tools", tmp_path / "tools.json", text=CALL)
    assert one.returncode == 0 and json.loads(one.stdout)["tool_calls"] == [{"name": "f", "arguments": {"x": 1}}]
    assert json.loads(run("--chunk", "1", tmp_path / "answer.txt").stdout)["content"] == "a\r\nb"  # line ends are kept
    thinking = run("--reasoning", "--finish", "length", "-", text="so")
    assert json.loads(thinking.stdout) == {
        "content": None,
        "reasoning": "so",
        "tool_calls": [],
        "problems": [],
        "finish_reason": "length",
        "format": "qwen3_coder",
    }
    rescued = run("--rescue", "--tools", tmp_path / "tools.json", text="f(x=1)")
    assert json.loads(rescued.stdout)["tool_calls"][0]["rescued"]


def test_cases(tmp_path):
    path = lines(
        tmp_path / "cases.jsonl",
        {"id": "a", "format": "qwen3_coder", "tools": TOOLS, "model_output": CALL},
        {"id": 2, "format": "nonsense", "model_output": "x"},
        {"model_output": "so</think>4", "reasoning": True, "finish": None, "expect": {}},
        {"id": "d", "model_output": "x", "finish": "tool_calls"},
        {"id": "e", "model_output": "\ud800 é", "tools": None, "format": None},
    )
    done = run("--jsonl", path, "--chunk", "3")
    first, second, third, fourth, fifth = map(json.loads, done.stdout.splitlines())
    assert first["id"] == "a" and first["tool_calls"] == [{"name": "f", "arguments": {"x": 1}}]
    assert second["id"] == 2 and "no wire format" in second["error"]
    assert (third["id"], third["content"], third["reasoning"]) == (None, "4", "so")
    assert "one of stop, length" in fourth["error"]
    assert fifth["content"] == "\ud800 é"
    assert run("--jsonl", "-", "--chunk", "3", text=path.read_bytes()).stdout == done.stdout


def test_options_are_the_defaults_of_cases(tmp_path):
    path = lines(tmp_path / "cases.jsonl", {"model_output": "so", "format": "hermes"}, {"model_output": "so"})
    found = list(parse_cases(path, Options("qwen3_coder", reasoning=True, finish="length")))
    assert [r["reasoning"] for r in found] == ["so", "so"] and found[0]["finish_reason"] == "length"
    case = {"model_output": "so", "reasoning": False}
    (found,) = parse_cases(lines(path, case), Options(reasoning=True))
    assert found["content"] == "so"


def test_cases_are_read_as_they_come(tmp_path):
    """A result is written before the next line is read: a large file is never held."""
    path = tmp_path / "cases.jsonl"
    path.write_bytes(b'{"id": 1, "model_output": "x"}\n\n\xff\n')
    found = parse_cases(path)
    assert next(found)["id"] == 1
    with pytest.raises(DataError, match=r"cases\.jsonl:3: no JSON"):
        next(found)


def test_many_cases_take_one_process(tmp_path):
    path = lines(tmp_path / "cases.jsonl", *({"id": i, "model_output": CALL, "tools": TOOLS} for i in range(3000)))
    assert sum(1 for r in parse_cases(path) if r["tool_calls"]) == 3000


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{}", "no `model_output`"),
        ("[1]", "no `model_output`"),
        ('{"model_output": 1}', "no `model_output`"),
        ('{"model_output": "x", "tools": {"a": 1}}', "`tools` is no list"),
        ('{"model_output": "x", "tools": ["a"]}', "`tools` is no list"),
        ("[" * 100_000, "no JSON"),
        ("x", "no JSON"),
    ],
)
def test_a_line_that_is_no_case_is_named(tmp_path, line, message):
    (tmp_path / "cases.jsonl").write_text('{"model_output": "x"}\n' + line)
    with pytest.raises(DataError, match=rf"cases\.jsonl:2: {message}.*a case is one JSON object a line"):
        list(parse_cases(tmp_path / "cases.jsonl"))


def test_files_that_cannot_be_used_are_named(tmp_path):
    (tmp_path / "latin.txt").write_bytes(b"a\xff")
    (tmp_path / "tools.json").write_text('[\n{"a" 1}]')
    (tmp_path / "object.json").write_text("{}")
    assert "no.txt cannot be read (No such file or directory): give the path" in refused(tmp_path / "no.txt")
    assert "no.jsonl cannot be read" in refused("--jsonl", tmp_path / "no.jsonl")
    with pytest.raises(DataError, match=r"latin\.txt is not UTF-8 \(byte 1\)"):
        read_text(str(tmp_path / "latin.txt"))
    with pytest.raises(DataError, match=r"tools\.json:2: no JSON .* must be a list of OpenAI function schemas"):
        read_tools(tmp_path / "tools.json")
    with pytest.raises(DataError, match=r"object\.json: it must be a JSON list"):
        read_tools(tmp_path / "object.json")
    assert read_tools(None) == []


def test_options_that_cannot_be_used_are_refused():
    assert "choose one of deepseek, gemma" in refused("--format", "nonsense")
    assert "it must be one of stop, length" in refused("--finish", "end")
    assert "--chunk" in refused("--chunk", "-1")


def test_the_help_names_every_format():
    shown = run("--help").stdout.decode()
    assert all(name in shown for name in (*formats.FORMATS, "auto", "--rescue", "truncated"))


def test_a_reader_that_goes_away_is_no_error(tmp_path):
    path = lines(tmp_path / "cases.jsonl", *({"id": i, "model_output": "x" * 1000} for i in range(500)))
    with subprocess.Popen([*COMMAND, "--jsonl", path], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout and process.stderr
        os.read(process.stdout.fileno(), 1)
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0
