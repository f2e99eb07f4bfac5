"""A call that the template writes, read by the format and by mlx_lm's reader; and the flags for other servers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from punie_mlx.chat import templates
from punie_mlx.doctor import flags, roundtrip, stock
from punie_mlx.doctor.findings import Examined, examine
from punie_mlx.doctor.specimen import Specimen
from punie_mlx.toolcalls.calls import ToolCall

FAMILIES = sorted(templates.FAMILIES)


def looked_at(template: str) -> Examined:
    return examine(Specimen.of_text(template), roundtrip.CHECKS)


def found(template: str) -> dict[str, str]:
    """Findings by check, each with its severity."""
    return {f.check: f.severity for f in looked_at(template).findings}


def changed(family: str, *pairs: tuple[str, str]) -> str:
    """The template of a family in which words are replaced, which must be there."""
    text = templates.make(family)
    for old, new in pairs:
        assert old in text, old
        text = text.replace(old, new)
    return text


@pytest.mark.parametrize("family", FAMILIES)
def test_our_own_templates_bring_every_call_back(family):
    examined = looked_at(templates.make(family))
    assert not examined.findings, examined.findings
    assert examined.passed == tuple(c.id for c in roundtrip.CHECKS), "and nothing was left out"


@pytest.mark.parametrize("family", FAMILIES)
def test_a_turn_is_what_stands_behind_the_prompt(family):
    specimen = Specimen.of_text(templates.make(family))
    written = roundtrip.write(specimen, ToolCall(roundtrip.NAME, {"place": "Zeeland-71"}))
    assert "Zeeland-71" in written.turn and "Fennrick" not in written.turn
    assert roundtrip.reading(specimen, written).content.strip() == ""


# ---- planted faults ----


def test_a_template_of_two_formats_or_none_has_no_format():
    both = templates.make("qwen3_coder") + templates.make("mistral")
    (finding,) = looked_at(both).findings
    assert (finding.check, finding.severity) == ("no-format", "high")
    assert {s.label for s in finding.shown} == {"mistral", "qwen3_coder"}
    nothing = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{{ tools | tojson }}"
    (finding,) = looked_at(nothing).findings
    assert finding.check == "no-format" and finding.shown[0].label == "the turn of a call"


HISTORY = "'<tool_call>\\n{\"name\": ' ~"  # of the hermes template: what opens a call in the history


def test_a_history_in_another_spelling_is_no_call_to_the_reader():
    (finding,) = looked_at(changed("hermes", (HISTORY, "'<call>\\n{\"name\": ' ~"))).findings
    assert (finding.check, finding.severity) == ("parser-mismatch", "high")
    assert "<call>" in finding.shown[0].text and "<tool_call>" in finding.shown[1].text


def test_a_prompt_that_teaches_another_tag_than_the_history_has():
    template = changed("hermes", ('<tool_call>\\n{"name": NAME', '<function_call>\\n{"name": NAME'))
    (finding,) = looked_at(template).findings
    assert finding.check == "parser-mismatch"
    assert "<function_call>" in finding.shown[0].text and "<tool_call>" in finding.shown[1].text


@pytest.mark.parametrize(
    ("old", "new", "severity", "named"),
    [
        ("value if value is string else value | tojson", "value | tojson", "high", "plain arguments"),
        (
            "'>\\n' ~ written(value) ~ '\\n</p",
            "'>\\n' ~ written(value) | replace('\\\\', '/') ~ '\\n</p",
            "medium",
            "quotes",
        ),
    ],
)
def test_values_that_are_written_otherwise_come_back_changed(old, new, severity, named):
    examined = looked_at(changed("qwen3_coder", (old, new)))
    (finding,) = [f for f in examined.findings if f.check == "call-roundtrip"]
    assert finding.severity == severity and named in finding.summary
    labels = [s.label for s in finding.shown]
    assert labels[1:3] == ["written", "read"] and finding.shown[0].text != finding.shown[2].text


def test_what_the_format_itself_cannot_carry_is_no_fault(monkeypatch):
    end = {"place": "a\n</parameter>\n</function>\n</tool_call>"}
    monkeypatch.setitem(roundtrip.ARGUMENTS, "the end of a value inside of it", end)
    assert not looked_at(templates.make("qwen3_coder")).findings
    assert not looked_at(templates.make("hermes")).findings, "JSON carries it"


# ---- mlx_lm ----


def test_mlx_lm_knows_hermes_by_words_that_a_template_need_not_have():
    template = changed("hermes", ("set tool_call =", "set f ="), ("tool_call.name", "f.name"), ("tool_call.a", "f.a"))
    (finding,) = looked_at(template).findings
    assert (finding.check, finding.severity) == ("mlx-parser", "low")
    assert '"tool_parser_type": "json_tools"' in finding.remedy


def test_mlx_lm_takes_the_wrong_reader_for_words_of_another_format():
    (finding,) = looked_at(templates.make("hermes") + "{#- this is no <|tool_call_start|> -#}").findings
    assert (finding.check, finding.severity) == ("mlx-parser", "medium")
    assert "pythonic" in finding.summary and '"tool_parser_type": "json_tools"' in finding.remedy


def test_the_model_s_configuration_names_the_reader(tmp_path, tiny_base):
    for file in tiny_base.iterdir():
        (tmp_path / file.name).symlink_to(file)
    config = tmp_path / "tokenizer_config.json"
    given = json.loads(config.read_text())
    config.unlink()
    config.write_text(json.dumps({**given, "tool_parser_type": "json_tools"}))
    specimen = Specimen.of_model(tmp_path)
    taken = stock.chosen(specimen)
    assert taken is not None and taken.name == "json_tools"
    (finding,) = examine(specimen, roundtrip.CHECKS).findings
    assert finding.check == "mlx-parser" and '"tool_parser_type": "qwen3_coder"' in finding.remedy


# ---- flags ----

TYPED = {
    "qwen3_coder": "--enable-auto-tool-choice --tool-call-parser qwen3_xml",
    "hermes": "--enable-auto-tool-choice --tool-call-parser hermes --reasoning-parser qwen3",
    "gpt_oss": "--enable-auto-tool-choice --tool-call-parser openai --reasoning-parser openai_gptoss",
    "mistral": "--enable-auto-tool-choice --tool-call-parser mistral",
    "llama3": "--enable-auto-tool-choice --tool-call-parser llama3_json",
    "smollm3": "--enable-auto-tool-choice --tool-call-parser hermes --reasoning-parser qwen3",
}
MLX = {
    "qwen3_coder": "qwen3_coder", "hermes": "json_tools", "gpt_oss": "none", "mistral": "mistral", "llama3": "none",
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_what_to_type_for_each_family(family):
    told = flags.facts(Specimen.of_text(templates.make(family)))
    assert told["vLLM"]["type"] == TYPED[family]
    assert told["mlx_lm"]["reader of calls"] == MLX.get(family, told["mlx_lm"]["reader of calls"])
    assert told["mlx_lm"].get("it reads what the template writes", "yes") == "yes"
    assert told["format"]["name"] == templates.FAMILIES[family].format
    assert told["llama.cpp"]["reader of calls"] in {*(n for n, _ in flags.LLAMA_CPP), "worked out from the template"}
    json.dumps(told)


def test_facts_of_a_model_name_its_special_markers(tiny_base):
    told = flags.facts(Specimen.of_model(tiny_base))
    assert "skip_special_tokens" in told["notes"][0] and told["mlx_lm"]["reader of calls"] == "qwen3_coder"
    assert told["llama.cpp"]["reader of calls"] == "Qwen3-Coder"


def test_facts_of_a_template_without_tools_say_so():
    told = flags.facts(Specimen.of_text("{% for m in messages %}{{ m.content }}{% endfor %}"))
    assert told["format"]["name"] == "unknown" and "no reader" in told["vLLM"]["type"]
    assert flags.vllm_flags(Specimen.of_text("{{ messages[0].content }}")) == []


def test_every_format_with_a_sign_has_names_for_other_servers():
    from punie_mlx.toolcalls.spellings import SPELLINGS

    assert {s.format for s in SPELLINGS} == set(flags.NAMES)


def test_real_templates_are_read_back(real_data: Path):
    """But for those that render no call: one without tools, SmolLM3's as somebody mended it, Kimi's, which raises."""
    silent = ("Phi-3.5", "SmolLM3", "Kimi-K2")
    for file in sorted((real_data / "templates").glob("*.jinja")):
        examined = examine(Specimen.of_file(file), roundtrip.CHECKS)
        if not any(word in file.name for word in silent):
            assert not examined.findings and len(examined.passed) == len(roundtrip.CHECKS), file.name
