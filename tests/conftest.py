"""Shared fixtures: the shipped model, and real data that may not be there."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

# A shell that puts a job in the background makes it ignore Ctrl-C, and so would every process that the tests stop.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def tiny_base() -> Path:
    """The embedded base model."""
    return ROOT / "data" / "tiny-base"


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Real rows from outside; skips where they are not beside the checkout."""
    path = ROOT.parent / "shared" / "real"
    if not path.is_dir():
        pytest.skip("../shared/real is not beside this checkout")
    return path


# ---- a model that says what it is told to, and servers ----

TEMPLATES = {
    "qwen3_coder": (
        "<tool_call>\n<function=example_function_name>\n<parameter=example_parameter_1>\nvalue_1\n</parameter>\n"
        "</function>\n</tool_call>"
    ),
    "hermes": '<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>',
}
TEMPLATE = """{%- if tools %}<|im_start|>system
<tools>{% for tool in tools %}
{{ tool | tojson }}{% endfor %}
</tools>
Call a function so: @EXAMPLE@<|im_end|>
{% endif %}
{%- for message in messages %}<|im_start|>{{ message.role }}
{% for call in message.tool_calls %}<tool_call>
{{ call.function | tojson }}
</tool_call>
{% endfor %}{% if message.role == 'tool' %}<tool_response>
{% endif %}{{ message.content }}{% if not loop.last %}<|im_end|>
{% endif %}{% endfor %}"""
SPECIAL = [
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tool_call>", "</tool_call>", "<tool_response>",
    "</tool_response>", "<think>", "</think>",
]  # fmt: skip
WEATHER = "\n<function=get_weather>\n<parameter=city>\n{}\n</parameter>\n</function>\n"
# What the model writes after a prompt that ends with the key. Each piece is one token, and must occur only once.
SCRIPTS = {
    "#hello": ["Hello", ", world ", "🌍!"],
    "#call": ["<tool_call>", WEATHER.format("Paris"), "</tool_call>"],
    "#spaced-call": ["\n \n", "Let me look.", "\n\n", "<tool_call>" + WEATHER.format("Oslo"), "</tool_call>\n", " \n "],
    "#two-calls": ["<tool_call>\n<function=get_weather>", "\n<parameter=city>\nBern\n</parameter>\n</function>\n",
                   "</tool_", "call>\n", "<tool_call>\n<function=add>\n<parameter=a>\n1\n",
                   "</parameter>\n<parameter=b>\n2", "\n</parameter>\n</function>\n</tool_call>"],
    "#hermes": ["<tool_call>\n", '{"name": "get_weather", ', '"arguments": {"city": "Rome"}}', "\n</tool_call>\n\n"],
    "#broken": ["Well. ", "<tool_call>\n{no call", " at all", "\n</tool_call>", " So be it."],
    "#cut": ["<tool_call>\n\n", "<function=get_weather>\n<parameter=city>\nLis"],
    "#fence": ["```json\n", '{"name": "get_weather", "arguments": {"city": "Kyiv"}}', "\n```"],
    "#think": ["<think>", "The user greets me.", "</think>", "Good day."],
    "#stop": ["one ", "two thr", "ee four"],
    "#forever": ["la "],
    "#coin": ["heads ", "tails "],
    "#silent": [],
}  # fmt: skip
COIN = ("heads ", "tails ")


def build_scripted_model(path: Path, style: str) -> Path:
    """A real Qwen3 model whose hand-made weights make each token follow one other: it writes `SCRIPTS`."""
    import mlx.core as mx
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.add_special_tokens(SPECIAL)
    pieces = {p: None for key, script in SCRIPTS.items() for p in [key, *script] if p not in SPECIAL}
    bpe.add_tokens(list(pieces))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokenizer.chat_template = TEMPLATE.replace("@EXAMPLE@", TEMPLATES[style])
    tokenizer.save_pretrained(str(path))

    ids = tokenizer.get_vocab()
    width = -(-len(ids) // 64) * 64
    successors: dict[str, str] = {}
    for key, script in SCRIPTS.items():
        for now, then in zip([key, *script], [*script, "<|im_end|>"], strict=True):
            assert successors.setdefault(now, then) == then, f"{now!r} has two successors"
    successors["la "] = "la "
    follows = mx.zeros((len(ids), width))
    for name, index in ids.items():
        follows[ids[successors.get(name, "<|im_end|>")], index] = 1.0
    for now in COIN:  # either, with the same probability
        follows[ids["<|im_end|>"], ids[now]] = 0
        for then in COIN:
            follows[ids[then], ids[now]] = 1.0
    config = {
        "model_type": "qwen3", "hidden_size": width, "num_hidden_layers": 1, "intermediate_size": 64,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 64, "rms_norm_eps": 1e-6,
        "vocab_size": len(ids), "max_position_embeddings": 4096, "rope_theta": 1e6, "tie_word_embeddings": False,
        "eos_token_id": ids["<|im_end|>"],
    }  # fmt: skip
    (path / "config.json").write_text(json.dumps(config))
    zeros = {"self_attn.q_proj": (128, width), "self_attn.k_proj": (64, width), "self_attn.v_proj": (64, width),
             "self_attn.o_proj": (width, 128), "mlp.gate_proj": (64, width), "mlp.up_proj": (64, width),
             "mlp.down_proj": (width, 64)}  # fmt: skip
    ones = {"input_layernorm": width, "post_attention_layernorm": width, "self_attn.q_norm": 64, "self_attn.k_norm": 64}
    arrays = {f"model.layers.0.{n}.weight": mx.zeros(s, mx.float16) for n, s in zeros.items()}
    arrays |= {f"model.layers.0.{n}.weight": mx.ones(s, mx.float16) for n, s in ones.items()}
    arrays |= {"model.norm.weight": mx.ones(width, mx.float16), "lm_head.weight": follows.astype(mx.float16)}
    arrays["model.embed_tokens.weight"] = mx.eye(len(ids), width, dtype=mx.float16)
    mx.save_safetensors(str(path / "model.safetensors"), arrays, metadata={"format": "mlx"})
    return path


@pytest.fixture(scope="session")
def scripted_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory whose model writes `SCRIPTS`, with a Qwen3-Coder template."""
    path = tmp_path_factory.mktemp("models") / "scripted"
    path.mkdir()
    return build_scripted_model(path, "qwen3_coder")


@pytest.fixture(scope="session")
def hermes_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model with a Hermes template."""
    path = tmp_path_factory.mktemp("models") / "hermes"
    path.mkdir()
    return build_scripted_model(path, "hermes")


@dataclass
class Server:
    """A server process that has said that it is ready."""

    process: subprocess.Popen[str]
    ready: dict[str, Any]

    @property
    def url(self) -> str:
        return self.ready["url"]


@contextlib.contextmanager
def run_server(model: Path, *options: str) -> Iterator[Server]:
    """`punie-mlx serve` as users start it; stopped, and its exit code checked, at the end."""
    command = [sys.executable, "-m", "punie_mlx", "serve", "--model", str(model), "--port", "0", *options]
    environment = {**os.environ, "PUNIE_MLX_NO_BLAS_WARNING": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line, f"the server ended with exit code {process.wait()}"
            yield Server(process, json.loads(line))
        finally:
            process.terminate()
            code = process.wait(30)
    assert code == 0, f"exit code {code} after SIGTERM"


@pytest.fixture(scope="session")
def scripted_server(scripted_model: Path) -> Iterator[Server]:
    """A server of the scripted model, shared by all tests."""
    with run_server(scripted_model) as server:
        yield server


@pytest.fixture
def serving() -> Callable[..., contextlib.AbstractContextManager[Server]]:
    """`with serving(model, "--adapter", …) as server`: a server of one's own."""
    return run_server


@pytest.fixture(scope="session")
def full_disk(tmp_path_factory: pytest.TempPathFactory):
    """A directory on a disk of 256 KB; skips where none can be mounted."""
    path = tmp_path_factory.mktemp("small-disk")
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", path], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"no small disk can be mounted here: {mounted.stderr.strip()}")
    yield path
    subprocess.run(["umount", path], check=False)
