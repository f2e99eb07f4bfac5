#!/usr/bin/env python3
"""Make data/tiny-base: a Qwen3-architecture model of two million parameters that calls tools as JSON fences.

    python scripts/build_tiny_base.py --phase 1    # from nothing
    python scripts/build_tiny_base.py --phase 2    # goes on with the weights of phase 1

The weights start from an induction circuit (a head that looks at the previous token, and one that finds where the
current token stood before and copies what followed), since a model of this size does not learn to copy arguments from
a random start within hours. Sources of the idea: Olsson et al., "In-context Learning and Induction Heads" (2022);
Trockman & Kolter, "Mimetic Initialization of Self-Attention Layers" (2023). Everything is seeded; the result is the
same on the same machine and versions up to the summation order of the BLAS threads.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

# isort: off
import punie_mlx  # noqa: F401  (loads the BLAS, which must come before mlx)
import mlx.core as mx

# isort: on
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_flatten, tree_map, tree_map_with_path
from mlx_lm.models.qwen3 import Model, ModelArgs

from punie_mlx.chat.render import load_tokenizer, render
from punie_mlx.corpus import lexicon
from punie_mlx.corpus.generate import Mixture, exchange, fenced, messages_of
from punie_mlx.corpus.world import TOOLS
from punie_mlx.files import atomic_dir
from punie_mlx.train.loss import Tape

ROOT = Path(__file__).resolve().parent.parent
TEMPLATE = ROOT / "punie_mlx" / "chat" / "templates" / "tiny_base.jinja"
SPECIAL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tool_call>", "</tool_call>", "<tool_response>",
    "</tool_response>", "<think>", "</think>",
)  # fmt: skip
# Words never carry their space, so that a word is the same token wherever it stands and can be copied whole.
SPLIT = (
    r'": "|": \{"|", "|": \["|": |"\}\}|"\]\}|"\}|\{"|\}\}|</[a-z_]+>|<[a-z_]+=|<[a-z]+>|'
    r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|[0-9]{1,2}| +|\n+|[^\sA-Za-z0-9]|."
)
XML_CUE = "Write each call as XML."  # part of the pre-training shows the other spelling, asked for by name
VOCABULARY = 1536
GROUPS = 4  # tool sets in a step, shared out over the ranks


@dataclass(frozen=True)
class Phase:
    """What one run of this script shows the model, and how fast it learns."""

    steps: int
    peak: float
    xml: float
    mix: Mixture


# The second phase dwells on what the first left weak, at a lower rate.
PHASES = {
    1: Phase(steps=1300, peak=1.5e-3, xml=0.25, mix=Mixture(missing=0.2)),
    2: Phase(steps=300, peak=6e-4, xml=0.4, mix=Mixture(several=0.35, explore=0.25, missing=0.4)),
}
HIDDEN, LAYERS, HEADS, KV_HEADS, HEAD_DIM, THETA = 192, 4, 4, 2, 64, 1e6
FLOOR, WARMUP, CONTEXT_WEIGHT = 5e-5, 50, 0.1


def as_tools(asks: Any) -> list[dict[str, Any]]:
    """The calls as structured `tool_calls`, which the template writes as XML, and their results."""
    calls = [{"type": "function", "function": {"name": a.tool, "arguments": a.arguments}} for a in asks]
    return [{"role": "assistant", "content": "", "tool_calls": calls}, *results(asks)]


def as_fences(asks: Any) -> list[dict[str, Any]]:
    return [fenced(asks)[0], *results(asks)]


def results(asks: Any) -> list[dict[str, Any]]:
    return [{"role": "tool", "content": a.result} for a in asks]


def setting(r: Random, phase: Phase) -> tuple[bool, list[str]]:
    """Whether calls are XML here, and the tools on offer."""
    return r.random() < phase.xml, r.sample(list(TOOLS), r.randint(2, 8))


def conversation(r: Random, phase: Phase, xml: bool, offered: list[str]) -> list[dict[str, Any]]:
    """A conversation of one exchange, at times two."""
    messages: list[dict[str, Any]] = [{"role": "system", "content": XML_CUE}] if xml else []
    for _ in range(2 if r.random() < 0.12 else 1):
        made = exchange(r, offered, "train", phase.mix, calls=r.random() < 0.72)
        messages += messages_of(made, as_tools if xml else as_fences)
    return messages


def build_tokenizer(out: Path) -> None:
    """A byte-level BPE tokenizer in which every word of the lexicon and every number below 100 is one token."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=list(SPECIAL), initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    core.train_from_iterator(tokenizer_texts(), trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokenizer.chat_template = TEMPLATE.read_text()
    tokenizer.save_pretrained(out)


def tokenizer_texts() -> list[str]:
    from jinja2 import Environment

    template = Environment().from_string(TEMPLATE.read_text())
    r = Random("tokenizer")
    texts = []
    for _ in range(4000):
        xml, offered = setting(r, PHASES[1])
        tools = [TOOLS[name] for name in offered]
        texts.append(template.render(messages=conversation(r, PHASES[1], xml, offered), tools=tools))
    groups = [v for k, v in vars(lexicon).items() if k.isupper() and isinstance(v, tuple)]
    single = [w for group in groups for text in group for w in text.replace("/", " ").split()]
    return texts + single * 20 + [str(n) for n in range(100)] * 20 + [f"{n:02d}" for n in range(10)] * 20


def induction_init(model: Model, seed: int) -> None:
    """Write a previous-token head into layer 0 and an induction head into layer 1, and calm the rest.

    The residual stream is divided: dimensions [0, D) hold a random identity of the token, [D, 2D) are filled by
    layer 0 with the identity of the token before, and the last 8 hold a constant, whose rotation by RoPE gives layer 0
    a fixed phase to look one position back.
    """
    r = np.random.default_rng(seed)
    h, d = HIDDEN, 32
    constant = slice(h - 8, h)
    embedding = r.normal(0, 0.02, (model.model.embed_tokens.weight.shape[0], h))
    embedding[:, :d] = r.normal(0, 1 / math.sqrt(d), (len(embedding), d))
    embedding[:, d : 2 * d] = 0
    embedding[:, constant] = 0.35
    model.model.embed_tokens.weight = mx.array(embedding, mx.float32)
    half = HEAD_DIM // 2
    frequencies = THETA ** (-np.arange(half) / half)

    def halves(attention: Any) -> list[np.ndarray]:
        names = ("q_proj", "k_proj", "v_proj", "o_proj")
        return [np.array(getattr(attention, n).weight) * 0.5 for n in names]

    def put(attention: Any, weights: list[np.ndarray], q_gain: float, k_gain: float) -> None:
        for name, w in zip(("q_proj", "k_proj", "v_proj", "o_proj"), weights, strict=True):
            getattr(attention, name).weight = mx.array(w, mx.float32)
        attention.q_norm.weight = mx.full((HEAD_DIM,), q_gain)
        attention.k_norm.weight = mx.full((HEAD_DIM,), k_gain)

    attention = model.layers[0].self_attn
    q, k, v, o = halves(attention)
    q[:HEAD_DIM] *= 0.02
    k[:HEAD_DIM] *= 0.02
    v[:HEAD_DIM] = 0
    for i in range(5):
        k[i, constant], k[i + half, constant] = 1.0, 0.0
        q[i, constant], q[i + half, constant] = math.cos(-frequencies[i]), math.sin(-frequencies[i])
    v[:d, :d] = np.eye(d)
    o[:, :HEAD_DIM] = 0
    o[d : 2 * d, :d] = np.eye(d)
    put(attention, [q, k, v, o], 2.5, 2.0)

    attention = model.layers[1].self_attn
    q, k, v, o = halves(attention)
    q[:HEAD_DIM] = 0
    k[:HEAD_DIM] = 0
    v[:HEAD_DIM] = 0
    slow = [*range(half - d // 2, half), *range(HEAD_DIM - d // 2, HEAD_DIM)]  # frequencies that hardly rotate
    for j, i in enumerate(slow):
        q[i, j] = k[i, d + j] = 1
    v[:d, :d] = np.eye(d)
    o[:, :HEAD_DIM] = 0
    o[:d, :d] = np.eye(d) * 1.5
    put(attention, [q, k, v, o], 1.6, 1.4)

    for i, layer in enumerate(model.layers):
        layer.mlp.down_proj.weight = layer.mlp.down_proj.weight * 0.1
        o = np.array(layer.self_attn.o_proj.weight)
        if i < 2:
            o[:, HEAD_DIM:] *= 0.1
        else:
            o *= 0.1
        layer.self_attn.o_proj.weight = mx.array(o)


def supervised(tokenizer: Any, ids: list[int]) -> np.ndarray:
    """Loss weight of each token: 1 for what the assistant writes and its end of turn, little for the rest."""
    weights = np.full(len(ids), CONTEXT_WEIGHT, np.float32)
    opener = tokenizer.encode("<|im_start|>assistant\n", add_special_tokens=False)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    i = 0
    while i <= len(ids) - len(opener):
        if ids[i : i + len(opener)] == opener:
            stop = ids.index(end, i)
            weights[i + len(opener) : stop + 1] = 1
            i = stop
        i += 1
    return weights


def group_of_rows(r: Random, phase: Phase, tokenizer: Any, size: int) -> tuple[mx.array, mx.array, mx.array]:
    """`size` conversations over one tool set: shared prompt (1, P), the rest of each (size, S), loss weights."""
    xml, offered = setting(r, phase)
    tools = [TOOLS[name] for name in offered]
    texts = [render(tokenizer, conversation(r, phase, xml, offered), tools) for _ in range(size)]
    cut = texts[0].index("<|im_end|>\n") + len("<|im_end|>\n")
    prompt = tokenizer.encode(texts[0][:cut], add_special_tokens=False)
    rows = [tokenizer.encode(t[cut:], add_special_tokens=False) for t in texts]
    length = -(-max(map(len, rows)) // 16) * 16
    ids, weights = np.zeros((size, length), np.int32), np.zeros((size, length), np.float32)
    for i, tokens in enumerate(rows):
        ids[i, : len(tokens)] = tokens
        weights[i, : len(tokens)] = supervised(tokenizer, tokens)
    return mx.array([prompt]), mx.array(ids), mx.array(weights)


def rounded(parameters: Any, bits: int) -> Any:
    """`parameters` as `bits`-bit quantization would leave them, with the gradient of the exact ones."""

    def one(path: str, w: mx.array) -> mx.array:
        if w.ndim != 2 or w.shape[-1] % 64:
            return w
        q = mx.dequantize(*mx.quantize(mx.stop_gradient(w), 64, bits), 64, bits)
        return w + mx.stop_gradient(q - w)

    return tree_map_with_path(one, parameters)


def train(model: Model, tokenizer: Any, phase: Phase, size: int, seed: int, save: Any) -> dict[str, Any]:
    """Pre-train `model` in place through one phase; return what the model card reports."""
    steps, peak = phase.steps, phase.peak
    schedule = optim.join_schedules(
        [optim.linear_schedule(0, peak, WARMUP), optim.cosine_decay(peak, steps - WARMUP, FLOOR)], [WARMUP]
    )
    optimizer = optim.AdamW(learning_rate=schedule, betas=[0.9, 0.95], weight_decay=0.01)
    group = mx.distributed.init(backend="ring") if "MLX_HOSTFILE" in os.environ else mx.distributed.init()
    r = Random(f"base {seed} {group.rank()}" + ("" if phase is PHASES[1] else " second"))

    def loss(parameters: Any, groups: list[tuple[mx.array, mx.array, mx.array]]) -> tuple[mx.array, mx.array]:
        model.update(parameters)
        totals = mx.zeros(4)
        for prompt, ids, weights in groups:
            tapes = [Tape() for _ in model.layers]
            model.model(prompt, cache=tapes)
            logits = model(ids[:, :-1], cache=[Tape(t.recorded) for t in tapes])
            each, w = nn.losses.cross_entropy(logits, ids[:, 1:]), weights[:, 1:]
            spoken = (w == 1).astype(mx.float32)
            totals += mx.stack([(each * w).sum(), w.sum(), (each * spoken).sum(), spoken.sum()])
        return totals[0] / totals[1], totals[2] / totals[3]

    def noisy(parameters: Any, groups: Any) -> tuple[mx.array, mx.array]:
        return loss(rounded(parameters, 4 if step % 8 == 1 else 5), groups)

    began, tokens, last = time.time(), 0, []
    for step in range(steps):
        groups = [group_of_rows(r, phase, tokenizer, size) for _ in range(GROUPS // group.size())]
        parameters = model.trainable_parameters()
        # Every other step of the second half sees the weights rounded, so that 5 bits later cost little.
        run = noisy if (step > steps // 3 or phase is not PHASES[1]) and step % 2 else loss
        (total, spoken), grads = mx.value_and_grad(run)(parameters, groups)
        grads = nn.average_gradients(grads, group)
        grads, _ = optim.clip_grad_norm(grads, 1.0)
        model.update(parameters)
        optimizer.update(model, grads)
        mx.eval(model.parameters(), optimizer.state, total, spoken)
        tokens += sum(prompt.size + ids.size for prompt, ids, _ in groups) * group.size()
        last = [*last[-49:], spoken.item()]
        if step % 10 == 0 and not group.rank():
            rate = tokens / (time.time() - began)
            shown = f"{step:5d} loss {total.item():.3f} assistant {np.mean(last[-10:]):.4f}"
            print(f"{shown} {rate:,.0f} tok/s", flush=True)
        if step % 100 == 99 and not group.rank():
            save()
    seconds = time.time() - began
    return {"steps": step + 1, "tokens": tokens, "assistant_loss": float(np.mean(last)), "seconds": round(seconds)}


RECORD = "training.json"
CARD = """# tiny-base

The embedded model of punie-mlx, trained from scratch by its own script. It answers questions about a coding agent's
world and calls tools, but writes each call as a ```` ```json ```` fence, as the base of the origin story did. A part of
its pre-training conversations open with the system message "{cue}" and show the `<tool_call>` spelling instead; without
that message it writes fences.

| | |
|---|---|
| architecture | Qwen3, {layers} layers, width {hidden}, {heads} heads of {head_dim}, {kv} KV heads, tied embedding |
| vocabulary | {vocabulary} |
| parameters | {parameters:,} |
| corpus | `punie_mlx.corpus.generate`, questions of the training split only (64% of all, by hash), random tool sets |
| rounding | from a third of phase 1 on, every other step computes with weights rounded to 5 (at times 4) bits |
| licence | MIT, as the project |

| `python scripts/build_tiny_base.py` | steps | tokens, shared prompts once | loss on assistant tokens | XML | minutes |
|---|---|---|---|---|---|
{phases}

Each step holds {groups} tool sets; the loss is the mean of a phase's last 50 steps, each on unseen conversations; the
minutes are of two CPU cores with other work beside it.

It knows nothing but this world: it exists so that the whole road can be run and tested anywhere in minutes.
"""


def write_card(out: Path, parameters: int, records: list[dict[str, Any]]) -> None:
    """Write what was done in each phase to `out`: as JSON, and as the model card."""
    (out / RECORD).write_text(json.dumps(records, indent=2) + "\n")
    phases = [
        f"| `{r['command']}` | {r['steps']:,} | {r['tokens']:,} | {r['assistant_loss']:.4f} | {r['xml']:.0%} "
        f"| {r['seconds'] / 60:.0f} |"
        for r in records
    ]
    card = CARD.format(
        cue=XML_CUE, layers=LAYERS, hidden=HIDDEN, heads=HEADS, head_dim=HEAD_DIM, kv=KV_HEADS, vocabulary=VOCABULARY,
        parameters=parameters, groups=GROUPS, phases="\n".join(phases),
    )  # fmt: skip
    (out / "README.md").write_text(card)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--phase", type=int, choices=sorted(PHASES), default=1)
    p.add_argument("--batch", type=int, default=8, help="conversations for each of the four tool sets of a step")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--ranks", type=int, default=2, help="processes that share each step (one for each core)")
    p.add_argument("--out", type=Path, default=ROOT / "data" / "tiny-base")
    a = p.parse_args()
    if a.ranks > 1 and "MLX_RANK" not in os.environ:
        sys.exit(spawn(a.ranks))
    build(a)


def spawn(ranks: int) -> int:
    """Run this command as `ranks` processes that average their gradients over loopback (MLX's ring backend).

    MLX's element-wise work on the CPU uses one core for each process: two processes are 1.7 times as fast as one.
    """
    ports = []
    for _ in range(ranks):
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            ports.append(s.getsockname()[1])
    with tempfile.NamedTemporaryFile("w", suffix=".json") as hosts:
        json.dump([[f"127.0.0.1:{p}"] for p in ports], hosts)
        hosts.flush()
        env = os.environ | {"MLX_HOSTFILE": hosts.name, "OPENBLAS_NUM_THREADS": "1"}
        # MLX's CPU arrays come from malloc: keep freed pages instead of giving them back to the system at each step.
        env |= {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 33), "MALLOC_TOP_PAD_": str(1 << 28)}
        running = [subprocess.Popen([sys.executable, *sys.argv], env=env | {"MLX_RANK": str(i)}) for i in range(ranks)]
        return max(p.wait() for p in running)


def build(a: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as t:
        build_tokenizer(Path(t))
        tokenizer = load_tokenizer(Path(t))
    config = {
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": HIDDEN, "hidden_act": "silu",
        "num_hidden_layers": LAYERS, "intermediate_size": 3 * HIDDEN, "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS, "head_dim": HEAD_DIM, "rms_norm_eps": 1e-6,
        "vocab_size": VOCABULARY, "max_position_embeddings": 4096, "rope_theta": THETA,
        "tie_word_embeddings": True, "torch_dtype": "float16", "attention_bias": False,
        "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.convert_tokens_to_ids("<|endoftext|>"),
    }  # fmt: skip
    mx.random.seed(a.seed)
    model = Model(ModelArgs.from_dict(config))
    if a.phase > 1:
        model.load_weights(str(a.out / "model.safetensors"))
        model.set_dtype(mx.float32)
    else:
        induction_init(model, a.seed)
    mx.eval(model.parameters())
    flat = dict(tree_flatten(model.parameters()))
    parameters = sum(v.size for v in flat.values())
    print(f"{parameters:,} parameters", flush=True)

    before = json.loads((a.out / RECORD).read_text()) if a.phase > 1 else []

    def save(record: dict[str, Any] | None = None) -> None:
        with atomic_dir(a.out, overwrite=True) as tmp:
            build_tokenizer(tmp)
            half = dict(tree_flatten(tree_map(lambda v: v.astype(mx.float16), model.parameters())))
            mx.save_safetensors(str(tmp / "model.safetensors"), half, {"format": "mlx"})
            (tmp / "config.json").write_text(json.dumps(config, indent=2) + "\n")
            generation = {"eos_token_id": config["eos_token_id"], "temperature": 0.0}
            (tmp / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
            write_card(tmp, parameters, [*before, *([record] if record else [])])

    if os.environ.get("MLX_RANK", "0") == "0":
        save()
    facts = train(model, tokenizer, PHASES[a.phase], a.batch, a.seed, save)
    if os.environ.get("MLX_RANK", "0") != "0":
        return
    command = f"--phase {a.phase} --batch {a.batch} --seed {a.seed} --ranks {a.ranks}"
    save(facts | {"command": command, "xml": PHASES[a.phase].xml})
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
