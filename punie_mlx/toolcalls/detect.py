"""Which wire format a chat template speaks, told by the template's own text, never guessed."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from punie_mlx.errors import ConfigError

# What a template must hold, and must not, to speak a format.
_SIGNS = {
    "qwen3_coder": (("<tool_call>", "<function=", "<parameter="), ("<seed:tool_call>", "<mimo")),
    "hermes": (("<tool_call>", "arguments"), ("<function=", "<arg_key>", "<invoke ", "<seed:tool_call>")),
}


@dataclass(frozen=True)
class Detection:
    """What was found: the formats that fit, each with its evidence, and whether thinking is framed by tags."""

    formats: tuple[str, ...]
    evidence: Mapping[str, str]
    thinks: bool

    @property
    def format(self) -> str | None:
        """The one format that fits, or None."""
        return self.formats[0] if len(self.formats) == 1 else None


def examine(chat_template: str | None, vocabulary: Collection[str] = ()) -> Detection:
    """What `chat_template` and the tokens of `vocabulary` show."""
    template = chat_template or ""
    evidence = {}
    for name, (wanted, excluded) in _SIGNS.items():
        if all(sign in template for sign in wanted) and not any(sign in template for sign in excluded):
            tokens = [t for t in ("<tool_call>", "</tool_call>") if t in vocabulary]
            evidence[name] = f"the template holds {' '.join(wanted)}; single tokens: {' '.join(tokens) or 'none'}"
    return Detection(tuple(evidence), evidence, "<think>" in template)


def detect(chat_template: str | None, vocabulary: Collection[str] = ()) -> str:
    """The wire format of a template. Raises `ConfigError` where none, or more than one, fits."""
    found = examine(chat_template, vocabulary)
    if found.format:
        return found.format
    if not found.formats:
        raise ConfigError(
            "no wire format found in the chat template: it must write calls as "
            "<tool_call> with <function=NAME> tags (qwen3_coder) or with JSON (hermes)"
        )
    raise ConfigError(f"the chat template fits several wire formats ({', '.join(found.formats)}): name one")
