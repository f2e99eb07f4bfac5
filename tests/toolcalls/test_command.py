"""The parse verb, detection, and the conformance cases of other readers."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from punie_mlx.errors import ConfigError, DataError
from punie_mlx.toolcalls.command import parse, parse_cases
from punie_mlx.toolcalls.detect import detect, examine

CALL = "<tool_call>\n<function=f>\n<parameter=x>\n1\n</parameter>\n</function>\n</tool_call>"
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"properties": {"x": {"type": "integer"}}}}}]

# Each is answered otherwise on purpose.
DIVERGENCES = {
    "vllm-rust-hermes-hermes_does_not_validate_or_normalize_arguments": "ours mends the JSON",
    "vllm-rust-qwen-tool_framing_preserves_body_whitespace_across_chunk_boundaries": "white space alone is framing",
}


def test_parse():
    assert parse(f"Sure.\n{CALL}", tools=TOOLS) == {
        "content": "Sure.\n",
        "reasoning": None,
        "tool_calls": [{"name": "f", "arguments": {"x": 1}}],
        "problems": [],
        "finish_reason": "tool_calls",
    }
    cut = parse(CALL[:50], finish="length")
    assert cut["content"] == CALL[:50] and cut["tool_calls"] == [] and cut["finish_reason"] == "length"
    assert cut["problems"][0]["kind"] == "malformed"


def test_the_command_reads_files_and_cases(tmp_path):
    (tmp_path / "tools.json").write_text(json.dumps(TOOLS))
    (tmp_path / "cases.jsonl").write_text(
        json.dumps({"id": "a", "format": "qwen3_coder", "tools": TOOLS, "model_output": CALL})
        + "\n"
        + json.dumps({"id": "b", "format": "nonsense", "model_output": "x"})
    )
    command = [sys.executable, "-m", "punie_mlx", "parse"]
    one = subprocess.run([*command, "--tools", tmp_path / "tools.json"], input=CALL, capture_output=True, text=True)
    assert json.loads(one.stdout)["tool_calls"] == [{"name": "f", "arguments": {"x": 1}}]
    many = subprocess.run(
        [*command, "--jsonl", tmp_path / "cases.jsonl", "--chunk", "3"], capture_output=True, text=True
    )
    first, second = map(json.loads, many.stdout.splitlines())
    assert first["id"] == "a" and first["tool_calls"] and "no wire format" in second["error"]
    missing = subprocess.run([*command, str(tmp_path / "no")], capture_output=True, text=True)
    assert missing.returncode == 2 and "no" in missing.stderr
    (tmp_path / "cases.jsonl").write_text("{}")
    with pytest.raises(DataError, match=r"cases\.jsonl:1"):
        list(parse_cases(tmp_path / "cases.jsonl"))


def test_detect(tiny_base):
    template = (tiny_base / "chat_template.jinja").read_text()
    assert detect(template, ["<tool_call>"]) == "qwen3_coder"
    assert "<tool_call>" in examine(template, ["<tool_call>"]).evidence["qwen3_coder"]
    assert detect('<tool_call>{"name": x, "arguments": y}</tool_call>') == "hermes"
    for template in ("", None, "{{ messages }}", "<tool_call>{{ name }}<arg_key>arguments"):
        with pytest.raises(ConfigError, match="no wire format"):
            detect(template)


def test_detect_real_templates(real_data):
    found = {p.stem: examine(p.read_text()).format for p in sorted((real_data / "templates").glob("*.jinja"))}
    assert {k: v for k, v in found.items() if v} == {
        "NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use": "hermes",
        "Qwen-Qwen2.5-7B-Instruct": "hermes",
        "Qwen-Qwen3-0.6B": "hermes",
        "Qwen3-Coder": "qwen3_coder",
        **{k: "hermes" for k in found if k.startswith("ibm")},
    }


def test_conformance(real_data, tmp_path):
    """The cases of other readers' test suites in our formats, at several chunk sizes."""
    scorer = real_data.parent / "tools" / "score_conformance.py"
    lines = [x for p in sorted((real_data / "conformance").glob("*.jsonl")) for x in p.read_text().splitlines()]
    cases = [
        x for x in lines if (c := json.loads(x))["format"] in ("qwen3_coder", "hermes") and c["id"] not in DIVERGENCES
    ]
    assert len(cases) > 150
    (tmp_path / "cases.jsonl").write_text("\n".join(cases))
    command = f"{sys.executable} -m punie_mlx parse"
    done = subprocess.run(
        [sys.executable, scorer, tmp_path / "cases.jsonl", "--cmd", command, "--chunks", "0,1,7"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
