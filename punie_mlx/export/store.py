"""Model directories on disk: their config, an adapter laid over them, and writing one that stock `mlx_lm.load` reads.

Weights are computed and written shard by shard, so a model larger than memory's half passes through. Each shard is read
back from the disk before its directory gets its name: what is not bit for bit what was meant never replaces anything.

mlx_lm touch points (pinned by tests/contracts/test_mlx_lm_train.py):

| name                      | used for                                  |
|---------------------------|-------------------------------------------|
| `utils.load_adapters`     | LoRA layers with an adapter's weights     |
| `utils.make_shards`       | files of at most 5 GB                     |
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from punie_mlx.errors import ModelError, OutputError
from punie_mlx.hardware import require_disk
from punie_mlx.identity import MANIFEST, hash_file
from punie_mlx.weights import load_lazily, naming_a_full_disk

COMPANIONS = (".json", ".jinja", ".txt", ".model", ".tiktoken", ".py")
NOT_COMPANIONS = frozenset({"config.json", MANIFEST, "hf_quant_config.json", "adapter_config.json"})
QUANTIZATION_KEYS = ("quantization", "quantization_config")
SHARD_GB = 5
SPARE = 1 << 20  # room for config, manifest and the disk's own books
SPARE_EACH = 2048  # for each tensor: its place in a header and an index, its retention in the manifest


def read_config(model: Path) -> dict[str, Any]:
    """`config.json` of `model`. Raises `ModelError`."""
    path = Path(model) / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as e:
        raise ModelError(f"{path} cannot be read ({e.strerror}): give a directory that holds a model") from e
    except ValueError as e:
        raise ModelError(f"{path} is not JSON ({e}): download or fuse the model again") from e
    if not isinstance(config, dict):
        raise ModelError(f"{path} holds no JSON object: download or fuse the model again")
    return config


def is_quantized(config: Mapping[str, Any]) -> bool:
    """Whether a model's config says that its weights are quantized."""
    return any(config.get(k) or config.get("text_config", {}).get(k) for k in QUANTIZATION_KEYS)


def without_quantization(config: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of `config` that describes float16 weights."""
    clean = {k: v for k, v in config.items() if k not in QUANTIZATION_KEYS}
    if isinstance(clean.get("text_config"), dict):
        clean["text_config"] = without_quantization(clean["text_config"])
    return clean | {k: "float16" for k in ("torch_dtype", "dtype") if k in clean}


def adapter_method(adapter: Path) -> str:
    """lora, dora or full: what the config of an adapter says that it is."""
    return json.loads((Path(adapter) / "adapter_config.json").read_text(encoding="utf-8")).get("fine_tune_type", "lora")


def load_with_adapter(model: Path, adapter: Path) -> nn.Module:
    """The model of a directory with `adapter` laid over it, lazily. Raises `ModelError`."""
    from mlx_lm.utils import load_adapters

    loaded = load_lazily(model)
    try:
        return load_adapters(loaded, str(adapter))
    except Exception as e:
        raise ModelError(
            f"the adapter {adapter} does not fit the model {model}: train one on this model ({_first_lines(e)})"
        ) from e


def _first_lines(error: Exception, count: int = 3) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    more = f" and {len(lines) - count} more" if len(lines) > count else ""
    return "; ".join(lines[:count]) + more


def half(model: nn.Module) -> dict[str, mx.array]:
    """The parameters of `model` by name, floating ones as (lazy) float16 unless the architecture forbids it."""
    castable = getattr(model, "cast_predicate", lambda name: True)
    tensors: dict[str, mx.array] = dict(tree_flatten(model.parameters()))
    for name, value in tensors.items():
        if mx.issubdtype(value.dtype, mx.floating) and castable(name):
            tensors[name] = value.astype(mx.float16)
    return tensors


def companions(model: Path) -> list[Path]:
    """What a model directory holds beside weights and config: tokenizer, template, generation config, code."""
    return [
        p
        for p in sorted(Path(model).iterdir())
        if p.is_file() and p.suffix in COMPANIONS and p.name not in NOT_COMPANIONS and ".index." not in p.name
    ]


def require_room(out: Path, weights: Mapping[str, mx.array], source: Path, what: str) -> None:
    """Raise `DiskError` unless the disk at `out` holds `weights` and the companions of `source`."""
    needed = sum(w.nbytes for w in weights.values()) + sum(p.stat().st_size for p in companions(source))
    require_disk(Path(out), needed + SPARE + SPARE_EACH * len(weights), what)


def write_model(out: Path, weights: dict[str, mx.array], config: Mapping[str, Any], source: Path) -> dict[str, str]:
    """Write `weights`, `config` and the companions of `source` into the directory `out`; `weights` is emptied.

    Returns file → SHA-256 of the weights as they were read back, for the manifest (key `files`).

    Raises:
        ModelError: a weight is not finite in the type that it is written in.
        OutputError: a file is not on the disk as it was meant.
        OSError: with ENOSPC where the disk ran full.
    """
    from mlx_lm.utils import make_shards

    total = sum(w.nbytes for w in weights.values())
    shards = make_shards(weights, SHARD_GB)
    weights.clear()  # the shards hold the only references, so each is freed once it is on disk
    index: dict[str, str] = {}
    hashes: dict[str, str] = {}
    count = len(shards)
    for i in range(count):
        name = "model.safetensors" if count == 1 else f"model-{i + 1:05d}-of-{count:05d}.safetensors"
        shard, shards[i] = shards[i], {}
        _refuse_infinite(shard)
        with naming_a_full_disk(out):
            mx.save_safetensors(str(out / name), shard, metadata={"format": "mlx"})
        settle(out / name)
        hashes[name] = verify_shard(out / name, shard)
        index |= dict.fromkeys(shard, name)
    if count > 1:
        content = {"metadata": {"total_size": total}, "weight_map": dict(sorted(index.items()))}
        (out / "model.safetensors.index.json").write_text(json.dumps(content, indent=2) + "\n")
    (out / "config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    for path in companions(source):
        shutil.copyfile(path, out / path.name)
    return hashes


def settle(path: Path) -> None:
    """Push a file to the disk, and out of the page cache where the system allows, so that it is read from there."""
    with path.open("rb") as f:
        os.fsync(f.fileno())
        if hasattr(os, "posix_fadvise"):
            with contextlib.suppress(OSError):
                os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def verify_shard(path: Path, meant: Mapping[str, mx.array]) -> str:
    """SHA-256 of a weights file. Raises `OutputError` unless it holds exactly the tensors `meant`."""
    try:
        found: Any = mx.load(str(path))
    except Exception as e:  # what mlx raises depends on what is broken
        raise _unlike(path, f"it cannot be loaded: {e}") from e
    if found.keys() != meant.keys():
        names = sorted(found.keys() ^ meant.keys())
        raise _unlike(path, f"{names[0]} is in only one of both")
    for name in list(found):
        one, wanted = found.pop(name), meant[name]
        if (one.shape, one.dtype) != (wanted.shape, wanted.dtype):
            raise _unlike(path, f"{name} is {one.dtype} {one.shape} instead of {wanted.dtype} {wanted.shape}")
        try:
            same = _bits(one) == _bits(wanted)
            equal = same.all().item()
        except RuntimeError as e:
            raise _unlike(path, f"{name} cannot be read: {e}") from e
        if not equal:
            raise _unlike(path, f"{name} has other values")
    return hash_file(path)


def _bits(array: mx.array) -> mx.array:
    """An array as whole numbers of its width, which are equal where NaN and -0.0 are not."""
    return array.reshape(-1).view({1: mx.uint8, 2: mx.uint16, 4: mx.uint32, 8: mx.uint64}[array.dtype.size])


def _unlike(path: Path, why: str) -> OutputError:
    return OutputError(
        f"{path.name} is not on the disk as it was written ({why}): nothing was replaced. "
        "Check the disk, then run it again or write elsewhere"
    )


def check_files(directory: Path, manifest: Mapping[str, Any]) -> None:
    """Read the weights of `directory` again. Raises `ModelError` unless they are those of its `manifest`."""
    for name, wanted in (manifest.get("files") or {}).items():
        path = Path(directory) / name
        if not path.is_file() or hash_file(path) != wanted:
            raise ModelError(f"{path} is not the file that was written: make {directory} again")


def _refuse_infinite(tensors: Mapping[str, mx.array]) -> None:
    floating = {k: v for k, v in tensors.items() if mx.issubdtype(v.dtype, mx.floating)}
    finite = {k: mx.isfinite(v).all() for k, v in floating.items()}
    mx.eval(finite)
    if bad := [k for k, ok in finite.items() if not ok.item()]:
        raise ModelError(
            f"{bad[0]} holds values that float16 cannot ({len(bad)} tensors do): "
            "train again with a lower learning rate or scale"
        )


def size_bytes(directory: Path) -> int:
    """Size of all files below `directory`."""
    return sum(p.stat().st_size for p in Path(directory).rglob("*") if p.is_file())
