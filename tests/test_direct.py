"""The model without a server: prompts and draws as the server has them, prefixes that two prompts share."""

from __future__ import annotations

import io
import json
import subprocess
import sys

import mlx.core as mx
import pytest

from punie_mlx import direct, identity
from punie_mlx.corpus.world import TOOLS
from punie_mlx.serve.generation import Sampling
from punie_mlx.serve.sampling import Random

ASKED = [{"role": "user", "content": "What is dependency injection and when should I use it?"}]
READS = [{"role": "user", "content": "Show me the file src/app.py"}]
OFFERED = [TOOLS[n] for n in ("read_file", "run_command")]


@pytest.fixture(scope="module")
def model(tiny_base):
    compiled = direct.Model(tiny_base)
    yield compiled
    mx.enable_compile()


def request(messages, tools=(), max_tokens=60, **more):
    return {"messages": messages, "tools": list(tools), "max_tokens": max_tokens, "temperature": 0, **more}


def test_a_shared_prefix_changes_no_answer(model):
    """Each prompt after another one, which leaves more or less of it in the cache, and by itself."""
    asked = [request(ASKED), request(READS, OFFERED), request(READS, OFFERED), request(ASKED, OFFERED)]
    asked.append(request([*READS, {"role": "assistant", "content": "It is empty."}, *ASKED], OFFERED, max_tokens=20))
    after = [model.answer(r) for r in asked]
    alone = []
    for r in asked:
        model._prefix = direct.Prefix(model.network)
        alone.append(model.answer(r))
    assert [a["tokens"] for a in after] == [a["tokens"] for a in alone] and all(a["tokens"] for a in after)
    cached = [a["usage"]["prompt_tokens_details"]["cached_tokens"] for a in after]
    lengths = [a["usage"]["prompt_tokens"] for a in after]
    assert cached[0] == 0 and cached[2] == lengths[2] - 1 and lengths[2] // 2 < cached[3] < lengths[3]
    assert [a["usage"]["prompt_tokens_details"]["cached_tokens"] for a in alone] == [0] * len(asked)


def test_an_answer(model):
    found = model.answer(request(READS, OFFERED))
    assert (found["error"], found["finish_reason"]) == (None, "stop")
    trace = found["trace"]
    assert "".join(text for _, text in trace["output"]) == found["text"] and "read_file" in found["text"]
    assert [token for token, _ in trace["output"]] == found["tokens"]
    prompt = "".join(text for _, text in trace["prompt"])
    assert "read_file" in prompt and prompt.startswith("<|im_start|>") and READS[0]["content"] in prompt
    assert [s["name"] for s in trace["spans"]] == ["render", "prefill", "decode"]
    assert trace["spans"][-1]["end"] <= trace["wall"]
    cut = model.answer(request(READS, OFFERED, max_tokens=3))
    assert cut["finish_reason"] == "length" and cut["tokens"] == found["tokens"][:3]


def test_what_is_drawn_follows_from_the_seed(model):
    first, again, other = (model.answer(request(ASKED, temperature=0.9, seed=s))["tokens"] for s in (3, 3, 4))
    assert first == again != other


@pytest.mark.parametrize("temperature", [0.3, 1.0])
def test_the_server_draws_the_same_from_the_same_seed(temperature):
    logprobs = mx.log(mx.softmax(mx.random.normal((1, 50)), axis=-1))
    mine, theirs = direct._sampler(temperature, 11), Random(Sampling(temperature=temperature, seed=11))
    drawn = [(mine(logprobs).item(), theirs(logprobs).item()) for _ in range(30)]
    assert all(a == b for a, b in drawn) and len(set(drawn)) > 1


def test_an_answer_that_takes_too_long_is_an_error(model):
    found = model.answer(request(READS, OFFERED, seconds=1e-9))
    assert "took longer than" in found["error"]
    assert model.answer(request(READS, OFFERED))["error"] is None


def test_lines_in_lines_out(model):
    """What cannot be answered is an answer, too, and the next line is read."""
    lines = ["{]", json.dumps({"messages": [], "max_tokens": 1, "tools": []}), json.dumps(request(ASKED, max_tokens=2))]
    out = io.StringIO()
    direct.run(model, io.StringIO("\n".join(lines) + "\n"), out)
    ready, broken, empty, good = map(json.loads, out.getvalue().splitlines())
    assert (
        ready["event"] == "ready" and ready["fingerprint"] == model.fingerprint and "<tool_call>" in ready["vocabulary"]
    )
    assert broken["error"] and broken["trace"] is None and good["error"] is None and len(good["tokens"]) == 2
    assert set(empty) == set(good) | set(broken)


def test_an_adapter_is_laid_over_the_model(tiny_base, tmp_path):
    """As in the server: it changes the fingerprint and the words, and one of another model is refused."""
    network = direct._network(tiny_base, None)
    width = network.layers[-1].self_attn.q_proj.weight.shape
    name = f"model.layers.{len(network.layers) - 1}.self_attn.q_proj"
    mx.random.seed(1)
    weights = {f"{name}.lora_a": mx.random.normal((width[1], 4)), f"{name}.lora_b": mx.random.normal((4, width[0]))}
    mx.save_safetensors(str(tmp_path / "adapters.safetensors"), weights)
    config = {"fine_tune_type": "lora", "num_layers": 1}
    config["lora_parameters"] = {"rank": 4, "scale": 20.0, "dropout": 0.0, "keys": ["self_attn.q_proj"]}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with_adapter = direct.Model(tiny_base, tmp_path)
    assert with_adapter.fingerprint == identity.fingerprint(tiny_base, tmp_path) != identity.fingerprint(tiny_base)
    x = mx.random.normal((1, 3, width[1]))
    plain = network.layers[-1].self_attn.q_proj(x)
    assert not mx.allclose(with_adapter.network.layers[-1].self_attn.q_proj(x), plain, atol=1e-2)
    mx.enable_compile()


def test_a_refusal_is_told_as_the_verbs_tell_it(tmp_path):
    command = [sys.executable, "-m", "punie_mlx.direct", "--model", str(tmp_path / "none")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.splitlines()[-1].startswith("punie-mlx: ") and "does not exist" in done.stderr
