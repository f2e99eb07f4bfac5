"""A model's name → its directory: a directory as it is, `org/name` from the model hub (or its local cache).

A name is taken for a path where it looks like one: it exists, starts with `.`, `/` or `~`, has other than one slash,
or its first part is a directory here. Only what is left is asked of the hub, with short timeouts.
"""

from __future__ import annotations

import errno
import re
from pathlib import Path

from punie_mlx.errors import DiskError, HubError, ModelError

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
TIMEOUT = 10.0  # seconds until the hub counts as out of reach
PATTERNS = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model", "*.tiktoken", "*.py"]


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
    name = str(model)
    if path.exists():
        raise ModelError(f"{model} is a file: give the directory that holds config.json and the weights")
    if not HUB_NAME.fullmatch(name) or Path(name.split("/")[0]).is_dir():
        raise _absent(name)
    return _download(name)


def _absent(name: str) -> ModelError:
    return ModelError(
        f"model directory {name} does not exist: give a directory that holds config.json and weights, "
        "or the name of a model on the hub (org/name)"
    )


def _download(name: str) -> Path:
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError

    try:
        # Asked apart, since snapshot_download's own first question has no timeout that we could set.
        revision = HfApi().model_info(name, timeout=TIMEOUT).sha
    except GatedRepoError as e:
        raise HubError(f"{name} is gated on the hub: accept its terms there and log in with `hf auth login`") from e
    except (RepositoryNotFoundError, HFValidationError) as e:
        raise HubError(
            f"{name} is neither a directory here nor a model on the hub: check the spelling, "
            "or log in with `hf auth login` if it is private"
        ) from e
    except Exception as e:
        return _cached(name, e)
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=PATTERNS, etag_timeout=TIMEOUT))
    except OSError as e:
        if e.errno == errno.ENOSPC:
            raise DiskError(f"the disk ran full while downloading {name}: free some space and run it again") from e
        raise HubError(f"{name} could not be downloaded ({_reason(e)}): run it again to go on") from e
    except Exception as e:
        raise HubError(f"{name} could not be downloaded ({_reason(e)}): run it again to go on") from e


def _cached(name: str, error: Exception) -> Path:
    """The local copy of `name` where the hub did not answer. Raises `HubError` if there is none."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, local_files_only=True, allow_patterns=PATTERNS))
    except Exception:
        raise HubError(
            f"the model hub cannot be reached ({_reason(error)}) and {name} is not in the local cache: "
            "go online, or give a model directory"
        ) from error


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
