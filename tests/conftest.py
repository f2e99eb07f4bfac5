"""Shared fixtures: the shipped model, and real data that may not be there."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import punie_mlx  # noqa: F401  loads the fast BLAS, which must come before any test imports mlx

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
GET_WEATHER = ["<tool_call>", "\n<function=", "get_weather>\n<parameter=city>\n"]
# What the model writes after a prompt that ends with the key. Each piece is one token: markers are tokens of their own,
# and calls are cut where a grammar that leaves no choice cuts them.
SCRIPTS = {
    "#hello": ["Hello", ", world ", "🌍!"],
    "#call": [*GET_WEATHER, "Paris\n</parameter>\n</function>\n", "</tool_call>"],
    "#spaced-call": ["\n \n", "Let me ", "look.\n\n", *GET_WEATHER, "Oslo\n</parameter>\n</function>\n", "</tool_call>",
                     "\n \n "],
    "#two-calls": [*GET_WEATHER, "Bern\n</parameter>\n</function>\n", "</tool_call>", "\n",
                   "<tool_call>", "\n<function=", "add>\n<parameter=a>\n", "1\n</parameter>\n<parameter=b>\n",
                   "2\n</parameter>\n</function>\n", "</tool_call>"],
    "#hermes": ["<tool_call>", '\n{"name": "', 'get_weather", "arguments": ', "{", '"city":', ' "Rome"}}\n',
                "</tool_call>", "\n\n"],
    "#broken": ["Well. ", "<tool_call>", "\n{no call", " at all\n", "</tool_call>", " So be it."],
    "#cut": ["<tool_call>", "\n\n<function=get_weather>\n<parameter=city>\nLis"],
    "#fence": ["```json\n", '{"name": "get_weather", "arguments": {"city": "Kyiv"}}', "\n```"],
    "#think": ["<think>", "The user greets me.", "</think>", "Good day."],
    "#stop": ["one ", "two thr", "ee four"],
    "#forever": ["la "],
    "#coin": ["heads ", "tails "],
    "#silent": [],
}  # fmt: skip
COIN = ("heads ", "tails ")
END = "<|im_end|>"
HEAD = 64  # the width of the attention's head, and the most pieces that it can tell apart


def transitions() -> tuple[dict[str, set[str]], dict[str, set[str]]]:
    """What may follow each piece; and what follows after each piece that stands in one place only, up to the next such
    one: where several pieces may follow, that tells which."""
    pieces = [p for key, script in SCRIPTS.items() for p in [key, *script]]
    places = {p: pieces.count(p) for p in pieces}
    after: dict[str, set[str]] = {"\n": {END}}
    later: dict[str, set[str]] = {}
    known: dict[tuple[str, str], str] = {}
    for key, script in SCRIPTS.items():
        last = key
        for now, then in zip([key, *script], [*script, END], strict=True):
            last = now if places[now] == 1 else last
            assert known.setdefault((last, now), then) == then, f"{now!r} after {last!r} is followed by two pieces"
            after.setdefault(now, set()).add(then)
    for (last, now), then in known.items():
        if len(after[now]) > 1:
            later.setdefault(last, set()).add(then)
    told = [(after[now], later[last]) for last, now in known if len(after[now]) > 1]
    assert all(len(may & tells) == 1 for may, tells in told), "two of the pieces are as likely"
    return after | {"la ": {"la "}, **{now: set(COIN) for now in COIN}}, later


def scripted_tokenizer(style: str) -> Any:
    """Bytes, the pieces of the scripts, and markers; text that is a piece is encoded as it."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    pieces = {p: None for key, script in SCRIPTS.items() for p in [key, *script] if p not in SPECIAL}
    spelled = {p: level.pre_tokenize_str(p)[0][0] for p in pieces}
    vocabulary = dict.fromkeys([*sorted(level.alphabet()), *spelled.values()])
    bpe = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(vocabulary)}, merges=[], ignore_merges=True))
    pattern = Regex("|".join(re.escape(p) for p in sorted(pieces, key=len, reverse=True)))
    bpe.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(pattern, "isolated"), level])
    bpe.decoder = decoders.ByteLevel()
    bpe.add_special_tokens(SPECIAL)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=END, pad_token="<|endoftext|>")
    tokenizer.chat_template = TEMPLATE.replace("@EXAMPLE@", TEMPLATES[style])
    return tokenizer


def build_scripted_model(path: Path, style: str) -> Path:
    """A real Qwen3 model with hand-made weights that writes `SCRIPTS`: the last token says what may follow, and where
    that is several pieces, a head that attends to the last piece of one place only says which."""
    import mlx.core as mx

    tokenizer = scripted_tokenizer(style)
    tokenizer.save_pretrained(str(path))
    after, later = transitions()
    vocabulary, names = tokenizer.get_vocab(), [*after, *COIN, *SCRIPTS]
    ids = {name: tokenizer.encode(name, add_special_tokens=False)[0] for name in [END, *names]}
    size, theta = len(vocabulary), 1e4
    width = -(-(size + HEAD) // 64) * 64  # a dimension for each token, and one for each piece that chooses
    config = {
        "model_type": "qwen3", "hidden_size": width, "num_hidden_layers": 1, "intermediate_size": 64,
        "num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": HEAD, "rms_norm_eps": 1e-6,
        "vocab_size": size, "max_position_embeddings": 4096, "rope_theta": theta, "tie_word_embeddings": False,
        "eos_token_id": ids[END],
    }  # fmt: skip
    (path / "config.json").write_text(json.dumps(config))
    follows = mx.zeros((size, width))
    follows[ids[END], :size] = 2.0
    for now, found in after.items():
        follows[:, ids[now]] = 0.0
        for then in found:
            follows[ids[then], ids[now]] = 2.0
    key, value, output = mx.zeros((HEAD, width)), mx.zeros((HEAD, width)), mx.zeros((width, HEAD))
    for name in {**SCRIPTS, **later}:
        # Turned by their positions, queries and keys fit the better the nearer, without the fastest turns.
        key[4 : HEAD // 2, ids[name]] = 1.0
    for i, (last, found) in enumerate(later.items()):
        value[i, ids[last]] = 1.0
        output[size + i, i] = width**-0.5  # the norm before the layer has made that of 1
        for then in found:
            follows[ids[then], size + i] = 1.0
    query = mx.concatenate([mx.ones((HEAD // 2, width)), mx.zeros((HEAD // 2, width))])
    weights = {
        "self_attn.q_proj": query, "self_attn.k_proj": key, "self_attn.v_proj": value, "self_attn.o_proj": output,
        "self_attn.q_norm": mx.full(HEAD, 12.0), "self_attn.k_norm": mx.full(HEAD, 12.0),
        "mlp.gate_proj": mx.zeros((64, width)), "mlp.up_proj": mx.zeros((64, width)),
        "mlp.down_proj": mx.zeros((width, 64)),
        "input_layernorm": mx.ones(width), "post_attention_layernorm": mx.ones(width),
    }  # fmt: skip
    arrays = {f"model.layers.0.{name}.weight": array for name, array in weights.items()}
    arrays |= {"model.norm.weight": mx.ones(width), "lm_head.weight": follows}
    arrays["model.embed_tokens.weight"] = mx.eye(size, width)
    arrays = {name: array.astype(mx.float16) for name, array in arrays.items()}
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


@pytest.fixture(scope="session")
def serving() -> Callable[..., contextlib.AbstractContextManager[Server]]:
    """`with serving(model, "--adapter", …) as server`: a server of one's own."""
    return run_server


@pytest.fixture
def full_disk(small_disk: Path):
    """An empty directory on a disk of 256 KB; skips where none can be mounted."""
    yield small_disk
    for path in small_disk.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


@pytest.fixture(scope="session")
def small_disk(tmp_path_factory: pytest.TempPathFactory):
    path = tmp_path_factory.mktemp("small-disk")
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", path], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"no small disk can be mounted here: {mounted.stderr.strip()}")
    yield path
    subprocess.run(["umount", path], check=False)
