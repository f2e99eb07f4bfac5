"""What `punie-mlx serve` is told: defaults, a YAML file over them, options over both.

A file has the names of the options: `max-context: 8192`, `allow-origin: [https://a.example]`.
"""

from __future__ import annotations

import dataclasses
import difflib
import ipaddress
import json
import math
import os
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from punie_mlx.chat.render import RESERVED
from punie_mlx.errors import ConfigError
from punie_mlx.serve.generation import Limits
from punie_mlx.serve.settings import CONSTRAIN, ChatSettings, Defaults, HttpSettings
from punie_mlx.serve.wire import AUTO, check_names

API_KEY_VARIABLE = "PUNIE_MLX_API_KEY"
LEVELS = ("debug", "info", "warning", "error")
KV_BITS = (2, 3, 4, 5, 6, 8)
KEY_CHARACTERS = re.compile(r"[!-~]+")  # what a header can carry
SUFFIXES = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclass(frozen=True)
class ServeConfig:
    """What to serve, where, and for whom. Each field is an option and a key of the file; None is the model's own."""

    model: Path
    adapter: Path | None = None
    host: str = "127.0.0.1"
    port: int = 8080  # 0: any free one
    name: str | None = None
    max_context: int | None = None
    kv_bits: int | None = None
    prompt_cache_bytes: int | None = None
    max_concurrency: int = 32
    max_queue: int = 96
    draft_model: Path | None = None
    prompt_lookup: bool = False
    chat_template: Path | None = None
    tool_call_format: str = AUTO
    reasoning_format: str = AUTO
    constrain: str = "auto"
    rescue: bool = False
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    max_tokens: int | None = None
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    request_timeout: float = 600.0
    drain: float = 30.0
    api_key: str | None = field(default=None, repr=False)
    insecure: bool = False
    allow_origin: tuple[str, ...] = ()
    inspect: bool = False  # the page at /inspect, for this machine only
    otel_endpoint: str | None = None  # of a collector; None is what OTEL_EXPORTER_OTLP_ENDPOINT says
    log_content: bool = False
    log_level: str = "info"

    def __post_init__(self) -> None:
        for name, (low, high, told) in RANGES.items():
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and low <= value <= high):
                raise ConfigError(f"{option(name)} {value} is out of range: it must be {told}")
        for name, choices in CHOICES.items():
            value = getattr(self, name)
            if value is not None and value not in choices:
                raise ConfigError(f"{option(name)} {value} is unknown: choose one of {', '.join(map(str, choices))}")
        if self.api_key is not None and not KEY_CHARACTERS.fullmatch(self.api_key):
            raise ConfigError("--api-key must be visible ASCII characters without spaces, and not empty")
        if self.name is not None and (not self.name.strip() or not self.name.isprintable()):
            raise ConfigError("--name must not be empty, nor hold control characters")
        if taken := RESERVED.intersection(self.template_kwargs):
            names = ", ".join(sorted(taken))
            raise ConfigError(f"--template-kwargs may not hold {names}: the server gives these itself")
        check_names(self.tool_call_format, self.reasoning_format)
        if self.prompt_lookup and (self.draft_model or self.kv_bits):
            other = "--draft-model" if self.draft_model else "--kv-bits"
            raise ConfigError(f"--prompt-lookup and {other} do not go together: choose one")
        if self.inspect:
            check_private(self.host, self.insecure)

    @property
    def served_name(self) -> str:
        """The one name that requests may use: that of the directory, unless another is given."""
        return self.name or Path(self.model).resolve().name

    def limits(self) -> Limits:
        """What the engine is started with."""
        return Limits(
            requests=self.max_concurrency + self.max_queue,
            decode_batch=self.max_concurrency,
            prefill_batch=min(self.max_concurrency, Limits.prefill_batch),
            prompt_cache_bytes=self.prompt_cache_bytes,
            context=self.max_context,
            kv_bits=self.kv_bits,
            lookup=self.prompt_lookup,
        )

    def chat(self, generation_config: Mapping[str, Any]) -> ChatSettings:
        """How requests are answered by a model with this `generation_config`."""
        return ChatSettings(
            constrain=self.constrain,
            rescue=self.rescue,
            request_seconds=self.request_timeout,
            log_content=self.log_content,
            defaults=self.defaults(generation_config),
        )

    def defaults(self, generation_config: Mapping[str, Any]) -> Defaults:
        """What requests that leave a field out get: the model's own, then options; greedy where neither says."""
        own = {name: _usable(name, generation_config.get(name)) for name in OWN}
        if generation_config.get("do_sample") is False:
            own["temperature"] = 0.0
        elif own["temperature"] is None and generation_config.get("do_sample"):
            own["temperature"] = 1.0
        given = {name: getattr(self, name) for name in (*SAMPLED, "max_tokens")}
        chosen = {k: v for k, v in own.items() if v is not None} | {k: v for k, v in given.items() if v is not None}
        return Defaults(**chosen, template_kwargs=dict(self.template_kwargs))

    def http(self, hosts: frozenset[str] | None = None) -> HttpSettings:
        """What clients may ask of the HTTP server, which answers to the names `hosts` only, if they are given."""
        origins, inspect = self.allow_origin, self.inspect
        return HttpSettings(
            drain_seconds=self.drain, api_key=self.api_key, origins=origins, hosts=hosts, inspect=inspect
        )


SAMPLED = ("temperature", "top_p", "top_k", "min_p")
RANGES: dict[str, tuple[float, float, str]] = {
    "port": (0, 65535, "0 to 65535"),
    "max_context": (1, 2**31, "at least 1"),
    "prompt_cache_bytes": (0, 2**60, "at least 0"),
    "max_concurrency": (1, 4096, "1 to 4096"),
    "max_queue": (0, 2**20, "at least 0"),
    "temperature": (0, 100, "0 to 100"),
    "top_p": (0, 1, "0 to 1"),
    "top_k": (0, 2**31, "at least 0 (0: no limit)"),
    "min_p": (0, 1, "0 to 1"),
    "max_tokens": (1, 2**31, "at least 1"),
    "request_timeout": (0.001, 1e9, "above 0"),
    "drain": (0, 1e6, "at least 0"),
}
OWN = {**{name: RANGES[name] for name in SAMPLED}, "repetition_penalty": (1e-3, 100, "above 0")}  # a model's own values
CHOICES: dict[str, tuple[Any, ...]] = {"constrain": CONSTRAIN, "log_level": LEVELS, "kv_bits": KV_BITS}


def check_private(host: str, insecure: bool) -> None:
    """Raises `ConfigError` where a page that shows prompts and tokens could be reached from other machines."""
    if insecure:
        raise ConfigError("--inspect and --insecure do not go together: the page is for this machine only")
    if not is_loopback(host):
        raise ConfigError(
            f"--inspect shows prompts and tokens, so it is for this machine only, and --host {host} may be reached "
            "from others: leave --host out, or say 127.0.0.1"
        )


def is_loopback(host: str) -> bool:
    """Whether `host`, an address or a name, says that it is this machine's own; what it resolves to is seen later."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def make_config(file: Path | None = None, options: Mapping[str, Any] | None = None) -> ServeConfig:
    """Defaults, then the YAML `file`, then those `options` that are not None. Raises `ConfigError`."""
    settings = read_file(file) if file is not None else {}
    given = {key: value for key, value in (options or {}).items() if value is not None}
    settings |= {key: coerce(key, value, option(key)) for key, value in given.items()}
    if settings.get("api_key") is None and os.environ.get(API_KEY_VARIABLE):
        settings["api_key"] = os.environ[API_KEY_VARIABLE]
    if settings.get("model") is None:
        raise ConfigError("no model is named: give --model DIRECTORY, or `model:` in the --config file")
    return ServeConfig(**settings)


def read_file(path: Path) -> dict[str, Any]:
    """The settings of a YAML file, checked. Raises `ConfigError` that names the file and the key."""
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as e:
        raise ConfigError(f"the config {path} cannot be read ({e.strerror}): give a YAML file") from e
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as e:
        raise ConfigError(f"the config {path} is not YAML ({' '.join(str(e).split())}): mend it") from e
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"the config {path} must hold `key: value` lines, with the names of the options")
    settings: dict[str, Any] = {}
    for spelled, value in content.items():
        key = check_key(str(spelled), str(path))
        if key in settings:
            raise ConfigError(f"{path}: `{spelled}` is there twice")
        if value is not None:  # the same as leaving it out
            settings[key] = coerce(key, value, f"{path}: `{spelled}`")
    return settings


def check_key(key: str, where: str) -> str:
    """The field that `key` names. Raises `ConfigError` with the nearest name."""
    name = key.replace("-", "_")
    if name in KINDS:
        return name
    near = difflib.get_close_matches(name, KINDS, n=1, cutoff=0.5)
    known = ", ".join(k.replace("_", "-") for k in KINDS)
    hint = f"did you mean `{near[0].replace('_', '-')}`?" if near else f"the keys are {known}"
    raise ConfigError(f"{where}: there is no setting `{key}`: {hint}")


def option(name: str) -> str:
    return "--" + name.replace("_", "-")


def size(text: str) -> int:
    """Bytes, as people write them: 2048, 512M, 1.5G. Raises `ValueError`."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if not match:
        raise ValueError(f"{text!r} is no size")
    return int(float(match[1]) * SUFFIXES[match[2].upper()])


def coerce(key: str, value: Any, where: str) -> Any:
    """`value` as the field `key` has it: options and YAML both write sizes and paths as text."""
    kind = KINDS[key]
    try:
        match kind, value:
            case "size", str():
                return size(value)
            case "int" | "size", int() if not isinstance(value, bool):
                return value
            case "float", int() | float() if not isinstance(value, bool):
                return float(value)
            case "bool", bool():
                return value
            case "str", str():
                return value
            case "path", str() | Path():
                return Path(value).expanduser()
            case "words", str():
                return (value,)
            case "words", list() | tuple() if all(isinstance(v, str) for v in value):
                return tuple(value)
            case "mapping", str():
                return coerce(key, json.loads(value), where)
            case "mapping", Mapping() if all(isinstance(k, str) for k in value):
                json.dumps(value)  # YAML has dates, which no template expects
                return dict(value)
    except (ValueError, TypeError, RecursionError, OverflowError):
        pass
    shown = "what it is" if key == "api_key" else repr(value)
    raise ConfigError(f"{where} must be {TOLD[kind]}, not {shown}")


TOLD = {
    "size": "a number of bytes, with K, M or G behind it if you like",
    "int": "an integer",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "path": "a path",
    "words": "a text or a list of texts",
    "mapping": "a JSON object",
}


def _kind(name: str, hint: Any) -> str:
    if name == "prompt_cache_bytes":
        return "size"
    if isinstance(hint, types.UnionType):
        (hint,) = (part for part in typing.get_args(hint) if part is not type(None))
    return {Path: "path", tuple: "words", Mapping: "mapping"}.get(typing.get_origin(hint) or hint) or hint.__name__


KINDS = {f.name: _kind(f.name, typing.get_type_hints(ServeConfig)[f.name]) for f in dataclasses.fields(ServeConfig)}


def _usable(name: str, value: Any) -> Any:
    """A value of a model's generation_config.json, or None where it is none that requests could ask for."""
    low, high, _ = OWN[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        return None
    return int(value) if name == "top_k" else float(value)
