"""What was made from what: the fingerprint of a model directory, and the manifest beside each result.

A fingerprint is the SHA-256 over the files that decide what a model says: weights, config, tokenizer and chat
template, and those of the adapter where one is laid over it. File times, names of parent folders, READMEs and
manifests do not count, so a copy has the fingerprint of its original.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from punie_mlx.errors import ModelError
from punie_mlx.files import atomic_file

MANIFEST = "manifest.json"
MODEL_FILES = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer.model", "tokenizer_config.json",
    "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "chat_template.jinja",
    "chat_template.json",
)  # fmt: skip
ADAPTER_FILES = ("adapter_config.json", "adapters.safetensors")
PACKAGES = ("punie-mlx", "mlx", "mlx-lm", "transformers", "tokenizers", "pydantic-ai-slim")


def hash_file(path: Path) -> str:
    """SHA-256 of one file, as hex."""
    with Path(path).open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def hash_files(paths: Iterable[Path], root: Path) -> str:
    """SHA-256 over the relative names and contents of `paths`, independent of their order."""
    lines = sorted(f"{p.relative_to(root).as_posix()} {hash_file(p)}" for p in paths)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def hash_json(value: Any) -> str:
    """SHA-256 of a JSON value in canonical form."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def model_files(model: Path) -> list[Path]:
    """The files of `model` that count. Raises `ModelError` where it is no model directory."""
    model = Path(model)
    if not model.is_dir():
        raise ModelError(f"model directory {model} does not exist: give a directory that holds config.json and weights")
    if not (model / "config.json").is_file():
        raise ModelError(f"{model} is no model directory: it has no config.json")
    weights = sorted(model.glob("model*.safetensors")) or sorted(model.glob("*.safetensors"))
    if not weights:
        raise ModelError(f"{model} holds no *.safetensors weights: download or fuse the model again")
    return [*weights, *(model / n for n in MODEL_FILES if (model / n).is_file())]


def adapter_files(adapter: Path) -> list[Path]:
    """The files of `adapter` that count. Raises `ModelError` where it is no adapter directory."""
    adapter = Path(adapter)
    missing = [n for n in ADAPTER_FILES if not (adapter / n).is_file()]
    if missing:
        raise ModelError(f"{adapter} is no adapter directory: it has no {missing[0]} (punie-mlx train makes one)")
    return [adapter / n for n in ADAPTER_FILES]


def fingerprint(model: Path, adapter: Path | None = None) -> str:
    """Hex SHA-256 of what `model` (with `adapter` laid over it) says. Raises `ModelError`."""
    base = hash_files(model_files(model), Path(model))
    if adapter is None:
        return base
    # The config of an adapter names paths of the machine that trained it; only what shapes the output counts.
    config = json.loads((adapter_files(adapter)[0]).read_text())
    shape = {k: config.get(k) for k in ("fine_tune_type", "num_layers", "lora_parameters")}
    return hash_json([base, shape, hash_file(Path(adapter) / "adapters.safetensors")])


def check_adapter(model: Path, adapter: Path) -> str:
    """The fingerprint of `model`. Raises `ModelError` if `adapter` says that it was trained on another model."""
    base = fingerprint(model)
    path = adapter_files(adapter)[0]
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        trained_on = (config.get("punie") or {}).get("base_fingerprint")
    except (ValueError, AttributeError) as e:
        raise ModelError(f"{path} is no adapter configuration ({e}): train the adapter again") from e
    if trained_on is not None and trained_on != base:
        raise ModelError(
            f"the adapter {adapter} was trained on another model (fingerprint {trained_on[:12]}) than {model} "
            f"({base[:12]}): name the model it was trained on, or train one on this model"
        )
    return base


def versions() -> dict[str, str]:
    """Versions of Python and the packages that decide a result."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def manifest(kind: str, *, inputs: Mapping[str, str], settings: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """A manifest: `kind` of result, `inputs` (name → hash), `settings`, versions, and what else is to be said."""
    return {"kind": kind, "inputs": dict(inputs), "settings": dict(settings), "versions": versions(), **more}


def write_manifest(directory: Path, content: Mapping[str, Any]) -> None:
    """Write `content` as `manifest.json` into `directory`, whole or not at all."""
    write_json(Path(directory) / MANIFEST, content)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write `content` as JSON to `path`, whole or not at all."""
    with atomic_file(path) as tmp:
        tmp.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_manifest(directory: Path) -> dict[str, Any] | None:
    """The manifest of `directory`, or None where there is none that can be read."""
    try:
        return json.loads((Path(directory) / MANIFEST).read_text())
    except (OSError, ValueError):
        return None
