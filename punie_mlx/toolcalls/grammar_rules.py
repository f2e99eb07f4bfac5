"""Writes rules in llguidance's Lark syntax: names, quoting, special tokens, and text up to where it ends.

A piece of framing is written as it stands on the wire. Where it holds a marker that is one token of the vocabulary,
that token is named in its place, since a quoted string does not match the token. What is data (names, keys, values)
is always quoted.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from punie_mlx.errors import ConfigError
from punie_mlx.toolcalls.grammar_strings import UNLIMITED, Limits

_TOKEN = re.compile(r"<[^<>\s\[\]]+>\Z")
_UNNAMED = re.compile(r"\W+")
_BITS = 60  # a rule's parameter has 64
ANY = "/(?s:.*)/"
# Where only one text can follow, any tokens that spell it will do: a model has its own way to cut words.
_OPTIONS = '%llguidance {"no_forcing": true}'


def quote(text: str) -> str:
    """`text` as a string of the grammar. Raises `ConfigError` where it is no Unicode text."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ConfigError(f"{text!r} is no Unicode text: write names and values without lone surrogates") from None
    return json.dumps(text)


def pattern(text: str) -> str:
    """A regular expression that matches `text` and nothing else."""
    return "".join({"\n": r"\n", "\r": r"\r", "\t": r"\t"}.get(c, f"\\{c}" if c in _SPECIAL else c) for c in text)


_SPECIAL = frozenset(r"\/.+*?()|[]{}^$-#&~")


@dataclass(frozen=True)
class Field:
    """One entry of a list of named values: what stands before the value, and the value up to a given end."""

    lead: str
    value: Callable[[str], str]
    required: bool = False


class Rules:
    """The rules of one grammar.

    tokens: the markers that are single tokens, with their ids where a mapping. names: of all tools that the reader
    knows; without any, it takes every name for one. loose: newlines of the framing may be left out.
    """

    def __init__(self, tokens: Collection[str] = (), names: Sequence[str] = ()) -> None:
        self.tokens = tokens
        self.loose = False
        self.any_name = f"({'|'.join(map(pattern, names))})" if names else r"[\w.\-]+"
        self._split = re.compile("|".join(re.escape(t) for t in sorted(tokens, key=len, reverse=True)) or r"(?!)")
        self.unheld: dict[tuple[str, str], dict[str, None]] = {}  # by tool and parameter, keywords that no rule holds
        self._bodies: dict[str, str] = {}
        self._names: dict[str, str] = {}

    # ---- rules and terminals ----

    def fresh(self, hint: str) -> str:
        """A name that is not taken yet."""
        return f"{_UNNAMED.sub('', hint) or 'r'}_{len(self._bodies) + 1}"

    def define(self, name: str, body: str) -> str:
        self._bodies[name] = body
        return name

    def reserve(self, hint: str) -> str:
        """A name whose body comes later."""
        return self.define(self.fresh(hint), "")

    def rule(self, hint: str, body: str, options: str = "") -> str:
        """The name of a rule with this body; the same body gives the same rule."""
        key = f"{hint.isupper()}{options}{body}"
        if key not in self._names:
            name = self.fresh(hint)
            self._names[key] = name
            self.define(f"{name}{options}", body)
        return self._names[key]

    def any_of(self, hint: str, bodies: Sequence[str]) -> str:
        """A rule that is one of `bodies`."""
        unique = list(dict.fromkeys(bodies))
        return unique[0] if len(unique) == 1 and " " not in unique[0] else self.rule(hint, " | ".join(unique))

    def source(self, start: str) -> str:
        """The whole grammar."""
        bodies = "".join(f"{name}: {body}\n" for name, body in [("start", start), *self._bodies.items()])
        return f"{_OPTIONS}\n{bodies}"

    # ---- text ----

    def spell(self, text: str) -> str:
        """Framing: `text` with its markers as tokens."""
        return " ".join(self._token(p) if self._is_token(p) else self._literal(p) for p in self._pieces(text))

    def _literal(self, piece: str) -> str:
        parts = re.split("(\n)", piece) if self.loose else [piece]
        return " ".join('"\\n"?' if self.loose and p == "\n" else quote(p) for p in parts if p)

    def _pieces(self, text: str) -> list[str]:
        out, at = [], 0
        for found in self._split.finditer(text):
            out += [text[at : found.start()], found.group()]
            at = found.end()
        return [p for p in (*out, text[at:]) if p]

    def _is_token(self, piece: str) -> bool:
        return piece in self.tokens

    def _token(self, marker: str) -> str:
        if isinstance(self.tokens, Mapping):
            return f"<[{self.tokens[marker]}]>"
        if not _TOKEN.match(marker):
            raise ConfigError(f"the token {marker!r} cannot be named in a grammar: give the tokens with their ids")
        return marker

    def text(self, never: Sequence[str] = (), not_first: str = "", limits: Limits = UNLIMITED) -> str:
        """A terminal: any text, empty too, without a match of the regular expressions `never`."""
        parts = [*limits.terminals, *self.avoiding(never)]
        if self.possible([not_first]) != [""]:
            parts.append(f"~/({not_first})(?s:.*)/")
        return self.rule("TEXT", " & ".join([ANY, *parts]))

    def possible(self, never: Sequence[str]) -> list[str]:
        """Those regular expressions that ordinary text can match: the others hold a marker that is a token.

        Only of a token in angle brackets it is certain that no text stands for it.
        """
        tokens = [pattern(t) for t in self.tokens if _TOKEN.match(t)]
        return [n for n in dict.fromkeys(never) if not any(t in n for t in tokens)]

    def avoiding(self, never: Sequence[str]) -> list[str]:
        """What a terminal is to be joined with by `&`, so that nothing in it matches one of `never`."""
        found = "|".join(self.possible(never))
        return [f"~/(?s:.*)({found})(?s:.*)/"] if found else []

    def text_until(self, term: str, never: Sequence[str] = (), not_first: str = "", limits: Limits = UNLIMITED) -> str:
        """Any text, and then the framing `term`, at the first place where it stands.

        With `limits`, `never` must say what `term` begins with, or the text could be long enough only with it.
        """
        first, *rest = self._pieces(term)
        if self._is_token(first):
            optional = "?" if limits.may_be_empty else ""
            return f"{self.rule('some', f'{self.text(never, not_first, limits)}')}{optional} {self.spell(term)}"
        text = f"{self.text(never, not_first, limits)} {self._literal(first)}"
        if rest:  # the token shows where it ends, and the text may hold `first` before
            return f"{self.rule('UNTIL', text)} {self.spell(term[len(first) :])}"
        return self.rule("until", self.rule("UNTIL", text), "[lazy]")

    # ---- lists of named values ----

    def fields(self, fields: Sequence[Field], more: str, end: str, extra: Field | None = None) -> str:
        """One or more of `fields`, each at most once, the required ones all, in any order.

        Each value ends in `more`, the last one in `end` (framing). `extra`: a field that may come any number of times.
        More fields than a rule can keep in mind come in their order.
        """
        if len(fields) > _BITS:
            return self._in_order(fields, more, end, extra)
        name, count = self.reserve("fields"), len(fields)
        required = [i for i, f in enumerate(fields) if f.required]
        options = []
        for i, field in enumerate(fields):
            left = [f"bit_clear({i})"]
            if extra is None:
                left.append(f"bit_count_lt([0:{count}], {count - 1})")
            ready = [f"bit_clear({i})", *(f"bit_set({k})" for k in required if k != i)]
            if extra is not None or count > 1:
                options.append(f"{field.lead} {field.value(more)} {name}::set_bit({i}) %if {_all(left)}")
            options.append(f"{field.lead} {field.value(end)} %if {_all(ready)}")
        if extra is not None:
            ready = [f"bit_set({k})" for k in required]
            options.append(f"{extra.lead} {extra.value(more)} {name}::_")
            options.append(f"{extra.lead} {extra.value(end)}" + (f" %if {_all(ready)}" if ready else ""))
        del self._bodies[name]
        self.define(f"{name}::_", "\n  | ".join(options))
        return f"{name}::0x0"

    def _in_order(self, fields: Sequence[Field], more: str, end: str, extra: Field | None) -> str:
        """A chain of rules, from the last field to the first: what may come from there on."""
        after = ""
        if extra is not None:
            after = self.reserve("chain")
            self.define(after, f"{extra.lead} {extra.value(more)} {after} | {extra.lead} {extra.value(end)}")
        must = False  # a required field is still to come
        for field in reversed(fields):
            options = [f"{field.lead} {field.value(more)} {after}"] if after else []
            options += [] if must else [f"{field.lead} {field.value(end)}"]
            options += [after] if after and not field.required else []
            after, must = self.rule("chain", " | ".join(options)), must or field.required
        return after


def _all(conditions: Sequence[str]) -> str:
    *rest, last = conditions
    for condition in reversed(rest):
        last = f"and({condition}, {last})"
    return last


@dataclass(frozen=True)
class Frame:
    """How the calls of a turn stand: framing `before` the first, `between` two and `after` the last; `call` is one.

    never: regular expressions of what the reader takes for the beginning of a call, which no free text may hold.
    never_first: the same, of the beginning of a text.
    anywhere: whether calls may follow text; else they come at once or not at all.
    again: whether text and more calls may follow calls, and calls may stand in thinking.
    think, answer: framing around thinking and around the answer, where it is not the format's tags and nothing.
    others: other ways to write the calls, each with its framing after `before`.
    alike: the same calls in the lexemes of JSON, where an answer in JSON may begin like a call.
    """

    call: str
    before: str = ""
    between: str = ""
    after: str = ""
    never: tuple[str, ...] = ()
    never_first: str = ""
    anywhere: bool = True
    again: bool = False
    think: tuple[str, str] | None = None
    answer: tuple[str, str] = ("", "")
    others: tuple[Frame, ...] = ()
    alike: Frame | None = None
