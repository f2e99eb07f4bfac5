"""A model from the hub, in a directory of one's own, at one commit and verified.

    punie-mlx pull org/name --revision main --out models/name

Only the files of `published.NAMED` are fetched. What arrived is hashed and compared with what the hub says of that
commit, and the whole with the fingerprint in the model's manifest. The commit is recorded in the manifest (key `hub`).

Going on after a stop: files lie in `.OUT.pull` beside OUT until all are there, and what lies there whole is not
fetched again. Within one run huggingface_hub goes on in the middle of a file (HTTP Range) after a broken connection;
a file that a killed run was in the middle of starts again, since its client keeps no half of it. Large files of the
real hub come through hf-xet, which has its own protocol.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from punie_mlx import identity
from punie_mlx.errors import ConfigError, HubError, ModelError
from punie_mlx.export.hub import TIMEOUT, explain, is_name, split
from punie_mlx.export.published import kind_of
from punie_mlx.files import atomic_dir, link, locked, refuse_existing
from punie_mlx.hardware import require_disk

LOCK = ".lock"


@dataclass(frozen=True)
class PullReport:
    """What `pull` fetched."""

    out: Path
    repo: str
    commit: str
    fingerprint: str
    said: bool
    """Whether a manifest of the model named that fingerprint; other models have none to be compared with."""
    files: list[str]
    left_out: list[str]
    bytes: int


def pull(name: str, out: Path, *, revision: str | None = None, overwrite: bool = False) -> PullReport:
    """Fetch the model `name` (org/name or org/name@REVISION) to the directory `out`.

    Raises:
        ConfigError: this is no name of a model on the hub, or it names two revisions.
        HubError: the hub does not have it, does not give it, or cannot be reached; or it is not what it says.
        OutputError: `out` exists and `overwrite` is false, or another pull works there.
        DiskError: the disk has no room for it.
    """
    repo, said = split(name)
    if revision and said:
        raise ConfigError(f"{name} names a revision, and --revision {revision} another: give one of them")
    revision = revision or said
    if not is_name(repo, revision):
        raise ConfigError(f"{name} is no name of a model on the hub: give org/name, or org/name@REVISION")
    out = Path(out).absolute()
    refuse_existing(out, overwrite)
    commit, tree = _tree(repo, revision)
    wanted = {path: file for path, file in tree.items() if kind_of(path)}
    if "config.json" not in wanted or not any(path.endswith(".safetensors") for path in wanted):
        raise HubError(f"{repo} holds no model that MLX loads (config.json and model*.safetensors): check the name")
    store = out.with_name(f".{out.name}.pull")
    with locked(store / LOCK, "pull"):
        lacking = sum(f.size for path, f in wanted.items() if not (store / path).is_file())
        require_disk(out, lacking, repo)
        _fetch(repo, commit, sorted(wanted), store)
        _check_arrived(repo, wanted, store)
        manifest = identity.read_manifest(store)
        fingerprint = _check_fingerprint(repo, store, manifest)
        with atomic_dir(out, overwrite=overwrite) as tmp:
            for path in wanted:
                link(store / path, tmp / path)
            origin = {"repo": repo, "revision": revision or "main", "commit": commit}
            told = manifest or identity.manifest("pulled", inputs={}, settings={}, fingerprint=fingerprint)
            identity.write_manifest(tmp, {**told, "hub": origin})
        shutil.rmtree(store, ignore_errors=True)
    size = sum(f.size for f in wanted.values())
    named = bool(manifest and manifest.get("fingerprint"))
    return PullReport(out, repo, commit, fingerprint, named, sorted(wanted), sorted(tree.keys() - wanted), size)


def _tree(repo: str, revision: str | None) -> tuple[str, dict[str, Any]]:
    """The commit that `revision` names, and its files. Raises `HubError`."""
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    try:
        commit = HfApi().model_info(repo, revision=revision, timeout=TIMEOUT).sha
        if commit is None:
            raise HubError(f"the hub names no commit of {repo}: try again later")
        files = HfApi().list_repo_tree(repo, revision=commit)
        return commit, {f.path: f for f in files if isinstance(f, RepoFile)}
    except Exception as e:
        raise explain(repo, e) from e


def _fetch(repo: str, commit: str, names: list[str], store: Path) -> None:
    from huggingface_hub import snapshot_download

    try:
        snapshot_download(repo, revision=commit, local_dir=store, allow_patterns=names, etag_timeout=TIMEOUT)
    except Exception as e:
        raise explain(repo, e) from e


def _check_arrived(repo: str, wanted: Mapping[str, Any], store: Path) -> None:
    """Compare each file with its hash on the hub; huggingface_hub compares sizes only. Raises `HubError`."""
    for name, file in wanted.items():
        path = store / name
        if not path.is_file():
            raise HubError(f"{name} of {repo} did not arrive: run it again to go on")
        found = identity.hash_file(path) if file.lfs else git_hash(path.read_bytes())
        if found != (file.lfs.sha256 if file.lfs else file.blob_id):
            path.unlink()
            (store / ".cache" / "huggingface" / "download" / f"{name}.metadata").unlink(missing_ok=True)
            raise HubError(f"{name} of {repo} arrived damaged: run it again, and only that file is fetched")


def git_hash(content: bytes) -> str:
    """The SHA-1 by which git, and so the hub, names a small file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _check_fingerprint(repo: str, store: Path, manifest: Mapping[str, Any] | None) -> str:
    try:
        found = identity.fingerprint(store)
    except ModelError as e:
        raise HubError(f"{repo} holds no model: {e}") from e
    said = (manifest or {}).get("fingerprint")
    if said and said != found:
        raise HubError(
            f"{repo} is not the model that its manifest names (fingerprint {said[:12]}, its files make {found[:12]}): "
            f"ask who published it to push it again, or pull an earlier --revision. What arrived lies in {store}"
        )
    return found
