"""The converter: every row accounted for, every converted row proved, no bad row stops it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from punie_mlx.chat.render import load_tokenizer
from punie_mlx.corpus.convert import ConvertConfig, Report, Target, convert, rendered_turn
from punie_mlx.corpus.rows import read_split
from punie_mlx.corpus.structure import BadRow, structure
from punie_mlx.errors import ConfigError, DataError, OutputError
from punie_mlx.toolcalls.calls import Tool
from punie_mlx.toolcalls.formats import json_fence
from punie_mlx.toolcalls.stream import read

HERMES = """{%- for m in messages -%}<|im_start|>{{ m.role }}
{{ m.content }}{%- for c in m.tool_calls or [] %}
<tool_call>
{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}
</tool_call>{%- endfor %}<|im_end|>
{% endfor -%}{%- if add_generation_prompt -%}<|im_start|>assistant
{% endif -%}"""


def fence(name: str, arguments: object, indent: int | None = 2) -> str:
    return f"```json\n{json.dumps({'name': name, 'arguments': arguments}, indent=indent)}\n```"


def chatml(*turns: tuple[str, str]) -> dict[str, str]:
    return {"text": "\n".join(f"<|im_start|>{role}\n{content}<|im_end|>" for role, content in turns)}


def row(answer: str, *more: tuple[str, str]) -> dict[str, object]:
    turns = [("system", "Be useful."), ("user", "Please"), ("assistant", answer), *more]
    return {"messages": [{"role": r, "content": c} for r, c in turns]}


class Run:
    """One conversion of lines, and what it wrote."""

    def __init__(self, folder: Path, model: Path, lines: list[object], **options: object) -> None:
        source = folder / "in"
        source.mkdir(exist_ok=True)
        raw = [x if isinstance(x, bytes) else (x if isinstance(x, str) else json.dumps(x)).encode() for x in lines]
        (source / "train.jsonl").write_bytes(b"\n".join(raw) + b"\n")
        self.out = folder / "out"
        self.report: Report = convert(ConvertConfig(source, self.out, model, overwrite=True, **options))
        self.rows = [json.loads(x) for x in (self.out / "train.jsonl").read_text().splitlines()]
        self.bad = [json.loads(x) for x in (self.out / "quarantine.jsonl").read_text().splitlines()]
        assert self.report.rows == len(lines) == self.report.converted + self.report.quarantined
        assert (len(self.rows), len(self.bad)) == (self.report.converted, self.report.quarantined)
        calls = self.report.calls
        assert calls["found"] == calls["converted"] + calls["in_quarantine"]


@pytest.fixture
def run(tmp_path, tiny_base):
    return lambda *lines, **options: Run(tmp_path, tiny_base, list(lines), **options)


def calls_of(message: dict) -> list[tuple[str, dict]]:
    return [(c["function"]["name"], c["function"]["arguments"]) for c in message.get("tool_calls", [])]


def test_every_fence_of_a_turn_and_the_text_around_it_is_kept(run):
    done = run(row(f"First.\n\n{fence('a', {'x': 1})}\nThen.\n{fence('b', {}, None)} Last."))
    answer = done.rows[0]["messages"][2]
    assert calls_of(answer) == [("a", {"x": 1}), ("b", {})]
    assert answer["content"] == "First.\n\nThen.\n\nLast."
    assert done.report.notes["text_moved"] == 1


def test_values_keep_type_and_order(run):
    arguments = {
        "z": 1,
        "a": 1.0,
        "flag": True,
        "none": None,
        "list": [1, "x", {"k": []}],
        "text": "```\n{'a'}\n```",
        "n": "7",
    }
    done = run(row(fence("f", arguments)))
    assert json.dumps(calls_of(done.rows[0]["messages"][2])[0][1]) == json.dumps(arguments)


def test_results_become_tool_turns(run):
    single = chatml(
        ("user", "Go"), ("assistant", fence("a", {})), ("user", "Tool result: 1\n2"), ("assistant", "Done.")
    )
    tagged = row(
        fence("a", {}),
        ("user", "<tool_response>\none\n</tool_response>\n<tool_response>\ntwo\n</tool_response>\nAnd now?"),
        ("assistant", "Done."),
    )
    done = run(single, tagged)
    assert done.rows[0]["messages"][2] == {"role": "tool", "content": "1\n2"}
    assert [(m["role"], m["content"]) for m in done.rows[1]["messages"][3:6]] == [
        ("tool", "one"), ("tool", "two"), ("user", "And now?"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "body",
    [
        "{'name': 'f', 'arguments': {'x': True, 'y': None}}",
        '{"name": "f", "arguments": {"x": true, "y": null,}}',
        '{"name": "f", "arguments": "{\\"x\\": true, \\"y\\": null}"}',
    ],
)
def test_slips_are_mended_and_flagged(run, body):
    done = run(row(f"```json\n{body}\n```"))
    assert calls_of(done.rows[0]["messages"][2]) == [("f", {"x": True, "y": None})]
    assert done.report.calls["recovered"] == 1


@pytest.mark.parametrize(
    "content",
    ["```python\nprint({'name': 1})\n```", '```json\n{"port": 80}\n```', "```\n{not json}\n```", "Use ``` for code."],
)
def test_a_fence_that_is_no_call_is_text(run, content):
    done = run(row(content))
    assert done.rows[0]["messages"][2] == {"role": "assistant", "content": content}
    assert done.report.calls["found"] == 0


CUT = '```json\n{"name": "f", "arguments": "{\\"title\\": \\"Inception"}\n```'
BAD = [
    ("not_json", "{"),
    ("not_json", b"\xff\xfe{}"),
    ("not_a_row", "[1]"),
    ("not_a_row", {"prompt": "x"}),
    ("bad_tools", {**row("Hi"), "tools": 3}),
    ("bad_role", {"messages": [{"role": "robot", "content": ""}]}),
    ("bad_role", {"messages": [{"role": ["x"], "content": ""}]}),
    ("bad_content", {"messages": [{"role": "user", "content": 3}]}),
    ("broken_call", row(CUT)),
    ("broken_call", row('```json\n{"name": "f", "arguments": {"x": "y')),
    ("broken_call", row("<tool_call>\n<function=f>\n<parameter=x>\nab")),
    ("broken_call", {"messages": [{"role": "assistant", "tool_calls": [{"name": "f", "arguments": "{"}]}]}),
    ("cannot_render", {"messages": row("Hi")["messages"], "tools": [{"name": "f", "parameters": {"properties": 3}}]}),
    ("ends_on_user_turn", row("Hi", ("user", "And?"))),
    ("ends_on_tool_turn", row(fence("a", {}), ("user", "Tool result: 1"))),
    ("result_without_call", row("Hi", ("user", "Tool result: 1"), ("assistant", "Ok"))),
    ("empty_turn", row(" ")),
    ("cut_off", {"text": "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHel"}),
    ("text_outside_turns", {"text": "Hello"}),
    ("does_not_round_trip", row(fence("f", {"x": "a\n</parameter>\n</function>\nb"}))),
]  # fmt: skip


@pytest.mark.parametrize("reason, line", BAD)
def test_a_bad_row_is_quarantined_with_its_place(run, reason, line):
    good = row("Hi")
    done = run(good, line, good)
    assert len(done.rows) == 2
    assert [(q["file"], q["line"], q["reason"]) for q in done.bad] == [("train.jsonl", 2, reason)]
    assert done.bad[0]["detail"]


def test_a_broken_row_counts_all_its_calls(run):
    done = run(row(f"{fence('a', {})}\n{CUT}\n{fence('b', {})}"))
    assert done.report.calls["found"] == 3 and done.report.calls["in_quarantine"] == 3


def test_calls_in_tags_and_given_calls(run):
    given = row("Sure.")
    given["messages"][2]["tool_calls"] = [{"id": "1", "function": {"name": "f", "arguments": '{"x": 2}'}}]
    tags = chatml(
        ("user", "Go"),
        ("assistant", "Now.\n\n<tool_call><function=g>\n<parameter=x>\n1 \n</parameter>\n</function></tool_call>"),
    )
    done = run(given, tags)
    assert calls_of(done.rows[0]["messages"][2]) == [("f", {"x": 2})]
    assert calls_of(done.rows[1]["messages"][1]) == [("g", {"x": "1 "})]
    assert done.rows[1]["messages"][1]["content"] == "Now."


def test_schemas_are_inferred_from_all_calls_and_marked(run):
    own = {
        "type": "function",
        "function": {"name": "g", "description": "", "parameters": {"type": "object", "properties": {}}},
    }
    done = run(
        row(fence("f", {"x": 1, "tags": ["a"]})),
        row(fence("f", {"x": 2.5, "y": "b"})),
        {**row(fence("g", {})), "tools": [own]},
        row("No tool needed."),
    )
    tool = done.rows[0]["tools"][0]["function"]
    assert done.rows[0]["tools_inferred"] is True and done.report.inferred_tools == ["f"]
    assert tool["parameters"]["properties"] == {
        "x": {"type": "number"}, "tags": {"type": "array", "items": {"type": "string"}}, "y": {"type": "string"},
    }  # fmt: skip
    assert tool["parameters"]["required"] == ["x"]
    assert done.rows[2]["tools"] == [own] and "tools_inferred" not in done.rows[2]
    assert [t["function"]["name"] for t in done.rows[3]["tools"]] == ["f"]


def test_a_row_is_offered_its_tools_and_others(run):
    done = run(*[row(fence(f"tool_{i}", {})) for i in range(9)], offered=4)
    offered = [[t["function"]["name"] for t in r["tools"]] for r in done.rows]
    assert all(len(names) == 4 and f"tool_{i}" in names for i, names in enumerate(offered))
    assert len({names.index(f"tool_{i}") for i, names in enumerate(offered)}) > 1


def test_consecutive_answers_are_joined(run):
    done = run(row("Sure.", ("assistant", f"I look.\n{fence('a', {})}")))
    assert [m["role"] for m in done.rows[0]["messages"]] == ["system", "user", "assistant"]
    assert done.rows[0]["messages"][2]["content"] == "Sure.\n\nI look."


def test_another_template_is_proved_in_its_own_format(tmp_path, tiny_base):
    model = tmp_path / "hermes"
    model.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        shutil.copy(tiny_base / name, model / name)
    (model / "chat_template.jinja").write_text(HERMES)
    done = Run(tmp_path, model, [row(fence("f", {"x": "</tool_call>", "n": 1}))])
    assert done.report.format == "hermes" and calls_of(done.rows[0]["messages"][2]) == [
        ("f", {"x": "</tool_call>", "n": 1})
    ]
    (model / "chat_template.jinja").write_text("{{ messages[0].content }}")
    with pytest.raises(ConfigError, match="no wire format"):
        Run(tmp_path, model, [row("Hi")])


def test_bad_directories_and_existing_output(tmp_path, tiny_base):
    out = tmp_path / "out"
    for source in (tmp_path / "no", tmp_path):
        with pytest.raises(DataError):
            convert(ConvertConfig(source, out, tiny_base))
    assert not out.exists()
    Run(tmp_path, tiny_base, [row("Hi")])
    with pytest.raises(OutputError, match="--overwrite"):
        convert(ConvertConfig(tmp_path / "in", out, tiny_base))
    assert sorted(p.name for p in out.iterdir()) == ["manifest.json", "quarantine.jsonl", "report.json", "train.jsonl"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "out"]


def test_two_conversions_are_equal(tmp_path, tiny_base):
    lines = [row(fence(f"t{i}", {"b": i, "a": "x"})) for i in range(5)] + [row(CUT)]
    first = Run(tmp_path, tiny_base, lines)
    before = {p.name: p.read_bytes() for p in first.out.iterdir()}
    second = Run(tmp_path, tiny_base, lines)
    assert before == {p.name: p.read_bytes() for p in second.out.iterdir()}


PIECES = st.sampled_from(
    ["<|im_start|>", "user\n", "assistant\n", "<|im_end|>", "```json\n", "```", '{"name": "f", "arguments": {', "}}",
     '"', "Tool result: ", "<tool_response>", "</tool_response>", "<tool_call>", "<function=f>", "</function>",
     "x", "\n"]
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.lists(PIECES, max_size=25).map("".join), st.booleans())
def test_any_text_is_a_draft_or_a_bad_row(text, ready_made):
    line = json.dumps({"text": text} if ready_made else row(text))
    try:
        draft = structure(line, Counter())
    except BadRow as e:
        assert e.reason and e.detail is not None
    else:
        assert draft.messages[-1]["role"] == "assistant"


def test_real_rows(real_data, tmp_path, tiny_base):
    source, out = real_data / "punie" / "mlx_format", tmp_path / "out"
    report = convert(ConvertConfig(source, out, tiny_base))
    assert report.rows == 251 == report.converted + report.quarantined
    assert report.reasons == {"broken_call": 68, "ends_on_user_turn": 2}
    assert (report.calls["found"], report.calls["broken"], report.calls["recovered"]) == (214, 100, 3)
    target = Target(load_tokenizer(tiny_base), "qwen3_coder")
    for r in (r for name in ("train", "valid", "test") for r in read_split(out, name)):
        for i, message in enumerate(r.messages):
            if message["role"] != "assistant":
                continue
            assert not any(s.calls or s.reason for s in json_fence.split(message["content"]))
            text = rendered_turn(target, r.messages, i, r.tools)
            found = read(text, "qwen3_coder", [Tool.from_openai(t) for t in r.tools])
            assert [(c.name, c.arguments) for c in found.calls] == calls_of(message)


def test_real_rows_with_tags(real_data, tmp_path, tiny_base):
    report = convert(ConvertConfig(real_data / "punie" / "phase22", tmp_path / "out", tiny_base))
    assert report.rows == 707 and report.calls["converted"] == 497 and report.calls["in_fences"] == 8


def test_the_verb_and_the_scripts(root, tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    (source / "train.jsonl").write_text(json.dumps(row(fence("f", {"x": 1}))) + "\n{\n")
    commands = [
        [sys.executable, "-m", "punie_mlx", "convert", "--json"],
        [sys.executable, root / "scripts" / "convert_to_xml_format.py"],
        [sys.executable, root / "scripts" / "convert_training_data.py"],
    ]
    for i, command in enumerate(commands):
        out = tmp_path / str(i)
        done = subprocess.run([*command, source, out], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert json.loads((out / "report.json").read_text())["converted"] == 1
        assert "quarantine" in done.stdout
        again = subprocess.run([*command, source, out], capture_output=True, text=True)
        assert again.returncode == 2 and "--overwrite" in again.stderr
        missing = subprocess.run([*command, tmp_path / "no", tmp_path / "new"], capture_output=True, text=True)
        assert missing.returncode == 2 and "does not exist" in missing.stderr and not (tmp_path / "new").exists()
