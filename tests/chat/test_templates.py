"""Our own templates: each speaks its wire format, loses nothing, and is made with the tokens of a tokenizer."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from jinja2 import nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment
from typer.testing import CliRunner

from punie_mlx.chat.alone import Alone
from punie_mlx.chat.render import Conversation, load_tokenizer, render_as_given
from punie_mlx.chat.templates import FAMILIES, Family, family_of, literal, make
from punie_mlx.chat.turns import turn
from punie_mlx.cli import app
from punie_mlx.errors import ConfigError
from punie_mlx.toolcalls import detect
from punie_mlx.toolcalls.calls import Tool, ToolCall
from punie_mlx.toolcalls.stream import read

FAMILY = pytest.mark.parametrize("family", list(FAMILIES.values()), ids=list(FAMILIES))
SCHEMA = {
    "type": "object",
    "properties": {
        "note": {"type": "string", "description": "What to write, é < ü & 'so'."},
        "kind": {"enum": ["moss", "fern"]},
        "count": {"type": "integer", "minimum": 2},
        "wet": {"type": "boolean"},
        "where": {"type": "object", "properties": {"row": {"type": ["integer", "null"]}}, "required": ["row"]},
        "tags": {"type": "array", "items": {"type": "string"}},
    },
    "required": ["note"],
}
WRITE: dict[str, Any] = {
    "type": "function",
    "function": {"name": "write_note", "description": "Writes it down.\nTwo lines.", "parameters": SCHEMA},
}
OFFERED = [Tool("write_note", parameters=SCHEMA)]
ASK = {"role": "user", "content": "Note the moss."}
ADVERSARIAL = {
    "plain": {"note": "moss"},
    "typed": {"note": "x", "count": 3, "wet": True, "where": {"row": None}, "tags": ["a", 'b"', ""]},
    "nothing": {},
    "quotes and braces": {"note": 'He said "}" and \\ and {{ x }} {% y %}'},
    "lines": {"note": "one\n\n  two\n"},
    "tags of the formats": {"note": "<tool_call> </tool_call> [TOOL_CALLS] </think> <function=f>"},
    "not ASCII": {"note": "Grüße, 苔 🌿 \u2028 <b>&amp;'"},
    "numbers as text": {"note": "007"},
    "JSON as text": {"note": '{"note": [1, null]}'},
}
# What a template may use that llama.cpp's own engine for them has, too: no methods of Python's strings and dicts.
FILTERS = {"items", "length", "replace", "tojson", "trim"}
TESTS = {"defined", "false", "mapping", "sequence", "string"}
FUNCTIONS = {"namespace", "range"}


def written(template: str, *messages: dict[str, Any], tools: Any = (WRITE,), ask: bool = True, **kwargs: Any) -> str:
    return render_as_given(Alone(template), messages, tools, add_generation_prompt=ask, **kwargs)


def call(arguments: Any, content: Any = None, **more: Any) -> dict[str, Any]:
    function = {"name": "write_note", "arguments": arguments}
    calls = [{"id": "pL3nQ8xZ1", "type": "function", "function": function}]
    return {"role": "assistant", "content": content, "tool_calls": calls, **more}


def result(text: str) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": "pL3nQ8xZ1", "content": text}


@FAMILY
def test_a_template_shows_its_own_format_and_nothing_else(family: Family) -> None:
    template = make(family.name)
    assert detect.detect(template) == family.format
    assert family_of(template) == family.name == family_of(template, [*family.frame, "<tool_call>"])
    assert template.isascii()


@FAMILY
@pytest.mark.parametrize("case", ADVERSARIAL)
def test_a_call_is_read_back_as_it_was_written(family: Family, case: str) -> None:
    template = make(family.name)
    before = written(template, ASK)
    whole = written(template, ASK, call(ADVERSARIAL[case], "Right away."), ask=False)
    assert whole.startswith(before)
    wire = detect.examine(template).wire()
    reading = read(whole[len(before) :], wire, OFFERED)
    assert reading.calls == [ToolCall("write_note", ADVERSARIAL[case])]
    assert "Right away." in reading.content


@FAMILY
def test_a_loop_only_adds_to_the_prompt(family: Family) -> None:
    template = make(family.name)
    steps = [ASK, call({"note": "a"}), result("kept"), call({"note": "b"}), result("kept too")]
    steps += [{"role": "assistant", "content": "Both are kept."}, {"role": "user", "content": "Thanks."}]
    for kwargs in ({}, {"enable_thinking": False}, {"enable_thinking": True}):
        prompts = [written(template, *steps[:n], **kwargs) for n in (1, 3, 5, 7)]
        assert all(later.startswith(earlier) for earlier, later in pairwise(prompts)), kwargs


@FAMILY
def test_all_of_a_tool_is_shown(family: Family) -> None:
    shown = written(make(family.name), ASK)
    for word in ("write_note", "é < ü & 'so'", "moss", "fern", "integer", "minimum", "row", "null"):
        assert word in shown, word
    assert "Two lines." in shown
    assert written(make(family.name), ASK, tools=[WRITE["function"]])  # as some clients give it


@FAMILY
def test_a_messy_message_is_written_as_a_tidy_one(family: Family) -> None:
    template = make(family.name)
    tidy = written(template, ASK, call({"note": "a"}, ""), result("kept"))
    asked = {"role": "user", "content": [{"type": "text", "text": "Note the "}, {"type": "text", "text": "moss."}]}
    unsaid = call({"note": "a"})
    del unsaid["content"]
    for messy in (call({"note": "a"}), unsaid, call({"note": "a"}, [])):
        assert written(template, asked, messy, result("kept")) == tidy
    as_text = call(json.dumps({"note": "a"}), "")
    if family.format == "qwen3_coder":  # JSON cannot be taken apart in Jinja, so that it stands as a whole
        assert '{"note": "a"}' in written(template, ASK, as_text, result("kept"))
    else:
        assert written(template, ASK, as_text, result("kept")) == tidy


@FAMILY
def test_thinking_is_kept_in_the_loop_that_it_belongs_to(family: Family) -> None:
    template = make(family.name)
    thinks = family.name in ("hermes", "smollm3", "gpt_oss")
    loop = [ASK, call({"note": "a"}, reasoning_content="Moss is wet."), result("kept")]
    assert ("Moss is wet." in written(template, *loop)) == thinks
    later = [*loop, {"role": "assistant", "content": "Done."}, {"role": "user", "content": "Next."}]
    assert "Moss is wet." not in written(template, *later)


def test_the_switch_of_thinking_closes_the_prompt() -> None:
    for family in ("hermes", "smollm3"):
        template = make(family)
        assert written(template, ASK).endswith("<|im_start|>assistant\n")
        assert written(template, ASK, enable_thinking=False).rstrip().endswith("<think>\n\n</think>")
    smollm3 = make("smollm3")
    told = {"role": "system", "content": "Be brief. /no_think"}
    off = written(smollm3, told, ASK, tools=None)
    assert off.rstrip().endswith("</think>") and "Reasoning Mode: /no_think" in off and "Be brief. \n" in off
    back = {"role": "system", "content": "Be brief. /think"}
    assert "Reasoning Mode: /think" in written(smollm3, back, ASK, enable_thinking=False)
    assert "Reasoning Mode: /think" in written(smollm3, {"role": "user", "content": "Say /no_think"})


def test_harmony_finds_the_name_of_a_result() -> None:
    template = make("gpt_oss")
    two = call({"note": "a"})
    two["tool_calls"].append({"id": "other", "function": {"name": "erase_note", "arguments": {}}})
    late = [{"role": "tool", "tool_call_id": "other", "content": "gone"}, result("kept")]
    text = written(template, ASK, two, *late)
    assert "functions.erase_note to=assistant<|channel|>commentary<|message|>gone<|end|>" in text
    assert "functions.write_note to=assistant<|channel|>commentary<|message|>kept<|end|>" in text
    nameless = [{"role": "tool", "content": "kept"}, {"role": "tool", "content": "gone"}]
    text = written(template, ASK, two, *nameless)
    assert text.index("functions.write_note to=assistant") < text.index("functions.erase_note to=assistant")


def test_mistral_writes_as_its_tokenizer_can() -> None:
    older, newer = make("mistral"), make("mistral", ["[INST]", "[/INST]", "[ARGS]", "[SYSTEM_PROMPT]"])
    talk = [{"role": "system", "content": "Be brief."}, ASK, call({"note": "a"}), result("kept")]
    assert '[TOOL_CALLS][{"name": "write_note", "arguments": {"note": "a"}, "id": "pL3nQ8xZ1"}]</s>' in written(
        older, *talk
    )
    assert written(older, *talk).endswith('[TOOL_RESULTS]{"content": "kept", "call_id": "pL3nQ8xZ1"}[/TOOL_RESULTS]')
    assert "[INST]Be brief.\n\nNote the moss.[/INST]" in written(older, *talk)
    assert '[TOOL_CALLS]write_note[ARGS]{"note": "a"}</s>[TOOL_RESULTS]kept[/TOOL_RESULTS]' in written(newer, *talk)
    assert written(newer, *talk).startswith("<s>[SYSTEM_PROMPT]Be brief.[/SYSTEM_PROMPT][AVAILABLE_TOOLS]")
    assert make("mistral", template="{{ '[ARGS]' }}{{ '[SYSTEM_PROMPT]' }}") == newer
    numbered = make("mistral", template="[ARGS][CALL_ID][SYSTEM_PROMPT]")
    for made in (older, newer, numbered):
        assert make("mistral", template=made) == made  # what was chosen before stays
    tokens = ["[INST]", "[/INST]", "[ARGS]", "[CALL_ID]", "[SYSTEM_PROMPT]"]
    assert make("mistral", tokens, older) == newer == make("mistral", tokens)
    assert make("mistral", tokens, numbered) == numbered
    assert '[TOOL_CALLS]write_note[CALL_ID]pL3nQ8xZ1[ARGS]{"note": "a"}</s>' in written(numbered, *talk)
    assert written(numbered, *talk).endswith("[TOOL_RESULTS]pL3nQ8xZ1[TOOL_CONTENT]kept[/TOOL_RESULTS]")
    for template in (newer, numbered):
        turn_of_call = written(template, ASK, call({"note": "a"}), ask=False).removeprefix(written(template, ASK))
        assert read(turn_of_call, "mistral", OFFERED).calls[0].arguments == {"note": "a"}


def test_mistral_between_old_and_new_puts_the_id_before_the_text_of_a_result() -> None:
    tokens = ["[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[TOOL_CONTENT]"]
    text = written(make("mistral", tokens), ASK, call({"note": "a"}), result("kept"))
    assert '[TOOL_CALLS][{"name": "write_note"' in text
    assert text.endswith("[TOOL_RESULTS]pL3nQ8xZ1[TOOL_CONTENT]kept[/TOOL_RESULTS]")
    assert make("mistral", [*tokens, "[ARGS]"]).replace("apart = true", "apart = false") == make(
        "mistral", ["[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[ARGS]"]
    )


def test_mistral_keeps_the_spaces_of_a_tokenizer_that_has_them_before_words() -> None:
    spaced = make("mistral", template='{{ "[INST] " + message["content"] + "[/INST]" }}')
    answer = {"role": "assistant", "content": "Aye."}
    text = written(spaced, ASK, answer, ASK, call({"note": "a"}), result("kept"))
    assert text.startswith('<s>[AVAILABLE_TOOLS] [{"')
    assert "[/AVAILABLE_TOOLS][INST] Note the moss.[/INST] Aye.</s>[INST] Note the moss.[/INST][TOOL_CALLS] [{" in text
    assert '</s>[TOOL_RESULTS] {"content": "kept"' in text
    assert make("mistral", template=spaced) == spaced
    assert "gap = ''" in make("mistral", template='{{ "[INST]" + message["content"] }}')


def test_mistral_gives_calls_without_ids_the_same_ids_as_their_results() -> None:
    bare = call({"note": "a"})
    del bare["tool_calls"][0]["id"]
    text = written(make("mistral"), ASK, bare, {"role": "tool", "content": "kept"})
    assert '"id": "000000001"' in text and '"call_id": "000000001"' in text


def test_hermes_of_nous_has_a_turn_for_tools() -> None:
    theirs = make("hermes", ["<|im_start|>", "<|im_end|>", "<|begin_of_text|>"])
    text = written(theirs, ASK, call({"note": "a"}), result("kept"))
    assert text.startswith("<s>") and "<|im_start|>tool\n<tool_response>\nkept" in text
    assert detect.detect(theirs) == "hermes" and make("hermes", ["<|im_start|>", "<|im_end|>"]) == make("hermes")


def test_markers_of_private_use_pass_no_editor() -> None:
    chatml = ["<|im_start|>", "<|im_end|>"]
    tokens = [*chatml, "\ue00f", "\ue010", "\ue011"]
    made = make("smollm3", tokens, markers=("\ue00f", "\ue010"))
    assert made.isascii() and r"{%- set call_open = '\ue00f' -%}" in made
    found = detect.examine(made, tokens)
    assert found.markers == ("\ue00f", "\ue010") == detect.examine(made).markers
    text = written(made, ASK, call({"note": "a"}), ask=False)
    assert '\ue00f\n{"name": "write_note", "arguments": {"note": "a"}}\n\ue010' in text
    assert read(text[len(written(made, ASK)) :], found.wire(), OFFERED).calls == [ToolCall("write_note", {"note": "a"})]
    assert make("smollm3", tokens, template=made) == made  # told by the present template
    named = make("smollm3", [*chatml, "<|begin_tool_call|>", "<|end_tool_call|>"])
    assert "set call_open = '<|begin_tool_call|>'" in named
    assert make("smollm3", [*chatml, "<tool_call>", "</tool_call>", "\ue00f"]) == make("smollm3")
    assert make("smollm3", chatml) == make("smollm3")
    with pytest.raises(ConfigError, match=r"U\+E00F, U\+E010, U\+E011.*--markers"):
        make("smollm3", tokens)
    with pytest.raises(ConfigError, match=r"U\+E012 is no token"):
        make("smollm3", tokens, markers=("\ue00f", "\ue012"))


THEIRS = {
    "hermes": "<|im_start|>system\nYou're a {}\nwith {{{{ é }}}}.<|im_end|>\n",
    "smollm3": "## Custom Instructions\n\nYou're a {} 'x'.\n\n<|im_end|>\n",
    "gpt_oss": "<|start|>system<|message|>You're a {}.\nKnowledge cutoff: 2024-06",
}


@pytest.mark.parametrize("family", THEIRS)
def test_what_a_model_is_told_by_itself_stays(family: str) -> None:
    said = [THEIRS[family].format(kind) for kind in ("poet", "cook")]
    theirs = f"{{{{ {literal(said[1])} if enable_thinking is false else {literal(said[0])} }}}}"
    made = make(family, template=theirs)
    assert made.isascii() and make(family, template=made) == made != make(family)
    assert said[0] in written(made, ASK, tools=None)
    assert said[family == "smollm3"] in written(made, ASK, tools=None, enable_thinking=False)
    assert "poet" in written(made, ASK)
    own = written(made, {"role": "system", "content": "Be brief."}, ASK)
    assert "Be brief." in own and ("poet" in own) == (family == "gpt_oss")
    for other in (said[0].replace("poet", "<tools> reader"), "{{ none.a }}"):
        assert make(family, template=other if other.startswith("{{") else f"{{{{ {literal(other)} }}}}") == make(family)
    day = theirs.replace("poet", "poet of ' ~ strftime_now('%Y') ~ '")
    assert make(family, template=day) == make(family, template=theirs.replace("poet", "<tools>"))


@pytest.mark.parametrize("text", ["<tool_call>", "it's", "\\n", "\ue00f", "\U000f0001", 'a"b'])
def test_a_literal_is_ascii_and_says_what_it_was(text: str) -> None:
    assert literal(text).isascii()
    assert ImmutableSandboxedEnvironment().from_string(f"{{{{ {literal(text)} }}}}").render() == text


def test_a_tokenizer_of_another_family_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"no token <\|start\|>"):
        make("gpt_oss", ["<|im_start|>", "<|im_end|>"])
    with pytest.raises(ConfigError, match="choose one of qwen3_coder"):
        make("chatty")


@FAMILY
def test_a_template_uses_what_other_engines_know(family: Family) -> None:
    environment = ImmutableSandboxedEnvironment(extensions=["jinja2.ext.loopcontrols"])
    tree = environment.parse(family.file.read_text(encoding="ascii"))
    assert {node.name for node in tree.find_all(nodes.Filter)} <= FILTERS
    assert {node.name for node in tree.find_all(nodes.Test)} <= TESTS
    macros = {node.name for node in tree.find_all(nodes.Macro)}
    called = [node.node for node in tree.find_all(nodes.Call)]
    assert all(isinstance(node, nodes.Name) and node.name in macros | FUNCTIONS for node in called)


FAMILY_OF = {
    "HuggingFaceTB-SmolLM3-3B": "smollm3",
    "NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use": "hermes",
    "Qwen-Qwen2.5-7B-Instruct": "hermes",
    "Qwen-Qwen3-0.6B": "hermes",
    "Qwen3-Coder": "qwen3_coder",
    "mistralai-Mistral-Nemo-Instruct-2407": "mistral",
    "openai-gpt-oss-120b": "gpt_oss",
}


def test_real_templates_are_of_their_family_or_of_none(real_data: Path) -> None:
    files = sorted((real_data / "templates").glob("*.jinja"))
    assert {f.stem: name for f in files if (name := family_of(f.read_text()))} == FAMILY_OF
    smollm3 = (real_data / "templates" / "HuggingFaceTB-SmolLM3-3B.jinja").read_text()
    made = make("smollm3", template=smollm3)
    for kwargs in ({}, {"enable_thinking": False}):  # what it is told by itself stays, to the letter
        assert written(made, ASK, tools=None, **kwargs) == written(smollm3, ASK, tools=None, **kwargs)


def test_a_turn_can_be_learned_from_a_made_template(tiny_base: Path) -> None:
    tokenizer = load_tokenizer(tiny_base)
    for family in ("qwen3_coder", "hermes", "smollm3"):
        tokenizer.chat_template = make(family, tokenizer.get_vocab(), tokenizer.chat_template)
        conversation = Conversation(tokenizer, [ASK, call({"note": "moss"}, "Right.")], [WRITE])
        learned = turn(conversation, 1, conversation.prompt(1))
        wire = detect.examine(tokenizer.chat_template, tokenizer.get_vocab()).wire()
        assert read(learned.text, wire, OFFERED).calls == [ToolCall("write_note", {"note": "moss"})]
        assert tokenizer.decode(learned.tokens[-1:]) == "<|im_end|>" and not learned.notes


def test_the_command_writes_a_template_that_serves(tiny_base: Path, tmp_path: Path) -> None:
    listed = CliRunner().invoke(app, ["template", "list"])
    assert listed.exit_code == 0 and all(name in listed.output for name in FAMILIES)
    out = tmp_path / "chat_template.jinja"
    command = ["template", "make", "--tokenizer", str(tiny_base)]
    assert CliRunner().invoke(app, command).output == make("qwen3_coder")
    made = CliRunner().invoke(
        app, [*command, "--family", "smollm3", "--markers", "<think>,</think>", "--out", str(out)]
    )
    assert made.exit_code == 0, made.output
    assert "set call_open = '<think>'" in out.read_text()
    for options, words in (
        (["--out", str(out)], "exists"),
        (["--family", "elm"], "no family 'elm'"),
        (["--family", "smollm3", "--markers", "U+E00F"], "no two markers"),
        (["--family", "smollm3", "--markers", "U+E00F,U+D800"], "no character"),
        (["--family", "smollm3", "--markers", "U+E00F,U+E010"], "no token"),
        (["--family", "hermes", "--markers", "a,b"], "leave --markers out"),
        (["--overwrite"], "give --out"),
    ):
        refused = CliRunner().invoke(app, [*command, *options])
        assert words in str(refused.exception), options


def test_a_directory_without_a_tokenizer_is_said(tiny_base: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((tiny_base / "config.json").read_bytes())
    command = ["template", "make", "--family", "hermes", "--tokenizer", str(tmp_path)]
    assert "holds no tokenizer" in str(CliRunner().invoke(app, command).exception)
