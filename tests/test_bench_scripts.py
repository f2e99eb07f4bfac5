"""The scripts that measure server and training and load them for long: that they work, and see what they look for."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from random import Random
from types import ModuleType

import mlx.core as mx
import numpy as np
import pytest


@pytest.fixture(scope="module")
def scripts(root: Path):
    """`scripts("soak_serve")`: one of the scripts as a module."""
    sys.path.insert(0, str(root))
    try:
        yield lambda name: importlib.import_module(f"scripts.{name}")
    finally:
        sys.path.remove(str(root))


@pytest.fixture(scope="module")
def load(scripts) -> ModuleType:
    return scripts("load_client")


@pytest.fixture(scope="module")
def soak(scripts) -> ModuleType:
    return scripts("soak_serve")


@pytest.fixture(scope="module")
def bench(scripts) -> ModuleType:
    return scripts("bench_serve")


def run(root: Path, script: str, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, root / "scripts" / script, *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


# ---- models ----


def test_the_models_write_words_without_end_and_twins_have_the_same_weights(scripts, tmp_path: Path) -> None:
    from mlx_lm.utils import load_model

    from punie_mlx import weights
    from punie_mlx.chat.render import load_tokenizer

    models = scripts("bench_models")
    made = models.make(tmp_path, list(models.NAMES), hidden=64, layers=1, dtype="float32")
    logits, written = {}, {}
    for name, path in made.items():
        model, config = load_model(path)
        assert ("quantization" in config) == (name == "larger-4bit")
        weights.compute_in_float32(model)
        logits[name] = model(mx.array([[1, 300, 301, 302]]))
        (written[name],) = tokens(model, [1, 300, 301, 302], 40)
    for one, other in (("larger-4bit", "larger-float32"), ("tiny-float16", "tiny-float32")):
        assert mx.allclose(logits[one], logits[other], atol=1e-4).item()
    tokenizer = load_tokenizer(made["tiny-float32"])
    for ids in written.values():
        assert len(ids) == 40 and all(tokenizer.decode([i]).isalpha() for i in ids)


def tokens(model, prompt: list[int], count: int) -> list[list[int]]:
    from mlx_lm.generate import BatchGenerator

    generator = BatchGenerator(model, stop_tokens=[[2]])
    (uid,) = generator.insert([prompt], [count])
    found = {uid: []}
    while responses := generator.next_generated():
        for response in responses:
            found[response.uid].append(response.token)
    return list(found.values())


def test_an_unknown_model_is_refused(root: Path, tmp_path: Path) -> None:
    done = run(root, "bench_models.py", "--out", str(tmp_path), "--names", "huge")
    assert done.returncode == 2 and "no such model: huge" in done.stderr


# ---- measuring ----


def test_a_short_measurement(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "serve.json"
    done = run(
        root, "bench_serve.py", "--sizes", "larger", "--hidden", "64", "--layers", "1", "--concurrency", "1,2",
        "--tokens", "6", "--words", "8", "--rounds", "1", "--no-same-files", "--json", str(out),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    for name in ("tokens_per_s_over_stock", "ttft_over_stock", "over_engine", "constrained_over_free"):
        assert found[name].keys() == {"1", "2"} and all(value > 0 for value in found[name].values()), name
    assert found["free_beside_constrained"].keys() == {"2"}
    assert found["versions"]["mlx-lm"] and found["device"] in ("cpu", "gpu")
    rounds = found["models"]["larger"]["rounds"]["2"]
    assert rounds.keys() == {"ours", "stock", "engine", "free", "lazy", "constrained", "mixed"}
    for name, (taken,) in rounds.items():
        assert taken["tokens"] == [6] * (1 if name == "mixed" else 2), name  # no answer ended by itself
    assert "tokens_per_s_over_stock" in done.stdout


def test_ratios(bench) -> None:
    def raw(seconds: float, first: float) -> list[dict[str, object]]:
        return [{"seconds": seconds, "tokens": [11, 11], "first": [first] * 2, "rest": [seconds - first] * 2}]

    slow, fast = raw(4.0, 2.0), raw(2.0, 1.0)
    rounds = {"ours": fast, "stock": slow, "engine": fast, "free": fast, "lazy": fast, "constrained": slow}
    found = bench.ratios({"2": rounds | {"mixed": slow}})
    assert found["tokens_per_s"]["2"]["ours"] == 11.0
    assert found["tokens_per_s_over_stock"] == {"2": 2.0} and found["ttft_over_stock"] == {"2": 0.5}
    assert found["over_engine"] == {"2": 1.0} and found["constrained_over_free"] == {"2": 0.5}
    assert found["free_beside_constrained"] == {"2": 0.5}


def test_chunks_are_put_together_and_a_missing_end_is_seen(load) -> None:
    whole = b"5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n"
    assert load.dechunked(whole) == (b"hello world", True)
    assert load.dechunked(whole[:-5]) == (b"hello world", False)
    assert not load.VISIBLE.search(b'{"delta":{"role":"assistant","content":""}}')
    assert load.VISIBLE.search(b'{"delta": {"content": "a"}}') and load.VISIBLE.search(b'{"arguments":"{"}')


# ---- the long run ----


def test_a_short_run_finds_nothing_wrong(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "soak.json"
    done = run(root, "soak_serve.py", "--clients", "9", "--seconds", "5", "--json", str(out))
    found = json.loads(out.read_text())
    assert (found["wrong"], found["failed"]) == (0, 0), found["examples"]
    assert set(found["answers"]) == {"copy", "copy-free", "tool", "schema"}
    assert found["left"] > 0 and found["tokens"] > 0
    assert len(found["memory_quarters"]) == 4 and not any(found["at_rest"].values())
    # In so short a time memory still grows; nothing else may be held against it.
    assert done.returncode == (0 if found["passed"] else 1)
    assert all(line.startswith("memory grew") for line in found["broken"])


def test_what_the_verdict_holds_against_a_server(soak) -> None:
    good = soak.Tally(answers=Counter(dict.fromkeys(soak.KINDS, 1)))
    assert soak.verdict(good, [1.0, 100.0, 103.0, 104.9], {"punie_running": 0.0}) == []
    (grown,) = soak.verdict(good, [1.0, 100.0, 103.0, 105.1], {})
    assert grown.startswith("memory grew 1.051")
    (leaked,) = soak.verdict(good, [1.0] * 4, {"punie_running": 2.0})
    assert leaked == "punie_running is 2 at the end"
    bad = soak.Tally(answers=Counter(tool=1), wrong=["x"], failed=["y", "z"])
    assert len(soak.verdict(bad, [1.0] * 4, {})) == 2 + 3
    assert soak.quarters([(0, 9), (1, 1), (2.5, 2), (3.9, 3), (4.2, 5)], 4.0) == [9, 1, 2, 4]


def test_another_clients_answer_is_wrong(soak) -> None:
    r = Random(0)
    for maker in (lambda: soak.copied(r, "auto", "copy"), lambda: soak.called(r), lambda: soak.formatted(r)):
        one, other = maker(), maker()
        assert answer(other) != answer(one)
        assert one.complaint(answer(one)) == "" and one.complaint(answer(other)) != ""


def answer(asked) -> dict[str, object]:
    """The right answer to a question of the soak."""
    body = asked.body
    if "response_format" in body:
        properties = body["response_format"]["json_schema"]["schema"]["properties"]
        return {"content": json.dumps({key: schema["const"] for key, schema in properties.items()})}
    tool = body["tools"][0]["function"]
    if "tool_choice" in body:
        nonce = tool["parameters"]["properties"]["nonce"]["enum"][0]
        return {
            "content": None,
            "tool_calls": [{"function": {"name": "say", "arguments": json.dumps({"nonce": nonce})}}],
        }
    call = {"name": tool["name"], "arguments": {"path": body["messages"][0]["content"].split()[-1]}}
    return {"content": f"```json\n{json.dumps(call)}\n```"}


def test_a_stream_is_read_to_its_end_or_refused(soak, load) -> None:
    def reply(*events: object, done: bool = True) -> object:
        lines = [b"data: " + json.dumps(e).encode() + b"\n\n" for e in events]
        return load.Reply(200, b": wait\n\n" + b"".join(lines) + b"data: [DONE]\n\n" * done, 0.0, None, 1.0, True)

    def chunk(delta: dict[str, object], reason: str | None = None) -> dict[str, object]:
        return {"choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}

    start = chunk({"tool_calls": [{"index": 0, "id": "c", "function": {"name": "say", "arguments": ""}}]})
    rest = chunk({"tool_calls": [{"index": 0, "function": {"arguments": "{}"}}]})
    usage = {"choices": [], "usage": {"completion_tokens": 7}}
    found, reason, count = soak.message(reply(chunk({"content": "a"}), start, rest, chunk({}, "tool_calls"), usage))
    assert found == {"content": "a", "tool_calls": [{"function": {"name": "say", "arguments": "{}"}}]}
    assert (reason, count) == ("tool_calls", 7)
    with pytest.raises(ValueError, match="without"):
        soak.message(reply(start, done=False))
    with pytest.raises(ValueError, match="an error in the stream"):
        soak.message(reply({"error": {"message": "no"}}))


# ---- training ----


@pytest.fixture(scope="module")
def peers(scripts) -> ModuleType:
    return scripts("train_peers")


def test_contestants_train_the_same_tokens_from_the_same_start(peers, root: Path) -> None:
    given = {"data": str(root / "data" / "phase8_xml_format"), "samples": 8, "batch": 4}
    check = peers.do(peers.Job(task="check", **given))
    assert check["same_start"] and check["worst"] < 1e-4
    runs = {side: peers.do(peers.Job(side=side, **given)) for side in ("ours", "mended", "stock")}
    assert len({(run["samples"], run["tokens"], run["updates"]) for run in runs.values()}) == 1, runs
    for run in runs.values():
        assert run["tokens"] > run["samples"] and run["seconds"] > 0
        assert run["peak_memory"] > 8e6 and 0 < run["valid_loss"] < 5  # more than the base's weights; it has learned
    reached = peers.do(peers.Job(task="curve", goal=5.0, **given))
    assert reached["reached"] and reached["updates"] == 1 and reached["seconds"] > 0


def test_what_stock_trains_beyond_a_turn_is_added_to_ours(peers) -> None:
    from punie_mlx.train.plan import Planner
    from punie_mlx.train.samples import Sample

    def sample(tokens: list[int], start: int) -> Sample:
        return Sample(np.array(tokens, np.int32), ((start, len(tokens), 1.0),))

    nested = [sample([5, 6, 7, 2], 2), sample([5, 6, 7, 2, 9, 8, 2], 5), sample([5, 6, 7, 2], 2)]  # one of them twice
    plan = Planner(nested, batch_size=3, max_batch_tokens=99, share=True, seed=0, few_shapes=True)
    step = peers.with_padding(plan.step(0))
    (group,) = step.parts[0]
    assert step.weight == step.supervised == 3 * 3 and group.weights.sum() == 9
    added = [(c, w) for c, t, w in zip(group.cols, group.targets, group.weights, strict=True) if w and t == 0]
    assert sorted(added) == [(3, 2.0), (6, 1.0)]  # after the last token of each turn


def test_ratios_of_training(scripts) -> None:
    names = ("tokens_per_s", "tokens_per_cpu_s", "seconds", "peak_memory", "peak_rss", "valid_loss", "train_loss")

    def runs(*speeds: float) -> list[dict[str, float]]:
        return [dict.fromkeys(names, speed) for speed in speeds]

    found = scripts("bench_train").ratios({"ours": runs(6, 60, 0), "stock": runs(1, 2, 3), "mended": runs(3, 3, 3)})
    assert (found["speed_over_stock"], found["speed_over_mended"]) == (3, 2)
    assert found["peak_memory_over_stock"] == 3 and found["medians"]["ours"]["seconds"] == 6


def test_a_killed_training_gives_the_same_bytes(root: Path, tmp_path: Path) -> None:
    data, out = few_rows(root, tmp_path, 12), tmp_path / "resume.json"
    done = run(root, "prove_resume.py", "--kills", "1", "--iters", "8", "--data", str(data), "--json", str(out))
    found = json.loads(out.read_text())
    assert found["equal_adapter"] and found["equal_figures"], done.stderr
    # On a slow machine the training may be done before the kill comes; nothing else may be held against it.
    assert all(line.startswith("the run was done") for line in found["broken"])
    assert done.returncode == (1 if found["broken"] else 0)


def few_rows(root: Path, tmp_path: Path, count: int) -> Path:
    data = tmp_path / "rows"
    data.mkdir()
    for name in ("train.jsonl", "valid.jsonl"):
        lines = (root / "data" / "phase8_xml_format" / name).read_text().splitlines(keepends=True)
        (data / name).write_text("".join(lines[:count]))
    return data


def test_runs_that_differ_are_told_apart(scripts, tmp_path: Path) -> None:
    resume = scripts("prove_resume")
    runs = []
    for name, weights, loss in (("whole", b"a", 1.0), ("killed", b"b", 1.5)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapters.safetensors").write_bytes(weights)
        line = {"kind": "train", "step": 1, "loss": loss, "grad_norm": 1, "learning_rate": 1, "supervised_tokens": 1}
        (tmp_path / name / "metrics.jsonl").write_text(json.dumps(line) + "\n")
        runs.append(resume.Run(tmp_path / name, ()))
    proof = resume.Proof(kills=[resume.Kill("step", 9, 6, False, 1.0), resume.Kill("step", 10, 6, False, 1.0)])
    resume.judge(proof, *runs, 3)
    assert proof.broken == ["the adapters differ", "losses, norms or rates of some steps differ", "kill 2 lost 4 steps"]
    same = resume.Proof()
    resume.judge(same, runs[0], runs[0], 3)
    assert same.broken == [] and same.equal_adapter


def test_a_short_training_is_watched(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "soak.json"
    done = run(root, "soak_train.py", "--rows", "12", "--iters", "4", "--batch", "2", "--json", str(out))
    found = json.loads(out.read_text())
    assert (found["exit_code"], found["steps"], found["dropped"]) == (0, 4, {}), done.stderr
    assert found["samples"] > 12 and found["supervised_tokens"] > 0 and found["valid_losses"]
    assert all(line.startswith(("memory grew", "there was too little time")) for line in found["broken"])


def test_what_the_verdict_holds_against_a_training(scripts) -> None:
    soak = scripts("soak_train")
    good = {"exit_code": 0, "stopped": False, "epoch": 1.0, "dropped": {}, "growth": 1.05}
    assert soak.verdict(good, whole=True) == []
    assert soak.verdict(good | {"exit_code": 143, "stopped": True, "epoch": 0.4}, whole=False) == []
    bad = {"exit_code": 1, "stopped": False, "epoch": 0.9, "dropped": {"too long": 1}, "growth": 1.051}
    assert len(soak.verdict(bad, whole=True)) == 4
    assert soak.verdict(good | {"growth": None}, whole=True) == ["there was too little time to measure memory"]
    assert soak.growth(soak.quarters([(0, 9), (1, 2), (2.5, 2), (3.9, 3), (4, 3)])) == 1.5
    assert soak.growth(soak.quarters([(0, 9), (4, 3)])) is None
