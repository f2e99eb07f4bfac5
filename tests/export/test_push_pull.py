"""Publishing and fetching, by the hub's real client against a stand-in of the hub."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from punie_mlx import identity
from punie_mlx.errors import ConfigError, DataError, DiskError, HubError, ModelError, OutputError
from punie_mlx.export import card, hub, published, store
from punie_mlx.export.fuse import fuse
from punie_mlx.export.pull import pull
from punie_mlx.export.push import PushConfig, push
from punie_mlx.export.quantize import quantize

NAME = "org/tiny-5bit"


def load_stand_in() -> Any:
    spec = importlib.util.spec_from_file_location("hub_stand_in", Path(__file__).with_name("hub_stand_in.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["hub_stand_in"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


stand_in = load_stand_in()
TOKEN, READER = stand_in.TOKEN, stand_in.READER


@pytest.fixture(scope="module")
def made(models: Path, base: Path, adapter: Path) -> Path:
    """A 5-bit model, with things beside it that nobody is to see."""
    signed = models / "signed"
    shutil.copytree(adapter, signed)
    settings = {"iters": 7, "select": "/home/somebody/suites/agent.jsonl", "targets": ["mlp.*"]}
    told = {"notes": ["read /home/somebody/rows/train.jsonl whole"], "stage": {"key": "x"}, "last_val_loss": 0.25}
    identity.write_manifest(signed, identity.manifest("adapter", inputs={"data": "d" * 64}, settings=settings, **told))
    fuse(base, signed, models / "pp-fused", retention=[8, 5])
    quantize(models / "pp-fused", models / "pp-5bit")
    (models / "pp-5bit" / "notes.md").write_text("what I think of it")
    (models / "pp-5bit" / "checkpoints").mkdir()
    return models / "pp-5bit"


@pytest.fixture(scope="module")
def server() -> Iterator[Any]:
    with stand_in.running() as found:
        yield found


@pytest.fixture
def there(server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """An empty hub, which the client in this process speaks to as the owner of org/."""
    from huggingface_hub import constants

    url, fresh = server.url, stand_in.Hub()
    server.__dict__.update(fresh.__dict__ | {"url": url})
    for key, value in {
        "ENDPOINT": url, "HUGGINGFACE_CO_URL_TEMPLATE": url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_DISABLE_XET": True, "HF_HUB_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": False,
        "HF_TOKEN_PATH": str(tmp_path / "no-token"), "DOWNLOAD_CHUNK_SIZE": 4096,
    }.items():  # fmt: skip
        monkeypatch.setattr(constants, key, value)  # what HF_ENDPOINT and others set when the client is imported
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    return server


def files_of(there: Any, name: str = NAME, revision: str = "main") -> dict[str, bytes]:
    found = there.repos[name].files(revision)
    assert found is not None
    return found[1]


def large_of(model: Path) -> set[str]:
    return {p.name for p in model.iterdir() if p.is_file() and p.stat().st_size >= stand_in.LARGE}


# ---- there and back ----


def test_there_and_back_by_the_commands(there, made, tmp_path):
    """In processes of their own, by HF_ENDPOINT alone."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("HF_")} | {
        "HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": there.url, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1",
    }  # fmt: skip

    def punie(*words: str) -> str:
        command = [sys.executable, "-m", "punie_mlx", *words]
        done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout

    sent = punie("push", str(made), "--repo", NAME, "--json")
    commit = json.loads(sent)["commit"]
    got = punie("pull", f"{NAME}@{commit[:40]}", "--out", str(tmp_path / "got"))
    fingerprint = identity.fingerprint(made)
    assert f"{NAME}@{commit}" in got and f"fingerprint {fingerprint} (as its manifest says)" in got
    assert identity.fingerprint(tmp_path / "got") == fingerprint
    assert identity.read_manifest(tmp_path / "got")["hub"] == {"repo": NAME, "revision": commit, "commit": commit}
    assert {p.name for p in tmp_path.iterdir()} <= {"got", "home"}
    assert there.asked("HEAD", "/resolve/")[0]["authorization"] == f"Bearer {TOKEN}"
    assert not any("authorization" in headers for headers in there.asked("GET", "/lfs/"))  # another host


def test_nothing_but_named_files_arrives(there, made):
    report = push(PushConfig(made, NAME))
    assert {n for n in files_of(there) if n != ".gitattributes"} == set(report.files)
    assert {published.kind_of(n) for n in report.files} == set(published.NAMED)
    assert report.left_out == {
        "checkpoints/": "a directory", "notes.md": "not one of the files that make a model",
    }  # fmt: skip
    for name, content in files_of(there).items():
        assert b"/home/" not in content and b"somebody" not in content, name
    assert report.commit == there.repos[NAME].branches["main"]
    manifest = json.loads(files_of(there)["manifest.json"])
    trained = manifest["sources"]["model"]["manifest"]["sources"]["adapter"]["manifest"]
    assert trained["settings"] == {"iters": 7, "select": "agent.jsonl", "targets": ["mlp.*"]}
    assert trained["notes"] == ["read train.jsonl whole"] and "stage" not in trained


def test_a_dry_run_asks_nothing(there, made):
    report = push(PushConfig(made, NAME, dry_run=True))
    assert there.seen == [] and report.commit is None
    assert "model.safetensors" in report.files and "notes.md" in report.left_out


def test_pushing_again_changes_nothing(there, made):
    first = push(PushConfig(made, NAME))
    assert push(PushConfig(made, NAME)).commit == first.commit
    assert len(there.asked("PUT", "/lfs/")) == len(large_of(made))


def test_no_shard_of_an_earlier_push_stays(there, made, base, adapter, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(store, "SHARD_GB", 0)  # a file for each tensor
        fuse(base, adapter, tmp_path / "shards", retention=None)
    first = push(PushConfig(tmp_path / "shards", NAME))
    assert len([n for n in first.files if n.startswith("model-")]) > 10
    second = push(PushConfig(made, NAME))
    assert second.deleted == sorted(n for n in first.files if n.startswith("model"))
    assert pull(NAME, tmp_path / "got").fingerprint == identity.fingerprint(made)
    old = pull(NAME, tmp_path / "old", revision=first.commit)
    assert old.fingerprint == identity.fingerprint(tmp_path / "shards")


def test_branches_and_pinned_revisions(there, made, tmp_path):
    there.add(NAME, {"README.md": b"# soon"})
    report = push(PushConfig(made, NAME, revision="v1"))
    assert there.repos[NAME].branches["main"] != there.repos[NAME].branches["v1"] == report.commit
    assert identity.fingerprint(hub.resolve(f"{NAME}@v1")) == report.fingerprint
    found = hub.resolve(f"{NAME}@{report.commit}")
    assert found.name == report.commit
    with pytest.raises(HubError, match="no such revision"):
        hub.resolve(f"{NAME}@v2")
    with pytest.raises(HubError, match="holds no model"):
        pull(NAME, tmp_path / "got")


def test_a_pulled_model_is_named_by_its_commit(there, base, tmp_path, make_adapter):
    commit = there.add("org/base", {p.name: p.read_bytes() for p in base.iterdir()})
    report = pull("org/base", tmp_path / "base")
    assert not report.said  # it has no manifest to compare with
    fuse(tmp_path / "base", make_adapter(tmp_path / "adapter", base), tmp_path / "fused", retention=None)
    sources = identity.read_manifest(tmp_path / "fused")["sources"]
    assert sources["model"]["name"] == f"org/base@{commit}"
    text = push(PushConfig(tmp_path / "fused", "org/tuned")).card
    front = yaml.safe_load(text.split("---\n")[1])
    assert front["base_model"] == "org/base" and front["base_model_relation"] == "finetune"
    assert f"punie-mlx fuse --model org/base@{commit} " in text


# ---- interrupted ----


def test_a_broken_download_goes_on_in_the_middle(there, made, tmp_path):
    push(PushConfig(made, NAME))
    there.seen.clear()
    there.cut_downloads = 1
    assert pull(NAME, tmp_path / "got").fingerprint == identity.fingerprint(made)
    ranges = [h["range"] for h in there.asked("GET", "/lfs/") if "range" in h]
    assert len(ranges) == 1 and int(ranges[0].removeprefix("bytes=").rstrip("-")) > 0


def test_a_stopped_pull_fetches_only_what_is_missing(there, made, tmp_path):
    push(PushConfig(made, NAME))
    there.refuse_downloads = 1
    with pytest.raises(HubError, match="run it again to go on"):
        pull(NAME, tmp_path / "got")
    assert not (tmp_path / "got").exists()
    there_already = {p.name for p in (tmp_path / ".got.pull").iterdir() if p.is_file()}
    there.seen.clear()
    assert pull(NAME, tmp_path / "got").fingerprint == identity.fingerprint(made)
    assert len(there.asked("GET", "/lfs/")) == len(large_of(made) - there_already) > 0
    assert not (tmp_path / ".got.pull").exists()


def test_a_stopped_push_sends_only_what_is_missing(there, made):
    there.refuse_uploads = 1
    with pytest.raises(HubError, match=r"could not be published .*run it again to go on"):
        push(PushConfig(made, NAME))
    kept = len(there.stored)
    assert files_of(there).keys() == {".gitattributes"}  # no half of a model is ever seen
    there.seen.clear()
    push(PushConfig(made, NAME))
    assert len(there.asked("PUT", "/lfs/")) == len(large_of(made)) - kept


def test_a_file_that_arrives_damaged_is_found_and_fetched_again(there, made, tmp_path):
    push(PushConfig(made, NAME))
    there.corrupt_downloads = 1
    with pytest.raises(HubError, match=r"arrived damaged: run it again"):
        pull(NAME, tmp_path / "got")
    there.seen.clear()
    assert pull(NAME, tmp_path / "got").fingerprint == identity.fingerprint(made)
    assert len(there.asked("GET", "/lfs/")) == 1


def test_a_model_that_is_not_what_its_manifest_says_is_refused(there, made, tmp_path):
    push(PushConfig(made, NAME))
    there.add(NAME, files_of(there) | {"config.json": b'{"model_type": "qwen3"}'})
    with pytest.raises(HubError, match="is not the model that its manifest names"):
        pull(NAME, tmp_path / "got")
    assert not (tmp_path / "got").exists()


# ---- what is refused, and in which words ----


def test_gated_private_and_unknown_models(there, made, tmp_path, monkeypatch):
    push(PushConfig(made, NAME))
    there.repos[NAME].gated = True
    monkeypatch.setenv("HF_TOKEN", READER)
    with pytest.raises(HubError, match=r"is gated on the hub: accept its terms there and log in"):
        pull(NAME, tmp_path / "got")
    with pytest.raises(HubError, match="is gated"):
        hub.resolve(NAME)
    there.repos[NAME].private = True
    with pytest.raises(HubError, match="or log in with `hf auth login` if it is private"):
        pull(NAME, tmp_path / "got")
    with pytest.raises(HubError, match=r"no such revision"):
        there.repos[NAME].private = False
        pull(f"{NAME}@nowhere", tmp_path / "got")


def test_tokens(there, made, tmp_path, monkeypatch):
    push(PushConfig(made, NAME))
    before = dict(there.repos[NAME].branches)
    monkeypatch.setenv("HF_TOKEN", "hf_expired")
    for doing in (lambda: push(PushConfig(made, NAME)), lambda: pull(NAME, tmp_path / "a"), lambda: hub.resolve(NAME)):
        with pytest.raises(HubError, match="does not know the token: log in again"):
            doing()
    monkeypatch.setenv("HF_TOKEN", READER)
    with pytest.raises(HubError, match=r"may not do this with org/other.*a member of org"):
        push(PushConfig(made, "org/other"))
    with pytest.raises(HubError, match="may not do this"):
        push(PushConfig(made, NAME))
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(HubError, match="without a token: log in with"):
        push(PushConfig(made, NAME))
    assert there.repos[NAME].branches == before


def test_names_that_are_taken(there, made):
    there.add("org/theirs", {"config.json": b"{}", "pytorch_model.bin": b"x"})
    with pytest.raises(HubError, match=r"is taken by something that punie-mlx did not publish \(config.json, pytorch"):
        push(PushConfig(made, "org/theirs"))
    push(PushConfig(made, NAME))
    with pytest.raises(HubError, match=r"is there already, and public"):
        push(PushConfig(made, NAME, private=True))
    push(PushConfig(made, "org/secret", private=True))
    assert there.repos["org/secret"].private


def test_offline_and_out_of_reach(there, made, tmp_path, monkeypatch):
    from huggingface_hub import constants

    push(PushConfig(made, NAME))
    cached = hub.resolve(f"{NAME}@main")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(HubError, match="HF_HUB_OFFLINE is set"):
        push(PushConfig(made, NAME))
    with pytest.raises(HubError, match="cannot be reached"):
        pull(NAME, tmp_path / "got")
    assert hub.resolve(f"{NAME}@{cached.name}") == cached
    with pytest.raises(HubError, match="at v9 is not in the local cache"):
        hub.resolve(f"{NAME}@v9")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    for doing in (lambda: push(PushConfig(made, NAME)), lambda: pull(NAME, tmp_path / "got")):
        with pytest.raises(HubError, match="the model hub cannot be reached"):
            doing()


def test_the_disk_is_asked_first(there, made, full_disk):
    push(PushConfig(made, NAME))
    with pytest.raises(DiskError, match=r"needs .* are free"):
        pull(NAME, full_disk / "got")
    assert there.asked("GET", "/lfs/") == []


def test_outputs_and_names_of_a_pull(there, tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(OutputError, match="--overwrite"):
        pull(NAME, tmp_path / "out")
    with pytest.raises(ConfigError, match="and --revision v2 another"):
        pull(f"{NAME}@v1", tmp_path / "got", revision="v2")
    with pytest.raises(ConfigError, match="no name of a model"):
        pull("just-a-name", tmp_path / "got")
    assert there.seen == []


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("name", [".env", "id_rsa", "deploy.key", "credentials.json", "my_secrets.txt", "token"])
def test_a_directory_with_a_secret_is_not_published(name, there, copy):
    (copy / name).write_text("x")
    with pytest.raises(ConfigError, match=r"looks like a secret.*Nothing was sent"):
        push(PushConfig(copy, NAME))
    assert there.seen == []


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("call it with hf_" + "a1B2" * 8, "looks like a key"),
        ("-----BEGIN RSA PRIVATE KEY-----", "looks like a key"),
        ("it lies in /Users/anna/models", "a place on this machine"),
    ],
)
def test_texts_with_a_secret_are_not_published(text, why, there, copy):
    (copy / "README.md").write_text(f"# mine\n\n{text}\n")
    with pytest.raises(ConfigError, match=why):
        push(PushConfig(copy, NAME, dry_run=True))
    assert there.seen == []


@pytest.mark.parametrize("place", ["/mnt/disk 2/models/x", "~/models/x", f"/{'root'}/.cache/x", "D:\\models\\x"])
def test_a_configuration_with_a_place_is_not_published(place, there, copy):
    said = json.loads((copy / "tokenizer_config.json").read_text())
    (copy / "tokenizer_config.json").write_text(json.dumps(said | {"name_or_path": place}, indent=2))
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps(manifest | {"fingerprint": identity.fingerprint(copy)}))
    with pytest.raises(ConfigError, match="a place on this machine"):
        push(PushConfig(copy, NAME, dry_run=True))


def test_files_in_directories_of_a_repository_are_not_ours(there, made, tmp_path):
    inside = {"model_old/x.safetensors": b"old", "model-a/../../x.safetensors": b"out", "x/y.tiktoken": b"z"}
    assert [published.kind_of(name) for name in inside] == [None] * 3
    push(PushConfig(made, NAME))
    there.add(NAME, {**files_of(there), "model_old/x.safetensors": b"old"})
    assert push(PushConfig(made, NAME)).deleted == []
    assert pull(NAME, tmp_path / "got").left_out == [".gitattributes", "model_old/x.safetensors"]


def test_what_cannot_be_published(there, copy, base, adapter):
    with pytest.raises(ModelError, match="was not written by punie-mlx fuse or quantize"):
        push(PushConfig(base, NAME))
    (copy / "config.json").write_text((copy / "config.json").read_text() + "\n")
    with pytest.raises(ModelError, match="was changed after it was made"):
        push(PushConfig(copy, NAME))
    with pytest.raises(ConfigError, match="give org/name"):
        PushConfig(copy, "name")
    assert there.seen == []


# ---- the card ----


def run_file(path: Path, fingerprint: str, passed: int, n: int, label: str = "runs/x/5bit") -> Path:
    rate = {"accuracy": passed / n, "interval": [0.1, 0.9], "n": n, "passed": passed}
    content = {
        "kind": "evaluation", "summary": {"by_suite": {"agent": rate}}, "suite": {"hash": "5" * 64},
        "model": {"label": label, "name": "x", "path": "/home/somebody/runs/5bit", "fingerprint": fingerprint},
    }  # fmt: skip
    path.write_text(json.dumps(content))
    return path


def test_the_card_tells_the_whole_road(made, base, tmp_path):
    ours, theirs = identity.fingerprint(made), identity.fingerprint(base)
    runs = (run_file(tmp_path / "a.json", ours, 9, 10), run_file(tmp_path / "b.json", theirs, 2, 10))
    text = push(PushConfig(made, NAME, runs=runs, licence="apache-2.0", dry_run=True)).card
    front = yaml.safe_load(text.split("---\n")[1])
    assert front == {
        "library_name": "mlx", "pipeline_tag": "text-generation", "license": "apache-2.0",
        "tags": ["mlx", "punie-mlx", "tool-calling"],
    }  # fmt: skip
    for said in (
        ours, theirs, "d" * 64, "| this model | agent | 9/10 | 90.0% | 10.0% to 90.0% |", "| base | agent | 2/10 |",
        "iters: 7", "| bits | 5 |", "| `median` |", f"punie-mlx pull {NAME} --out tiny-5bit",
        "punie-mlx quantize --model fused --out model --bits 5 --group-size 64", "last val loss 0.2500", "mlx ",
    ):  # fmt: skip
        assert said in text, said
    assert "somebody" not in text


def test_runs_of_other_models_only_are_refused(made, tmp_path):
    with pytest.raises(ConfigError, match=r"no --run is of .*they scored 5bit \(0000"):
        push(PushConfig(made, NAME, runs=(run_file(tmp_path / "a.json", "0" * 64, 1, 2),), dry_run=True))
    (tmp_path / "b.json").write_text('{"kind": "evaluation"}')
    with pytest.raises(DataError, match="is no result of"):
        push(PushConfig(made, NAME, runs=(tmp_path / "b.json",), dry_run=True))


def test_what_was_written_by_hand_is_kept(there, copy, tmp_path):
    first = push(PushConfig(copy, NAME))
    assert card.EMPTY in first.card
    edited = first.card.replace(card.EMPTY, "It is for the *shop*.\n\nNot for anything else.")
    there.add(NAME, files_of(there) | {"README.md": edited.encode()})  # edited on the hub
    again = push(PushConfig(copy, NAME, licence="mit"))
    assert "It is for the *shop*.\n\nNot for anything else." in again.card and "license: mit" in again.card
    (copy / "README.md").write_text("---\nlicense: x\n---\n# My own\n\nWords.\n")  # a README of somebody's own
    own = push(PushConfig(copy, NAME)).card
    assert "# My own\n\nWords." in own and "license: x" not in own and "shop" not in own
    assert files_of(there)["README.md"].decode() == own


def test_scrubbed_manifests_keep_what_is_no_place():
    value = {
        "model": "org/name@main", "out": "runs/x", "select": "", "text": "a/b and 1/2, see https://x.org/a/b/c",
        "deep": [{"note": "wrote ~/models/x and C:\\Users\\me\\y"}], "n": 3, "hub": {"repo": "a/b"}, "url": "http://x",
    }  # fmt: skip
    assert published.scrub(value) == {
        "model": "name@main", "out": "x", "select": "", "text": value["text"],
        "deep": [{"note": "wrote x and y"}], "n": 3,
    }  # fmt: skip
