"""What of a model directory goes to the model hub and comes from it: a table of names, and nothing beside it.

A file whose name is not in the table stays where it is and is listed. A directory with a file that looks like a secret
is not published at all, nor is text that holds a key or a path of this machine. Manifests are published with names in
the place of paths.
"""

from __future__ import annotations

import fnmatch
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from punie_mlx import identity
from punie_mlx.errors import ConfigError

README = "README.md"
NAMED: Mapping[str, tuple[str, ...]] = {
    "weights": ("model*.safetensors", "model.safetensors.index.json"),
    "config": ("config.json", "generation_config.json"),
    "tokenizer": (
        "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
        "vocab.json", "vocab.txt", "merges.txt", "*.tiktoken",
    ),
    "chat template": ("chat_template.jinja", "chat_template.json"),
    "about it": (identity.MANIFEST, README),
}  # fmt: skip
READ = ("config", "chat template", "about it")
"""Kinds of files whose text is read before it is published, beside the configuration of the tokenizer."""
CONFIGS = (*NAMED["config"], "tokenizer_config.json")
SECRET_NAMES = (
    ".env*", "*.pem", "*.key", "*.p12", "*.pfx", "*.kdbx", "id_rsa*", "id_ed25519*", "id_ecdsa*", ".netrc", "*.netrc",
    ".git-credentials", "credentials*", "*secret*", "token", "*.token", "token.txt", "*password*", ".npmrc", ".pypirc",
)  # fmt: skip
SECRETS = re.compile(
    r"hf_[A-Za-z0-9]{20,}|\bsk-[A-Za-z0-9_-]{20,}|\bAKIA[0-9A-Z]{16}\b|\bgh[pousr]_[A-Za-z0-9]{30,}"
    r"|github_pat_\w{30,}|\bxox[abprs]-[\w-]{10,}|\bAIza[\w-]{30,}|-----BEGIN [A-Z ]*PRIVATE KEY-----"
)
PLACE = re.compile(r"(?<![\w:/.<$}])(?:~|[A-Za-z]:)?[/\\](?:[\w.@+-]+[/\\])+[\w.@+-]*")
"""An absolute path of two parts or more, inside any text."""
HOMES = re.compile(r"/(?:home|Users)/[\w.@+-]+|(?<![\w.])/root/[\w.@+-]+|[A-Za-z]:\\{1,2}Users\\{1,2}\w+")
"""Somebody's own directory; a chat template may hold one as an example, and is only looked at for this machine's."""
WHOLE = re.compile(r'"(?:~|[A-Za-z]:)?[/\\]+(?:[\w.@+ -]+[/\\]+)+[\w.@+ -]*"')
"""A text of a configuration that is a path and nothing else, as `_name_or_path` may be."""
PLACES = frozenset({"path", "data", "out", "model", "adapter", "select", "work", "recipe", "chat_template", "base"})
"""Keys whose values are places where they hold a slash."""
UNSAID = frozenset({"stage", "hub", "url", "host", "user"})
"""Keys of a manifest that say something of this machine, or of where its copy came from."""


def kind_of(name: str) -> str | None:
    """What a file is by its name: a key of `NAMED`, or None where it is not published, as in a directory of its own."""
    if "/" in name or "\\" in name:
        return None
    for kind, patterns in NAMED.items():
        if any(fnmatch.fnmatchcase(name, p) for p in patterns):
            return kind
    return None


def choose(directory: Path) -> tuple[list[Path], dict[str, str]]:
    """The files of `directory` that are published, and name → reason of what stays.

    Raises `ConfigError` for what looks like a secret.
    """
    files, left = [], {}
    for path in sorted(Path(directory).iterdir()):
        if any(fnmatch.fnmatchcase(path.name.lower(), p) for p in SECRET_NAMES):
            raise ConfigError(
                f"{path} looks like a secret: move it out of the model's directory, and then push again. "
                "Nothing was sent"
            )
        if path.is_dir():
            left[f"{path.name}/"] = "a directory"
        elif kind_of(path.name) is None:
            left[path.name] = "not one of the files that make a model"
        else:
            files.append(path)
    return files, left


def check_texts(texts: Iterable[tuple[str, str]]) -> None:
    """Raise `ConfigError` where one of name and text holds a key, or a path of this machine."""
    mine = [re.escape(f"{path}/") for path in {Path.home(), Path.cwd()} if len(path.parts) > 1]
    here = re.compile("|".join(mine) or "(?!)")
    for name, text in texts:
        places = [here] if kind_of(name) == "chat template" else [here, HOMES]
        places += [WHOLE] if name in CONFIGS else []
        for number, line in enumerate(text.splitlines(), 1):
            if found := SECRETS.search(line):
                raise ConfigError(
                    f"{name}, line {number} holds what looks like a key ({found[0][:6]}…): take it out and revoke it. "
                    "Nothing was sent"
                )
            if found := next((match for place in places if (match := place.search(line))), None):
                raise ConfigError(
                    f"{name}, line {number} names a place on this machine ({found[0]}): take it out "
                    "(the model's fingerprint changes with its config) and push again. Nothing was sent"
                )


def is_read(path: Path) -> bool:
    """Whether a file's text is checked: all but weights and vocabularies."""
    return kind_of(path.name) in READ or path.name in ("tokenizer_config.json", "model.safetensors.index.json")


def scrub(value: Any, key: str = "") -> Any:
    """A manifest, or a part of one, with names in the place of paths."""
    if isinstance(value, Mapping):
        return {k: scrub(v, k) for k, v in value.items() if k not in UNSAID}
    if isinstance(value, list | tuple):
        return [scrub(v, key) for v in value]
    if not isinstance(value, str):
        return value
    if key in PLACES and ("/" in value or "\\" in value):
        return _last(value)
    return PLACE.sub(lambda found: _last(found[0]), value)


def _last(path: str) -> str:
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1]


def manifest_text(manifest: Mapping[str, Any]) -> str:
    """A manifest as it is published."""
    return json.dumps(scrub(manifest), indent=2, ensure_ascii=False) + "\n"
