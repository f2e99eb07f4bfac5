"""Where a model comes from, by names and manifests instead of paths: what a model card is written from.

`sources(model=DIR, adapter=DIR)` goes into the manifest of what is made of them. Each source is told by its name (that
of its directory, or `org/name@commit` where it came from the model hub) and by its own manifest, sources included, so
that the last model of a road still tells of the first.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from punie_mlx import identity

SNAPSHOT = re.compile(r"models--([^/]+)--([^/]+)/snapshots/([0-9a-f]+)$")
LOCAL = ("stage",)  # keys of a manifest that say something about this machine's directory only


def name_of(directory: Path) -> str:
    """`org/name@commit` of a model that came from the hub, the directory's name for any other."""
    path = Path(directory).absolute()
    if found := SNAPSHOT.search(path.as_posix()):
        org, name, commit = found.groups()
        return f"{org}/{name}@{commit}"
    hub = (identity.read_manifest(path) or {}).get("hub")
    if isinstance(hub, Mapping) and hub.get("repo"):
        return f"{hub['repo']}@{hub.get('commit')}"
    return path.resolve().name


def sources(**directories: Path) -> dict[str, Any]:
    """role → name and manifest (None where there is none) of each directory that something is made of."""
    return {role: {"name": name_of(path), "manifest": _manifest(path)} for role, path in directories.items()}


def _manifest(directory: Path) -> dict[str, Any] | None:
    found = identity.read_manifest(directory)
    return None if found is None else {k: v for k, v in found.items() if k not in LOCAL}
