"""A model's name → its directory: a directory as it is, `org/name` or `org/name@REVISION` from the model hub (or its
local cache).

A name is taken for a path where it looks like one: it exists, starts with `.`, `/` or `~`, has other than one slash,
or its first part is a directory here. Only what is left is asked of the hub, with short timeouts.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from pathlib import Path

from punie_mlx.errors import DiskError, HubError, ModelError, PunieError

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
REVISION = re.compile(r"[\w.][\w./-]*", re.ASCII)
TIMEOUT = 10.0  # seconds until the hub counts as out of reach
PATTERNS = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model", "*.tiktoken", "*.py"]
LOGIN = "`hf auth login`"


def resolve(model: str | Path) -> Path:
    """The directory of `model`, downloaded where it is a name on the hub.

    Raises:
        ModelError: it is a path, and no directory is there.
        HubError: it is a name that the hub does not have, or the hub is out of reach and the cache has no copy.
        DiskError: the disk ran full while downloading.
    """
    path = Path(model).expanduser()
    if path.is_dir():
        return path
    name, revision = split(str(model))
    if path.exists():
        raise ModelError(f"{model} is a file: give the directory that holds config.json and the weights")
    if not is_name(name, revision) or Path(name.split("/")[0]).is_dir():
        raise _absent(str(model))
    return _download(name, revision)


def split(name: str) -> tuple[str, str | None]:
    """`org/name@REVISION` → its two parts."""
    repo, at, revision = name.partition("@")
    return repo, revision if at else None


def is_name(repo: str, revision: str | None = None) -> bool:
    """Whether this can be a model on the hub."""
    return bool(HUB_NAME.fullmatch(repo)) and (revision is None or bool(REVISION.fullmatch(revision)))


def _absent(name: str) -> ModelError:
    return ModelError(
        f"model directory {name} does not exist: give a directory that holds config.json and weights, "
        "or the name of a model on the hub (org/name, or org/name@REVISION)"
    )


def _download(name: str, revision: str | None) -> Path:
    from huggingface_hub import HfApi, snapshot_download

    try:
        # Asked apart, since snapshot_download's own first question has no timeout that we could set.
        commit = HfApi().model_info(name, revision=revision, timeout=TIMEOUT).sha
    except Exception as e:
        if out_of_reach(e):
            return _cached(name, revision, e)
        raise explain(name, e) from e
    try:
        return Path(snapshot_download(name, revision=commit, allow_patterns=PATTERNS, etag_timeout=TIMEOUT))
    except Exception as e:
        raise explain(name, e) from e


def _cached(name: str, revision: str | None, error: Exception) -> Path:
    """The local copy of `name` where the hub did not answer. Raises `HubError` if there is none."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, revision=revision, local_files_only=True, allow_patterns=PATTERNS))
    except Exception:
        at = f" at {revision}" if revision else ""
        raise HubError(
            f"the model hub cannot be reached ({reason(error)}) and {name}{at} is not in the local cache: "
            "go online, or give a model directory"
        ) from error


# ---- what the hub's client raises, in words ----


def explain(name: str, error: Exception, doing: str = "downloaded") -> PunieError:
    """The error that tells what went wrong with the model `name`, and what to do about it."""
    from huggingface_hub import errors

    chain = list(_causes(error))
    for e in chain:
        if isinstance(e, PunieError):
            return e
        if isinstance(e, OSError) and e.errno == errno.ENOSPC:
            return DiskError(f"the disk ran full while {name} was {doing}: free some space and run it again to go on")
        if isinstance(e, errors.GatedRepoError):
            return HubError(f"{name} is gated on the hub: accept its terms there and log in with {LOGIN}")
        if isinstance(e, errors.RevisionNotFoundError):
            return HubError(f"{name} has no such revision on the hub: give a branch, a tag or a commit of it")
        if isinstance(e, errors.RepositoryNotFoundError | errors.HFValidationError):
            return HubError(
                f"{name} is neither a directory here nor a model on the hub: check the spelling, "
                f"or log in with {LOGIN} if it is private"
            )
        if isinstance(e, errors.LocalTokenNotFoundError):
            return HubError(f"{name} cannot be {doing} without a token: log in with {LOGIN}, or set HF_TOKEN")
        if isinstance(e, errors.HfHubHTTPError) and (said := _by_status(name, doing, e)):
            return said
    if out_of_reach(error):
        return HubError(
            f"the model hub cannot be reached ({reason(error)}), so {name} was not {doing}: "
            "go online, and run it again to go on"
        )
    return HubError(f"{name} could not be {doing} ({reason(error)}): run it again to go on")


def _by_status(name: str, doing: str, error: Exception) -> HubError | None:
    response = getattr(error, "response", None)
    match None if response is None else response.status_code:
        case 401:
            return HubError(f"the hub does not know the token: log in again with {LOGIN}, or correct HF_TOKEN")
        case 403:
            return HubError(
                f"the token may not do this with {name} ({reason(error)}): use one with the permission "
                f"(for push: write, and its owner a member of {name.split('/')[0]}), or another name"
            )
        case 402 | 413 | 507:
            return HubError(f"the hub has no room for {name} ({reason(error)}): make some there, and run it again")
        case 429:
            return HubError(f"the hub asks for fewer requests: wait some minutes and run it again; {name} goes on")
    return None


def out_of_reach(error: Exception) -> bool:
    """Whether the hub did not answer, or not as a hub: offline, no connection, a timeout, a broken server."""
    import httpx2
    from huggingface_hub import errors

    for e in _causes(error):
        if isinstance(e, errors.HfHubHTTPError):
            return e.response.status_code >= 500
        if isinstance(e, httpx2.TransportError | errors.OfflineModeIsEnabled):
            return True
    return False


def reason(error: Exception) -> str:
    """The first line of what an error says."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    return lines[0].rstrip(".")[:200] if lines else type(error).__name__


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__
