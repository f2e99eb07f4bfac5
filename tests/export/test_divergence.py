"""KL(float16 ‖ variant): against a computation of its own, at the right positions, within its memory."""

from __future__ import annotations

import math
from pathlib import Path

import mlx.core as mx
import mlx_lm
import numpy as np
import pytest

from punie_mlx.chat.render import load_tokenizer
from punie_mlx.corpus.rows import read_split
from punie_mlx.errors import DataError
from punie_mlx.export.divergence import Teacher, divergence, percentile
from punie_mlx.export.prompts import Said, assistant_turns, held_out, shuffled
from punie_mlx.export.quantize import quantize

TURNS = (Said((5, 9, 300, 12, 7, 40, 41, 2), 4), Said((5, 9, 8, 2), 3))


@pytest.fixture(scope="module")
def few_bits(tmp_path_factory: pytest.TempPathFactory, base: Path) -> Path:
    out = tmp_path_factory.mktemp("divergence") / "3bit"
    quantize(base, out, bits=3)
    return out


def exactly(model: Path, said: Said) -> np.ndarray:
    """Log-probabilities of each token of the turn, in float64."""
    network = mlx_lm.load(str(model))[0]
    network.set_dtype(mx.float32)
    rows = []
    for end in range(said.start, len(said.tokens)):  # one prefix after the other
        logits = np.array(network(mx.array(said.tokens[:end])[None])[0, -1]).astype(np.float64)
        rows.append(logits - logits.max() - np.log(np.exp(logits - logits.max()).sum()))
    return np.stack(rows)


def test_it_is_the_divergence_at_each_token_of_the_turn(base, few_bits):
    found = divergence(Teacher.of(base, TURNS), few_bits)
    wanted, same = [], []
    for said in TURNS:
        p, q = exactly(base, said), exactly(few_bits, said)
        wanted += (np.exp(p) * (p - q)).sum(axis=-1).tolist()
        same += (p.argmax(axis=-1) == q.argmax(axis=-1)).tolist()
    assert found.tokens == len(wanted) == 5
    assert found.mean == pytest.approx(np.mean(wanted), rel=1e-3)
    assert found.max == pytest.approx(max(wanted), rel=1e-3) and found.p99 == found.max
    assert found.top1_agreement == np.mean(same)
    assert found.mean > 1e-5, "three bits change too little to tell"


def test_a_model_does_not_differ_from_itself(base):
    found = divergence(Teacher.of(base, TURNS), base)
    assert (found.mean, found.max, found.top1_agreement) == (0, 0, 1)


def test_more_bits_are_nearer(base, few_bits, tmp_path):
    quantize(base, tmp_path / "8bit", bits=8)
    teacher = Teacher.of(base, TURNS)
    assert divergence(teacher, tmp_path / "8bit").mean < divergence(teacher, few_bits).mean / 10


def test_the_teacher_stays_within_its_memory(base):
    vocabulary = 2048
    teacher = Teacher.of(base, TURNS, budget=4 * 4 * vocabulary)
    assert teacher.turns == TURNS[:1] and teacher.tokens == 4
    with pytest.raises(DataError, match="no assistant turn"):
        Teacher.of(base, TURNS, budget=100)


@pytest.mark.parametrize(("count", "wanted"), [(1, 1), (99, 99), (100, 99), (200, 198), (1000, 990)])
def test_the_percentile_is_a_value_that_was_measured(count, wanted):
    assert percentile(range(1, count + 1), 0.99) == wanted == math.ceil(0.99 * count)


def test_turns_are_those_that_training_learns(tiny_base, root):
    """The same tokens and the same place where the turn begins as training's samples have."""
    from punie_mlx.train.samples import SampleOptions, make_samples

    tokenizer = load_tokenizer(tiny_base)
    rows = read_split(root / "data" / "phase8_xml_format", "test")[:12]
    rows[3].messages[1]["train"] = False
    found = assistant_turns(rows, tokenizer)
    samples = make_samples(rows, tokenizer, SampleOptions()).items
    assert [(s.tokens, s.start) for s in found] == [(tuple(s.tokens.tolist()), s.prompt) for s in samples]
    assert len(assistant_turns(rows, tokenizer, max_tokens=200)) == sum(len(s.tokens) <= 200 for s in samples)


def test_the_order_is_the_seeds(root, tiny_base):
    said = [Said((i, 2), 1) for i in (3, 4, 5, 6, 3)]
    assert shuffled(said, 1) == shuffled(said[::-1], 1) != shuffled(said, 2)
    assert len(shuffled(said, 1)) == 4


def test_the_held_out_split(root, tmp_path):
    data = root / "data" / "phase8_xml_format"
    name, rows = held_out(data)
    assert (name, len(rows)) == ("test", 69)
    (tmp_path / "valid.jsonl").write_text((data / "valid.jsonl").read_text())
    assert held_out(tmp_path)[0] == "valid"
