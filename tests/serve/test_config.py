"""What a server is told: defaults, a file over them, options over both."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from punie_mlx.errors import ConfigError
from punie_mlx.serve import wire
from punie_mlx.serve.config import KINDS, ServeConfig, make_config, size


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PUNIE_MLX_API_KEY", raising=False)


def test_options_go_over_the_file_and_the_file_over_defaults(tmp_path: Path) -> None:
    file = written(tmp_path / "c.yaml", "model: a\nport: 1\nmax-context: 512\nprompt_cache_bytes: 2G\nrescue: true\n")
    config = make_config(file, {"port": 2, "temperature": 0.5, "top_k": None})
    assert (config.model, config.port, config.max_context) == (Path("a"), 2, 512)
    assert (config.prompt_cache_bytes, config.rescue, config.temperature) == (2 * 2**30, True, 0.5)
    assert (config.top_k, config.host) == (None, "127.0.0.1")


def test_every_field_is_an_option_of_the_same_name_and_a_key_of_the_file(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "punie_mlx", "serve", "--help"]
    env = {"COLUMNS": "300", "TERM": "dumb", "PUNIE_MLX_NO_BLAS_WARNING": "1"}
    shown = subprocess.run(command, capture_output=True, text=True, env=env, timeout=60, check=True).stdout
    assert [name for name in KINDS if f"--{name.replace('_', '-')}" not in shown] == []
    assert all(f"--{name}" in shown for name in ("config", "check", "json"))


def test_a_whole_file(tmp_path: Path) -> None:
    text = """
model: ~/m
adapter: a
host: 0.0.0.0
name: my model
kv-bits: 8
max-concurrency: 4
max-queue: 2
draft-model: d
chat-template: t.jinja
tool-call-format: hermes
reasoning-format: <a>,</a>
constrain: required-only
top-p: 1
template-kwargs: {enable_thinking: false}
request-timeout: 3
drain: 0
api-key: secret
insecure: false
allow-origin: [https://a.example, https://b.example]
log-content: true
log-level: debug
max-tokens:
"""
    config = make_config(written(tmp_path / "c.yaml", text))
    assert config.model == Path.home() / "m"
    assert (config.limits().requests, config.limits().decode_batch, config.limits().prefill_batch) == (6, 4, 4)
    assert (config.limits().kv_bits, config.top_p, config.max_tokens) == (8, 1.0, None)
    chat = config.chat({})
    assert (chat.constrain, chat.request_seconds, chat.log_content) == ("required-only", 3.0, True)
    assert chat.defaults.template_kwargs == {"enable_thinking": False}
    http = config.http()
    assert (http.api_key, http.drain_seconds) == ("secret", 0.0)
    assert http.origins == ("https://a.example", "https://b.example")
    assert "secret" not in repr(config)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("model: m\ntemplate-kwargs: {tools: []}", "tools: the server gives these itself"),
        ("max-contxt: 1", "did you mean `max-context`"),
        ("zzz: 1", "the keys are"),
        ("port: '80'", "`port` must be an integer"),
        ("port: true", "`port` must be an integer"),
        ("port: 70000", "0 to 65535"),
        ("max-context: 1\nmax_context: 2", "there twice"),
        ("rescue: 'yes'", "true or false"),
        ("temperature: .nan", "out of range"),
        ("temperature: hot", "a number"),
        ("prompt-cache-bytes: 3Q", "number of bytes"),
        ("allow-origin: [1]", "list of texts"),
        ("template-kwargs: [1]", "JSON object"),
        ("template-kwargs: {a: 2020-01-01}", "JSON object"),
        ("constrain: sometimes", "auto, off, required-only"),
        ("kv-bits: 7", "2, 3, 4, 5, 6, 8"),
        ("tool-call-format: morse", "no wire format"),
        ("tool-call-format: json_fence", "--rescue"),
        ("reasoning-format: <think>", "two tags"),
        ("api-key: 'two words'", "ASCII"),
        ("name: ''", "must not be empty"),
        ("- a", "`key: value`"),
        ("{", "not YAML"),
    ],
)
def test_what_is_wrong_is_refused_by_name(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(told)):
        make_config(written(tmp_path / "c.yaml", text), {"model": "m"})


def test_a_wrong_key_is_never_shown(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        make_config(written(tmp_path / "c.yaml", "api-key: 123456"), {"model": "m"})
    assert "123456" not in str(error.value)


def test_a_missing_file_and_a_missing_model(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        make_config(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="--model"):
        make_config(written(tmp_path / "empty.yaml", ""))


def test_the_key_comes_from_the_environment_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PUNIE_MLX_API_KEY", "from-environment")
    assert make_config(None, {"model": "m"}).api_key == "from-environment"
    assert make_config(written(tmp_path / "c.yaml", "api-key: from-file"), {"model": "m"}).api_key == "from-file"


@pytest.mark.parametrize(
    ("text", "bytes"), [("0", 0), ("2048", 2048), ("1K", 1024), ("1.5m", 1572864), ("4 GiB", 4 * 2**30), ("2GB", 2**31)]
)
def test_sizes(text: str, bytes: int) -> None:
    assert size(text) == bytes


@pytest.mark.parametrize(
    ("own", "options", "expected"),
    [
        ({}, {}, {"temperature": 0.0, "top_p": 1.0, "top_k": 0}),
        ({"temperature": 0.7, "top_p": 0.8, "top_k": 20}, {}, {"temperature": 0.7, "top_p": 0.8, "top_k": 20}),
        ({"temperature": 0.7, "top_k": 20}, {"temperature": 0.0, "top_k": 0}, {"temperature": 0.0, "top_k": 0}),
        ({"do_sample": True}, {}, {"temperature": 1.0}),
        ({"do_sample": False, "temperature": 0.7}, {}, {"temperature": 0.0}),
        ({"repetition_penalty": 1.05}, {"max_tokens": 9}, {"repetition_penalty": 1.05, "max_tokens": 9}),
        ({"temperature": "hot", "top_p": 7, "top_k": True, "min_p": None}, {}, {"temperature": 0.0, "top_p": 1.0}),
    ],
)
def test_defaults_are_the_models_own_then_the_options(
    own: dict[str, Any], options: dict[str, Any], expected: dict[str, Any]
) -> None:
    defaults = make_config(None, {"model": "m", **options}).defaults(own)
    assert {name: getattr(defaults, name) for name in expected} == expected


def test_the_name_is_the_directorys_unless_given(tmp_path: Path) -> None:
    assert ServeConfig(tmp_path).served_name == tmp_path.name
    assert ServeConfig(tmp_path, name="other").served_name == "other"


# ---- the wire format ----

HERMES = 'Write <tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call> <think></think>'


def test_a_format_is_found_or_named() -> None:
    assert wire.choose(HERMES, ()).name == "hermes"
    assert wire.choose(HERMES, (), "glm").name == "glm"
    assert wire.choose("no tools here", (), "hermes").name == "hermes"
    with pytest.raises(ConfigError, match="--tool-call-format NAME"):
        wire.choose("no tools here", ())


def test_tags_of_thinking() -> None:
    assert wire.choose(HERMES, ()).think == ("<think>", "</think>")
    assert wire.choose(HERMES, (), reasoning="none").think == ("", "")
    own = wire.choose(HERMES, (), reasoning="[R], [/R]")
    assert own.think == ("[R]", "[/R]") and "[" in own.hints
    with pytest.raises(ConfigError, match="channels"):
        wire.choose("", (), "harmony", "none")


@pytest.mark.parametrize("other", ["draft_model", "kv_bits"])
def test_guessing_goes_together_with_one_cache_only(other: str) -> None:
    settings: dict[str, Any] = {"draft_model": Path("d")} if other == "draft_model" else {"kv_bits": 8}
    with pytest.raises(ConfigError, match=f"--prompt-lookup and --{other.replace('_', '-')}"):
        make_config(None, {"model": Path("m"), "prompt_lookup": True, **settings})
