"""The embedded model and the script that makes it."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from random import Random

import numpy as np
import pytest

from punie_mlx.chat.render import load_tokenizer, render
from punie_mlx.corpus import lexicon
from punie_mlx.corpus.generate import bucket
from punie_mlx.corpus.world import TOOLS


@pytest.fixture(scope="module")
def build(root: Path):
    spec = importlib.util.spec_from_file_location("build_tiny_base", root / "scripts/build_tiny_base.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def tokenizer(tiny_base: Path):
    return load_tokenizer(tiny_base)


def test_it_is_small_and_its_card_is_its_record(build, tiny_base: Path, tmp_path: Path) -> None:
    assert sum(f.stat().st_size for f in tiny_base.iterdir()) <= 12e6
    records = json.loads((tiny_base / "training.json").read_text())
    assert [r["steps"] for r in records] == [phase.steps for phase in build.PHASES.values()]
    build.write_card(tmp_path, 2_214_080, records)
    assert (tmp_path / "README.md").read_text() == (tiny_base / "README.md").read_text()


def test_the_script_makes_the_shipped_tokenizer(build, tiny_base: Path, tmp_path: Path) -> None:
    build.build_tokenizer(tmp_path)
    for name in ("tokenizer.json", "chat_template.jinja"):
        assert (tmp_path / name).read_bytes() == (tiny_base / name).read_bytes(), name


def test_a_word_is_one_token_wherever_it_stands(tokenizer) -> None:
    for word in (*lexicon.WORDS, *lexicon.DIRS, *lexicon.STEMS, *lexicon.CLASSES, *lexicon.SUFFIXES):
        (alone,) = tokenizer.encode(word, add_special_tokens=False)
        for around in (f"Read {word}/x", f'{{"path": "{word}"}}', f"\n{word}\n", f"'{word} x'"):
            assert alone in tokenizer.encode(around, add_special_tokens=False), around


def test_loss_is_on_what_the_assistant_writes_and_its_end(build, tokenizer) -> None:
    turns = [{"role": "user", "content": "Read a"}, {"role": "assistant", "content": "amber"}]
    ids = tokenizer.encode(render(tokenizer, turns, [TOOLS["read_file"]]), add_special_tokens=False)
    trained = [i for i, w in zip(ids, build.supervised(tokenizer, ids), strict=True) if w == 1]
    assert tokenizer.decode(trained) == "amber<|im_end|>"


def test_pre_training_asks_training_questions_only(build) -> None:
    r = Random(5)
    for phase in build.PHASES.values():
        for _ in range(30):
            xml, offered = build.setting(r, phase)
            for message in build.conversation(r, phase, xml, offered):
                if message["role"] == "user":
                    assert bucket(message["content"]) == "train"


def test_the_seeded_circuit_copies_before_any_training(build) -> None:
    import mlx.core as mx
    from mlx_lm.models.qwen3 import Model, ModelArgs

    config = {
        "model_type": "qwen3", "hidden_size": build.HIDDEN, "num_hidden_layers": build.LAYERS,
        "intermediate_size": 3 * build.HIDDEN, "num_attention_heads": build.HEADS, "rms_norm_eps": 1e-6,
        "vocab_size": build.VOCABULARY, "num_key_value_heads": build.KV_HEADS, "max_position_embeddings": 4096,
        "rope_theta": build.THETA, "head_dim": build.HEAD_DIM, "tie_word_embeddings": True,
    }  # fmt: skip
    mx.random.seed(0)
    copied = {}
    for seeded in (False, True):
        model = Model(ModelArgs.from_dict(config))
        if seeded:
            build.induction_init(model, 0)
        text = np.random.default_rng(1).permutation(build.VOCABULARY)[:48]
        logits = model(mx.array(np.concatenate([text, text])[None].astype(np.int32)))
        guessed = np.array(mx.argmax(logits[0, 48:-1], axis=-1))
        copied[seeded] = float((guessed == text[1:]).mean())
    assert copied[False] < 0.1
    assert copied[True] > 0.6
