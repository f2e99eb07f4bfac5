"""Deleting the float16 model between an adapter and its quantized model, once it is not needed any more.

    punie-mlx quantize --model runs/fused --out runs/5bit --drop-intermediate

It can be made again from the base and the adapter, but takes 3 times the room of the 5-bit model. It is deleted only
if it is what `fuse` wrote and nothing else, and the quantized model was made of it and reads back from the disk.
"""

from __future__ import annotations

import filecmp
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from punie_mlx import identity
from punie_mlx.errors import ConfigError, ModelError
from punie_mlx.export import lineage, store
from punie_mlx.weights import load_lazily

OWN = frozenset({identity.MANIFEST, "config.json", "model.safetensors.index.json"})


def check_pair(fused: Path, quantized: Path) -> None:
    """Raise `ModelError` unless `fused` may be deleted for `quantized`: see the module's text."""
    check_intermediate(fused)
    _check_made_of(quantized, (identity.read_manifest(fused) or {})["fingerprint"], fused)
    if only := _only_there(fused, quantized):
        raise ModelError(
            f"{fused} holds {', '.join(only[:3])}, which {quantized} does not: it was not deleted. "
            "Move that elsewhere first"
        )


def check_settings(quantized: Path, wanted: Mapping[str, Any], *, tuned: bool = False) -> None:
    """Raise `ConfigError` unless a quantized model that is there already was made with the settings `wanted`.

    `tuned`: by DWQ, too.
    """
    settings = (identity.read_manifest(quantized) or {}).get("settings") or {}
    # Models of earlier versions know no recipe: they are all uniform.
    if other := {k: settings.get(k, v) for k, v in wanted.items() if settings.get(k, v) != v}:
        said = ", ".join(f"{k} {v}" for k, v in other.items())
        raise ConfigError(f"{quantized} was made with {said}: pass that, --overwrite, or another --out")
    if tuned and not settings.get("dwq"):
        raise ConfigError(f"{quantized} was made without --dwq: leave that out, pass --overwrite, or another --out")


def drop(fused: Path, quantized: Path) -> int:
    """Delete the directory `fused` for good; returns the bytes that are free again.

    Raises `ModelError`, and deletes nothing, unless `check_pair` finds both as they should be.
    """
    fused, quantized = Path(fused), Path(quantized)
    check_pair(fused, quantized)
    fused = fused.resolve()  # `.` has no name
    size = store.size_bytes(fused)
    # Under another name first: what is stopped in the middle must not look like a model. `sweep_partials` finds it.
    gone = fused.with_name(f".{fused.name}.{os.getpid()}.old")
    fused.rename(gone)
    shutil.rmtree(gone)
    return size


def check_intermediate(fused: Path) -> None:
    """Raise `ModelError` unless the directory holds what `punie-mlx fuse` wrote, unchanged."""
    kept = "it was not deleted"
    if fused.is_symlink():
        raise ModelError(f"{fused} is a link to another place: {kept}. Delete it by hand if you want to")
    manifest = identity.read_manifest(fused)
    if not isinstance(manifest, Mapping) or manifest.get("kind") != "fused":
        raise ModelError(
            f"{fused} is no model that punie-mlx fuse wrote (its manifest says {_kind(manifest)}): {kept}. "
            "Only such a model can be made again"
        )
    if manifest.get("hub") or "/" in lineage.name_of(fused):  # a copy with a manifest of its own, or the hub's cache
        raise ModelError(f"{fused} came from the model hub, and is no intermediate of yours: {kept}")
    if manifest.get("fingerprint") != identity.fingerprint(fused):
        raise ModelError(f"{fused} was changed after punie-mlx fuse wrote it: {kept}")


def _kind(manifest: Any) -> str:
    return repr(manifest.get("kind")) if isinstance(manifest, Mapping) else "nothing"


def _only_there(fused: Path, quantized: Path) -> list[str]:
    """What would be gone with the directory: all but weights, config and manifest that has no copy in the other."""
    weights = {p.name for p in identity.model_files(fused) if p.suffix == ".safetensors"}
    return sorted(
        p.name
        for p in fused.iterdir()
        if p.name not in {*OWN, *weights} and not (p.is_file() and _same(p, quantized / p.name))
    )


def _same(one: Path, other: Path) -> bool:
    return other.is_file() and filecmp.cmp(one, other, shallow=False)


def _check_made_of(quantized: Path, source: str, fused: Path) -> None:
    manifest = identity.read_manifest(quantized)
    again = f"quantize it again; {fused} was not deleted"
    if not isinstance(manifest, Mapping) or manifest.get("kind") != "quantized":
        raise ModelError(f"{quantized} is no model that punie-mlx quantize wrote: {again}")
    if manifest.get("inputs", {}).get("model") != source:
        raise ModelError(f"{quantized} was not made of {fused}: {again}")
    if manifest.get("fingerprint") != identity.fingerprint(quantized):
        raise ModelError(f"{quantized} is not as it was written: {again}")
    store.check_files(quantized, manifest)
    load_lazily(quantized)
    for path in identity.model_files(quantized):
        if path.suffix == ".json":
            json.loads(path.read_text(encoding="utf-8"))
