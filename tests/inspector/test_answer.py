"""What a model writes, seen through `inspect --generate`: a real model that says what it is told to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from punie_mlx.chat.render import load_tokenizer
from punie_mlx.cli import app, main
from punie_mlx.corpus.rows import Row
from punie_mlx.errors import ConfigError, DataError
from punie_mlx.inspector.answer import Answer
from punie_mlx.inspector.inspection import Asked, inspect

WEATHER = {
    "name": "get_weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
HOSTILE = "\x1b[31mred\x1b[0m \u202e [bold]no markup[/bold] \x07"


def written(model: Path, key: str, generate: int = 40) -> Answer:
    row = Row([{"role": "user", "content": f"Now {key}"}], [WEATHER], "made.json", 1)
    answer = inspect(Asked(model, row, generate=generate)).answer
    assert answer is not None
    return answer


def test_a_call_as_it_is_written(scripted_model: Path) -> None:
    answer = written(scripted_model, "#call")
    assert [(t.text, t.state) for t in answer.tokens] == [
        ("<tool_call>", "call"), ("\n<function=", "call"), ("get_weather>\n<parameter=city>\n", "arguments"),
        ("Paris\n</parameter>\n</function>\n", "between"), ("</tool_call>", "content"), ("<|im_end|>", ""),
    ]  # fmt: skip
    assert answer.finish == "stop" and answer.read is not None
    (call,) = answer.read.message["tool_calls"]
    assert call == {
        "id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'},
    }  # fmt: skip
    assert (answer.read.finish, answer.read.problems) == ("tool_calls", ())


def test_probabilities_are_the_models_own(scripted_model: Path) -> None:
    answer = written(scripted_model, "#call")
    by_text = {m.text: m for m in answer.markers}
    opener, end = by_text["<tool_call>"], by_text["<|im_end|>"]
    assert (opener.written, opener.at, opener.single) == (1, 0, True) and opener.first == opener.most > 0.4
    assert (end.written, end.at) == (1, 5) and end.first < opener.first
    first = answer.tokens[0]
    assert first.probability == pytest.approx(opener.first) and "markers: <tool_call> " in first.title
    assert by_text["<think>"].written == 0


def test_an_answer_that_is_cut(scripted_model: Path) -> None:
    answer = written(scripted_model, "#call", generate=3)
    assert answer.finish == "length" and len(answer.tokens) == 3 and answer.read is not None
    assert answer.read.finish == "length" and "tool_calls" not in answer.read.message
    assert [p["kind"] for p in answer.read.problems] == ["truncated"]


def test_thinking_and_what_is_no_call(scripted_model: Path) -> None:
    thought = written(scripted_model, "#think")
    assert [t.state for t in thought.tokens] == ["reasoning", "reasoning", "content", "content", ""]
    assert thought.read is not None and thought.read.message["reasoning_content"] == "The user greets me."
    fence = written(scripted_model, "#fence")
    assert {t.state for t in fence.tokens} == {"content", ""}
    assert fence.read is not None and "tool_calls" not in fence.read.message, "nothing is rescued here"
    broken = written(scripted_model, "#broken").read
    assert broken is not None and "<tool_call>\n{no call" in broken.message["content"]


def test_an_answer_behind_an_opened_thinking(scripted_model: Path) -> None:
    template = load_tokenizer(scripted_model).chat_template + "{% if add_generation_prompt %}<think>{% endif %}"
    row = Row([{"role": "user", "content": "Now #think"}], [WEATHER], "made.json", 1)
    answer = inspect(Asked(scripted_model, row, generate=9, chat_template=template)).answer
    assert answer is not None and answer.read is not None
    assert [t.state for t in answer.tokens] == ["reasoning", "content", "content", ""]
    assert answer.read.message["reasoning_content"] == "The user greets me."


def test_a_row_with_its_turn_is_answered_in_its_place(scripted_model: Path) -> None:
    said = [{"role": "user", "content": "Now #hello"}, {"role": "assistant", "content": "Good evening."}]
    found = inspect(Asked(scripted_model, Row(said, [], "made.json", 1), generate=9))
    assert found.answer is not None and found.answer.read is not None
    assert found.answer.read.message["content"] == "Hello, world 🌍!"
    assert {t.turn for t in found.answer.tokens} == {1} and found.fingerprint
    (view,) = found.views
    assert view.name == "conversation" and 0 < view.prompt < len(view.tokens)
    assert {t.turn for t in view.tokens} == {0, 1}


def test_a_template_that_writes_nothing_is_answered_by_nothing(scripted_model: Path) -> None:
    row = Row([{"role": "user", "content": "Now #hello"}], [], "made.json", 1)
    with pytest.raises(DataError, match="writes nothing"):
        inspect(Asked(scripted_model, row, generate=1, chat_template="{{ '' }}"))


def test_an_adapter_without_an_answer_is_refused(tiny_base: Path) -> None:
    with pytest.raises(ConfigError, match="give --generate"):
        Asked(tiny_base, Row([{"role": "user", "content": "a"}], []), adapter=tiny_base)


# ---- the command ----


def run(*options: object) -> Any:
    return CliRunner().invoke(app, ["inspect", *map(str, options)])


def file(path: Path, messages: list[dict[str, Any]]) -> Path:
    path.write_text(json.dumps({"messages": messages, "tools": [WEATHER]}))
    return path


def test_the_command_says_all_of_it_as_json(scripted_model: Path, tmp_path: Path) -> None:
    messages = file(tmp_path / "m.json", [{"role": "user", "content": "Now #call"}])
    result = run("--model", scripted_model, "--messages", messages, "--generate", 40, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["answer"]["read"]["finish_reason"] == "tool_calls"
    assert found["answer"]["tokens"][0]["state"] == "call" and found["tools"] == ["get_weather"]


def test_the_terminal_shows_ids_states_turns_and_losses(tiny_base: Path, tmp_path: Path) -> None:
    messages = [{"role": "user", "content": HOSTILE}, {"role": "assistant", "content": f"Yes. {HOSTILE}"}]
    result = run("--model", tiny_base, "--messages", file(tmp_path / "m.json", messages))
    assert result.exit_code == 0, result.output
    for sign in ("── message 1, user ──", "<|im_start|>₁", "⟦", "<|im_end|>₂⟧", "‹content›", "trained on"):
        assert sign in result.stdout, sign
    assert "U+202E" in result.stdout and "U+001B" in result.stdout
    assert not [c for c in result.stdout if c in "\x1b\x07\u202e"]


def test_the_terminal_shows_an_answer(scripted_model: Path, tmp_path: Path) -> None:
    messages = file(tmp_path / "m.json", [{"role": "user", "content": "Now #call"}])
    result = run("--model", scripted_model, "--messages", messages, "--generate", 40)
    assert result.exit_code == 0, result.output
    assert "answer: 6 tokens, the model ended it" in result.stdout and "‹arguments›" in result.stdout
    assert "the answer, as the reader has it (tool_calls)" in result.stdout and '"get_weather"' in result.stdout


def test_wrong_options_say_what_to_do(tiny_base: Path, tmp_path: Path) -> None:
    messages = file(tmp_path / "m.json", [{"role": "user", "content": "Hi"}])
    empty = tmp_path / "empty.jinja"
    empty.write_text("\n")
    for options, said in (
        (("--template-kwargs", "[]"), "must be a JSON object"),
        (("--template-kwargs", "{"), "must be a JSON object"),
        (("--template-kwargs", '{"tools": []}'), "'tools' cannot be given to a chat template"),
        (("--chat-template", empty), "is empty"),
        (("--html", messages), "is an input itself"),
        (("--tool-call-format", "owl"), "choose one of"),
        (("--chat-template", tmp_path / "none"), "cannot be read"),
        (("--html", tmp_path), "is a directory"),
        (("--line", "9"), "no row on line 9"),
    ):
        result = run("--model", tiny_base, "--messages", messages, *options)
        assert said in str(result.exception), options
        assert getattr(result.exception, "exit_code", None) == 2, options


def test_a_refusal_shows_hidden_characters_by_their_code_points(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    call = {"function": {"name": f"red{HOSTILE}", "arguments": 3}}
    messages = file(tmp_path / "m.json", [{"role": "assistant", "tool_calls": [call]}])
    monkeypatch.setattr("sys.argv", ["punie-mlx", "inspect", "--model", str(tiny_base), "--messages", str(messages)])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr().err
    assert ended.value.code == 2 and "a call of redU+001B[31m" in said and "U+202E" in said
    assert not [c for c in said if c in "\x1b\x07\u202e"]
