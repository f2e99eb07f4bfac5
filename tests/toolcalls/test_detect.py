"""Detection: the format of real templates, of templates as other models write them, and the answers that are none."""

from __future__ import annotations

import re

import pytest

from punie_mlx.errors import ConfigError
from punie_mlx.toolcalls import formats
from punie_mlx.toolcalls.calls import ToolCall
from punie_mlx.toolcalls.detect import detect, examine
from punie_mlx.toolcalls.spellings import SPELLINGS
from punie_mlx.toolcalls.stream import read

REAL = {
    "ByteDance-Seed-OSS": "seed_oss",
    "GLM-4.6": "glm",
    "HuggingFaceTB-SmolLM3-3B": None,  # this one ignores tools
    "Kimi-K2-Instruct": "kimi",
    "MiniMax-M2": "minimax",
    "NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use": "hermes",
    "Qwen-Qwen2.5-7B-Instruct": "hermes",
    "Qwen-Qwen3-0.6B": "hermes",
    "Qwen3-Coder": "qwen3_coder",
    "deepseek-ai-DeepSeek-V3.1": "deepseek",
    "ibm-granite-granite-4.0": "hermes",
    "microsoft-Phi-3.5-mini-instruct": None,
    "mistralai-Mistral-Nemo-Instruct-2407": "mistral",
    "openai-gpt-oss-120b": "harmony",
}

# The part of a template that tells, in our words.
SMOLLM = (
    r"""{{- "I am SmolLM." }} /no_think {%- if python_tools is defined -%} in '<code>' and '</code>' {%- endif -%}"""
    r"""{{- "as <tool_call></tool_call>:\n<tool_call>\n{\"name\": <n>, \"arguments\": <a>}\n</tool_call>" -}}"""
)
PRIVATE = (
    "I am SmolLM /no_think {%- set opened = '\ue00f' %}{%- set closed = '\ue010' %}"
    """{{ opened ~ '\\n{"name": "' ~ c.name ~ '", "arguments": ' ~ (c.arguments | tojson) ~ '}\\n' ~ closed }}"""
)
WRITTEN = {
    "qwen3_coder": "{{ '<tool_call>\\n<function=' + n + '>\\n' }}{{ '<parameter=' + k + '>\\n' }}{{ v }}",
    "mimo": "{{ '<tool_call><function=' ~ n ~ '>' }}{{ '<parameter=' ~ k ~ '>' ~ v ~ '</parameter>' }}",
    "hermes": "{{ '<tool_call>\\n' }}{{ c | tojson }}{{ '\\n</tool_call>' }}",
    "smollm3": SMOLLM,
    "llama3_json": """Answer in the format {"name": function name, "parameters": dictionary of arguments}.""",
    "pythonic": "Use exactly this: [func_name1(param1=value1, param2=value2), func_name2(...)]",
    "deepseek": "{%- set dsml = '｜DSML｜' %}<{{ dsml }}function_calls><{{ dsml }}invoke name=",
    "gemma": "{{ '<|tool_call>call:' + n + '{' }}{{ '}<tool_call|>' }}",
}
OTHER = {
    "LFM2": ("pythonic", "{{ '<|tool_call_start|>[' + calls + ']<|tool_call_end|>' }}"),
    "FunctionGemma": ("gemma", "{{ '<start_function_call>call:' + n + '{' }}"),
    "DeepSeek V3": ("deepseek", "{{ '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>' + n }}"),
    "tags asked for, history in JSON": ("qwen3_coder", WRITTEN["qwen3_coder"] + WRITTEN["hermes"]),
    "Phi 4 mini": (None, """{{ '<|tool_call|>{"name": "foo", "arguments": {"a": 1}}<|/tool_call|>' }}"""),
    "Nemotron": (None, """{{ '<TOOLCALL>[{"name": "f", "arguments": {}}]</TOOLCALL>' }}"""),
    "Apriel": (None, """within <tool_call></tool_call>: <tool_calls>[{"name": <n>, "arguments": <a>}]</tool_calls>"""),
    "a comment": (None, """{# like <tool_call>{"name": n, "arguments": a} #}{{ messages }}"""),
}


def test_the_embedded_model(tiny_base):
    found = examine((tiny_base / "chat_template.jinja").read_text(), ["<tool_call>", "</tool_call>"])
    assert found.format == "qwen3_coder" and found.markers == ("<tool_call>", "</tool_call>")
    assert found.evidence["qwen3_coder"].tokens == found.markers and not found.disagreements


@pytest.mark.parametrize("name", REAL)
def test_real_templates(real_data, name):
    template = (real_data / "templates" / f"{name}.jinja").read_text()
    found = examine(template)
    assert found.format == REAL[name] and found.formats == ((REAL[name],) if REAL[name] else ())
    for evidence in found.evidence.values():
        for seen in evidence.words:
            assert seen.words.split("\n")[0] in template.split("\n")[seen.line - 1]
    if found.format and not found.think:
        assert found.wire() == formats.get(found.format)


def test_think_tags(real_data):
    def tags(name: str) -> tuple:
        return examine((real_data / "templates" / f"{name}.jinja").read_text()).think

    assert tags("ByteDance-Seed-OSS") == ("<seed:think>", "</seed:think>")
    assert tags("Qwen-Qwen3-0.6B") == ("<think>", "</think>")
    assert tags("Qwen3-Coder") == tags("openai-gpt-oss-120b") == ()
    wire = examine(WRITTEN["hermes"] + "[THINK]").wire()
    assert wire.think == ("[THINK]", "[/THINK]") and read("[THINK]so[/THINK]4", wire).reasoning == "so"
    assert examine(WRITTEN["hermes"] + "</think>").thinks


@pytest.mark.parametrize("name", WRITTEN)
def test_templates_of_other_models(name):
    assert detect(WRITTEN[name]) == name


@pytest.mark.parametrize("name", OTHER)
def test_spellings_that_are_close(name):
    expected, template = OTHER[name]
    assert examine(template).format == expected


def test_every_native_format_has_signs():
    assert {s.format for s in SPELLINGS} == {name for name, f in formats.FORMATS.items() if f.native}
    assert all(re.compile(sign.words) for s in SPELLINGS for sign in (*s.signs, *s.never))


def test_no_format_is_an_answer():
    for template in ("", None, "{{ messages }}", "<tool_call>{{ name }}<arg_key>arguments", {"default": ""}):
        found = examine(template)
        assert found.format is None and found.formats == ()
        for ask in (lambda t: detect(t), lambda t: examine(t).wire()):
            with pytest.raises(ConfigError, match="no wire format found"):
                ask(template)


def test_tokens_alone_decide_nothing_and_are_told():
    found = examine("{{ messages }}", {"[TOOL_CALLS]": 9, "<|start_tool_call|>": 1, "\ue00f": 2, "a": 3})
    assert found.format is None and found.vocabulary["mistral"] == ("[TOOL_CALLS]",)
    for told in ("mistral: [TOOL_CALLS]", "<|start_tool_call|>", "U+E00F"):
        assert told in found.explain()
    many = examine("", [chr(0xE000 + i) for i in range(20)]).explain()
    assert many.endswith("U+E007 and 12 more")


def test_two_fit_is_an_answer():
    found = examine(WRITTEN["hermes"] + WRITTEN["gemma"])
    assert found.format is None and set(found.formats) == {"hermes", "gemma"}
    with pytest.raises(ConfigError, match=r"several wire formats \(hermes, gemma\): name one.*<tool_call>.*Gemma"):
        found.wire()


def test_template_and_vocabulary_may_disagree():
    found = examine(WRITTEN["hermes"], ["<tool_call>", "<|tool_calls_section_begin|>"])
    assert found.format == "hermes"
    missing, other = found.disagreements
    assert "</tool_call> is no single token" in missing and "another format, kimi" in other
    assert missing in found.explain()
    assert not examine(WRITTEN["hermes"]).disagreements  # nothing is said of a vocabulary that was not given


def test_smollm3_calls_its_markers_what_it_likes():
    assert examine(SMOLLM).markers == ("<tool_call>", "</tool_call>")
    named = examine(SMOLLM, ["<|begin_tool_call|>", "<|end_tool_call|>", "</tool_response>"])
    assert named.markers == ("<|begin_tool_call|>", "<|end_tool_call|>")
    assert examine(SMOLLM, ["<tool_call>", "</tool_call>", "<|begin_tool_call|>"]).markers[0] == "<tool_call>"
    for vocabulary in ((), ["\ue00f", "\ue010", "\ue011"]):
        private = examine(PRIVATE, vocabulary)
        assert private.format == "smollm3" and private.markers == ("\ue00f", "\ue010")
        wire = private.wire()
        assert (wire.open, wire.close) == ("\ue00f", "\ue010") and wire.name == "smollm3"
        call = ToolCall("f", {"a": "<tool_call>"})
        assert read("Sure.\n" + wire.render([call]), wire).calls == [call]


def test_the_template_for_tools_goes_before_the_default():
    assert detect({"default": "{{ messages }}", "tool_use": WRITTEN["gemma"]}) == "gemma"
