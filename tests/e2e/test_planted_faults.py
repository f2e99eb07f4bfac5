"""Faults that would make a figure worthless, planted on purpose: each must be found before it becomes one.

Another model behind the port, from the start or from the middle of a run on; a template that drops the tools; a scorer
that passes everything; a suite that stands in the corpus. Real server processes, real weights.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import urllib.request
from urllib.parse import urlsplit

import pytest

from punie_mlx import identity
from punie_mlx.errors import FingerprintError, ModelError
from punie_mlx.evals.runner import EvalConfig, evaluate

from .conftest import build_replaying_model

ENV = {**os.environ, "HF_HUB_OFFLINE": "1", "PUNIE_MLX_NO_BLAS_WARNING": "1"}
CALL = "<tool_call>\n<function=read_file>\n<parameter=path>\na.txt\n</parameter>\n</function>\n</tool_call>"
TOOLS_OF_TEMPLATE = "{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Three models of one name and the same words: `good`; `other`, of another fingerprint; `blind`, whose template
    leaves the tools out."""
    root = tmp_path_factory.mktemp("planted")
    good = root / "good" / "model"
    good.mkdir(parents=True)
    build_replaying_model(good, {"#why": "Because it is so.", "#read": CALL})
    found = {"good": good}
    for name in ("other", "blind"):
        found[name] = root / name / "model"
        shutil.copytree(good, found[name])
    config = json.loads((good / "config.json").read_text())
    (found["other"] / "config.json").write_text(json.dumps({**config, "note": "another training run"}))
    template = (good / "chat_template.jinja").read_text()
    assert TOOLS_OF_TEMPLATE in template
    (found["blind"] / "chat_template.jinja").write_text(template.replace(TOOLS_OF_TEMPLATE, ""))
    prints = [identity.fingerprint(path) for path in found.values()]
    assert len(set(prints)) == 3
    return found


def case(id, query, calls=()):
    tool = {"type": "function", "function": {
        "name": "read_file", "description": "Read a file",
        "parameters": {"type": "object", "properties": {"path": {"type": "string"}}, "required": ["path"]},
    }}  # fmt: skip
    expect = {"calls": [{"name": n, "arguments": {"path": "a.txt"}} for n in calls], "turns": "first"}
    return {"id": id, "category": "c", "query": query, "tools": [tool], "files": {"a.txt": "amber"}, "expect": expect}


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    path = tmp_path_factory.mktemp("suites") / "planted.jsonl"
    cases = [case("read", "#read", ["read_file"]), *(case(f"why-{i}", "#why") for i in range(5))]
    path.write_text("".join(json.dumps(c) + "\n" for c in cases))
    return path


@pytest.fixture(scope="module")
def stale(serving, models):
    """A server of the other model, left over from yesterday."""
    with serving(models["other"]) as server:
        yield server


def cli(*args):
    command = [sys.executable, "-m", "punie_mlx", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, env=ENV, timeout=120)


def answered(server):
    """How many chat requests a server has answered."""
    with urllib.request.urlopen(urlsplit(server.url)._replace(path="/metrics").geturl(), timeout=10) as response:
        lines = response.read().decode().splitlines()
    counts = [line for line in lines if line.startswith("punie_requests_total{") and "/v1/chat/completions" in line]
    return sum(float(line.split()[-1]) for line in counts)


def ask(server):
    """One chat request."""
    body = json.dumps({"messages": [{"role": "user", "content": "hello"}], "max_tokens": 2}).encode()
    headers = {"Content-Type": "application/json"}
    with urllib.request.urlopen(
        urllib.request.Request(server.url + "/chat/completions", body, headers), timeout=30
    ) as response:
        assert response.status == 200


# ---- another model ----


def test_another_model_of_the_same_name_is_not_scored(tmp_path, models, stale, suite):
    """Its name and its words are those of the model asked for; its fingerprint is not."""
    out = tmp_path / "out.json"
    wanted = identity.fingerprint(models["good"])
    done = cli("eval", "--url", stale.url, "--fingerprint", wanted, "--suite", suite, "--json", out)
    assert done.returncode == 3, done.stderr
    assert wanted in done.stderr and identity.fingerprint(models["other"]) in done.stderr
    assert not out.exists()


def test_a_server_that_is_swapped_in_the_middle(tmp_path, serving, models, suite):
    """After the second case another model answers at the same address, under the same name."""
    out, planted = tmp_path / "out.json", []
    with contextlib.ExitStack() as running, contextlib.ExitStack() as first:
        server = first.enter_context(serving(models["good"]))

        def swap(done, total, passed):
            assert passed == done
            if done == 2:
                first.close()
                port = str(urlsplit(server.url).port)
                planted.append(running.enter_context(serving(models["other"], "--port", port)))

        config = EvalConfig(
            suites=(suite,), url=server.url, fingerprint=server.ready["fingerprint"], out=out, concurrency=1
        )
        with pytest.raises(FingerprintError, match="was answered by another model"):
            evaluate(config, swap)
        assert planted and planted[0].url == server.url and planted[0].ready["model"] == server.ready["model"]
    assert not out.exists()


def test_a_stale_server_is_nobody_s_model(tmp_path, models, stale, suite):
    """An evaluation that starts its own server asks that one, whoever else listens."""
    before = answered(stale)
    ask(stale)
    assert answered(stale) == before + 1  # the count can tell
    result = evaluate(EvalConfig(model=models["good"], suites=(suite,), out=tmp_path / "out.json"))
    assert result["model"]["fingerprint"] == identity.fingerprint(models["good"])
    assert result["summary"]["passed"] == 6 and answered(stale) == before + 1
    said = {e["response"]["system_fingerprint"] for c in result["cases"] for e in c["trajectory"]}
    assert said == {identity.fingerprint(models["good"])}


# ---- a template that drops the tools ----


def test_a_template_that_drops_the_tools(tmp_path, serving, models, suite):
    """The server's trace tells it after one case; nothing is written. Whoever wants the figure has to say so."""
    out = tmp_path / "out.json"
    with serving(models["blind"]) as server:
        told = {"url": server.url, "fingerprint": server.ready["fingerprint"]}
        with pytest.raises(
            ModelError, match=r"of 1 offered tools the model's prompt holds none \(it lacks read_file\)"
        ):
            evaluate(EvalConfig(suites=(suite,), out=out, **told))
        assert not out.exists()
        evaluate(EvalConfig(suites=(suite,), out=out, allow_missing_tools=True, **told))
    [warning] = json.loads(out.read_text())["warnings"]
    assert "holds none" in warning


def test_the_same_without_a_server(models, suite):
    with pytest.raises(ModelError, match="of 1 offered tools the model's prompt holds none"):
        evaluate(EvalConfig(model=models["blind"], suites=(suite,), through="model"))


# ---- a scorer that passes everything ----

BROKEN = """
import sys
from punie_mlx.evals import score, selfcheck, record
always = lambda case, run, *, lenient=False: score.Verdict({}, (), False)
selfcheck.score = record.score = score.score = always
from punie_mlx.cli import main
main()
"""


def test_a_scorer_that_always_passes(tmp_path, suite):
    """Found before any server is asked: there is none."""
    out = tmp_path / "out.json"
    args = ["eval", "--url", "http://127.0.0.1:1/v1", "--fingerprint", "0" * 64, "--suite", suite, "--json", out]
    command = [sys.executable, "-c", BROKEN, *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, env=ENV, timeout=60)
    assert done.returncode == 2, done.stderr
    assert "case 'read' is passed by a model that says and does nothing" in done.stderr and not out.exists()


# ---- a suite that stands in the corpus ----

ASKED = "Please count the lines of src/maple/errors.json and tell me how many there are"
REWORDED = "Could you tell me how many there are? I'd like you to count the lines of src/maple/errors.json, and thanks"
OTHER = "Which colours does the harbour have when it snows in April?"


@pytest.mark.parametrize(("query", "kind"), [(ASKED, "exact"), (REWORDED, "near"), (OTHER, None)])
def test_a_suite_that_leaks_into_the_corpus(tmp_path, query, kind):
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    said = ["Format src/a.py with lines of 80 characters", ASKED, "Why do tests want to be short?"]
    rows = [{"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": "So."}]} for q in said]
    (corpus / "train.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    suite = tmp_path / "leaky.jsonl"
    suite.write_text(json.dumps(case("planted", query)) + "\n")
    done = cli("suite", "check", suite, "--corpus", corpus, "--json")
    assert done.returncode == (1 if kind else 0), done.stderr
    [checked] = json.loads(done.stdout)["suites"]
    leaks = [(leak["kind"], leak["case"], leak["row"].rpartition("/")[2]) for leak in checked["distances"][0]["leaks"]]
    assert leaks == ([(kind, "planted", "train.jsonl:2")] if kind else [])
