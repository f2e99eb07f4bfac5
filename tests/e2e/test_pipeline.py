"""The whole road as a process: killed in every stage, taken up again, and what it refuses."""

from __future__ import annotations

import fcntl
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from punie_mlx import identity
from punie_mlx.errors import ConfigError, ModelError, OutputError
from punie_mlx.files import locked
from punie_mlx.pipeline import LOCK, TRAINING, PipelineConfig, run_pipeline, table
from punie_mlx.stages import Runner, Stage, finished, hash_tree
from punie_mlx.train import checkpoint
from punie_mlx.train.config import TrainConfig
from punie_mlx.train.run import train
from punie_mlx.train.work import CHECKPOINTS

ITERS = 6
STAGES = ("data", "adapter", "fused", "quantized", "scores/base", "scores/adapter", "scores/fused", "scores/quantized")


def fenced(i: int) -> dict:
    """A row as the origin story had them: the call in a fence, the result as a user turn."""
    call = json.dumps({"name": "read_file", "arguments": {"path": f"src/module{i}.py"}}, indent=2)
    messages = [
        {"role": "system", "content": "You are a coding agent."},
        {"role": "user", "content": f"Show me src/module{i}.py"},
        {"role": "assistant", "content": f"I'll use the read_file tool.\n\n```json\n{call}\n```"},
        {"role": "user", "content": f"Tool result: limit = {i}"},
        {"role": "assistant", "content": f"It sets the limit to {i}."},
    ]
    return {"messages": messages}


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory, scripted_model: Path, tiny_base: Path, root: Path) -> Path:
    """A directory with a model of its own (so that its servers can be told from others), rows and a suite."""
    path = tmp_path_factory.mktemp("pipeline")
    shutil.copytree(scripted_model, path / "base")  # writes its end of turn at once, so cases are quick
    shutil.copyfile(tiny_base / "chat_template.jinja", path / "base" / "chat_template.jinja")
    (path / "rows").mkdir()
    for name, numbers in (("train", range(4)), ("valid", range(20, 21))):
        (path / "rows" / f"{name}.jsonl").write_text("".join(json.dumps(fenced(i)) + "\n" for i in numbers))
    suite = (root / "data" / "suites" / "discrimination.jsonl").read_text().splitlines()[:1]
    (path / "suite.jsonl").write_text("\n".join(suite) + "\n")
    (path / "recipe.yaml").write_text("save_every: 1\n")
    return path


def start(ground: Path, out: Path, *more: str) -> subprocess.Popen[str]:
    verb = ["pipeline", "--model", ground / "base", "--data", ground / "rows", "--suite", ground / "suite.jsonl"]
    options = ["--out", out, "--recipe", ground / "recipe.yaml", "--iters", str(ITERS), "--json", *more]
    return subprocess.Popen(
        [sys.executable, "-m", "punie_mlx", *map(str, [*verb, *options])],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def partials(path: Path) -> list[Path]:
    return list(path.parent.glob(f".{path.name}.*.partial"))


def kill_in(process: subprocess.Popen[str], stage: Path, ground: Path) -> None:
    """Send SIGKILL while `stage` is half-written; in one that scores, when its server is running; in training, when a
    checkpoint is there."""
    deadline = time.monotonic() + 300
    under_way = {
        "scores": lambda: servers(ground, process.pid),
        "adapter": lambda: checkpoint.found(stage.parent / TRAINING / CHECKPOINTS),
    }.get(stage.parent.name if stage.parent.name == "scores" else stage.name, lambda: True)
    while not (partials(stage) and under_way()):
        assert process.poll() is None, process.stderr and process.stderr.read()
        assert time.monotonic() < deadline, f"{stage} was never begun"
        time.sleep(0.001)
    process.kill()
    process.wait()
    for pipe in (process.stdout, process.stderr):
        assert pipe
        pipe.close()


def servers(ground: Path, *others: int) -> list[int]:
    """Processes, other than this one and `others`, that were told of something under `ground`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) not in (os.getpid(), *others):
            try:
                if f"{ground}/".encode() in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks for left servers in /proc")
def test_killed_in_every_stage_it_goes_on_where_it_was(ground, tmp_path):
    out = ground / "out"  # under `ground`, so that the servers of fused models are told from others too
    for number, name in enumerate(STAGES):
        kill_in(start(ground, out), out / name, ground)
        assert not (out / name).exists(), f"{name} was taken for done"
        for done in STAGES[:number]:
            assert identity.read_manifest(out / done)["stage"]["files"] == hash_tree(out / done)
        deadline = time.monotonic() + 10
        while servers(ground) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert servers(ground) == [], "a server outlived its pipeline"
    stdout, stderr = start(ground, out).communicate(timeout=300)
    report = json.loads(stdout)
    assert report["skipped"] == ["convert", "train", "fuse", "quantize", "score base", "score adapter", "score fused"]
    assert "left half-written" in stderr
    assert not [p for p in out.rglob("*") if p.name.endswith((".partial", ".old"))]
    assert report["models"].keys() == {"base", "adapter", "fused", "quantized"}
    assert not (out / TRAINING).exists()
    trained = [json.loads(line) for line in (out / "adapter" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] >= 1 for line in trained if line["kind"] == "resume"] == [True]
    undisturbed = TrainConfig(
        model=str(ground / "base"), data=str(out / "data"), out=str(tmp_path / "undisturbed"), iters=ITERS
    )
    train(undisturbed, quiet=True)
    assert identity.hash_file(out / "adapter" / "adapters.safetensors") == identity.hash_file(
        tmp_path / "undisturbed" / "adapters.safetensors"
    )
    changed_bits_and_damage(ground, out)


def changed_bits_and_damage(ground: Path, out: Path) -> None:
    """Only what depends on a changed option or a damaged file is done again."""
    weights = out / "fused" / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    stdout, stderr = start(ground, out, "--bits", "8").communicate(timeout=300)
    report = json.loads(stdout) if stdout else pytest.fail(stderr)
    assert report["skipped"] == ["convert", "train", "score base", "score adapter", "score fused"]
    assert weights.read_bytes() == whole
    assert report["bits"] == 8
    config = json.loads((out / "quantized" / "config.json").read_text())
    assert config["quantization"]["bits"] == 8


# ---- stages, without a model ----


def stage(path: Path, text: str = "a", **inputs: str) -> Stage:
    return Stage("write", path, inputs, {}, lambda tmp: (tmp / "file").write_text(text), hash_tree)


def test_a_stage_is_done_once(tmp_path):
    said: list[str] = []
    runner = Runner(False, said.append)
    first = runner.run(stage(tmp_path / "s", data="1"))
    assert runner.run(stage(tmp_path / "s", "never written", data="1")) == first
    assert runner.skipped == ["write"] and said[-1].startswith("write: done already")


def test_a_stage_is_done_again_when_its_inputs_change(tmp_path):
    runner = Runner(False, lambda line: None)
    runner.run(stage(tmp_path / "s", data="1"))
    runner.run(stage(tmp_path / "s", "b", data="2"))
    assert (tmp_path / "s" / "file").read_text() == "b" and runner.skipped == []


@pytest.mark.parametrize("damage", ["changed", "missing", "more", "manifest", "no manifest"])
def test_a_damaged_result_is_not_taken_for_good(damage, tmp_path):
    wanted = stage(tmp_path / "s", data="1")
    Runner(False, lambda line: None).run(wanted)
    assert finished(wanted)
    match damage:
        case "changed":
            (tmp_path / "s" / "file").write_text("b")
        case "missing":
            (tmp_path / "s" / "file").unlink()
        case "more":
            (tmp_path / "s" / "other").write_text("")
        case "manifest":
            (tmp_path / "s" / "manifest.json").write_text('{"stage"')
        case "no manifest":
            (tmp_path / "s" / "manifest.json").unlink()
    assert finished(wanted) is None


def test_restart_does_all_again(tmp_path):
    Runner(False, lambda line: None).run(stage(tmp_path / "s"))
    runner = Runner(True, lambda line: None)
    runner.run(stage(tmp_path / "s", "b"))
    assert runner.skipped == [] and (tmp_path / "s" / "file").read_text() == "b"


def test_a_failing_stage_leaves_nothing(tmp_path):
    def fail(tmp: Path) -> None:
        (tmp / "half").write_text("")
        raise ConfigError("no")

    with pytest.raises(ConfigError):
        Runner(False, lambda line: None).run(Stage("fail", tmp_path / "s", {}, {}, fail, hash_tree))
    assert list(tmp_path.iterdir()) == []


def test_a_second_pipeline_is_refused_until_the_first_is_dead(tmp_path):
    file = tmp_path / LOCK
    hold = "import time\nfrom punie_mlx.files import locked\nfrom pathlib import Path\n"
    hold += f"with locked(Path({str(file)!r}), 'pipeline'):\n    print('held', flush=True)\n    time.sleep(60)\n"
    first = subprocess.Popen([sys.executable, "-c", hold], stdout=subprocess.PIPE, text=True)
    assert first.stdout and first.stdout.readline() == "held\n"
    with pytest.raises(OutputError, match=f"another pipeline \\(process {first.pid}\\)"), locked(file, "pipeline"):
        pass
    first.send_signal(signal.SIGKILL)
    first.wait()
    first.stdout.close()
    with locked(file, "pipeline"):
        assert file.read_text() == str(os.getpid())
        with file.open() as other, pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


# ---- what is refused ----


def config(ground: Path, out: Path, **changes) -> PipelineConfig:
    settings = {"model": ground / "base", "data": ground / "rows", "out": out, "suites": (ground / "suite.jsonl",)}
    return PipelineConfig(**{**settings, **changes})


def test_bad_settings_are_found_before_any_work(ground, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(ConfigError, match="--bits 7"):
        run_pipeline(config(ground, out, bits=7))
    with pytest.raises(ModelError, match="does not exist"):
        run_pipeline(config(ground, out, model=tmp_path / "none"))
    with pytest.raises(Exception, match="none"):
        run_pipeline(config(ground, out, data=tmp_path / "none"))
    with pytest.raises(Exception, match=r"none\.jsonl"):
        run_pipeline(config(ground, out, suites=(tmp_path / "none.jsonl",)))
    with pytest.raises(ConfigError, match="no suite"):
        config(ground, out, suites=())
    assert list(tmp_path.iterdir()) == []


def test_a_directory_of_something_else_is_left_alone(ground, tmp_path):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "mine").write_text("keep")
    with pytest.raises(OutputError, match="holds something else"):
        run_pipeline(config(ground, tmp_path))
    with pytest.raises(OutputError, match="its own input"):
        run_pipeline(config(ground, ground / "rows"))
    assert [p.name for p in tmp_path.rglob("*")] == ["adapter", "mine"]


def test_the_table_shows_what_was_measured():
    from rich.console import Console

    five = {"accuracy": 1.0, "interval": [0.566, 1.0], "n": 5, "passed": 5}
    many = {"accuracy": 0.95, "interval": [0.888, 0.978], "n": 100, "passed": 95}
    row = {"suites": {"five": five, "many": many}, "bytes": 4_400_000, "seconds_per_query": 0.153}
    report = {"bits": 5, "models": dict.fromkeys(("base", "adapter", "fused", "quantized"), row)}
    console = Console(width=120, file=io.StringIO())
    console.print(table(report))
    shown = console.file.getvalue()
    assert "5/5 [0.57, 1.00]" in shown and "95.0% [88.8, 97.8]" in shown
    assert "5-bit" in shown and "8.8 MB" in shown and "0.15" in shown
