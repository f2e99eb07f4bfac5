"""--check: the format, what is wrong with a template, and whether the memory that it names is what is taken."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from mlx.utils import tree_flatten
from typer.testing import CliRunner

from punie_mlx import cli, hardware
from punie_mlx.errors import ConfigError, InputError, ModelError
from punie_mlx.serve import memory
from punie_mlx.serve.check import Report, check
from punie_mlx.serve.config import make_config
from punie_mlx.serve.engine import Engine
from punie_mlx.serve.generation import Sampling

HERMES = """{%- if tools %}<|im_start|>system
Write <tool_call>
{"name": <function-name>, "arguments": <args-json-object>}
</tool_call>{{ tools | tojson }}<|im_end|>
{% endif %}{%- for m in messages %}<|im_start|>{{ m.role }}
{{ m.content }}{% for c in m.tool_calls %}<tool_call>
{{ c.function | tojson }}
</tool_call>{% endfor %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def checked(model: Path, **options: Any) -> Report:
    return check(make_config(None, {"model": model, **options}))


def with_template(tmp_path: Path, model: Path, template: str, **options: Any) -> Report:
    file = tmp_path / "template.jinja"
    file.write_text(template)
    return checked(model, chat_template=file, **options)


def told(report: Report, level: str) -> str:
    return " ".join(f.text for f in report.findings if f.level == level)


# ---- what would be served ----


def test_a_good_model(tiny_base: Path) -> None:
    report = checked(tiny_base, max_context=1000, max_concurrency=4)
    assert report.ok and told(report, "problem") == ""
    assert (report.format, report.context, report.concurrency) == ("qwen3_coder", 1000, 4)
    assert "line" in report.evidence and "<tool_call>" in report.evidence
    assert report.reasoning == ("<think>", "</think>") and "enforced" in report.grammar
    assert json.loads(report.to_json())["ok"] is True
    for shown in (report.fingerprint, "qwen3_coder", "1,000 tokens", "this machine has"):
        assert shown in report.summary()


def test_options_are_in_it(tiny_base: Path) -> None:
    report = checked(tiny_base, constrain="off", kv_bits=8, name="n", reasoning_format="none", tool_call_format="glm")
    assert (report.format, report.name, report.reasoning, report.concurrency) == ("glm", "n", None, 1)
    assert report.grammar.startswith("off") and "one at a time" in told(report, "note")
    assert "is not read as glm" in told(report, "note")  # as the template writes calls, that is


def test_a_good_template_of_ones_own(tmp_path: Path, scripted_model: Path) -> None:
    report = with_template(tmp_path, scripted_model, HERMES)
    assert (report.format, report.findings) == ("hermes", ())


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("{{ tools | tojson }}", "", "shows no tools"),
        ("{{ tools | tojson }}", "{{ tools[0].function.name }}", "shows no parameters"),
        ("{{ c.function | tojson }}", "a call", "drops calls"),
        ("{{ m.content }}", "{{ m.content if m.role != 'tool' }}", "drops results"),
        ("{{ m.content }}", "{{ m.content if m.role != 'system' }}", "drops the system message"),
        ("{{ m.content }}", "{{ m.content if m.role != 'user' }}", "drops what the user says"),
        ("{% if add_generation_prompt %}", "{% if false %}", "ignores add_generation_prompt"),
        ("{{ m.content }}", "{{ m.content + (1 if m.role == 'tool' else '') }}", "cannot render"),
    ],
)
def test_a_template_that_agents_cannot_use(
    tmp_path: Path, scripted_model: Path, old: str, new: str, expected: str
) -> None:
    assert old in HERMES
    report = with_template(tmp_path, scripted_model, HERMES.replace(old, new))
    assert not report.ok and expected in told(report, "problem")


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("{{ m.content }}", "{{ m.content }}{{ '[old]' if not loop.last }}", "rendered otherwise"),
        ("<|im_start|>assistant\n{% endif %}", "<|im_start|>assistant\n<think>\n{% endif %}", "opens the thinking"),
        ("{{ c.function | tojson }}", "{{ c.function.name }}: probe-value", "is not read as hermes"),
    ],
)
def test_what_works_less_well(tmp_path: Path, scripted_model: Path, old: str, new: str, expected: str) -> None:
    assert old in HERMES
    report = with_template(tmp_path, scripted_model, HERMES.replace(old, new))
    assert report.ok and expected in told(report, "note")


def test_what_cannot_be_served_is_an_error(tmp_path: Path, scripted_model: Path) -> None:
    with pytest.raises(ModelError, match="does not exist"):
        checked(tmp_path / "none")
    with pytest.raises(ModelError, match=r"no wire format.*--tool-call-format"):
        with_template(tmp_path, scripted_model, "{% for m in messages %}{{ m.content }}{% endfor %}")
    with pytest.raises(ConfigError, match="is empty"):
        with_template(tmp_path, scripted_model, " \n")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--constrain", "maybe"], "auto, off, required-only"),
        (["--tool-call-format", "morse"], "no wire format"),
        (["--template-kwargs", "[]"], "JSON object"),
        (["--prompt-cache-bytes", "lots"], "number of bytes"),
        (["--chat-template", "no-such-file"], "no-such-file"),
        (["--config", "no-such-file"], "no-such-file"),
        (["--kv-bits", "7"], "2, 3, 4, 5, 6, 8"),
        (["--top-p", "2"], "0 to 1"),
    ],
)
def test_options_that_cannot_be_meant(scripted_model: Path, options: list[str], expected: str) -> None:
    done = CliRunner().invoke(cli.app, ["serve", "--check", "--model", str(scripted_model), *options])
    assert isinstance(done.exception, InputError) and expected in str(done.exception)


# ---- memory ----


def test_the_weights_are_as_large_as_they_become(tiny_base: Path) -> None:
    engine = Engine.start(tiny_base)
    try:
        loaded = sum(array.nbytes for _, array in tree_flatten(engine.loaded.network.parameters()))
        config = json.loads((tiny_base / "config.json").read_text())
        assert memory.weights([tiny_base / "model.safetensors"], config) == loaded
        tokens = 700
        prompt = [(7 * i) % 1000 + 100 for i in range(tokens)]

        async def fill() -> None:
            with engine.generate(prompt, Sampling(), 1) as generation:
                async for _ in generation:
                    pass

        asyncio.run(fill())
        held = engine.stats().cached_bytes
        assert engine.stats().cached_prompts == 1
        assert held <= memory.kv_cache(config, tokens) <= held * 1.5  # caches grow in blocks
    finally:
        engine.stop()


QWEN: dict[str, Any] = {
    "num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 64, "hidden_size": 512,
}  # fmt: skip


@pytest.mark.parametrize(
    ("config", "numbers"),
    [
        (QWEN, 4 * 1024 * 2 * 2 * 64),
        ({k: v for k, v in QWEN.items() if k != "num_key_value_heads"}, 4 * 1024 * 2 * 8 * 64),
        ({"text_config": QWEN}, 4 * 1024 * 2 * 2 * 64),
        ({**QWEN, "full_attention_interval": 4}, 1024 * 2 * 2 * 64),
        ({**QWEN, "layer_types": ["linear_attention"] * 3 + ["full_attention"]}, 1024 * 2 * 2 * 64),
        (
            {**QWEN, "layer_types": ["sliding_attention"] * 3 + ["full_attention"], "sliding_window": 512},
            (3 * 512 + 1024) * 2 * 2 * 64,
        ),
        ({**QWEN, "kv_lora_rank": 512, "qk_rope_head_dim": 64}, 4 * 1024 * 576),
    ],
)
def test_the_cache_of_each_kind_of_model(config: dict[str, Any], numbers: int) -> None:
    width = 4 if hardware.on_cpu() else 2
    assert memory.kv_cache(config, 1024) == numbers * width
    assert memory.kv_cache(config, 1024, bits=8) == numbers * (1 + 2 * width / 64)
    assert memory.kv_cache(config, 1000) == memory.kv_cache(config, 1024)


def test_what_does_not_fit_is_said(tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "device_memory", lambda: 10 * 2**20)
    report = checked(tiny_base)
    assert report.ok and "--max-context" in told(report, "note")
    monkeypatch.setattr(hardware, "device_memory", lambda: 2**20)
    report = checked(tiny_base)
    assert not report.ok and "quantize" in told(report, "problem")


def test_a_file_that_holds_no_weights(tmp_path: Path) -> None:
    for content in (b"", b"\xff" * 16, b"\x02" + b"\0" * 7 + b"{"):
        file = tmp_path / "model.safetensors"
        file.write_bytes(content)
        with pytest.raises(ModelError, match="no safetensors file"):
            memory.weights([file], {})
