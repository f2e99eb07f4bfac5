"""Our own chat templates, one for each family of models, with the markers that a tokenizer has.

A template is a file of ASCII next to this one. What differs between the models of a family is set in its first lines
(`{%- set NAME = VALUE -%}`), and `make` writes those by the tokens of a vocabulary. A marker of private use is written
as an escape, so that it never passes through an editor.

`tiny_base.jinja` is no family: it is the compact template of the model in `data/tiny-base`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from punie_mlx.chat.alone import Alone
from punie_mlx.chat.render import render_as_given
from punie_mlx.errors import ConfigError, DataError
from punie_mlx.toolcalls import detect

_HERE = Path(__file__).parent
_CHATML = ("<|im_start|>", "<|im_end|>")
_PRIVATE = re.compile("[\ue000-\uf8ff]+")
_NAMED = {"\n": "\\n", "\t": "\\t", "\r": "\\r", "'": "\\'", "\\": "\\\\"}  # all that llama.cpp reads, too
_SETS = r"(?m)^(\{{%- set {name} = )(.*)( -%\}})$"


@dataclass(frozen=True)
class Choice:
    """A line of a template that depends on the model: `name` is set to `value` where a token of `words` is there.

    in_template: only the present template tells, since a vocabulary may have tokens that the model does not use.
    """

    name: str
    value: str
    words: tuple[str, ...]
    in_template: bool = False


@dataclass(frozen=True)
class Told:
    """A line of a template with what the model is told where nobody says anything to the system.

    It is what the present template says there, between `before` and `after`, with the switches `given`: words that the
    model was trained on are better than ours.
    """

    name: str
    before: str
    after: str
    given: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Family:
    """Models that are written to in the same way.

    format: the wire format of its calls. frame: tokens around a turn, without which a model is none of this family.
    never: words of a template, or tokens, that only other models have. choices: what differs between its models.
    told: what is told by default. markers: names in the template of what opens and closes a call, where each tokenizer
    has its own.
    """

    name: str
    format: str
    description: str
    frame: tuple[str, ...]
    never: tuple[str, ...] = ()
    choices: tuple[Choice, ...] = field(default=(), repr=False)
    told: tuple[Told, ...] = field(default=(), repr=False)
    markers: tuple[str, str] | tuple[()] = ()

    @property
    def file(self) -> Path:
        return _HERE / f"{self.name}.jinja"


_INSTRUCTIONS = ("## Custom Instructions\n\n", "\n\n<|im_end|>")
_NOUS = ("<|begin_of_text|>", "<s>", "<|im_start|>tool")
_FAMILIES = (
    Family(
        "qwen3_coder",
        "qwen3_coder",
        "Qwen3-Coder and its relatives: XML calls in ChatML",
        _CHATML,
        never=("<think>\\n", "enable_thinking"),
    ),
    Family(
        "hermes",
        "hermes",
        "Qwen2.5, Qwen3 and Hermes: JSON calls between tags in ChatML",
        _CHATML,
        choices=(Choice("opening", "bos_token", _NOUS), Choice("results", "'tool'", _NOUS)),
        told=(Told("told", "<|im_start|>system\n", "<|im_end|>"),),
    ),
    Family(
        "smollm3",
        "smollm3",
        "SmolLM3: JSON calls between its own markers in ChatML, modes of reasoning",
        _CHATML,
        told=(
            Told("told_thinking", *_INSTRUCTIONS),
            Told("told_silent", *_INSTRUCTIONS, {"enable_thinking": False}),
        ),
        markers=("call_open", "call_close"),
    ),
    Family(
        "gpt_oss",
        "harmony",
        "gpt-oss: messages with headers and channels (harmony)",
        ("<|start|>", "<|message|>", "<|channel|>"),
        told=(
            Told("identity", "<|start|>system<|message|>", "\nKnowledge cutoff"),
            Told("channels", "# Valid channels: analysis, commentary, final. ", "<|end|>"),
        ),
    ),
    Family(
        "mistral",
        "mistral",
        "Mistral: calls behind [TOOL_CALLS], as a list of JSON or by name",
        ("[INST]", "[/INST]"),
        never=("[THINK]",),
        choices=(
            Choice("newer", "true", ("[ARGS]",)),
            Choice("numbered", "true", ("[CALL_ID]",), in_template=True),
            Choice("framed", "true", ("[SYSTEM_PROMPT]",)),
            Choice("apart", "true", ("[TOOL_CONTENT]",)),
            Choice("gap", "' '", ("[INST] ",), in_template=True),
        ),
    ),
    Family(
        "llama3",
        "llama3_json",
        "Llama 3.1 to 3.3: JSON calls with parameters, results of ipython",
        ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        never=("<think>",),
    ),
)
FAMILIES: Mapping[str, Family] = MappingProxyType({f.name: f for f in _FAMILIES})


def get(family: str) -> Family:
    """The family of that name. Raises `ConfigError`."""
    if family not in FAMILIES:
        raise ConfigError(f"there is no family {family!r}: choose one of {', '.join(FAMILIES)}")
    return FAMILIES[family]


def make(
    family: str, vocabulary: Collection[str] | None = None, template: str = "", markers: tuple[str, str] | None = None
) -> str:
    """The template of `family` for a model with the tokens of `vocabulary`. Raises `ConfigError`.

    template: the model's present one; it tells what the vocabulary does not, or all where there is no vocabulary.
    markers: what opens and closes a call, for a family in which each tokenizer has its own.
    """
    found = get(family)
    if vocabulary and (missing := [t for t in found.frame if t not in vocabulary]):
        raise ConfigError(f"the tokenizer has no token {missing[0]}, so it is none of {family}: give another --family")
    if markers and not found.markers:
        raise ConfigError(f"the markers of {family} are the same for all its models: leave --markers out")
    text = found.file.read_text(encoding="ascii")
    for choice in found.choices:
        told = template if choice.in_template else vocabulary or template
        ours = re.search(_SETS.format(name=choice.name), template) if told is template else None
        if ours:  # it holds all words, whatever is chosen
            text = _set(text, choice.name, ours[2])
        elif any(word in told for word in choice.words):
            text = _set(text, choice.name, choice.value)
    for told in found.told if template else ():
        if words := _words(told, template):
            text = _set(text, told.name, literal(words))
    if found.markers and (vocabulary or template or markers):
        own = markers or _own_markers(found, vocabulary or (), template)
        if vocabulary and markers and (unknown := [m for m in markers if m not in vocabulary]):
            raise ConfigError(f"the marker {show(unknown[0])} is no token of the tokenizer: name two of its tokens")
        for name, marker in zip(found.markers, own, strict=True):
            text = _set(text, name, literal(marker))
    return text


def family_of(template: str, vocabulary: Collection[str] | None = None) -> str | None:
    """The family of a model by its present template and the tokens of its vocabulary; None where none fits."""
    vocabulary = vocabulary or ()
    fitting = [f for f in _FAMILIES if _fits(f, template, vocabulary)]
    formats = detect.examine(template, vocabulary).formats
    named = [f.name for f in fitting if f.format in formats]
    if formats:
        return named[0] if len(named) == len(formats) == 1 else None
    if "SmolLM" in template:  # its own template may show no call at all
        named = [f.name for f in fitting if f.name == "smollm3"]
    elif "<tool_call>" in vocabulary or "<tool_call>" in template:
        named = [f.name for f in fitting if f.name == "hermes"]
    else:
        named = [f.name for f in fitting if f.frame != _CHATML]
    return named[0] if len(named) == 1 else None


def _fits(family: Family, template: str, vocabulary: Collection[str]) -> bool:
    framed = all(token in template and (token in vocabulary or not vocabulary) for token in family.frame)
    return framed and not any(word in template for word in family.never)


def literal(text: str) -> str:
    """`text` as a string of Jinja that is pure ASCII."""
    escaped = "".join(c if " " <= c <= "~" and c not in "'\\" else _NAMED.get(c) or _escape(c) for c in text)
    return f"'{escaped}'"


def show(token: str) -> str:
    """`token` so that it can be read: characters of private use by their numbers."""
    return " ".join(f"U+{ord(c):04X}" for c in token) if _PRIVATE.fullmatch(token) else token


def _escape(character: str) -> str:
    number = ord(character)
    return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def _set(template: str, name: str, value: str) -> str:
    """`template` with another value in the line that sets `name`."""
    changed, count = re.subn(_SETS.format(name=name), lambda m: m[1] + value + m[3], template, count=1)
    if not count:
        raise ValueError(f"the template sets no {name}")
    return changed


def _words(told: Told, template: str) -> str:
    """What `template` tells the model by itself; nothing where it speaks of tools, or of a day that will be over."""
    asked = {"role": "user", "content": "."}
    try:
        text = render_as_given(Alone(template), [asked], add_generation_prompt=False, **told.given)
    except DataError:
        return ""
    words, found, _ = text.partition(told.before)[2].partition(told.after)
    dated = "strftime_now" in template and re.search(r"\d\d", words)
    return words if found and "<tool" not in words and not dated else ""


def _own_markers(family: Family, vocabulary: Collection[str], template: str) -> tuple[str, str]:
    """What opens and closes a call, by the model's present template and its tokens."""
    ours = family.file.read_text(encoding="ascii")
    for told in (template, ours):
        found = detect.examine(told, vocabulary).markers
        if all(found) and (not vocabulary or all(marker in vocabulary for marker in found)):
            return found
    private = sorted(t for t in vocabulary if _PRIVATE.fullmatch(t))
    if private:
        shown = ", ".join(map(show, private[:8]))
        raise ConfigError(
            f"the vocabulary has tokens of private use ({shown}) and nothing tells which of them open and close a "
            "call: name two of them with --markers, such as --markers U+E00F,U+E010"
        )
    return detect.examine(ours).markers  # the tokenizer writes them in several tokens
