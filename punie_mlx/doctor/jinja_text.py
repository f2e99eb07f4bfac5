"""The text of a Jinja template and edits of it: code apart from words, so that an edit of code touches no words.

Templates are edited as text, not as a syntax tree: what is not mended stays as its author wrote it, to the letter.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

_TAG = re.compile(r"\{#.*?#\}|\{\{[-+]?|\{%[-+]?", re.DOTALL)
_STRING = r"'(?:\\.|[^'\\])*'|\"(?:\\.|[^\"\\])*\""
_IN_OUTPUT = re.compile(rf"{_STRING}|\{{|\}}(?!\}})|[-+]?\}}\}}", re.DOTALL)
_IN_STATEMENT = re.compile(rf"{_STRING}|[-+]?%\}}", re.DOTALL)
_WORD = re.compile(r"\w+")
_FOR = re.compile(r"\s*for\s+(\w+)\s+in\s+([^%]*)")
_PRIVATE = re.compile("[\ue000-\uf8ff]")
OPENING, CLOSING = ("if", "for", "macro", "call", "filter", "generation"), "end"


@dataclass(frozen=True)
class Edit:
    """Put `new` in the place of the characters from `start` to `end`."""

    start: int
    end: int
    new: str


def apply(template: str, edits: Iterable[Edit]) -> str:
    """`template` with all `edits`; of two that overlap, the first."""
    out, at = [], 0
    for edit in sorted(edits, key=lambda e: (e.start, e.end)):
        if edit.start < at:
            continue
        out += [template[at : edit.start], edit.new]
        at = edit.end
    return "".join([*out, template[at:]])


@dataclass(frozen=True)
class Tag:
    """`{{ … }}` (kind "output") or `{% … %}` (kind "statement"): `start` and `end` with its braces, `inner` without.

    depth: how many blocks are open around it. loops: what the loops around it call their items, innermost first.
    """

    kind: str
    start: int
    end: int
    inner: tuple[int, int]
    word: str = ""
    depth: int = 0
    loops: tuple[str, ...] = ()


@dataclass(frozen=True)
class Text:
    """A template with its tags.

    code: as long as the template, with blanks where words stand: outside of tags, in comments and in strings. The
    quotes stay, and so do strings that are a key in brackets, such as in `message['content']`.
    """

    template: str

    @cached_property
    def tags(self) -> tuple[Tag, ...]:
        return tuple(_nested(self.template, _tags(self.template)))

    @property
    def outputs(self) -> tuple[Tag, ...]:
        return tuple(t for t in self.tags if t.kind == "output")

    @property
    def statements(self) -> tuple[Tag, ...]:
        return tuple(t for t in self.tags if t.kind == "statement")

    @cached_property
    def code(self) -> str:
        code = [" "] * len(self.template)
        for tag in self.tags:
            code[tag.start : tag.end] = self.template[tag.start : tag.end]
            for found in re.finditer(_STRING, self.template[tag.inner[0] : tag.inner[1]], re.DOTALL):
                start, end = tag.inner[0] + found.start(), tag.inner[0] + found.end()
                is_key = self.template[start - 1] in "[(" and re.fullmatch(r"\w+", self.template[start + 1 : end - 1])
                if not is_key:
                    code[start + 1 : end - 1] = " " * (end - start - 2)
        return "".join(code)

    @cached_property
    def code_with_strings(self) -> str:
        """`code` with the words of strings: for edits of literals."""
        code = [" "] * len(self.template)
        for tag in self.tags:
            code[tag.start : tag.end] = self.template[tag.start : tag.end]
        return "".join(code)

    def inside(self, tag: Tag) -> str:
        return self.template[tag.inner[0] : tag.inner[1]]

    def find(self, pattern: str, *, strings: bool = False) -> Iterator[re.Match[str]]:
        """Where `pattern` stands in code; with `strings` also in the words of strings."""
        return re.finditer(pattern, self.code_with_strings if strings else self.code, re.DOTALL)

    def replace(self, pattern: str, new: str, *, strings: bool = False) -> list[Edit]:
        """An edit for each place of `pattern`; `new` may name its groups, as they stand in the template."""
        return [
            Edit(m.start(), m.end(), re.sub(r"\\(\d)", lambda g, m=m: self.template[slice(*m.span(int(g[1])))], new))
            for m in self.find(pattern, strings=strings)
        ]

    def in_outputs(self, edits: Iterable[Edit]) -> list[Edit]:
        """Those of `edits` that change what is written, not what is asked or set."""
        return [e for e in edits if any(t.start < e.start < t.end for t in self.outputs)]

    def branches(self, condition: str) -> Iterator[tuple[Tag, int]]:
        """Each `if` or `elif` whose code matches `condition`, and where its branch ends."""
        statements = self.statements
        for i, tag in enumerate(statements):
            if tag.word in ("if", "elif") and re.search(condition, self.inside(tag)):
                after = (t for t in statements[i + 1 :] if t.depth == tag.depth)
                end = next((t for t in after if t.word in ("elif", "else", "endif")), None)
                yield tag, end.start if end else len(self.template)

    def variable_of(self, collection: str) -> str | None:
        """What the first loop over `collection` calls an item of it."""
        for tag in self.statements:
            found = _FOR.match(self.inside(tag))
            if found and re.search(collection, found[2]):
                return found[1]
        return None


def _tags(template: str) -> Iterator[Tag]:
    at = 0
    while found := _TAG.search(template, at):
        at = found.end()
        if found[0].startswith("{#"):
            continue
        output = found[0].startswith("{{")
        closing = _output_end(template, at) if output else _statement_end(template, at)
        if closing is None:
            return
        inner = (found.end(), closing.start())
        named = None if output else _WORD.search(template, *inner)
        word = named[0] if named else ""
        yield Tag("output" if output else "statement", found.start(), closing.end(), inner, word)
        at = closing.end()


def _output_end(template: str, at: int) -> re.Match[str] | None:
    depth = 0
    for found in _IN_OUTPUT.finditer(template, at):
        if found[0] == "{":
            depth += 1
        elif found[0] == "}" or (found[0].endswith("}}") and depth > 0):
            depth -= len(found[0].lstrip("-+"))
        elif found[0].endswith("}}"):
            return found
    return None


def _statement_end(template: str, at: int) -> re.Match[str] | None:
    return next((m for m in _IN_STATEMENT.finditer(template, at) if m[0].endswith("%}")), None)


def _nested(template: str, tags: Iterable[Tag]) -> Iterator[Tag]:
    """`tags` with their depth and the loops around them; `elif`, `else` and `endif` are as deep as their `if`."""
    blocks: list[str] = []
    for tag in tags:
        closes = tag.word.startswith(CLOSING) and bool(blocks)
        if closes:
            blocks.pop()
        around = len(blocks) - (tag.word in ("else", "elif"))
        loops = tuple(b for b in reversed(blocks) if b)
        yield Tag(tag.kind, tag.start, tag.end, tag.inner, tag.word, max(around, 0), loops)
        if tag.word in OPENING or (tag.word == "set" and _is_block(template, tag)):
            found = _FOR.match(template[slice(*tag.inner)])
            blocks.append(found[1] if found else "")


def _is_block(template: str, tag: Tag) -> bool:
    """Whether this `set` has no value and takes all up to `endset`."""
    return "=" not in template[slice(*tag.inner)]


def value(string: str) -> str:
    """What a Jinja string stands for, as Jinja reads it."""
    return string[1:-1].encode("ascii", "backslashreplace").decode("unicode-escape")


def escaped_private(template: str) -> str:
    """`template` with characters of private use as escapes, in strings and where it copies its own text."""
    text = Text(template)
    spans = [tag.inner for tag in text.tags]

    def escape(found: re.Match[str]) -> str:
        code = f"\\u{ord(found[0]):04x}"
        in_tag = any(start <= found.start() < end for start, end in spans)
        return code if in_tag else f"{{{{ '{code}' }}}}"

    return _PRIVATE.sub(escape, template)


def visible_private(text: str) -> str:
    """`text` with characters of private use as U+…, to be read by people."""
    return _PRIVATE.sub(lambda m: f"\\u{ord(m[0]):04x}", text)


def strings_of(code: str) -> Sequence[re.Match[str]]:
    """The string literals of a piece of code."""
    return list(re.finditer(_STRING, code, re.DOTALL))
