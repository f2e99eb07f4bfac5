"""A model directory → the model hub, with a card written from its manifests.

    punie-mlx push runs/5bit --repo org/name --run 5bit.json --run fused.json

What is sent is what `published.NAMED` names, and the card; the rest is listed. All of it is one commit, so nobody ever
sees half a model; weights of an earlier push that are no part of this one are deleted in it.

Going on after a stop: large files are kept by the hub as soon as each is there, though no commit names them yet. The
same command asks for each first, and sends only what is missing (with hf-xet: only the chunks that are missing).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from punie_mlx import identity
from punie_mlx.errors import ConfigError, HubError, ModelError
from punie_mlx.export import card, published, store
from punie_mlx.export.hub import LOGIN, TIMEOUT, explain, is_name

PUBLISHED = ("fused", "quantized")
HARMLESS = frozenset({".gitattributes", published.README, "LICENSE", "LICENSE.txt", "LICENSE.md", ".gitignore"})
"""What may lie in a repository that is not ours yet: the hub puts these there when somebody makes one."""


@dataclass(frozen=True)
class PushConfig:
    """What to publish, and where."""

    directory: Path
    repo: str
    private: bool = False
    revision: str | None = None
    """A branch; it is made where there is none."""
    runs: tuple[Path, ...] = ()
    licence: str | None = None
    dry_run: bool = False

    def __post_init__(self) -> None:
        if not is_name(self.repo, self.revision):
            raise ConfigError(f"--repo {self.repo}: give org/name, and with --revision the name of a branch")


@dataclass(frozen=True)
class PushReport:
    """What `push` sent, or would send."""

    repo: str
    url: str | None
    commit: str | None
    """None after a dry run."""
    fingerprint: str
    files: dict[str, int]
    left_out: dict[str, str]
    deleted: list[str]
    card: str


def push(config: PushConfig) -> PushReport:
    """Publish a model directory; a dry run asks the hub nothing and sends nothing.

    Raises:
        ModelError: the directory is not what `fuse` or `quantize` wrote.
        ConfigError: it holds what looks like a secret, or a place on this machine.
        DataError: a run file that is none, or of other models only.
        HubError: no token, no permission, the name is taken, or the hub is out of reach.
    """
    manifest = _manifest(config.directory)
    files, left = published.choose(config.directory)
    runs = _runs(config, manifest)
    remote = None if config.dry_run else _Remote(config)
    hand = card.by_hand(_local_readme(config.directory) or (remote.readme() if remote else None))
    clean = published.scrub(manifest)
    text = card.write(clean, config.repo, runs=runs, licence=config.licence or _licence(config.directory), hand=hand)
    texts = {identity.MANIFEST: published.manifest_text(manifest), published.README: text}
    read = {p.name: p.read_text(encoding="utf-8") for p in files if published.is_read(p) and p.name not in texts}
    published.check_texts([*texts.items(), *read.items()])
    content: dict[str, Path | bytes] = {p.name: p for p in files}
    content |= {name: value.encode() for name, value in texts.items()}
    sizes = {n: len(c) if isinstance(c, bytes) else c.stat().st_size for n, c in sorted(content.items())}
    commit, url, deleted = remote.send(content, manifest["fingerprint"]) if remote else (None, None, [])
    return PushReport(config.repo, url, commit, manifest["fingerprint"], sizes, left, deleted, text)


def _manifest(directory: Path) -> dict[str, Any]:
    """The manifest of a model that may be published. Raises `ModelError`."""
    found = identity.fingerprint(directory)
    manifest = identity.read_manifest(directory)
    if not manifest or manifest.get("kind") not in PUBLISHED:
        raise ModelError(
            f"{directory} was not written by punie-mlx fuse or quantize (no manifest says so): make the model with "
            "these, so that its card can say what it is"
        )
    if manifest.get("fingerprint") != found:
        raise ModelError(f"{directory} was changed after it was made (its fingerprint differs): make it again")
    store.check_files(directory, manifest)
    return manifest


def _runs(config: PushConfig, manifest: Mapping[str, Any]) -> list[card.Run]:
    runs = [card.read_run(path) for path in config.runs]
    if runs and all(run.fingerprint != manifest["fingerprint"] for run in runs):
        scored = ", ".join(f"{run.label} ({run.fingerprint[:12]})" for run in runs)
        raise ConfigError(
            f"no --run is of {config.directory} ({manifest['fingerprint'][:12]}), they scored {scored}: "
            "score this model with `punie-mlx eval --json`"
        )
    return runs


def _local_readme(directory: Path) -> str | None:
    path = Path(directory) / published.README
    return path.read_text(encoding="utf-8") if path.is_file() else None


def _licence(directory: Path) -> str | None:
    """What the config says, as some do; nothing is guessed."""
    said = store.read_config(directory).get("license")
    return said if isinstance(said, str) else None


class _Remote:
    """The repository on the hub: there after `__init__`, ours, and as private as was asked for."""

    def __init__(self, config: PushConfig) -> None:
        from huggingface_hub import HfApi, get_token

        self.api, self.config, self.files = HfApi(), config, set[str]()
        if not get_token():
            raise HubError(f"{config.repo} cannot be published without a token: log in with {LOGIN}, or set HF_TOKEN")
        if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
            raise HubError("HF_HUB_OFFLINE is set, so nothing can be published: unset it, and push again")
        try:
            self._prepare()
        except Exception as e:
            raise explain(config.repo, e, "published") from e

    def _prepare(self) -> None:
        config = self.config
        self.api.create_repo(config.repo, private=config.private or None, exist_ok=True)
        info = self.api.model_info(config.repo, timeout=TIMEOUT)
        if config.private and not info.private:
            raise HubError(
                f"{config.repo} is there already, and public: make it private in its settings on the hub, or name "
                "another --repo. Nothing was sent"
            )
        if config.revision:
            self.api.create_branch(config.repo, branch=config.revision, exist_ok=True)
        self.files = set(self.api.list_repo_files(config.repo, revision=config.revision))
        if self.files - HARMLESS and identity.MANIFEST not in self.files:
            other = ", ".join(sorted(self.files - HARMLESS)[:3])
            raise HubError(
                f"the name {config.repo} is taken by something that punie-mlx did not publish ({other}): name another "
                "--repo, or delete that one on the hub. Nothing was sent"
            )

    def readme(self) -> str | None:
        """The card that is there now. Raises `HubError`."""
        if published.README not in self.files:
            return None
        from huggingface_hub import hf_hub_download

        try:
            path = hf_hub_download(self.config.repo, published.README, revision=self.config.revision)
        except Exception as e:
            raise explain(self.config.repo, e, "published") from e
        return Path(path).read_text(encoding="utf-8")

    def send(self, content: Mapping[str, Path | bytes], fingerprint: str) -> tuple[str, str, list[str]]:
        """One commit with all of it: its id, its address, and what it deletes. Raises `HubError`."""
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        stale = sorted(f for f in self.files - content.keys() if published.kind_of(f))
        try:
            made = self.api.create_commit(
                self.config.repo,
                [
                    *(CommitOperationAdd(name, value) for name, value in content.items()),
                    *(CommitOperationDelete(name) for name in stale),
                ],
                commit_message=f"punie-mlx push {fingerprint[:12]}",
                revision=self.config.revision,
            )
        except Exception as e:
            raise explain(self.config.repo, e, "published") from e
        return made.oid, made.commit_url, stale
