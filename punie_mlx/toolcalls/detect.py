"""Which wire format a model speaks, told by its chat template and its vocabulary, never guessed.

A format fits where the template holds all of its signs (`toolcalls.spellings`). The answer names the words that were
seen, their lines, and the tokens of the vocabulary that agree or disagree; "no format found" and "two fit" are answers,
too. Tokens alone decide nothing: a vocabulary is often larger than what its model was taught.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace

from punie_mlx.errors import ConfigError
from punie_mlx.toolcalls import formats
from punie_mlx.toolcalls.formats import smollm3
from punie_mlx.toolcalls.spellings import GLUE, NAMED_JSON, SPELLINGS, THINKING, Spelling
from punie_mlx.toolcalls.wire import Format

_COMMENT = re.compile(r"\{#.*?(?:#\}|\Z)", re.DOTALL)
# The name of a token that opens or closes a call, whatever is written around its words.
_OPENS = re.compile(r"[^\w/]*(?:tool_?calls?(?:_(?:start|begin))?|(?:start|begin)_tool_?calls?)[^\w/]*")
_CLOSES = re.compile(r"[^\w/]*(?:/\W*tool_?calls?|tool_?calls?_end|end_tool_?calls?)[^\w/]*")
_PRIVATE = re.compile("[\ue000-\uf8ff]+")
_ESCAPE = re.compile(r"\\u([0-9a-fA-F]{4})|\\U(000[0-9a-fA-F]{5}|0010[0-9a-fA-F]{4})")
_NAMES_ITS_OWN = ("smollm3",)  # the format in which each tokenizer has markers of its own
_SHOWN = 8  # tokens of a kind that are named; a vocabulary may have hundreds of private use
_REACH = 1000  # characters of a template between the beginning of a call's JSON and its end
# What a template writes before and after the JSON of a call; a bare word is the name of a variable.
_TAG = r"(?<!\\)[^\s'\"{}()\[\],:=+~%|\\-][^\s'\"{}()\[\],+~%\\]*"
_TAG_BEFORE = re.compile(rf"({_TAG}){GLUE}{NAMED_JSON}")
_TAG_AFTER = re.compile(rf"\}}{GLUE}({_TAG})")


@dataclass(frozen=True)
class Seen:
    """Words of the template that prove something, and the line on which they stand first."""

    words: str
    line: int
    proves: str

    def __str__(self) -> str:
        return f"{self.proves} (line {self.line} of the template: {self.words!r})"


@dataclass(frozen=True)
class Evidence:
    """What speaks for a format: words of the template, what it does not say, and tokens of the vocabulary."""

    words: tuple[Seen, ...]
    absent: tuple[str, ...] = ()
    tokens: tuple[str, ...] = ()

    def __str__(self) -> str:
        told = [*map(str, self.words), *(f"nothing says that {a}" for a in self.absent)]
        return "; ".join([*told, f"single tokens: {' '.join(self.tokens) or 'none'}"])


@dataclass(frozen=True)
class Detection:
    """What was found.

    formats: those that fit, each with its `evidence`. markers: what opens and closes a call of the one that fits; ""
    where nothing does, or it is not known. think: the tags around thinking, empty where none were seen. vocabulary:
    tokens that point at a format, fitting or not. disagreements: where template and vocabulary do not agree.
    """

    formats: tuple[str, ...]
    evidence: Mapping[str, Evidence]
    markers: tuple[str, str] = ("", "")
    think: tuple[str, str] | tuple[()] = ()
    vocabulary: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    disagreements: tuple[str, ...] = ()

    @property
    def format(self) -> str | None:
        """The one format that fits, or None."""
        return self.formats[0] if len(self.formats) == 1 else None

    @property
    def thinks(self) -> bool:
        """Whether thinking is framed by tags."""
        return bool(self.think)

    def wire(self) -> Format:
        """The format that fits, with the markers and thinking tags that were seen. Raises `ConfigError`."""
        if self.format is None:
            raise ConfigError(self.explain())
        wire = formats.get(self.format)
        if wire.name == "smollm3" and all(self.markers) and self.markers != (wire.open, wire.close):
            wire = smollm3.between(*self.markers)
        if self.think and any(wire.think) and self.think != wire.think:
            hints = dict.fromkeys((*wire.hints, *(tag[0] for tag in self.think)))
            wire = replace(wire, think=self.think, hints="".join(hints))
        return wire

    def explain(self) -> str:
        """What fits and why, or why nothing does, in one paragraph."""
        if self.format:
            told = [f"{self.format}: {self.evidence[self.format]}"]
        elif self.formats:
            told = [f"the chat template fits several wire formats ({', '.join(self.formats)}): name one"]
            told += [f"{name}: {why}" for name, why in self.evidence.items()]
        else:
            known = ", ".join(dict.fromkeys(s.format for s in SPELLINGS))
            told = [f"no wire format found in the chat template: it must show how to write calls in one of {known}"]
            told += [f"the vocabulary alone points at {n}: {_list(t)}" for n, t in self.vocabulary.items()]
        return ". ".join([*told, *self.disagreements])


def examine(chat_template: str | Mapping[str, str] | None, vocabulary: Collection[str] = ()) -> Detection:
    """What `chat_template` (or the one for tools, of several by name) and the tokens of `vocabulary` show."""
    template = _text(chat_template)
    fitting: dict[str, Spelling] = {}
    evidence: dict[str, Evidence] = {}
    for spelling in SPELLINGS:
        words = _seen(template, spelling)
        if words and spelling.format not in fitting:
            fitting[spelling.format] = spelling
            tokens = dict.fromkeys((*spelling.markers, *spelling.tokens))
            found = tuple(t for t in tokens if t and t in vocabulary)
            evidence[spelling.format] = Evidence(words, tuple(s.proves for s in spelling.never), found)
    pointing = _pointing(vocabulary)
    markers, disagreements = ("", ""), ()
    if len(fitting) == 1:
        (spelling,) = fitting.values()
        named = spelling.format in _NAMES_ITS_OWN
        markers = _own_markers(template, vocabulary) if named else spelling.markers
        disagreements = tuple(_disagreements(spelling, markers, pointing, vocabulary))
    think = _thinking(template, tuple(fitting))
    return Detection(tuple(fitting), evidence, markers, think, pointing, disagreements)


def detect(chat_template: str | Mapping[str, str] | None, vocabulary: Collection[str] = ()) -> str:
    """The name of the wire format of a template. Raises `ConfigError` where none, or more than one, fits."""
    return examine(chat_template, vocabulary).wire().name


def _text(chat_template: str | Mapping[str, str] | None) -> str:
    """The template with its comments blanked, so that they prove nothing and lines keep their numbers."""
    if isinstance(chat_template, Mapping):
        chat_template = chat_template.get("tool_use") or chat_template.get("default")
    return _COMMENT.sub(lambda m: "\n" * m[0].count("\n"), chat_template or "")


def _seen(template: str, spelling: Spelling) -> tuple[Seen, ...]:
    """Where the signs of `spelling` stand; nothing where one is missing, or one stands that must not."""
    found = [(re.search(sign.words, template), sign.proves) for sign in spelling.signs]
    if not all(match for match, _ in found) or any(re.search(sign.words, template) for sign in spelling.never):
        return ()
    return tuple(Seen(m[0], template.count("\n", 0, m.start()) + 1, proves) for m, proves in found if m)


def _pointing(vocabulary: Collection[str]) -> dict[str, tuple[str, ...]]:
    """The tokens that point at a format, or that frame calls of a format that they do not tell."""
    found: dict[str, tuple[str, ...]] = {}
    for spelling in SPELLINGS:
        if tokens := tuple(t for t in spelling.tokens if t in vocabulary):
            found[spelling.format] = (*found.get(spelling.format, ()), *tokens)
    known = {t for spelling in SPELLINGS for t in spelling.tokens}
    named = tuple(
        t for t in vocabulary if "tool" in t and t not in known and (_OPENS.fullmatch(t) or _CLOSES.fullmatch(t))
    )
    private = tuple(t for t in vocabulary if _PRIVATE.fullmatch(t))
    framing = {"a format with these markers": named, "tokens of private use": private}
    return found | {told: tokens for told, tokens in framing.items() if tokens}


def _disagreements(
    spelling: Spelling, markers: tuple[str, str], pointing: Mapping[str, tuple[str, ...]], vocabulary: Collection[str]
) -> Iterable[str]:
    for marker in spelling.tokens or markers if vocabulary else ():
        if marker and marker not in vocabulary:
            yield f"{_show(marker)} is no single token of the vocabulary"
    for name, tokens in pointing.items():
        if name in formats.FORMATS and name != spelling.format:
            yield f"the vocabulary has tokens of another format, {name}: {_list(tokens)}"


# ---- markers that a model calls by names of its own ----


def _own_markers(template: str, vocabulary: Collection[str]) -> tuple[str, str]:
    """What the template writes around the JSON of a call; a token that the vocabulary has goes before all others."""
    pairs = list(_around_json(template))
    tokens = [t for t in vocabulary if "tool" in t]
    opens, closes = ([t for t in tokens if kind.fullmatch(t)] for kind in (_OPENS, _CLOSES))
    if len(opens) == len(closes) == 1:
        pairs.append((opens[0], closes[0]))
    both = [pair for pair in pairs if all(marker in vocabulary for marker in pair)]
    return next(iter([*both, *pairs]), ("", ""))


def _around_json(template: str) -> Iterable[tuple[str, str]]:
    for found in _TAG_BEFORE.finditer(template):
        after = _TAG_AFTER.search(template, found.end(), found.end() + _REACH)
        opening = _value(template, found[1])
        if opening and after and (closing := _value(template, after[1])):
            yield opening, closing


def _value(template: str, tag: str) -> str:
    """A tag, or the value of the variable of that name."""
    if not re.fullmatch(r"\w+", tag):
        return tag
    found = re.search(rf"\bset\s+{re.escape(tag)}\s*=\s*['\"]([^'\"]+)['\"]", template)
    return _ESCAPE.sub(lambda m: chr(int(m[1] or m[2], 16)), found[1]) if found else ""


def _thinking(template: str, fitting: tuple[str, ...]) -> tuple[str, str] | tuple[()]:
    """The tags around thinking that the template names, those of the format that fits first."""
    own = [t for name in fitting if any(t := formats.get(name).think)]
    for opening, closing in (*own, *THINKING):
        if opening.split("\n")[0] in template or closing in template:
            return opening, closing
    return ()


def _list(tokens: tuple[str, ...]) -> str:
    more = f" and {len(tokens) - _SHOWN} more" if len(tokens) > _SHOWN else ""
    return " ".join(map(_show, tokens[:_SHOWN])) + more


def _show(token: str) -> str:
    """`token` so that it can be read: characters of private use by their numbers."""
    return " ".join(f"U+{ord(c):04X}" for c in token) if _PRIVATE.fullmatch(token) else token
